//! Messages to a device as deliveries. What is locked, settled and given back is [`crate::session::commands`]'s.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::message;
use super::session::{Session, displaced};
use crate::amqp::message::guid_tag;
use crate::amqp::{Link, error};
use crate::hub::OutboxError;
use crate::hub::outbox::{Delivered, LockToken, QUEUE_DEPTH_MAX, Settlement};
use crate::proto::amqp::performative::SenderSettles;
use crate::proto::amqp::{Accept, DeliveryState, Error, Settled};
use crate::session::commands::{Event, Queue};

/// Settlements that wait for the store; then no further ones are looked at.
const SETTLING_MAX: usize = 64;
/// Deliveries that the device has not settled, those whose locks have run out included. The oldest beyond are settled by
/// the hub.
const SENT_MAX: usize = 4 * QUEUE_DEPTH_MAX;

pub(super) async fn run(session: Rc<Session>, link: Link, sender_settles: SenderSettles) {
    let mut watch = session.watch();
    if let Err(error) = watch.opened().await {
        return link.end(error);
    }
    let is_settled = sender_settles == SenderSettles::Settled;
    link.accept(Accept {
        tracks_outcomes: !is_settled,
        ..Accept::default()
    });
    let (outboxes, clock) = (session.devices.outboxes.clone(), session.clock.clone());
    // No message may come before the device asks for one.
    let queue = Queue::open(outboxes, &session.devices.lines, session.name.clone(), clock, 0);
    let mut downlink = Downlink {
        session: &session,
        link: &link,
        queue,
        is_settled,
        waiting: VecDeque::new(),
        sent: VecDeque::new(),
        settling: HashMap::new(),
    };
    let error = tokio::select! {
        error = downlink.serve() => error,
        error = watch.ended() => Some(error),
    };
    if let Some(error) = error {
        link.end(error);
    }
}

struct Downlink<'a> {
    session: &'a Session,
    link: &'a Link,
    queue: Queue,
    /// Sent is completed.
    is_settled: bool,
    /// Locked, and not sent for want of room.
    waiting: VecDeque<Delivered>,
    /// In the order of sending.
    sent: VecDeque<(u32, LockToken)>,
    /// What the device wants to hear once its outcome is stored.
    settling: HashMap<LockToken, Settled>,
}

impl Downlink<'_> {
    /// Until the link or its queue ends.
    async fn serve(&mut self) -> Option<Error> {
        while !self.link.is_detached() {
            while self.queue.settling() < SETTLING_MAX
                && let Some(settled) = self.link.take_settled()
            {
                self.settle(settled);
            }
            self.send();
            self.set_window();
            tokio::select! {
                () = self.link.changed() => {}
                event = self.queue.next() => match event {
                    Event::Deliver(delivered) => self.waiting.extend(delivered),
                    Event::Settled(token, result) => self.settled(token, result),
                    Event::Replaced => return Some(displaced()),
                    Event::Failed(failed) => return Some(error::of(failed.code(), failed)),
                },
            }
        }
        None
    }

    /// As many may be unsettled as are now, and as the device asks for besides.
    fn set_window(&mut self) {
        let credit = usize::try_from(self.link.credit()).unwrap_or(usize::MAX);
        let asked = credit.saturating_sub(self.waiting.len());
        let window = self.queue.unsettled().saturating_add(asked).min(QUEUE_DEPTH_MAX);
        self.queue.set_window(window);
        let is_all = self.queue.is_drained() || self.queue.unsettled() >= QUEUE_DEPTH_MAX;
        if self.waiting.is_empty() && is_all {
            self.link.drained();
        }
    }

    fn send(&mut self) {
        let now = self.session.clock.now();
        while self.link.can_send()
            && let Some(delivered) = self.waiting.pop_front()
        {
            if delivered.locked_until <= now {
                // It comes again, under another lock.
                continue;
            }
            let tag = guid_tag(delivered.token.into());
            let id = self
                .link
                .send(&tag, |out| message::command(&delivered, &self.session.name, out));
            if self.is_settled {
                self.queue.settle(delivered.token, Settlement::Complete);
                continue;
            }
            self.sent.push_back((id, delivered.token));
            if self.sent.len() > SENT_MAX
                && let Some((oldest, _)) = self.sent.pop_front()
            {
                self.link.settle(oldest, DeliveryState::Released);
            }
        }
    }

    // IoT Hub, AMQP section 4.2.
    fn settle(&mut self, mut settled: Settled) {
        // Settled twice, or after the hub has: nothing is left to say.
        let Some(at) = self.sent.iter().position(|(id, _)| *id == settled.id) else {
            return;
        };
        let settlement = match &settled.state {
            Some(DeliveryState::Received) if !settled.is_final => return,
            Some(DeliveryState::Accepted) => Settlement::Complete,
            Some(DeliveryState::Rejected(_)) => Settlement::Reject,
            Some(
                DeliveryState::Released
                | DeliveryState::Modified { .. }
                | DeliveryState::Received
                | DeliveryState::Other,
            ) => Settlement::Abandon,
            None if !settled.is_final => return,
            // Without an outcome the device gave it up.
            None => Settlement::Abandon,
        };
        if let Some((_, token)) = self.sent.remove(at) {
            settled.state.get_or_insert(DeliveryState::Released);
            self.settling.insert(token, settled);
            self.queue.settle(token, settlement);
        }
    }

    /// Tells a device that waits for it how its outcome came out.
    fn settled(&mut self, token: LockToken, result: Result<(), OutboxError>) {
        let Some(Settled { id, state, is_final }) = self.settling.remove(&token) else {
            return;
        };
        let state = match result {
            Ok(()) => state.unwrap_or(DeliveryState::Released),
            Err(failed) => {
                tracing::debug!(%failed, "settlement refused");
                DeliveryState::Rejected(Some(error::of(failed.code(), failed)))
            }
        };
        if !is_final {
            self.link.settle(id, state);
        }
    }
}
