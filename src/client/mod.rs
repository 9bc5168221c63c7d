//! The native client: what a device keeps while the hub is out of reach, and when it tries again.
//!
//! Knows nothing of the server's side. `buffer` and `backoff` are plain sync code: no runtime, no socket, no clock.

pub mod backoff;
pub mod buffer;
