//! The registry against a model, with failing and crashing stores.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::super::entropy::testing::Counting;
use super::*;
use crate::state::MemoryState;
use crate::state::memory::Failure;

const NOW: UtcMillis = UtcMillis(1_700_000_000_123);

fn registry(state: &Arc<MemoryState>) -> Registry {
    Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap()
}

fn device(id: &str) -> DeviceIdentity {
    DeviceIdentity::new(DeviceId::new(id).unwrap())
}

#[test]
fn one_key_is_replaced_while_the_other_stays() {
    let state = MemoryState::new();
    let registry = registry(&state);
    let made = registry.create_device_blocking(device("d"), NOW).unwrap().identity;
    let name = IdentityName::device(made.device_id.clone());
    let regenerate = |name: &IdentityName, slots| wait(|done| registry.regenerate_keys(name, slots, done));
    let (keys, change) = regenerate(&name, &[KeySlot::Primary]).unwrap();
    assert_eq!(change.kind, ChangeKind::KeysChanged);
    assert_eq!(keys.secondary_key, made.authentication.symmetric_key.secondary_key);
    assert_ne!(keys.primary_key, made.authentication.symmetric_key.primary_key);
    let stored = registry.device(&made.device_id).unwrap();
    assert_eq!(stored.authentication.symmetric_key, keys);
    assert_ne!(stored.etag, made.etag);
    let module = ModuleIdentity::new(made.device_id.clone(), ModuleId::new("m").unwrap());
    let module = registry.create_module_blocking(module, NOW).unwrap().identity;
    let name = IdentityName::module(made.device_id.clone(), module.module_id.clone());
    let (keys, _) = regenerate(&name, &[KeySlot::Primary, KeySlot::Secondary]).unwrap();
    let stored = registry.module(&made.device_id, &module.module_id).unwrap();
    assert_eq!(stored.authentication.symmetric_key, keys);
    assert!(
        keys.iter()
            .all(|key| module.authentication.symmetric_key.iter().all(|old| old != key))
    );

    let unknown = IdentityName::module(made.device_id.clone(), ModuleId::new("n").unwrap());
    let error = regenerate(&unknown, &[KeySlot::Primary]).unwrap_err();
    assert_eq!(error.code().number, 404_010);
    let mut by_certificate = device("x");
    by_certificate.authentication.kind = AuthenticationKind::CertificateAuthority;
    registry.create_device_blocking(by_certificate, NOW).unwrap();
    let name = IdentityName::device(DeviceId::new("x").unwrap());
    assert!(matches!(
        regenerate(&name, &[KeySlot::Primary]),
        Err(RegistryError::NoKeys)
    ));
}

#[test]
fn statistics_count_every_device_once() {
    let state = MemoryState::new();
    let registry = registry(&state);
    assert_eq!(registry.statistics().unwrap(), Statistics::default());
    for n in 0..LIST_MAX + 30 {
        let mut wanted = device(&format!("d{n}"));
        if n % 10 == 0 {
            wanted.status = Status::Disabled;
        }
        registry.create_device_blocking(wanted, NOW).unwrap();
    }
    let expected = Statistics {
        enabled: 927,
        disabled: 103,
    };
    assert_eq!(registry.statistics().unwrap(), expected);
    // A store of a program that did not count.
    let uncounted = WriteBatch::new()
        .delete(Table::Meta, ENABLED_KEY)
        .delete(Table::Meta, DISABLED_KEY);
    let store: Arc<dyn State> = state.clone();
    store.commit_blocking(uncounted).unwrap();
    let again = Registry::open(state, Arc::new(Counting::default()), 4).unwrap();
    assert_eq!(again.statistics().unwrap(), expected);
}

#[test]
fn a_device_lives_and_dies() {
    let state = MemoryState::new();
    let registry = registry(&state);
    let made = registry.create_device_blocking(device("d"), NOW).unwrap();
    assert_eq!(made.change.kind, ChangeKind::Created);
    let id = made.identity.device_id.clone();
    assert_eq!(registry.device(&id).unwrap(), made.identity);
    assert_eq!(made.identity.generation_id.to_string().len(), 18);
    assert_eq!(made.identity.authentication.symmetric_key.iter().count(), 2);
    let error = registry.create_device_blocking(device("d"), NOW).unwrap_err();
    assert_eq!(error.code().number, 409_001);

    let mut wanted = made.identity.clone();
    wanted.status = Status::Disabled;
    let stale = IfMatch::Etag("stale".into());
    let error = registry
        .update_device_blocking(wanted.clone(), stale.clone(), NOW)
        .unwrap_err();
    assert_eq!(error.code().number, 412_001);
    let etag = IfMatch::Etag(made.identity.etag.clone());
    let disabled = registry.update_device_blocking(wanted.clone(), etag, NOW).unwrap();
    assert_eq!(disabled.change.kind, ChangeKind::Disabled);
    assert_eq!(disabled.identity.status_updated_time, Some(NOW));
    assert_ne!(disabled.identity.etag, made.identity.etag);
    wanted.status = Status::Enabled;
    let kind = |wanted: &DeviceIdentity| {
        let changed = registry
            .update_device_blocking(wanted.clone(), IfMatch::Any, NOW)
            .unwrap();
        assert_eq!(changed.identity, registry.device(&wanted.device_id).unwrap());
        changed.change.kind
    };
    assert_eq!(kind(&wanted), ChangeKind::Enabled);
    wanted.status_reason = Some("x".into());
    assert_eq!(kind(&wanted), ChangeKind::Updated);
    wanted.authentication.symmetric_key = Default::default();
    assert_eq!(kind(&wanted), ChangeKind::Updated, "keys not sent are kept");
    wanted.authentication.kind = AuthenticationKind::CertificateAuthority;
    assert_eq!(kind(&wanted), ChangeKind::KeysChanged);

    let module = ModuleIdentity::new(id.clone(), ModuleId::new("m").unwrap());
    let module = registry.create_module_blocking(module, NOW).unwrap().identity;
    assert_eq!(
        registry
            .create_module_blocking(module.clone(), NOW)
            .unwrap_err()
            .code()
            .number,
        409_301
    );
    assert_eq!(
        registry.delete_device_blocking(&id, stale).unwrap_err().code().number,
        412_001
    );
    let deleted = registry.delete_device_blocking(&id, IfMatch::Any).unwrap();
    assert_eq!(deleted.change.kind, ChangeKind::Deleted);
    assert_eq!(registry.device(&id).unwrap_err().code().number, 404_001);
    assert_eq!(
        registry.module(&id, &module.module_id).unwrap_err().code().number,
        404_010
    );
    assert_eq!(
        registry.create_module_blocking(module, NOW).unwrap_err().code().number,
        404_001
    );
    assert_eq!(
        registry
            .delete_device_blocking(&id, IfMatch::Any)
            .unwrap_err()
            .code()
            .number,
        404_001
    );

    let again = registry.create_device_blocking(device("d"), NOW).unwrap();
    assert!(again.identity.generation_id > made.identity.generation_id);
}

#[test]
fn deleting_a_device_spares_those_whose_name_starts_alike() {
    let state = MemoryState::new();
    let registry = Registry::open(state, Arc::new(Counting::default()), 1).unwrap();
    for id in ["d", "d1"] {
        let id = registry
            .create_device_blocking(device(id), NOW)
            .unwrap()
            .identity
            .device_id;
        registry
            .create_module_blocking(ModuleIdentity::new(id, ModuleId::new("m").unwrap()), NOW)
            .unwrap();
    }
    registry
        .delete_device_blocking(&DeviceId::new("d").unwrap(), IfMatch::Any)
        .unwrap();
    assert_eq!(registry.modules(&DeviceId::new("d1").unwrap()).unwrap().len(), 1);
    assert!(registry.device(&DeviceId::new("d1").unwrap()).is_ok());
}

#[test]
fn generations_rise_across_restarts_with_a_clock_that_stands() {
    let state = MemoryState::new();
    let mut last = Generation(0);
    for _ in 0..3 {
        let registry = registry(&state);
        for clock in [NOW, UtcMillis(0), NOW] {
            let made = registry.create_device_blocking(device("d"), clock).unwrap().identity;
            assert!(made.generation_id > last);
            last = made.generation_id;
            registry.delete_device_blocking(&made.device_id, IfMatch::Any).unwrap();
        }
    }
}

#[test]
fn invalid_identities_are_refused_by_member() {
    let state = MemoryState::new();
    let registry = registry(&state);
    let check = |change: fn(&mut DeviceIdentity), expected: InvalidIdentity| {
        let mut wanted = device("d");
        change(&mut wanted);
        match registry.create_device_blocking(wanted, NOW) {
            Err(RegistryError::Invalid(error)) => assert_eq!(error, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
    };
    check(
        |d| d.authentication.symmetric_key.primary_key = Some("AAAA".repeat(8)),
        InvalidIdentity::OneKey,
    );
    check(
        |d| {
            let short = Some("A".repeat(20));
            d.authentication.symmetric_key.primary_key = short.clone();
            d.authentication.symmetric_key.secondary_key = short;
        },
        InvalidIdentity::Key,
    );
    check(
        |d| d.authentication.x509_thumbprint.primary_thumbprint = Some("ab".into()),
        InvalidIdentity::Thumbprint,
    );
    check(
        |d| d.authentication.kind = AuthenticationKind::SelfSigned,
        InvalidIdentity::NoThumbprint,
    );
    check(
        |d| d.status_reason = Some("x".repeat(129)),
        InvalidIdentity::StatusReason,
    );
    check(|d| d.device_scope = Some("x".repeat(9000)), InvalidIdentity::Extras);
    assert!(registry.devices(None, 10).unwrap().is_empty());
}

#[test]
fn json_is_the_contracts() {
    let text = r#"{"deviceId":"d","status":"disabled","etag":null,"generationId":null,"capabilities":null,"connectionState":null,
        "statusUpdatedTime":"0001-01-01T00:00:00","lastActivityTime":"2024-01-02T03:04:05.678",
        "authentication":{"type":"selfSigned","symmetricKey":{"primaryKey":null,"secondaryKey":null},
        "x509Thumbprint":{"primaryThumbprint":"00112233445566778899AABBCCDDEEFF00112233"}},"unknown":[1]}"#;
    let read: DeviceIdentity = serde_json::from_str(text).unwrap();
    assert_eq!(read.status, Status::Disabled);
    assert_eq!(read.status_updated_time, None);
    assert_eq!(read.last_activity_time, Some(UtcMillis(1_704_164_645_678)));
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(written["statusUpdatedTime"], "0001-01-01T00:00:00Z");
    assert_eq!(written["lastActivityTime"], "2024-01-02T03:04:05.678Z");
    assert_eq!(written["connectionState"], "Disconnected");
    assert_eq!(written["cloudToDeviceMessageCount"], 0);
    assert_eq!(written["authentication"]["type"], "selfSigned");
    assert_eq!(written["capabilities"]["iotEdge"], false);
    assert!(serde_json::from_str::<DeviceIdentity>(r#"{"deviceId":"a/b"}"#).is_err());
}

#[test]
fn the_list_goes_page_by_page() {
    let state = MemoryState::new();
    let registry = registry(&state);
    for n in 0..25 {
        registry.create_device_blocking(device(&format!("d{n}")), NOW).unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let page = registry.devices(seen.last(), 4).unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        seen.extend(page.into_iter().map(|device| device.device_id));
    }
    assert_eq!(seen.len(), 25);
    assert!(seen.is_sorted_by_key(|id| (registry.partition(id), id.clone())));
}

#[test]
fn modules_are_bounded() {
    let state = MemoryState::new();
    let registry = registry(&state);
    let id = registry
        .create_device_blocking(device("d"), NOW)
        .unwrap()
        .identity
        .device_id;
    for n in 0..=MODULES_PER_DEVICE_MAX {
        let module = ModuleIdentity::new(id.clone(), ModuleId::new(&format!("m{n}")).unwrap());
        let result = registry.create_module_blocking(module, NOW);
        assert_eq!(result.is_ok(), n < MODULES_PER_DEVICE_MAX, "{n}");
    }
}

#[test]
fn two_writers_of_one_version_do_not_both_win() {
    let state = MemoryState::new();
    let registry = registry(&state);
    let made = registry.create_device_blocking(device("d"), NOW).unwrap().identity;
    let answers = Arc::new(Mutex::new(Vec::new()));
    state.hold(10);
    for if_match in [
        IfMatch::Etag(made.etag.clone()),
        IfMatch::Etag(made.etag.clone()),
        IfMatch::Any,
    ] {
        let answers = Arc::clone(&answers);
        registry.update_device(made.clone(), if_match, NOW, move |result| {
            answers
                .lock()
                .unwrap()
                .push(result.map(|_| ()).map_err(|error| error.code().number));
        });
    }
    state.release_all();
    assert_eq!(*answers.lock().unwrap(), [Ok(()), Err(412_001), Ok(())]);
}

#[test]
fn a_full_queue_is_told_at_once() {
    let state = MemoryState::new();
    let registry = registry(&state);
    state.hold(0);
    let error = registry.create_device_blocking(device("d"), NOW).unwrap_err();
    assert_eq!(error.code(), ErrorCode::SERVER_BUSY);
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Update(u8, Status),
    Delete(u8),
    Release(usize),
    Fail(bool),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..6).prop_map(Step::Create),
        3 => ((0u8..6), prop::sample::select(vec![Status::Enabled, Status::Disabled]))
            .prop_map(|(id, status)| Step::Update(id, status)),
        2 => (0u8..6).prop_map(Step::Delete),
        4 => (1usize..4).prop_map(Step::Release),
        1 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// What was acknowledged is there after a crash; what is there was asked for, and counted.
    #[test]
    fn nothing_acknowledged_is_lost(steps in steps()) {
        let state = MemoryState::new();
        let mut registry = registry(&state);
        // Per id the etag last acknowledged, `None` for deleted. An unacknowledged failure makes an id unknown.
        let model: Arc<Mutex<BTreeMap<u8, Option<String>>>> = Arc::default();
        let unknown: Arc<Mutex<Vec<u8>>> = Arc::default();
        state.hold(16);
        for step in steps {
            let note = |id: u8| {
                let (model, unknown) = (Arc::clone(&model), Arc::clone(&unknown));
                move |result: Result<Changed<DeviceIdentity>, RegistryError>| match result {
                    Ok(changed) => {
                        let is_deleted = changed.change.kind == ChangeKind::Deleted;
                        model.lock().unwrap().insert(id, (!is_deleted).then_some(changed.identity.etag));
                        unknown.lock().unwrap().retain(|other| *other != id);
                    }
                    Err(RegistryError::State(StateError::Failed(_))) => unknown.lock().unwrap().push(id),
                    Err(_) => {}
                }
            };
            match step {
                Step::Create(id) => registry.create_device(device(&format!("d{id}")), NOW, note(id)),
                Step::Update(id, status) => {
                    let mut wanted = device(&format!("d{id}"));
                    wanted.status = status;
                    registry.update_device(wanted, IfMatch::Any, NOW, note(id));
                }
                Step::Delete(id) => {
                    registry.delete_device(&DeviceId::new(&format!("d{id}")).unwrap(), IfMatch::Any, note(id));
                }
                Step::Release(count) => {
                    state.release(count);
                }
                Step::Fail(is_written) => state.fail_next(if is_written { Failure::Written } else { Failure::Lost }),
                Step::Crash => {
                    state.crash();
                    state.hold(16);
                    registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
                }
            }
            for (id, etag) in &*model.lock().unwrap() {
                if unknown.lock().unwrap().contains(id) {
                    continue;
                }
                let stored = registry.device(&DeviceId::new(&format!("d{id}")).unwrap()).ok();
                prop_assert_eq!(&stored.map(|device| device.etag), etag);
            }
            let mut walked = Statistics::default();
            for device in registry.devices(None, LIST_MAX).unwrap() {
                match device.status {
                    Status::Enabled => walked.enabled += 1,
                    Status::Disabled => walked.disabled += 1,
                }
            }
            prop_assert_eq!(registry.statistics().unwrap(), walked);
        }
    }
}
