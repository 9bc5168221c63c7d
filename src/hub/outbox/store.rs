//! The queues of all devices and modules, over the store.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use super::delivery::{LockLost, LockToken, Settlement};
use super::message::{self, InvalidMessage};
use super::record::{Stored, Wish};
use super::tally::{Counts, Tally};
use super::{Ended, LOCK, QUEUE_DEPTH_MAX, Queue, QueueSettings, later, queue_key};
use crate::hub::code::ErrorCode;
use crate::hub::decide::{Answer, decide, decode};
use crate::hub::entropy::Entropy;
use crate::hub::feedback::{self, FeedbackRecord};
use crate::hub::identity::{IdentityName, Life};
use crate::hub::lane::DecisionLanes;
use crate::hub::registry::{device_key, module_key};
use crate::model::{DeviceId, Generation, Message, PartitionId, UtcMillis};
use crate::state::{Expected, Scan, State, StateError, Table, WriteBatch, blocking};

/// Queues one sweep looks at: bounds what it reads and what its batch holds.
pub const SWEEP_QUEUES_MAX: usize = 64;

/// Requests that wait for those of the same queue before them.
const WAITING_PER_QUEUE_MAX: usize = 256;
/// Memory of all requests that wait.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a waiting request takes beside its message.
const REQUEST_BYTES: usize = 512;

/// Why an outbox did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("no such device")]
    DeviceNotFound,
    #[error("no such module")]
    ModuleNotFound,
    /// Try again when the device has taken some.
    #[error("{QUEUE_DEPTH_MAX} messages wait for the device")]
    QueueFull,
    #[error(transparent)]
    Invalid(#[from] InvalidMessage),
    /// The message comes again, or has ended.
    #[error(transparent)]
    LockLost(#[from] LockLost),
    /// `Busy` means try again; after `Failed` the outcome is unknown.
    #[error(transparent)]
    State(#[from] StateError),
}

impl OutboxError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DeviceNotFound => ErrorCode::DEVICE_NOT_FOUND,
            Self::ModuleNotFound => ErrorCode::MODULE_NOT_FOUND,
            Self::QueueFull => ErrorCode::DEVICE_QUEUE_DEPTH,
            Self::Invalid(InvalidMessage::TooLarge { .. }) => ErrorCode::MESSAGE_TOO_LARGE,
            Self::Invalid(InvalidMessage::Expiry) => ErrorCode::MESSAGE_EXPIRY,
            Self::Invalid(
                InvalidMessage::ExpiryText
                | InvalidMessage::Ack
                | InvalidMessage::MessageId
                | InvalidMessage::Property { .. },
            ) => ErrorCode::ARGUMENT_INVALID,
            Self::LockLost(LockLost) => ErrorCode::LOCK_LOST,
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// A message that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    pub sequence: u64,
    pub expires: UtcMillis,
}

/// A message handed out under a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub sequence: u64,
    pub token: LockToken,
    pub locked_until: UtcMillis,
    /// Earlier deliveries that ended in an abandon.
    pub delivery_count: u8,
    pub enqueued: UtcMillis,
    pub expires: UtcMillis,
    pub message: Message,
}

/// What one sweep found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Messages whose time was over.
    pub expired: usize,
    /// Where the next sweep goes on; `None` after the last queue.
    pub next: Option<Vec<u8>>,
}

/// Told when a message of an identity became available: queued, abandoned or given back. On the store's writer thread, so
/// it must be short and must not block. Locks that run out and are nobody's any more are not told of.
pub type Observer = Box<dyn Fn(&IdentityName) + Send + Sync>;

/// The outboxes. Cloning shares them. Two that do not share over one store are right as well, but may be `Busy` when both
/// write one queue.
#[derive(Clone)]
pub struct Outboxes {
    observer: Arc<OnceLock<Observer>>,
    counts: Arc<Counts>,
    state: Arc<dyn State>,
    entropy: Arc<dyn Entropy>,
    settings: Arc<ArcSwap<QueueSettings>>,
    partition_count: u16,
    /// Of each queue.
    lanes: Arc<DecisionLanes<IdentityName>>,
}

impl Outboxes {
    /// The settings are checked ones.
    pub fn new(
        state: Arc<dyn State>,
        entropy: Arc<dyn Entropy>,
        settings: QueueSettings,
        partition_count: u16,
    ) -> Self {
        assert_eq!(settings.check(), Ok(()), "settings are checked where they are read");
        Self {
            observer: Arc::default(),
            counts: Arc::default(),
            state,
            entropy,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            partition_count,
            lanes: DecisionLanes::new(WAITING_PER_QUEUE_MAX, WAITING_BYTES_MAX),
        }
    }

    pub fn settings(&self) -> QueueSettings {
        QueueSettings::clone(&self.settings.load())
    }

    /// For messages that come, and for abandons and feedback of those that wait. The settings are checked ones.
    pub fn set_settings(&self, settings: QueueSettings) {
        assert_eq!(settings.check(), Ok(()), "settings are checked where they are read");
        self.settings.store(Arc::new(settings));
    }

    /// Sets who hears of available messages; once, before the first.
    pub fn observe(&self, observer: Observer) {
        assert!(self.observer.set(observer).is_ok(), "there is one observer");
    }

    /// What went through since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// `done`, after what it stored was counted.
    fn counting<T>(
        &self,
        tally: Tally,
        count: impl FnOnce(&Counts, &T) + Send + 'static,
        done: impl FnOnce(Result<T, OutboxError>) + Send + 'static,
    ) -> impl FnOnce(Result<T, OutboxError>) + Send + 'static {
        let counts = self.counts.clone();
        move |result| {
            if let Ok(stored) = &result {
                counts.add(&tally);
                count(&counts, stored);
            }
            done(result);
        }
    }

    /// `done`, after the observer was told.
    fn telling<T>(
        &self,
        name: &IdentityName,
        done: impl FnOnce(Result<T, OutboxError>) + Send + 'static,
    ) -> impl FnOnce(Result<T, OutboxError>) + Send + 'static {
        let (observer, name) = (self.observer.clone(), name.clone());
        move |result| {
            if let (Some(observer), Ok(_)) = (observer.get(), &result) {
                observer(&name);
            }
            done(result);
        }
    }

    /// Queues a message for a device or module. Expiry, feedback wish and message id are the message's own.
    pub fn enqueue(
        &self,
        name: &IdentityName,
        message: &Message,
        now: UtcMillis,
        done: impl FnOnce(Result<Enqueued, OutboxError>) + Send + 'static,
    ) {
        let accepted = match message::check(message, now, later(now, self.settings.load().default_ttl)) {
            Ok(accepted) => accepted,
            Err(error) => return done(Err(error.into())),
        };
        let bytes = message::encode(message, now);
        let cost = REQUEST_BYTES + bytes.len();
        let (outboxes, queue, subject) = (self.clone(), name.clone(), name.clone());
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            // Unchanged until the commit: a message must not be left to a later device of the same name.
            let (generation, unchanged) = outboxes.identity(state, &queue)?;
            let mut open = match outboxes.open(state, &queue)? {
                Some(open) => open,
                None => Open {
                    key: outboxes.key(&queue),
                    raw: None,
                    stored: Stored {
                        device: queue.device.clone(),
                        generation,
                        queue: Queue::default(),
                    },
                    ended: Vec::new(),
                },
            };
            open.handle_timeout(now);
            if open.stored.queue.depth() >= QUEUE_DEPTH_MAX {
                return Err(OutboxError::QueueFull);
            }
            let wish = Wish {
                ack: accepted.ack,
                message_id: accepted.message_id.clone(),
            };
            let sequence = open.stored.queue.push(accepted.expires, wish);
            let key = open.message_key(sequence);
            let batch = open
                .close(&outboxes, unchanged, now, &ends)
                .put(Table::Outbox, key, bytes.clone());
            let expires = accepted.expires;
            Ok((batch, Enqueued { sequence, expires }))
        };
        let done = self.counting(
            tally,
            |counts, _| {
                counts.queued.fetch_add(1, Ordering::Relaxed);
            },
            self.telling(name, done),
        );
        self.lanes
            .decide(&self.state, subject, cost, Box::new(attempt), Box::new(done));
    }

    /// Locks the oldest messages that wait, at most `count_max`. Costs no write when none waits.
    pub fn receive(
        &self,
        name: &IdentityName,
        count_max: usize,
        now: UtcMillis,
        done: impl FnOnce(Result<Vec<Delivered>, OutboxError>) + Send + 'static,
    ) {
        let (outboxes, name, subject) = (self.clone(), name.clone(), name.clone());
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            let Some(mut open) = outboxes.open(state, &name)? else {
                return Ok((WriteBatch::new(), Vec::new()));
            };
            open.handle_timeout(now);
            let locked_until = later(now, LOCK);
            let token = || LockToken::generate(&*outboxes.entropy);
            let mut delivered = Vec::new();
            for locked in open.stored.queue.lock_next(count_max, locked_until, token) {
                let Some(bytes) = state.get(Table::Outbox, &open.message_key(locked.sequence))? else {
                    // Another writer ended it since the queue was read, and the batch will be refused; or it is damage.
                    if state.get(Table::OutboxQueues, &open.key)? == open.raw {
                        return Err(message::damaged().into());
                    }
                    continue;
                };
                let (message, enqueued) = message::decode(&bytes)?;
                delivered.push(Delivered {
                    sequence: locked.sequence,
                    token: locked.token,
                    locked_until,
                    delivery_count: locked.delivery_count,
                    enqueued,
                    expires: locked.expires,
                    message,
                });
            }
            Ok((open.close(&outboxes, WriteBatch::new(), now, &ends), delivered))
        };
        let count = |counts: &Counts, delivered: &Vec<Delivered>| {
            counts.delivered.fetch_add(delivered.len() as u64, Ordering::Relaxed);
        };
        let done = self.counting(tally, count, done);
        self.lanes
            .decide(&self.state, subject, REQUEST_BYTES, Box::new(attempt), Box::new(done));
    }

    /// When the first of a queue's locks ends, whoever holds it; `None` while nothing is locked. Nobody is told of locks
    /// that run out: a session that has room for more looks again then.
    pub fn locked_until(&self, name: &IdentityName) -> Result<Option<UtcMillis>, OutboxError> {
        let open = self.open(&*self.state, name)?;
        Ok(open.and_then(|open| open.stored.queue.locked_until()))
    }

    /// Ends a lock in the way its holder says.
    pub fn settle(
        &self,
        name: &IdentityName,
        token: LockToken,
        settlement: Settlement,
        now: UtcMillis,
        done: impl FnOnce(Result<(), OutboxError>) + Send + 'static,
    ) {
        let (outboxes, queue, subject) = (self.clone(), name.clone(), name.clone());
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            let mut open = outboxes.open(state, &queue)?.ok_or(LockLost)?;
            let delivery_count_max = outboxes.settings.load().delivery_count_max;
            open.stored.queue.settle(token, settlement, now, delivery_count_max)?;
            open.handle_timeout(now);
            Ok((open.close(&outboxes, WriteBatch::new(), now, &ends), ()))
        };
        let done = self.counting(tally, |_, ()| (), done);
        let done: Answer<(), OutboxError> = match settlement {
            Settlement::Complete | Settlement::Reject => Box::new(done),
            Settlement::Abandon | Settlement::Release => Box::new(self.telling(name, done)),
        };
        self.lanes
            .decide(&self.state, subject, REQUEST_BYTES, Box::new(attempt), done);
    }

    /// A connection was lost: gives back what it held, so that the next one need not wait for the locks to run out.
    /// Tokens that hold nothing any more are passed over. Tells how many did.
    pub fn release(
        &self,
        name: &IdentityName,
        tokens: Vec<LockToken>,
        now: UtcMillis,
        done: impl FnOnce(Result<usize, OutboxError>) + Send + 'static,
    ) {
        let held_bytes = tokens.len() * size_of::<LockToken>();
        let (outboxes, queue, subject) = (self.clone(), name.clone(), name.clone());
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            let Some(mut open) = outboxes.open(state, &queue)? else {
                return Ok((WriteBatch::new(), 0));
            };
            let mut released = 0;
            for token in &tokens {
                // A release ends no delivery, so the maximum says nothing here.
                let settled = open.stored.queue.settle(*token, Settlement::Release, now, u8::MAX);
                released += usize::from(settled.is_ok());
            }
            open.handle_timeout(now);
            Ok((open.close(&outboxes, WriteBatch::new(), now, &ends), released))
        };
        let done = self.counting(tally, |_, _| (), self.telling(name, done));
        self.lanes.decide(
            &self.state,
            subject,
            REQUEST_BYTES + held_bytes,
            Box::new(attempt),
            Box::new(done),
        );
    }

    /// Removes all messages of a queue, locked ones too; how many there were.
    pub fn purge(
        &self,
        name: &IdentityName,
        now: UtcMillis,
        done: impl FnOnce(Result<usize, OutboxError>) + Send + 'static,
    ) {
        let (outboxes, name, subject) = (self.clone(), name.clone(), name.clone());
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            outboxes.identity(state, &name)?;
            let Some(mut open) = outboxes.open(state, &name)? else {
                return Ok((WriteBatch::new(), 0));
            };
            open.handle_timeout(now);
            let purged = open.stored.queue.purge();
            Ok((open.close(&outboxes, WriteBatch::new(), now, &ends), purged))
        };
        let done = self.counting(tally, |_, _| (), done);
        self.lanes
            .decide(&self.state, subject, REQUEST_BYTES, Box::new(attempt), Box::new(done));
    }

    /// Messages that wait or are locked (`cloudToDeviceMessageCount`). An unknown identity has none.
    ///
    /// # Errors
    /// The store's.
    pub fn depth(&self, name: &IdentityName, now: UtcMillis) -> Result<usize, OutboxError> {
        let Some(mut open) = self.open(&*self.state, name)? else {
            return Ok(0);
        };
        open.handle_timeout(now);
        Ok(open.stored.queue.depth())
    }

    /// Ends what has expired in the next queues of a partition: an offline device's messages get their feedback too. Go
    /// on with `next` until it is `None`.
    pub fn sweep(
        &self,
        partition: PartitionId,
        after: Option<Vec<u8>>,
        now: UtcMillis,
        done: impl FnOnce(Result<Swept, OutboxError>) + Send + 'static,
    ) {
        let outboxes = self.clone();
        let tally = Tally::default();
        let ends = tally.clone();
        let attempt = move |state: &dyn State| {
            ends.restart();
            let scan = Scan {
                prefix: &partition.0.to_be_bytes(),
                after: after.as_deref(),
                limit: SWEEP_QUEUES_MAX,
            };
            let page = state.scan(Table::OutboxQueues, scan)?;
            let is_last = page.len() < SWEEP_QUEUES_MAX;
            let next = page.last().filter(|_| !is_last).map(|(key, _)| key.clone());
            let mut batch = WriteBatch::new();
            let mut expired = 0;
            for (key, raw) in page {
                let mut open = Open::read(key, raw)?;
                open.handle_timeout(now);
                // A lock that ran out is seen as such by whoever looks: only an end has to be written.
                if !open.ended.is_empty() {
                    expired += open.ended.len();
                    batch = open.close(&outboxes, batch, now, &ends);
                }
            }
            Ok((batch, Swept { expired, next }))
        };
        let done = self.counting(tally, |_, _| (), done);
        // Goes through many queues; whoever wrote one of them meanwhile makes it look again.
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Waits for the answer of one of the calls above. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn wait<R: Send + 'static>(&self, start: impl FnOnce(Answer<R, OutboxError>)) -> Result<R, OutboxError> {
        blocking(start).unwrap_or(Err(OutboxError::State(StateError::Closed)))
    }

    fn partition(&self, device: &DeviceId) -> PartitionId {
        PartitionId::of_hash(device.hash64(), self.partition_count)
    }

    fn key(&self, name: &IdentityName) -> Vec<u8> {
        queue_key(self.partition(&name.device), name)
    }

    /// The device's generation, and the preconditions that device and module are as they are.
    fn identity(&self, state: &dyn State, name: &IdentityName) -> Result<(Generation, WriteBatch), OutboxError> {
        let partition = self.partition(&name.device);
        let key = device_key(partition, &name.device);
        let raw = state.get(Table::Devices, &key)?.ok_or(OutboxError::DeviceNotFound)?;
        let device: Life = decode(&raw)?;
        let mut unchanged = WriteBatch::new().expect(Table::Devices, key, Expected::Value(raw));
        if let Some(module) = &name.module {
            let key = module_key(partition, &name.device, module);
            let raw = state.get(Table::Modules, &key)?.ok_or(OutboxError::ModuleNotFound)?;
            unchanged = unchanged.expect(Table::Modules, key, Expected::Value(raw));
        }
        Ok((device.generation_id, unchanged))
    }

    fn open(&self, state: &dyn State, name: &IdentityName) -> Result<Option<Open>, StateError> {
        let key = self.key(name);
        let raw = state.get(Table::OutboxQueues, &key)?;
        raw.map(|raw| Open::read(key, raw)).transpose()
    }
}

/// A queue being changed.
struct Open {
    key: Vec<u8>,
    /// As it was read; `None` if there was none.
    raw: Option<Vec<u8>>,
    stored: Stored,
    ended: Vec<Ended<Wish>>,
}

impl Open {
    fn read(key: Vec<u8>, raw: Vec<u8>) -> Result<Self, StateError> {
        let stored = Stored::decode(&raw)?;
        Ok(Self {
            key,
            raw: Some(raw),
            stored,
            ended: Vec::new(),
        })
    }

    fn handle_timeout(&mut self, now: UtcMillis) {
        self.stored.queue.handle_timeout(now);
        self.ended.extend(self.stored.queue.take_ended());
    }

    fn message_key(&self, sequence: u64) -> Vec<u8> {
        [&self.key[..], &sequence.to_be_bytes()].concat()
    }

    /// Adds to the batch what became of the queue; nothing if nothing did.
    fn close(mut self, outboxes: &Outboxes, mut batch: WriteBatch, now: UtcMillis, tally: &Tally) -> WriteBatch {
        self.ended.extend(self.stored.queue.take_ended());
        let changed = self.stored.encode();
        if self.raw.as_ref() == Some(&changed) {
            return batch;
        }
        for ended in &self.ended {
            tally.ended(ended.outcome);
            batch = batch.delete(Table::Outbox, self.message_key(ended.sequence));
            // IoT Hub, C2D: feedback names the message by its id; one without is not reported.
            let Some(message_id) = ended
                .about
                .message_id
                .as_ref()
                .filter(|_| ended.about.ack.wants(ended.outcome))
            else {
                continue;
            };
            let record = FeedbackRecord::new(
                message_id.clone(),
                now,
                ended.outcome,
                self.stored.device.clone(),
                self.stored.generation,
            );
            let expires = later(now, outboxes.settings.load().feedback_ttl);
            batch = feedback::put(batch, &self.key, ended.sequence, record, expires);
        }
        batch
            .expect(
                Table::OutboxQueues,
                self.key.clone(),
                Expected::unchanged(self.raw.as_deref()),
            )
            .put(Table::OutboxQueues, self.key, changed)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
