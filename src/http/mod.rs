//! The HTTPS server: one port on which the device routes (`session::http`) and the service routes (`service::rest`)
//! stand side by side, what both need to read a request and to write the contract's answers, and the WebSockets that
//! other protocols come through.
//!
//! ```text
//!   TLS, limits ──> dispatch ── path, method ──> Room::routes ── Route ──> Room::answer ──> Answer | Refused
//!   (serve)                        api-version before anything else          (error bodies, tracking id)
//!                     └── path of tunnels ──> websocket ── sub-protocol ──> Tunnel::run
//! ```
//!
//! Invariants:
//! - Every request that was read is answered once and counted once, under a route of a closed set or as an upgrade.
//! - A request holds at most `Config::body_bytes_max` of its body, and no longer than `Config::body_timeout` until it is
//!   whole.
//! - A client that takes none of what waits for it holds its connection no longer than `Config::stall_timeout`.
//!
//! Deliberately does not know what any route does, shards, logs, metrics or the server.

pub mod answer;
pub mod body;
pub mod call;
pub mod config;
pub mod observer;
pub mod openapi;
pub mod route;
pub mod serve;
pub mod websocket;

pub use answer::{Answer, Refused, wait};
pub use body::{BodyError, Incoming};
pub use call::Call;
pub use config::Config;
pub use observer::Observer;
pub use route::{Entry, Route};
pub use serve::{Answering, Room, Site};
pub use websocket::{Tunnel, TunnelPeer};
