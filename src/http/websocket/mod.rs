//! WebSockets: tunnels for other protocols through the HTTPS port (RFC 6455).
//!
//! ```text
//!   GET /$iothub/websocket ──> handshake ── sub-protocol ──> Tunnel::run
//!                                                              ^    |
//!   request's body ── frame::Decoder ── pump ── 64 KiB ────────┘    |
//!   answer's body <── frame::binary <── outlet <── 64 KiB ──────────┘
//! ```
//!
//! Invariants:
//! - What waits in either direction is bounded; whoever does not read stops whoever writes to it.
//! - Frames mean nothing to a tunnel: it reads and writes a plain stream of bytes.
//! - What was begun for a connection is gone soon after it, whatever the tunnel does.
//!
//! Deliberately does not know what goes through a tunnel.

pub mod frame;
pub mod handshake;
mod outlet;
mod pump;
pub mod tunnel;

pub use handshake::{Protocol, UpgradeRefused};
pub(super) use tunnel::{Stop, open};
pub use tunnel::{Stopping, Tunnel, TunnelPeer, Tunneling};
