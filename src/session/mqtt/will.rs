//! The will of a session: telemetry that is stored when its connection ends without a goodbye.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Door;
use super::greeting::PreparedWill;
use crate::hub::Authenticated;
use crate::model::Message;
use crate::session::post::post;
use crate::shard::command::Messages;
use crate::wire::batch::BatchBuilder;

/// How long a will waits for room, and for the disk.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes a will after its delay, unless it is taken back: `Some`, to be kept for the session's next connection.
pub(super) fn publish(door: &Arc<Door>, identity: Authenticated, will: PreparedWill) -> Option<oneshot::Sender<()>> {
    let door = door.clone();
    if will.delay == 0 {
        actix_rt::spawn(async move { store(&door, &identity, &will.message).await });
        return None;
    }
    let (take_back, taken_back) = oneshot::channel();
    actix_rt::spawn(async move {
        let delay = tokio::time::sleep(Duration::from_secs(will.delay.into()));
        tokio::select! {
            taken = taken_back => if taken.is_ok() { return },
            () = delay => {}
            () = door.shutdown.stopping() => {}
        }
        store(&door, &identity, &will.message).await;
    });
    Some(take_back)
}

async fn store(door: &Door, identity: &Authenticated, message: &Message) {
    let mut builder = BatchBuilder::default();
    builder.push(message);
    let messages = Messages {
        count: 1,
        payload: builder.finish_payload(),
    };
    match post(&door.router, identity, messages, BUSY_TIMEOUT).await {
        Ok(()) => door.observer.will_published(),
        Err(error) => {
            let device = identity.identity.device.as_str();
            tracing::warn!(%error, device, "a will was not stored");
        }
    }
}
