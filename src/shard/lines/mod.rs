//! How the hub reaches a device that is connected: who listens for what.
//!
//! ```text
//!  service ── invoke ───────────┐                       ┌──> Calls    one stream or topic of a session each;
//!  Twins ──── desired changed ──┼─> Lines, by identity ─┼──> Changes  the session's task waits on it: one hop
//!  Outboxes ─ message waits ────┘   a mutex for each    └──> Waiting
//!                                   of 64 parts
//! ```
//!
//! A session that listens for nothing costs nothing here. Who listens later takes the place of who listened before: the
//! earlier one is told to end. Doors of all protocols use the same three.
//!
//! Invariants: calls of one identity at a time, waiting ones included, are at most `CALLS_PER_TARGET_MAX`; waiting ones
//! of all at most `PARKED_MAX`. A change of the desired properties is never lost on a listener: where its mailbox is
//! full, what it is told of next shows the gap by its version and has the whole section.

mod calls;
mod changes;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hub::IdentityName;
use crate::hub::method::MethodOutcome;

pub use calls::{Call, Calls};
pub use changes::{Changes, News};
pub use waiting::{Replaced, Waiting};

const PARTS: usize = 64;
/// Calls that wait for their devices to connect, of the whole hub.
const PARKED_MAX: usize = 4096;

/// Cloning shares them.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<Shared>,
}

struct Shared {
    parts: Vec<Mutex<HashMap<IdentityName, Line>>>,
    hasher: RandomState,
    /// Tells those who took a place from those who lost it.
    next_listener: AtomicU64,
    parked: AtomicUsize,
    /// By `MethodOutcome`.
    calls_ended: [AtomicU64; MethodOutcome::ALL.len()],
}

/// What one identity listens for, and what waits for it.
#[derive(Default)]
struct Line {
    calls: calls::Line,
    changes: Option<(u64, Arc<changes::Mailbox>)>,
    waiting: Option<(u64, Arc<waiting::Bell>)>,
}

impl Line {
    fn is_unused(&self) -> bool {
        self.calls.is_unused() && self.changes.is_none() && self.waiting.is_none()
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                parts: (0..PARTS).map(|_| Mutex::default()).collect(),
                hasher: RandomState::new(),
                next_listener: AtomicU64::new(1),
                parked: AtomicUsize::new(0),
                calls_ended: Default::default(),
            }),
        }
    }
}

impl Lines {
    /// Identities that listen or are waited for now.
    pub fn len(&self) -> usize {
        let len = |part: &Mutex<HashMap<IdentityName, Line>>| part.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shared.parts.iter().map(len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls of methods that ended since the start, by how.
    pub fn calls_ended(&self) -> impl Iterator<Item = (MethodOutcome, u64)> {
        let counts = self
            .shared
            .calls_ended
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        MethodOutcome::ALL.into_iter().zip(counts)
    }
}

impl Shared {
    fn part(&self, name: &IdentityName) -> MutexGuard<'_, HashMap<IdentityName, Line>> {
        let part = self.hasher.hash_one(name) as usize % self.parts.len();
        // Nothing panics while it holds the lock.
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listener(&self) -> u64 {
        self.next_listener.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes the line of an identity, if there is one, and forgets it when nothing is left of it.
    fn change(&self, name: &IdentityName, change: impl FnOnce(&mut Line)) {
        let mut part = self.part(name);
        if let Some(line) = part.get_mut(name) {
            change(line);
            if line.is_unused() {
                part.remove(name);
            }
        }
    }
}
