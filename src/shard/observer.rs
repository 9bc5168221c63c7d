//! Facts a shard states; `metrics` turns them into series. `()` observes nothing and costs nothing.

use std::time::Duration;

use crate::model::PartitionId;
use crate::wire::close::CloseCode;

/// One batch stands in the log, not durable yet.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    pub partition: PartitionId,
    pub messages: u32,
    /// Bytes of the log record.
    pub record_bytes: u32,
    /// From the whole batch at the door to the hand-over: validation and waiting for the budget.
    pub door: Duration,
    /// From the hand-over to the shard taking it up.
    pub queue: Duration,
    /// The append itself.
    pub append: Duration,
}

/// One batch was acknowledged to its session.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub messages: u32,
    /// From the append to its durability.
    pub sync: Duration,
    /// From the whole batch at the door to the acknowledgement.
    pub total: Duration,
}

pub trait Observer {
    fn appended(&self, _event: Appended) {}
    fn acknowledged(&self, _event: Acknowledged) {}
    /// Messages that were stored before and are only acknowledged again.
    fn duplicates(&self, _messages: u32) {}
    /// A session ended by the shard; messages of the batch that was refused with it, or 0.
    fn ended(&self, _code: CloseCode, _messages: u32) {}
    /// A batch waits for room in the log (`true`), or room came back (`false`).
    fn stalled(&self, _partition: PartitionId, _is_stalled: bool, _disk_full: bool) {}
}

impl Observer for () {}
