//! Durations with HDR precision, recorded without a lock.
//!
//! The layout is HdrHistogram's: values are counted in steps of 128 ns, exact up to 2048 steps (262 us), above that
//! with 11 significant bits (0.1%), up to 64 s; longer ones count as the longest. A recording is two relaxed atomic additions;
//! any thread may record, but a cell that one shard owns keeps its cache lines at home.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Nanoseconds of a step, as a shift.
const STEP_SHIFT: u32 = 7;
const SUB_BITS: u32 = 11;
const SUB: u64 = 1 << SUB_BITS;
const HALF: u64 = SUB / 2;
/// Doublings above the exact range: 2048 * 128 ns * 2^18 is more than 60 s.
const DOUBLINGS: u64 = 18;
const CELLS: usize = (SUB + DOUBLINGS * HALF) as usize;
/// Largest number of steps that has a cell.
const STEPS_MAX: u64 = (SUB << DOUBLINGS) - 1;

const _: () = assert!((STEPS_MAX << STEP_SHIFT) > 60_000_000_000, "a minute fits");

/// One distribution of durations; about 160 KiB, of which only the cells that are hit are ever touched.
pub struct Histogram {
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: (0..CELLS).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
        }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.snapshot().count())
            .finish_non_exhaustive()
    }
}

impl Histogram {
    pub fn record(&self, duration: Duration) {
        self.record_n(duration, 1);
    }

    /// Counts `duration` for each of `count` messages that took it.
    pub fn record_n(&self, duration: Duration, count: u64) {
        let nanos = duration
            .as_secs()
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::from(duration.subsec_nanos()));
        self.counts[index_of(nanos)].fetch_add(count, Relaxed);
        self.sum_nanos.fetch_add(nanos.saturating_mul(count), Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.add_to(&mut snapshot);
        snapshot
    }

    /// Adds this cell's counts, so that a scrape merges all shards into one.
    pub fn add_to(&self, snapshot: &mut Snapshot) {
        for (sum, cell) in snapshot.counts.iter_mut().zip(&self.counts) {
            *sum += cell.load(Relaxed);
        }
        snapshot.sum_nanos += u128::from(self.sum_nanos.load(Relaxed));
    }
}

fn index_of(nanos: u64) -> usize {
    let steps = (nanos >> STEP_SHIFT).min(STEPS_MAX);
    let doubling = (steps >> SUB_BITS).checked_ilog2().map_or(0, |log| log + 1);
    // Above the exact range a value keeps its upper 11 bits, of which the first is always set: half a table a doubling.
    let sub = steps >> doubling;
    (u64::from(doubling) * HALF + sub) as usize
}

/// Largest duration that falls into a cell, in nanoseconds.
fn highest_nanos(index: usize) -> u64 {
    let index = index as u64;
    let doubling = (index / HALF).saturating_sub(1);
    let sub = index - doubling * HALF;
    (((sub + 1) << doubling) << STEP_SHIFT) - 1
}

/// Counts of one or more histograms at one time.
#[derive(Clone)]
pub struct Snapshot {
    counts: Box<[u64]>,
    sum_nanos: u128,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            counts: vec![0; CELLS].into(),
            sum_nanos: 0,
        }
    }
}

impl Snapshot {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }

    /// For each bound (rising), how many recordings lie in a cell that ends at or below it: exact to 0.1%.
    pub fn cumulative(&self, bounds: &[Duration]) -> Vec<u64> {
        let mut counts = self.counts.iter().enumerate().peekable();
        let mut total = 0;
        let up_to = |bound: &Duration| {
            let bound = bound.as_nanos();
            while let Some((_, count)) = counts.next_if(|(index, _)| u128::from(highest_nanos(*index)) <= bound) {
                total += count;
            }
            total
        };
        bounds.iter().map(up_to).collect()
    }

    /// The duration that `quantile` (0 to 1) of the recordings do not exceed; zero when there are none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count;
            if total >= wanted {
                return Duration::from_nanos(highest_nanos(index));
            }
        }
        Duration::ZERO
    }

    /// What was recorded after `earlier`, a snapshot of the same cells.
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum_nanos: self.sum_nanos.saturating_sub(earlier.sum_nanos),
        }
    }

    /// The same as an `hdrhistogram::Histogram` of nanoseconds, for its logs and iterators.
    pub fn to_hdr(&self) -> hdrhistogram::Histogram<u64> {
        let mut hdr = hdrhistogram::Histogram::new_with_bounds(1 << STEP_SHIFT, 64_000_000_000 * 2, 3)
            .expect("bounds and digits are in hdrhistogram's range");
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            hdr.record_n(highest_nanos(index), *count)
                .expect("every cell lies below the upper bound");
        }
        hdr
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    /// A small generator, so that the values are the same in every run.
    fn values(count: usize) -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..count).map(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Spread over all magnitudes from 1 ns to 60 s.
            (state >> 8) % (1 << (state % 36)).min(60_000_000_000)
        })
    }

    #[test]
    fn cells_are_contiguous_and_hold_their_values() {
        let mut lowest = 0;
        for index in 0..CELLS {
            let highest = highest_nanos(index);
            assert_eq!(
                (index_of(lowest), index_of(highest)),
                (index, index),
                "{lowest} to {highest}"
            );
            lowest = highest + 1;
        }
        assert_eq!(index_of(lowest), CELLS - 1, "longer ones count as the longest");
        assert_eq!(index_of(u64::MAX), CELLS - 1);
    }

    #[test]
    fn quantiles_agree_with_hdrhistogram() {
        let ours = Histogram::default();
        let mut theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 64_000_000_000, 3).unwrap();
        for nanos in values(200_000) {
            ours.record(Duration::from_nanos(nanos));
            theirs.record(nanos).unwrap();
        }
        let snapshot = ours.snapshot();
        assert_eq!(snapshot.count(), theirs.len());
        for quantile in [0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0] {
            let ours = snapshot.quantile(quantile).as_nanos() as f64;
            let theirs = theirs.value_at_quantile(quantile) as f64;
            let error = (ours - theirs).abs();
            assert!(error <= 128.0 + theirs * 0.002, "{quantile}: {ours} {theirs}");
            let converted = snapshot.to_hdr().value_at_quantile(quantile) as f64;
            assert!(
                (converted - theirs).abs() <= 256.0 + theirs * 0.003,
                "{quantile}: {converted} {theirs}"
            );
        }
        let mean = snapshot.sum_seconds() / snapshot.count() as f64 * 1e9;
        assert!((mean / theirs.mean() - 1.0).abs() < 0.001, "{mean} {}", theirs.mean());
    }

    #[test]
    fn bounds_count_what_lies_below() {
        let histogram = Histogram::default();
        for (micros, count) in [(50, 3), (150, 2), (5_000, 1), (90_000_000, 1)] {
            histogram.record_n(Duration::from_micros(micros), count);
        }
        let bounds = [100, 1_000, 10_000, 1_000_000].map(Duration::from_micros);
        assert_eq!(histogram.snapshot().cumulative(&bounds), [3, 5, 6, 6]);
        assert_eq!(histogram.snapshot().count(), 7);
    }

    #[test]
    fn snapshots_merge_and_subtract() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.record(Duration::from_millis(1));
        b.record_n(Duration::from_millis(5), 9);
        let earlier = a.snapshot();
        let mut merged = a.snapshot();
        b.add_to(&mut merged);
        assert_eq!(merged.count(), 10);
        let later = merged.since(&earlier);
        assert_eq!(later.count(), 9);
        assert!((later.sum_seconds() - 0.045).abs() < 1e-9);
        assert_eq!(Snapshot::default().quantile(0.99), Duration::ZERO);
    }

    #[test]
    fn recordings_of_several_threads_are_all_counted() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10_000).for_each(|n| histogram.record(Duration::from_micros(n % 10))));
            }
        });
        assert_eq!(histogram.snapshot().count(), 20_000);
    }
}
