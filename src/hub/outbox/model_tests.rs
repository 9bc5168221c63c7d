//! Random lives of several devices against a plain model: what is handed out, in which order, and which feedback there
//! is, through restarts, lost writes and the passing of time.

use proptest::prelude::*;

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::feedback::Feedbacks;
use crate::hub::identity::DeviceIdentity;
use crate::hub::outbox::Outcome;
use crate::hub::registry::{IfMatch, Registry, RegistryError};
use crate::model::SystemKey;
use crate::state::MemoryState;
use crate::state::memory::Failure;

const DEVICES: usize = 3;
const PARTITIONS: u16 = 2;
const DELIVERIES_MAX: u8 = 2;
const TTL_SECONDS: i64 = 90;
const ACKS: [&str; 4] = ["none", "positive", "negative", "full"];

#[derive(Clone, Debug)]
enum Step {
    Enqueue {
        device: usize,
        ack: usize,
    },
    Receive {
        device: usize,
        count_max: usize,
    },
    /// By one of the tokens ever given out.
    Settle {
        device: usize,
        token: prop::sample::Index,
        how: Settlement,
    },
    Release {
        device: usize,
    },
    Purge {
        device: usize,
    },
    Create {
        device: usize,
    },
    Delete {
        device: usize,
    },
    Sweep,
    Feedback {
        how: Option<Settlement>,
    },
    Advance {
        seconds: i64,
    },
    LoseNextWrite,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let device = || 0..DEVICES;
    let how = || {
        prop::sample::select(vec![
            Settlement::Complete,
            Settlement::Abandon,
            Settlement::Reject,
            Settlement::Release,
        ])
    };
    prop_oneof![
        8 => (device(), 0..ACKS.len()).prop_map(|(device, ack)| Step::Enqueue { device, ack }),
        6 => (device(), 0usize..4).prop_map(|(device, count_max)| Step::Receive { device, count_max }),
        8 => (device(), any::<prop::sample::Index>(), how())
            .prop_map(|(device, token, how)| Step::Settle { device, token, how }),
        1 => device().prop_map(|device| Step::Release { device }),
        1 => device().prop_map(|device| Step::Purge { device }),
        2 => device().prop_map(|device| Step::Create { device }),
        1 => device().prop_map(|device| Step::Delete { device }),
        1 => Just(Step::Sweep),
        3 => prop::option::of(how()).prop_map(|how| Step::Feedback { how }),
        5 => prop::sample::select(vec![1, 20, 59, 60, 100]).prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::LoseNextWrite),
        1 => Just(Step::Restart),
    ]
}

#[derive(Clone, Debug)]
struct Entry {
    sequence: u64,
    id: String,
    ack: usize,
    expires: i64,
    lock: Option<(LockToken, i64)>,
    abandons: u8,
}

#[derive(Clone, Debug, Default)]
struct Device {
    exists: bool,
    given: u64,
    entries: Vec<Entry>,
    tokens: Vec<LockToken>,
    /// Message id and outcome, not yet taken by a service.
    feedback: Vec<(String, &'static str)>,
}

impl Device {
    fn end(&mut self, at: usize, outcome: &'static str) {
        let entry = self.entries.remove(at);
        let is_told = match ACKS[entry.ack] {
            "none" => false,
            "positive" => outcome == "Success",
            "negative" => outcome != "Success",
            _ => true,
        };
        if is_told {
            self.feedback.push((entry.id, outcome));
        }
    }

    fn pass(&mut self, now: i64) {
        for entry in &mut self.entries {
            entry.lock = entry.lock.filter(|(_, until)| now < *until);
        }
        while let Some(at) = self.entries.iter().position(|e| e.lock.is_none() && now >= e.expires) {
            self.end(at, "Expired");
        }
    }

    fn settle(&mut self, token: LockToken, how: Settlement) -> bool {
        let held = |entry: &Entry| entry.lock.is_some_and(|(held, _)| held == token);
        let Some(at) = self.entries.iter().position(held) else {
            return false;
        };
        match how {
            Settlement::Complete => self.end(at, "Success"),
            Settlement::Reject => self.end(at, "Rejected"),
            Settlement::Release => self.entries[at].lock = None,
            Settlement::Abandon => {
                self.entries[at].lock = None;
                self.entries[at].abandons += 1;
                if self.entries[at].abandons == DELIVERIES_MAX {
                    self.end(at, "DeliveryCountExceeded");
                }
            }
        }
        true
    }
}

struct Run {
    state: Arc<MemoryState>,
    entropy: Arc<Counting>,
    registry: Registry,
    outboxes: Outboxes,
    feedbacks: Feedbacks,
    devices: Vec<Device>,
    now: i64,
    ids: usize,
}

fn name(device: usize) -> IdentityName {
    IdentityName::device(DeviceId::new(&format!("d{device}")).unwrap())
}

fn is_lost(error: &OutboxError) -> bool {
    matches!(error, OutboxError::State(StateError::Failed(_)))
}

impl Run {
    fn new() -> Self {
        let state = MemoryState::new();
        let entropy = Arc::new(Counting::default());
        let (registry, outboxes, feedbacks) = Self::open(&state, &entropy);
        Self {
            state,
            entropy,
            registry,
            outboxes,
            feedbacks,
            devices: vec![Device::default(); DEVICES],
            now: 1_700_000_000,
            ids: 0,
        }
    }

    fn open(state: &Arc<MemoryState>, entropy: &Arc<Counting>) -> (Registry, Outboxes, Feedbacks) {
        let settings = QueueSettings {
            default_ttl: std::time::Duration::from_secs(TTL_SECONDS as u64),
            delivery_count_max: DELIVERIES_MAX,
            feedback_ttl: super::super::settings::TTL_MAX,
            feedback_delivery_count_max: 100,
            ..QueueSettings::default()
        };
        (
            Registry::open(state.clone(), entropy.clone(), PARTITIONS).unwrap(),
            Outboxes::new(state.clone(), entropy.clone(), settings.clone(), PARTITIONS),
            Feedbacks::new(state.clone(), entropy.clone(), settings),
        )
    }

    fn millis(&self) -> UtcMillis {
        UtcMillis(self.now * 1000)
    }

    fn take(&mut self, step: Step) {
        let (now, millis) = (self.now, self.millis());
        let outboxes = self.outboxes.clone();
        match step {
            Step::Enqueue { device, ack } => {
                self.ids += 1;
                let id = format!("m{}", self.ids);
                let message = Message::new(id.clone())
                    .system(SystemKey::MessageId, id.clone())
                    .system(SystemKey::Ack, ACKS[ack]);
                let result = outboxes.wait(|done| outboxes.enqueue(&name(device), &message, millis, done));
                let model = &mut self.devices[device];
                match result {
                    Ok(enqueued) => {
                        assert!(model.exists);
                        model.pass(now);
                        model.given += 1;
                        assert_eq!(enqueued.sequence, model.given);
                        model.entries.push(Entry {
                            sequence: model.given,
                            id,
                            ack,
                            expires: now + TTL_SECONDS,
                            lock: None,
                            abandons: 0,
                        });
                    }
                    Err(OutboxError::DeviceNotFound) => assert!(!model.exists),
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
            }
            Step::Receive { device, count_max } => {
                let result = outboxes.wait(|done| outboxes.receive(&name(device), count_max, millis, done));
                let model = &mut self.devices[device];
                model.pass(now);
                match result {
                    Ok(delivered) => {
                        let waiting = model.entries.iter_mut().filter(|entry| entry.lock.is_none());
                        let expected: Vec<_> = waiting.take(count_max).collect();
                        assert_eq!(delivered.len(), expected.len());
                        for (one, entry) in delivered.iter().zip(expected) {
                            let told = (one.sequence, one.message.body.as_slice(), one.delivery_count);
                            assert_eq!(told, (entry.sequence, entry.id.as_bytes(), entry.abandons));
                            entry.lock = Some((one.token, now + 60));
                            model.tokens.push(one.token);
                        }
                    }
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
            }
            Step::Settle { device, token, how } => {
                let model = &mut self.devices[device];
                if model.tokens.is_empty() {
                    return;
                }
                let token = *token.get(&model.tokens);
                let result = outboxes.wait(|done| outboxes.settle(&name(device), token, how, millis, done));
                model.pass(now);
                match result {
                    Ok(()) => assert!(model.settle(token, how)),
                    Err(OutboxError::LockLost(_)) => {
                        assert!(!model.settle(token, Settlement::Release), "the lock was held");
                    }
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
                model.pass(now);
            }
            Step::Release { device } => {
                let model = &mut self.devices[device];
                let tokens = model.tokens.clone();
                let result = outboxes.wait(|done| outboxes.release(&name(device), tokens, millis, done));
                model.pass(now);
                match result {
                    Ok(released) => {
                        let tokens = std::mem::take(&mut model.tokens);
                        let held = tokens.iter().filter(|token| model.settle(**token, Settlement::Release));
                        assert_eq!(released, held.count());
                    }
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
                model.pass(now);
            }
            Step::Purge { device } => {
                let result = outboxes.wait(|done| outboxes.purge(&name(device), millis, done));
                let model = &mut self.devices[device];
                match result {
                    Ok(purged) => {
                        model.pass(now);
                        assert_eq!(purged, model.entries.len());
                        while !model.entries.is_empty() {
                            model.end(0, "Purged");
                        }
                    }
                    Err(OutboxError::DeviceNotFound) => assert!(!model.exists),
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
            }
            Step::Create { device } => {
                let identity = DeviceIdentity::new(name(device).device);
                let model = &mut self.devices[device];
                match self.registry.create_device_blocking(identity, millis) {
                    Ok(_) => model.exists = true,
                    Err(RegistryError::DeviceExists) => assert!(model.exists),
                    Err(error) => assert_eq!(error.code().number, 500_001),
                }
            }
            Step::Delete { device } => {
                let model = &mut self.devices[device];
                match self.registry.delete_device_blocking(&name(device).device, IfMatch::Any) {
                    Ok(_) => *model = Device::default(),
                    Err(RegistryError::DeviceNotFound) => assert!(!model.exists),
                    Err(error) => assert_eq!(error.code().number, 500_001),
                }
            }
            Step::Sweep => {
                for partition in (0..PARTITIONS).map(PartitionId) {
                    let result = outboxes.wait(|done| outboxes.sweep(partition, None, millis, done));
                    assert!(result.as_ref().map_or_else(is_lost, |swept| swept.next.is_none()));
                }
                self.devices.iter_mut().for_each(|device| device.pass(now));
            }
            Step::Feedback { how } => {
                let feedbacks = self.feedbacks.clone();
                let Ok(Some(batch)) = feedbacks.wait(|done| feedbacks.receive(millis, done)) else {
                    return;
                };
                self.devices.iter_mut().for_each(|device| device.pass(now));
                for record in &batch.records {
                    let told = (record.original_message_id.clone(), record.status_code.name());
                    let index: usize = record.device_id.as_str()[1..].parse().unwrap();
                    assert!(self.devices[index].feedback.contains(&told), "{told:?} never was");
                }
                let Some(how) = how else { return };
                let settled = feedbacks.wait(|done| feedbacks.settle(batch.token, how, millis, done));
                if settled.is_ok() && matches!(how, Settlement::Complete | Settlement::Reject) {
                    // Taken out of the model, so that a second time would be found above.
                    for record in batch.records {
                        let index: usize = record.device_id.as_str()[1..].parse().unwrap();
                        let feedback = &mut self.devices[index].feedback;
                        feedback.retain(|(id, _)| *id != record.original_message_id);
                    }
                }
            }
            Step::Advance { seconds } => self.now += seconds,
            Step::LoseNextWrite => self.state.fail_next(Failure::Lost),
            Step::Restart => {
                self.state.crash();
                (self.registry, self.outboxes, self.feedbacks) = Self::open(&self.state, &self.entropy);
            }
        }
    }

    fn check_depths(&self) {
        for (index, model) in self.devices.iter().enumerate() {
            let mut model = model.clone();
            model.pass(self.now);
            let depth = self.outboxes.depth(&name(index), self.millis()).unwrap();
            assert_eq!(depth, model.entries.len(), "d{index}");
        }
    }

    /// Lets all locks run out and all time pass, then takes all feedback: none is missing, none is told twice.
    fn drain(&mut self) {
        self.take(Step::Restart);
        self.take(Step::Advance { seconds: 1000 });
        self.take(Step::Sweep);
        for _ in 0..self.ids + 1 {
            self.take(Step::Advance { seconds: 60 });
            let how = Some(Settlement::Complete);
            self.take(Step::Feedback { how });
        }
        for device in &self.devices {
            assert!(device.entries.is_empty());
            assert_eq!(device.feedback, [], "feedback that was never told");
        }
        for table in [Table::Outbox, Table::Feedback, Table::FeedbackReleased] {
            let (prefix, after, limit) = (&[][..], None, 1);
            assert_eq!(self.state.scan(table, Scan { prefix, after, limit }).unwrap(), []);
        }
    }
}

proptest! {
    #[test]
    fn queues_and_feedback_are_those_of_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for device in 0..DEVICES {
            run.take(Step::Create { device });
        }
        for step in steps {
            run.take(step);
            run.check_depths();
        }
        run.drain();
    }
}

#[test]
fn the_model_spells_outcomes_as_the_contract_does() {
    let outcomes = [
        Outcome::Success,
        Outcome::Expired,
        Outcome::DeliveryCountExceeded,
        Outcome::Rejected,
        Outcome::Purged,
    ];
    for outcome in outcomes {
        assert_eq!(
            serde_json::to_string(&outcome).unwrap(),
            format!("\"{}\"", outcome.name())
        );
    }
}
