//! Puts the parts together.

pub mod demo;
pub mod tls;
