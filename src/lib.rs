//! Forebay: a self-hosted IoT hub.

pub mod client;
pub mod hub;
pub mod model;
pub mod session;
pub mod shard;
pub mod state;
pub mod wire;
