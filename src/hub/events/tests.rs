//! Events beside the changes they tell of, with stores that fail; and the messages they make, against golden files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::identity::{DeviceIdentity, ModuleIdentity};
use crate::hub::presence::Presence;
use crate::hub::registry::{IfMatch, Registry};
use crate::hub::twin::{TwinUpdate, Twins, parse_members};
use crate::model::time::Clock;
use crate::model::{DeviceId, ModuleId};
use crate::state::MemoryState;
use crate::state::memory::Failure;

const NOW: UtcMillis = UtcMillis(1_767_312_000_250);
const CREATED: UtcMillis = UtcMillis(1_767_225_600_000);
const PARTITION: PartitionId = PartitionId(0);

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UtcMillis {
        NOW
    }
}

struct Hub {
    state: Arc<MemoryState>,
    registry: Registry,
    twins: Twins,
    events: Events,
}

impl Hub {
    fn recording(kinds: &[EventKind], settings: EventSettings) -> Self {
        let state = MemoryState::new();
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 1)
            .unwrap()
            .recording(Recorder::new(kinds, Arc::new(Fixed)));
        Self {
            twins: Twins::new(state.clone(), registry.clone()),
            events: Events::new(state.clone(), settings, 1, "hub.example.net", CREATED),
            state,
            registry,
        }
    }

    fn new() -> Self {
        Self::recording(&EventKind::ALL, FOR_EVER)
    }

    fn all(&self) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event.sequence);
            let page = self.events.read(PARTITION, after, 7).unwrap();
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }

    fn operations(&self) -> Vec<Operation> {
        self.all().iter().map(|event| event.operation).collect()
    }
}

const FOR_EVER: EventSettings = EventSettings {
    retention: Duration::from_secs(1 << 40),
    records_max: u64::MAX,
};

fn device(id: &str) -> DeviceIdentity {
    DeviceIdentity::new(DeviceId::new(id).unwrap())
}

fn name(id: &str) -> IdentityName {
    IdentityName::device(DeviceId::new(id).unwrap())
}

fn update(document: Value) -> TwinUpdate {
    TwinUpdate::from_json(document.to_string().as_bytes()).unwrap()
}

#[test]
fn a_life_of_a_device_as_messages() {
    let hub = Hub::new();
    let made = hub
        .registry
        .create_device_blocking(device("pump-1"), NOW)
        .unwrap()
        .identity;
    let module = ModuleIdentity::new(made.device_id.clone(), ModuleId::new("m").unwrap());
    hub.registry.create_module_blocking(module, NOW).unwrap();
    let presence = Presence::open(hub.state.clone(), hub.registry.clone(), 1, Duration::ZERO, NOW).unwrap();
    presence.opened(PARTITION, &name("pump-1"), made.generation_id, NOW);
    presence.flush(PARTITION, NOW, false, |stored| assert_eq!(stored.unwrap(), 1));
    let changed =
        update(json!({ "tags": { "site": "north" }, "properties": { "desired": { "level": 3, "old": null } } }));
    hub.twins
        .patch_blocking(name("pump-1"), changed.clone(), IfMatch::Any, NOW)
        .unwrap();
    let patch = parse_members(br#"{"battery":54}"#).unwrap();
    hub.twins
        .patch_reported_blocking(name("pump-1"), made.generation_id, patch, None, NOW)
        .unwrap();
    hub.twins
        .replace_blocking(name("pump-1"), changed, IfMatch::Any, NOW)
        .unwrap();
    // While it is connected.
    hub.registry
        .delete_device_blocking(&made.device_id, IfMatch::Any)
        .unwrap();
    let files = [
        "create.json",
        "create-module.json",
        "connected.json",
        "update-twin.json",
        "update-reported.json",
        "replace-twin.json",
        "disconnected.json",
        "delete.json",
    ];
    let events = hub.all();
    assert_eq!(events.len(), files.len(), "{:?}", hub.operations());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events");
    for (event, file) in events.iter().zip(files) {
        let found = event.to_json();
        let golden = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let expected: Value = serde_json::from_str(&golden).unwrap_or_default();
        assert!(found == expected, "{file}: expected other than\n{found:#}");
    }
    assert_eq!(hub.registry.recorder().recorded(), [2, 3, 3]);
    assert_eq!(hub.events.last(PARTITION).unwrap(), 8);
    assert!(matches!(
        hub.events.read(PartitionId(1), 0, 1),
        Err(EventError::NoPartition(1))
    ));
}

#[test]
fn only_wanted_kinds_are_recorded() {
    for kind in EventKind::ALL {
        let hub = Hub::recording(&[kind], FOR_EVER);
        let made = hub.registry.create_device_blocking(device("d"), NOW).unwrap().identity;
        let presence = Presence::open(hub.state.clone(), hub.registry.clone(), 1, Duration::ZERO, NOW).unwrap();
        presence.opened(PARTITION, &name("d"), made.generation_id, NOW);
        presence.flush(PARTITION, NOW, false, |stored| assert_eq!(stored.unwrap(), 1));
        let tags = update(json!({ "tags": { "a": 1 } }));
        hub.twins.patch_blocking(name("d"), tags, IfMatch::Any, NOW).unwrap();
        hub.registry
            .delete_device_blocking(&made.device_id, IfMatch::Any)
            .unwrap();
        let expected: &[Operation] = match kind {
            EventKind::Connection => &[Operation::Connect, Operation::Disconnect],
            EventKind::LifeCycle => &[Operation::Create, Operation::Delete],
            EventKind::Twin => &[Operation::UpdateTwin],
        };
        assert_eq!(hub.operations(), expected);
    }
}

#[test]
fn a_deletion_tells_the_twin_as_it_was_at_that_moment() {
    let hub = Hub::new();
    hub.registry.create_device_blocking(device("d"), NOW).unwrap();
    // The deletion is decided on what is durable, before the patch that is ahead of it in the queue.
    hub.state.hold(8);
    let tags = update(json!({ "tags": { "a": 1 } }));
    hub.twins
        .patch(name("d"), tags, IfMatch::Any, NOW, |changed| drop(changed.unwrap()));
    hub.registry
        .delete_device(&name("d").device, IfMatch::Any, |deleted| drop(deleted.unwrap()));
    hub.state.release_all();
    let events = hub.all();
    assert_eq!(
        hub.operations(),
        [Operation::Create, Operation::UpdateTwin, Operation::Delete]
    );
    assert!(events[2].body.contains(r#""tags":{"a":1}"#), "{}", events[2].body);
}

#[test]
fn old_records_and_too_many_are_dropped_and_numbers_go_on() {
    let settings = EventSettings {
        retention: Duration::from_millis(1000),
        records_max: 150,
    };
    let hub = Hub::recording(&EventKind::ALL, settings);
    let sweep = |now: i64| {
        let dropped = Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
        let mut total = 0;
        loop {
            let count = dropped.clone();
            hub.events.sweep(PARTITION, UtcMillis(now), move |swept| {
                count.store(swept.unwrap(), std::sync::atomic::Ordering::Relaxed);
            });
            match dropped.load(std::sync::atomic::Ordering::Relaxed) {
                0 => return total,
                count => total += count,
            }
        }
    };
    for n in 1..=300 {
        hub.registry
            .create_device_blocking(device(&format!("d{n}")), UtcMillis(n))
            .unwrap();
    }
    assert_eq!(sweep(300), 150);
    assert_eq!(
        hub.all().iter().map(|event| event.sequence).collect::<Vec<_>>(),
        (151..=300).collect::<Vec<_>>()
    );
    assert_eq!(sweep(300), 0);
    assert_eq!(sweep(1200), 49, "those of before 200");
    assert_eq!(hub.all()[0].sequence, 200);
    assert_eq!(sweep(5000), 101);
    assert_eq!((hub.all().len(), hub.events.last(PARTITION).unwrap()), (0, 300));
    assert_eq!(hub.events.dropped(), 300);
    hub.registry
        .create_device_blocking(device("d"), UtcMillis(5000))
        .unwrap();
    assert_eq!(hub.all()[0].sequence, 301);
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Delete(usize),
    Patch(usize),
    Replace(usize),
    Fail(bool),
}

proptest! {
    #[test]
    fn what_took_effect_is_told_once_and_nothing_else(steps in prop::collection::vec(prop_oneof![
        3 => (0..2usize).prop_map(Step::Create),
        2 => (0..2usize).prop_map(Step::Delete),
        4 => (0..2usize).prop_map(Step::Patch),
        1 => (0..2usize).prop_map(Step::Replace),
        2 => any::<bool>().prop_map(Step::Fail),
    ], 1..60)) {
        let hub = Hub::new();
        let ids = ["a", "b"];
        let mut expected: Vec<(Operation, IdentityName)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            // The twin's version, or nothing: what a change leaves behind even if nobody was told.
            let look = |id: usize| hub.twins.get(&name(ids[id])).ok().map(|twin| twin.version);
            let change = update(json!({ "tags": { "n": number } }));
            let (id, operation, before) = match step {
                Step::Create(id) => {
                    let before = look(id);
                    let _ = hub.registry.create_device_blocking(device(ids[id]), NOW);
                    (id, Operation::Create, before)
                }
                Step::Delete(id) => {
                    let before = look(id);
                    let _ = hub.registry.delete_device_blocking(&name(ids[id]).device, IfMatch::Any);
                    (id, Operation::Delete, before)
                }
                Step::Patch(id) => {
                    let before = look(id);
                    let _ = hub.twins.patch_blocking(name(ids[id]), change, IfMatch::Any, NOW);
                    (id, Operation::UpdateTwin, before)
                }
                Step::Replace(id) => {
                    let before = look(id);
                    let _ = hub.twins.replace_blocking(name(ids[id]), change, IfMatch::Any, NOW);
                    (id, Operation::ReplaceTwin, before)
                }
                Step::Fail(is_written) => {
                    hub.state.fail_next(if is_written { Failure::Written } else { Failure::Lost });
                    continue;
                }
            };
            if look(id) != before {
                expected.push((operation, name(ids[id])));
            }
            let told: Vec<_> = hub.all().into_iter().map(|event| (event.operation, event.identity)).collect();
            prop_assert_eq!(&told, &expected);
        }
        let numbers: Vec<u64> = hub.all().iter().map(|event| event.sequence).collect();
        prop_assert_eq!(numbers, (1..=expected.len() as u64).collect::<Vec<_>>());
    }
}
