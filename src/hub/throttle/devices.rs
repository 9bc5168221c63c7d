//! The buckets of devices that have no session to keep them: a bounded number, each forgotten once it is full again, so
//! that it need not be told from a new one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::bucket::{Bucket, Rate};
use crate::hub::identity::IdentityName;

const SHARDS: usize = 16;
/// Buckets of one shard. When so many devices are above their rate's beginning at a time, further ones are left to the
/// hub's own throttles.
const BUCKETS_MAX: usize = 8 * 1024;
/// Between two looks through a shard that is full.
const SWEEP_NANOS: u64 = 100_000_000;

/// What one device may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRates {
    pub messages: Rate,
    pub bytes: Rate,
}

impl DeviceRates {
    pub fn is_none(&self) -> bool {
        self.messages.is_none() && self.bytes.is_none()
    }
}

/// What one device has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceBuckets {
    /// What the buckets count by.
    rates: DeviceRates,
    messages: Bucket,
    bytes: Bucket,
}

impl DeviceBuckets {
    /// Takes both; when they may be used.
    pub fn take(&mut self, rates: &DeviceRates, messages: u64, bytes: u64, now: u64) -> u64 {
        // Units that were spent at another rate mean nothing at this one.
        if self.rates != *rates {
            *self = Self {
                rates: *rates,
                ..Self::default()
            };
        }
        let messages = self.messages.take(rates.messages, messages, now);
        let bytes = self.bytes.take(rates.bytes, bytes, now);
        messages.max(bytes)
    }

    fn is_full(&self, rates: &DeviceRates, now: u64) -> bool {
        let is_full = |rate: Rate, bucket: Bucket| rate.is_none() || bucket.is_full(rate, now);
        self.rates != *rates || (is_full(rates.messages, self.messages) && is_full(rates.bytes, self.bytes))
    }
}

#[derive(Default)]
struct Shard {
    buckets: HashMap<IdentityName, DeviceBuckets>,
    swept: u64,
}

pub struct Devices {
    shards: [Mutex<Shard>; SHARDS],
}

impl Devices {
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Lets `decide` take from a device's buckets; what it took is kept only if it says so (`Ok`).
    pub fn with<T, E>(
        &self,
        rates: &DeviceRates,
        name: &IdentityName,
        now: u64,
        decide: impl FnOnce(&mut DeviceBuckets) -> Result<T, E>,
    ) -> Result<T, E> {
        let index = name.device.hash64() as usize % SHARDS;
        let mut shard = self.shards[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.buckets.get_mut(name) {
            let mut buckets = *known;
            let decided = decide(&mut buckets)?;
            *known = buckets;
            return Ok(decided);
        }
        let mut buckets = DeviceBuckets::default();
        let decided = decide(&mut buckets)?;
        if shard.buckets.len() >= BUCKETS_MAX && now >= shard.swept.saturating_add(SWEEP_NANOS) {
            shard.swept = now;
            shard.buckets.retain(|_, buckets| !buckets.is_full(rates, now));
        }
        if shard.buckets.len() < BUCKETS_MAX {
            shard.buckets.insert(name.clone(), buckets);
        }
        Ok(decided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeviceId;

    const SECOND: u64 = 1_000_000_000;
    const RATES: DeviceRates = DeviceRates {
        messages: Rate {
            per_second: 1,
            burst: 2,
        },
        bytes: Rate {
            per_second: 1000,
            burst: 1000,
        },
    };

    fn name(device: &str) -> IdentityName {
        IdentityName {
            device: DeviceId::new(device).unwrap(),
            module: None,
        }
    }

    fn take(devices: &Devices, device: &str, messages: u64, bytes: u64, now: u64) -> u64 {
        let taken = devices.with(&RATES, &name(device), now, |buckets| {
            Ok::<_, ()>(buckets.take(&RATES, messages, bytes, now))
        });
        taken.unwrap()
    }

    #[test]
    fn the_later_of_messages_and_bytes_counts_for_each_device() {
        let devices = Devices::new();
        assert_eq!(take(&devices, "a", 2, 10, 0), 0);
        assert_eq!(take(&devices, "a", 1, 10, 0), SECOND);
        assert_eq!(take(&devices, "b", 1, 3000, 0), 2 * SECOND);
        assert_eq!(take(&devices, "c", 2, 0, 0), 0);
    }

    #[test]
    fn another_rate_begins_anew() {
        let mut buckets = DeviceBuckets::default();
        let year = 365 * 86_400 * SECOND;
        let fast = DeviceRates {
            messages: Rate {
                per_second: 1_000_000,
                burst: 10,
            },
            bytes: Rate::NONE,
        };
        assert_eq!(buckets.take(&fast, 10, 0, year), year);
        assert_eq!(buckets.take(&RATES, 2, 10, year), year, "a full burst of the new rate");
        assert_eq!(buckets.take(&RATES, 1, 10, year), year + SECOND);
        assert!(!buckets.is_full(&RATES, year) && buckets.is_full(&fast, year));
    }

    #[test]
    fn what_was_not_let_in_takes_nothing() {
        let devices = Devices::new();
        assert_eq!(take(&devices, "a", 1, 0, 0), 0);
        let refused = devices.with(&RATES, &name("a"), 0, |buckets| {
            buckets.take(&RATES, 1, 0, 0);
            Err::<(), _>("no")
        });
        assert_eq!(refused, Err("no"));
        assert_eq!(take(&devices, "a", 1, 0, 0), 0);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_full_ones_are_forgotten() {
        let devices = Devices::new();
        let kept = || -> usize {
            devices
                .shards
                .iter()
                .map(|shard| shard.lock().unwrap().buckets.len())
                .sum()
        };
        let bound = SHARDS * BUCKETS_MAX;
        for index in 0..bound + bound / 4 {
            take(&devices, &format!("d{index}"), 2, 0, 0);
        }
        assert!(kept() <= bound && kept() > bound / 2, "{}", kept());
        // They have all rested: the next device of each shard finds them gone.
        for index in 0..SHARDS * 100 {
            take(&devices, &format!("e{index}"), 2, 0, 100 * SECOND);
        }
        assert!(kept() <= SHARDS * 100, "{}", kept());
        assert_eq!(take(&devices, "d0", 2, 0, 100 * SECOND), 100 * SECOND);
    }
}
