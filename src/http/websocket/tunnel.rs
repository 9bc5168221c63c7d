//! What another room hands in to be reached by WebSocket, and how a tunnel is opened.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use rustls::pki_types::CertificateDer;
use tokio::io::DuplexStream;
use tokio::sync::{oneshot, watch};

use super::handshake::{Protocol, UpgradeRefused, agree};
use super::outlet::{Outlet, Words};
use super::pump;
use crate::http::body::Incoming;
use crate::http::call::Call;

/// Bytes that wait on their way to a tunnel, and as many on their way back.
const WAITING_BYTES_MAX: usize = 64 << 10;

/// A tunnel's work, on the worker that read its request.
pub type Tunneling = Pin<Box<dyn Future<Output = ()>>>;

/// A protocol that is spoken through WebSockets.
pub trait Tunnel: Send + Sync + 'static {
    fn protocol(&self) -> Protocol;

    /// Serves one client until it is done: returning, or shutting `stream` down, closes the WebSocket behind the last
    /// byte written. Reads end once the client says goodbye or is gone, and what does not return a few seconds later is
    /// dropped where it waits.
    fn run(self: Arc<Self>, stream: DuplexStream, peer: TunnelPeer) -> Tunneling;
}

/// Who is at the other end of a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelPeer {
    /// The certificates, leaf first, that the client proved to hold; none if it showed none.
    pub certificates: Vec<CertificateDer<'static>>,
    /// `None` if the connection ended already.
    pub address: Option<SocketAddr>,
    /// Tells a tunnel to come to its end.
    pub stopping: Stopping,
}

/// Tells that the server stops.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn told(&mut self) {
        // Whoever could tell is gone: so is the server.
        let _ = self.0.wait_for(|is_told| *is_told).await;
    }
}

/// The other end of every [`Stopping`].
#[derive(Clone, Debug)]
pub(in crate::http) struct Stop(watch::Sender<bool>);

impl Stop {
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn tell(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn listen(&self) -> Stopping {
        Stopping(self.0.subscribe())
    }
}

/// Opens the tunnel that a request asks for; the answer's body is the way back.
pub(in crate::http) fn open(
    tunnels: &[Arc<dyn Tunnel>],
    stop: &Stop,
    call: &Call,
    incoming: &Incoming,
) -> Result<(Protocol, HttpResponse), UpgradeRefused> {
    let speaking = |protocol| tunnels.iter().find(|tunnel| tunnel.protocol() == protocol);
    let agreed = agree(call.request(), |protocol| speaking(protocol).is_some())?;
    let tunnel = speaking(agreed.protocol).ok_or(UpgradeRefused::Protocol)?.clone();
    let payload = incoming.take().ok_or(UpgradeRefused::NotWebSocket)?;

    let (ours, theirs) = tokio::io::duplex(WAITING_BYTES_MAX);
    let (outgoing, inlet) = tokio::io::split(ours);
    let (connected, is_over) = oneshot::channel();
    let words = Words::new();
    let config = call.config();
    let outlet = Outlet::new(
        outgoing,
        words.clone(),
        stop.listen(),
        connected,
        config.stall_timeout / 2,
    );
    let peer = TunnelPeer {
        certificates: call.certificates().to_vec(),
        address: call.request().peer_addr(),
        stopping: stop.listen(),
    };
    let supply = pump::Supply {
        payload,
        inlet,
        words,
        is_over,
        stopping: stop.listen(),
        drain_timeout: config.drain_timeout,
    };
    actix_web::rt::spawn(supply.run(tunnel.run(theirs, peer)));

    // IoT Hub, SDKs, 4.1: a line that says `connection` has to say `upgrade` as well, so no header that is not needed.
    let response = HttpResponse::SwitchingProtocols()
        .upgrade("websocket")
        .insert_header((SEC_WEBSOCKET_ACCEPT, agreed.accept))
        .insert_header((SEC_WEBSOCKET_PROTOCOL, agreed.name))
        .body(outlet);
    Ok((agreed.protocol, response))
}
