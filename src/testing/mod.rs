//! Simulated parts for tests: everything that happens by chance comes from a seed.

mod disk;
pub mod fuzz;

pub use disk::{Disk, DiskMap, DiskWriter};
