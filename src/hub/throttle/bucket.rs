//! A token bucket without a timer: how many units have ever come is computed from the clock, how many are spent is one
//! number.
//!
//! ```text
//!   come(t) = floor(per_second * t)        units since the origin, exact for ever
//!   spent   = max(spent, come(now)) + n    what nobody took while the bucket was full is lost
//!   granted at the first t with come(t) + burst >= spent
//! ```
//!
//! (The generic cell rate algorithm, with time counted in units.) Units are taken when they are asked for, and the grant
//! tells when they may be used: those who wait have their turn in the order they came, and nobody has to look again.
//! Between any two times no more is granted than the burst and the whole units that came between them.

use std::sync::atomic::{AtomicU64, Ordering};

const NANOS: u128 = 1_000_000_000;

/// How much of something may be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// 0: as much as one likes.
    pub per_second: u32,
    /// What may be had at once after a rest. At least 1.
    pub burst: u32,
}

impl Rate {
    pub const NONE: Self = Self {
        per_second: 0,
        burst: 1,
    };

    pub fn is_none(self) -> bool {
        self.per_second == 0
    }

    /// Units that have come up to a time, in nanoseconds since the origin.
    pub(super) fn come(self, at: u64) -> u64 {
        saturated(u128::from(at) * u128::from(self.per_second) / NANOS)
    }

    /// `spent` after `units` more, and when they are granted.
    fn spend(self, spent: u64, units: u64, now: u64) -> (u64, u64) {
        if self.is_none() {
            return (spent, now);
        }
        let come = self.come(now);
        let spent = spent.max(come).saturating_add(units);
        let needed = spent.saturating_sub(u64::from(self.burst.max(1)));
        if needed <= come {
            return (spent, now);
        }
        let at = (u128::from(needed) * NANOS).div_ceil(u128::from(self.per_second));
        (spent, saturated(at))
    }
}

fn saturated(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// A bucket of one owner. Times are nanoseconds since one origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    spent: u64,
}

impl Bucket {
    /// Takes units; when they may be used.
    pub fn take(&mut self, rate: Rate, units: u64, now: u64) -> u64 {
        let (spent, at) = rate.spend(self.spent, units, now);
        self.spent = spent;
        at
    }

    /// Whether it holds the whole burst, as a new one does.
    pub fn is_full(self, rate: Rate, now: u64) -> bool {
        self.spent <= rate.come(now)
    }
}

/// A bucket that all threads take from, without a lock.
#[derive(Debug)]
pub struct SharedBucket {
    rate: Rate,
    spent: AtomicU64,
}

impl SharedBucket {
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            spent: AtomicU64::new(0),
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// This bucket at another rate, from `now` on: what was used above what came stays used.
    pub fn with_rate(&self, rate: Rate, now: u64) -> Self {
        let spent = self.spent.load(Ordering::Relaxed);
        let spent = if rate == self.rate {
            spent
        } else {
            let owed = if self.rate.is_none() {
                0
            } else {
                spent.saturating_sub(self.rate.come(now))
            };
            rate.come(now).saturating_add(owed)
        };
        Self {
            rate,
            spent: AtomicU64::new(spent),
        }
    }

    /// Takes units that may be used no later than `until`; when they may be.
    ///
    /// # Errors
    /// They could be used only later, then. Nothing was taken.
    pub fn take(&self, units: u64, now: u64, until: u64) -> Result<u64, u64> {
        if self.rate.is_none() {
            return Ok(now);
        }
        let mut before = self.spent.load(Ordering::Relaxed);
        loop {
            let (spent, at) = self.rate.spend(before, units, now);
            if at > until {
                return Err(at);
            }
            // Relaxed: the number guards nothing but itself.
            match self
                .spent
                .compare_exchange_weak(before, spent, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(at),
                Err(now_spent) => before = now_spent,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    proptest! {
        /// Against the plain meaning: between any two times, the burst and what came between them, and no more.
        #[test]
        fn no_window_holds_more_than_its_share(
            per_second in 1u32..5_000,
            burst in 1u32..1_000,
            asked in proptest::collection::vec((0u64..2 * SECOND, 1u64..300, 0u64..3 * SECOND), 1..60),
        ) {
            let rate = Rate { per_second, burst };
            let bucket = SharedBucket::new(rate);
            let (mut now, mut grants, mut last) = (0, Vec::new(), 0);
            for (rest, units, patience) in asked {
                now += rest;
                match bucket.take(units, now, now + patience) {
                    Ok(at) => {
                        prop_assert!(at >= now && at <= now + patience);
                        prop_assert!(at >= last, "granted in the order of asking");
                        last = at;
                        grants.push((at, units));
                    }
                    Err(at) => prop_assert!(at > now + patience),
                }
            }
            for (index, &(from, _)) in grants.iter().enumerate() {
                let mut granted = 0;
                for &(to, units) in &grants[index..] {
                    granted += units;
                    let came = rate.come(to) - rate.come(from);
                    // What is more than the burst began to come before it was granted.
                    let first = grants[index].1.saturating_sub(u64::from(burst));
                    prop_assert!(granted <= u64::from(burst) + came + first, "{granted} within {from} to {to}");
                }
            }
            let total: u64 = grants.iter().map(|(_, units)| units).sum();
            prop_assert!(total <= u64::from(burst) + rate.come(last));
        }

        /// Whatever the rates: a burst at once at most, then the new rate, and never a wait for what the old one owed in
        /// its own units.
        #[test]
        fn a_changed_rate_holds_from_then_on(
            (old_rate, old_burst) in (0u32..100_000, 1u32..1_000),
            (new_rate, new_burst) in (1u32..100_000, 1u32..1_000),
            (used, days) in (0u64..2_000, 0u64..1_000),
        ) {
            let (old, new) = (
                Rate { per_second: old_rate, burst: old_burst },
                Rate { per_second: new_rate, burst: new_burst },
            );
            let now = days * 86_400 * SECOND;
            let bucket = SharedBucket::new(old);
            let _ = bucket.take(used, now, u64::MAX);
            let bucket = bucket.with_rate(new, now);
            let owed = if old.is_none() { 0 } else { used };
            let units = u64::from(new_burst) + 1;
            let at = bucket.take(units, now, u64::MAX).unwrap();
            let wait_max = (u128::from(owed + 2) * NANOS).div_ceil(u128::from(new_rate)) as u64;
            prop_assert!(at - now <= wait_max, "{} ns, {wait_max} at most", at - now);
            prop_assert!(at > now, "one more than the burst");
        }

        /// One owner's bucket and the shared one say the same.
        #[test]
        fn both_buckets_agree(
            per_second in 0u32..u32::MAX,
            burst in 1u32..u32::MAX,
            asked in proptest::collection::vec((any::<u32>(), any::<u32>()), 1..50),
        ) {
            let rate = Rate { per_second, burst };
            let (shared, mut own, mut now) = (SharedBucket::new(rate), Bucket::default(), 0);
            for (rest, units) in asked {
                now += u64::from(rest);
                let at = own.take(rate, u64::from(units), now);
                prop_assert_eq!(shared.take(u64::from(units), now, u64::MAX), Ok(at));
            }
        }

        /// Whoever takes as much as there is gets the rate to the unit, however crooked, after years too.
        #[test]
        fn refill_is_exact_over_long_times(per_second in 1u32..100_000, burst in 1u32..100, days in 0u64..36_500) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::default();
            let start = days * 86_400 * SECOND + 1;
            let mut at = bucket.take(rate, u64::from(burst), start);
            prop_assert_eq!(at, start);
            for _ in 0..100 {
                // An odd number of units, each time as soon as the last are granted.
                at = bucket.take(rate, 7, at);
            }
            let exact = (u128::from(rate.come(start)) + 700) * NANOS;
            prop_assert_eq!(u128::from(at), exact.div_ceil(u128::from(per_second)));
        }
    }

    #[test]
    fn a_rest_fills_the_bucket_and_no_more() {
        let rate = Rate {
            per_second: 10,
            burst: 5,
        };
        let mut bucket = Bucket::default();
        assert!(bucket.is_full(rate, 0));
        assert_eq!(bucket.take(rate, 5, 0), 0);
        assert_eq!(bucket.take(rate, 1, 0), SECOND / 10);
        assert!(!bucket.is_full(rate, 0));
        let later = 100 * SECOND;
        assert!(bucket.is_full(rate, later));
        assert_eq!(bucket.take(rate, 5, later), later);
        assert_eq!(bucket.take(rate, 1, later), later + SECOND / 10);
        // More than the burst at once comes when the rest of it has.
        assert_eq!(bucket.take(rate, 20, 2 * later), 2 * later + 15 * SECOND / 10);
    }

    #[test]
    fn what_cannot_be_had_in_time_takes_nothing() {
        let bucket = SharedBucket::new(Rate {
            per_second: 1,
            burst: 1,
        });
        assert_eq!(bucket.take(1, 0, 0), Ok(0));
        assert_eq!(bucket.take(5, 0, SECOND), Err(5 * SECOND));
        assert_eq!(bucket.take(1, 0, SECOND), Ok(SECOND));
    }

    #[test]
    fn the_ends_of_the_numbers_do_not_overflow() {
        let rate = Rate {
            per_second: u32::MAX,
            burst: u32::MAX,
        };
        let bucket = SharedBucket::new(rate);
        for now in [0, 1, u64::MAX] {
            for units in [0, u64::MAX] {
                let _ = bucket.take(units, now, u64::MAX);
            }
        }
        let slow = SharedBucket::new(Rate {
            per_second: 1,
            burst: 1,
        });
        assert_eq!(slow.take(u64::MAX, 0, SECOND), Err(u64::MAX));
        assert_eq!(slow.take(1, 0, 0), Ok(0));
    }

    /// Threads that race for units get no more together than one would.
    #[test]
    fn threads_share_one_burst() {
        let rate = Rate {
            per_second: 1,
            burst: 10_000,
        };
        let bucket = SharedBucket::new(rate);
        let granted: u64 = std::thread::scope(|scope| {
            let take = || (0..5_000).filter(|_| bucket.take(1, 0, 0).is_ok()).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 10_000);
    }
}
