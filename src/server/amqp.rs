//! The AMQP port: its rooms, its listeners, and the tunnel through the HTTPS port.

use std::net::SocketAddr;
use std::sync::Arc;

use actix_rt::ArbiterHandle;
use anyhow::{Context as _, ensure};
use tokio::io::DuplexStream;

use crate::amqp::{self, Door};
use crate::config::Config;
use crate::http::websocket::{Protocol, Tunneling};
use crate::http::{Tunnel, TunnelPeer};
use crate::net;

/// The Event Hubs-compatible name of the hub; clients treat it as opaque.
pub const EVENTHUB_NAME: &str = "forebay";

/// The limits of a configuration.
pub(super) fn settings(config: &Config, plain_listen: Option<SocketAddr>) -> amqp::Config {
    let bytes = |bytes: crate::config::Bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX);
    amqp::Config {
        listen: config.amqp.listen,
        plain_listen,
        connections_max: config.amqp.connections_max as usize,
        handshake_timeout: config.amqp.handshake_timeout,
        handshakes_per_second: config.amqp.handshakes_per_second,
        idle_timeout: config.amqp.idle_timeout,
        window_bytes: bytes(config.amqp.window_bytes),
        sessions_max: u16::try_from(config.amqp.sessions_max).unwrap_or(u16::MAX),
        links_max: config.amqp.links_max as usize,
        message_bytes_max: bytes(config.limits.message_bytes_max),
    }
}

/// Ports that are bound and not served yet.
pub(super) struct Bound {
    listener: std::net::TcpListener,
    pub address: SocketAddr,
    plain: Option<std::net::TcpListener>,
    pub plain_address: Option<SocketAddr>,
}

/// Binds the ports.
///
/// # Errors
/// One cannot be had, or the one without TLS is not on loopback.
pub(super) fn bind(config: &amqp::Config) -> anyhow::Result<Bound> {
    let listener = net::bind(config.listen).with_context(|| format!("AMQP port {}", config.listen))?;
    let plain = match config.plain_listen {
        None => None,
        Some(address) => {
            ensure!(
                address.ip().is_loopback(),
                "AMQP without TLS is for loopback, not for {address}"
            );
            Some(net::bind(address).with_context(|| format!("AMQP port {address}"))?)
        }
    };
    Ok(Bound {
        address: listener.local_addr()?,
        listener,
        plain_address: plain.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
        plain,
    })
}

/// Serves the ports until the door stops.
pub(super) fn serve(door: &Arc<Door>, bound: Bound, tls: &rustls::ServerConfig, arbiters: &[ArbiterHandle]) {
    let mut tls = tls.clone();
    // Clients of AMQP name no protocol in TLS; those that do name one speak something else.
    tls.alpn_protocols.clear();
    let tls = Some(Arc::new(tls));
    actix_rt::spawn(net::accept(door.clone(), bound.listener, tls, arbiters.to_vec()));
    if let Some(plain) = bound.plain {
        actix_rt::spawn(net::accept(door.clone(), plain, None, arbiters.to_vec()));
    }
}

/// AMQP through a WebSocket.
pub(super) struct AmqpTunnel(pub Arc<Door>);

impl Tunnel for AmqpTunnel {
    fn protocol(&self) -> Protocol {
        Protocol::Amqp
    }

    fn run(self: Arc<Self>, stream: DuplexStream, peer: TunnelPeer) -> Tunneling {
        Box::pin(amqp::serve::serve_tunnel(self.0.clone(), stream, peer.certificates))
    }
}
