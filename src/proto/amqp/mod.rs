//! AMQP 1.0: types, frames, messages, and one connection's state.
//!
//! ```text
//!   bytes ─> frame ─> performative ─> connection ─> Event      connection ─> bytes
//!            value (types in place)   sessions, links,         message (sections), address, selector
//!                                     windows, deliveries
//! ```
//!
//! The encoding is the narrow one that the Event Hubs and IoT Hub clients read: performatives at full length, descriptors
//! as small numbers, never an empty list for a performative (`contract/sdk-wire-behaviour.md` section 6.2).

pub mod address;
pub mod connection;
pub mod error;
pub mod frame;
pub mod message;
pub mod performative;
pub mod selector;
pub mod value;

pub use connection::{Accept, Connection, Delivery, Event, Limits, LinkId, Outgoing, Settled};
pub use error::{Condition, Error, Info};
pub use performative::{Attach, DeliveryState, Role};
