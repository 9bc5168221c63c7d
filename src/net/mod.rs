//! TCP listeners, with TLS or on loopback without, for the doors that read their bytes themselves.
//!
//! ```text
//!   listener ── accept ──> a place? ── arbiters in turn ──> its turn ──> TLS handshake ──> Host::serve
//!               (one task)    └─ none: closed                 └───── ends after its time ─────┘
//! ```
//!
//! Invariants:
//! - A connection holds a place of its host from its first packet to its end, however it ends.
//! - A handshake costs nothing before its host admits it, and is over within the host's time after that.
//! - Without TLS only loopback is listened on.
//!
//! Deliberately does not know protocols, or why a host refuses.

pub mod admission;
pub mod shutdown;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_rt::ArbiterHandle;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncBufRead, AsyncWrite, BufReader, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Of a connection without TLS. Each has one for as long as it lives, which only loopback may cost.
const PLAIN_BUFFER_BYTES: usize = 8 * 1024;
/// What a failed accept is waited after: it is out of file descriptors, say, and what is open goes on.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What is served. Plaintext is read where TLS decrypted it.
pub trait Stream: AsyncBufRead + AsyncWrite + Unpin + 'static {}

impl<S: AsyncBufRead + AsyncWrite + Unpin + 'static> Stream for S {}

/// Who takes connections.
pub trait Host: Send + Sync + 'static {
    /// Counts a connection from its first packet to its drop.
    type Place: Send + 'static;

    /// `None`: there are as many as there may be, or the host is stopping.
    fn take_place(self: &Arc<Self>, is_tls: bool) -> Option<Self::Place>;

    fn handshake_timeout(&self) -> Duration;

    /// A connection ended before it was served: it got no place or no turn, or its handshake failed.
    fn handshake_failed(&self);

    /// Ends when the host takes no more connections.
    fn stopped(&self) -> impl Future<Output = ()> + Send;

    /// Waits for a connection's turn before its handshake costs anything; `false`: it is refused. The time waited here does
    /// not count against `handshake_timeout`. Dropped if the peer leaves or the host stops meanwhile.
    fn admitted(&self) -> impl Future<Output = bool>;

    /// Serves a connection until it ends, on its arbiter's thread. `chain`: what the client proved to be, its own
    /// certificate first; empty if it showed none.
    fn serve<S: Stream>(
        self: Arc<Self>,
        place: Self::Place,
        stream: S,
        chain: Vec<CertificateDer<'static>>,
    ) -> impl Future<Output = ()>;
}

/// Binds a port.
///
/// # Errors
/// The address cannot be had.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
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

/// Accepts connections and hands them to the arbiters in turn, until the host stops.
///
/// # Panics
/// Without TLS and not on loopback.
pub async fn accept<H: Host>(
    host: Arc<H>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    arbiters: Vec<ArbiterHandle>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener cannot be used"),
    };
    let is_loopback = || listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    assert!(tls.is_some() || is_loopback(), "without TLS only loopback is served");
    let tls = tls.map(TlsAcceptor::from);
    let mut turn = 0;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            },
            () = host.stopped() => return,
        };
        let Some(place) = host.take_place(tls.is_some()) else {
            host.handshake_failed();
            continue;
        };
        // Small frames, answered at once.
        let _ = stream.set_nodelay(true);
        // Each arbiter watches its own connections.
        let Ok(stream) = stream.into_std() else { continue };
        turn = (turn + 1) % arbiters.len();
        let (host, tls) = (host.clone(), tls.clone());
        arbiters[turn].spawn_fn(move || drop(actix_rt::spawn(serve(host, place, stream, tls))));
    }
}

async fn serve<H: Host>(host: Arc<H>, place: H::Place, stream: std::net::TcpStream, tls: Option<TlsAcceptor>) {
    let Ok(stream) = TcpStream::from_std(stream) else {
        return host.handshake_failed();
    };
    match tls {
        None => {
            if !has_turn(&*host, &stream).await {
                return host.handshake_failed();
            }
            let stream = BufReader::with_capacity(PLAIN_BUFFER_BYTES, stream);
            host.serve(place, stream, Vec::new()).await;
        }
        // Boxed, as its stream is: a task is as large as all that it ever holds across an await, for all its life, and holds
        // twice what it moves from one to the next.
        Some(tls) => match Box::pin(handshake(&*host, stream, tls)).await {
            None => host.handshake_failed(),
            Some(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
                host.serve(place, stream, chain).await;
            }
        },
    }
}

async fn handshake<H: Host>(host: &H, stream: TcpStream, tls: TlsAcceptor) -> Option<Box<TlsStream<TcpStream>>> {
    if !has_turn(host, &stream).await {
        return None;
    }
    let handshake = tokio::time::timeout(host.handshake_timeout(), tls.accept(stream)).await;
    Some(Box::new(handshake.ok()?.ok()?))
}

/// Waits for a connection's turn.
async fn has_turn<H: Host>(host: &H, stream: &TcpStream) -> bool {
    tokio::select! {
        biased;
        admitted = host.admitted() => admitted,
        () = closed(stream) => false,
        () = host.stopped() => false,
    }
}

/// Completes when the peer has closed a connection whose bytes nobody reads yet. Clients give up and come again; the turns
/// of those who left are for those who stay.
pub async fn closed(stream: &TcpStream) {
    // Readiness of this kind is only that: a hello, which waits unread, is not.
    let _ = stream.ready(Interest::PRIORITY).await;
}

#[cfg(test)]
mod tests;
