//! The UDP socket and TLS set-up that any number of native connections of one process share.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionId, IdleTimeout, TransportConfig, VarInt, ZeroRttAccepted};

use super::ClientError;
use crate::wire::hint;

/// Where a hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddress {
    pub address: SocketAddr,
    /// The name its certificate is checked against, and that SAS tokens are made for.
    pub host_name: String,
}

/// How connections behave on the wire.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// A packet is sent after this much quiet, so that NATs and the hub's idle timeout keep the session. `None`: never.
    pub keep_alive: Option<Duration>,
    /// A connection without any packet for this long is given up.
    pub idle_timeout: Duration,
    /// Bytes that may be on their way to the hub.
    pub send_window_bytes: u64,
    /// Bytes the hub may have on its way here, per stream and in all; bounds a consumer's memory.
    pub receive_window_bytes: u32,
    /// Largest UDP payload that path MTU discovery looks for: 1452 fits every Ethernet, 8952 suits jumbo frames.
    pub udp_payload_bytes_max: u16,
    /// Ask the hub to acknowledge packets rarely: saves CPU on both sides of a busy connection.
    pub ack_eliciting_threshold: u32,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            keep_alive: Some(Duration::from_secs(20)),
            idle_timeout: Duration::from_secs(60),
            send_window_bytes: 1 << 20,
            receive_window_bytes: 4 << 20,
            udp_payload_bytes_max: 1452,
            ack_eliciting_threshold: 20,
        }
    }
}

/// Cloning shares the socket.
#[derive(Clone)]
pub struct ClientEndpoint {
    endpoint: quinn::Endpoint,
    crypto: Arc<QuicClientConfig>,
    transport: Arc<TransportConfig>,
}

impl ClientEndpoint {
    /// Binds a UDP socket on a free port. Call within a tokio runtime.
    ///
    /// # Errors
    /// `ClientError::Io` when no socket can be had, `ClientError::Tls` when `tls` lacks what QUIC needs.
    pub fn new(tls: Arc<rustls::ClientConfig>, options: &TransportOptions) -> Result<Self, ClientError> {
        let socket = bind().map_err(ClientError::Io)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut config = quinn::EndpointConfig::default();
        if u64::from(options.udp_payload_bytes_max) > config.get_max_udp_payload_size() {
            config
                .max_udp_payload_size(options.udp_payload_bytes_max)
                .map_err(|error| ClientError::Tls(error.to_string()))?;
        }
        let endpoint = quinn::Endpoint::new(config, None, socket, runtime).map_err(ClientError::Io)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| ClientError::Tls(error.to_string()))?;
        Ok(Self {
            endpoint,
            crypto: Arc::new(crypto),
            transport: Arc::new(transport(options)),
        })
    }

    /// The same socket with a TLS configuration of its own: what it remembers for resumption is then not shared.
    ///
    /// # Errors
    /// `ClientError::Tls` when `tls` lacks what QUIC needs.
    pub fn with_tls(&self, tls: Arc<rustls::ClientConfig>) -> Result<Self, ClientError> {
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| ClientError::Tls(error.to_string()))?;
        Ok(Self {
            crypto: Arc::new(crypto),
            ..self.clone()
        })
    }

    /// Moves all connections to a new UDP port; their sessions stay.
    ///
    /// # Errors
    /// No socket can be had; the old one stays in use.
    pub fn rebind(&self) -> Result<(), ClientError> {
        self.endpoint
            .rebind(bind().map_err(ClientError::Io)?)
            .map_err(ClientError::Io)
    }

    /// The port in use now.
    ///
    /// # Errors
    /// The socket has none.
    pub fn local_address(&self) -> Result<SocketAddr, ClientError> {
        self.endpoint.local_addr().map_err(ClientError::Io)
    }

    /// Connects; `device_hash` places the connection on the device's home shard. With `early`, a remembered session is
    /// resumed and data may be sent before the handshake is done.
    pub(super) async fn connect(
        &self,
        hub: &HubAddress,
        device_hash: Option<u64>,
        early: bool,
    ) -> Result<(Connection, Option<ZeroRttAccepted>), ClientError> {
        let mut config = ClientConfig::new(self.crypto.clone());
        config.transport_config(self.transport.clone());
        if let Some(hash) = device_hash {
            config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&hint::encode(hash, random()))));
        }
        let connecting = self
            .endpoint
            .connect_with(config, hub.address, &hub.host_name)
            .map_err(|error| ClientError::Tls(error.to_string()))?;
        if early {
            match connecting.into_0rtt() {
                Ok((connection, accepted)) => return Ok((connection, Some(accepted))),
                Err(connecting) => return Ok((connecting.await.map_err(ClientError::from)?, None)),
            }
        }
        Ok((connecting.await.map_err(ClientError::from)?, None))
    }

    /// Waits until every connection's farewell is sent.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    super::random(&mut bytes);
    bytes
}

fn bind() -> std::io::Result<std::net::UdpSocket> {
    // Dual stack where there is IPv6, so that one socket reaches every hub.
    let any = |v6: bool| match v6 {
        true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
    };
    let open = |address: SocketAddr| {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        let _ = socket.set_recv_buffer_size(4 << 20);
        let _ = socket.set_send_buffer_size(4 << 20);
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open(any(true)).or_else(|_: std::io::Error| open(any(false)))
}

/// A hub reads the padding of every probe byte by byte: two probes find an ordinary path's size, where quinn's own step
/// of 20 takes four and ends 16 bytes below it.
const MTU_CHANGE_BYTES_MIN: u16 = 100;

fn transport(options: &TransportOptions) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut mtu_discovery = quinn::MtuDiscoveryConfig::default();
    mtu_discovery
        .upper_bound(options.udp_payload_bytes_max)
        .minimum_change(MTU_CHANGE_BYTES_MIN);
    let mut ack_frequency = quinn::AckFrequencyConfig::default();
    ack_frequency
        .ack_eliciting_threshold(VarInt::from_u32(options.ack_eliciting_threshold))
        .max_ack_delay(Some(Duration::from_millis(25)));
    transport
        .keep_alive_interval(options.keep_alive)
        .max_idle_timeout(IdleTimeout::try_from(options.idle_timeout).ok())
        .send_window(options.send_window_bytes)
        .stream_receive_window(VarInt::from_u32(options.receive_window_bytes))
        .receive_window(VarInt::from_u32(options.receive_window_bytes))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu_discovery))
        .ack_frequency_config(Some(ack_frequency));
    transport
}
