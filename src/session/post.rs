//! Messages of a device stored outside of a session, for a door that has none at that moment.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::home;
use crate::hub::Authenticated;
use crate::log::DiskStorage;
use crate::shard::budget::Waiting;
use crate::shard::command::{Messages, Post, PostError};
use crate::shard::router::Router;

/// Why messages are not known to be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unstored {
    /// There was no room in time: nothing is stored.
    #[error("the hub takes no more messages now")]
    NoRoom,
    /// The disk did not answer in time.
    #[error("the message is not stored yet; it may still be")]
    Unknown,
    #[error(transparent)]
    Refused(#[from] PostError),
}

/// Stores messages; answered once they are durable. No duplicate is known. `busy_timeout`: how long each of two waits may
/// take, for room and for the disk.
///
/// # Errors
/// `Unstored`.
pub async fn post(
    router: &Router<DiskStorage>,
    identity: &Authenticated,
    messages: Messages,
    busy_timeout: Duration,
) -> Result<(), Unstored> {
    let received = Instant::now();
    let partition = router.partition_of(&identity.identity.device);
    let inbox = router.inbox(partition);
    let price = inbox.budgets.price(messages.payload.len());
    let reserved = match inbox.budgets.try_reserve(partition, price) {
        Ok(reserved) => reserved,
        Err(cause) => {
            let _waiting = Waiting::begin(&inbox.budgets, cause);
            let reserved = tokio::time::timeout(busy_timeout, inbox.budgets.reserve(partition, price)).await;
            reserved.map_err(|_| Unstored::NoRoom)?
        }
    };
    let (reply, answer) = oneshot::channel();
    // Nothing may come between the reservation and this: the post gives the budget back.
    inbox.push_post(Post {
        partition,
        origin: home::origin(identity),
        messages,
        reserved,
        received,
        submitted: Instant::now(),
        reply,
    });
    match tokio::time::timeout(busy_timeout, answer).await {
        Ok(Ok(stored)) => Ok(stored?),
        // The shard is gone: the hub is at the end of its stop.
        Ok(Err(_)) => Err(PostError::Stopping.into()),
        Err(_) => Err(Unstored::Unknown),
    }
}
