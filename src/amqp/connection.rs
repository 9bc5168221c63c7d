//! One connection's task: reads, sends, keeps the peer's time, and leads attaches to the rooms.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Sleep;

use super::cbs;
use super::config::{FRAME_BYTES_MAX, LINK_MESSAGE_BYTES_MAX};
use super::credentials::{Credentials, Grant, Granted, TokenError};
use super::error;
use super::link::{Core, Link, earlier};
use super::node::Node;
use super::serve::{Door, Visit};
use crate::hub::ErrorCode;
use crate::hub::auth::AuthError;
use crate::model::UtcMillis;
use crate::proto::amqp::address::Address;
use crate::proto::amqp::performative::SaslInit;
use crate::proto::amqp::{Attach, Condition, Connection, Error, Event, Limits, LinkId};

// IoT Hub, AMQP section 1; azure-iot-hub wants the first, azure-eventhub the second.
const MECHANISMS: &[&str] = &["MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL"];
/// What one read takes at most; less is taken of a peer that says little.
const READ_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES_MIN: usize = 1024;
/// How long the last words may take to get out.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Later than any connection lives.
const FAR: Duration = Duration::from_secs(366 * 86_400);

/// What all links of a connection know of it.
pub struct Visited {
    pub door: Arc<Door>,
    credentials: RefCell<Credentials>,
    /// Of the open frame.
    host_name: RefCell<Option<String>>,
}

impl Visited {
    pub(super) fn new(door: Arc<Door>, chain: Vec<CertificateDer<'static>>) -> Rc<Self> {
        let credentials = Credentials::new(door.authenticator.clone(), door.host_name.clone(), chain);
        Rc::new(Self {
            door,
            credentials: RefCell::new(credentials),
            host_name: RefCell::default(),
        })
    }

    pub fn now(&self) -> UtcMillis {
        self.door.clock.now()
    }

    /// Who may do what that stands for.
    ///
    /// # Errors
    /// `AuthError`.
    pub fn grant(&self, grant: &Grant) -> Result<Granted, AuthError> {
        self.credentials.borrow().grant(grant, self.now())
    }

    /// # Errors
    /// `TokenError`.
    pub fn put_token(&self, token: &str) -> Result<(), TokenError> {
        self.credentials.borrow_mut().put_token(token, self.now())
    }

    /// Who may read the built-in endpoint's address by a token beside those of the connection.
    ///
    /// # Errors
    /// `AuthError`.
    pub fn events_by_token(&self, token: &str, address: &str) -> Result<(), AuthError> {
        let credentials = self.credentials.borrow();
        credentials.events_by_token(token, address, self.now()).map(|_| ())
    }

    /// The name that the peer thinks it speaks to.
    pub fn host_name(&self) -> Option<String> {
        self.host_name.borrow().clone()
    }
}

/// How the driver was woken.
enum Step {
    Read,
    Timer,
    /// A link did something that may concern the driver.
    Woken,
    Gone,
}

struct Driver<S> {
    stream: S,
    visited: Rc<Visited>,
    core: Rc<RefCell<Core>>,
    visits: Vec<Rc<dyn Visit>>,
    cbs: Rc<Node>,
    /// What is being sent.
    sending: Vec<u8>,
    sent: usize,
    needs_flush: bool,
    read_bytes: usize,
    last_read: Instant,
    last_sent: Instant,
    opened_by: Instant,
    /// How often the peer wants to hear something.
    heartbeat: Option<Duration>,
}

/// Serves a connection until it ends.
pub(super) async fn run<S>(door: Arc<Door>, stream: S, chain: Vec<CertificateDer<'static>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = &door.config;
    let limits = Limits {
        container_id: door.host_name.clone(),
        mechanisms: MECHANISMS,
        frame_bytes_max: FRAME_BYTES_MAX,
        sessions_max: config.sessions_max,
        links_max: config.links_max,
        session_window: 2048,
        message_bytes_max: LINK_MESSAGE_BYTES_MAX,
        assembling_bytes_max: config.window_bytes.max(LINK_MESSAGE_BYTES_MAX),
        idle_timeout_ms: u32::try_from(config.idle_timeout.as_millis()).unwrap_or(u32::MAX),
    };
    let core = Rc::new(RefCell::new(Core {
        connection: Connection::new(limits),
        slots: HashMap::default(),
        waiting_bytes: 0,
        unsettled: 0,
        driver: None,
        next_expiry: None,
        is_over: false,
    }));
    let visited = Visited::new(door.clone(), chain);
    let now = Instant::now();
    let driver = Driver {
        stream,
        visits: door.rooms.iter().map(|room| room.clone().visit(&visited)).collect(),
        cbs: Node::new(cbs::answer),
        visited,
        core: core.clone(),
        sending: Vec::new(),
        sent: 0,
        needs_flush: false,
        read_bytes: READ_BYTES_MIN,
        last_read: now,
        last_sent: now,
        opened_by: now + config.handshake_timeout,
        heartbeat: None,
    };
    // However it ends, its links end with it.
    let _end = EndLinks(core);
    driver.run().await;
}

struct EndLinks(Rc<RefCell<Core>>);

impl Drop for EndLinks {
    fn drop(&mut self) {
        self.0.borrow_mut().end();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    async fn run(mut self) {
        let mut timer = pin!(tokio::time::sleep(FAR));
        let door = self.visited.door.clone();
        let mut stop = pin!(door.shutdown.stopping());
        loop {
            self.handle_events();
            if self.core.borrow().connection.is_closed() {
                break;
            }
            let deadline = tokio::time::Instant::from_std(self.deadline());
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let step = tokio::select! {
                biased;
                step = poll_fn(|context| self.poll(timer.as_mut(), context)) => step,
                () = &mut stop => {
                    self.drain().await;
                    break;
                }
            };
            match step {
                Step::Read => self.last_read = Instant::now(),
                Step::Woken => {}
                Step::Timer => self.handle_timeout(),
                Step::Gone => return,
            }
        }
        // Links see the end before the last bytes are out: what they hold goes back meanwhile.
        self.core.borrow_mut().end();
        self.flush(FAREWELL_TIMEOUT).await;
    }

    /// The hub stops: what was taken is settled first, as far as that goes in a moment.
    async fn drain(&mut self) {
        let until = tokio::time::Instant::now() + FAREWELL_TIMEOUT;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while tokio::time::Instant::now() < until && self.core.borrow().unsettled > 0 {
            tick.tick().await;
            self.flush(Duration::from_millis(20)).await;
        }
        let error = Error::new(Condition::CONNECTION_FORCED, "the hub stops");
        self.core.borrow_mut().connection.close(Some(error));
    }

    fn poll(&mut self, timer: Pin<&mut Sleep>, context: &mut std::task::Context<'_>) -> Poll<Step> {
        match self.poll_send(context) {
            Ok(()) => {}
            Err(_) => return Poll::Ready(Step::Gone),
        }
        let window_bytes = self.visited.door.config.window_bytes;
        let mut core = self.core.borrow_mut();
        let was_woken = core.driver.is_none();
        core.driver = Some(context.waker().clone());
        if core.waiting_bytes < window_bytes {
            let input = core.connection.input();
            let held = input.len();
            input.reserve(self.read_bytes);
            let read = pin!(self.stream.read_buf(input)).poll(context);
            match read {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Step::Gone),
                Poll::Ready(Ok(_)) => {
                    let is_much = input.len() - held >= self.read_bytes;
                    self.read_bytes = match is_much {
                        true => (self.read_bytes * 4).min(READ_BYTES_MAX),
                        false => self.read_bytes,
                    };
                    return Poll::Ready(Step::Read);
                }
                Poll::Pending => {
                    // A quiet connection holds little.
                    if input.is_empty() && input.capacity() > READ_BYTES_MIN {
                        *input = bytes::BytesMut::new();
                        self.read_bytes = READ_BYTES_MIN;
                    }
                }
            }
        }
        drop(core);
        if timer.poll(context).is_ready() {
            return Poll::Ready(Step::Timer);
        }
        // A change of a link's credential moves the deadline.
        if was_woken {
            Poll::Ready(Step::Woken)
        } else {
            Poll::Pending
        }
    }

    /// Sends what there is, as far as the socket takes it.
    fn poll_send(&mut self, context: &mut std::task::Context<'_>) -> std::io::Result<()> {
        loop {
            if self.sent == self.sending.len() {
                self.sending.clear();
                self.sent = 0;
                let mut core = self.core.borrow_mut();
                if !core.connection.has_output() {
                    if self.sending.capacity() > 0 {
                        self.sending = Vec::new();
                    }
                    break;
                }
                std::mem::swap(&mut self.sending, core.connection.output());
                core.made_room();
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.sending[self.sent..]) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.needs_flush = true;
                    self.last_sent = Instant::now();
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        if self.needs_flush
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(context)
        {
            flushed?;
            self.needs_flush = false;
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.needs_flush || self.sent < self.sending.len() || self.core.borrow().connection.has_output()
    }

    async fn flush(&mut self, timeout: Duration) {
        let flushed = poll_fn(|context| match self.poll_send(context) {
            Ok(()) if self.has_unsent() => Poll::Pending,
            Ok(()) | Err(_) => Poll::Ready(()),
        });
        let _ = tokio::time::timeout(timeout, flushed).await;
    }

    fn deadline(&self) -> Instant {
        let core = self.core.borrow();
        if !core.connection.is_open() {
            return self.opened_by;
        }
        let idle = self.last_read + self.visited.door.config.idle_timeout * 2;
        let heartbeat = self.heartbeat.map(|every| self.last_sent + every);
        let plain = self.visited.credentials.borrow().plain_expires();
        let credentials = earlier(core.next_expiry, plain).map(|at| self.visited.door.instant_of(at));
        [heartbeat, credentials].into_iter().flatten().fold(idle, Instant::min)
    }

    fn handle_timeout(&mut self) {
        let now = Instant::now();
        let mut core = self.core.borrow_mut();
        let config = &self.visited.door.config;
        if !core.connection.is_open() {
            if now >= self.opened_by {
                self.visited.door.observer.handshake_failed();
                core.connection
                    .close(Some(Error::new(Condition::TIMEOUT, "no open in time")));
            }
            return;
        }
        if now >= self.last_read + config.idle_timeout * 2 {
            let error = Error::new(Condition::CONNECTION_FORCED, "the connection was silent for too long");
            self.visited.door.observer.ended(error.condition.label());
            core.connection.close(Some(error));
            return;
        }
        if self.heartbeat.is_some_and(|every| now >= self.last_sent + every) {
            core.connection.heartbeat();
            self.last_sent = now;
        }
        drop(core);
        self.check_credentials();
        let expires = self.visited.credentials.borrow().plain_expires();
        if expires.is_some_and(|at| self.visited.now() >= at) {
            let error = error::of(ErrorCode::UNAUTHORIZED, "the token of the connection has run out");
            self.visited.door.observer.ended(error.condition.label());
            self.core.borrow_mut().connection.close(Some(error));
        }
    }

    /// Ends the links whose credential has run out and was not renewed.
    fn check_credentials(&mut self) {
        let now = self.visited.now();
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        core.next_expiry = None;
        for (id, slot) in &mut core.slots {
            let Some((grant, Some(expires))) = &mut slot.grant else {
                continue;
            };
            if now < *expires {
                core.next_expiry = earlier(core.next_expiry, Some(*expires));
                continue;
            }
            match self.visited.grant(grant) {
                Ok(granted) => {
                    core.next_expiry = earlier(core.next_expiry, granted.expires());
                    slot.grant = Some((grant.clone(), granted.expires()));
                }
                Err(refused) => {
                    self.visited.door.observer.auth_refused(refused.label());
                    // IoT Hub, AMQP section 2.2.
                    let error = error::of_auth(&refused);
                    self.visited.door.observer.ended(error.condition.label());
                    core.connection.detach(*id, Some(error));
                    slot.grant = None;
                    slot.detach();
                }
            }
        }
    }

    fn handle_events(&mut self) {
        loop {
            let event = self.core.borrow_mut().connection.poll_event();
            let Some(event) = event else { return };
            match event {
                Event::Sasl(init) => {
                    let is_ok = self.sasl(&init);
                    self.core.borrow_mut().connection.sasl_outcome(is_ok);
                }
                Event::Opened {
                    hostname,
                    idle_timeout_ms,
                } => {
                    *self.visited.host_name.borrow_mut() = hostname;
                    // AMQP 1.0 s2.4.5: half of what the peer waits.
                    let every = idle_timeout_ms.filter(|ms| *ms > 0);
                    self.heartbeat = every.map(|ms| Duration::from_millis(u64::from(ms).max(1000) / 2));
                }
                Event::Attached(id, attach) => self.attach(id, &attach),
                Event::Delivered(id, delivery) => self.core.borrow_mut().delivered(id, delivery),
                Event::Settled(id, settled) => {
                    if let Some(slot) = self.core.borrow_mut().slots.get_mut(&id) {
                        slot.settled(settled);
                    }
                }
                Event::Flow(id) => {
                    if let Some(slot) = self.core.borrow_mut().slots.get_mut(&id) {
                        slot.flow();
                    }
                }
                Event::Detached(id) => {
                    if let Some(slot) = self.core.borrow_mut().slots.get_mut(&id) {
                        slot.detach();
                    }
                }
                Event::Closed(_) => {}
                Event::Failed(error) => {
                    self.visited.door.observer.ended(error.condition.label());
                    tracing::debug!(
                        condition = error.condition.name(),
                        reason = error.description,
                        "connection ended"
                    );
                }
            }
        }
    }

    fn sasl(&mut self, init: &SaslInit) -> bool {
        let mut credentials = self.visited.credentials.borrow_mut();
        let checked = match init.mechanism.as_str() {
            "ANONYMOUS" | "MSSBCBS" => Ok(()),
            "EXTERNAL" if credentials.has_certificate() => Ok(()),
            "EXTERNAL" => Err(AuthError::Missing),
            "PLAIN" => credentials.plain(init.response.as_deref().unwrap_or_default(), self.visited.now()),
            _ => Err(AuthError::WrongKind),
        };
        if let Err(refused) = &checked {
            self.visited.door.observer.auth_refused(refused.label());
            tracing::debug!(error = %refused, mechanism = init.mechanism, "SASL refused");
        }
        checked.is_ok()
    }

    fn attach(&mut self, id: LinkId, attach: &Attach) {
        let channel = self.core.borrow().connection.channel(id).unwrap_or_default();
        let link = Link::new(id, channel, self.core.clone(), self.visited.clone());
        let text = attach.address().unwrap_or_default();
        let address = Address::parse(text);
        let Some(address) = address else {
            let reason = format!("The messaging entity '{text}' could not be found.");
            return link.end(Error::new(Condition::NOT_FOUND, reason));
        };
        if address == Address::Cbs {
            return self.cbs.attach(attach, link);
        }
        let mut link = Some(link);
        for visit in &self.visits {
            match link.take() {
                Some(one) => link = visit.clone().attach(&address, attach, one),
                None => break,
            }
        }
        if let Some(link) = link {
            // Built-in endpoint section 4.2: clients look for these words.
            let reason = format!("The messaging entity '{text}' could not be found.");
            link.end(Error::new(Condition::NOT_FOUND, reason));
        }
    }
}
