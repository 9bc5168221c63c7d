//! Stored twins with failing, crashing and busy stores.

use std::sync::Mutex;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::identity::{DeviceIdentity, ModuleIdentity};
use crate::model::{DeviceId, ModuleId};
use crate::state::memory::Failure;
use crate::state::{Entry, MemoryState, RedbConfig, RedbState, Scan};

const NOW: UtcMillis = UtcMillis(1_700_000_000_123);

/// A hub of devices `d`, `d1` and a module `m` of `d`.
struct Hub {
    state: Arc<MemoryState>,
    registry: Registry,
    twins: Twins,
    generation: Generation,
    module_generation: Generation,
}

impl Hub {
    fn new() -> Self {
        let state = MemoryState::new();
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
        let create = |id: &str| {
            let wanted = DeviceIdentity::new(DeviceId::new(id).unwrap());
            registry.create_device_blocking(wanted, NOW).unwrap().identity
        };
        let generation = create("d").generation_id;
        create("d1");
        let wanted = ModuleIdentity::new(device().device, ModuleId::new("m").unwrap());
        let module_generation = registry
            .create_module_blocking(wanted, NOW)
            .unwrap()
            .identity
            .generation_id;
        Self {
            twins: Twins::new(state.clone(), registry.clone()),
            state,
            registry,
            generation,
            module_generation,
        }
    }

    fn patch(&self, name: IdentityName, desired: Value) -> Result<TwinChanged, TwinError> {
        self.twins.patch_blocking(name, update(desired), IfMatch::Any, NOW)
    }

    fn report(&self, patch: Value) -> Result<TwinChanged, TwinError> {
        let patch = members(patch);
        self.twins
            .patch_reported_blocking(device(), self.generation, patch, None, NOW)
    }
}

fn device() -> IdentityName {
    IdentityName::device(DeviceId::new("d").unwrap())
}

fn module() -> IdentityName {
    IdentityName::module(DeviceId::new("d").unwrap(), ModuleId::new("m").unwrap())
}

fn other() -> IdentityName {
    IdentityName::device(DeviceId::new("d1").unwrap())
}

fn members(value: Value) -> Members {
    value.as_object().unwrap().clone()
}

fn update(desired: Value) -> TwinUpdate {
    TwinUpdate {
        tags: None,
        desired: Some(members(desired)),
    }
}

type Answers = Arc<Mutex<Vec<Result<u64, u32>>>>;

/// Notes the version of the section that was changed, or the code.
fn note(answers: &Answers) -> impl FnOnce(Result<TwinChanged, TwinError>) + Send + 'static {
    let answers = Arc::clone(answers);
    move |result| {
        let answer = result.map(|changed| match *changed.change {
            TwinChange::Reported(_) => changed.twin.reported.version,
            TwinChange::Patched(_) | TwinChange::Replaced(_) => changed.twin.desired.version,
        });
        answers
            .lock()
            .unwrap()
            .push(answer.map_err(|error| error.code().number));
    }
}

#[test]
fn an_identity_has_the_fresh_twin_until_it_is_written() {
    let hub = Hub::new();
    for name in [device(), module(), other()] {
        assert_eq!(hub.twins.get(&name).unwrap(), Twin::fresh());
    }
    let changed = hub.patch(module(), json!({ "a": 1 })).unwrap();
    assert_eq!(changed.identity, module());
    assert_eq!((changed.generation, changed.at), (hub.module_generation, NOW));
    assert_eq!(hub.twins.get(&module()).unwrap(), *changed.twin);
    assert_eq!(hub.twins.get(&device()).unwrap(), Twin::fresh());

    let reported = hub.report(json!({ "b": 2, "$version": 7 })).unwrap();
    assert_eq!(*reported.change, TwinChange::Reported(members(json!({ "b": 2 }))));
    assert_eq!(hub.twins.get(&device()).unwrap(), *reported.twin);
    assert_eq!(reported.twin.reported.version, 2);
}

#[test]
fn the_device_is_told_the_patch_as_sent_or_the_whole_section() {
    let hub = Hub::new();
    let told = |changed: &TwinChanged| changed.desired_notification().map(Value::from);
    let first = hub.patch(device(), json!({ "a": { "b": 1 }, "c": 2 })).unwrap();
    assert_eq!(told(&first), Some(json!({ "a": { "b": 1 }, "c": 2, "$version": 2 })));
    let second = hub
        .patch(device(), json!({ "c": null, "gone": null, "$version": 1 }))
        .unwrap();
    assert_eq!(told(&second), Some(json!({ "c": null, "gone": null, "$version": 3 })));

    let wanted = update(json!({ "e": 3, "f": null }));
    let replaced = hub.twins.replace_blocking(device(), wanted, IfMatch::Any, NOW).unwrap();
    assert_eq!(told(&replaced), Some(json!({ "e": 3, "$version": 4 })));

    let tags = || TwinUpdate {
        tags: Some(members(json!({ "t": 1 }))),
        desired: None,
    };
    let tagged = hub.twins.patch_blocking(device(), tags(), IfMatch::Any, NOW).unwrap();
    assert_eq!(told(&tagged), None, "tags are invisible to the device");
    let tagged = hub.twins.replace_blocking(device(), tags(), IfMatch::Any, NOW).unwrap();
    assert_eq!(told(&tagged), None);
    assert_eq!(told(&hub.report(json!({ "a": 1 })).unwrap()), None);
}

#[test]
fn each_refusal_has_the_code_of_the_contract_and_changes_nothing() {
    let hub = Hub::new();
    hub.patch(device(), json!({ "a": 1 })).unwrap();
    let before = hub.twins.get(&device()).unwrap();
    let check = |result: Result<TwinChanged, TwinError>, number: u32, name: &str| {
        let code = result.unwrap_err().code();
        assert_eq!((code.number, code.name), (number, name));
        assert_eq!(hub.twins.get(&device()).unwrap(), before);
    };
    let unknown = IdentityName::device(DeviceId::new("x").unwrap());
    let unknown_module = IdentityName::module(DeviceId::new("d").unwrap(), ModuleId::new("x").unwrap());
    let orphan = IdentityName::module(DeviceId::new("x").unwrap(), ModuleId::new("m").unwrap());
    check(hub.patch(unknown.clone(), json!({})), 404_001, "DeviceNotFound");
    check(hub.patch(unknown_module.clone(), json!({})), 404_010, "ModuleNotFound");
    check(hub.patch(orphan, json!({})), 404_010, "ModuleNotFound");
    assert_eq!(hub.twins.get(&unknown).unwrap_err().code().number, 404_001);
    assert_eq!(hub.twins.get(&unknown_module).unwrap_err().code().number, 404_010);

    let stale = || IfMatch::Etag(Twin::fresh().etag());
    let patched = hub.twins.patch_blocking(device(), update(json!({})), stale(), NOW);
    check(patched, 412_001, "PreconditionFailed");
    let replaced = hub.twins.replace_blocking(device(), update(json!({})), stale(), NOW);
    check(replaced, 412_001, "PreconditionFailed");
    let report = |generation: Generation, patch: Value, version: Option<u64>| {
        hub.twins
            .patch_reported_blocking(device(), generation, members(patch), version, NOW)
    };
    check(
        report(hub.generation, json!({}), Some(2)),
        412_001,
        "PreconditionFailed",
    );
    check(report(Generation(1), json!({}), None), 404_001, "DeviceNotFound");
    check(
        report(hub.generation, json!({ "a.b": 1 }), None),
        400_004,
        "ArgumentInvalid",
    );
    // What only shows in the whole section.
    let much: Vec<_> = (0..9).map(|_| "x".repeat(4000)).collect();
    check(
        report(hub.generation, json!({ "a": much }), None),
        400_004,
        "ArgumentInvalid",
    );

    hub.state.hold(0);
    check(hub.patch(device(), json!({})), 503_005, "ServerBusy");
    hub.state.release_all();
    hub.state.fail_next(Failure::Lost);
    check(hub.patch(device(), json!({})), 500_001, "ServerError");

    let etag = IfMatch::Etag(before.etag());
    assert!(hub.twins.patch_blocking(device(), update(json!({})), etag, NOW).is_ok());
    assert!(report(hub.generation, json!({}), Some(1)).is_ok());
}

#[test]
fn a_twin_is_deleted_with_its_identity() {
    let hub = Hub::new();
    let fill = || {
        for name in [device(), module(), other()] {
            hub.patch(name, json!({ "a": 1 })).unwrap();
        }
    };
    let create = |name: &str| {
        let wanted = ModuleIdentity::new(device().device, ModuleId::new(name).unwrap());
        hub.registry.create_module_blocking(wanted, NOW).unwrap()
    };
    fill();
    let id = ModuleId::new("m").unwrap();
    hub.registry
        .delete_module_blocking(&device().device, &id, IfMatch::Any)
        .unwrap();
    assert_eq!(hub.twins.get(&module()).unwrap_err().code().number, 404_010);
    create("m");
    assert_eq!(hub.twins.get(&module()).unwrap(), Twin::fresh());
    assert_eq!(hub.twins.get(&device()).unwrap().version, 3);

    fill();
    hub.registry
        .delete_device_blocking(&device().device, IfMatch::Any)
        .unwrap();
    assert_eq!(hub.twins.get(&device()).unwrap_err().code().number, 404_001);
    let wanted = DeviceIdentity::new(device().device);
    hub.registry.create_device_blocking(wanted, NOW).unwrap();
    create("m");
    assert_eq!(hub.twins.get(&device()).unwrap(), Twin::fresh());
    assert_eq!(hub.twins.get(&module()).unwrap(), Twin::fresh());
    assert_eq!(hub.twins.get(&other()).unwrap().version, 4, "of another device");
}

type Hook = Box<dyn FnOnce() + Send>;

/// Does something else between the next decision and its commit, as another thread may.
struct Between {
    state: Arc<MemoryState>,
    hook: Mutex<Option<Hook>>,
}

impl State for Between {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.state.get(table, key)
    }

    fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StateError> {
        self.state.scan(table, scan)
    }

    fn commit(&self, batch: WriteBatch, done: crate::state::Done) {
        let hook = self.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.state.commit(batch, done);
    }
}

#[test]
fn a_write_decided_before_a_deletion_does_not_reach_the_next_life() {
    let hub = Hub::new();
    let registry = hub.registry.clone();
    let live_again = move || {
        registry.delete_device_blocking(&device().device, IfMatch::Any).unwrap();
        registry
            .create_device_blocking(DeviceIdentity::new(device().device), NOW)
            .unwrap();
    };
    let between = Arc::new(Between {
        state: hub.state.clone(),
        hook: Mutex::new(Some(Box::new(live_again))),
    });
    let twins = Twins::new(between.clone(), hub.registry.clone());
    let patch = members(json!({ "a": 1 }));
    let error = twins
        .patch_reported_blocking(device(), hub.generation, patch, None, NOW)
        .unwrap_err();
    assert!(between.hook.lock().unwrap().is_none(), "it was decided before");
    assert_eq!(error.code().number, 404_001);
    assert_eq!(twins.get(&device()).unwrap(), Twin::fresh());
}

#[test]
fn many_writes_at_once_lose_nothing_and_keep_their_order() {
    let hub = Hub::new();
    let answers = Answers::default();
    hub.state.hold(100);
    for n in 0..60 {
        let patch = members(json!({ format!("k{n}"): n, "last": n }));
        let twins = &hub.twins;
        match n % 2 {
            0 => twins.patch_reported(device(), hub.generation, patch, None, NOW, note(&answers)),
            _ => {
                let update = TwinUpdate {
                    tags: None,
                    desired: Some(patch),
                };
                twins.patch(device(), update, IfMatch::Any, NOW, note(&answers));
            }
        }
    }
    assert!(
        answers.lock().unwrap().is_empty(),
        "nothing is answered before it is durable"
    );
    assert_eq!(hub.twins.get(&device()).unwrap(), Twin::fresh(), "nor seen");
    assert_eq!(hub.state.release(1), 1);
    assert_eq!(answers.lock().unwrap().len(), 1, "the first goes alone");
    assert_eq!(hub.state.release(1), 1);
    assert_eq!(hub.state.release(1), 0, "all others go together");
    hub.state.release_all();
    let expected: Vec<_> = (0..60).map(|n| Ok(n / 2 + 2)).collect();
    assert_eq!(*answers.lock().unwrap(), expected);
    let twin = hub.twins.get(&device()).unwrap();
    assert_eq!(
        (twin.version, twin.desired.version, twin.reported.version),
        (62, 31, 31)
    );
    assert_eq!((twin.desired.members.len(), twin.reported.members.len()), (31, 31));
    assert_eq!(
        (&twin.reported.members["last"], &twin.desired.members["last"]),
        (&json!(58), &json!(59))
    );
    assert!(hub.twins.shared.lanes.is_empty(), "a lane does not outlive its writes");
}

#[test]
fn writers_that_do_not_share_lanes_lose_nothing() {
    let hub = Hub::new();
    let answers = Answers::default();
    hub.state.hold(10);
    for n in 0..3 {
        let twins = Twins::new(hub.state.clone(), hub.registry.clone());
        let patch = update(json!({ format!("k{n}"): n }));
        twins.patch(device(), patch, IfMatch::Any, NOW, note(&answers));
    }
    hub.state.release_all();
    assert_eq!(*answers.lock().unwrap(), [Ok(2), Ok(3), Ok(4)]);
    assert_eq!(hub.twins.get(&device()).unwrap().desired.members.len(), 3);
}

#[test]
fn of_a_group_only_what_is_wrong_is_refused() {
    let hub = Hub::new();
    let answers = Answers::default();
    hub.state.hold(10);
    let report = |version: Option<u64>| {
        let patch = members(json!({ "a": 1 }));
        hub.twins
            .patch_reported(device(), hub.generation, patch, version, NOW, note(&answers));
    };
    for version in [None, Some(2), Some(2), Some(3), None] {
        report(version);
    }
    hub.state.release_all();
    assert_eq!(*answers.lock().unwrap(), [Ok(2), Ok(3), Err(412_001), Ok(4), Ok(5)]);
}

#[test]
fn what_waits_for_a_twin_is_bounded() {
    let hub = Hub::new();
    let answers = Answers::default();
    hub.state.hold(10);
    for _ in 0..WAITING_PER_TWIN_MAX + 3 {
        hub.twins
            .patch(device(), update(json!({})), IfMatch::Any, NOW, note(&answers));
    }
    assert_eq!(*answers.lock().unwrap(), [Err(503_005), Err(503_005)]);
    hub.twins
        .patch(other(), update(json!({})), IfMatch::Any, NOW, note(&answers));
    assert_eq!(answers.lock().unwrap().len(), 2, "the other is not held up");
    hub.state.release_all();
    assert_eq!(answers.lock().unwrap().len(), WAITING_PER_TWIN_MAX + 4);
    assert_eq!(hub.twins.get(&device()).unwrap().desired.version, 66);

    let patch = members(json!({ "a": ["x", "y"] }));
    let bytes = TwinChange::Reported(patch).memory_bytes().unwrap();
    assert_eq!(
        bytes,
        WRITE_BYTES + 3 * VALUE_BYTES + 6,
        "what is counted is what is kept"
    );
}

#[test]
fn a_callback_may_write_the_same_twin_again() {
    let hub = Hub::new();
    let answers = Answers::default();
    fn chain(twins: Twins, generation: Generation, left: u32, answers: Answers) {
        let again = twins.clone();
        // Refused, so that every step is answered at once: a recursion would end the stack.
        twins.patch_reported(device(), generation, Members::new(), Some(0), NOW, move |result| {
            assert!(result.is_err());
            match left {
                0 => note(&answers)(result),
                _ => chain(again, generation, left - 1, answers),
            }
        });
    }
    chain(hub.twins.clone(), hub.generation, 5_000, Arc::clone(&answers));
    assert_eq!(*answers.lock().unwrap(), [Err(412_001)]);
}

#[test]
fn threads_that_write_one_twin_get_dense_versions() {
    let hub = Hub::new();
    let report = |n: u32| hub.report(json!({ format!("t{n}"): n })).unwrap().twin.reported.version;
    let mut versions: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| scope.spawn(move || (0..50).map(|_| report(n)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    versions.sort_unstable();
    assert_eq!(versions, (2..202).collect::<Vec<_>>());
    assert_eq!(hub.twins.get(&device()).unwrap().reported.members.len(), 4);
}

/// The store in use answers on a thread of its own, where the next group of a lane starts.
#[test]
fn on_the_real_store_what_is_sent_without_waiting_is_answered_in_order() {
    let folder = std::env::temp_dir().join(format!("forebay-twins-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // The last answer leaves on the store's own thread, which lets go of the file a moment later.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let open = || -> Arc<dyn State> {
        loop {
            match RedbState::open(&folder.join("state.redb"), &RedbConfig::default()) {
                Ok(state) => return Arc::new(state),
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        }
    };
    let names = ["a", "b", "c", "d"].map(|id| IdentityName::device(DeviceId::new(id).unwrap()));
    {
        let state = open();
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
        let generations = names.clone().map(|name| {
            let wanted = DeviceIdentity::new(name.device);
            registry
                .create_device_blocking(wanted, NOW)
                .unwrap()
                .identity
                .generation_id
        });
        let twins = Twins::new(state, registry);
        let (sender, receiver) = std::sync::mpsc::channel();
        for n in 0..WAITING_PER_TWIN_MAX {
            for (at, name) in names.iter().enumerate() {
                let patch = members(json!({ "last": n, format!("k{}", n % 3): n }));
                let sender = sender.clone();
                twins.patch_reported(name.clone(), generations[at], patch, None, NOW, move |result| {
                    sender.send((at, result.unwrap().twin.reported.version)).unwrap();
                });
            }
        }
        drop(sender);
        // A lane that stops would hold the senders for ever.
        let next = || receiver.recv_timeout(std::time::Duration::from_secs(30)).ok();
        let answers: Vec<_> = std::iter::from_fn(next).collect();
        for at in 0..names.len() {
            let versions = answers.iter().filter(|answer| answer.0 == at).map(|answer| answer.1);
            assert!(versions.eq(2..WAITING_PER_TWIN_MAX as u64 + 2), "{answers:?}");
        }
    }
    let state = open();
    let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
    let twins = Twins::new(state, registry);
    for name in &names {
        let reported = twins.get(name).unwrap().reported;
        assert_eq!(reported.members["last"], json!(WAITING_PER_TWIN_MAX - 1));
        assert_eq!(reported.members.len(), 4);
    }
    drop(twins);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Report(u8),
    Patch(u8),
    Release(usize),
    Fail(bool),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0u8..4).prop_map(Step::Report),
        4 => (0u8..4).prop_map(Step::Patch),
        4 => (1usize..4).prop_map(Step::Release),
        1 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What clients know: the newest twin they were answered.
#[derive(Default)]
struct Known {
    twin: Option<Arc<Twin>>,
    /// Whether what is there was left open by a failure.
    failed: bool,
}

proptest! {
    /// After any mix of failures and crashes the store has what was answered last, or what was under way then; versions
    /// answered follow each other without a gap, and none goes backwards.
    #[test]
    fn nothing_answered_is_lost_and_no_version_goes_backwards(steps in steps()) {
        let mut hub = Hub::new();
        let known: Arc<Mutex<Known>> = Arc::default();
        hub.state.hold(16);
        for step in steps {
            let note = || {
                let known = Arc::clone(&known);
                move |result: Result<TwinChanged, TwinError>| {
                    let mut known = known.lock().unwrap();
                    match result {
                        Ok(changed) => {
                            let version = changed.twin.version;
                            let before = known.twin.as_ref().map_or(2, |twin| twin.version);
                            let gap = version - before;
                            assert!(gap == 1 || (known.failed && gap > 1), "{before} then {version}");
                            known.failed = false;
                            if let Some(before) = &known.twin {
                                assert!(changed.twin.desired.version >= before.desired.version);
                                assert!(changed.twin.reported.version >= before.reported.version);
                            }
                            known.twin = Some(changed.twin);
                        }
                        Err(TwinError::State(StateError::Failed(_))) => known.failed = true,
                        Err(error) => assert_eq!(error.code().number, 503_005),
                    }
                }
            };
            match step {
                Step::Report(n) => {
                    let patch = members(json!({ format!("k{n}"): n }));
                    hub.twins.patch_reported(device(), hub.generation, patch, None, NOW, note());
                }
                Step::Patch(n) => {
                    hub.twins.patch(device(), update(json!({ "k": n })), IfMatch::Any, NOW, note());
                }
                Step::Release(count) => {
                    hub.state.release(count);
                }
                Step::Fail(is_written) => {
                    hub.state.fail_next(if is_written { Failure::Written } else { Failure::Lost });
                }
                Step::Crash => {
                    hub.state.crash();
                    hub.state.hold(16);
                    hub.twins = Twins::new(hub.state.clone(), hub.registry.clone());
                }
            }
            let known = known.lock().unwrap();
            let stored = hub.twins.get(&device()).unwrap();
            match &known.twin {
                Some(twin) if known.failed => prop_assert!(stored.version >= twin.version),
                Some(twin) => prop_assert_eq!(&stored, &**twin),
                None => prop_assert!(known.failed || stored == Twin::fresh()),
            }
            // Every change is one of one section.
            let sections = stored.desired.version + stored.reported.version;
            prop_assert_eq!(stored.version, sections);
        }
    }
}
