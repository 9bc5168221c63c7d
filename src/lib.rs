//! Forebay: a self-hosted IoT hub.

pub mod cli;
pub mod client;
pub mod config;
pub mod metrics;
pub mod model;
pub mod server;
