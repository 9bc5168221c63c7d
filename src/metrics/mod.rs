//! Facts turned into Prometheus series.
//!
//! The data path writes plain atomics in cells of its own shard; a scrape sums them. Nothing here locks, allocates or
//! formats before somebody scrapes. Cardinality is bounded: label values come from closed enums, from partition
//! numbers and from consumer groups, never from a device.

pub mod cells;
pub mod console;
mod exposition;
pub mod figures;
pub mod histogram;
pub mod http;
pub mod mqtt;
pub mod observe;
pub mod page;
pub mod process;
pub mod registry;
pub mod series;
pub mod upkeep;

pub use cells::{Backpressure, Handshake, PartitionCell, SessionKind, ShardCell, Stage};
pub use figures::Figures;
pub use histogram::Histogram;
pub use http::{OpsState, Phase, Readiness, serve};
pub use registry::{Commands, Metrics, Position};
pub use upkeep::{CertificateName, ConfigReload, log_lines_suppressed};
