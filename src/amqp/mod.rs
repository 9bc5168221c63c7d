//! The AMQP server: one port on which device links (`session::amqp`), service links (`service::amqp`) and the built-in
//! endpoint (`service::eventhubs`) stand side by side, often on one connection, and what all of them need.
//!
//! ```text
//!   TCP, TLS ─┐                            ┌─ $cbs (credentials)
//!   WebSocket ┴─> connection ── attach ──> ┤
//!   (serve)       (proto::amqp)            └─ address ─> Visit::attach (a room's tasks) ── Link ──> connection
//! ```
//!
//! A connection is one task, and each link is another on the same thread: a link's task reads what came for it and writes
//! into the connection's buffer directly, through [`Link`].
//!
//! Invariants:
//! - A connection holds at most `Config::window_bytes` of messages that no link has taken, and one message more; then it
//!   is read no further.
//! - It holds at most twice `OUTPUT_BYTES_MAX` to be sent, and one message a link more: links wait for room.
//! - A link lives no longer than the credential it was opened with, and a connection that opened no link no longer than
//!   `Config::idle_timeout`.
//!
//! Deliberately does not know what any link is for, shards, logs, metrics or the server.

pub mod cbs;
pub mod config;
mod connection;
pub mod credentials;
pub mod error;
pub mod link;
pub mod message;
pub mod node;
pub mod observer;
pub mod serve;

pub use config::Config;
pub use connection::Visited;
pub use link::{Link, Sending};
pub use observer::Observer;
pub use serve::{Door, Room, Visit};
