//! Limits of the MQTT door.

use std::net::SocketAddr;
use std::time::Duration;

/// See `config` for defaults and ranges of each.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Connections open at a time, handshakes included; further ones are closed at once.
    pub connections_max: usize,
    /// From the connection's turn to its CONNECT.
    pub handshake_timeout: Duration,
    /// TLS handshakes begun in a second; further ones wait for their turn. 0: no limit.
    pub handshakes_per_second: u32,
    /// A client that takes nothing of what is sent for so long is gone.
    pub stall_timeout: Duration,
    /// Telemetry of one connection that is handed over and not stored yet; then it is read no further.
    pub window_bytes: u32,
    /// Messages of QoS 1 of one connection that are not acknowledged yet; told to MQTT 5 clients as Receive Maximum.
    pub inflight_max: u16,
    /// For how long messages of a session that ended are known again. Zero: not at all.
    pub duplicate_window: Duration,
    /// Counted bytes of one message of telemetry.
    pub message_bytes_max: usize,
}

impl Config {
    /// The longest packet that is read: a message with the longest topic.
    pub fn packet_bytes_max(&self) -> usize {
        self.message_bytes_max + TOPIC_BYTES_MAX + PROPERTIES_BYTES_MAX
    }
}

const TOPIC_BYTES_MAX: usize = 65_535;
/// Of an MQTT 5 PUBLISH, with the lengths of all parts.
const PROPERTIES_BYTES_MAX: usize = 65_536;

/// Subscriptions of one session.
// IoT Hub, MQTT section 9.
pub const SUBSCRIPTIONS_MAX: usize = 5;

/// What waits to be sent to a client; then nothing further is taken from it, or said to it.
pub const SENDING_BYTES_MAX: usize = 256 * 1024;
