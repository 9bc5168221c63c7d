//! A queue of deliveries without what they carry: first in, first out by sequence number, several locked at once.
//!
//! Plain values. Whoever owns it calls `handle_timeout` before each change and stores the queue with what
//! `take_ended` gives, in one batch.

use serde::{Deserialize, Serialize};

use super::delivery::{Delivery, LockLost, LockToken, Outcome, Settlement};
use super::record::Reader;
use crate::model::UtcMillis;

/// Deliveries, oldest first, each with what its end needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Queue<T> {
    /// Above every sequence number given out, so that none is given out twice.
    next_sequence: u64,
    slots: Vec<Slot<T>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Slot<T> {
    sequence: u64,
    delivery: Delivery,
    about: T,
}

/// A delivery that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    pub sequence: u64,
    pub token: LockToken,
    pub delivery_count: u8,
    pub expires: UtcMillis,
}

/// A delivery that left the queue.
#[derive(Debug)]
pub struct Ended<T> {
    pub sequence: u64,
    pub outcome: Outcome,
    pub about: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            next_sequence: 1,
            slots: Vec::new(),
        }
    }
}

impl<T> Queue<T> {
    /// As it stands in its record.
    pub(super) fn write(&self, into: &mut Vec<u8>, write_about: impl Fn(&T, &mut Vec<u8>)) {
        into.extend_from_slice(&self.next_sequence.to_le_bytes());
        let slots = u16::try_from(self.slots.len()).expect("a queue is bounded");
        into.extend_from_slice(&slots.to_le_bytes());
        for slot in &self.slots {
            into.extend_from_slice(&slot.sequence.to_le_bytes());
            slot.delivery.write(into);
            write_about(&slot.about, into);
        }
    }

    /// The inverse of `write`; `None` for what it does not write.
    pub(super) fn read(from: &mut Reader<'_>, read_about: impl Fn(&mut Reader<'_>) -> Option<T>) -> Option<Self> {
        let next_sequence = u64::from_le_bytes(from.array()?);
        let slots = u16::from_le_bytes(from.array()?);
        let slots = (0..slots).map(|_| {
            Some(Slot {
                sequence: u64::from_le_bytes(from.array()?),
                delivery: Delivery::read(from)?,
                about: read_about(from)?,
            })
        });
        let slots = slots.collect::<Option<_>>()?;
        Some(Self { next_sequence, slots })
    }

    /// Deliveries that wait or are locked.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// When the first of the locks ends; `None` while nothing is locked.
    pub fn locked_until(&self) -> Option<UtcMillis> {
        self.slots.iter().filter_map(|slot| slot.delivery.locked_until()).min()
    }

    /// Adds a delivery behind all others; its sequence number.
    pub fn push(&mut self, expires: UtcMillis, about: T) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.slots.push(Slot {
            sequence,
            delivery: Delivery::new(expires),
            about,
        });
        sequence
    }

    /// Locks the oldest that wait, at most `max`.
    pub fn lock_next(&mut self, max: usize, until: UtcMillis, mut token: impl FnMut() -> LockToken) -> Vec<Locked> {
        let mut locked = Vec::new();
        let mut next = token();
        for slot in &mut self.slots {
            if locked.len() >= max {
                break;
            }
            if slot.delivery.lock(next, until) {
                locked.push(Locked {
                    sequence: slot.sequence,
                    token: std::mem::replace(&mut next, token()),
                    delivery_count: slot.delivery.delivery_count(),
                    expires: slot.delivery.expires(),
                });
            }
        }
        locked
    }

    /// # Errors
    /// When the token holds nothing here, or no longer.
    pub fn settle(
        &mut self,
        token: LockToken,
        settlement: Settlement,
        now: UtcMillis,
        delivery_count_max: u8,
    ) -> Result<(), LockLost> {
        let mut slots = self.slots.iter_mut();
        let settled = slots.any(|slot| {
            let settled = slot.delivery.settle(token, settlement, now, delivery_count_max);
            settled.is_ok()
        });
        if settled { Ok(()) } else { Err(LockLost) }
    }

    /// Ends everything; how much that was.
    pub fn purge(&mut self) -> usize {
        for slot in &mut self.slots {
            slot.delivery.purge();
        }
        self.slots.len()
    }

    pub fn handle_timeout(&mut self, now: UtcMillis) {
        for slot in &mut self.slots {
            slot.delivery.handle_timeout(now);
        }
    }

    /// Removes what has an outcome, oldest first.
    pub fn take_ended(&mut self) -> Vec<Ended<T>> {
        let ended = self.slots.extract_if(.., |slot| slot.delivery.outcome().is_some());
        let ended = ended.filter_map(|slot| {
            Some(Ended {
                sequence: slot.sequence,
                outcome: slot.delivery.outcome()?,
                about: slot.about,
            })
        });
        ended.collect()
    }
}
