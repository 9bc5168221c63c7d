//! Bytes of batches on their way into the log: how many there may be, and who waits for room among them.
//!
//! ```text
//!   a batch ──> its partition's budget ──> its shard's budget ──> the queue ──> the log: both are given back
//! ```
//!
//! The shard's budget bounds memory, whatever the number of partitions. A partition's leaves its neighbours on the same
//! shard theirs while it is flooded, or its log has no room.
//!
//! Invariant: the order of taking is the same for all, so that whoever waits holds nothing that another waits for in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::model::PartitionId;

/// What the smallest batch takes.
pub const APPEND_BUDGET_BYTES_MIN: u32 = 4 * 1024;

/// What keeps a session from being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has as much unacknowledged as it may.
    Session,
    /// The partition's budget is used up.
    Partition,
    /// The shard's budget is used up.
    Shard,
}

impl Cause {
    pub const ALL: [Self; 3] = [Self::Session, Self::Partition, Self::Shard];
}

/// Bytes taken from the budgets. They are not given back by themselves: the shard does that.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is reserved goes to the shard with its batch"]
pub struct Reserved {
    partition: PartitionId,
    bytes: u32,
}

impl Reserved {
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// Of one shard.
pub struct Budgets {
    shard: Semaphore,
    shard_bytes: u32,
    /// By partition id; those of other shards are never touched.
    partitions: Box<[Semaphore]>,
    partition_bytes: u32,
    /// By cause.
    waits: [Wait; Cause::ALL.len()],
    origin: Instant,
}

/// Time that is over, and since when those wait who still do. A long wait counts while it lasts.
#[derive(Default)]
struct Wait {
    over_ns: AtomicU64,
    waiting: AtomicU64,
    /// Sum over those who wait, wrapping.
    since_ns: AtomicU64,
}

impl Budgets {
    /// `partition_bytes` above `shard_bytes` is as much as that.
    pub fn new(shard_bytes: u32, partition_bytes: u32, partition_count: u16) -> Self {
        let partition_bytes = partition_bytes.min(shard_bytes);
        let of_partition = || Semaphore::new(partition_bytes as usize);
        Self {
            shard: Semaphore::new(shard_bytes as usize),
            shard_bytes,
            partitions: std::iter::repeat_with(of_partition)
                .take(partition_count.into())
                .collect(),
            partition_bytes,
            waits: Default::default(),
            origin: Instant::now(),
        }
    }

    /// Batches that may have been let through at a time.
    pub(super) fn batches_max(&self) -> usize {
        (self.shard_bytes / APPEND_BUDGET_BYTES_MIN) as usize
    }

    fn of(&self, partition: PartitionId) -> &Semaphore {
        &self.partitions[usize::from(partition.0)]
    }

    /// What a batch of this size takes. One larger than a whole budget takes all of it, so that it passes alone.
    pub fn price(&self, batch_bytes: usize) -> u32 {
        u32::try_from(batch_bytes)
            .unwrap_or(u32::MAX)
            .clamp(APPEND_BUDGET_BYTES_MIN, self.partition_bytes)
    }

    /// Takes `bytes`, a price, if there are enough now.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn try_reserve(&self, partition: PartitionId, bytes: u32) -> Result<Reserved, Cause> {
        let of_partition = self
            .of(partition)
            .try_acquire_many(bytes)
            .map_err(|_| Cause::Partition)?;
        let of_shard = self.shard.try_acquire_many(bytes).map_err(|_| Cause::Shard)?;
        Ok(take(partition, bytes, [of_partition, of_shard]))
    }

    /// Waits for `bytes`, a price, in the order of asking. Cancelling the wait takes nothing.
    pub async fn reserve(&self, partition: PartitionId, bytes: u32) -> Reserved {
        const NEVER_CLOSED: &str = "a budget is never closed";
        let of_partition = self.of(partition).acquire_many(bytes).await;
        let of_partition = of_partition.expect(NEVER_CLOSED);
        let of_shard = self.shard.acquire_many(bytes).await.expect(NEVER_CLOSED);
        take(partition, bytes, [of_partition, of_shard])
    }

    pub(super) fn release(&self, reserved: Reserved) {
        let Reserved { partition, bytes } = reserved;
        self.shard.add_permits(bytes as usize);
        self.of(partition).add_permits(bytes as usize);
    }

    /// Bytes of all batches on their way now.
    pub fn inflight_bytes(&self) -> u32 {
        taken(&self.shard, self.shard_bytes)
    }

    /// Bytes of a partition's.
    pub fn partition_inflight_bytes(&self, partition: PartitionId) -> u32 {
        taken(self.of(partition), self.partition_bytes)
    }

    /// Nanoseconds for which sessions have waited for this cause so far, summed over sessions. Two readings that meet a
    /// beginning or an end may be a little out of order.
    pub fn waited_ns(&self, cause: Cause) -> u64 {
        let wait = &self.waits[cause as usize];
        let (over, waiting) = (wait.over_ns.load(Relaxed), wait.waiting.load(Relaxed));
        let lasting = waiting
            .wrapping_mul(self.now_ns())
            .wrapping_sub(wait.since_ns.load(Relaxed));
        // A beginning that is counted by half reads as a huge time.
        over + if lasting < 1 << 62 { lasting } else { 0 }
    }

    /// Sessions that wait for this cause now.
    pub fn waiting(&self, cause: Cause) -> u64 {
        self.waits[cause as usize].waiting.load(Relaxed)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn take(partition: PartitionId, bytes: u32, permits: [SemaphorePermit<'_>; 2]) -> Reserved {
    permits.into_iter().for_each(SemaphorePermit::forget);
    Reserved { partition, bytes }
}

fn taken(budget: &Semaphore, bytes: u32) -> u32 {
    bytes - u32::try_from(budget.available_permits()).unwrap_or(bytes).min(bytes)
}

/// A session counts as waiting for as long as this lives.
pub struct Waiting {
    budgets: Arc<Budgets>,
    cause: Cause,
    since_ns: u64,
}

impl Waiting {
    pub fn begin(budgets: &Arc<Budgets>, cause: Cause) -> Self {
        let since_ns = budgets.now_ns();
        let wait = &budgets.waits[cause as usize];
        wait.since_ns.fetch_add(since_ns, Relaxed);
        wait.waiting.fetch_add(1, Relaxed);
        Self {
            budgets: budgets.clone(),
            cause,
            since_ns,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let wait = &self.budgets.waits[self.cause as usize];
        wait.waiting.fetch_sub(1, Relaxed);
        wait.since_ns.fetch_sub(self.since_ns, Relaxed);
        let over = self.budgets.now_ns().saturating_sub(self.since_ns);
        wait.over_ns.fetch_add(over, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOT: PartitionId = PartitionId(0);
    const CALM: PartitionId = PartitionId(2);

    #[test]
    fn a_hot_partition_leaves_the_others_their_share() {
        let budgets = Budgets::new(96 << 10, 64 << 10, 4);
        let hot = budgets.try_reserve(HOT, 60 << 10).unwrap();
        assert_eq!(budgets.try_reserve(HOT, 8 << 10), Err(Cause::Partition));
        let calm = budgets.try_reserve(CALM, 32 << 10).unwrap();
        assert_eq!(budgets.try_reserve(CALM, 8 << 10), Err(Cause::Shard));
        assert_eq!(budgets.partition_inflight_bytes(HOT), 60 << 10);
        assert_eq!(budgets.partition_inflight_bytes(CALM), 32 << 10);
        assert_eq!(budgets.inflight_bytes(), 92 << 10);
        budgets.release(hot);
        budgets.release(calm);
        assert_eq!(budgets.inflight_bytes(), 0);
        assert_eq!(budgets.partition_inflight_bytes(HOT), 0);
    }

    #[test]
    fn a_batch_above_a_budget_passes_alone() {
        let budgets = Budgets::new(64 << 10, 1 << 30, 1);
        assert_eq!(budgets.price(1), APPEND_BUDGET_BYTES_MIN);
        assert_eq!(budgets.price(10 << 20), 64 << 10);
        let all = budgets.try_reserve(HOT, budgets.price(10 << 20)).unwrap();
        assert!(budgets.try_reserve(HOT, APPEND_BUDGET_BYTES_MIN).is_err());
        budgets.release(all);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_takes_nothing() {
        let budgets = Budgets::new(8 << 10, 8 << 10, 3);
        let all = budgets.try_reserve(HOT, 8 << 10).unwrap();
        // It gets its partition's part and waits for the shard's.
        let waited = tokio::time::timeout(Duration::from_secs(1), budgets.reserve(CALM, 4 << 10)).await;
        assert!(waited.is_err());
        assert_eq!(budgets.partition_inflight_bytes(CALM), 0);
        budgets.release(all);
        let reserved = budgets.reserve(CALM, 4 << 10).await;
        assert_eq!((reserved.bytes(), budgets.inflight_bytes()), (4 << 10, 4 << 10));
        budgets.release(reserved);
    }

    #[test]
    fn a_wait_counts_while_it_lasts_and_stays_counted() {
        let budgets = Arc::new(Budgets::new(8 << 10, 8 << 10, 1));
        assert_eq!(budgets.waited_ns(Cause::Shard), 0);
        let waiting = [Cause::Shard, Cause::Shard].map(|cause| Waiting::begin(&budgets, cause));
        std::thread::sleep(Duration::from_millis(2));
        let lasting = budgets.waited_ns(Cause::Shard);
        assert!(lasting >= 4_000_000, "{lasting}");
        assert_eq!(budgets.waiting(Cause::Shard), 2);
        drop(waiting);
        let over = budgets.waited_ns(Cause::Shard);
        assert!(over >= lasting);
        assert_eq!(budgets.waited_ns(Cause::Shard), over, "it does not go on");
        assert_eq!(budgets.waited_ns(Cause::Partition), 0);
    }
}
