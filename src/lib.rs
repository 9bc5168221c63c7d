//! Forebay: a self-hosted IoT hub.

pub mod client;
pub mod model;
