//! The native door: devices' telemetry, services' cursors and management, over QUIC.
//!
//! ```text
//!  endpoint (one per port, on the first arbiter)
//!     └─ connection ── Hello ──┬─ device:  Append ──> intake ──> home shard ──> Ack
//!                              │           streams: commands, twin, methods
//!                              └─ service: cursor (log slices), management (JSON)
//! ```
//!
//! Close codes are in [`crate::wire::close`]; limits in [`config`]. Knows the shards' messages and the hub's values;
//! deliberately does not know other doors, metrics or the server.

mod access;
pub mod config;
mod connection_id;
mod cursor;
mod device;
pub mod door;
mod error;
mod intake;
mod management;
mod modules;
pub mod observer;
mod service;
mod streams;
mod transfer;
mod twins;

#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    //! Entry points for fuzzing what reads a device's bytes.
    pub use super::intake::Intake;
}
