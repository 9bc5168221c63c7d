//! Devices and modules over MQTT 3.1.1 and MQTT 5: telemetry, messages to them, direct methods, twins, wills.
//!
//! ```text
//!   bytes ── io ── packets ──> intake ── telemetry ── uplink ──> batches ──> home shard ── durable ──> PUBACK
//!                                └─ the rest, one by one ──> session
//!                                                              ├ downlink   messages to the device, PUBACK
//!                                                              ├ twin       requests, answers, desired changes
//!                                                              └ methods    calls, answers
//!   CONNECT ── greeting ── seat ── open on the home shard ──> session ── end ──> will, what is left behind
//! ```
//!
//! One task serves a connection, on one thread. Whatever waits for something else (the disk, throttles, the store) stops
//! the reading, so that TCP slows the client down; nothing is refused for rate alone.
//!
//! Invariants:
//! - A PUBACK is sent after its message is durable, in the order in which messages came.
//! - An identity has one connection at a time: the seat.
//! - What a connection holds is bounded by its configuration, whatever the client does.
//!
//! Deliberately does not know other doors, metrics or the server. Contract: `protocols-mqtt.md`.

pub mod config;
mod downlink;
mod ended;
mod greeting;
mod intake;
mod io;
mod message;
pub mod observer;
mod say;
mod seats;
mod serve;
mod session;
mod subscribed;
mod twin;
mod uplink;
mod will;
mod window;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::oneshot;

pub use self::config::Config;
pub use self::observer::{Began, Observer};
use self::seats::Seats;
pub use self::serve::serve_tunnel;
use self::window::Window;
use crate::hub::{Authenticator, Outboxes, Subscriptions, Throttles, Twins};
use crate::log::DiskStorage;
use crate::model::time::Clock;
use crate::net::admission::Admission;
use crate::net::shutdown::Shutdown;
use crate::shard::lines::Lines;
use crate::shard::router::Router;

#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    //! Entry points for fuzzing what reads a device's bytes.

    /// Whether a property bag says what a message may say.
    pub fn read_bag(bag: &str) -> bool {
        super::message::of_bag(bag).is_ok()
    }
}

/// What an MQTT door leads to.
pub struct Parts {
    pub router: Arc<Router<DiskStorage>>,
    pub outboxes: Outboxes,
    pub twins: Twins,
    pub lines: Lines,
    pub throttles: Arc<Throttles>,
    pub authenticator: Authenticator,
    pub subscriptions: Subscriptions,
    pub clock: Arc<dyn Clock>,
    pub observer: Arc<dyn Observer>,
}

/// What all connections share. One for the hub.
pub struct Door {
    pub config: Config,
    router: Arc<Router<DiskStorage>>,
    outboxes: Outboxes,
    twins: Twins,
    lines: Lines,
    throttles: Arc<Throttles>,
    authenticator: Authenticator,
    subscriptions: Subscriptions,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    seats: Seats<Memory>,
    /// Tells contents apart; the same as long as the hub lives.
    digests: foldhash::quality::RandomState,
    /// Of TLS handshakes.
    pub admission: Arc<Admission>,
    connections: AtomicUsize,
    /// More are closed at once; may change while the door is open.
    pub connections_max: AtomicUsize,
    pub shutdown: Shutdown,
}

/// What a connection leaves behind for the next one of its session.
struct Memory {
    window: Window,
    /// Until when the window is good.
    until: std::time::Instant,
    /// Takes back a will that waits for its delay. Dropped: it is published then.
    will: Option<oneshot::Sender<()>>,
}

impl Door {
    pub fn new(config: Config, parts: Parts) -> Arc<Self> {
        let Parts {
            router,
            outboxes,
            twins,
            lines,
            throttles,
            authenticator,
            subscriptions,
            clock,
            observer,
        } = parts;
        Arc::new(Self {
            admission: Arc::new(Admission::new(config.handshakes_per_second)),
            connections_max: AtomicUsize::new(config.connections_max),
            config,
            router,
            outboxes,
            twins,
            lines,
            throttles,
            authenticator,
            subscriptions,
            clock,
            observer,
            seats: Seats::default(),
            digests: foldhash::quality::RandomState::default(),
            connections: AtomicUsize::new(0),
            shutdown: Shutdown::default(),
        })
    }
}
