//! What an operator may choose: every key with its unit, default, range and price, in one table ([`keys`]).
//!
//! A [`Config`] is plain data, one struct a section. It knows nothing of the modules that are configured by it, and
//! they know nothing of it: `server` hands each its values. `identity` is fixed when the data directory is created,
//! every other section may change on restart, and the keys of [`live`] while the hub runs.
//!
//! Invariants: a `Config` that [`load`] returns has every value inside its range and no two that contradict each
//! other; every key of the table can be set in the file, by `FOREBAY_<SECTION>_<KEY>` and by `--set section.key=value`.

mod check;
mod error;
pub mod keys;
pub mod live;
mod load;
pub mod memory;
mod render;
mod value;

pub use error::ConfigError;
pub use keys::{Config, Identity, Limits, Log, Ops, Process, Quic, Shard};
pub use live::Change;
#[cfg(any(test, feature = "testing"))]
pub use load::parse;
pub use load::{Sources, load};
pub use render::{default_toml, to_toml};
pub use value::{Bytes, ConsoleAccess, Durability, EventKind, Host, LogFilter, LogFormat, Secret};
