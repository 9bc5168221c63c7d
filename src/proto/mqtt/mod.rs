//! MQTT 3.1.1 and MQTT 5, without sockets: packets out of bytes and back, and the topics of IoT Hub.
//!
//! ```text
//!   bytes ── header ── packet ──> Packet<'_> (borrows)      properties  what MQTT 5 says beside
//!   Packet ── encode ──> bytes                               topic, bag, user_name  IoT Hub's words
//! ```
//!
//! The same codec serves both sides, so that a client of tests and benchmarks speaks it too. Whether a packet may come
//! now is not its question, only whether it is one.
//!
//! Invariants:
//! - Nothing is allocated for what is read: packets borrow from the bytes they came in.
//! - What is read is whole and valid as MQTT demands it of a receiver; properties can be walked without errors.
//! - What is not valid names its fault ([`Error`]) and the reason that MQTT 5 has for it.

pub mod bag;
mod bytes;
mod connect;
mod error;
mod header;
mod packet;
mod properties;
mod publish;
mod subscribe;
#[cfg(test)]
mod tests;
pub mod topic;
pub mod user_name;

pub use connect::{ConnAck, Connect, Will};
pub use error::{Error, Reason};
pub use header::{Header, Kind};
pub use packet::{Ack, Auth, Disconnect, Packet};
pub use properties::{Properties, Property, PropertyBuf};
pub use publish::Publish;
pub use subscribe::{Filter, SubAck, Subscribe, UnsubAck, Unsubscribe};

/// Which MQTT a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// 3.1.1.
    V3,
    V5,
}

impl Version {
    /// As a CONNECT says it.
    pub fn level(self) -> u8 {
        match self {
            Self::V3 => 4,
            Self::V5 => 5,
        }
    }
}

/// How often a message may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    fn from_bits(bits: u8) -> Result<Self, Error> {
        match bits {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            // MQTT 3.1.1 [MQTT-3.3.1-4].
            _ => Err(Error::QoS),
        }
    }
}
