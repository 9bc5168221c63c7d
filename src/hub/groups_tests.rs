//! Consumer groups: claims, checkpoints and who may take what from whom.

use super::*;
use crate::state::MemoryState;

const P: PartitionId = PartitionId(1);

fn group(name: &str) -> ConsumerGroup {
    ConsumerGroup::new(name).unwrap()
}

fn claim(groups: &Groups, name: &str, owner: &str, level: i64) -> Result<Claim, GroupError> {
    groups.wait(|done| groups.claim(&group(name), P, owner, level, done))
}

fn commit(groups: &Groups, claim: &Claim, next: u64) -> Result<(), GroupError> {
    groups.wait(|done| groups.commit(claim, SequenceNumber(next), done))
}

#[test]
fn default_is_always_there_and_names_are_bounded() {
    let groups = Groups::new(MemoryState::new());
    assert_eq!(groups.list().unwrap(), [group("$Default")]);
    let create = |name: &str| groups.wait(|done| groups.create(&group(name), done));
    let delete = |name: &str| groups.wait(|done| groups.delete(&group(name), done));
    assert!(matches!(create("$default"), Err(GroupError::Exists)));
    assert!(matches!(delete("$Default"), Err(GroupError::IsDefault)));
    for n in 1..limits::CONSUMER_GROUPS_MAX {
        create(&format!("g{n}")).unwrap();
    }
    assert_eq!(groups.list().unwrap().len(), 20);
    assert!(matches!(create("one-more"), Err(GroupError::TooMany)));
    assert!(matches!(create("G1"), Err(GroupError::Exists)));
    delete("g1").unwrap();
    assert!(matches!(delete("g1"), Err(GroupError::NotFound)));
    assert!(!groups.exists(&group("g1")).unwrap());
    create("one-more").unwrap();
}

#[test]
fn a_newer_claim_fences_the_older() {
    let groups = Groups::new(MemoryState::new());
    let first = claim(&groups, "$Default", "a", 0).unwrap();
    assert_eq!(first.checkpoint, None);
    commit(&groups, &first, 10).unwrap();
    let second = claim(&groups, "$Default", "b", 0).unwrap();
    assert_eq!(second.checkpoint, Some(SequenceNumber(10)));
    assert_eq!(second.displaced.as_ref().unwrap().id, "a");
    match commit(&groups, &first, 11) {
        Err(GroupError::LostOwnership { owner: Some(owner) }) => assert_eq!(owner.id, "b"),
        other => panic!("{other:?}"),
    }
    // The same owner claiming again makes its own older claim stale too.
    let third = claim(&groups, "$Default", "b", 0).unwrap();
    assert!(matches!(
        commit(&groups, &second, 11),
        Err(GroupError::LostOwnership { .. })
    ));
    commit(&groups, &third, 11).unwrap();
    assert_eq!(
        groups.checkpoint(&group("$Default"), P).unwrap(),
        Some(SequenceNumber(11))
    );
    assert_eq!(groups.checkpoint(&group("$Default"), PartitionId(2)).unwrap(), None);
}

#[test]
fn a_lower_level_waits_until_the_higher_lets_go() {
    let groups = Groups::new(MemoryState::new());
    let high = claim(&groups, "$Default", "a", 5).unwrap();
    match claim(&groups, "$Default", "b", 4) {
        Err(GroupError::LostOwnership { owner: Some(owner) }) => assert_eq!(owner.level, 5),
        other => panic!("{other:?}"),
    }
    commit(&groups, &high, 3).unwrap();
    groups.wait(|done| groups.release(&high, done)).unwrap();
    assert!(matches!(
        commit(&groups, &high, 4),
        Err(GroupError::LostOwnership { owner: None })
    ));
    assert_eq!(
        claim(&groups, "$Default", "b", 4).unwrap().checkpoint,
        Some(SequenceNumber(3))
    );
}

#[test]
fn a_checkpoint_goes_backwards_only_on_purpose() {
    let groups = Groups::new(MemoryState::new());
    let held = claim(&groups, "$Default", "a", 0).unwrap();
    commit(&groups, &held, 10).unwrap();
    commit(&groups, &held, 10).unwrap();
    match commit(&groups, &held, 9) {
        Err(GroupError::Backwards { stored }) => assert_eq!(stored, SequenceNumber(10)),
        other => panic!("{other:?}"),
    }
    groups
        .wait(|done| groups.rewind(&held, SequenceNumber(2), done))
        .unwrap();
    commit(&groups, &held, 3).unwrap();
    assert_eq!(
        groups.checkpoint(&group("$Default"), P).unwrap(),
        Some(SequenceNumber(3))
    );
}

/// The claim under way when another one lands is fenced by the store, not by what was read before.
#[test]
fn a_commit_queued_behind_a_claim_is_refused() {
    let state = MemoryState::new();
    let groups = Groups::new(state.clone());
    let old = claim(&groups, "$Default", "a", 0).unwrap();
    state.hold(10);
    groups.claim(&group("$Default"), P, "b", 0, |claimed| assert!(claimed.is_ok()));
    let (sender, receiver) = std::sync::mpsc::channel();
    groups.commit(&old, SequenceNumber(9), move |result| sender.send(result).unwrap());
    state.release_all();
    assert!(matches!(
        receiver.recv().unwrap(),
        Err(GroupError::LostOwnership { .. })
    ));
    assert_eq!(groups.checkpoint(&group("$Default"), P).unwrap(), None);
}

#[test]
fn a_group_created_again_knows_nothing_of_its_former_life() {
    let groups = Groups::new(MemoryState::new());
    assert!(matches!(claim(&groups, "g", "a", 0), Err(GroupError::NotFound)));
    groups.wait(|done| groups.create(&group("g"), done)).unwrap();
    let former = claim(&groups, "g", "a", 0).unwrap();
    commit(&groups, &former, 10).unwrap();
    groups.wait(|done| groups.delete(&group("g"), done)).unwrap();
    assert!(matches!(
        commit(&groups, &former, 11),
        Err(GroupError::LostOwnership { owner: None })
    ));
    groups.wait(|done| groups.create(&group("g"), done)).unwrap();
    assert_eq!(claim(&groups, "g", "b", 0).unwrap().checkpoint, None);
    assert!(matches!(
        commit(&groups, &former, 11),
        Err(GroupError::LostOwnership { .. })
    ));
}
