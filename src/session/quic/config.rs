//! Limits of the native door.

use std::net::SocketAddr;
use std::time::Duration;

/// See `config` for defaults and ranges of each.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Connections open at a time; further ones are refused (QUIC's CONNECTION_REFUSED) and counted as `Busy`.
    pub sessions_max: usize,
    /// A connection without any packet for this long is given up.
    pub idle_timeout: Duration,
    /// From the first packet to the hello.
    pub handshake_timeout: Duration,
    /// Handshakes begun in a second; above it a client must show its address with a QUIC Retry, and waits for its turn.
    /// 0: no limit.
    pub handshakes_per_second: u32,
    /// Largest UDP payload that path MTU discovery may find.
    pub udp_payload_bytes_max: u16,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub send_window_bytes: u32,
    /// Send window of a consumer's connection: what a stalled consumer costs at most.
    pub consumer_send_window_bytes: u32,
    /// Streams a service connection may have open: cursors and requests.
    pub service_streams_max: u32,
    /// Bytes of one append frame's body.
    pub batch_bytes_max: u32,
    /// Counted bytes of one message.
    pub message_bytes_max: u32,
    /// Unacknowledged bytes of one session above which the hub stops reading it.
    pub inflight_bytes_max: u32,
}

/// Messages of one append frame; bounds the work between two looks at the clock.
pub const BATCH_COUNT_MAX: u32 = 16 * 1024;
