//! One connection's task, from its CONNECT to its end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};

use super::config::SENDING_BYTES_MAX;
use super::downlink::{Client, Downlink};
use super::ended::Ended;
use super::greeting::{Hello, PreparedWill, Refused};
use super::intake::{Event, Intake, qos};
use super::io::Io;
use super::say::{Listener, say};
use super::seats::Seat;
use super::subscribed::{Methods as Wanted, Subscribed, code};
use super::twin::{self, Desk, Request, Tag};
use super::uplink::Uplink;
use super::will;
use super::window::Window;
use super::{Door, Memory};
use crate::hub::Authenticated;
use crate::hub::method::CALLS_PER_TARGET_MAX;
use crate::hub::subscriptions::{Remembered, Subscription, Unkept};
use crate::hub::throttle::Class;
use crate::model::{Epoch, UtcMillis};
use crate::net::Stream;
use crate::proto::mqtt::{
    ConnAck, Disconnect, Packet, Properties, Property, PropertyBuf, Reason, SubAck, UnsubAck, Version, bag,
};
use crate::session::commands::{self, Queue};
use crate::session::home::{self, HomeSession};
use crate::session::methods::{Invocation, Methods};
use crate::session::telemetry::Telemetry;
use crate::session::twin::{Desired, Observed, OwnTwin};
use crate::shard::command::OpenError;
use crate::shard::timing::{instant_of, pass};

/// How long what was taken may take to be stored at the end, and the last words to get out.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Later than any connection lives.
const FAR: Duration = Duration::from_secs(366 * 86_400);
// IoT Hub, MQTT section 3.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(1767);
const CLIENT_KEEP_ALIVE_MAX: u16 = 1177;
/// What no answer to a method may be: JSON it is not.
const UNREADABLE: &str = "\u{fffd}";

/// Serves a connection until it ends.
pub(super) async fn run<S: Stream>(door: Arc<Door>, stream: S, chain: Vec<CertificateDer<'static>>) {
    let io = Io::new(stream, door.config.packet_bytes_max());
    // A task is as large as all that it ever holds, for all its life: what is over soon is boxed.
    if let Some((session, io)) = Box::pin(greet(door, io, chain)).await {
        session.run(io).await;
    }
}

/// `None`: it has come to nothing.
async fn greet<S: Stream>(
    door: Arc<Door>,
    mut io: Io<S>,
    chain: Vec<CertificateDer<'static>>,
) -> Option<(Box<Session>, Io<S>)> {
    let hello = tokio::select! {
        hello = tokio::time::timeout(door.config.handshake_timeout, read_hello(&mut io)) => hello,
        () = door.shutdown.refusing() => return None,
    };
    let hello = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err(unread)) => {
            refuse_unread(&door, io, unread).await;
            return None;
        }
        Err(_) => {
            door.observer.handshake_failed();
            return None;
        }
    };
    match Session::open(&door, &hello, &chain).await {
        Ok(session) => Some((session, io)),
        Err(refused) => {
            refuse(&door, io, hello.listener(), &refused).await;
            None
        }
    }
}

/// What the first packet came to.
enum Unread {
    Ended(Ended),
    Malformed(crate::proto::mqtt::Error),
}

async fn read_hello<S: Stream>(io: &mut Io<S>) -> Result<Hello, Unread> {
    let mut hello = None;
    // 3.1.1 until the CONNECT says otherwise.
    let read = poll_fn(|context| {
        io.poll_packets(context, Version::V3, |packet| match packet {
            Packet::Connect(connect) => {
                hello = Some(Hello::of(&connect));
                Ok(false)
            }
            _ => Err(Ended::protocol("a packet before the CONNECT")),
        })
    });
    read.await.map_err(|ended| match ended.error {
        Some(error) => Unread::Malformed(error),
        None => Unread::Ended(ended),
    })?;
    hello.ok_or_else(|| Unread::Ended(Ended::lost()))
}

async fn refuse_unread<S: Stream>(door: &Door, io: Io<S>, unread: Unread) {
    match unread {
        Unread::Malformed(error) => match Refused::of_error(error) {
            // A client of another version reads at least the beginning of an answer of 3.1.1.
            Some(refused) => {
                let listener = Listener {
                    version: Version::V3,
                    packet_bytes_max: u32::MAX,
                };
                refuse(door, io, listener, &refused).await;
            }
            None => {
                tracing::debug!(%error, "no CONNECT");
                door.observer.connect_refused("malformed");
            }
        },
        Unread::Ended(ended) if ended.label == "lost" => door.observer.handshake_failed(),
        Unread::Ended(_) => door.observer.connect_refused("protocol"),
    }
}

async fn refuse<S: Stream>(door: &Door, mut io: Io<S>, listener: Listener, refused: &Refused) {
    door.observer.connect_refused(refused.label);
    tracing::debug!(label = refused.label, reason = refused.text, "CONNECT refused");
    let code = match listener.version {
        Version::V3 => refused.code,
        Version::V5 => refused.reason.0,
    };
    let mut out = Vec::new();
    with_reason(&refused.text, listener, &mut out, |properties| {
        Packet::ConnAck(ConnAck {
            is_session_present: false,
            code,
            properties,
        })
    });
    io.finish(out, FAREWELL_TIMEOUT).await;
}

/// Appends a packet that says its reason in words, if the client takes one so long.
// MQTT 5 [MQTT-3.2.2-19], [MQTT-3.14.2-3].
fn with_reason(
    text: &str,
    listener: Listener,
    out: &mut Vec<u8>,
    packet: impl for<'b> Fn(Properties<'b>) -> Packet<'b>,
) {
    let mut said = PropertyBuf::default();
    said.push(Property::ReasonString(text));
    let before = out.len();
    for properties in [said.as_properties(), Properties::NONE] {
        let is_written = packet(properties).encode(listener.version, out).is_ok();
        if is_written && listener.takes(out, before) {
            return;
        }
        out.truncate(before);
    }
}

/// A session on its connection.
struct Session {
    door: Arc<Door>,
    identity: Authenticated,
    intake: Intake,
    telemetry: Telemetry,
    home: HomeSession,
    /// All up to here is stored.
    stored: u64,
    subscribed: Subscribed,
    /// An answer that waits until what was subscribed is kept.
    keeping: Option<Keeping>,
    kept: mpsc::UnboundedReceiver<Result<(), Unkept>>,
    keep: mpsc::UnboundedSender<Result<(), Unkept>>,
    downlink: Option<Downlink>,
    methods: Option<Methods>,
    wanted: Wanted,
    observed: Option<Observed>,
    desk: Option<Desk>,
    will: Option<PreparedWill>,
    /// Seconds.
    session_expiry: u32,
    receive_maximum: u16,
    listener: Listener,
    /// When the credential runs out, on the clock that timers follow.
    expiry: Option<Instant>,
    /// The longest silence.
    keep_alive: Duration,
    last_packet: Instant,
    seat: Seat<Memory>,
}

/// What is answered once the store has what was subscribed.
struct Keeping {
    answer: Vec<u8>,
    /// What it is otherwise.
    failure: Vec<u8>,
    before: Subscribed,
}

impl Session {
    async fn open(door: &Arc<Door>, hello: &Hello, chain: &[CertificateDer<'static>]) -> Result<Box<Self>, Refused> {
        let identity = hello.authenticate(door, chain)?;
        let name = &identity.identity;
        let will = hello.will(door, name)?;
        // IoT Hub, quotas and errors section 2: the rate of new connections is limited, not their number.
        let turn = door.throttles.admit(Class::Connections, 1, Instant::now());
        pass(turn)
            .await
            .map_err(|throttled| Refused::unavailable("throttled", Reason::CONNECTION_RATE_EXCEEDED, throttled))?;
        let (seat, memory) = door.seats.take(name).await;
        let (earlier, remembered) = earlier_session(door, hello, &identity, memory).await?;
        let is_kept = hello.said.session_expiry > 0;
        let is_session_present = earlier.is_some() || remembered.is_some();

        let epoch = earlier.as_ref().map_or(Epoch(0), Window::epoch);
        let home = match home::open(&door.router, &identity, epoch, false).await {
            // Another door has served the device meanwhile: what the epoch before stored is not known any more.
            Err(OpenError::StaleEpoch { .. }) => home::open(&door.router, &identity, Epoch(0), false).await,
            opened => opened,
        };
        let home = home.map_err(|error| Refused::of_open(&error))?;
        // A change of the identity between its proof and the open found no session to end.
        let identity = hello.authenticate(door, chain)?;
        let name = identity.identity.clone();

        let knows_duplicates = is_kept && !door.config.duplicate_window.is_zero();
        let stored = home.opened.last_sequence;
        let window = match earlier.filter(|window| window.epoch() == home.opened.epoch) {
            Some(window) => window.resumed(stored, knows_duplicates),
            None => Window::new(home.opened.epoch, knows_duplicates),
        };
        let version = hello.version;
        let uplink = Uplink::new(
            door.clone(),
            name.clone(),
            version,
            window,
            knows_duplicates,
            stored,
            hello.model_id(),
        );
        let window_bytes = door.config.window_bytes;
        let telemetry = Telemetry::new(&home, &door.throttles, door.clock.clone(), window_bytes);
        let (keep, kept) = mpsc::unbounded_channel();
        let mut session = Box::new(Self {
            door: door.clone(),
            intake: Intake {
                version,
                uplink,
                inflight_max: door.config.inflight_max,
                out: Vec::new(),
                event: None,
            },
            telemetry,
            home,
            stored,
            subscribed: Subscribed::new(remembered.map_or_else(Vec::new, |remembered| remembered.filters)),
            keeping: None,
            kept,
            keep,
            downlink: None,
            methods: None,
            wanted: Wanted::None,
            observed: None,
            desk: None,
            will,
            session_expiry: hello.said.session_expiry,
            receive_maximum: hello.said.receive_maximum,
            listener: hello.listener(),
            expiry: identity.expires.map(|at| instant_of(&*door.clock, at)),
            keep_alive: keep_alive(hello.keep_alive),
            last_packet: Instant::now(),
            seat,
            identity,
        });
        session.welcome(hello, is_session_present);
        session.follow_subscriptions();
        Ok(session)
    }

    fn welcome(&mut self, hello: &Hello, is_session_present: bool) {
        let config = &self.door.config;
        let mut properties = PropertyBuf::default();
        let packet_bytes_max = u32::try_from(config.packet_bytes_max()).unwrap_or(u32::MAX);
        // MQTT 5 s3.2.2.3: what is not as the defaults say.
        properties.push(Property::ReceiveMaximum(config.inflight_max));
        properties.push(Property::MaximumQoS(1));
        properties.push(Property::RetainAvailable(0));
        properties.push(Property::MaximumPacketSize(packet_bytes_max));
        properties.push(Property::SubscriptionIdAvailable(0));
        properties.push(Property::SharedAvailable(0));
        if hello.keep_alive == 0 || hello.keep_alive > CLIENT_KEEP_ALIVE_MAX {
            properties.push(Property::ServerKeepAlive(CLIENT_KEEP_ALIVE_MAX));
        }
        if let Some(id) = hello.assigned_client_id(&self.identity.identity) {
            properties.push(Property::AssignedClientId(&id));
        }
        let ack = ConnAck {
            is_session_present,
            code: 0,
            properties: properties.as_properties(),
        };
        Packet::ConnAck(ack)
            .encode(self.intake.version, &mut self.intake.out)
            .expect("a CONNACK of known properties is short");
    }

    async fn run<S: Stream>(mut self: Box<Self>, mut io: Io<S>) {
        let door = self.door.clone();
        door.observer.session_opened();
        let ended = self.serve(&mut io).await;
        if ended.label != "goodbye" && ended.label != "lost" {
            door.observer.ended(ended.label);
        }
        tracing::debug!(
            device = self.identity.identity.device.as_str(),
            label = ended.label,
            reason = ended.text,
            "MQTT connection ended"
        );
        Box::pin(self.end(io, ended)).await;
        door.observer.session_closed();
    }

    async fn serve<S: Stream>(&mut self, io: &mut Io<S>) -> Ended {
        let door = self.door.clone();
        let mut timer = pin!(tokio::time::sleep(FAR));
        let mut stop = pin!(door.shutdown.stopping());
        loop {
            if let Err(ended) = self.advance() {
                return ended;
            }
            let deadline = tokio::time::Instant::from_std(self.deadline(io));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            match self.step(io, timer.as_mut(), stop.as_mut()).await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
        }
    }

    /// Does what can be done without waiting.
    fn advance(&mut self) -> Result<(), Ended> {
        self.hand_over();
        while self.keeping.is_none()
            && let Some(event) = self.intake.event.take()
        {
            self.handle(event)?;
        }
        self.intake.uplink.acknowledge(self.stored, &mut self.intake.out);
        self.send_commands();
        Ok(())
    }

    fn hand_over(&mut self) {
        self.telemetry.hand_over(|| None);
        while self.telemetry.has_room()
            && let Some(batch) = self.intake.uplink.take_batch()
        {
            let mut batch = Some(batch);
            self.telemetry.hand_over(|| batch.take());
        }
    }

    /// Waits for one thing, and does it.
    async fn step<S: Stream>(
        &mut self,
        io: &mut Io<S>,
        timer: Pin<&mut tokio::time::Sleep>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Ended> {
        let may_read = self.may_read();
        let may_say = self.intake.out.len() < SENDING_BYTES_MAX;
        let (version, listener) = (self.intake.version, self.listener);
        let (was_stalled, was_full) = (io.stalled_since.is_some(), !may_say);
        let Self {
            intake,
            telemetry,
            home,
            downlink,
            methods,
            observed,
            desk,
            kept,
            seat,
            ..
        } = self;
        tokio::select! {
            biased;
            () = home.link.changed() => {
                self.stored = self.stored.max(telemetry.take_acknowledged());
                if let Some(end) = home.link.end() {
                    return Err(Ended::by_shard(end));
                }
            }
            read = poll_fn(|context| {
                if let Err(ended) = io.poll_send(context, &mut intake.out) {
                    return Poll::Ready(Err(ended));
                }
                // The timer was set, and what may be done was judged, before: both have to follow.
                let is_full = intake.out.len() >= SENDING_BYTES_MAX;
                if io.stalled_since.is_some() != was_stalled || is_full != was_full {
                    return Poll::Ready(Ok(false));
                }
                if !may_read {
                    return Poll::Pending;
                }
                io.poll_packets(context, version, |packet| intake.take(&packet)).map_ok(|()| true)
            }) => {
                if read? {
                    self.last_packet = Instant::now();
                }
            }
            () = telemetry.unblocked() => {}
            event = next_command(downlink), if may_say => self.command(event),
            invocation = next_call(methods), if may_say => match invocation {
                Some(invocation) => self.call(&invocation),
                // Another session has the calls; this one ends soon.
                None => self.methods = None,
            },
            desired = next_desired(observed), if may_say => match desired {
                Some(desired) => twin::write_desired(&desired, listener, &mut intake.out),
                None => self.observed = None,
            },
            answer = next_answer(desk), if may_say => answer.write(listener, &mut intake.out),
            Some(kept) = kept.recv() => self.kept(kept),
            () = seat.wanted() => return Err(Ended::taken_over()),
            () = timer => self.handle_timeout(io)?,
            () = stop => return Err(Ended::stopping()),
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.telemetry.has_room()
            && self.keeping.is_none()
            && self.intake.has_room()
            && self.intake.out.len() < SENDING_BYTES_MAX
            && self.desk.as_ref().is_none_or(|desk| desk.pending() < twin::PENDING_MAX)
            && !self.downlink.as_ref().is_some_and(Downlink::is_settling_much)
    }

    fn deadline<S: Stream>(&self, io: &Io<S>) -> Instant {
        let keep_alive = self.last_packet + self.keep_alive;
        let stalled = io.stalled_since.map(|since| since + self.door.config.stall_timeout);
        let others = [self.expiry, stalled, self.telemetry.deadline()];
        others.into_iter().flatten().fold(keep_alive, Instant::min)
    }

    fn handle_timeout<S: Stream>(&mut self, io: &Io<S>) -> Result<(), Ended> {
        let now = Instant::now();
        if io
            .stalled_since
            .is_some_and(|since| now >= since + self.door.config.stall_timeout)
        {
            return Err(Ended::stalled());
        }
        if self.identity.expires.is_some_and(|at| self.door.clock.now() >= at) {
            return Err(Ended::expired());
        }
        // The wall clock may have been set.
        self.expiry = self.identity.expires.map(|at| instant_of(&*self.door.clock, at));
        if now >= self.last_packet + self.keep_alive {
            // What the hub does not read is not the client's silence.
            if !self.may_read() {
                self.last_packet = now;
                return Ok(());
            }
            return Err(Ended::keep_alive());
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Subscribe { packet_id, filters } => self.subscribe(packet_id, &filters),
            Event::Unsubscribe { packet_id, filters } => self.unsubscribe(packet_id, &filters),
            Event::Acknowledged(id, reason) => {
                // One that is unknown: of a message whose lock ran out long ago, or of none.
                let is_known = self
                    .downlink
                    .as_mut()
                    .is_some_and(|downlink| downlink.acknowledged(id, reason));
                if !is_known {
                    tracing::debug!(id, "an acknowledgement of nothing");
                }
            }
            Event::Twin(tag, request) => self.ask(tag, request),
            Event::MethodAnswer { rid, status, payload } => {
                let id = u64::from_str_radix(&rid, 16).ok();
                if let (Some(id), Some(methods)) = (id, &mut self.methods) {
                    // An answer that cannot be passed on is one all the same.
                    methods.answer(id, status, std::str::from_utf8(&payload).unwrap_or(UNREADABLE));
                }
            }
            Event::Goodbye { reason, session_expiry } => {
                if let Some(seconds) = session_expiry {
                    // MQTT 5 [MQTT-3.1.2-23]: a session that ends with its connection stays one.
                    if self.session_expiry == 0 && seconds != 0 {
                        return Err(Ended::protocol("the session was not to be kept"));
                    }
                    self.session_expiry = seconds;
                }
                return Err(Ended::goodbye(reason));
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, packet_id: std::num::NonZeroU16, filters: &[Subscription]) {
        let (before, version) = (self.subscribed.clone(), self.intake.version);
        let name = &self.identity.identity;
        let granted = filters.iter().map(|asked| {
            let granted = self.subscribed.add(&asked.filter, qos(asked.qos), name);
            code(granted, version)
        });
        let codes: Vec<u8> = granted.collect();
        let failed = vec![Reason::UNSPECIFIED.0; codes.len()];
        let write = |codes: &[u8]| {
            let ack = SubAck {
                packet_id,
                properties: Properties::NONE,
                codes,
            };
            let mut answer = Vec::new();
            // No packet that came has more filters than one that is sent may have codes.
            let _ = Packet::SubAck(ack).encode(version, &mut answer);
            answer
        };
        self.subscriptions_changed(Keeping {
            answer: write(&codes),
            failure: write(&failed),
            before,
        });
    }

    fn unsubscribe(&mut self, packet_id: std::num::NonZeroU16, filters: &[String]) {
        let (before, version) = (self.subscribed.clone(), self.intake.version);
        let removed = filters.iter().map(|filter| match self.subscribed.remove(filter) {
            true => Reason::SUCCESS.0,
            false => Reason::NO_SUBSCRIPTION_EXISTED.0,
        });
        let codes: Vec<u8> = removed.collect();
        let failed = vec![Reason::UNSPECIFIED.0; codes.len()];
        let write = |codes: &[u8]| {
            let ack = UnsubAck {
                packet_id,
                properties: Properties::NONE,
                codes,
            };
            let mut answer = Vec::new();
            let _ = Packet::UnsubAck(ack).encode(version, &mut answer);
            answer
        };
        self.subscriptions_changed(Keeping {
            answer: write(&codes),
            failure: write(&failed),
            before,
        });
    }

    /// Answers once what is subscribed is kept, if it is to be: SDKs subscribe once and rely on it.
    fn subscriptions_changed(&mut self, keeping: Keeping) {
        if self.session_expiry == 0 || keeping.before == self.subscribed {
            self.intake.out.extend_from_slice(&keeping.answer);
            self.follow_subscriptions();
            return;
        }
        self.keeping = Some(keeping);
        self.remember(None, Some(self.keep.clone()));
    }

    fn remember(&self, expires: Option<UtcMillis>, kept: Option<mpsc::UnboundedSender<Result<(), Unkept>>>) {
        let remembered = Remembered {
            filters: self.subscribed.filters().to_vec(),
            expires,
        };
        let (name, generation) = (&self.identity.identity, self.identity.generation);
        self.door
            .subscriptions
            .put(name, generation, remembered, move |result| {
                if let Some(kept) = kept {
                    // Without a session nobody waits.
                    drop(kept.send(result));
                }
            });
    }

    fn kept(&mut self, result: Result<(), Unkept>) {
        let Some(keeping) = self.keeping.take() else { return };
        match result {
            Ok(()) => self.intake.out.extend_from_slice(&keeping.answer),
            Err(error) => {
                tracing::warn!(%error, "subscriptions were not kept");
                self.subscribed = keeping.before;
                // MQTT 3.1.1 knows no other answer to an UNSUBSCRIBE than that it is done.
                self.intake.out.extend_from_slice(&keeping.failure);
            }
        }
        self.follow_subscriptions();
    }

    /// Serves what is subscribed, and nothing else.
    fn follow_subscriptions(&mut self) {
        let (door, name) = (&self.door, &self.identity.identity);
        match (self.subscribed.commands(), &mut self.downlink) {
            (Some(qos), Some(downlink)) => downlink.set_qos(qos),
            (Some(qos), None) => {
                let (outboxes, clock) = (door.outboxes.clone(), door.clock.clone());
                let window = Downlink::window(self.receive_maximum);
                let queue = Queue::open(outboxes, &door.lines, name.clone(), clock, window);
                self.downlink = Some(Downlink::new(queue, qos, self.receive_maximum));
            }
            (None, _) => self.downlink = None,
        }
        self.wanted = self.subscribed.methods();
        if self.wanted == Wanted::None {
            self.methods = None;
        } else if self.methods.is_none() {
            self.methods = Some(Methods::listen(&door.lines, name, CALLS_PER_TARGET_MAX));
        }
        if !self.subscribed.has_desired_changes() {
            self.observed = None;
        } else if self.observed.is_none() {
            // IoT Hub, MQTT section 6: what changed before is not told; a device reads its twin.
            match Observed::open(&door.lines, &door.twins, name, 0) {
                Ok((observed, _)) => self.observed = Some(observed),
                Err(error) => tracing::warn!(%error, "a twin cannot be observed"),
            }
        }
    }

    fn ask(&mut self, mut tag: Tag, request: Request) {
        tag.is_heard = self.subscribed.has_twin_answers();
        let door = &self.door;
        let desk = self.desk.get_or_insert_with(|| {
            let (name, generation) = (self.identity.identity.clone(), self.identity.generation);
            let (twins, throttles) = (door.twins.clone(), door.throttles.clone());
            Desk::open(OwnTwin::new(twins, throttles, door.clock.clone(), name, generation))
        });
        desk.ask(tag, request);
    }

    fn command(&mut self, event: commands::Event) {
        match event {
            commands::Event::Deliver(delivered) => {
                if let Some(downlink) = &mut self.downlink {
                    downlink.deliver(delivered);
                }
            }
            commands::Event::Settled(_, Ok(())) => {}
            // The lock ran out first: the message comes again.
            commands::Event::Settled(_, Err(error)) => tracing::debug!(%error, "settlement refused"),
            // Another session takes the messages; this one ends soon.
            commands::Event::Replaced => self.downlink = None,
            commands::Event::Failed(error) => {
                tracing::warn!(%error, "messages to a device cannot be taken");
                self.downlink = None;
            }
        }
    }

    fn send_commands(&mut self) {
        if let Some(downlink) = &mut self.downlink
            && downlink.has_waiting()
        {
            let client = Client {
                name: &self.identity.identity,
                listener: self.listener,
            };
            downlink.send(client, self.door.clock.now(), SENDING_BYTES_MAX, &mut self.intake.out);
        }
    }

    // IoT Hub, MQTT section 7.
    fn call(&mut self, invocation: &Invocation) {
        if !self.wanted.include(&invocation.name) {
            if let Some(methods) = &mut self.methods {
                methods.refuse(invocation.id);
            }
            return;
        }
        let rid = format!("{:x}", invocation.id);
        let mut topic = "$iothub/methods/POST/".to_owned();
        bag::encode(&mut topic, &invocation.name);
        topic.push_str(&format!("/?$rid={rid}"));
        let mut properties = PropertyBuf::default();
        if self.listener.version == Version::V5 {
            let answer = format!("$iothub/methods/res/200/?$rid={rid}");
            properties.push(Property::ResponseTopic(&answer));
            properties.push(Property::CorrelationData(rid.as_bytes()));
        }
        let payload = invocation.payload.as_bytes();
        say(&topic, &properties, payload, self.listener, &mut self.intake.out);
    }

    /// Says the last words, and leaves behind what the session's next connection needs.
    async fn end<S: Stream>(mut self: Box<Self>, mut io: Io<S>, ended: Ended) {
        if ended.is_orderly {
            self.settle(&mut io).await;
        }
        // MQTT 5 s3.14.2.2.2: a client may say so with its goodbye.
        if self.session_expiry == 0
            && !self.subscribed.filters().is_empty()
            && let Err(error) = forget(&self.door, &self.identity).await
        {
            tracing::debug!(%error, "a session was not forgotten");
        }
        self.intake.uplink.acknowledge(self.stored, &mut self.intake.out);
        let mut out = std::mem::take(&mut self.intake.out);
        if let (Version::V5, Some(reason)) = (self.intake.version, ended.reason) {
            with_reason(&ended.text, self.listener, &mut out, |properties| {
                Packet::Disconnect(Disconnect { reason, properties })
            });
        }
        self.leave(ended.has_will);
        io.finish(out, FAREWELL_TIMEOUT).await;
    }

    /// What was taken is still stored, and answered.
    async fn settle<S: Stream>(&mut self, io: &mut Io<S>) {
        let all = async {
            self.hand_over();
            while !self.telemetry.is_idle() {
                tokio::select! {
                    () = self.home.link.changed() => {}
                    () = self.telemetry.unblocked() => {}
                }
                self.stored = self.stored.max(self.telemetry.take_acknowledged());
                self.intake.uplink.acknowledge(self.stored, &mut self.intake.out);
                self.hand_over();
                if poll_fn(|context| Poll::Ready(io.poll_send(context, &mut self.intake.out)))
                    .await
                    .is_err()
                    || self.home.link.end().is_some_and(|_| self.telemetry.is_acknowledged())
                {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, all).await;
    }

    fn leave(self: Box<Self>, has_will: bool) {
        let Self {
            door,
            identity,
            intake,
            home,
            subscribed,
            mut seat,
            will,
            session_expiry,
            downlink,
            ..
        } = *self;
        // Before the seat is free: what comes next must find the session closed, and its messages given back.
        drop(downlink);
        drop(home);
        let name = &identity.identity;
        if !subscribed.filters().is_empty() {
            match session_expiry {
                // For ever: as it stands.
                u32::MAX => {}
                // Not kept, or forgotten already.
                0 => {}
                seconds => {
                    let at = UtcMillis(door.clock.now().0 + i64::from(seconds) * 1000);
                    let remembered = Remembered {
                        filters: subscribed.filters().to_vec(),
                        expires: Some(at),
                    };
                    door.subscriptions.put(name, identity.generation, remembered, |_| ());
                }
            }
        }
        let will = will.filter(|_| has_will);
        let delay = Duration::from_secs(will.as_ref().map_or(0, |will| will.delay).into());
        let taken_back = will.and_then(|will| will::publish(&door, identity, will));
        if session_expiry > 0 {
            let kept = door
                .config
                .duplicate_window
                .min(Duration::from_secs(session_expiry.into()));
            let now = Instant::now();
            let memory = Memory {
                window: intake.uplink.window,
                until: now + kept,
                will: taken_back,
            };
            seat.leave_behind(memory, now + kept.max(delay));
        }
    }
}

type Earlier = (Option<Window>, Option<Remembered>);

/// What is left of the session that this CONNECT goes on with, or ends.
async fn earlier_session(
    door: &Door,
    hello: &Hello,
    identity: &Authenticated,
    memory: Option<Memory>,
) -> Result<Earlier, Refused> {
    let name = &identity.identity;
    let remembered = door
        .subscriptions
        .get(name, identity.generation, door.clock.now())
        .map_err(|error| Refused::unavailable("unavailable", Reason::SERVER_UNAVAILABLE, error))?;
    if hello.is_clean {
        // Whose will is dropped is published: its session is over.
        if remembered.is_some() {
            forget(door, identity)
                .await
                .map_err(|error| Refused::unavailable("unavailable", Reason::SERVER_UNAVAILABLE, error))?;
        }
        return Ok((None, None));
    }
    let window = memory.and_then(|memory| {
        if let Some(will) = memory.will {
            let _ = will.send(());
        }
        (Instant::now() < memory.until).then_some(memory.window)
    });
    Ok((window, remembered))
}

/// Ends what is remembered of a session; whoever comes next finds nothing of it.
async fn forget(door: &Door, identity: &Authenticated) -> Result<(), Unkept> {
    let (done, forgotten) = oneshot::channel();
    door.subscriptions
        .forget(&identity.identity, identity.generation, |result| {
            drop(done.send(result))
        });
    // The store is gone: the hub is at the end of its stop.
    forgotten.await.unwrap_or(Ok(()))
}

// IoT Hub, MQTT section 3.
fn keep_alive(seconds: u16) -> Duration {
    match seconds {
        0 => KEEP_ALIVE_MAX,
        seconds => (Duration::from_secs(seconds.into()) * 3 / 2).min(KEEP_ALIVE_MAX),
    }
}

async fn next_command(downlink: &mut Option<Downlink>) -> commands::Event {
    match downlink {
        Some(downlink) => downlink.next().await,
        None => std::future::pending().await,
    }
}

async fn next_call(methods: &mut Option<Methods>) -> Option<Invocation> {
    match methods {
        Some(methods) => methods.next().await.ok(),
        None => std::future::pending().await,
    }
}

async fn next_desired(observed: &mut Option<Observed>) -> Option<Desired> {
    match observed {
        Some(observed) => observed.next().await.ok(),
        None => std::future::pending().await,
    }
}

async fn next_answer(desk: &mut Option<Desk>) -> twin::Answer {
    match desk {
        Some(desk) => desk.answer().await,
        None => std::future::pending().await,
    }
}
