//! TCP listeners with TLS: connections counted, handshaken in their time, and spread over the arbiters.
//!
//! Deliberately does not know what is spoken on a connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::ArbiterHandle;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncBufRead, AsyncWrite, BufReader};
use tokio_rustls::TlsAcceptor;

/// Connections that wait in the kernel: a fleet that comes back at once should wait there rather than be refused.
const BACKLOG: i32 = 4096;

/// A connection's bytes. What TLS has decrypted is read where it stands.
pub trait Stream: AsyncBufRead + AsyncWrite + Unpin + 'static {}

impl<S: AsyncBufRead + AsyncWrite + Unpin + 'static> Stream for S {}

/// Who takes connections.
pub trait Host: Send + Sync + 'static {
    /// Counts a connection from its first packet until it is dropped.
    type Place: Send + 'static;

    /// `None`: there are as many as there may be, or none are taken any more.
    fn take_place(self: &Arc<Self>, is_tls: bool) -> Option<Self::Place>;

    /// For TLS, from the connection's turn on.
    fn handshake_timeout(&self) -> Duration;

    /// TLS failed, or there was no place.
    fn handshake_failed(&self);

    /// Completes once no connections are taken any more.
    fn stopped(&self) -> impl Future<Output = ()> + Send;

    /// Waits for a connection's turn, before it costs a handshake.
    fn admitted(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Serves a connection to its end, on the arbiter's thread. `chain`: the certificates, leaf first, that the peer
    /// proved to hold; none if it showed none.
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
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections and hands them to the arbiters in turn, until the host stops. `tls: None` is for loopback.
pub async fn accept<H: Host>(
    host: Arc<H>,
    listener: std::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    arbiters: Vec<ArbiterHandle>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return tracing::error!("a listener cannot be used");
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
            () = host.stopped() => return,
        };
        let Some(place) = host.take_place(acceptor.is_some()) else {
            host.handshake_failed();
            continue;
        };
        // Small packets, answered at once.
        let _ = stream.set_nodelay(true);
        let Ok(stream) = stream.into_std() else { continue };
        turn = (turn + 1) % arbiters.len();
        let (host, acceptor) = (host.clone(), acceptor.clone());
        arbiters[turn].spawn_fn(move || drop(actix_rt::spawn(shake_hands(host, place, stream, acceptor))));
    }
}

async fn shake_hands<H: Host>(
    host: Arc<H>,
    place: H::Place,
    stream: std::net::TcpStream,
    acceptor: Option<TlsAcceptor>,
) {
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else {
        return host.handshake_failed();
    };
    let Some(acceptor) = acceptor else {
        return host.serve(place, BufReader::new(stream), Vec::new()).await;
    };
    host.admitted().await;
    match tokio::time::timeout(host.handshake_timeout(), acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
            host.serve(place, stream, chain).await;
        }
        Ok(Err(_)) | Err(_) => host.handshake_failed(),
    }
}
