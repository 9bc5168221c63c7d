//! Changes of desired properties, for the session that observes them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::{Lines, Shared};
use crate::hub::{IdentityName, TwinChanged};

/// Changes that wait for a session which is slow to take them; then only the newest is kept, whose twin has them all.
const CHANGES_MAX: usize = 16;

/// What happened to the desired properties since the last look.
#[derive(Debug, Default)]
pub struct News {
    /// In the order of their versions; where some were left out, the next one's twin has them.
    pub changes: VecDeque<TwinChanged>,
    /// Another session observes in this one's place.
    pub is_replaced: bool,
}

#[derive(Default)]
pub(super) struct Mailbox {
    news: Mutex<News>,
    bell: Notify,
}

impl Mailbox {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, changed: TwinChanged) {
        let mut news = self.news();
        if news.changes.len() == CHANGES_MAX {
            news.changes.clear();
        }
        news.changes.push_back(changed);
        drop(news);
        self.bell.notify_one();
    }

    fn replace(&self) {
        self.news().is_replaced = true;
        self.bell.notify_one();
    }
}

/// The changes of one identity's desired properties, for the session that observes them.
pub struct Changes {
    mailbox: Arc<Mailbox>,
    shared: Weak<Shared>,
    name: IdentityName,
    listener: u64,
}

impl Changes {
    /// Waits until there is something; cancelling the wait loses nothing.
    pub async fn next(&self) -> News {
        loop {
            let news = std::mem::take(&mut *self.mailbox.news());
            if !news.changes.is_empty() || news.is_replaced {
                return news;
            }
            self.mailbox.bell.notified().await;
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.change(&self.name, |line| {
                if line
                    .changes
                    .as_ref()
                    .is_some_and(|(listener, _)| *listener == self.listener)
                {
                    line.changes = None;
                }
            });
        }
    }
}

impl Lines {
    /// Observes from now on, in place of whoever did before. What was changed earlier is for the caller to read, after
    /// this call.
    pub fn observe_desired(&self, name: &IdentityName) -> Changes {
        let mailbox = Arc::new(Mailbox::default());
        let listener = self.shared.listener();
        let mut part = self.shared.part(name);
        let earlier = part
            .entry(name.clone())
            .or_default()
            .changes
            .replace((listener, mailbox.clone()));
        if let Some((_, earlier)) = earlier {
            earlier.replace();
        }
        Changes {
            mailbox,
            shared: Arc::downgrade(&self.shared),
            name: name.clone(),
            listener,
        }
    }

    /// Tells the session that observes, if there is one. Called in the order of versions; does not block.
    pub fn desired_changed(&self, changed: &TwinChanged) {
        if !changed.changes_desired() {
            return;
        }
        let part = self.shared.part(&changed.identity);
        if let Some((_, mailbox)) = part.get(&changed.identity).and_then(|line| line.changes.as_ref()) {
            mailbox.push(changed.clone());
        }
    }
}
