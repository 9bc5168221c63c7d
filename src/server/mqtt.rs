//! The MQTT port, and the tunnel through the HTTPS port.

use std::net::SocketAddr;
use std::sync::Arc;

use actix_rt::ArbiterHandle;
use anyhow::Context as _;
use tokio::io::DuplexStream;

use crate::config::Config;
use crate::http::websocket::{Protocol, Tunneling};
use crate::http::{Tunnel, TunnelPeer};
use crate::net;
use crate::session::mqtt::{self, Door};

/// The limits of a configuration.
pub(super) fn settings(config: &Config) -> mqtt::Config {
    let bytes = |bytes: crate::config::Bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX);
    mqtt::Config {
        listen: config.mqtt.listen,
        connections_max: config.mqtt.connections_max as usize,
        handshake_timeout: config.mqtt.handshake_timeout,
        handshakes_per_second: config.mqtt.handshakes_per_second,
        stall_timeout: config.mqtt.stall_timeout,
        window_bytes: u32::try_from(config.mqtt.window_bytes.0).unwrap_or(u32::MAX),
        inflight_max: u16::try_from(config.mqtt.inflight_max).unwrap_or(u16::MAX),
        duplicate_window: config.mqtt.duplicate_window,
        message_bytes_max: bytes(config.limits.message_bytes_max),
    }
}

/// Binds the port.
///
/// # Errors
/// It cannot be had.
pub(super) fn bind(config: &mqtt::Config) -> anyhow::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = net::bind(config.listen).with_context(|| format!("MQTT port {}", config.listen))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves the port until the door stops.
pub(super) fn serve(
    door: &Arc<Door>,
    listener: std::net::TcpListener,
    tls: &rustls::ServerConfig,
    arbiters: &[ArbiterHandle],
) {
    let mut tls = tls.clone();
    // IoT Hub, SDKs section 2: most clients name no protocol in TLS; `mqtt` is what the others mean.
    tls.alpn_protocols.clear();
    let tls = Some(Arc::new(tls));
    actix_rt::spawn(net::accept(door.clone(), listener, tls, arbiters.to_vec()));
}

/// MQTT through a WebSocket.
pub(super) struct MqttTunnel(pub Arc<Door>);

impl Tunnel for MqttTunnel {
    fn protocol(&self) -> Protocol {
        Protocol::Mqtt
    }

    fn run(self: Arc<Self>, stream: DuplexStream, peer: TunnelPeer) -> Tunneling {
        Box::pin(mqtt::serve_tunnel(self.0.clone(), stream, peer.certificates))
    }
}
