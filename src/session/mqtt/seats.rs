//! Who is connected, and what of ended sessions is remembered for a moment.
//!
//! One connection at a time has an identity's seat. A newcomer tells the one before to leave, and waits until it has: what
//! that one leaves behind (which messages it took) is complete then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use tokio::sync::Notify;

use crate::hub::IdentityName;

/// How long a newcomer waits for the connection before it; then it comes without what that one knows.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Cloning shares it.
pub struct Seats<M> {
    inner: Arc<Mutex<Inner<M>>>,
}

impl<M> Clone for Seats<M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<M> Default for Seats<M> {
    fn default() -> Self {
        let inner = Inner {
            seats: HashMap::default(),
            next_id: 1,
            kept: BTreeMap::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }
}

struct Inner<M> {
    seats: HashMap<IdentityName, Entry<M>>,
    next_id: u64,
    /// What is kept, by the time of its end and the seat it was left from. Entries taken since are passed over.
    kept: BTreeMap<(Instant, u64), IdentityName>,
}

struct Entry<M> {
    /// The connection that has the seat.
    taken: Option<(u64, Arc<Notify>)>,
    /// Whoever waits for the seat listens here.
    left: Arc<Notify>,
    kept: Option<(M, Instant)>,
}

/// An identity's seat, until it is dropped.
pub struct Seat<M> {
    seats: Seats<M>,
    name: IdentityName,
    id: u64,
    leave: Arc<Notify>,
    /// What the connection leaves behind, and until when.
    left: Option<(M, Instant)>,
}

impl<M> Seats<M> {
    /// Takes the seat, and what an earlier connection has left.
    pub async fn take(&self, name: &IdentityName) -> (Seat<M>, Option<M>) {
        let until = tokio::time::Instant::now() + LEAVE_TIMEOUT;
        loop {
            let left = match self.try_take(name, tokio::time::Instant::now() >= until) {
                Ok(taken) => return taken,
                Err(left) => left,
            };
            let notified = left.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            // It may have left before we listened.
            if let Ok(taken) = self.try_take(name, false) {
                return taken;
            }
            let _ = tokio::time::timeout_at(until, notified).await;
        }
    }

    /// `is_forced`: whoever has the seat loses it at once.
    fn try_take(&self, name: &IdentityName, is_forced: bool) -> Result<(Seat<M>, Option<M>), Arc<Notify>> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.forget(now);
        let id = inner.next_id;
        inner.next_id += 1;
        let entry = inner.seats.entry(name.clone()).or_insert_with(|| Entry {
            taken: None,
            left: Arc::default(),
            kept: None,
        });
        if let Some((_, leave)) = &entry.taken {
            leave.notify_one();
            if !is_forced {
                return Err(entry.left.clone());
            }
        }
        let leave = Arc::new(Notify::new());
        entry.taken = Some((id, leave.clone()));
        let kept = entry.kept.take().filter(|(_, until)| *until > now);
        drop(inner);
        let seat = Seat {
            seats: self.clone(),
            name: name.clone(),
            id,
            leave,
            left: None,
        };
        Ok((seat, kept.map(|(memory, _)| memory)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Inner<M> {
    /// Drops what was kept for long enough.
    fn forget(&mut self, now: Instant) {
        while let Some(first) = self.kept.first_entry()
            && first.key().0 <= now
        {
            let name = first.remove();
            if let Some(entry) = self.seats.get_mut(&name) {
                entry.kept.take_if(|(_, until)| *until <= now);
                if entry.taken.is_none() && entry.kept.is_none() {
                    self.seats.remove(&name);
                }
            }
        }
    }
}

impl<M> Seat<M> {
    /// Waits until a newcomer wants the seat.
    pub async fn wanted(&self) {
        self.leave.notified().await;
    }

    /// Leaves this behind for a newcomer until then.
    pub fn leave_behind(&mut self, memory: M, until: Instant) {
        self.left = Some((memory, until));
    }
}

impl<M> Drop for Seat<M> {
    fn drop(&mut self) {
        let mut inner = self.seats.lock();
        let inner = &mut *inner;
        let Some(entry) = inner.seats.get_mut(&self.name) else {
            return;
        };
        // A seat lost by force is another's.
        if !matches!(entry.taken, Some((id, _)) if id == self.id) {
            return;
        }
        entry.taken = None;
        entry.kept = self.left.take();
        entry.left.notify_waiters();
        match &entry.kept {
            Some((_, until)) => {
                inner.kept.insert((*until, self.id), self.name.clone());
            }
            None => {
                inner.seats.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeviceId;

    fn name(id: &str) -> IdentityName {
        IdentityName::device(DeviceId::new(id).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn what_is_left_behind_is_found_once() {
        let seats = Seats::default();
        let (mut seat, kept) = seats.take(&name("a")).await;
        assert_eq!(kept, None);
        seat.leave_behind(7, soon());
        drop(seat);
        assert_eq!(seats.take(&name("b")).await.1, None);
        let (seat, kept) = seats.take(&name("a")).await;
        assert_eq!(kept, Some(7));
        drop(seat);
        assert_eq!(seats.take(&name("a")).await.1, None);
        assert!(seats.lock().seats.is_empty());
    }

    #[tokio::test]
    async fn what_is_left_behind_goes_with_time() {
        let seats = Seats::default();
        let (mut seat, _) = seats.take(&name("a")).await;
        seat.leave_behind(7, Instant::now());
        drop(seat);
        let (_seat, kept) = seats.take(&name("b")).await;
        assert_eq!(kept, None);
        assert!(!seats.lock().seats.contains_key(&name("a")));
        assert!(seats.lock().kept.is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_for_long_holds_nothing_else_up() {
        let seats = Seats::default();
        for (id, until) in [("long", soon()), ("short", Instant::now())] {
            let (mut seat, _) = seats.take(&name(id)).await;
            seat.leave_behind(7, until);
        }
        let (_seat, _) = seats.take(&name("b")).await;
        assert!(!seats.lock().seats.contains_key(&name("short")));
        assert!(seats.lock().seats.contains_key(&name("long")));
        assert_eq!(seats.lock().kept.len(), 1);
    }

    #[tokio::test]
    async fn a_newcomer_waits_for_the_one_before() {
        let seats = Seats::default();
        let (mut first, _) = seats.take(&name("a")).await;
        let newcomer = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take(&name("a")).await }
        });
        first.wanted().await;
        assert!(!newcomer.is_finished());
        first.leave_behind(7, soon());
        drop(first);
        let (_second, kept) = newcomer.await.unwrap();
        assert_eq!(kept, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_leave_loses_its_seat_and_says_nothing_any_more() {
        let seats = Seats::default();
        let (mut first, _) = seats.take(&name("a")).await;
        let (second, kept) = seats.take(&name("a")).await;
        assert_eq!(kept, None);
        first.leave_behind(7, soon());
        drop(first);
        drop(second);
        assert_eq!(seats.take(&name("a")).await.1, None);
    }
}
