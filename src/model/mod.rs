//! The words of the field as plain values: ids, messages, time, limits.
//!
//! Knows nothing of files, sockets, clocks, actors or protocols and imports only `std`. Everything else in the crate
//! may import it. Values that come from outside are checked where they are made (`DeviceId::new`), so that a value of
//! such a type is always valid.

pub mod ids;
pub mod limits;
pub mod message;
pub mod time;

pub use ids::{
    ConsumerGroup, DeviceId, Epoch, Generation, IdError, ModuleId, PartitionId, PolicyName, SequenceNumber, device_hash,
};
pub use message::{Message, PropertyNames, SystemKey};
pub use time::UtcMillis;
