//! What all connections share, however they begin.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::config::Config;
use super::connection::{self, Visited};
use super::link::Link;
use super::observer::{Began, Observer};
use crate::hub::auth::Authenticator;
use crate::model::UtcMillis;
use crate::model::time::Clock;
use crate::net::admission::Admission;
use crate::net::shutdown::Shutdown;
use crate::net::{Host, Stream};
use crate::proto::amqp::Attach;
use crate::proto::amqp::address::Address;

/// A set of addresses that belong together.
pub trait Room: Send + Sync + 'static {
    /// A connection was made: what of the room's it meets.
    fn visit(self: Arc<Self>, visited: &Rc<Visited>) -> Rc<dyn Visit>;
}

/// One connection's side of a room; all its tasks run on the connection's thread.
pub trait Visit: 'static {
    /// Takes a link, and answers it now or later; gives it back if its address is none of the room's.
    fn attach(self: Rc<Self>, address: &Address, attach: &Attach, link: Link) -> Option<Link>;
}

/// What all connections share.
pub struct Door {
    pub config: Config,
    pub(super) authenticator: Authenticator,
    /// The name that tokens are made for.
    pub host_name: String,
    pub clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) rooms: Vec<Arc<dyn Room>>,
    /// Of TLS handshakes.
    pub admission: Arc<Admission>,
    connections: AtomicUsize,
    /// More are closed at once; may change while the door is open.
    pub connections_max: AtomicUsize,
    pub shutdown: Shutdown,
}

impl Door {
    pub fn new(
        config: Config,
        authenticator: Authenticator,
        host_name: String,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        rooms: Vec<Arc<dyn Room>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            admission: Arc::new(Admission::new(config.handshakes_per_second)),
            connections_max: AtomicUsize::new(config.connections_max),
            config,
            authenticator,
            host_name,
            clock,
            observer,
            rooms,
            connections: AtomicUsize::new(0),
            shutdown: Shutdown::default(),
        })
    }

    /// Connections open now, handshakes included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// When a wall-clock time will be, on the monotonic clock that timers follow.
    pub fn instant_of(&self, at: UtcMillis) -> Instant {
        let ms = u64::try_from(at.0 - self.clock.now().0).unwrap_or(0);
        Instant::now() + Duration::from_millis(ms.min(366 * 86_400_000))
    }
}

/// A connection counts from its first packet to its end.
pub struct Counted {
    door: Arc<Door>,
    began: Began,
}

impl Counted {
    /// `None`: there are as many as there may be.
    fn new(door: &Arc<Door>, began: Began) -> Option<Self> {
        let counted = Self {
            door: door.clone(),
            began,
        };
        let before = door.connections.fetch_add(1, Ordering::Relaxed);
        door.observer.connection_opened(began);
        (before < door.connections_max.load(Ordering::Relaxed) && !door.shutdown.is_refusing()).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.door.connections.fetch_sub(1, Ordering::Relaxed);
        self.door.observer.connection_closed(self.began);
    }
}

impl Host for Door {
    type Place = Counted;

    fn take_place(self: &Arc<Self>, is_tls: bool) -> Option<Counted> {
        Counted::new(self, if is_tls { Began::Tls } else { Began::Plain })
    }

    fn handshake_timeout(&self) -> Duration {
        self.config.handshake_timeout
    }

    fn handshake_failed(&self) {
        self.observer.handshake_failed();
    }

    async fn stopped(&self) {
        self.shutdown.refusing().await;
    }

    async fn admitted(&self) -> bool {
        self.admission.turn().await;
        true
    }

    async fn serve<S: Stream>(self: Arc<Self>, place: Counted, stream: S, chain: Vec<CertificateDer<'static>>) {
        connection::run(self, stream, chain).await;
        drop(place);
    }
}

/// Serves a connection that came through a WebSocket, on the thread it came on.
pub async fn serve_tunnel(door: Arc<Door>, stream: tokio::io::DuplexStream, chain: Vec<CertificateDer<'static>>) {
    match Counted::new(&door, Began::WebSocket) {
        Some(counted) => connection::run(counted.door.clone(), stream, chain).await,
        None => door.observer.handshake_failed(),
    }
}
