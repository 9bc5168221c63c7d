//! What a shard can be asked to do. Order within a device matters, so everything goes through one queue.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::link::SessionLink;
use crate::hub::filter::DeviceKey;
use crate::model::{Epoch, PartitionId};
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
    /// Taken from the shard's in-flight budget; given back once the batch stands in the log.
    pub budget_bytes: u32,
    /// When the door had the whole batch.
    pub received: Instant,
    /// When the door handed it over.
    pub submitted: Instant,
}

/// Ends the sessions of a device, because its identity changed.
#[derive(Clone, Debug)]
pub struct Revoke {
    pub device_id: String,
    pub code: CloseCode,
    pub reason: String,
}
