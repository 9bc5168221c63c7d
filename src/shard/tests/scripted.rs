//! Accidents that were found once, and cases that chance would seldom meet.

use super::*;
use crate::hub::identity::Proof;

fn opened_or_error(world: &mut World, device: usize, epoch: Epoch, is_early: bool) -> Result<Opened, OpenError> {
    world.devices[device].epoch = Some(epoch);
    let how = if is_early { Connect::Early } else { Connect::Resume };
    world.connect(device, how);
    let session = world.process().sessions.pop().expect("just pushed");
    let now = world.now();
    world.process().shard.drain(100, now);
    world.sync(world.devices[device].partition.0);
    world.progress();
    session.reply.expect("not read yet").try_recv().expect("answered")
}

/// A device may choose any epoch; after the highest one the next could not be counted, and the shard panicked.
#[test]
fn the_highest_epoch_has_no_next() {
    let mut world = World::new(Durability::Sync);
    assert!(opened_or_error(&mut world, 0, Epoch(u64::MAX), false).is_ok());
    world.step(&Step::Drain { commands_max: 10 });
    let session = SessionId(world.next_session - 1);
    let mut builder = BatchBuilder::default();
    builder.push_body(&body(0, 1, 1, 0));
    let reserved = world.process().inbox.budgets.try_reserve(PartitionId(0), 4096).unwrap();
    let now = world.now();
    world.process().inbox.push_append(Append {
        session,
        batch: Batch {
            first_sequence: 1,
            count: 1,
            skip: false,
            payload: builder.finish_payload(),
        },
        reserved,
        received: now.instant,
        submitted: now.instant,
    });
    world.settle();
    let refused = opened_or_error(&mut world, 0, Epoch(0), false);
    assert_eq!(
        refused,
        Err(OpenError::StaleEpoch {
            asked: 0,
            current: u64::MAX
        })
    );
}

#[test]
fn early_data_neither_takes_over_nor_gets_an_epoch() {
    let mut world = World::new(Durability::Sync);
    assert_eq!(
        opened_or_error(&mut world, 0, Epoch(0), true),
        Err(OpenError::EarlyData)
    );
    let how = Connect::Resume;
    world.devices[0].epoch = None;
    world.step(&Step::Connect { device: 0, how });
    world.settle();
    let epoch = world.devices[0].epoch.expect("given by the hub");
    assert_eq!(opened_or_error(&mut world, 0, epoch, true), Err(OpenError::EarlyData));
    assert_eq!(world.process().sessions[0].link.end(), None);
    world.step(&Step::Close { device: 0 });
    world.settle();
    let opened = opened_or_error(&mut world, 0, epoch, true);
    assert_eq!(
        opened,
        Ok(Opened {
            epoch,
            last_sequence: 0
        })
    );
}

/// A failed partition kept its last snapshot waiting for ever, so that every stop took the whole drain time.
#[test]
fn a_failed_partition_does_not_hold_up_a_stop() {
    let mut world = World::new(Durability::Sync);
    for device in 0..DEVICES {
        world.step(&Step::Connect {
            device,
            how: Connect::Resume,
        });
    }
    world.settle();
    world.step(&Step::Send {
        device: 0,
        count: 3,
        bytes: 10,
    });
    world.step(&Step::Drain { commands_max: 100 });
    world.step(&Step::TakeSnapshots);
    world.step(&Step::FailSync);
    world.step(&Step::Sync { partition: 0 });
    let session = &world.process().sessions[0];
    assert_eq!(session.link.end().map(|end| end.code), Some(CloseCode::Internal));
    assert_eq!(session.link.acknowledged(), 0);
    assert_eq!(
        world.process().sessions[1].link.end(),
        None,
        "the other partition goes on"
    );
    world.process().shard.stop();
    world.process().shard.dismiss(usize::MAX, "the end of the test");
    world.process().shard.take_snapshots();
    world.settle();
    assert!(world.process().shard.is_idle());
}

/// Hands a post of one message to partition 0.
fn post(world: &mut World, bytes: usize) -> oneshot::Receiver<Result<(), PostError>> {
    let (reply, answer) = oneshot::channel();
    let now = world.now();
    let mut builder = BatchBuilder::default();
    builder.push_body(&vec![b'p'; bytes]);
    let inbox = world.process().inbox.clone();
    let payload = builder.finish_payload();
    let price = inbox.budgets.price(payload.len());
    let reserved = inbox.budgets.try_reserve(PartitionId(0), price).unwrap();
    inbox.push_post(Post {
        partition: PartitionId(0),
        origin: Origin {
            device_id: "posting".into(),
            module_id: String::new(),
            generation: 1,
            epoch: 0,
            auth_method: String::new(),
        },
        messages: Messages { count: 1, payload },
        reserved,
        received: now.instant,
        submitted: now.instant,
        reply,
    });
    answer
}

#[test]
fn a_post_is_answered_once_it_is_durable() {
    let mut world = World::new(Durability::Sync);
    let mut first = post(&mut world, 10);
    let now = world.now();
    world.process().shard.drain(10, now);
    world.progress();
    assert!(first.try_recv().is_err(), "written is not durable");
    assert_eq!(
        world.process().inbox.budgets.inflight_bytes(),
        0,
        "what stands in the log needs no budget"
    );
    world.sync(0);
    world.progress();
    assert_eq!(first.try_recv(), Ok(Ok(())));
    world.process().shard.stop();
    world.process().shard.dismiss(usize::MAX, "the end of the test");
    let mut late = post(&mut world, 10);
    world.process().shard.drain(10, now);
    assert_eq!(late.try_recv(), Ok(Err(PostError::Stopping)));
    assert_eq!(world.process().inbox.budgets.inflight_bytes(), 0);
}

#[test]
fn posts_wait_for_room_in_their_order_and_one_whose_door_left_is_not_stored() {
    let mut world = World::new(Durability::Sync);
    let now = world.now();
    let mut answers: Vec<_> = (0..10).map(|_| post(&mut world, 6000)).collect();
    world.process().shard.drain(20, now);
    let waiting = world.process().inbox.budgets.inflight_bytes();
    assert!(waiting > 0, "the prepared segments do not take all of it");
    world.sync(0);
    world.progress();
    let stored = answers.iter_mut().map_while(|answer| answer.try_recv().ok()).count();
    assert!((1..9).contains(&stored), "{stored} of 10");
    // There is room for this one, but not before its turn.
    let mut small = post(&mut world, 10);
    world.process().shard.drain(20, now);
    world.sync(0);
    world.progress();
    assert!(small.try_recv().is_err(), "it overtook larger ones");
    answers.truncate(9);
    for _ in 0..10 {
        let view = world.process().partitions[0].view.clone();
        view.prepare().expect("the disk has room");
        world.sync(0);
        world.progress();
        world.sync(0);
        world.progress();
    }
    for answer in &mut answers[stored..] {
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }
    assert_eq!(small.try_recv(), Ok(Ok(())));
    assert_eq!(world.process().inbox.budgets.inflight_bytes(), 0);
    let next = world.process().partitions[0].view.durable();
    assert_eq!(
        next,
        SequenceNumber(10),
        "the tenth of the large ones went with its door"
    );
}

#[test]
fn a_failed_partition_answers_its_posts() {
    let mut world = World::new(Durability::Sync);
    let now = world.now();
    let mut waiting = post(&mut world, 10);
    world.process().shard.drain(10, now);
    world.step(&Step::FailSync);
    world.sync(0);
    assert_eq!(waiting.try_recv(), Ok(Err(PostError::Poisoned)));
    let mut later = post(&mut world, 10);
    world.process().shard.drain(10, now);
    assert_eq!(later.try_recv(), Ok(Err(PostError::Poisoned)));
    assert_eq!(world.process().inbox.budgets.inflight_bytes(), 0);
}

/// A module has a generation of its own: deleting it must not cut off its device.
#[test]
fn a_revoke_of_one_generation_leaves_the_others() {
    let mut world = World::new(Durability::Sync);
    world.step(&Step::Connect {
        device: 0,
        how: Connect::Resume,
    });
    world.settle();
    let link = world.process().sessions[0].link.clone();
    let own = world.devices[0].key.generation;
    let now = world.now();
    for (generation, expected) in [(Generation(own.0 + 1), None), (own, Some(CloseCode::DeviceDeleted))] {
        let revoke = Revoke {
            device_id: "device-0".into(),
            generation: Some(generation),
            kept: None,
            code: CloseCode::DeviceDeleted,
            reason: "deleted".into(),
        };
        world.process().shard.handle(Command::Revoke(revoke), now);
        assert_eq!(link.end().map(|end| end.code), expected);
    }
}

/// Of two keys one is replaced: whoever proved himself by the other goes on, and so does who came by a policy.
#[test]
fn a_revoke_ends_what_was_proved_by_what_is_gone() {
    let [gone, kept] = ["gone", "kept"].map(Proof::of_key);
    for (proof, ends) in [
        (Some(gone), true),
        (Some(kept), false),
        (Some(Proof::POLICY), false),
        (None, true),
    ] {
        let mut world = World::new(Durability::Sync);
        world.step(&Step::Connect {
            device: 0,
            how: Connect::Resume,
        });
        world.settle();
        let link = world.process().sessions[0].link.clone();
        link.set_proof(proof);
        let revoke = Revoke {
            device_id: "device-0".into(),
            generation: Some(world.devices[0].key.generation),
            kept: Some(vec![kept]),
            code: CloseCode::Unauthorized,
            reason: "changed".into(),
        };
        let now = world.now();
        world.process().shard.handle(Command::Revoke(revoke), now);
        assert_eq!(link.end().is_some(), ends, "{proof:?}");
    }
}
