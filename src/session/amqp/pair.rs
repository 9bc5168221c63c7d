//! Two links that belong together: one on which a device asks or answers, one on which it is told.
//!
//! They come in either order, with the same `com.microsoft:channel-correlation-id`. What is to be told waits for the second
//! link; a pair with another id takes an earlier one's place.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::session::{Session, Watch, displaced};
use super::{methods, twin};
use crate::amqp::Link;
use crate::proto::amqp::address::Purpose;
use crate::proto::amqp::performative::SenderSettles;
use crate::proto::amqp::{Accept, Attach, Delivery, DeliveryState, Error, Role};
use crate::shard::command::SessionId;

// IoT Hub, AMQP section 4.
const CORRELATION: &str = "com.microsoft:channel-correlation-id";
/// Messages that a device may send ahead.
const CREDIT: u32 = 100;
/// Messages that wait for the link to tell them on, or for its credit; then nothing further is asked or answered.
const WAITING_MAX: usize = 16;

/// One of the two links.
pub(super) struct Half {
    role: Role,
    correlation: String,
    link: Link,
}

impl Half {
    pub fn new(role: Role, attach: &Attach, link: Link) -> Self {
        let correlation = attach.property(CORRELATION);
        Self {
            role,
            correlation: correlation.and_then(|id| id.as_text()).unwrap_or_default().to_owned(),
            link,
        }
    }
}

/// The pairs of an identity: the latest of each kind.
#[derive(Default)]
pub(super) struct Pairs {
    methods: Option<Handle>,
    twin: Option<Handle>,
}

/// Leads to a pair's task; dropping it ends the pair.
struct Handle {
    correlation: String,
    halves: mpsc::UnboundedSender<Half>,
}

impl Pairs {
    pub fn attach(&mut self, session: &Rc<Session>, purpose: Purpose, mut half: Half) {
        let handle = match purpose {
            Purpose::Methods => &mut self.methods,
            _ => &mut self.twin,
        };
        if let Some(known) = handle.as_ref().filter(|known| known.correlation == half.correlation) {
            match known.halves.send(half) {
                Ok(()) => return,
                // The pair's task has ended.
                Err(mpsc::error::SendError(unsent)) => half = unsent,
            }
        }
        let (halves, next) = mpsc::unbounded_channel();
        let correlation = half.correlation.clone();
        if halves.send(half).is_err() {
            unreachable!("the receiver is a variable beside it");
        }
        *handle = Some(Handle { correlation, halves });
        let pair = Pair::new(session.watch(), next);
        match purpose {
            Purpose::Methods => actix_rt::spawn(methods::run(session.clone(), pair)),
            _ => actix_rt::spawn(twin::run(session.clone(), pair)),
        };
    }
}

/// The links of a pair as its task sees them.
pub(super) struct Pair {
    halves: mpsc::UnboundedReceiver<Half>,
    watch: Watch,
    /// What the device sends on.
    incoming: Option<Link>,
    /// What the device is told on.
    outgoing: Option<Link>,
    /// What it is to be told.
    waiting: VecDeque<Vec<u8>>,
    next_tag: u32,
}

impl Pair {
    fn new(watch: Watch, halves: mpsc::UnboundedReceiver<Half>) -> Self {
        Self {
            halves,
            watch,
            incoming: None,
            outgoing: None,
            waiting: VecDeque::new(),
            next_tag: 0,
        }
    }

    /// Waits until the shard has the session.
    ///
    /// # Errors
    /// What the links' peer is to be told.
    pub async fn opened(&mut self) -> Result<SessionId, Error> {
        self.watch.opened().await
    }

    /// Waits until something about the pair has changed; cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The pair is to end.
    pub async fn changed(&mut self) -> Result<(), Error> {
        tokio::select! {
            half = self.halves.recv() => match half {
                Some(half) => self.accept(half),
                None => return Err(displaced()),
            },
            () = changed(self.incoming.as_ref()) => {}
            () = changed(self.outgoing.as_ref()) => {}
            error = self.watch.ended() => return Err(error),
        }
        Ok(())
    }

    /// The next message of the device, if there is room for what it may cause.
    pub fn take(&mut self) -> Option<Delivery> {
        let incoming = self.incoming.as_ref().filter(|_| self.waiting.len() < WAITING_MAX)?;
        let delivery = incoming.take();
        if incoming.credit() < CREDIT / 2 {
            incoming.grant(CREDIT);
        }
        delivery
    }

    /// Answers a message, should the device have asked for that.
    pub fn settle(&self, delivery: &Delivery, result: Result<(), Error>) {
        let Some(incoming) = &self.incoming else { return };
        match result {
            Ok(()) if delivery.is_settled => {}
            Ok(()) => incoming.dispose(delivery.id, delivery.id, 1, DeliveryState::Accepted),
            Err(error) => incoming.reject(delivery, error),
        }
    }

    /// Tells the device, as soon as it can be told.
    pub fn tell(&mut self, message: Vec<u8>) {
        self.waiting.push_back(message);
    }

    /// Whether there is a link to tell something on.
    pub fn has_outgoing(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Whether more may be told.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Sends what waits, takes links that came, forgets those that went. `false`: there is no link any more.
    pub fn go_on(&mut self) -> bool {
        while let Ok(half) = self.halves.try_recv() {
            self.accept(half);
        }
        if let Some(outgoing) = &self.outgoing {
            while outgoing.can_send()
                && let Some(message) = self.waiting.pop_front()
            {
                outgoing.send(&self.next_tag.to_be_bytes(), |out| out.extend(message));
                self.next_tag = self.next_tag.wrapping_add(1);
            }
            if self.waiting.is_empty() {
                outgoing.drained();
            }
        }
        self.incoming
            .take_if(|link| link.is_detached() && !link.has_deliveries());
        self.outgoing.take_if(|link| link.is_detached());
        self.incoming.is_some() || self.outgoing.is_some()
    }

    /// Ends the links that are left.
    pub fn end(mut self, error: &Error) {
        self.halves.close();
        while let Ok(half) = self.halves.try_recv() {
            half.link.end(error.clone());
        }
        for link in [self.incoming, self.outgoing].into_iter().flatten() {
            link.end(error.clone());
        }
    }

    fn accept(&mut self, half: Half) {
        let (place, credit) = match half.role {
            Role::Sender => (&mut self.incoming, CREDIT),
            Role::Receiver => (&mut self.outgoing, 0),
        };
        // IoT Hub, AMQP sections 4.3 and 4.4: what a device is told it is told settled.
        let sender_settles = (half.role == Role::Receiver).then_some(SenderSettles::Settled);
        half.link.accept(Accept {
            credit,
            sender_settles,
            ..Accept::default()
        });
        if let Some(earlier) = place.replace(half.link) {
            earlier.end(displaced());
        }
    }
}

async fn changed(link: Option<&Link>) {
    match link {
        Some(link) => link.changed().await,
        None => std::future::pending().await,
    }
}
