//! The duplicate filter's memory: per device the last (epoch, sequence) appended.
//!
//! Holds the devices with an open session and those that appended since the last snapshot became durable; all others
//! are in the store (`hub::filter`). A snapshot may be stored only once everything it speaks of is durable in the log:
//! otherwise a power cut could leave a position that is ahead of the log, and a resent message would be taken for a
//! duplicate and lost.

use std::collections::HashMap;

use crate::hub::filter::{DeviceKey, Position};
use crate::model::Epoch;

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Store it without its first `skip` messages.
    Append { skip: u32 },
    /// All of it is stored.
    Duplicate,
    /// It leaves out sequences and does not say so.
    Gap { expected: u64 },
    /// A newer epoch of the device has been seen.
    Stale,
}

/// The verdict on a batch of `epoch` that starts at `first` (>= 1) and has `count` messages, given what is stored.
pub fn judge(stored: Position, epoch: Epoch, first: u64, count: u32, skip_is_meant: bool) -> Verdict {
    let last = match epoch.cmp(&stored.epoch) {
        std::cmp::Ordering::Less => return Verdict::Stale,
        std::cmp::Ordering::Equal => stored.sequence,
        std::cmp::Ordering::Greater => 0,
    };
    if first > last + 1 && !skip_is_meant {
        return Verdict::Gap { expected: last + 1 };
    }
    let stored_of_it = (last + 1).saturating_sub(first).min(u64::from(count)) as u32;
    if stored_of_it == count {
        Verdict::Duplicate
    } else {
        Verdict::Append { skip: stored_of_it }
    }
}

/// How an entry stands to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// The store has this position.
    Yes,
    /// A snapshot with this position is on its way to the store; until it is durable only memory has it.
    Saving,
    /// Changed since the last snapshot was taken.
    No,
}

#[derive(Debug)]
struct Entry {
    position: Position,
    stored: Stored,
    sessions: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct DuplicateFilter {
    entries: HashMap<DeviceKey, Entry, foldhash::fast::RandomState>,
}

impl DuplicateFilter {
    /// The position, if it is in memory.
    pub fn get(&self, key: &DeviceKey) -> Option<Position> {
        self.entries.get(key).map(|entry| entry.position)
    }

    /// Keeps the device in memory for a session; `stored` is what the store says when memory has nothing.
    pub fn open(&mut self, key: &DeviceKey, stored: Position) -> Position {
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            position: stored,
            stored: Stored::Yes,
            sessions: 0,
        });
        entry.sessions += 1;
        entry.position
    }

    pub fn close(&mut self, key: &DeviceKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.sessions = entry.sessions.saturating_sub(1);
            if entry.sessions == 0 && entry.stored == Stored::Yes {
                self.entries.remove(key);
            }
        }
    }

    /// A batch up to `position` was appended.
    pub fn advance(&mut self, key: &DeviceKey, position: Position) {
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.position = position;
                entry.stored = Stored::No;
            }
            None => {
                self.entries.insert(
                    key.clone(),
                    Entry {
                        position,
                        stored: Stored::No,
                        sessions: 0,
                    },
                );
            }
        }
    }

    /// Replays a batch found in the log at start.
    pub fn replay(&mut self, key: DeviceKey, position: Position) {
        let entry = self.entries.entry(key).or_insert(Entry {
            position,
            stored: Stored::No,
            sessions: 0,
        });
        entry.position = entry.position.max(position);
    }

    /// The positions changed since the last snapshot.
    pub fn take_snapshot(&mut self) -> Vec<(DeviceKey, Position)> {
        self.entries
            .iter_mut()
            .filter(|(_, entry)| entry.stored == Stored::No)
            .map(|(key, entry)| {
                entry.stored = Stored::Saving;
                (key.clone(), entry.position)
            })
            .collect()
    }

    /// The snapshot is durable: what nobody uses can go.
    pub fn snapshot_saved(&mut self) {
        self.entries.retain(|_, entry| {
            if entry.stored == Stored::Saving {
                entry.stored = Stored::Yes;
            }
            entry.stored == Stored::No || entry.sessions > 0
        });
    }

    /// The snapshot could not be stored: its devices are dirty again.
    pub fn snapshot_failed(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.stored == Stored::Saving) {
            entry.stored = Stored::No;
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn verdicts() {
        let stored = Position {
            epoch: Epoch(2),
            sequence: 10,
        };
        let check = |epoch, first, count, skip, expected| {
            assert_eq!(
                judge(stored, Epoch(epoch), first, count, skip),
                expected,
                "epoch {epoch} {first}+{count}"
            );
        };
        check(2, 11, 5, false, Verdict::Append { skip: 0 });
        check(2, 9, 5, false, Verdict::Append { skip: 2 });
        check(2, 6, 5, false, Verdict::Duplicate);
        check(2, 1, 5, false, Verdict::Duplicate);
        check(2, 12, 1, false, Verdict::Gap { expected: 11 });
        check(2, 12, 1, true, Verdict::Append { skip: 0 });
        check(1, 11, 1, false, Verdict::Stale);
        check(3, 1, 1, false, Verdict::Append { skip: 0 });
        check(3, 2, 1, false, Verdict::Gap { expected: 1 });
    }

    #[test]
    fn a_position_leaves_memory_only_once_the_store_has_it() {
        let key = DeviceKey {
            device: crate::model::DeviceId::new("d").unwrap(),
            generation: crate::model::Generation(1),
        };
        let position = Position {
            epoch: Epoch(1),
            sequence: 5,
        };
        let mut filter = DuplicateFilter::default();
        filter.open(&key, Position::default());
        filter.advance(&key, position);
        assert_eq!(filter.take_snapshot(), [(key.clone(), position)]);
        filter.close(&key);
        assert_eq!(filter.get(&key), Some(position), "the snapshot is not durable yet");
        filter.snapshot_failed();
        assert_eq!(filter.take_snapshot().len(), 1, "a failed snapshot is taken again");
        filter.snapshot_saved();
        assert_eq!(filter.get(&key), None);
    }

    proptest! {
        /// However batches overlap and repeat, each sequence is stored once and in order.
        #[test]
        fn each_sequence_is_stored_once(batches in prop::collection::vec((1u64..40, 1u32..10), 1..60)) {
            let mut stored = Position { epoch: Epoch(1), sequence: 0 };
            let mut log = Vec::new();
            for (first, count) in batches {
                if let Verdict::Append { skip } = judge(stored, Epoch(1), first, count, false) {
                    log.extend(first + u64::from(skip)..first + u64::from(count));
                    stored.sequence = first + u64::from(count) - 1;
                }
            }
            prop_assert_eq!(&log, &(1..=log.len() as u64).collect::<Vec<_>>());
        }
    }
}
