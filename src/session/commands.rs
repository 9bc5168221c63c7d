//! Messages to a device, apart from how its door sends them: locked within a window, settled, given back.
//!
//! ```text
//!   rings, settlements, ends of locks ──> fetch ── durable locks ──> Deliver ──> settle ──> Settled
//!                                           └── the door is gone: ──────┴──> given back
//! ```
//!
//! A message is locked durably before it is handed out. What is unsettled when the queue is dropped is given back at once,
//! so that the next session need not wait for the locks to run out. Locks that nobody gave back are waited for.
//!
//! Invariant: what the store locked for this queue is settled, given back, or its lock runs out; also what the store
//! answers when the queue is gone already.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::hub::outbox::{Delivered, LockToken, Settlement};
use crate::hub::{IdentityName, OutboxError, Outboxes};
use crate::model::UtcMillis;
use crate::model::time::Clock;
use crate::shard::lines::{Lines, Waiting};
use crate::shard::timing::{instant_of, sleep_until};

/// Messages locked by one write of the store.
const FETCH_MAX: usize = 16;

/// What a door is to do next.
#[derive(Debug)]
pub enum Event {
    /// Send them. Never empty. Each takes a place of the window until it is settled or its lock ends.
    Deliver(Vec<Delivered>),
    /// A settlement is durable, or was refused.
    Settled(LockToken, Result<(), OutboxError>),
    /// Another session takes the messages in this one's place: drop the queue.
    Replaced,
    /// The store does not hand out messages: drop the queue.
    Failed(OutboxError),
}

/// What the store has answered.
enum Answered {
    Fetched(Result<Vec<Delivered>, OutboxError>),
    Settled(LockToken, Result<(), OutboxError>),
}

/// The messages to one device or module, for the session that takes them. Dropping it gives back what is unsettled.
pub struct Queue {
    source: Arc<Source>,
    waiting: Waiting,
    window: usize,
    /// Handed out, with the end of the lock.
    unsettled: HashMap<LockToken, UtcMillis>,
    /// Messages that the store was asked for and has not answered yet; 0 for none.
    fetching: usize,
    settling: usize,
    /// There may be messages that were not looked for.
    may_have_more: bool,
    /// When the first lock of the queue ends. It need not be ours: a hub that crashed leaves locks behind, and another
    /// door may hold some.
    look_again: Option<Instant>,
    answers: mpsc::UnboundedSender<Answered>,
    answered: mpsc::UnboundedReceiver<Answered>,
}

/// Where the messages come from, and go back to.
struct Source {
    outboxes: Outboxes,
    clock: Arc<dyn Clock>,
    name: IdentityName,
}

impl Queue {
    /// Takes the messages from now on, in place of whoever did before. `window`: how many may be unsettled at a time.
    pub fn open(outboxes: Outboxes, lines: &Lines, name: IdentityName, clock: Arc<dyn Clock>, window: usize) -> Self {
        let waiting = lines.listen_for_messages(&name);
        let (answers, answered) = mpsc::unbounded_channel();
        Self {
            source: Arc::new(Source { outboxes, clock, name }),
            waiting,
            window,
            unsettled: HashMap::new(),
            fetching: 0,
            settling: 0,
            may_have_more: true,
            look_again: None,
            answers,
            answered,
        }
    }

    /// From the next fetch on: one under way may still bring more than a window that became smaller.
    pub fn set_window(&mut self, window: usize) {
        self.window = window;
    }

    /// Messages that were handed out, whose locks hold and which nobody settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Settlements that the store has not answered yet. A door that reads no further above a bound of its own bounds
    /// what a device can make the hub hold.
    pub fn settling(&self) -> usize {
        self.settling
    }

    /// Whether all that waited was handed out: nothing is under way, and nothing is left to look for.
    pub fn is_drained(&self) -> bool {
        self.fetching == 0 && !self.may_have_more
    }

    /// Waits for what is to be done next; cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Event {
        loop {
            self.fetch();
            tokio::select! {
                rung = self.waiting.rings() => match rung {
                    Ok(()) => self.may_have_more = true,
                    Err(_) => return Event::Replaced,
                },
                Some(answer) = self.answered.recv() => match answer {
                    Answered::Fetched(fetched) => match self.take_fetched(fetched) {
                        Ok(fetched) if fetched.is_empty() => {}
                        Ok(fetched) => return Event::Deliver(fetched),
                        Err(error) => return Event::Failed(error),
                    },
                    Answered::Settled(token, result) => {
                        self.settling -= 1;
                        return Event::Settled(token, result);
                    }
                },
                () = sleep_until(self.look_again) => self.handle_timeout(),
            }
        }
    }

    /// Ends a lock in the way the device says; `Settled` follows. One that is not held is the store's to refuse.
    pub fn settle(&mut self, token: LockToken, settlement: Settlement) {
        if self.unsettled.remove(&token).is_some() {
            self.may_have_more = true;
        }
        self.settling += 1;
        let answers = self.answers.clone();
        let Source { outboxes, clock, name } = &*self.source;
        outboxes.settle(name, token, settlement, clock.now(), move |result| {
            drop(answers.send(Answered::Settled(token, result)));
        });
    }

    /// Locks what there is room for; one request at a time.
    fn fetch(&mut self) {
        let room = self.window.saturating_sub(self.unsettled.len()).min(FETCH_MAX);
        if self.fetching > 0 || !self.may_have_more || room == 0 {
            return;
        }
        self.fetching = room;
        self.may_have_more = false;
        let (answers, source) = (self.answers.clone(), self.source.clone());
        let Source { outboxes, clock, name } = &*self.source;
        outboxes.receive(name, room, clock.now(), move |fetched| {
            if let Err(mpsc::error::SendError(Answered::Fetched(Ok(fetched)))) =
                answers.send(Answered::Fetched(fetched))
            {
                // The queue is gone: nobody else knows of these.
                source.give_back(fetched.iter().map(|message| message.token).collect());
            }
        });
    }

    fn take_fetched(&mut self, fetched: Result<Vec<Delivered>, OutboxError>) -> Result<Vec<Delivered>, OutboxError> {
        let asked = std::mem::take(&mut self.fetching);
        let fetched = fetched?;
        // Noted first: what the door cannot send any more is given back too.
        self.note(&fetched);
        self.may_have_more |= fetched.len() == asked;
        let locked_until = self.source.outboxes.locked_until(&self.source.name)?;
        self.look_again = locked_until.map(|until| self.instant_of(until));
        Ok(fetched)
    }

    fn note(&mut self, fetched: &[Delivered]) {
        let locks = fetched.iter().map(|message| (message.token, message.locked_until));
        self.unsettled.extend(locks);
    }

    fn handle_timeout(&mut self) {
        let now = self.source.clock.now();
        self.unsettled.retain(|_, until| *until > now);
        self.may_have_more = true;
        // For a window that is still full: then the store is not asked.
        let next = self.unsettled.values().min();
        self.look_again = next.map(|until| self.instant_of(*until));
    }

    fn instant_of(&self, at: UtcMillis) -> Instant {
        instant_of(&*self.source.clock, at)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What the store answers from here on is given back by its callback.
        self.answered.close();
        while let Ok(answer) = self.answered.try_recv() {
            if let Answered::Fetched(Ok(fetched)) = answer {
                self.note(&fetched);
            }
        }
        self.source.give_back(self.unsettled.keys().copied().collect());
    }
}

impl Source {
    /// Ends locks without a delivery. If it fails, they run out. Does not block.
    fn give_back(&self, tokens: Vec<LockToken>) {
        if !tokens.is_empty() {
            self.outboxes.release(&self.name, tokens, self.clock.now(), |_| ());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hub::outbox::LOCK;
    use crate::session::tests::Hub;

    impl Hub {
        fn queue(&self, window: usize) -> Queue {
            let (outboxes, clock) = (self.outboxes.clone(), self.clock.clone());
            Queue::open(outboxes, &self.lines, self.name.clone(), clock, window)
        }

        /// Messages that another session would get now.
        fn available(&self) -> usize {
            let now = self.clock.now();
            let receive = |done| self.outboxes.receive(&self.name, 50, now, done);
            let received = self.outboxes.wait(receive).unwrap();
            assert!(received.iter().all(|message| message.delivery_count == 0));
            received.len()
        }
    }

    async fn delivered(queue: &mut Queue) -> Vec<Delivered> {
        match queue.next().await {
            Event::Deliver(delivered) => delivered,
            other => panic!("no delivery: {other:?}"),
        }
    }

    /// Nothing comes, however long it is waited for.
    async fn is_silent(queue: &mut Queue) -> bool {
        tokio::time::timeout(Duration::from_secs(1), queue.next())
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_unsettled_than_the_window_has_room_for() {
        let hub = Hub::new();
        hub.enqueue(5);
        let mut queue = hub.queue(2);
        let first = delivered(&mut queue).await;
        assert_eq!(first.len(), 2);
        assert!(is_silent(&mut queue).await && !queue.is_drained());
        queue.settle(first[0].token, Settlement::Complete);
        assert_eq!((queue.settling(), queue.unsettled()), (1, 1));
        let (mut settled, mut came) = (0, 0);
        while settled + came < 2 {
            match queue.next().await {
                Event::Settled(token, Ok(())) if token == first[0].token => settled += 1,
                Event::Deliver(delivered) => came += delivered.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((settled, came, queue.settling()), (1, 1, 0));
        queue.set_window(50);
        assert_eq!(delivered(&mut queue).await.len(), 2);
        assert!(is_silent(&mut queue).await && queue.is_drained());
        hub.enqueue(1);
        assert_eq!(delivered(&mut queue).await.len(), 1);
        queue.settle(first[0].token, Settlement::Complete);
        match queue.next().await {
            Event::Settled(_, Err(error)) => assert_eq!(error.code().number, 412_002),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_fetches_on_until_nothing_waits() {
        let hub = Hub::new();
        hub.enqueue(FETCH_MAX + 1);
        let mut queue = hub.queue(50);
        assert_eq!(delivered(&mut queue).await.len(), FETCH_MAX);
        assert_eq!(delivered(&mut queue).await.len(), 1);
        assert!(is_silent(&mut queue).await && queue.is_drained());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unsettled_is_given_back_when_the_door_goes() {
        let hub = Hub::new();
        hub.enqueue(3);
        let mut queue = hub.queue(50);
        let first = delivered(&mut queue).await;
        queue.settle(first[1].token, Settlement::Complete);
        assert_eq!(hub.available(), 0);
        drop(queue);
        assert_eq!(hub.available(), 2);
    }

    /// The door goes after the store has locked messages for it, and before it took them.
    #[tokio::test(start_paused = true)]
    async fn what_was_fetched_for_a_door_that_went_is_given_back() {
        let hub = Hub::new();
        hub.enqueue(3);
        let mut queue = hub.queue(50);
        hub.state.hold(usize::MAX);
        assert!(is_silent(&mut queue).await);
        hub.state.release_all();
        drop(queue);
        assert_eq!(hub.available(), 3);
    }

    /// The store locks messages for a door that is gone.
    #[tokio::test(start_paused = true)]
    async fn what_is_locked_after_the_door_went_is_given_back() {
        let hub = Hub::new();
        hub.enqueue(3);
        let mut queue = hub.queue(50);
        hub.state.hold(usize::MAX);
        assert!(is_silent(&mut queue).await);
        drop(queue);
        hub.state.release_all();
        assert_eq!(hub.available(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_gets_what_its_predecessor_held() {
        let hub = Hub::new();
        hub.enqueue(2);
        let mut queue = hub.queue(50);
        let first = delivered(&mut queue).await;
        let mut successor = hub.queue(50);
        assert!(matches!(queue.next().await, Event::Replaced));
        assert!(is_silent(&mut successor).await);
        drop(queue);
        let second = delivered(&mut successor).await;
        let sequences = |delivered: &[Delivered]| delivered.iter().map(|m| m.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(&first), sequences(&second));
    }

    /// A hub that crashed, or another door, left a lock behind: nobody rings when it runs out.
    #[tokio::test(start_paused = true)]
    async fn locks_of_others_are_waited_for() {
        let hub = Hub::new();
        hub.enqueue(1);
        assert_eq!(hub.available(), 1);
        let mut queue = hub.queue(50);
        assert!(is_silent(&mut queue).await);
        let (came, ()) = tokio::join!(delivered(&mut queue), hub.sleep(LOCK));
        assert_eq!(came.len(), 1);
    }

    /// The window would stay full of locks that are nobody's any more.
    #[tokio::test(start_paused = true)]
    async fn a_lock_that_ran_out_gives_its_place_back() {
        let hub = Hub::new();
        hub.enqueue(2);
        let mut queue = hub.queue(1);
        let first = delivered(&mut queue).await;
        assert!(is_silent(&mut queue).await);
        let (again, ()) = tokio::join!(delivered(&mut queue), hub.sleep(LOCK));
        assert_eq!((again.len(), queue.unsettled()), (1, 1));
        assert_ne!(first[0].token, again[0].token);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_ends_the_queue() {
        let hub = Hub::new();
        hub.enqueue(1);
        let mut queue = hub.queue(1);
        hub.state.fail_next(crate::state::memory::Failure::Lost);
        assert!(matches!(queue.next().await, Event::Failed(_)));
    }
}
