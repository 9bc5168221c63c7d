//! Has the presence of devices stored soon after it changes, and a last time when the hub stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::hub::Presence;
use crate::hub::presence::FLUSH_MAX;
use crate::model::PartitionId;
use crate::model::time::Clock;

/// What changes within this time shares a batch; "at once" means this late at most.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// The task that flushes.
pub(super) struct Keeping {
    presence: Presence,
    clock: Arc<dyn Clock>,
    partition_count: u16,
    task: JoinHandle<()>,
}

impl Keeping {
    pub(super) fn start(presence: Presence, clock: Arc<dyn Clock>, partition_count: u16) -> Self {
        let task = actix_rt::spawn(keep(presence.clone(), clock.clone(), partition_count));
        Self {
            presence,
            clock,
            partition_count,
            task,
        }
    }

    /// Stores that nobody is connected any more; whether it was done in time. If not, the next start does it.
    pub(super) async fn finish(&self, deadline: Instant) -> bool {
        self.task.abort();
        self.presence.close_all(self.clock.now());
        let partitions = || (0..self.partition_count).map(PartitionId);
        // At least once, even if a drain has used up the time.
        loop {
            for partition in partitions() {
                flush(&self.presence, partition, &*self.clock, true).await;
            }
            if partitions().all(|partition| self.presence.held(partition) == 0) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn keep(presence: Presence, clock: Arc<dyn Clock>, partition_count: u16) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        for partition in (0..partition_count).map(PartitionId) {
            flush(&presence, partition, &*clock, false).await;
        }
    }
}

/// All that is due of a partition. A failed batch is due again a second later.
async fn flush(presence: &Presence, partition: PartitionId, clock: &dyn Clock, is_final: bool) {
    loop {
        let (sender, receiver) = oneshot::channel();
        presence.flush(partition, clock.now(), is_final, move |stored| {
            drop(sender.send(stored))
        });
        match receiver.await {
            Ok(Ok(FLUSH_MAX)) => {}
            Ok(Ok(_)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(%partition, %error, "the presence of devices was not stored; tried again");
                return;
            }
        }
    }
}
