//! Ends what nobody looks at: messages to devices that expire while the device is away, feedback that
//! nobody takes, and old events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::hub::{Events, Feedbacks, Outboxes};
use crate::model::PartitionId;
use crate::model::time::Clock;

/// How late the end of an expired message may be told. A device or service that looks sees it at once.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What is gone through.
pub(super) struct Swept {
    pub outboxes: Outboxes,
    pub feedbacks: Feedbacks,
    pub events: Events,
}

/// Goes through all of it, page by page, until the task is dropped.
pub(super) async fn sweep(swept: Swept, clock: Arc<dyn Clock>, partition_count: u16) {
    let Swept {
        outboxes,
        feedbacks,
        events,
    } = swept;
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        for partition in (0..partition_count).map(PartitionId) {
            let mut after = None;
            loop {
                let page = page(|done| outboxes.sweep(partition, after, clock.now(), done)).await;
                after = next(partition, page.map(|page| page.map(|swept| swept.next)));
                if after.is_none() {
                    break;
                }
            }
            loop {
                let page = page(|done| feedbacks.sweep(partition, after, clock.now(), done)).await;
                after = next(partition, page.map(|page| page.map(|swept| swept.next)));
                if after.is_none() {
                    break;
                }
            }
            loop {
                match page(|done| events.sweep(partition, clock.now(), done)).await {
                    Some(Ok(0)) | None => break,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::warn!(%partition, %error, "old events were not dropped; tried again");
                        break;
                    }
                }
            }
        }
    }
}

/// `None` when the store is closed.
async fn page<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |value| drop(sender.send(value))));
    receiver.await.ok()
}

/// Where the sweep goes on; a failed page ends this round of it.
fn next<E: std::fmt::Display>(partition: PartitionId, page: Option<Result<Option<Vec<u8>>, E>>) -> Option<Vec<u8>> {
    match page? {
        Ok(next) => next,
        Err(error) => {
            tracing::warn!(%partition, %error, "expired messages were not ended; tried again");
            None
        }
    }
}
