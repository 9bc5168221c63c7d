//! Forebay: a self-hosted IoT hub.

pub mod hub;
pub mod model;
pub mod state;
