//! The maintenance thread of a data directory: prepares segments ahead of the appenders and applies retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::router::Router;
use crate::log::{PrepareError, Storage};
use crate::model::PartitionId;
use crate::model::time::Clock;

/// How often the keeper looks whether an appender used up its spare segment.
const PREPARE_EVERY: Duration = Duration::from_millis(5);
const RETAIN_EVERY: Duration = Duration::from_secs(1);
/// How long to wait after a failure before asking the disk again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the keeper reports.
pub trait KeeperObserver: Send + 'static {
    /// The disk is full (`true`), or has room again.
    fn disk_full(&self, _partition: PartitionId, _is_full: bool) {}
}

impl KeeperObserver for () {}

/// The running thread; stops when dropped.
#[derive(Debug)]
pub struct Keeper {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn start<S: Storage>(
        router: Arc<Router<S>>,
        clock: Arc<dyn Clock>,
        observer: impl KeeperObserver,
    ) -> std::io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || {
            let mut full = vec![false; router.partitions().len()];
            let mut retained = Instant::now();
            while !stop.load(Ordering::Acquire) {
                let mut failed = false;
                for (partition, full) in router.partitions().iter().zip(&mut full) {
                    failed |= prepare(&router, partition.view.as_ref(), full, &observer);
                }
                if retained.elapsed() >= RETAIN_EVERY {
                    retained = Instant::now();
                    for partition in router.partitions() {
                        if let Err(error) = partition.view.retain(clock.now(), partition.filter_covered()) {
                            tracing::warn!(partition = %partition.view.partition(), %error, "retention failed; tried again");
                        }
                    }
                }
                std::thread::park_timeout(if failed { RETRY_AFTER } else { PREPARE_EVERY });
            }
        })?;
        Ok(Self {
            stopping,
            thread: Some(thread),
        })
    }
}

/// Whether it failed.
fn prepare<S: Storage>(
    router: &Router<S>,
    view: &crate::log::PartitionView<S>,
    is_full: &mut bool,
    observer: &impl KeeperObserver,
) -> bool {
    let partition = view.partition();
    match view.prepare() {
        Ok(prepared) => {
            if *is_full {
                *is_full = false;
                observer.disk_full(partition, false);
                tracing::info!(%partition, "the disk has room again");
            }
            if prepared {
                // Batches may be waiting for this segment.
                router.inbox(partition).wake();
            }
            false
        }
        Err(PrepareError::DiskFull) => {
            if !*is_full {
                *is_full = true;
                observer.disk_full(partition, true);
                tracing::error!(%partition, "the disk is full: devices are slowed down until there is room");
            }
            true
        }
        Err(error) => {
            tracing::error!(%partition, %error, "no segment could be prepared; tried again");
            true
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
