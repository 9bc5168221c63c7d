//! Forebay: a self-hosted IoT hub.

pub mod log;
pub mod model;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
