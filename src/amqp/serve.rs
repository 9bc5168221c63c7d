//! The listeners, and what all connections share.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_rt::ArbiterHandle;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::config::Config;
use super::connection::{self, Visited};
use super::link::Link;
use super::observer::{Began, Observer};
use crate::hub::auth::Authenticator;
use crate::model::UtcMillis;
use crate::model::time::Clock;
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
    connections: AtomicUsize,
    is_stopping: AtomicBool,
    stop: Notify,
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
            config,
            authenticator,
            host_name,
            clock,
            observer,
            rooms,
            connections: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    /// Connections open now, handshakes included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Tells all connections to end once what they took is settled, and takes no more.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.stop.notify_waiters();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(super) async fn stopped(&self) {
        let stop = self.stop.notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if !self.is_stopping() {
            stop.await;
        }
    }

    /// When a wall-clock time will be, on the monotonic clock that timers follow.
    pub fn instant_of(&self, at: UtcMillis) -> Instant {
        let ms = u64::try_from(at.0 - self.clock.now().0).unwrap_or(0);
        Instant::now() + Duration::from_millis(ms.min(366 * 86_400_000))
    }
}

/// A connection counts from its first packet to its end.
struct Counted {
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
        (before < door.config.connections_max && !door.is_stopping()).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.door.connections.fetch_sub(1, Ordering::Relaxed);
        self.door.observer.connection_closed(self.began);
    }
}

/// Binds a port.
///
/// # Errors
/// The address cannot be had.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // A fleet that comes back at once should wait in the kernel rather than be refused.
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Accepts connections and hands them to the arbiters in turn, until the door stops. `tls: None` is for loopback.
pub async fn accept(
    door: Arc<Door>,
    listener: std::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    arbiters: Vec<ArbiterHandle>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return tracing::error!("the AMQP listener cannot be used");
    };
    let acceptor = tls.map(TlsAcceptor::from);
    let mut turn = 0;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, say: what is open goes on.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = door.stopped() => return,
        };
        let began = if acceptor.is_some() { Began::Tls } else { Began::Plain };
        let Some(counted) = Counted::new(&door, began) else {
            door.observer.handshake_failed();
            continue;
        };
        // Small frames, answered at once.
        let _ = stream.set_nodelay(true);
        let Ok(stream) = stream.into_std() else { continue };
        turn = (turn + 1) % arbiters.len();
        let acceptor = acceptor.clone();
        arbiters[turn].spawn_fn(move || drop(actix_rt::spawn(serve(counted, stream, acceptor))));
    }
}

async fn serve(counted: Counted, stream: std::net::TcpStream, acceptor: Option<TlsAcceptor>) {
    let door = counted.door.clone();
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else {
        return door.observer.handshake_failed();
    };
    match acceptor {
        None => connection::run(door, stream, Vec::new()).await,
        Some(acceptor) => {
            let handshake = tokio::time::timeout(door.config.handshake_timeout, acceptor.accept(stream)).await;
            match handshake {
                Ok(Ok(stream)) => {
                    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let chain: Vec<CertificateDer<'static>> =
                        chain.iter().map(|one| one.clone().into_owned()).collect();
                    connection::run(door, stream, chain).await;
                }
                Ok(Err(_)) | Err(_) => door.observer.handshake_failed(),
            }
        }
    }
}

/// Serves a connection that came through a WebSocket, on the thread it came on.
pub async fn serve_tunnel(door: Arc<Door>, stream: tokio::io::DuplexStream, chain: Vec<CertificateDer<'static>>) {
    match Counted::new(&door, Began::WebSocket) {
        Some(counted) => connection::run(counted.door.clone(), stream, chain).await,
        None => door.observer.handshake_failed(),
    }
}
