//! Protocols of others, without sockets: bytes in, events out.
//!
//! Deliberately does not know sockets, tokio, actix, clocks, the hub or shards.

pub mod amqp;
pub mod mqtt;
