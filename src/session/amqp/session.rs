//! One identity on one connection: its session on the home shard, which all its links share.
//!
//! ```text
//!   Opening ── the shard has it ──> Open ── the shard ends it, or the last link goes ──> Ended
//!      └──────── refused ────────────────────────────────────────────────────────────────^
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::Devices;
use super::pair::{Half, Pairs};
use super::telemetry::Uplink;
use crate::amqp::credentials::Grant;
use crate::amqp::{Link, Visited, error};
use crate::hub::throttle::Class;
use crate::hub::{Authenticated, ErrorCode, IdentityName};
use crate::model::time::Clock;
use crate::model::{Epoch, Generation};
use crate::proto::amqp::address::Purpose;
use crate::proto::amqp::{Condition, Error};
use crate::session::home::{self, HomeSession};
use crate::session::telemetry::Telemetry;
use crate::shard::command::{OpenError, SessionId};
use crate::shard::link::End;
use crate::shard::timing::{pass, sleep_until};
use crate::wire::close::CloseCode;

/// How long what was taken may take to be stored after its link went, or once the hub stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
enum State {
    Opening,
    Open(SessionId),
    Ended(Error),
}

/// What the links of an identity hold; the session ends with the last of them.
pub(super) struct Session {
    pub devices: Arc<Devices>,
    pub name: IdentityName,
    /// Of this life of the identity.
    pub generation: Generation,
    pub clock: Arc<dyn Clock>,
    state: watch::Receiver<State>,
    telemetry: mpsc::UnboundedSender<(Rc<Session>, Link)>,
    pairs: RefCell<Pairs>,
    /// The model that the identity follows; empty for none.
    model_id: RefCell<String>,
}

impl Session {
    pub fn start(devices: Arc<Devices>, visited: Rc<Visited>, identity: Authenticated) -> Rc<Self> {
        let (changes, state) = watch::channel(State::Opening);
        let (telemetry, links) = mpsc::unbounded_channel();
        let session = Rc::new(Self {
            devices: devices.clone(),
            name: identity.identity.clone(),
            generation: identity.generation,
            clock: visited.door.clock.clone(),
            state,
            telemetry,
            pairs: RefCell::default(),
            model_id: RefCell::default(),
        });
        actix_rt::spawn(run(devices, visited, identity, changes, links));
        session
    }

    pub fn is_ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    /// Notes the model that a link names, unless it names none.
    pub fn follow_model(&self, model_id: &str) {
        if !model_id.is_empty() {
            model_id.clone_into(&mut self.model_id.borrow_mut());
        }
    }

    pub fn watch(&self) -> Watch {
        Watch(self.state.clone())
    }

    /// Takes telemetry from the link from now on, in place of an earlier one.
    pub fn send_telemetry(self: &Rc<Self>, link: Link) {
        if let Err(mpsc::error::SendError((_, link))) = self.telemetry.send((self.clone(), link)) {
            link.end(gone());
        }
    }

    /// Takes one of the two links of a pair.
    pub fn pair(self: &Rc<Self>, purpose: Purpose, half: Half) {
        self.pairs.borrow_mut().attach(self, purpose, half);
    }
}

/// What a link sees of its session.
pub(super) struct Watch(watch::Receiver<State>);

impl Watch {
    /// Waits until the shard has the session.
    ///
    /// # Errors
    /// What the link's peer is to be told.
    pub async fn opened(&mut self) -> Result<SessionId, Error> {
        let state = self.0.wait_for(|state| !matches!(state, State::Opening)).await;
        match state.as_deref() {
            Ok(State::Open(session)) => Ok(*session),
            Ok(State::Ended(error)) => Err(error.clone()),
            Ok(State::Opening) | Err(_) => Err(gone()),
        }
    }

    /// Waits for the session's end.
    pub async fn ended(&mut self) -> Error {
        let state = self.0.wait_for(|state| matches!(state, State::Ended(_))).await;
        match state.as_deref() {
            Ok(State::Ended(error)) => error.clone(),
            Ok(State::Opening | State::Open(_)) | Err(_) => gone(),
        }
    }
}

type Links = mpsc::UnboundedReceiver<(Rc<Session>, Link)>;

async fn run(
    devices: Arc<Devices>,
    visited: Rc<Visited>,
    identity: Authenticated,
    changes: watch::Sender<State>,
    mut links: Links,
) {
    let error = match open(&devices, &visited, &identity).await {
        Ok(home) => {
            let _counted = Counted::new(&devices);
            changes.send_replace(State::Open(home.session));
            Serving::new(&devices, &visited, &home).run(&mut links).await
        }
        Err(error) => error,
    };
    changes.send_replace(State::Ended(error.clone()));
    links.close();
    while let Ok((_session, link)) = links.try_recv() {
        link.end(error.clone());
    }
}

async fn open(devices: &Devices, visited: &Visited, identity: &Authenticated) -> Result<HomeSession, Error> {
    // IoT Hub, quotas and errors section 2: the rate of new connections is limited, not their number.
    let turn = devices.throttles.admit(Class::Connections, 1, Instant::now());
    pass(turn).await.map_err(|throttled| error::of_throttled(&throttled))?;
    let home = home::open(&devices.router, identity, Epoch(0), false)
        .await
        .map_err(|refused| error::of(code_of(&refused), refused))?;
    // Later tokens of the connection may be made by other keys: a change of any of them ends the session.
    home.link.set_proof(None);
    // A change of the identity between the attach and the open found no session to end.
    let grant = Grant::Device(identity.identity.clone());
    visited.grant(&grant).map_err(|refused| error::of_auth(&refused))?;
    Ok(home)
}

fn code_of(error: &OpenError) -> ErrorCode {
    match error {
        OpenError::StaleEpoch { .. } | OpenError::EarlyData | OpenError::Poisoned(_) | OpenError::State(_) => {
            ErrorCode::SERVER_ERROR
        }
        OpenError::Stopping | OpenError::Busy => ErrorCode::SERVER_BUSY,
    }
}

/// What a link is told of its session's end.
// IoT Hub, AMQP section 8.
fn ended(end: &End) -> Error {
    let code = match end.code {
        CloseCode::TakenOver => ErrorCode::LINK_CREATION_CONFLICT,
        CloseCode::DeviceDisabled => ErrorCode::DEVICE_DISABLED,
        CloseCode::DeviceDeleted => ErrorCode::DEVICE_NOT_FOUND,
        // What clients take as a reason to come back.
        CloseCode::Draining => return Error::new(Condition::DETACH_FORCED, end.reason.clone()),
        _ => ErrorCode::SERVER_ERROR,
    };
    error::of(code, &end.reason)
}

/// Of a session whose links are all gone: nobody is left to hear it.
fn gone() -> Error {
    Error::new(Condition::DETACH_FORCED, "the session is over")
}

/// Another link of the identity took this one's place.
pub(super) fn displaced() -> Error {
    error::of(
        ErrorCode::LINK_CREATION_CONFLICT,
        "another link of the same identity took this one's place",
    )
}

/// The session counts as open for as long as this lives.
struct Counted<'a>(&'a Devices);

impl<'a> Counted<'a> {
    fn new(devices: &'a Devices) -> Self {
        devices.observer.session_opened();
        Self(devices)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.observer.session_closed();
    }
}

/// An open session: carries telemetry to the shard, and what the shard says back.
struct Serving<'a> {
    home: &'a HomeSession,
    telemetry: Telemetry,
    next_sequence: u64,
    bytes_max: usize,
    uplink: Option<Attached>,
}

/// The link that telemetry comes on.
struct Attached {
    uplink: Uplink,
    /// Keeps the session for further links.
    session: Rc<Session>,
    /// Set when the link has gone: how long what it left may still wait.
    until: Option<Instant>,
}

impl<'a> Serving<'a> {
    fn new(devices: &Devices, visited: &Visited, home: &'a HomeSession) -> Self {
        let config = &visited.door.config;
        let inflight_bytes_max = u32::try_from(config.window_bytes).unwrap_or(u32::MAX);
        let clock = visited.door.clock.clone();
        Self {
            home,
            telemetry: Telemetry::new(home, &devices.throttles, clock, inflight_bytes_max),
            next_sequence: home.opened.last_sequence + 1,
            bytes_max: config.message_bytes_max,
            uplink: None,
        }
    }

    /// Until the shard ends the session or its last link goes.
    async fn run(mut self, links: &mut Links) -> Error {
        let mut has_links = true;
        loop {
            self.hand_over();
            self.let_go();
            if !has_links && self.uplink.is_none() {
                return gone();
            }
            let until = self.uplink.as_ref().and_then(|attached| attached.until);
            let deadline = [self.telemetry.deadline(), until].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = self.home.link.changed() => {
                    self.take_acknowledged();
                    if let Some(end) = self.home.link.end() {
                        if end.code == CloseCode::Draining {
                            self.drain().await;
                        }
                        return self.end(ended(end));
                    }
                }
                () = self.telemetry.unblocked() => {}
                () = changed(self.uplink.as_ref()) => {}
                next = links.recv(), if has_links => match next {
                    Some((session, link)) => self.attach(session, link),
                    None => has_links = false,
                },
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn attach(&mut self, session: Rc<Session>, link: Link) {
        if let Some(earlier) = self.uplink.take() {
            earlier.uplink.end(displaced());
        }
        self.uplink = Some(Attached {
            uplink: Uplink::accept(link),
            session,
            until: None,
        });
    }

    /// Hands over what came on the link, as far as there is room; what came together goes together.
    fn hand_over(&mut self) {
        self.telemetry.hand_over(|| None);
        while self.telemetry.has_room()
            && let Some(attached) = &mut self.uplink
            && let Some(batch) = {
                let model_id = attached.session.model_id.borrow();
                attached
                    .uplink
                    .take_batch(self.next_sequence, self.bytes_max, &model_id)
            }
        {
            self.next_sequence = batch.last_sequence() + 1;
            let mut batch = Some(batch);
            self.telemetry.hand_over(|| batch.take());
        }
    }

    /// Forgets a link that has gone, once what it left is stored or has waited for long enough.
    fn let_go(&mut self) {
        let Some(attached) = &mut self.uplink else { return };
        if !attached.uplink.is_detached() {
            return;
        }
        let until = *attached.until.get_or_insert_with(|| Instant::now() + FAREWELL_TIMEOUT);
        let is_done = !attached.uplink.has_deliveries() && self.telemetry.is_idle();
        if (is_done || Instant::now() >= until)
            && let Some(attached) = self.uplink.take()
        {
            attached.uplink.forget();
        }
    }

    fn take_acknowledged(&mut self) {
        let acknowledged = self.telemetry.take_acknowledged();
        if let Some(attached) = &mut self.uplink {
            attached.uplink.acknowledge(acknowledged);
        }
    }

    /// The hub stops: what the shard has is still stored, and its sender told.
    async fn drain(&mut self) {
        let all = async {
            while !self.telemetry.is_acknowledged() {
                self.home.link.changed().await;
                self.take_acknowledged();
            }
        };
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, all).await;
    }

    fn end(self, error: Error) -> Error {
        if let Some(attached) = self.uplink {
            attached.uplink.end(error.clone());
        }
        error
    }
}

async fn changed(attached: Option<&Attached>) {
    match attached {
        // One that has gone changes no more.
        Some(Attached {
            uplink, until: None, ..
        }) => uplink.changed().await,
        Some(_) | None => std::future::pending().await,
    }
}
