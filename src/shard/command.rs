//! What a shard can be asked to do. Order within a device matters, so everything goes through one queue.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::budget::Reserved;
use super::link::SessionLink;
use crate::hub::filter::DeviceKey;
use crate::hub::identity::Proof;
use crate::model::{Epoch, Generation, PartitionId};
use crate::wire::batch::Batch;
use crate::wire::close::CloseCode;
use crate::wire::stamp::Origin;

/// A session on its home shard; unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

#[derive(Debug)]
pub enum Command {
    Open(OpenSession),
    Append(Append),
    /// Boxed: the largest command, and rarer than appends.
    Post(Box<Post>),
    Close(SessionId),
    Revoke(Revoke),
    /// A snapshot of the duplicate filter became durable (or failed to).
    FilterSaved {
        partition: PartitionId,
        saved: bool,
    },
}

/// Starts a session; an earlier one of the same identity ends with `CloseCode::TakenOver`.
#[derive(Debug)]
pub struct OpenSession {
    pub session: SessionId,
    pub key: DeviceKey,
    pub partition: PartitionId,
    /// Who sends; its epoch is filled in by the shard.
    pub origin: Origin,
    /// As in the hello: 0 asks for the next one.
    pub epoch: Epoch,
    /// The hello came as TLS early data, which an attacker may repeat: it may not take over and may not get a new epoch.
    pub is_early: bool,
    pub link: Arc<SessionLink>,
    /// Answered once everything appended before is durable, so that a device may drop what the answer covers.
    pub reply: oneshot::Sender<Result<Opened, OpenError>>,
}

/// Where a session's appends go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub epoch: Epoch,
    /// Last sequence stored in that epoch; 0 for none.
    pub last_sequence: u64,
}

/// Why a session was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("epoch {asked} is older than {current}, the newest seen of this device")]
    StaleEpoch { asked: u64, current: u64 },
    /// Ask again once the handshake has shown that the peer is alive.
    #[error("early data may not take over a session or take a new epoch")]
    EarlyData,
    #[error("the partition is closed after an I/O error: {0}")]
    Poisoned(String),
    #[error("what is stored of this device cannot be read: {0}")]
    State(String),
    #[error("the hub is stopping")]
    Stopping,
    /// The shard's queue is full: back off.
    #[error("too many sessions open at once")]
    Busy,
}

/// Stores a batch of a session. The answer is the link's `acknowledged`.
#[derive(Debug)]
pub struct Append {
    pub session: SessionId,
    pub batch: Batch,
    /// Given back once the batch stands in the log.
    pub reserved: Reserved,
    /// When the door had the whole batch.
    pub received: Instant,
    /// When the door handed it over.
    pub submitted: Instant,
}

/// Stores messages for a door without sessions: no epoch, no duplicate filter. A client that repeats because it saw no
/// answer stores them twice.
#[derive(Debug)]
pub struct Post {
    pub partition: PartitionId,
    /// Who sends; without an epoch.
    pub origin: Origin,
    pub messages: Messages,
    /// Given back once the messages stand in the log.
    pub reserved: Reserved,
    /// When the door had all of it.
    pub received: Instant,
    /// When the door handed it over.
    pub submitted: Instant,
    /// Answered once all of it is durable at the hub's level, or none of it is stored.
    pub reply: oneshot::Sender<Result<(), PostError>>,
}

/// Messages the door has encoded and measured.
#[derive(Clone, Debug)]
pub struct Messages {
    /// From 1.
    pub count: u32,
    /// As in `wire::batch`.
    pub payload: Bytes,
}

/// Why messages were not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    #[error("too large for the log: {0}")]
    TooLarge(String),
    /// Whether the messages are stored is unknown if it happened while they waited for the disk.
    #[error("the partition is closed after an I/O error")]
    Poisoned,
    #[error("the hub is stopping")]
    Stopping,
}

/// Ends the sessions of a device, because its identity changed.
#[derive(Clone, Debug)]
pub struct Revoke {
    pub device_id: String,
    /// Only those of the identity with this generation: one module. `None`: the device and all its modules.
    pub generation: Option<Generation>,
    /// Sessions that were proved by one of these, or by a policy, stay. `None`: none does.
    pub kept: Option<Vec<Proof>>,
    pub code: CloseCode,
    pub reason: String,
}
