//! Who owns what: every partition has one home shard, a shard is one thread, and everything that must happen in order
//! for a device happens there.
//!
//! ```text
//!  door (any thread) ──budget──> Inbox (bounded, one wake-up a drain) ──> ShardActor ──> Shard (plain logic)
//!       ^                                                                    │  appends
//!       └── SessionLink: acknowledged up to, end <── wake ── Syncer <──bell──┘  fdatasync, many at a time
//!                                                    Keeper: prepares segments, retention
//! ```
//!
//! Deliberately does not know: sockets, protocols' frames beyond the stored batch, metrics (it states facts to an
//! observer). Invariants are in [`shard`], [`budget`], [`inbox`] and [`link`].

pub mod actor;
pub mod budget;
pub mod command;
pub mod filter;
pub mod inbox;
pub mod keeper;
pub mod lines;
pub mod link;
pub mod observer;
pub mod readers;
pub mod recovery;
pub mod router;
#[allow(clippy::module_inception)]
pub mod shard;
pub mod syncer;
#[cfg(test)]
mod tests;
pub mod timing;

use std::time::Duration;

/// When an append is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the disk has confirmed it: survives power loss.
    Sync,
    /// After it was written to memory the kernel owns; synced at this interval. Survives kill -9; a power cut may take
    /// what was acknowledged during the last interval.
    Interval(Duration),
    /// As `Interval`, synced when the kernel likes to.
    Os,
}

impl Durability {
    /// For clients and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Interval(_) => "interval",
            Self::Os => "os",
        }
    }
}
