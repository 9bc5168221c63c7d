//! A link as the task that serves it sees it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use foldhash::HashMap;

use super::connection::Visited;
use super::credentials::{Grant, Granted};
use super::error;
use crate::hub::auth::AuthError;
use crate::model::UtcMillis;
use crate::proto::amqp::{Accept, Connection, Delivery, DeliveryState, Error, LinkId, Outgoing, Settled};

/// What stands to be sent before links have to wait; a second buffer of the size is on its way meanwhile.
pub(super) const OUTPUT_BYTES_MAX: usize = 128 * 1024;

/// What the tasks of a connection share; all of them run on one thread.
pub(super) struct Core {
    pub connection: Connection,
    pub slots: HashMap<LinkId, Slot>,
    /// Messages that no link has taken yet.
    pub waiting_bytes: usize,
    /// Messages of the peer that were taken and not settled.
    pub unsettled: u64,
    /// Wakes the task that sends and reads.
    pub driver: Option<Waker>,
    /// No credential that a link stands on runs out before.
    pub next_expiry: Option<UtcMillis>,
    /// The connection is gone, or on its way out: links end.
    pub is_over: bool,
}

/// A link's end of what it shares with its connection.
#[derive(Default)]
pub(super) struct Slot {
    deliveries: VecDeque<Delivery>,
    settled: VecDeque<Settled>,
    waker: Option<Waker>,
    is_changed: bool,
    is_detached: bool,
    /// Waits for room in the buffer.
    wants_room: bool,
    /// What it was opened with, and until when that is good.
    pub grant: Option<(Grant, Option<UtcMillis>)>,
}

impl Slot {
    fn change(&mut self) {
        self.is_changed = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub fn detach(&mut self) {
        self.is_detached = true;
        self.change();
    }

    pub fn flow(&mut self) {
        self.change();
    }

    pub fn settled(&mut self, settled: Settled) {
        self.settled.push_back(settled);
        self.change();
    }
}

impl Core {
    pub fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    pub fn delivered(&mut self, id: LinkId, delivery: Delivery) {
        if let Some(slot) = self.slots.get_mut(&id) {
            self.waiting_bytes += cost(&delivery);
            slot.deliveries.push_back(delivery);
            slot.change();
        }
    }

    fn can_send(&mut self, id: LinkId) -> bool {
        if self.connection.output_bytes() >= OUTPUT_BYTES_MAX {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.wants_room = true;
            }
            return false;
        }
        !self.is_over && self.connection.can_send(id)
    }

    /// The buffer was taken away to be sent.
    pub fn made_room(&mut self) {
        for slot in self.slots.values_mut().filter(|slot| slot.wants_room) {
            slot.wants_room = false;
            slot.change();
        }
    }

    /// The connection ends: every link sees it.
    pub fn end(&mut self) {
        self.is_over = true;
        for slot in self.slots.values_mut() {
            slot.detach();
        }
    }
}

pub(super) fn earlier(one: Option<UtcMillis>, other: Option<UtcMillis>) -> Option<UtcMillis> {
    [one, other].into_iter().flatten().min()
}

/// What a message counts while it waits: an empty one is not free.
fn cost(delivery: &Delivery) -> usize {
    delivery.payload.len() + 128
}

/// One link. Dropping it detaches it.
pub struct Link {
    id: LinkId,
    /// Links of one session are answered on it.
    pub channel: u16,
    core: Rc<RefCell<Core>>,
    visited: Rc<Visited>,
    is_ended: Cell<bool>,
}

impl Link {
    pub(super) fn new(id: LinkId, channel: u16, core: Rc<RefCell<Core>>, visited: Rc<Visited>) -> Self {
        core.borrow_mut().slots.insert(id, Slot::default());
        visited.door.observer.link_opened();
        Self {
            id,
            channel,
            core,
            visited,
            is_ended: Cell::new(false),
        }
    }

    /// The connection it belongs to.
    pub fn visited(&self) -> &Rc<Visited> {
        &self.visited
    }

    /// Makes a credential the one that the link stands on: once it runs out the link is ended.
    ///
    /// # Errors
    /// What the peer is to be told: no credential of the connection gives the right.
    pub fn authorize(&self, grant: Grant) -> Result<Granted, Error> {
        let granted = self.visited.grant(&grant).map_err(|error| self.unauthorized(&error))?;
        let mut core = self.core.borrow_mut();
        if let Some(slot) = core.slots.get_mut(&self.id) {
            slot.grant = Some((grant, granted.expires()));
        }
        core.next_expiry = earlier(core.next_expiry, granted.expires());
        core.wake_driver();
        Ok(granted)
    }

    fn unauthorized(&self, refused: &AuthError) -> Error {
        self.visited.door.observer.auth_refused(refused.label());
        tracing::debug!(error = %refused, "credential refused");
        error::of_auth(refused)
    }

    /// Answers the attach.
    pub fn accept(&self, accept: Accept) {
        let mut core = self.core.borrow_mut();
        core.connection.accept(self.id, accept);
        core.wake_driver();
    }

    /// Ends the link for a reason; refuses it if it was not accepted yet.
    pub fn end(&self, error: Error) {
        self.is_ended.set(true);
        let mut core = self.core.borrow_mut();
        if core.slots.get(&self.id).is_some_and(|slot| !slot.is_detached) {
            self.visited.door.observer.ended(error.condition.label());
            tracing::debug!(
                condition = error.condition.name(),
                reason = error.description,
                "link ended"
            );
            core.connection.detach(self.id, Some(error));
            core.wake_driver();
        }
    }

    /// Completes after anything about the link has changed; a change before the call completes it at once.
    pub async fn changed(&self) {
        poll_fn(|context| {
            let mut core = self.core.borrow_mut();
            let Some(slot) = core.slots.get_mut(&self.id) else {
                return Poll::Ready(());
            };
            if std::mem::take(&mut slot.is_changed) {
                return Poll::Ready(());
            }
            match &mut slot.waker {
                Some(waker) => waker.clone_from(context.waker()),
                waker @ None => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }

    /// Whether nothing can be sent and nothing will come any more.
    pub fn is_detached(&self) -> bool {
        let core = self.core.borrow();
        core.is_over || core.slots.get(&self.id).is_none_or(|slot| slot.is_detached)
    }

    /// Messages that came and were not taken.
    pub fn has_deliveries(&self) -> bool {
        let core = self.core.borrow();
        core.slots.get(&self.id).is_some_and(|slot| !slot.deliveries.is_empty())
    }

    /// The next message that came.
    pub fn take(&self) -> Option<Delivery> {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        let delivery = core.slots.get_mut(&self.id)?.deliveries.pop_front()?;
        let was_full = core.waiting_bytes >= self.visited.door.config.window_bytes;
        core.waiting_bytes -= cost(&delivery);
        core.unsettled += u64::from(!delivery.is_settled);
        if was_full && core.waiting_bytes < self.visited.door.config.window_bytes {
            core.wake_driver();
        }
        Some(delivery)
    }

    /// The next word about a message that was sent.
    pub fn take_settled(&self) -> Option<Settled> {
        let mut core = self.core.borrow_mut();
        core.slots.get_mut(&self.id)?.settled.pop_front()
    }

    /// Settles `count` messages that came one after the other.
    pub fn dispose(&self, first: u32, last: u32, count: u64, state: DeliveryState) {
        let mut core = self.core.borrow_mut();
        core.unsettled = core.unsettled.saturating_sub(count);
        core.connection.dispose(self.id, first, last, state);
        core.wake_driver();
    }

    /// Refuses a message that came.
    pub fn reject(&self, delivery: &Delivery, error: Error) {
        self.visited.door.observer.ended(error.condition.label());
        tracing::debug!(
            condition = error.condition.name(),
            reason = error.description,
            "message refused"
        );
        if !delivery.is_settled {
            self.dispose(delivery.id, delivery.id, 1, DeliveryState::Rejected(Some(error)));
        }
    }

    /// Says the last word on a message that was sent, to a peer that waits for it.
    pub fn settle(&self, delivery: u32, state: DeliveryState) {
        let mut core = self.core.borrow_mut();
        core.connection.settle(self.id, delivery, state);
        core.wake_driver();
    }

    /// Messages that may still come, or be sent.
    pub fn credit(&self) -> u32 {
        self.core.borrow().connection.credit(self.id)
    }

    /// Sets how many messages may come.
    pub fn grant(&self, credit: u32) {
        let mut core = self.core.borrow_mut();
        core.connection.grant(self.id, credit);
        core.wake_driver();
    }

    /// Whether a message may be sent now; if not, `changed` completes when it may.
    pub fn can_send(&self) -> bool {
        self.core.borrow_mut().can_send(self.id)
    }

    /// Sends a message, which `write` appends; only where `can_send` says so. Returns the delivery's id.
    pub fn send(&self, tag: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let mut core = self.core.borrow_mut();
        let delivery = core.connection.send(self.id, tag, write);
        core.wake_driver();
        delivery
    }

    /// To send many messages at once; `None` if the link is gone.
    pub fn send_all<R>(&self, send: impl FnOnce(&mut Sending<'_>) -> R) -> Option<R> {
        let mut core = self.core.borrow_mut();
        if core.is_over {
            return None;
        }
        let mut sending = Sending {
            outgoing: core.connection.outgoing(self.id)?,
            wants_room: false,
            has_sent: false,
        };
        let result = send(&mut sending);
        let Sending {
            wants_room, has_sent, ..
        } = sending;
        if wants_room && let Some(slot) = core.slots.get_mut(&self.id) {
            slot.wants_room = true;
        }
        if has_sent {
            core.wake_driver();
        }
        Some(result)
    }

    /// Gives back what is left of the credit, if the peer waits for that.
    pub fn drained(&self) {
        let mut core = self.core.borrow_mut();
        if core.connection.is_draining(self.id) {
            core.connection.drained(self.id);
            core.wake_driver();
        }
    }
}

/// A link that many messages are sent on at once.
pub struct Sending<'a> {
    outgoing: Outgoing<'a>,
    wants_room: bool,
    has_sent: bool,
}

impl Sending<'_> {
    /// As `Link::can_send`.
    pub fn can_send(&mut self) -> bool {
        if self.outgoing.output_bytes() >= OUTPUT_BYTES_MAX {
            self.wants_room = true;
            return false;
        }
        self.outgoing.can_send()
    }

    /// As `Link::send`.
    pub fn send(&mut self, tag: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.has_sent = true;
        self.outgoing.send(tag, write)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut core = self.core.borrow_mut();
        if let Some(slot) = core.slots.remove(&self.id) {
            let waiting: usize = slot.deliveries.iter().map(cost).sum();
            core.waiting_bytes -= waiting;
            if !self.is_ended.get() {
                core.connection.detach(self.id, None);
            }
            core.wake_driver();
        }
        self.visited.door.observer.link_closed();
    }
}
