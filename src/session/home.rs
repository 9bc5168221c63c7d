//! A session of a device or module on its home shard: opened, and closed however its door ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::hub::Authenticated;
use crate::hub::filter::DeviceKey;
use crate::log::DiskStorage;
use crate::model::{Epoch, PartitionId};
use crate::shard::command::{Command, OpenError, OpenSession, Opened, SessionId};
use crate::shard::inbox::Inbox;
use crate::shard::link::SessionLink;
use crate::shard::router::Router;
use crate::wire::stamp::Origin;

/// Between two tries to tell a shard whose queue is full.
const CLOSE_RETRY: Duration = Duration::from_millis(5);

/// A session that its home shard has opened. Dropping it closes it there.
#[derive(Debug)]
pub struct HomeSession {
    pub session: SessionId,
    pub partition: PartitionId,
    /// How far it is acknowledged, and whether it must end.
    pub link: Arc<SessionLink>,
    /// Where its appends go.
    pub inbox: Arc<Inbox>,
    pub opened: Opened,
    _closing: Closing,
}

/// Opens a session of who proved itself. `epoch`: 0 asks for the next one. `is_early`: asked for in early data, which an
/// attacker may repeat.
///
/// The door looks at the identity once more after this: a change of it between the proof and the open found no session
/// to end. Giving up the wait leaves no session behind.
///
/// # Errors
/// `OpenError`; `Busy` too when the shard's queue is full.
pub async fn open(
    router: &Router<DiskStorage>,
    identity: &Authenticated,
    epoch: Epoch,
    is_early: bool,
) -> Result<HomeSession, OpenError> {
    let device = &identity.identity.device;
    let partition = router.partition_of(device);
    let (reply, answer) = oneshot::channel();
    let link = Arc::new(SessionLink::default());
    link.set_proof(Some(identity.proof));
    let open = OpenSession {
        session: router.new_session(),
        key: DeviceKey {
            device: device.clone(),
            generation: identity.generation,
        },
        partition,
        origin: origin(identity),
        epoch,
        is_early,
        link,
        reply,
    };
    ask(router.inbox(partition), open, answer).await
}

pub(super) async fn ask(
    inbox: &Arc<Inbox>,
    open: OpenSession,
    answer: oneshot::Receiver<Result<Opened, OpenError>>,
) -> Result<HomeSession, OpenError> {
    let (session, partition, link) = (open.session, open.partition, open.link.clone());
    inbox.push_control(Command::Open(open)).map_err(|_| OpenError::Busy)?;
    // From here on the shard may have the session, also when nobody waits for its answer any more.
    let mut closing = Closing {
        session,
        inbox: Some(inbox.clone()),
    };
    match answer.await.unwrap_or(Err(OpenError::Stopping)) {
        Ok(opened) => Ok(HomeSession {
            session,
            partition,
            link,
            inbox: inbox.clone(),
            opened,
            _closing: closing,
        }),
        Err(error) => {
            closing.inbox = None;
            Err(error)
        }
    }
}

/// Who sends, as the log keeps it; the shard fills in the epoch.
pub fn origin(identity: &Authenticated) -> Origin {
    let module = identity.identity.module.as_ref();
    Origin {
        device_id: identity.identity.device.as_str().to_owned(),
        module_id: module.map_or_else(String::new, |module| module.as_str().to_owned()),
        generation: identity.generation.0,
        epoch: 0,
        auth_method: identity.method.json().to_owned(),
    }
}

/// Tells the home shard when it is dropped.
#[derive(Debug)]
struct Closing {
    session: SessionId,
    /// `None`: there is nothing to close.
    inbox: Option<Arc<Inbox>>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(inbox) = self.inbox.take() else { return };
        let session = self.session;
        if inbox.push_control(Command::Close(session)).is_ok() {
            return;
        }
        // Without a runtime the process is ending, and the shard with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while inbox.push_control(Command::Close(session)).is_err() {
                    tokio::time::sleep(CLOSE_RETRY).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{Asking, OPENED, SESSION, asking, opened, popped_open};
    use crate::shard::budget::Budgets;
    use crate::shard::inbox::Full;

    fn inbox() -> Arc<Inbox> {
        Inbox::new(Budgets::new(1 << 20, 1 << 20, 1))
    }

    fn is_closed(inbox: &Inbox) -> bool {
        matches!(inbox.pop(), Some(Command::Close(SESSION)))
    }

    #[tokio::test]
    async fn a_session_is_closed_when_its_door_goes() {
        let inbox = inbox();
        let home = opened(&inbox, Ok(OPENED)).await.unwrap();
        assert_eq!(home.opened, OPENED);
        assert_eq!(inbox.depth(), 0);
        drop(home);
        assert!(is_closed(&inbox));
        assert_eq!(inbox.depth(), 0);
    }

    #[tokio::test]
    async fn a_session_that_was_refused_is_not_closed() {
        let inbox = inbox();
        let refused = opened(&inbox, Err(OpenError::EarlyData)).await.unwrap_err();
        assert_eq!(refused, OpenError::EarlyData);
        assert_eq!(inbox.depth(), 0);
        let Asking { open, answer } = asking();
        let shard = async { drop(popped_open(&inbox)) };
        let (stopped, ()) = tokio::join!(ask(&inbox, open, answer), shard);
        assert_eq!(stopped.unwrap_err(), OpenError::Stopping);
    }

    #[tokio::test]
    async fn giving_up_the_wait_leaves_no_session_behind() {
        let inbox = inbox();
        let Asking { open, answer } = asking();
        let waited = tokio::time::timeout(Duration::ZERO, ask(&inbox, open, answer)).await;
        assert!(waited.is_err());
        popped_open(&inbox);
        assert!(is_closed(&inbox));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_is_busy_for_an_open_and_waited_for_by_a_close() {
        let inbox = inbox();
        let home = opened(&inbox, Ok(OPENED)).await.unwrap();
        while inbox.push_control(Command::Close(SessionId(0))) != Err(Full) {}
        let Asking { open, answer } = asking();
        assert_eq!(ask(&inbox, open, answer).await.unwrap_err(), OpenError::Busy);
        let depth = inbox.depth();
        drop(home);
        tokio::time::sleep(CLOSE_RETRY * 3).await;
        assert_eq!(inbox.depth(), depth);
        for _ in 0..depth {
            assert!(!is_closed(&inbox));
        }
        tokio::time::sleep(CLOSE_RETRY * 3).await;
        assert!(is_closed(&inbox));
    }
}
