//! Forebay: a self-hosted IoT hub.

pub mod client;
pub mod model;
pub mod session;
pub mod wire;
