//! The feedback queue of the hub, over the store.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use arc_swap::ArcSwap;

use super::{FeedbackRecord, StoredRecord};
use crate::hub::code::ErrorCode;
use crate::hub::decide::{Answer, decide, decode, encode};
use crate::hub::entropy::Entropy;
use crate::hub::lane::DecisionLanes;
use crate::hub::outbox::delivery::LockLost;
use crate::hub::outbox::{LockToken, Queue, QueueSettings, Settlement, later, millis};
use crate::model::{PartitionId, UtcMillis};
use crate::state::{Entry, Expected, Scan, State, StateError, Table, WriteBatch, blocking};

/// IoT Hub, feedback: records of one batch.
pub const RECORDS_MAX: usize = 64;
/// IoT Hub, feedback: a batch that is not full is released this long after the one before.
const RELEASE_INTERVAL: Duration = Duration::from_secs(15);
/// Batches that wait or are locked. Beyond that records stay pending, so that services that settle nothing cost no more.
const BATCHES_MAX: usize = 64;
/// Records one sweep looks at.
const SWEEP_RECORDS_MAX: usize = 256;
/// Requests that wait for those before them: the hub has one queue.
const WAITING_MAX: usize = 1024;
const QUEUE_KEY: &[u8] = b"queue";

/// Why the feedback queue did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FeedbackError {
    /// The batch comes again, or has ended.
    #[error(transparent)]
    LockLost(#[from] LockLost),
    /// `Busy` means try again; after `Failed` the outcome is unknown.
    #[error(transparent)]
    State(#[from] StateError),
}

impl FeedbackError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::LockLost(LockLost) => ErrorCode::LOCK_LOST,
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// Records handed out together under a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedbackBatch {
    pub sequence: u64,
    pub token: LockToken,
    pub locked_until: UtcMillis,
    /// Earlier deliveries that ended in an abandon.
    pub delivery_count: u8,
    /// When the batch was released.
    pub enqueued: UtcMillis,
    /// At least one.
    pub records: Vec<FeedbackRecord>,
}

impl FeedbackBatch {
    /// The JSON array that is the body of the feedback message.
    pub fn body(&self) -> Vec<u8> {
        encode(&self.records)
    }
}

/// What one sweep found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Records whose time was over.
    pub expired: usize,
    /// Where the next sweep goes on; `None` after the last record.
    pub next: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    queue: Queue<()>,
    /// When the last batch was.
    #[serde(with = "millis")]
    released: UtcMillis,
    /// The next batch begins with pending records behind this key, so that no device starves another.
    cursor: Vec<u8>,
}

/// A batch: the keys of its records.
#[derive(Serialize, Deserialize)]
struct StoredBatch {
    #[serde(with = "millis")]
    enqueued: UtcMillis,
    records: Vec<Vec<u8>>,
}

/// The feedback queue. Cloning shares it.
#[derive(Clone)]
pub struct Feedbacks {
    state: Arc<dyn State>,
    entropy: Arc<dyn Entropy>,
    settings: Arc<ArcSwap<QueueSettings>>,
    lanes: Arc<DecisionLanes<()>>,
}

impl Feedbacks {
    /// The settings are checked ones.
    pub fn new(state: Arc<dyn State>, entropy: Arc<dyn Entropy>, settings: QueueSettings) -> Self {
        assert_eq!(settings.check(), Ok(()), "settings are checked where they are read");
        Self {
            state,
            entropy,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            lanes: DecisionLanes::new(WAITING_MAX, usize::MAX),
        }
    }

    pub fn settings(&self) -> QueueSettings {
        QueueSettings::clone(&self.settings.load())
    }

    /// For batches that are handed out from now on, and for abandons. The settings are checked ones.
    pub fn set_settings(&self, settings: QueueSettings) {
        assert_eq!(settings.check(), Ok(()), "settings are checked where they are read");
        self.settings.store(Arc::new(settings));
    }

    /// Locks the oldest batch that waits, or releases a new one if it is full or its time has come. Costs no write when
    /// there is neither.
    pub fn receive(
        &self,
        now: UtcMillis,
        done: impl FnOnce(Result<Option<FeedbackBatch>, FeedbackError>) + Send + 'static,
    ) {
        let feedbacks = self.clone();
        let attempt = move |state: &dyn State| {
            let mut open = Open::read(state)?;
            let mut batch = open.handle_timeout(state, WriteBatch::new(), now)?;
            let locked_until = later(now, feedbacks.settings.load().feedback_lock);
            let token = || LockToken::generate(&*feedbacks.entropy);
            let delivered = loop {
                let Some(locked) = open.stored.queue.lock_next(1, locked_until, token).pop() else {
                    let pending;
                    (batch, pending) = open.take_pending(state, batch, now)?;
                    let Some((stored, records)) = pending else { break None };
                    // What was just released is handed out, never left waiting: the order of locks is the order of batches.
                    let sequence = open.stored.queue.push(records.expires, ());
                    batch = batch.put(Table::FeedbackBatches, sequence.to_be_bytes(), encode(&stored));
                    let locked = open.stored.queue.lock_next(1, locked_until, token).pop();
                    break locked.map(|locked| (locked, stored.enqueued, records.records));
                };
                let stored = batch_row(state, locked.sequence)?;
                let records = records(state, &stored, now)?;
                if !records.is_empty() {
                    break Some((locked, stored.enqueued, records));
                }
                // Its devices are gone, or its records' time is over.
                let complete = Settlement::Complete;
                open.stored.queue.settle(locked.token, complete, now, u8::MAX)?;
                batch = open.end(state, batch)?;
            };
            let delivered = delivered.map(|(locked, enqueued, records)| FeedbackBatch {
                sequence: locked.sequence,
                token: locked.token,
                locked_until,
                delivery_count: locked.delivery_count,
                enqueued,
                records,
            });
            Ok((open.close(batch), delivered))
        };
        self.lanes.decide(&self.state, (), 0, Box::new(attempt), Box::new(done));
    }

    /// Ends a lock in the way its holder says. A batch that is completed or rejected is gone.
    pub fn settle(
        &self,
        token: LockToken,
        settlement: Settlement,
        now: UtcMillis,
        done: impl FnOnce(Result<(), FeedbackError>) + Send + 'static,
    ) {
        let delivery_count_max = self.settings.load().feedback_delivery_count_max;
        let attempt = move |state: &dyn State| {
            let mut open = Open::read(state)?;
            open.stored.queue.settle(token, settlement, now, delivery_count_max)?;
            let batch = open.handle_timeout(state, WriteBatch::new(), now)?;
            Ok((open.close(batch), ()))
        };
        self.lanes.decide(&self.state, (), 0, Box::new(attempt), Box::new(done));
    }

    /// Removes expired records of a partition that no batch holds: without a service that reads, nobody else would. Go
    /// on with `next` until it is `None`.
    // IoT Hub, feedback: after its time to live it is lost silently.
    pub fn sweep(
        &self,
        partition: PartitionId,
        after: Option<Vec<u8>>,
        now: UtcMillis,
        done: impl FnOnce(Result<Swept, FeedbackError>) + Send + 'static,
    ) {
        let attempt = move |state: &dyn State| {
            let scan = Scan {
                prefix: &partition.0.to_be_bytes(),
                after: after.as_deref(),
                limit: SWEEP_RECORDS_MAX,
            };
            let page = state.scan(Table::Feedback, scan)?;
            let is_last = page.len() < SWEEP_RECORDS_MAX;
            let next = page.last().filter(|_| !is_last).map(|(key, _)| key.clone());
            let mut batch = WriteBatch::new();
            let mut expired = 0;
            for (key, raw) in page {
                let stored: StoredRecord = decode(&raw)?;
                if now >= stored.expires {
                    batch = batch.delete(Table::Feedback, key);
                    expired += 1;
                }
            }
            Ok((batch, Swept { expired, next }))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Waits for the answer of one of the calls above. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn wait<R: Send + 'static>(&self, start: impl FnOnce(Answer<R, FeedbackError>)) -> Result<R, FeedbackError> {
        blocking(start).unwrap_or(Err(FeedbackError::State(StateError::Closed)))
    }
}

/// Records on their way into a batch.
struct Pending {
    records: Vec<FeedbackRecord>,
    /// When the last of them is.
    expires: UtcMillis,
}

/// The queue being changed.
struct Open {
    raw: Option<Vec<u8>>,
    stored: Stored,
    /// What would be written if nothing changed.
    unchanged: Vec<u8>,
}

impl Open {
    fn read(state: &dyn State) -> Result<Self, StateError> {
        let raw = state.get(Table::FeedbackBatches, QUEUE_KEY)?;
        let stored = match &raw {
            Some(raw) => decode(raw)?,
            None => Stored {
                queue: Queue::default(),
                released: UtcMillis(i64::MIN),
                cursor: Vec::new(),
            },
        };
        let unchanged = encode(&stored);
        Ok(Self { raw, stored, unchanged })
    }

    fn handle_timeout(
        &mut self,
        state: &dyn State,
        batch: WriteBatch,
        now: UtcMillis,
    ) -> Result<WriteBatch, StateError> {
        self.stored.queue.handle_timeout(now);
        self.end(state, batch)
    }

    /// Removes what has ended with its records.
    fn end(&mut self, state: &dyn State, mut batch: WriteBatch) -> Result<WriteBatch, StateError> {
        for ended in self.stored.queue.take_ended() {
            for key in batch_row(state, ended.sequence)?.records {
                batch = batch.delete(Table::FeedbackReleased, key);
            }
            batch = batch.delete(Table::FeedbackBatches, ended.sequence.to_be_bytes());
        }
        Ok(batch)
    }

    /// Moves pending records into a batch, if there are enough or it is time.
    fn take_pending(
        &mut self,
        state: &dyn State,
        mut batch: WriteBatch,
        now: UtcMillis,
    ) -> Result<(WriteBatch, Option<(StoredBatch, Pending)>), StateError> {
        if self.stored.queue.depth() >= BATCHES_MAX {
            return Ok((batch, None));
        }
        let mut keys = Vec::new();
        let mut pending = Pending {
            records: Vec::new(),
            expires: UtcMillis(i64::MIN),
        };
        let mut released = Vec::new();
        for (key, raw) in self.next_pending(state)? {
            let stored: StoredRecord = decode(&raw)?;
            if now >= stored.expires {
                batch = batch.delete(Table::Feedback, key);
                continue;
            }
            pending.expires = pending.expires.max(stored.expires);
            pending.records.push(stored.record);
            released.push(raw);
            keys.push(key);
        }
        let is_due = now >= later(self.stored.released, RELEASE_INTERVAL);
        let Some(last) = keys.last().filter(|_| is_due || keys.len() >= RECORDS_MAX) else {
            return Ok((batch, None));
        };
        // Behind all of the last record's queue: one busy device takes its turn like the others.
        let queue_bytes = last.len().saturating_sub(super::KEY_END_BYTES);
        self.stored.cursor = [&last[..queue_bytes], &[u8::MAX; super::KEY_END_BYTES]].concat();
        self.stored.released = now;
        for (key, raw) in keys.iter().zip(released) {
            // Its device may be deleted until the commit: then it must not come back as a released record.
            batch = batch
                .expect(Table::Feedback, key.clone(), Expected::Present)
                .delete(Table::Feedback, key.clone())
                .put(Table::FeedbackReleased, key.clone(), raw);
        }
        let stored = StoredBatch {
            enqueued: now,
            records: keys,
        };
        Ok((batch, Some((stored, pending))))
    }

    /// Pending records from behind the cursor on, round to it.
    fn next_pending(&self, state: &dyn State) -> Result<Vec<Entry>, StateError> {
        let cursor = &self.stored.cursor;
        let scan = |after, limit| {
            let prefix = &[];
            state.scan(Table::Feedback, Scan { prefix, after, limit })
        };
        let mut entries = scan(Some(cursor), RECORDS_MAX)?;
        let before = scan(None, RECORDS_MAX - entries.len())?;
        entries.extend(before.into_iter().take_while(|(key, _)| key <= cursor));
        Ok(entries)
    }

    /// Adds to the batch what became of the queue; nothing if nothing did.
    fn close(self, batch: WriteBatch) -> WriteBatch {
        let changed = encode(&self.stored);
        if self.unchanged == changed {
            return batch;
        }
        batch
            .expect(
                Table::FeedbackBatches,
                QUEUE_KEY,
                Expected::unchanged(self.raw.as_deref()),
            )
            .put(Table::FeedbackBatches, QUEUE_KEY, changed)
    }
}

fn batch_row(state: &dyn State, sequence: u64) -> Result<StoredBatch, StateError> {
    let raw = state.get(Table::FeedbackBatches, &sequence.to_be_bytes())?;
    // Another service may have completed it since the queue was read; then the queue's record is another, too.
    raw.map_or_else(
        || {
            Ok(StoredBatch {
                enqueued: UtcMillis::default(),
                records: Vec::new(),
            })
        },
        |raw| decode(&raw),
    )
}

/// What is still to be told of a batch. The end of a device took its records away.
fn records(state: &dyn State, batch: &StoredBatch, now: UtcMillis) -> Result<Vec<FeedbackRecord>, StateError> {
    let mut records = Vec::new();
    for key in &batch.records {
        let Some(raw) = state.get(Table::FeedbackReleased, key)? else {
            continue;
        };
        let stored: StoredRecord = decode(&raw)?;
        if now < stored.expires {
            records.push(stored.record);
        }
    }
    Ok(records)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
