//! The native door: one QUIC endpoint per port, its connections spread over the arbiters.
//!
//! A native client's first connection id carries its device's hash (`wire::hint`), so its connection is accepted on the
//! home shard and the way from packet to log never leaves that thread; all others go round robin.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix_rt::ArbiterHandle;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, RecvStream, SendStream,
    ServerConfig, TransportConfig, VarInt, ZeroRttAccepted,
};
use tokio::sync::Notify;

use super::config::Config;
use super::connection_id::ConnectionIds;
use super::observer::{Handshake, Observer};
use super::{device, service};
use crate::hub::auth::{Authenticated, Authenticator, Credential, ServiceAuthenticated};
use crate::hub::policy::Permissions;
use crate::hub::{
    Authorities, Events, Feedbacks, Groups, IdentityName, Live, Outboxes, Policies, Registry, Throttles, Twins,
};
use crate::log::DiskStorage;
use crate::model::time::Clock;
use crate::model::{ConsumerGroup, DeviceId, ModuleId, PartitionId, UtcMillis};
use crate::net::admission::Admission;
use crate::net::shutdown::Shutdown;
use crate::shard::Durability;
use crate::shard::lines::Lines;
use crate::shard::readers::Readers;
use crate::shard::router::Router;
use crate::shard::timing;
use crate::wire::close::CloseCode;
use crate::wire::control::{CONTROL_BYTES_MAX, Control, Hello, Role};
use crate::wire::frame::{Decoder, Kind, VERSION};
use crate::wire::hint;

/// How a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closing {
    pub code: CloseCode,
    pub reason: String,
    /// The peer or the path is gone: nothing to send.
    is_gone: bool,
}

impl Closing {
    pub fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            is_gone: false,
        }
    }

    /// Whether there is nobody to tell.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub fn gone() -> Self {
        Self {
            code: CloseCode::Normal,
            reason: String::new(),
            is_gone: true,
        }
    }
}

/// The rooms of the hub that the door leads to.
#[derive(Clone)]
pub struct HubParts {
    pub authenticator: Authenticator,
    pub policies: Policies,
    pub authorities: Authorities,
    pub registry: Registry,
    pub groups: Groups,
    pub outboxes: Outboxes,
    pub throttles: Arc<Throttles>,
    pub live: Live,
    pub events: Events,
    pub feedbacks: Feedbacks,
    pub twins: Twins,
    pub lines: Lines,
    /// The name that tokens are made for.
    pub host_name: String,
}

/// What all sessions of the door share.
pub struct Door {
    pub config: Config,
    pub(super) router: Arc<Router<DiskStorage>>,
    pub(super) authenticator: Authenticator,
    pub(super) policies: Policies,
    pub(super) authorities: Authorities,
    pub(super) registry: Registry,
    pub(super) groups: Groups,
    pub(super) outboxes: Outboxes,
    pub(super) throttles: Arc<Throttles>,
    pub(super) live: Live,
    pub(super) events: Events,
    pub(super) feedbacks: Feedbacks,
    pub(super) twins: Twins,
    pub(super) lines: Lines,
    host_name: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) durability: Durability,
    pub(super) observer: Arc<dyn Observer>,
    /// Of handshakes.
    pub admission: Arc<Admission>,
    sessions: AtomicUsize,
    /// More are refused; may change while the door is open.
    pub sessions_max: AtomicUsize,
    /// Service connections leave at its second stage; device sessions are told by their shard.
    pub shutdown: Shutdown,
    /// Who owns which partition of which group in this process: rung when another takes over.
    pub(super) owners: Mutex<HashMap<(ConsumerGroup, PartitionId), Arc<Notify>>>,
    /// Where consumers stand, for their lag.
    pub readers: Arc<Readers>,
}

impl Door {
    pub fn new(
        config: Config,
        router: Arc<Router<DiskStorage>>,
        hub: HubParts,
        clock: Arc<dyn Clock>,
        durability: Durability,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            admission: Arc::new(Admission::new(config.handshakes_per_second)),
            sessions_max: AtomicUsize::new(config.sessions_max),
            config,
            router,
            authenticator: hub.authenticator,
            policies: hub.policies,
            authorities: hub.authorities,
            registry: hub.registry,
            groups: hub.groups,
            outboxes: hub.outboxes,
            throttles: hub.throttles,
            live: hub.live,
            events: hub.events,
            feedbacks: hub.feedbacks,
            twins: hub.twins,
            lines: hub.lines,
            host_name: hub.host_name,
            clock,
            durability,
            observer,
            sessions: AtomicUsize::new(0),
            shutdown: Shutdown::default(),
            owners: Mutex::new(HashMap::new()),
            readers: Arc::default(),
        })
    }

    /// Connections open now, handshakes included.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// First packets that may wait for their turn: longer than this takes, a client would send its packet again.
    fn waiting_max(&self) -> usize {
        let served = (self.config.handshakes_per_second as usize).saturating_mul(WAIT_SECONDS_MAX);
        // Some are held for a moment only, to be told to prove their address.
        served.clamp(1, INCOMING_MAX - INCOMING_MAX / 16)
    }

    /// When a wall-clock time will be, on the monotonic clock that timers follow.
    pub(super) fn instant_of(&self, at: UtcMillis) -> Instant {
        timing::instant_of(&*self.clock, at)
    }

    pub(super) fn authenticate_device(
        &self,
        connection: &Connection,
        device: &DeviceId,
        hello: &Hello,
    ) -> Result<Authenticated, Closing> {
        if !hello.token.is_empty() {
            return self.authenticate_token(device, &hello.module_id, &hello.token);
        }
        let chain = peer_chain(connection);
        let chain: Vec<&[u8]> = chain.iter().map(|certificate| certificate.as_ref()).collect();
        let credential = match chain.split_first() {
            Some((leaf, intermediates)) => Credential::Certificate { leaf, intermediates },
            None => Credential::Nothing,
        };
        self.authenticate(device, &hello.module_id, credential)
    }

    pub(super) fn authenticate_token(
        &self,
        device: &DeviceId,
        module_id: &str,
        token: &str,
    ) -> Result<Authenticated, Closing> {
        self.authenticate(device, module_id, Credential::Sas(token))
    }

    fn authenticate(
        &self,
        device: &DeviceId,
        module_id: &str,
        credential: Credential<'_>,
    ) -> Result<Authenticated, Closing> {
        let module = match module_id {
            "" => None,
            id => Some(ModuleId::new(id).map_err(|error| {
                self.observer.auth_refused("malformed");
                Closing::new(CloseCode::Unauthorized, format!("module id {error}"))
            })?),
        };
        let wanted = IdentityName {
            device: device.clone(),
            module,
        };
        self.authenticator
            .authenticate(credential, &wanted, &self.host_name, self.clock.now())
            .map_err(|error| self.refused(&error))
    }

    /// A policy's token, for whatever the policy permits; each operation is checked when it is asked for.
    pub(super) fn authenticate_service(&self, token: &str) -> Result<ServiceAuthenticated, Closing> {
        self.authenticator
            .authenticate_service(token, Permissions::NONE, &self.host_name, self.clock.now())
            .map_err(|error| self.refused(&error))
    }

    pub(super) fn refused(&self, error: &crate::hub::auth::AuthError) -> Closing {
        self.observer.auth_refused(error.label());
        tracing::debug!(%error, "credential refused");
        super::error::closing_of_auth(error)
    }
}

fn peer_chain(connection: &Connection) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| {
            identity
                .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .map_or_else(Vec::new, |chain| *chain)
}

/// Telemetry and one stream for each of messages, twin and methods, with room for their successors.
const DEVICE_STREAMS_MAX: u32 = 8;

/// The transport limits of one connection, before a service is recognised.
pub fn transport(config: &Config) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(config.idle_timeout).unwrap_or(IdleTimeout::from(VarInt::from_u32(u32::MAX)));
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(config.udp_payload_bytes_max);
    let mut ack_frequency = quinn::AckFrequencyConfig::default();
    ack_frequency.ack_eliciting_threshold(VarInt::from_u32(20));
    ack_frequency.max_ack_delay(Some(Duration::from_millis(25)));
    transport
        .max_idle_timeout(Some(idle))
        .stream_receive_window(VarInt::from_u32(config.stream_window_bytes))
        .receive_window(VarInt::from_u32(config.connection_window_bytes))
        .send_window(u64::from(config.send_window_bytes))
        .max_concurrent_bidi_streams(VarInt::from_u32(DEVICE_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .crypto_buffer_size(8 * 1024)
        .mtu_discovery_config(Some(mtu_discovery))
        // Clients of any QUIC stack that offer the extension send fewer acknowledgements of our packets.
        .ack_frequency_config(Some(ack_frequency));
    transport
}

/// First packets held at a time, those that wait for their turn among them.
const INCOMING_MAX: usize = 4096;
/// What the line is long at most. A client gives up after 10 s, and its place would be served for nobody.
const WAIT_SECONDS_MAX: usize = 4;

/// A bound port, and how connections to it are taken.
#[derive(Clone)]
pub struct Bound {
    pub endpoint: Endpoint,
    /// For connections whose first packet says that a device comes.
    device: Arc<ServerConfig>,
}

/// Binds the endpoint. Call on the thread whose runtime is to receive the datagrams.
///
/// # Errors
/// The socket cannot be bound.
pub fn bind(config: &Config, mut server: ServerConfig, reset_key: &[u8; 64]) -> std::io::Result<Bound> {
    // What goes to a device is small: packets larger than the least that every path takes are not worth their probes.
    let mut to_device = transport(config);
    to_device.mtu_discovery_config(None);
    let mut device = server.clone();
    device.transport_config(Arc::new(to_device)).migration(true);
    server
        .transport_config(Arc::new(transport(config)))
        .migration(true)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(64 << 20);
    let socket = bind_udp(config.listen)?;
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key);
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint
        .max_udp_payload_size(config.udp_payload_bytes_max.max(UDP_PAYLOAD_BYTES_DEFAULT))
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?
        .cid_generator(|| Box::new(ConnectionIds::new()))
        .min_reset_interval(RESET_INTERVAL_MIN);
    let endpoint = Endpoint::new(endpoint, Some(server), socket, Arc::new(quinn::TokioRuntime))?;
    Ok(Bound {
        endpoint,
        device: Arc::new(device),
    })
}

/// What any QUIC peer may send without asking (quinn's default).
const UDP_PAYLOAD_BYTES_DEFAULT: u16 = 1472;

fn bind_udp(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    // A burst of ten thousand devices' first packets should wait in the kernel rather than be dropped.
    let _ = socket.set_recv_buffer_size(4 << 20);
    let _ = socket.set_send_buffer_size(4 << 20);
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Between two stateless resets. quinn's 20 ms would keep a fleet of thousands waiting after a crash; a reset is smaller
/// than the packet it answers, so many of them amplify nothing.
const RESET_INTERVAL_MIN: Duration = Duration::from_micros(100);

/// Accepts connections until the endpoint is closed. Runs where the endpoint was bound.
pub async fn accept(door: Arc<Door>, bound: Bound, arbiters: Vec<ArbiterHandle>) {
    let mut round_robin = 0;
    // Each that waits for its turn holds it from here on: it is counted before its task first runs.
    let line = Arc::new(());
    while let Some(incoming) = bound.endpoint.accept().await {
        if door.shutdown.is_refusing() {
            incoming.refuse();
            continue;
        }
        if door.sessions() >= door.sessions_max.load(Ordering::Relaxed) {
            door.observer.handshake(Handshake::Refused);
            door.observer.closed(CloseCode::Busy);
            incoming.refuse();
            continue;
        }
        let has_turn = door.admission.try_admit();
        if !has_turn {
            if !incoming.remote_address_validated() && incoming.may_retry() {
                door.observer.handshake(Handshake::Retried);
                let _ = incoming.retry();
                continue;
            }
            if Arc::strong_count(&line) > door.waiting_max() {
                // It sends its first packet again in a moment, if it still wants to come.
                door.admission.turned_away();
                incoming.ignore();
                continue;
            }
        }
        let (shard, config) = match hint::decode(&incoming.orig_dst_cid()) {
            Some(hash) => {
                let partition = PartitionId::of_hash(hash, door.router.partition_count());
                (door.router.shard_of(partition), Some(bound.device.clone()))
            }
            None => {
                round_robin = (round_robin + 1) % arbiters.len();
                (round_robin, None)
            }
        };
        let arrived = Arrived {
            counted: Counted::new(&door),
            incoming,
            config,
        };
        // The endpoint lives on the first shard's arbiter.
        let arbiter = (shard > 0).then(|| arbiters[shard].clone());
        if has_turn {
            arrived.serve_on(arbiter);
        } else {
            actix_rt::spawn(wait(arrived, arbiter, line.clone()));
        }
    }
}

/// A first packet that came, and nothing was answered yet.
struct Arrived {
    counted: Counted,
    incoming: Incoming,
    config: Option<Arc<ServerConfig>>,
}

impl Arrived {
    fn serve_on(self, arbiter: Option<ArbiterHandle>) {
        match arbiter {
            None => drop(actix_rt::spawn(serve(self))),
            Some(arbiter) => drop(arbiter.spawn_fn(move || drop(actix_rt::spawn(serve(self))))),
        }
    }
}

/// Serves a connection when its turn has come.
async fn wait(arrived: Arrived, arbiter: Option<ArbiterHandle>, _line: Arc<()>) {
    let door = arrived.counted.0.clone();
    tokio::select! {
        biased;
        () = door.shutdown.refusing() => arrived.incoming.refuse(),
        () = door.admission.turn() => arrived.serve_on(arbiter),
    }
}

/// A connection counts as a session from its first packet to its end.
struct Counted(Arc<Door>);

impl Counted {
    fn new(door: &Arc<Door>) -> Self {
        door.sessions.fetch_add(1, Ordering::Relaxed);
        Self(door.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(arrived: Arrived) {
    let Arrived {
        counted,
        incoming,
        config,
    } = arrived;
    let door = &counted.0;
    let accepted = match config {
        Some(config) => incoming.accept_with(config),
        None => incoming.accept(),
    };
    let (connection, accepted) = match accepted.map(quinn::Connecting::into_0rtt) {
        Ok(Ok(early)) => early,
        Ok(Err(_)) | Err(_) => return door.observer.handshake(Handshake::Failed),
    };
    let closing = match tokio::time::timeout(door.config.handshake_timeout, greet(&connection)).await {
        Err(_) => {
            door.observer.handshake(Handshake::TimedOut);
            Closing::new(CloseCode::TooSlow, "no hello in time")
        }
        Ok(Err(closing)) => {
            door.observer.handshake(Handshake::Failed);
            closing
        }
        Ok(Ok(greeting)) => {
            let outcome = if greeting.recv.is_0rtt() {
                Handshake::Resumed0Rtt
            } else {
                Handshake::Full
            };
            door.observer.handshake(outcome);
            // Boxed, so that waiting for the hello costs little and each role only its own state.
            match session(door, &connection, greeting, accepted).await {
                Ok(()) => Closing::new(CloseCode::Normal, ""),
                Err(closing) => closing,
            }
        }
    };
    if !closing.is_gone {
        if closing.code != CloseCode::Normal {
            door.observer.closed(closing.code);
            tracing::debug!(peer = %connection.remote_address(), code = closing.code.label(), reason = closing.reason, "session closed");
        }
        connection.close(VarInt::from_u32(closing.code as u32), closing.reason.as_bytes());
    }
}

struct Greeting {
    hello: Hello,
    decoder: Decoder,
    send: SendStream,
    recv: RecvStream,
}

async fn greet(connection: &Connection) -> Result<Greeting, Closing> {
    let (send, mut recv) = connection.accept_bi().await.map_err(|_| Closing::gone())?;
    let mut decoder = Decoder::new(CONTROL_BYTES_MAX);
    loop {
        match decoder.poll_frame() {
            Ok(None) => {}
            Ok(Some(frame)) if frame.kind == Kind::Hello => {
                let hello = Hello::from_body(&frame.body)
                    .map_err(|error| Closing::new(CloseCode::MalformedFrame, error.to_string()))?;
                if !(hello.version_min..=hello.version_max).contains(&VERSION) {
                    let reason = format!(
                        "client speaks frame versions {} to {}, this hub speaks {VERSION}",
                        hello.version_min, hello.version_max
                    );
                    return Err(Closing::new(CloseCode::UnsupportedVersion, reason));
                }
                return Ok(Greeting {
                    hello,
                    decoder,
                    send,
                    recv,
                });
            }
            Ok(Some(frame)) => {
                return Err(Closing::new(
                    CloseCode::UnexpectedFrame,
                    format!("{:?} before a hello", frame.kind),
                ));
            }
            Err(error) => {
                let error = super::intake::IntakeError::Frame(error);
                return Err(Closing::new(error.close_code(), error.to_string()));
            }
        }
        // Small reads: until the hello is known, a connection may hold little.
        match recv.read_chunk(CONTROL_BYTES_MAX as usize, true).await {
            Ok(Some(chunk)) => decoder.feed(chunk.bytes),
            Ok(None) => {
                return Err(Closing::new(
                    CloseCode::MalformedFrame,
                    "the stream ended before a hello",
                ));
            }
            Err(_) => return Err(Closing::gone()),
        }
    }
}

async fn session(
    door: &Arc<Door>,
    connection: &Connection,
    greeting: Greeting,
    accepted: ZeroRttAccepted,
) -> Result<(), Closing> {
    let Greeting {
        hello,
        decoder,
        send,
        recv,
    } = greeting;
    match hello.role {
        Role::Device => {
            Box::pin(device::run(
                door,
                connection,
                (send, recv),
                decoder,
                hello,
                Some(accepted),
            ))
            .await
        }
        Role::Service => {
            // A service's requests are not idempotent: never as early data.
            accepted.await;
            Box::pin(service::run(door, connection, (send, recv), decoder, hello)).await
        }
    }
}
