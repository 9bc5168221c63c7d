//! The Rust client.

pub mod tls;
