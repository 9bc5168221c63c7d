//! The doors devices come through: sockets, TLS, tasks and limits around codecs and the shards.

pub mod http;
pub mod quic;
