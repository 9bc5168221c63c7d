//! Queues over a store that fails, crashes and is opened again; errors with their codes.

use std::sync::Mutex;

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::feedback::Feedbacks;
use crate::hub::identity::{DeviceIdentity, ModuleIdentity};
use crate::hub::outbox::QUEUE_TABLES;
use crate::hub::registry::{IfMatch, Registry};
use crate::model::{ModuleId, SystemKey};
use crate::state::memory::Failure;
use crate::state::{MemoryState, RedbConfig, RedbState};

const NOW: UtcMillis = UtcMillis(1_700_000_000_000);
const PARTITIONS: u16 = 2;

struct Hub {
    state: Arc<MemoryState>,
    registry: Registry,
    outboxes: Outboxes,
}

fn hub() -> Hub {
    let state = MemoryState::new();
    let registry = Registry::open(state.clone(), Arc::new(Counting::default()), PARTITIONS).unwrap();
    let outboxes = Outboxes::new(
        state.clone(),
        Arc::new(Counting::default()),
        QueueSettings::default(),
        PARTITIONS,
    );
    let hub = Hub {
        state,
        registry,
        outboxes,
    };
    hub.create("d");
    hub
}

fn device(id: &str) -> IdentityName {
    IdentityName::device(DeviceId::new(id).unwrap())
}

fn at(seconds: i64) -> UtcMillis {
    UtcMillis(NOW.0 + seconds * 1000)
}

fn command(id: &str) -> Message {
    Message::new(format!("body of {id}"))
        .system(SystemKey::MessageId, id)
        .system(SystemKey::Ack, "full")
}

impl Hub {
    fn create(&self, id: &str) {
        let device = DeviceIdentity::new(DeviceId::new(id).unwrap());
        self.registry.create_device_blocking(device, NOW).unwrap();
    }

    fn enqueue(&self, name: &IdentityName, message: &Message, now: UtcMillis) -> Result<Enqueued, OutboxError> {
        self.outboxes
            .wait(|done| self.outboxes.enqueue(name, message, now, done))
    }

    fn receive(&self, name: &IdentityName, count_max: usize, now: UtcMillis) -> Vec<Delivered> {
        let received = self
            .outboxes
            .wait(|done| self.outboxes.receive(name, count_max, now, done));
        received.unwrap()
    }

    fn settle(
        &self,
        name: &IdentityName,
        token: LockToken,
        how: Settlement,
        now: UtcMillis,
    ) -> Result<(), OutboxError> {
        self.outboxes
            .wait(|done| self.outboxes.settle(name, token, how, now, done))
    }

    fn purge(&self, name: &IdentityName) -> Result<usize, OutboxError> {
        self.outboxes.wait(|done| self.outboxes.purge(name, NOW, done))
    }

    fn rows(&self, table: Table) -> usize {
        let (prefix, after) = (&[][..], None);
        let limit = usize::MAX;
        self.state.scan(table, Scan { prefix, after, limit }).unwrap().len()
    }
}

fn bodies(delivered: &[Delivered]) -> Vec<&str> {
    let bodies = delivered.iter().map(|one| std::str::from_utf8(&one.message.body));
    bodies.map(Result::unwrap).collect()
}

#[test]
fn messages_come_in_order_under_locks_of_their_own() {
    let hub = hub();
    let d = device("d");
    for id in ["1", "2", "3"] {
        hub.enqueue(&d, &command(id), NOW).unwrap();
    }
    let first = hub.receive(&d, 2, NOW);
    assert_eq!(bodies(&first), ["body of 1", "body of 2"]);
    assert_eq!(first[0].message, command("1"));
    assert_eq!((first[0].enqueued, first[0].expires), (NOW, at(3600)));
    assert_ne!(first[0].token, first[1].token);
    let rest = hub.receive(&d, 9, NOW);
    assert_eq!(bodies(&rest), ["body of 3"]);
    assert_eq!(hub.receive(&d, 9, NOW), []);
    assert_eq!(hub.outboxes.depth(&d, NOW).unwrap(), 3);

    hub.settle(&d, first[1].token, Settlement::Complete, NOW).unwrap();
    hub.settle(&d, first[0].token, Settlement::Abandon, NOW).unwrap();
    let again = hub.receive(&d, 9, NOW);
    assert_eq!((again[0].sequence, again[0].delivery_count), (1, 1));
    assert_eq!(again.len(), 1);
    assert_eq!(hub.outboxes.depth(&d, NOW).unwrap(), 2);
    assert_eq!(hub.rows(Table::Outbox), 2, "the bytes of what ended are gone");
    assert_eq!(hub.enqueue(&d, &command("4"), NOW).unwrap().sequence, 4);
}

#[test]
fn the_end_of_the_first_lock_is_known_to_whoever_waits_for_it() {
    let hub = hub();
    let d = device("d");
    let locked_until = || hub.outboxes.locked_until(&d).unwrap();
    assert_eq!(locked_until(), None, "there is no queue");
    for id in ["1", "2", "3"] {
        hub.enqueue(&d, &command(id), NOW).unwrap();
    }
    assert_eq!(locked_until(), None);
    let first = hub.receive(&d, 1, NOW);
    let second = hub.receive(&d, 1, at(20));
    assert_eq!(locked_until(), Some(at(60)));
    hub.settle(&d, first[0].token, Settlement::Abandon, at(30)).unwrap();
    assert_eq!(locked_until(), Some(at(80)), "what waits has no lock");
    hub.settle(&d, second[0].token, Settlement::Complete, at(30)).unwrap();
    assert_eq!(locked_until(), None);
}

#[test]
fn sequence_numbers_are_not_used_again_by_an_empty_queue() {
    let hub = hub();
    let d = device("d");
    for sequence in 1..4 {
        assert_eq!(hub.enqueue(&d, &command("x"), NOW).unwrap().sequence, sequence);
        let token = hub.receive(&d, 1, NOW)[0].token;
        hub.settle(&d, token, Settlement::Complete, NOW).unwrap();
    }
}

#[test]
fn a_late_settlement_is_refused_and_the_message_comes_again() {
    let hub = hub();
    let d = device("d");
    hub.enqueue(&d, &command("1"), NOW).unwrap();
    let token = hub.receive(&d, 1, NOW)[0].token;
    assert_eq!(hub.receive(&d, 1, at(59)), []);
    for how in [
        Settlement::Complete,
        Settlement::Abandon,
        Settlement::Reject,
        Settlement::Release,
    ] {
        let error = hub.settle(&d, token, how, at(60)).unwrap_err();
        assert_eq!(error.code().number, 412_002);
    }
    let again = hub.receive(&d, 1, at(60));
    assert_eq!(again[0].delivery_count, 0, "a lock that ran out consumes no delivery");
    assert_eq!(
        hub.settle(&d, token, Settlement::Complete, at(61))
            .unwrap_err()
            .code()
            .number,
        412_002
    );
    hub.settle(&d, again[0].token, Settlement::Complete, at(61)).unwrap();
}

#[test]
fn locks_survive_a_restart() {
    let hub = hub();
    let d = device("d");
    hub.enqueue(&d, &command("1"), NOW).unwrap();
    let token = hub.receive(&d, 1, NOW)[0].token;
    hub.state.crash();
    let reopened = Hub {
        outboxes: Outboxes::new(
            hub.state.clone(),
            Arc::new(Counting::default()),
            QueueSettings::default(),
            PARTITIONS,
        ),
        ..hub
    };
    assert_eq!(reopened.receive(&d, 1, at(1)), []);
    reopened.settle(&d, token, Settlement::Complete, at(1)).unwrap();
    assert_eq!(reopened.outboxes.depth(&d, at(1)).unwrap(), 0);
}

#[test]
fn what_a_lost_connection_held_is_free_at_once() {
    let hub = hub();
    let d = device("d");
    for id in ["1", "2", "3"] {
        hub.enqueue(&d, &command(id), NOW).unwrap();
    }
    let held = hub.receive(&d, 2, NOW);
    let other = hub.receive(&d, 1, NOW);
    let tokens: Vec<_> = held.iter().map(|one| one.token).collect();
    let released = |tokens: &[LockToken]| {
        let tokens = tokens.to_vec();
        hub.outboxes
            .wait(|done| hub.outboxes.release(&d, tokens, at(1), done))
            .unwrap()
    };
    assert_eq!(released(&tokens), 2);
    assert_eq!(released(&tokens), 0);
    let again = hub.receive(&d, 9, at(1));
    assert_eq!(bodies(&again), ["body of 1", "body of 2"]);
    assert!(again.iter().all(|one| one.delivery_count == 0));
    hub.settle(&d, other[0].token, Settlement::Complete, at(1)).unwrap();
}

#[test]
fn refusals_have_the_codes_of_the_contract() {
    let hub = hub();
    let d = device("d");
    let module = IdentityName::module(d.device.clone(), ModuleId::new("m").unwrap());
    let code = |result: Result<Enqueued, OutboxError>| result.unwrap_err().code().number;
    let enqueue = |message: Message| code(hub.enqueue(&d, &message, NOW));
    assert_eq!(code(hub.enqueue(&device("x"), &command("1"), NOW)), 404_001);
    assert_eq!(code(hub.enqueue(&module, &command("1"), NOW)), 404_010);
    assert_eq!(enqueue(Message::new(vec![0; 64 * 1024 + 1])), 413_001);
    assert_eq!(enqueue(Message::new("").property("", "")), 400_004);
    assert_eq!(enqueue(Message::new("").system(SystemKey::Ack, "some")), 400_004);
    assert_eq!(enqueue(Message::new("").system(SystemKey::MessageId, "ä")), 400_004);
    let expiry = |text| Message::new("").system(SystemKey::AbsoluteExpiryTime, text);
    assert_eq!(enqueue(expiry("2020-01-01T00:00:00Z")), 403_009);
    assert_eq!(enqueue(expiry("2030-01-01T00:00:00Z")), 403_009);
    assert_eq!(enqueue(expiry("tomorrow")), 400_004);
    assert_eq!(hub.purge(&device("x")).unwrap_err().code().number, 404_001);
    let token = LockToken::generate(&Counting::default());
    let settled = hub.settle(&d, token, Settlement::Complete, NOW);
    assert_eq!(settled.unwrap_err().code().number, 412_002);
    hub.state.fail_next(Failure::Lost);
    assert_eq!(enqueue(command("1")), 500_001);
    hub.state.hold(0);
    assert_eq!(enqueue(command("1")), 503_005);
}

#[test]
fn fifty_messages_wait_and_no_more() {
    let hub = hub();
    let d = device("d");
    for id in 0..QUEUE_DEPTH_MAX {
        hub.enqueue(&d, &command(&id.to_string()), NOW).unwrap();
    }
    hub.receive(&d, 5, NOW);
    let full = hub.enqueue(&d, &command("51"), NOW).unwrap_err();
    assert_eq!(full.code().number, 403_004, "locked ones count");
    let token = hub.receive(&d, 1, NOW)[0].token;
    hub.settle(&d, token, Settlement::Reject, NOW).unwrap();
    hub.enqueue(&d, &command("51"), NOW).unwrap();
    hub.enqueue(&d, &command("52"), NOW).unwrap_err();
    hub.enqueue(&d, &command("52"), at(3600))
        .expect("what expired makes room");
    assert_eq!(hub.outboxes.depth(&d, at(3600)).unwrap(), 1);
}

#[test]
fn what_went_through_is_counted_once() {
    let hub = hub();
    let d = device("d");
    let counted = |hub: &Hub| {
        let counts = hub.outboxes.counts();
        let ended: Vec<_> = counts.ended().map(|(_, count)| count).collect();
        (counts.queued(), counts.delivered(), ended)
    };
    for id in ["1", "2", "3", "4"] {
        hub.enqueue(&d, &command(id), NOW).unwrap();
    }
    let nobody = device("nobody");
    assert!(hub.enqueue(&nobody, &command("5"), NOW).is_err());
    let taken = hub.receive(&d, 2, NOW);
    assert_eq!(counted(&hub), (4, 2, vec![0; 5]));
    hub.settle(&d, taken[0].token, Settlement::Complete, NOW).unwrap();
    hub.settle(&d, taken[1].token, Settlement::Reject, NOW).unwrap();
    assert!(hub.settle(&d, taken[1].token, Settlement::Complete, NOW).is_err());
    let taken = hub.receive(&d, 1, NOW);
    hub.settle(&d, taken[0].token, Settlement::Abandon, NOW).unwrap();
    // success, expired, delivery_count_exceeded, rejected, purged
    assert_eq!(counted(&hub), (4, 3, vec![1, 0, 0, 1, 0]));
    hub.purge(&d).unwrap();
    assert_eq!(counted(&hub), (4, 3, vec![1, 0, 0, 1, 2]));
    // Whoever comes first after its time sees the end: here a poll.
    hub.enqueue(&d, &command("6"), NOW).unwrap();
    assert_eq!(hub.receive(&d, 1, at(4000)), []);
    assert_eq!(counted(&hub), (5, 3, vec![1, 1, 0, 1, 2]));
}

#[test]
fn a_purge_takes_locked_messages_too_and_counts_what_was_there() {
    let hub = hub();
    let d = device("d");
    assert_eq!(hub.purge(&d).unwrap(), 0);
    for id in ["1", "2", "3"] {
        hub.enqueue(&d, &command(id), NOW).unwrap();
    }
    let token = hub.receive(&d, 1, NOW)[0].token;
    assert_eq!(hub.purge(&d).unwrap(), 3);
    assert_eq!(hub.purge(&d).unwrap(), 0);
    assert_eq!(hub.rows(Table::Outbox), 0);
    let late = hub.settle(&d, token, Settlement::Complete, NOW).unwrap_err();
    assert_eq!(late.code().number, 412_002);
}

#[test]
fn a_poll_of_an_empty_queue_writes_nothing() {
    let hub = hub();
    hub.state.hold(0);
    assert_eq!(hub.receive(&device("d"), 1, NOW), []);
    hub.state.release_all();
    hub.enqueue(&device("d"), &command("1"), NOW).unwrap();
    hub.receive(&device("d"), 1, NOW);
    hub.state.hold(0);
    assert_eq!(hub.receive(&device("d"), 1, at(1)), []);
}

#[test]
fn modules_have_queues_of_their_own_and_take_them_along() {
    let hub = hub();
    let d = device("d");
    let m = ModuleId::new("m").unwrap();
    let module = IdentityName::module(d.device.clone(), m.clone());
    let identity = ModuleIdentity::new(d.device.clone(), m.clone());
    hub.registry.create_module_blocking(identity, NOW).unwrap();
    hub.enqueue(&module, &command("m"), NOW).unwrap();
    hub.enqueue(&d, &command("d"), NOW).unwrap();
    assert_eq!(bodies(&hub.receive(&d, 9, NOW)), ["body of d"]);
    assert_eq!(bodies(&hub.receive(&module, 9, NOW)), ["body of m"]);
    hub.registry
        .delete_module_blocking(&d.device, &m, IfMatch::Any)
        .unwrap();
    assert_eq!(hub.outboxes.depth(&module, NOW).unwrap(), 0);
    assert_eq!(hub.outboxes.depth(&d, NOW).unwrap(), 1);
    assert_eq!(hub.rows(Table::Outbox), 1);
}

#[test]
fn a_deleted_device_takes_everything_along_and_spares_its_neighbour() {
    let hub = hub();
    let d = device("d");
    hub.create("d1");
    for name in [&d, &device("d1")] {
        for id in ["1", "2"] {
            hub.enqueue(name, &command(id), NOW).unwrap();
        }
        let token = hub.receive(name, 1, NOW)[0].token;
        hub.settle(name, token, Settlement::Complete, NOW).unwrap();
    }
    let tables = [Table::Outbox, Table::OutboxQueues, Table::Feedback];
    assert_eq!(tables.map(|table| hub.rows(table)), [2, 2, 2]);
    hub.registry.delete_device_blocking(&d.device, IfMatch::Any).unwrap();
    assert_eq!(tables.map(|table| hub.rows(table)), [1, 1, 1]);
    hub.create("d");
    assert_eq!(hub.receive(&d, 9, NOW), []);
    assert_eq!(hub.enqueue(&d, &command("1"), NOW).unwrap().sequence, 1);
    assert_eq!(hub.outboxes.depth(&device("d1"), NOW).unwrap(), 1);
}

/// A message decided upon before the device was deleted must not be there for the next device of that name.
#[test]
fn an_enqueue_that_races_a_deletion_leaves_nothing() {
    let hub = hub();
    let d = device("d");
    let answer = Arc::new(Mutex::new(None));
    let told = Arc::clone(&answer);
    hub.state.hold(9);
    hub.registry.delete_device(&d.device, IfMatch::Any, |deleted| {
        deleted.unwrap();
    });
    hub.outboxes.enqueue(&d, &command("1"), NOW, move |result| {
        *told.lock().unwrap() = Some(result.map_err(|error| error.code().number));
    });
    hub.state.release_all();
    assert_eq!(*answer.lock().unwrap(), Some(Err(404_001)));
    assert_eq!((hub.rows(Table::Outbox), hub.rows(Table::OutboxQueues)), (0, 0));
}

#[test]
fn writers_at_the_same_moment_lose_nothing() {
    let hub = hub();
    let d = device("d");
    hub.state.hold(99);
    let sequences = Arc::new(Mutex::new(Vec::new()));
    for id in 0..10 {
        let told = Arc::clone(&sequences);
        let message = command(&id.to_string());
        hub.outboxes.enqueue(&d, &message, NOW, move |result| {
            told.lock().unwrap().push(result.unwrap().sequence);
        });
    }
    assert_eq!(
        *sequences.lock().unwrap(),
        [0; 0],
        "nothing is answered before it is durable"
    );
    hub.state.release_all();
    sequences.lock().unwrap().sort_unstable();
    assert_eq!(*sequences.lock().unwrap(), (1..=10).collect::<Vec<_>>());
    assert_eq!(hub.receive(&d, 99, NOW).len(), 10);
}

/// Each round of commits one writer is first. Without lanes all others try again, and after some rounds give up.
#[test]
fn sixty_four_writers_of_one_queue_are_all_answered_in_their_order() {
    let hub = hub();
    let d = device("d");
    hub.state.hold(99);
    let answers = Arc::new(Mutex::new(Vec::new()));
    for id in 0..44 {
        let told = Arc::clone(&answers);
        let message = command(&id.to_string());
        hub.outboxes.enqueue(&d, &message, NOW, move |result| {
            let sequence = result.map_err(|error| error.code().number);
            told.lock()
                .unwrap()
                .push(("queued", sequence.map(|queued| queued.sequence)));
        });
    }
    for _ in 0..20 {
        let told = Arc::clone(&answers);
        hub.outboxes.receive(&d, 1, NOW, move |result| {
            let sequence = result.map_err(|error| error.code().number);
            told.lock()
                .unwrap()
                .push(("taken", sequence.map(|delivered| delivered[0].sequence)));
        });
    }
    while hub.state.release(1) > 0 {}
    let queued = (1..=44).map(|sequence| ("queued", Ok(sequence)));
    let taken = (1..=20).map(|sequence| ("taken", Ok(sequence)));
    assert!(
        answers.lock().unwrap().iter().copied().eq(queued.chain(taken)),
        "{answers:?}"
    );
    assert!(hub.outboxes.lanes.is_empty(), "a lane does not outlive its writers");
}

#[test]
fn what_waits_for_a_queue_is_bounded() {
    let hub = hub();
    hub.state.hold(99);
    let refused = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..WAITING_PER_QUEUE_MAX + 3 {
        let told = Arc::clone(&refused);
        hub.outboxes.enqueue(&device("d"), &command("m"), NOW, move |result| {
            if let Err(error) = result {
                told.lock().unwrap().push(error.code().number);
            }
        });
    }
    assert_eq!(*refused.lock().unwrap(), [503_005; 2], "one is under way");
    hub.state.release_all();
    assert_eq!(hub.outboxes.depth(&device("d"), NOW).unwrap(), QUEUE_DEPTH_MAX);
    assert!(hub.outboxes.lanes.is_empty(), "there is room again");
}

/// The store in use answers on a thread of its own, where the next request of a lane starts.
#[test]
fn on_the_real_store_threads_that_write_one_queue_are_all_answered() {
    let folder = std::env::temp_dir().join(format!("forebay-lanes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("state.redb");
    {
        let state: Arc<dyn State> = Arc::new(RedbState::open(&file, &RedbConfig::default()).unwrap());
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), PARTITIONS).unwrap();
        let identity = DeviceIdentity::new(DeviceId::new("d").unwrap());
        registry.create_device_blocking(identity, NOW).unwrap();
        let settings = QueueSettings::default();
        let outboxes = Outboxes::new(state, Arc::new(Counting::default()), settings, PARTITIONS);
        std::thread::scope(|scope| {
            for id in 0..48 {
                let outboxes = &outboxes;
                scope.spawn(move || {
                    let message = command(&id.to_string());
                    outboxes
                        .wait(|done| outboxes.enqueue(&device("d"), &message, NOW, done))
                        .unwrap();
                });
            }
            for _ in 0..16 {
                let outboxes = &outboxes;
                scope.spawn(move || {
                    outboxes
                        .wait(|done| outboxes.receive(&device("d"), 1, NOW, done))
                        .unwrap()
                });
            }
        });
        assert_eq!(outboxes.depth(&device("d"), NOW).unwrap(), 48);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_sweep_ends_what_expired_page_by_page() {
    let hub = hub();
    let devices = SWEEP_QUEUES_MAX * 2 + 10;
    for n in 0..devices {
        let id = format!("n{n}");
        hub.create(&id);
        hub.enqueue(&device(&id), &command("1"), NOW).unwrap();
        hub.enqueue(&device(&id), &command("2"), at(1)).unwrap();
    }
    let sweep = |now| {
        let mut expired = 0;
        let mut pages = 0;
        for partition in 0..PARTITIONS {
            let mut after = None;
            loop {
                let start = after.take();
                let swept = hub
                    .outboxes
                    .wait(|done| hub.outboxes.sweep(PartitionId(partition), start, now, done))
                    .unwrap();
                assert!(swept.expired <= SWEEP_QUEUES_MAX);
                expired += swept.expired;
                pages += 1;
                after = swept.next;
                if after.is_none() {
                    break;
                }
            }
        }
        assert!(pages >= 3);
        expired
    };
    assert_eq!(sweep(at(3599)), 0);
    assert_eq!(sweep(at(3600)), devices);
    assert_eq!(hub.rows(Table::Outbox), devices);
    assert_eq!(hub.rows(Table::Feedback), devices);
    assert_eq!(sweep(at(3601)), devices);
    assert_eq!(sweep(at(3602)), 0);
}

#[test]
fn missing_bytes_are_damage_not_an_empty_queue() {
    let hub = hub();
    let d = device("d");
    hub.enqueue(&d, &command("1"), NOW).unwrap();
    let state: &dyn State = &*hub.state;
    state
        .commit_blocking(WriteBatch::new().delete_prefix(Table::Outbox, []))
        .unwrap();
    let received = hub.outboxes.wait(|done| hub.outboxes.receive(&d, 1, NOW, done));
    assert_eq!(received.unwrap_err().code().number, 500_001);
}

/// The same over the store that is a file: what was answered is there after it was closed and opened again.
#[test]
fn a_queue_in_a_file_is_there_again() {
    let path = std::env::temp_dir().join(format!("forebay-outbox-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let open = || -> Arc<dyn State> { Arc::new(RedbState::open(&path, &RedbConfig::default()).unwrap()) };
    // An answer comes a moment before the writer lets go of the store; only the last to let go closes the file.
    let close = |state: Arc<dyn State>| {
        while Arc::strong_count(&state) > 1 {
            std::thread::yield_now();
        }
    };
    // Two openings must not give out the same tokens.
    let entropy = Arc::new(Counting::default());
    let parts = |state: &Arc<dyn State>| {
        let registry = Registry::open(state.clone(), entropy.clone(), PARTITIONS).unwrap();
        let settings = QueueSettings::default();
        (
            registry,
            Outboxes::new(state.clone(), entropy.clone(), settings.clone(), PARTITIONS),
            Feedbacks::new(state.clone(), entropy.clone(), settings),
        )
    };
    let d = device("d");
    let state = open();
    let (registry, outboxes, feedbacks) = parts(&state);
    let identity = DeviceIdentity::new(d.device.clone());
    registry.create_device_blocking(identity, NOW).unwrap();
    for id in ["1", "2"] {
        outboxes
            .wait(|done| outboxes.enqueue(&d, &command(id), NOW, done))
            .unwrap();
    }
    let locked = outboxes.wait(|done| outboxes.receive(&d, 1, NOW, done)).unwrap();
    drop((registry, outboxes, feedbacks));
    close(state);

    let state = open();
    let (registry, outboxes, feedbacks) = parts(&state);
    let (token, complete) = (locked[0].token, Settlement::Complete);
    outboxes
        .wait(|done| outboxes.settle(&d, token, complete, at(1), done))
        .unwrap();
    let rest = outboxes.wait(|done| outboxes.receive(&d, 9, at(1), done)).unwrap();
    assert_eq!(bodies(&rest), ["body of 2"]);
    let batch = feedbacks.wait(|done| feedbacks.receive(at(1), done)).unwrap().unwrap();
    assert_eq!(batch.records[0].original_message_id, "1");
    feedbacks
        .wait(|done| feedbacks.settle(batch.token, complete, at(1), done))
        .unwrap();
    assert_eq!(feedbacks.wait(|done| feedbacks.receive(at(60), done)).unwrap(), None);
    registry.delete_device_blocking(&d.device, IfMatch::Any).unwrap();
    let (prefix, after, limit) = (&[][..], None, 1);
    for table in QUEUE_TABLES {
        assert_eq!(state.scan(table, Scan { prefix, after, limit }).unwrap(), []);
    }
    drop((registry, outboxes, feedbacks));
    close(state);
    std::fs::remove_file(&path).unwrap();
}
