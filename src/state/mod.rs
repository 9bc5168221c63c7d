//! The embedded transactional store behind one small trait: identities, twins, policies, groups, checkpoints, positions.
//!
//! Invariants:
//! - A batch is applied whole or not at all, and only if each of its preconditions held at that moment.
//! - `Ok` is answered after the batch is durable; a reader sees nothing that is not.
//! - Batches take effect in one order, that of the queue; a precondition sees all batches before it.
//! - After a failed commit nothing is written until the store is opened again: what the disk holds is unknown.
//!
//! It knows keys and values, not what they mean. Keys of what belongs to a device start with its partition as two
//! big-endian bytes, so that a partition is one range and can be moved.
//!
//! ```text
//!   callers ── commit(batch, done) ──> bounded queue ──> one writer thread ──> one durable transaction for many
//!      ^                                  |  full                                         |
//!      └───────────── done(Err(Busy)) <───┘                  done(Ok | Conflict | Failed) <┘
//! ```

mod batch;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod redb;

use std::sync::Arc;
use std::sync::mpsc;

pub use batch::{Expected, WriteBatch, appended, counter};
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryState;
pub use redb::{RedbConfig, RedbState};

/// What kind of record a key names. Each is a table of its own; names are part of the data format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Facts about the hub itself: format, id, creation.
    Meta,
    /// Partition, device id.
    Devices,
    /// Partition, device id, 0, module id.
    Modules,
    Policies,
    Authorities,
    Groups,
    /// Consumer group, 0, partition.
    Checkpoints,
    /// Partition; or partition, device id, 0, generation.
    Filter,
    /// As the identity: partition, device id; or partition, device id, 0, module id.
    Twins,
    /// Partition, device id, 0, module id or nothing, 0, sequence number.
    Outbox,
    /// Partition, device id, 0, module id or nothing, 0.
    OutboxQueues,
    /// Partition, device id, 0, module id or nothing, 0, generation, sequence number.
    Feedback,
    /// As `Feedback`: records that stand in a batch.
    FeedbackReleased,
    /// `queue`; or the number of a batch.
    FeedbackBatches,
    /// Partition; or partition, sequence number.
    Events,
    /// As the identity: partition, device id; or partition, device id, 0, module id.
    Presence,
    /// As the identity: partition, device id; or partition, device id, 0, module id.
    Subscriptions,
}

impl Table {
    pub const ALL: [Self; 17] = [
        Self::Meta,
        Self::Devices,
        Self::Modules,
        Self::Policies,
        Self::Authorities,
        Self::Groups,
        Self::Checkpoints,
        Self::Filter,
        Self::Twins,
        Self::Outbox,
        Self::OutboxQueues,
        Self::Feedback,
        Self::FeedbackReleased,
        Self::FeedbackBatches,
        Self::Events,
        Self::Presence,
        Self::Subscriptions,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Devices => "devices",
            Self::Modules => "modules",
            Self::Policies => "policies",
            Self::Authorities => "authorities",
            Self::Groups => "groups",
            Self::Checkpoints => "checkpoints",
            Self::Filter => "filter",
            Self::Twins => "twins",
            Self::Outbox => "outbox",
            Self::OutboxQueues => "outbox_queues",
            Self::Feedback => "feedback",
            Self::FeedbackReleased => "feedback_released",
            Self::FeedbackBatches => "feedback_batches",
            Self::Events => "events",
            Self::Presence => "presence",
            Self::Subscriptions => "subscriptions",
        }
    }
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// Read again and decide again; nothing of the batch was written.
    #[error("precondition {index} of the batch does not hold")]
    Conflict { index: usize },
    /// The queue of batches is full: slow down, then try again. Nothing was written.
    #[error("the store is busy")]
    Busy,
    /// Whether the batch is durable is unknown. Later batches fail too until the store is opened again.
    #[error("the store failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// Which keys a scan visits.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Only keys that start so.
    pub prefix: &'a [u8],
    /// Only keys greater than this one: where the page before ended.
    pub after: Option<&'a [u8]>,
    pub limit: usize,
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Told the outcome of a batch, on the store's writer thread or, for `Busy` and `Closed`, on the caller's. It must be
/// short and must not panic or block; it may `commit` again.
pub type Done = Box<dyn FnOnce(Result<(), StateError>) + Send>;

/// The store. Object safe, because every call ends in a disk or a lock: a virtual call costs nothing beside it, and
/// whoever holds the store stays free of a type parameter.
pub trait State: Send + Sync + 'static {
    /// The durable value of a key. Costs microseconds, not for every message.
    ///
    /// # Errors
    /// `Failed` when the file cannot be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Durable entries in key order, at most `limit`.
    ///
    /// # Errors
    /// `Failed` when the file cannot be read.
    fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StateError>;

    /// Queues a batch and returns at once; `done` is called exactly once, unless the process ends first.
    fn commit(&self, batch: WriteBatch, done: Done);
}

impl dyn State {
    /// `commit`, waiting for the answer. For the command line and tests; never on an arbiter or in a `Done`.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn commit_blocking(&self, batch: WriteBatch) -> Result<(), StateError> {
        blocking(|done| self.commit(batch, Box::new(done))).unwrap_or(Err(StateError::Closed))
    }
}

/// Calls `start` with a callback and waits for what it is called with; `None` if it is dropped instead.
pub fn blocking<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    start(Box::new(move |value| {
        // The receiver is gone only if the waiting thread was unwound; then nobody wants to know.
        let _ = sender.send(value);
    }));
    receiver.recv().ok()
}
