//! The group commit: one thread per data directory that makes written records durable, many at a time.
//!
//! A round syncs every partition that has unsynced records and then wakes their shards once. While a round is under way
//! the next group gathers, so the acknowledgement latency of a quiet hub is one sync and the throughput of a busy
//! one is not bound by syncs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::Durability;
use super::router::Router;
use crate::log::Storage;

/// Wakes the syncer.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Bell {
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn wait(&self, timeout: Duration) {
        if !self.rung.load(Ordering::Acquire) {
            std::thread::park_timeout(timeout);
        }
    }

    fn take(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }
}

/// One finished round.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    pub partitions: u32,
    pub elapsed: Duration,
}

/// What the syncer reports.
pub trait SyncObserver: Send + 'static {
    fn synced(&self, _event: Synced) {}
    fn failed(&self, _partition: crate::model::PartitionId, _error: &crate::log::SyncError) {}
}

impl SyncObserver for () {}

/// The running thread; stops and syncs a last time when dropped.
#[derive(Debug)]
pub struct Syncer {
    bell: Arc<Bell>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// `gap`: the least time between the starts of two rounds; raising it saves CPU and costs latency.
    pub fn start<S: Storage>(
        router: Arc<Router<S>>,
        bell: Arc<Bell>,
        durability: Durability,
        gap: Duration,
        observer: impl SyncObserver,
    ) -> std::io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (rings, stop) = (bell.clone(), stopping.clone());
        let gap = match durability {
            Durability::Sync | Durability::Os => gap,
            Durability::Interval(interval) => interval,
        };
        let thread = std::thread::Builder::new().name("syncer".into()).spawn(move || {
            let _ = rings.thread.set(std::thread::current());
            while !stop.load(Ordering::Acquire) {
                rings.wait(Duration::from_millis(500));
                if rings.take() {
                    let started = Instant::now();
                    round(&router, &observer);
                    std::thread::sleep(gap.saturating_sub(started.elapsed()));
                }
            }
            round(&router, &observer);
        })?;
        Ok(Self {
            bell,
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn round<S: Storage>(router: &Router<S>, observer: &impl SyncObserver) {
    let started = Instant::now();
    let mut partitions = 0;
    for partition in router.partitions() {
        if partition.view.is_unsynced() && !partition.view.is_poisoned() {
            partitions += 1;
            if let Err(error) = partition.view.sync() {
                tracing::error!(partition = %partition.view.partition(), %error, "sync failed; the partition is closed until the hub restarts");
                observer.failed(partition.view.partition(), &error);
            }
            // The shard answers this partition's devices while the next one is synced.
            router.inbox(partition.view.partition()).wake();
        }
    }
    if partitions > 0 {
        observer.synced(Synced {
            partitions,
            elapsed: started.elapsed(),
        });
    }
}
