//! Limits of the HTTPS server.

use std::net::SocketAddr;
use std::time::Duration;

/// See `config` for defaults and ranges of each.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Threads that serve connections.
    pub workers: usize,
    /// Connections open at a time over all workers; further ones wait in the kernel.
    pub connections_max: usize,
    /// From the connection to the end of its first request's head, the TLS handshake counted apart.
    pub head_timeout: Duration,
    /// From a request's head to the end of its body.
    pub body_timeout: Duration,
    /// How long a connection may rest between two requests; also bounds the heads of all but the first.
    pub keep_alive: Duration,
    /// How long a client may take nothing of what was sent to it. Half of it is how long a WebSocket is quiet before the
    /// client is asked whether it is there.
    pub stall_timeout: Duration,
    /// Largest body of a request.
    pub body_bytes_max: usize,
    /// How long a message may wait for the home shard before its device is told to come back later.
    pub busy_timeout: Duration,
    /// Counted bytes of one message, and of all messages of a batch.
    pub message_bytes_max: usize,
    /// How long a stop waits for requests under way, and for WebSockets to be closed.
    pub drain_timeout: Duration,
}
