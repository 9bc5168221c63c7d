//! Feedback: which messages to devices ended how, for the services that asked.
//!
//! ```text
//!   outcome ──same batch──> Feedback ──released──> FeedbackReleased ──complete, expiry──> gone
//!             pending, by device       64 records       in a batch that is locked,
//!                                      or 15 s          abandoned, locked again
//! ```
//!
//! Invariants:
//! - A record is written with the outcome it tells, once, and gone only by a complete, its time to live, used up
//!   deliveries, or the end of its device.
//! - A record is in one batch at most. A batch is handed out under a lock; competing services share one queue.

mod store;

pub use store::{FeedbackBatch, FeedbackError, Feedbacks, RECORDS_MAX, Swept};

use serde::{Deserialize, Serialize};

use super::decide::encode;
use super::json;
use super::outbox::{Outcome, millis};
use crate::model::{DeviceId, Generation, UtcMillis};
use crate::state::{Table, WriteBatch};

/// Which outcomes the sender of a message wants to hear of (`iothub-ack`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ack {
    #[default]
    None,
    Positive,
    Negative,
    Full,
}

impl Ack {
    /// In the order of their numbers in stored records.
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Positive, Self::Negative, Self::Full];

    // IoT Hub, C2D: compared without case, the SDKs differ.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [
            ("none", Self::None),
            ("positive", Self::Positive),
            ("negative", Self::Negative),
            ("full", Self::Full),
        ];
        let found = all.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, ack)| ack)
    }

    // IoT Hub, C2D: positive is completion, negative everything else, purge included.
    pub fn wants(self, outcome: Outcome) -> bool {
        let is_success = outcome == Outcome::Success;
        match self {
            Self::None => false,
            Self::Positive => is_success,
            Self::Negative => !is_success,
            Self::Full => true,
        }
    }
}

/// What became of one message, in the contract's JSON (C2D, section 8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRecord {
    pub original_message_id: String,
    /// When the message ended.
    #[serde(with = "json::date")]
    pub enqueued_time_utc: Option<UtcMillis>,
    pub status_code: Outcome,
    pub description: String,
    #[serde(with = "json::device_id")]
    pub device_id: DeviceId,
    #[serde(with = "json::generation")]
    pub device_generation_id: Generation,
}

impl FeedbackRecord {
    pub(super) fn new(
        original_message_id: String,
        now: UtcMillis,
        outcome: Outcome,
        device_id: DeviceId,
        device_generation_id: Generation,
    ) -> Self {
        Self {
            original_message_id,
            enqueued_time_utc: Some(now),
            status_code: outcome,
            description: outcome.name().to_owned(),
            device_id,
            device_generation_id,
        }
    }
}

/// A record as it is stored, pending or released.
#[derive(Debug, Serialize, Deserialize)]
struct StoredRecord {
    #[serde(with = "millis")]
    expires: UtcMillis,
    record: FeedbackRecord,
}

/// Generation and sequence number, behind the key of the queue.
const KEY_END_BYTES: usize = 16;

/// Adds a record to the batch that writes the outcome. The generation in the key keeps records of different lives of a
/// device apart, so that a batch released in one never names a record of another.
pub(super) fn put(
    batch: WriteBatch,
    queue_key: &[u8],
    sequence: u64,
    record: FeedbackRecord,
    expires: UtcMillis,
) -> WriteBatch {
    let generation = record.device_generation_id.0.to_be_bytes();
    let key = [queue_key, &generation, &sequence.to_be_bytes()].concat();
    batch.put(Table::Feedback, key, encode(&StoredRecord { expires, record }))
}
