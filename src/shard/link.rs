//! What a session's door and its home shard share: how far the session is acknowledged, and whether it must end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::wire::close::CloseCode;

/// Why the shard ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub code: CloseCode,
    pub reason: String,
}

/// Lives as long as the longer of session and its pending appends. The shard writes, the door reads.
///
/// Invariant: `acknowledged` only grows, and covers only what is stored at the hub's durability level.
#[derive(Debug, Default)]
pub struct SessionLink {
    acknowledged: AtomicU64,
    end: OnceLock<End>,
    changed: Notify,
}

impl SessionLink {
    /// The last sequence of the session's epoch that is stored.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
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
