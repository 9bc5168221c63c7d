//! How many messages to devices were queued, handed out and ended, since the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::delivery::Outcome;

/// Counted when it is durable; what was tried and not stored does not count.
#[derive(Debug, Default)]
pub struct Counts {
    pub(super) queued: AtomicU64,
    pub(super) delivered: AtomicU64,
    ended: [AtomicU64; Outcome::ALL.len()],
}

impl Counts {
    /// Messages queued.
    pub fn queued(&self) -> u64 {
        self.queued.load(Relaxed)
    }

    /// Messages handed to a device, each time counted.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    /// Messages that ended, by what became of them.
    pub fn ended(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL
            .into_iter()
            .zip(self.ended.iter().map(|count| count.load(Relaxed)))
    }

    pub(super) fn add(&self, tally: &Tally) {
        for (total, count) in self.ended.iter().zip(&tally.ended[..]) {
            total.fetch_add(count.load(Relaxed), Relaxed);
        }
    }
}

/// What one attempt at a change ends. An attempt may be made again, and begins at nothing each time.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    ended: Arc<[AtomicU64; Outcome::ALL.len()]>,
}

impl Tally {
    pub fn restart(&self) {
        for count in &self.ended[..] {
            count.store(0, Relaxed);
        }
    }

    pub fn ended(&self, outcome: Outcome) {
        self.ended[outcome as usize].fetch_add(1, Relaxed);
    }
}
