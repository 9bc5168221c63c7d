//! Limits of the AMQP server.

use std::net::SocketAddr;
use std::time::Duration;

/// See `config` for defaults and ranges of each.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Without TLS, for the clients' mode against an emulator: on loopback, or not at all.
    pub plain_listen: Option<SocketAddr>,
    /// Connections open at a time, handshakes included; further ones are closed at once.
    pub connections_max: usize,
    /// From the connection's turn to its open frame.
    pub handshake_timeout: Duration,
    /// TLS handshakes begun in a second; further ones wait for their turn. 0: no limit.
    pub handshakes_per_second: u32,
    /// Told to the peer; a connection that is silent for twice as long is closed.
    pub idle_timeout: Duration,
    /// Messages that were read and no link has taken yet.
    pub window_bytes: usize,
    /// Sessions of one connection.
    pub sessions_max: u16,
    /// Links of one connection.
    pub links_max: usize,
    /// Counted bytes of one message of telemetry.
    pub message_bytes_max: usize,
}

/// The hub's frames are no larger, and no larger ones are read.
// IoT Hub, AMQP section 1.
pub const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// One message with all its sections; the limits of the contract count less of it.
// IoT Hub, AMQP section 1: what the SDKs' links say.
pub const LINK_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Tokens of one connection: a gateway's devices have one each.
pub const TOKENS_MAX: usize = 1024;
