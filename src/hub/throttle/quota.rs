//! How many messages the hub takes in a day (UTC), as one number that survives a restart.
//!
//! It is written down from time to time, not for each message: a hub that is killed forgets what came since the last
//! time, and counts on from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::hub::decide::{decode, encode};
use crate::model::UtcMillis;
use crate::state::{State, StateError, Table, WriteBatch};

const KEY: &[u8] = b"daily_messages";
const DAY_MS: i64 = 86_400_000;
/// The day and what it counts share a word: 44 bits count 17 trillion messages a day.
const COUNT_BITS: u32 = 44;
pub const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    /// Days since 1970.
    day: u64,
    messages: u64,
}

impl Counted {
    fn pack(self) -> u64 {
        self.day << COUNT_BITS | self.messages
    }

    fn unpack(word: u64) -> Self {
        Self {
            day: word >> COUNT_BITS,
            messages: word & COUNT_MAX,
        }
    }

    /// With this many more; `None` if the day has no room for them. A day that is over does not come back when the
    /// clock is set back.
    fn with(self, messages: u64, day: u64, messages_max: u64) -> Option<Self> {
        let counted = if day > self.day { 0 } else { self.messages };
        let messages = counted.checked_add(messages)?;
        (messages <= messages_max).then_some(Self {
            day: day.max(self.day),
            messages,
        })
    }
}

pub(super) struct Quota {
    state: Arc<dyn State>,
    /// 0: none.
    messages_max: AtomicU64,
    counted: AtomicU64,
    stored: AtomicU64,
}

impl Quota {
    /// # Errors
    /// The store's.
    pub fn open(state: Arc<dyn State>, messages_max: u64) -> Result<Self, StateError> {
        let stored = match state.get(Table::Meta, KEY)? {
            Some(bytes) => decode::<Counted>(&bytes)?.pack(),
            None => 0,
        };
        Ok(Self {
            state,
            messages_max: AtomicU64::new(messages_max.min(COUNT_MAX)),
            counted: AtomicU64::new(stored),
            stored: AtomicU64::new(stored),
        })
    }

    /// 0: none. The day's count goes on; of a part of the day without a maximum nothing was counted.
    pub fn set_messages_max(&self, messages_max: u64) {
        self.messages_max.store(messages_max.min(COUNT_MAX), Ordering::Relaxed);
    }

    /// Counts messages, if the day has room for them.
    pub fn take(&self, messages: u64, now: UtcMillis) -> bool {
        let messages_max = self.messages_max.load(Ordering::Relaxed);
        if messages_max == 0 {
            return true;
        }
        let day = day(now);
        let more = |word| Some(Counted::unpack(word).with(messages, day, messages_max)?.pack());
        self.counted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Writes down what was counted since the last time; `done` is not called when there is nothing.
    pub fn store(&self, done: impl FnOnce(Result<(), StateError>) + Send + 'static) {
        let counted = self.counted.load(Ordering::Relaxed);
        if self.stored.swap(counted, Ordering::Relaxed) != counted {
            let batch = WriteBatch::new().put(Table::Meta, KEY, encode(&Counted::unpack(counted)));
            self.state.commit(batch, Box::new(done));
        }
    }
}

fn day(now: UtcMillis) -> u64 {
    u64::try_from(now.0.div_euclid(DAY_MS)).unwrap_or(0)
}

/// Milliseconds until the next day begins.
// IoT Hub, quotas section 1: the quota's day is UTC midnight to midnight.
pub(super) fn until_midnight(now: UtcMillis) -> u64 {
    (DAY_MS - now.0.rem_euclid(DAY_MS)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MemoryState;

    const MIDNIGHT: i64 = 20_000 * DAY_MS;

    #[test]
    fn a_day_ends_at_midnight_and_does_not_come_back() {
        let quota = Quota::open(Arc::new(MemoryState::default()), 10).unwrap();
        assert!(quota.take(7, UtcMillis(MIDNIGHT - 1)));
        assert!(!quota.take(4, UtcMillis(MIDNIGHT - 1)));
        assert!(quota.take(3, UtcMillis(MIDNIGHT - 1)));
        assert!(!quota.take(1, UtcMillis(MIDNIGHT - 1)));
        assert!(quota.take(10, UtcMillis(MIDNIGHT)));
        assert!(!quota.take(1, UtcMillis(MIDNIGHT - 1)), "the clock was set back");
        assert!(!quota.take(u64::MAX, UtcMillis(MIDNIGHT)));
        assert_eq!(until_midnight(UtcMillis(MIDNIGHT - 1)), 1);
        assert_eq!(until_midnight(UtcMillis(MIDNIGHT)), DAY_MS as u64);
    }

    #[test]
    fn what_was_counted_survives_a_restart() {
        let state: Arc<dyn State> = Arc::new(MemoryState::default());
        let now = UtcMillis(MIDNIGHT);
        let quota = Quota::open(state.clone(), 10).unwrap();
        assert!(quota.take(6, now));
        crate::state::blocking(|done| quota.store(done)).unwrap().unwrap();
        assert!(quota.take(1, now), "and is forgotten");
        let again = Quota::open(state, 10).unwrap();
        assert!(!again.take(5, now));
        assert!(again.take(4, now));
    }

    #[test]
    fn another_maximum_counts_on() {
        let quota = Quota::open(Arc::new(MemoryState::default()), 10).unwrap();
        let now = UtcMillis(MIDNIGHT);
        assert!(quota.take(6, now));
        quota.set_messages_max(5);
        assert!(!quota.take(1, now));
        quota.set_messages_max(7);
        assert!(quota.take(1, now) && !quota.take(1, now));
        quota.set_messages_max(0);
        assert!(quota.take(u64::MAX, now));
    }

    #[test]
    fn without_a_maximum_nothing_is_counted() {
        let quota = Quota::open(Arc::new(MemoryState::default()), 0).unwrap();
        assert!(quota.take(u64::MAX, UtcMillis(0)));
        quota.store(|_| panic!("there is nothing to store"));
    }
}
