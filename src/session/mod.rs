//! The doors devices come through: sockets, TLS, tasks and limits around codecs and the shards.
//!
//! What a door does for a device whatever it speaks stands once, without a socket or a frame: [`home`] opens a session
//! on its home shard, [`commands`] locks messages and takes settlements, [`twin`] tells of desired properties and takes
//! reported ones, [`methods`] holds the calls under way, [`telemetry`] hands batches over. A door drives them and says
//! things in its own protocol.

pub mod amqp;
pub mod commands;
pub mod home;
pub mod http;
pub mod methods;
pub mod mqtt;
pub mod post;
pub mod quic;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod twin;
