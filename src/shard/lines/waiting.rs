//! Messages to a device: the session that takes them is told when one waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

use super::{Lines, Shared};
use crate::hub::IdentityName;

#[derive(Default)]
pub(super) struct Bell {
    bell: Notify,
    is_replaced: AtomicBool,
}

/// Another session listens in this one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another session of the same identity took this one's place")]
pub struct Replaced;

/// Rings when a message may wait for the identity.
pub struct Waiting {
    bell: Arc<Bell>,
    shared: Weak<Shared>,
    name: IdentityName,
    listener: u64,
}

impl Waiting {
    /// Completes after a ring; one before the call completes it at once.
    ///
    /// # Errors
    /// `Replaced`.
    pub async fn rings(&self) -> Result<(), Replaced> {
        self.bell.bell.notified().await;
        if self.bell.is_replaced.load(Ordering::Acquire) {
            return Err(Replaced);
        }
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.change(&self.name, |line| {
                if line
                    .waiting
                    .as_ref()
                    .is_some_and(|(listener, _)| *listener == self.listener)
                {
                    line.waiting = None;
                }
            });
        }
    }
}

impl Lines {
    /// Listens from now on, in place of whoever did before. What waits already is for the caller to look for, after this
    /// call.
    pub fn listen_for_messages(&self, name: &IdentityName) -> Waiting {
        let bell = Arc::new(Bell::default());
        let listener = self.shared.listener();
        let mut part = self.shared.part(name);
        let earlier = part
            .entry(name.clone())
            .or_default()
            .waiting
            .replace((listener, bell.clone()));
        if let Some((_, earlier)) = earlier {
            earlier.is_replaced.store(true, Ordering::Release);
            earlier.bell.notify_one();
        }
        Waiting {
            bell,
            shared: Arc::downgrade(&self.shared),
            name: name.clone(),
            listener,
        }
    }

    /// Rings for the session that listens, if there is one. Does not block.
    pub fn message_waits(&self, name: &IdentityName) {
        let part = self.shared.part(name);
        if let Some((_, bell)) = part.get(name).and_then(|line| line.waiting.as_ref()) {
            bell.bell.notify_one();
        }
    }
}
