//! Forebay: a self-hosted IoT hub.

pub mod model;
