//! The outbox: messages on their way to devices, each with a lock, a count of deliveries, an expiry and an outcome.
//!
//! ```text
//!   OutboxQueues  partition, device, 0, module or nothing, 0             where each message of the queue stands
//!   Outbox        partition, device, 0, module or nothing, 0, sequence   the message itself, written once
//! ```
//!
//! It deliberately does not know doors: how a lock token travels and who is connected is theirs.
//!
//! Invariants:
//! - What is answered is durable, locks included: they survive a restart.
//! - A message ends once. Its end, the removal of its bytes and its feedback are one batch.
//! - A sequence number is never used twice in one life of a device.
//! - State lives in the store only: queued messages cost disk. One record orders all changes of a queue.

pub mod delivery;
mod message;
mod queue;
mod record;
mod settings;
mod store;
mod tally;

pub use delivery::{LockToken, Outcome, Settlement};
pub use message::InvalidMessage;
pub(in crate::hub) use queue::{Ended, Queue};
pub use settings::{InvalidQueueSettings, QueueSettings};
pub use store::{Delivered, Enqueued, OutboxError, Outboxes, Swept};
pub use tally::Counts;

use super::identity::IdentityName;
use crate::model::{DeviceId, PartitionId, UtcMillis};
use crate::state::{Table, WriteBatch};

/// IoT Hub, C2D: at most 50 messages wait or are locked per device.
pub const QUEUE_DEPTH_MAX: usize = 50;
/// IoT Hub, C2D: 64 KB a message, counted by `Message::counted_bytes`.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// IoT Hub, C2D: how long a device holds a lock.
pub const LOCK: std::time::Duration = std::time::Duration::from_secs(60);

/// Tables whose keys begin with a queue's.
const QUEUE_TABLES: [Table; 4] = [
    Table::Outbox,
    Table::OutboxQueues,
    Table::Feedback,
    Table::FeedbackReleased,
];

/// Removes the queues of a device and its modules, with their pending feedback.
pub(super) fn delete_device(batch: WriteBatch, partition: PartitionId, device: &DeviceId) -> WriteBatch {
    delete_prefix(batch, &device_prefix(partition, device))
}

/// Removes one queue with its pending feedback.
pub(super) fn delete_queue(batch: WriteBatch, partition: PartitionId, name: &IdentityName) -> WriteBatch {
    delete_prefix(batch, &queue_key(partition, name))
}

fn delete_prefix(batch: WriteBatch, prefix: &[u8]) -> WriteBatch {
    QUEUE_TABLES
        .into_iter()
        .fold(batch, |batch, table| batch.delete_prefix(table, prefix))
}

fn device_prefix(partition: PartitionId, device: &DeviceId) -> Vec<u8> {
    let mut key = partition.0.to_be_bytes().to_vec();
    key.extend_from_slice(device.as_str().as_bytes());
    // No id has this byte, so no device's queues are among those of another.
    key.push(0);
    key
}

/// Under which everything of a queue stands.
pub(super) fn queue_key(partition: PartitionId, name: &IdentityName) -> Vec<u8> {
    let mut key = device_prefix(partition, &name.device);
    key.extend_from_slice(name.module.as_ref().map_or("", |module| module.as_str()).as_bytes());
    key.push(0);
    key
}

/// A time in stored records.
pub(super) mod millis {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::model::UtcMillis;

    pub fn serialize<S: Serializer>(time: &UtcMillis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UtcMillis, D::Error> {
        i64::deserialize(deserializer).map(UtcMillis)
    }
}

/// `ttl` after `now`.
pub(super) fn later(now: UtcMillis, ttl: std::time::Duration) -> UtcMillis {
    UtcMillis(now.0.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
}
