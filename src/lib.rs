//! Forebay: a self-hosted IoT hub.

pub mod cli;
pub mod client;
pub mod config;
pub mod hub;
pub mod log;
pub mod metrics;
pub mod model;
pub mod server;
pub mod session;
pub mod shard;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;
