//! What a session's door and its home shard share: how far the session is acknowledged, and whether it must end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::hub::identity::Proof;
use crate::wire::close::CloseCode;

/// Why the shard ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub code: CloseCode,
    pub reason: String,
}

/// Lives as long as the longer of session and its pending appends. The shard writes and the door reads, but for the proof.
///
/// Invariant: `acknowledged` only grows, and covers only what is stored at the hub's durability level.
#[derive(Debug, Default)]
pub struct SessionLink {
    acknowledged: AtomicU64,
    /// A `Proof`, or 0.
    proof: AtomicU64,
    end: OnceLock<End>,
    changed: Notify,
}

impl SessionLink {
    /// The last sequence of the session's epoch that is stored.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// By what the session proved who it is, last. `None`: no one credential can be told, any change of them counts.
    pub fn proof(&self) -> Option<Proof> {
        Proof::from_number(self.proof.load(Ordering::Relaxed))
    }

    /// Before the session is opened, and when it is renewed.
    pub fn set_proof(&self, proof: Option<Proof>) {
        self.proof.store(proof.map_or(0, Proof::number), Ordering::Relaxed);
    }

    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Completes after a change; a change before the call completes it at once.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The shard's alone.
    pub(crate) fn acknowledge(&self, sequence: u64) {
        self.acknowledged.fetch_max(sequence, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// The first reason stays.
    pub fn end_with(&self, code: CloseCode, reason: impl Into<String>) {
        let _ = self.end.set(End {
            code,
            reason: reason.into(),
        });
        self.changed.notify_one();
    }
}
