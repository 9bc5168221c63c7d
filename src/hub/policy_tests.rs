//! Policies: what they permit, and their limits.

use super::super::entropy::testing::Counting;
use super::*;
use crate::state::MemoryState;

fn open(state: &Arc<MemoryState>) -> Policies {
    Policies::open(state.clone(), Arc::new(Counting::default())).unwrap()
}

fn name(text: &str) -> PolicyName {
    PolicyName::new(text).unwrap()
}

#[test]
fn the_five_defaults_are_made_once() {
    let state = MemoryState::new();
    let policies = open(&state);
    let rights = |of: &str| policies.get(&name(of)).unwrap().rights.to_string();
    assert_eq!(
        rights("iothubowner"),
        "RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect"
    );
    assert_eq!(rights("service"), "ServiceConnect");
    assert_eq!(rights("device"), "DeviceConnect");
    assert_eq!(rights("registryRead"), "RegistryRead");
    assert_eq!(rights("registryReadWrite"), "RegistryRead, RegistryWrite");
    let mut keys: Vec<_> = policies
        .list()
        .iter()
        .flat_map(|p| p.keys.iter().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 10);
    assert_eq!(open(&state).list(), policies.list());
}

#[test]
fn writing_implies_reading() {
    let write = Permissions::parse("registrywrite").unwrap();
    assert!(write.allow(Permissions::REGISTRY_READ));
    assert!(!write.allow(Permissions::SERVICE_CONNECT));
    assert!(!Permissions::REGISTRY_READ.allow(Permissions::REGISTRY_WRITE));
    assert!(!Permissions::NONE.allow(Permissions::DEVICE_CONNECT));
    assert_eq!(Permissions::parse("RegistryRead, Root"), None);
}

#[test]
fn one_key_changes_and_the_other_stays() {
    let state = MemoryState::new();
    let policies = open(&state);
    let before = policies.get(&name("service")).unwrap().keys;
    policies
        .wait(|done| policies.regenerate(&name("service"), KeySlot::Primary, done))
        .unwrap();
    let after = policies.get(&name("service")).unwrap().keys;
    assert_ne!(before.primary_key, after.primary_key);
    assert_eq!(before.secondary_key, after.secondary_key);
    assert_eq!(open(&state).get(&name("service")).unwrap().keys, after, "durable");
    let missing = policies.wait(|done| policies.regenerate(&name("nobody"), KeySlot::Primary, done));
    assert!(matches!(missing, Err(PolicyError::NotFound)));
}

#[test]
fn policies_are_bounded() {
    let policies = open(&MemoryState::new());
    let put = |key_name: &str, rights| {
        let policy = Policy {
            key_name: name(key_name),
            keys: KeyPair::default(),
            rights,
        };
        policies.wait(|done| policies.put(policy, done))
    };
    for n in 0..8 {
        put(&format!("s{n}"), Permissions::SERVICE_CONNECT).unwrap();
    }
    assert!(matches!(
        put("s8", Permissions::SERVICE_CONNECT),
        Err(PolicyError::TooMany)
    ));
    for n in 0..3 {
        put(&format!("d{n}"), Permissions::DEVICE_CONNECT).unwrap();
    }
    assert!(matches!(
        put("d3", Permissions::DEVICE_CONNECT),
        Err(PolicyError::TooMany)
    ));
    policies.wait(|done| policies.delete(&name("s0"), done)).unwrap();
    put("d3", Permissions::DEVICE_CONNECT).unwrap();
    assert_eq!(policies.list().len(), 16);
}

#[test]
fn policies_are_made_once_changed_and_deleted_but_the_owners_stays() {
    let state = MemoryState::new();
    let policies = open(&state);
    let create = |key_name: &str, keys: KeyPair, rights| {
        let policy = Policy {
            key_name: name(key_name),
            keys,
            rights,
        };
        policies.wait(|done| policies.create(policy, done))
    };
    let read = Permissions::REGISTRY_READ;
    create("report", KeyPair::default(), read).unwrap();
    let made = policies.get(&name("report")).unwrap();
    assert_eq!(made.keys.iter().count(), 2);
    let again = create("report", KeyPair::default(), read);
    assert!(matches!(again, Err(PolicyError::Exists)));
    let none = create("none", KeyPair::default(), Permissions::NONE);
    assert!(matches!(none, Err(PolicyError::NoRights)));
    let short = KeyPair {
        primary_key: Some("AAAA".into()),
        secondary_key: Some("AAAA".into()),
    };
    assert!(matches!(create("short", short, read), Err(PolicyError::Invalid(_))));

    let set = |of: &str, rights| policies.wait(|done| policies.set_rights(&name(of), rights, done));
    set("report", read.with(Permissions::SERVICE_CONNECT)).unwrap();
    let changed = policies.get(&name("report")).unwrap();
    assert_eq!(changed.rights.to_string(), "RegistryRead, ServiceConnect");
    assert_eq!(changed.keys, made.keys);
    assert!(matches!(set("nobody", read), Err(PolicyError::NotFound)));
    assert!(matches!(set("report", Permissions::NONE), Err(PolicyError::NoRights)));
    assert!(matches!(set(OWNER, read), Err(PolicyError::IsOwner)));
    set(OWNER, Permissions::ALL).unwrap();

    let delete = |of: &str| policies.wait(|done| policies.delete(&name(of), done));
    assert!(matches!(delete(OWNER), Err(PolicyError::IsOwner)));
    delete("report").unwrap();
    assert!(matches!(delete("report"), Err(PolicyError::NotFound)));
    assert_eq!(open(&state).list(), policies.list(), "durable");
    assert_eq!(policies.list().len(), 5);
}
