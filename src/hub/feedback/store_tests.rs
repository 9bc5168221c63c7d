//! Feedback as outcomes happened, through batches, locks, restarts and the end of devices.

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::identity::{DeviceIdentity, IdentityName};
use crate::hub::outbox::{Delivered, Outboxes};
use crate::hub::registry::{IfMatch, Registry};
use crate::model::{DeviceId, Message, SystemKey};
use crate::state::MemoryState;
use crate::state::memory::Failure;

const NOW: UtcMillis = UtcMillis(1_700_000_000_000);

struct Hub {
    state: Arc<MemoryState>,
    registry: Registry,
    outboxes: Outboxes,
    feedbacks: Feedbacks,
}

fn at(seconds: i64) -> UtcMillis {
    UtcMillis(NOW.0 + seconds * 1000)
}

fn name(id: &str) -> IdentityName {
    IdentityName::device(DeviceId::new(id).unwrap())
}

fn hub() -> Hub {
    let state = MemoryState::new();
    let settings = QueueSettings {
        delivery_count_max: 2,
        feedback_delivery_count_max: 3,
        feedback_ttl: Duration::from_secs(7200),
        ..QueueSettings::default()
    };
    let entropy = || Arc::new(Counting::default());
    let hub = Hub {
        registry: Registry::open(state.clone(), entropy(), 1).unwrap(),
        outboxes: Outboxes::new(state.clone(), entropy(), settings.clone(), 1),
        feedbacks: Feedbacks::new(state.clone(), entropy(), settings),
        state,
    };
    hub.create("d");
    hub
}

impl Hub {
    fn create(&self, id: &str) {
        let device = DeviceIdentity::new(DeviceId::new(id).unwrap());
        self.registry.create_device_blocking(device, NOW).unwrap();
    }

    fn send(&self, device: &str, id: &str, ack: &str) {
        let message = Message::new("x")
            .system(SystemKey::MessageId, id)
            .system(SystemKey::Ack, ack);
        self.enqueue(device, &message);
    }

    fn enqueue(&self, device: &str, message: &Message) {
        self.outboxes
            .wait(|done| self.outboxes.enqueue(&name(device), message, NOW, done))
            .unwrap();
    }

    fn take(&self, device: &str) -> Delivered {
        let taken = self
            .outboxes
            .wait(|done| self.outboxes.receive(&name(device), 1, NOW, done));
        taken.unwrap().remove(0)
    }

    fn settle_next(&self, device: &str, how: Settlement) {
        let token = self.take(device).token;
        self.outboxes
            .wait(|done| self.outboxes.settle(&name(device), token, how, NOW, done))
            .unwrap();
    }

    /// Messages with these ids, completed.
    fn complete(&self, device: &str, ids: std::ops::Range<usize>) {
        for id in ids {
            self.send(device, &id.to_string(), "full");
            self.settle_next(device, Settlement::Complete);
        }
    }

    fn receive(&self, now: UtcMillis) -> Option<FeedbackBatch> {
        self.feedbacks.wait(|done| self.feedbacks.receive(now, done)).unwrap()
    }

    fn settle(&self, batch: &FeedbackBatch, how: Settlement, now: UtcMillis) -> Result<(), FeedbackError> {
        self.feedbacks
            .wait(|done| self.feedbacks.settle(batch.token, how, now, done))
    }

    fn rows(&self) -> [usize; 3] {
        [Table::Feedback, Table::FeedbackReleased, Table::FeedbackBatches].map(|table| {
            let (prefix, after, limit) = (&[][..], None, usize::MAX);
            self.state.scan(table, Scan { prefix, after, limit }).unwrap().len()
        })
    }
}

fn told(batch: &FeedbackBatch) -> Vec<String> {
    let records = batch.records.iter();
    let told = records.map(|one| format!("{}: {}", one.original_message_id, one.status_code.name()));
    told.collect()
}

/// Every outcome with every wish tells what the contract's table says, once.
#[test]
fn feedback_is_what_was_asked_for() {
    let hub = hub();
    for (ack, expected) in [
        ("none", ""),
        ("positive", "Success"),
        ("negative", "DeliveryCountExceeded Rejected Purged Expired"),
        ("FULL", "Success DeliveryCountExceeded Rejected Purged Expired"),
    ] {
        let device = format!("d-{}", ack.to_lowercase());
        hub.create(&device);
        hub.send(&device, "1", ack);
        hub.settle_next(&device, Settlement::Complete);
        hub.send(&device, "2", ack);
        hub.settle_next(&device, Settlement::Abandon);
        hub.settle_next(&device, Settlement::Abandon);
        hub.send(&device, "3", ack);
        hub.settle_next(&device, Settlement::Reject);
        hub.send(&device, "4", ack);
        let name = name(&device);
        hub.outboxes.wait(|done| hub.outboxes.purge(&name, NOW, done)).unwrap();
        hub.send(&device, "5", ack);
        let waits = hub
            .outboxes
            .wait(|done| hub.outboxes.receive(&name, 1, at(3600), done))
            .unwrap();
        assert_eq!(waits, []);
        let records = match hub.receive(at(3600)) {
            Some(batch) => {
                hub.settle(&batch, Settlement::Complete, at(3600)).unwrap();
                batch.records
            }
            None => Vec::new(),
        };
        let names: Vec<_> = records.iter().map(|one| one.status_code.name()).collect();
        assert_eq!(names.join(" "), expected, "{ack}");
        // The next round's batch must be due.
        let state: &dyn State = &*hub.state;
        state
            .commit_blocking(WriteBatch::new().delete(Table::FeedbackBatches, QUEUE_KEY))
            .unwrap();
    }
}

#[test]
fn the_body_is_the_contracts_json() {
    let hub = hub();
    hub.send("d", "m-1", "full");
    hub.settle_next("d", Settlement::Complete);
    let generation = hub.registry.device(&name("d").device).unwrap().generation_id;
    let body = hub.receive(NOW).unwrap().body();
    let told = r#"[{"originalMessageId":"m-1","enqueuedTimeUtc":"2023-11-14T22:13:20.000Z","statusCode":"Success","#;
    let about = format!(r#""description":"Success","deviceId":"d","deviceGenerationId":"{generation}"}}]"#);
    let expected = told.to_owned() + &about;
    assert_eq!(String::from_utf8(body).unwrap(), expected);
}

#[test]
fn a_message_without_id_is_not_reported() {
    let hub = hub();
    hub.enqueue("d", &Message::new("x").system(SystemKey::Ack, "full"));
    hub.settle_next("d", Settlement::Complete);
    assert_eq!(hub.rows(), [0, 0, 0]);
}

#[test]
fn a_batch_is_released_when_full_or_after_fifteen_seconds() {
    let hub = hub();
    hub.complete("d", 0..1);
    let first = hub.receive(NOW).expect("none was released before");
    assert_eq!(first.records.len(), 1);
    hub.complete("d", 1..64);
    assert_eq!(hub.receive(at(14)), None, "63 records, 14 seconds");
    hub.complete("d", 64..66);
    let full = hub.receive(at(14)).expect("64 records");
    assert_eq!(full.records.len(), RECORDS_MAX);
    assert_eq!(told(&full)[0], "1: Success");
    assert_eq!(hub.receive(at(28)), None, "14 seconds after the previous release");
    let rest = hub.receive(at(29)).expect("15 seconds");
    assert_eq!(told(&rest), ["65: Success"]);
    assert_eq!((first.sequence, full.sequence, rest.sequence), (1, 2, 3));
    for batch in [&first, &full, &rest] {
        hub.settle(batch, Settlement::Complete, at(30)).unwrap();
    }
    assert_eq!(hub.rows(), [0, 0, 1], "only the queue's own record is left");
}

#[test]
fn a_batch_comes_again_until_it_is_completed() {
    let hub = hub();
    hub.complete("d", 0..3);
    let first = hub.receive(NOW).unwrap();
    assert_eq!(hub.receive(at(59)), None);
    let late = hub.settle(&first, Settlement::Complete, at(60)).unwrap_err();
    assert_eq!(late.code().number, 412_002);
    hub.state.crash();
    let second = hub.receive(at(60)).unwrap();
    assert_eq!((second.delivery_count, &second.records), (0, &first.records));
    hub.settle(&second, Settlement::Abandon, at(61)).unwrap();
    let third = hub.receive(at(61)).unwrap();
    assert_eq!((third.delivery_count, &third.records), (1, &first.records));
    hub.settle(&third, Settlement::Abandon, at(61)).unwrap();
    let last = hub.receive(at(61)).unwrap();
    hub.settle(&last, Settlement::Abandon, at(61)).unwrap();
    assert_eq!(hub.receive(at(100)), None, "three deliveries are the maximum");
    assert_eq!(hub.rows(), [0, 0, 1]);
}

#[test]
fn feedback_dies_with_its_device_pending_and_released() {
    let hub = hub();
    hub.create("e");
    hub.complete("d", 0..2);
    hub.complete("e", 2..3);
    let both = hub.receive(NOW).unwrap();
    assert_eq!(both.records.len(), 3);
    hub.complete("d", 3..4);
    hub.registry
        .delete_device_blocking(&name("d").device, IfMatch::Any)
        .unwrap();
    assert_eq!(hub.rows(), [0, 1, 2]);
    hub.create("d");
    hub.complete("d", 4..6);
    // The numbers of the new life's messages are those of the earlier one: both are in batches at once.
    let new = hub.receive(at(15)).unwrap();
    assert_eq!(told(&new), ["4: Success", "5: Success"]);
    hub.settle(&both, Settlement::Release, at(15)).unwrap();
    let again = hub.receive(at(15)).unwrap();
    assert_eq!(
        told(&again),
        ["2: Success"],
        "nothing of d's earlier life, nor of its new one"
    );
    hub.settle(&again, Settlement::Complete, at(15)).unwrap();
    assert_eq!(hub.rows(), [0, 2, 2]);
    hub.registry
        .delete_device_blocking(&name("d").device, IfMatch::Any)
        .unwrap();
    hub.settle(&new, Settlement::Release, at(16)).unwrap();
    assert_eq!(hub.receive(at(16)), None);
    assert_eq!(hub.rows(), [0, 0, 1], "a batch of which nothing is left ends");
}

/// A device deleted between the decision to release its record and the commit.
#[test]
fn a_release_that_races_a_deletion_brings_nothing_back() {
    let hub = hub();
    hub.complete("d", 0..2);
    hub.state.hold(9);
    hub.registry.delete_device(&name("d").device, IfMatch::Any, |deleted| {
        deleted.unwrap();
    });
    let answer = Arc::new(std::sync::Mutex::new(None));
    let told = Arc::clone(&answer);
    hub.feedbacks
        .receive(NOW, move |result| *told.lock().unwrap() = Some(result.unwrap()));
    hub.state.release_all();
    assert_eq!(*answer.lock().unwrap(), Some(None));
    assert_eq!(hub.rows(), [0, 0, 0]);
}

#[test]
fn expired_feedback_is_dropped_wherever_it_is() {
    let hub = hub();
    hub.complete("d", 0..2);
    let batch = hub.receive(NOW).unwrap();
    hub.settle(&batch, Settlement::Abandon, NOW).unwrap();
    hub.complete("d", 2..5);
    assert_eq!(hub.rows(), [3, 2, 2]);
    assert_eq!(hub.receive(at(7200)), None);
    assert_eq!(hub.rows(), [0, 0, 1]);

    hub.complete("d", 5..9);
    let sweep = |now| {
        let swept = hub
            .feedbacks
            .wait(|done| hub.feedbacks.sweep(PartitionId(0), None, now, done));
        swept.unwrap()
    };
    let none = Swept { expired: 0, next: None };
    assert_eq!(sweep(at(7199)), none);
    assert_eq!(sweep(at(7200)), Swept { expired: 4, next: None });
    assert_eq!(hub.rows(), [0, 0, 1]);
}

#[test]
fn no_device_starves_another() {
    let hub = hub();
    hub.create("z");
    hub.complete("d", 0..64);
    hub.complete("z", 64..65);
    hub.receive(NOW).unwrap();
    hub.complete("d", 65..165);
    let second = hub.receive(at(1)).unwrap();
    assert!(told(&second).contains(&"64: Success".to_owned()), "{:?}", told(&second));
}

#[test]
fn services_that_settle_nothing_leave_the_rest_pending() {
    let mut hub = hub();
    let settings = QueueSettings {
        feedback_ttl: Duration::from_secs(2 * 24 * 3600),
        feedback_lock: Duration::from_secs(300),
        ..QueueSettings::default()
    };
    hub.outboxes = Outboxes::new(hub.state.clone(), Arc::new(Counting::default()), settings.clone(), 1);
    hub.feedbacks = Feedbacks::new(hub.state.clone(), Arc::new(Counting::default()), settings);
    for batch in 0..BATCHES_MAX {
        hub.complete("d", batch * RECORDS_MAX..(batch + 1) * RECORDS_MAX);
        assert!(hub.receive(NOW).is_some());
    }
    hub.complete("d", 0..RECORDS_MAX);
    assert_eq!(hub.receive(NOW), None);
    assert_eq!(hub.rows(), [RECORDS_MAX, BATCHES_MAX * RECORDS_MAX, BATCHES_MAX + 1]);
}

#[test]
fn an_outcome_that_was_not_written_has_no_feedback() {
    let hub = hub();
    hub.send("d", "1", "full");
    let token = hub.take("d").token;
    hub.state.fail_next(Failure::Lost);
    let complete = || {
        let complete = Settlement::Complete;
        hub.outboxes
            .wait(|done| hub.outboxes.settle(&name("d"), token, complete, NOW, done))
    };
    complete().unwrap_err();
    assert_eq!(hub.rows(), [0, 0, 0]);
    complete().unwrap();
    assert_eq!(complete().unwrap_err().code().number, 412_002);
    assert_eq!(hub.rows(), [1, 0, 0], "once, however often it is said");
}

/// The hub has one feedback queue: each round of commits one of all who settle is first.
#[test]
fn twenty_services_settle_at_the_same_moment() {
    let hub = hub();
    hub.complete("d", 0..20 * RECORDS_MAX);
    let batches: Vec<_> = (0..20).map(|_| hub.receive(NOW).unwrap()).collect();
    hub.state.hold(99);
    let answers = Arc::new(std::sync::Mutex::new(Vec::new()));
    for batch in &batches {
        let told = Arc::clone(&answers);
        hub.feedbacks
            .settle(batch.token, Settlement::Complete, NOW, move |result| {
                told.lock().unwrap().push(result.map_err(|error| error.code().number));
            });
    }
    while hub.state.release(1) > 0 {}
    assert_eq!(*answers.lock().unwrap(), [Ok(()); 20]);
    hub.state.release_all();
    assert!(hub.receive(NOW).is_none());
}
