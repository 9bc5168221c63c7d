//! Device and module twins: tags, desired and reported properties (IoT Hub, device twins).
//!
//! It deliberately does not know who listens: each change is answered with a [`TwinChanged`] that carries what a door
//! needs to tell the device and what a change event is made of.
//!
//! ```text
//!   patch, replace (service) ──┐                       ┌── the twin as it is durable, or the fresh one
//!   patch_reported (device) ───┴─> lane of the twin ───┴─> all that waits, one after the other ──> one batch
//!                                    (bounded)                                                        |
//!                 done(Ok(TwinChanged) | Err), in version order <── durable or refused <──────────────┘
//! ```
//!
//! Invariants:
//! - An answered change is durable and answered once; no version goes backwards or is given to two changes.
//! - Writes of one twin take effect and are answered in the order in which they were asked for.
//! - A twin belongs to one life of its identity: it is deleted with it in one batch, and a write decided before a
//!   deletion never reaches the twin of the next life.
//! - What waits is bounded, per twin and altogether; beyond that the caller is told to slow down.

mod document;
mod limits;
mod store;
mod view;

pub use document::{InitialTwin, Members, Section, Twin, TwinUpdate, parse_members};
pub use limits::{Fault, InvalidTwin, SectionName};
pub use store::{TwinChange, TwinChanged, TwinError, Twins};
pub use view::{ChangeEvent, DeviceSide, ServiceSide};
