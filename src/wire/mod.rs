//! The native protocol's frames: bytes in, checked values out. Knows nothing of sockets, QUIC, time or the hub.
//!
//! ```text
//!   0  u32  bytes of the body           a frame, little endian
//!   4  u8   kind                        `frame::Kind`
//!   5  u8   version                     1
//!   6  u16  flags                       0 but for appends
//!   8  body
//! ```
//!
//! A connection (ALPN [`ALPN`]) starts with one bidirectional stream that the client opens: `Hello` and `Welcome`, then
//! for a device `Append` against cumulative `Ack`. A service opens further streams: one per cursor (`Subscribe`) or
//! management request (`Request`). A device opens further streams too: one for messages to it (`CommandsOpen`), one for its
//! twin (`TwinOpen`), one for direct methods (`MethodsOpen`); see [`device`]. Acknowledgements are cumulative: an `Ack` covers all sequences before it.
//!
//! Versions: the hello names the range of frame versions a client speaks, the hub answers with the one in use; a frame
//! of any other version or of an unknown kind ends the connection with `close::CloseCode::UnsupportedVersion` and a
//! reason that says what the hub speaks.
//!
//! Invariants: a body is bounded before a byte of it is buffered; archives from outside are checked once, at the door;
//! struct layouts are a format, asserted in size and held by golden files, and never edited.

pub mod batch;
pub mod close;
pub mod control;
pub mod device;
pub mod frame;
pub mod hint;
pub mod message;
pub mod plain;
pub mod stamp;

/// TLS application protocol of the native protocol, frame version 1.
pub const ALPN: &[u8] = b"forebay/1";
