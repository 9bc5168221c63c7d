//! The console: a web page on the operations port that shows what the hub does, and lets an operator look after devices.
//!
//! ```text
//!   GET /console/...      page: files that are part of the program, under a strict content security policy
//!   /console/api/...      gate ── session ── permission ── route ── hub, shard, log
//!                        (host,   (cookie)    (policy)
//!                         origin)
//! ```
//!
//! | path below `/console/api` | permission |
//! | --- | --- |
//! | `POST session`, `GET session`, `DELETE session` | a policy's key; then any session |
//! | `GET overview`, `GET hub` | any session: no more than `/metrics` tells everybody on this port |
//! | `GET devices`, `GET devices/{id}`, `GET devices/{id}/keys` | RegistryRead |
//! | `POST devices`, `PATCH devices/{id}`, `DELETE devices/{id}` | RegistryWrite |
//! | `GET`, `PUT`, `PATCH devices/{id}/twin`, `POST devices/{id}/messages`, `POST devices/{id}/methods`, `DELETE devices/{id}/queue` | ServiceConnect |
//! | `POST query`, `GET partitions`, `POST groups`, `DELETE groups/{name}`, `GET tail`, `GET configuration` | ServiceConnect |
//!
//! Modules of a device are meant with `?module={id}`. Errors are `{"error": {"status", "code", "message"}}` with the
//! contract's code.
//!
//! Invariants:
//! - Every request is judged by what its policy grants now, not by what it did at sign-in.
//! - Nothing is changed by a page of another origin, nor under a name that is not the hub's.
//! - What a browser costs is bounded: its body, its answer, one of [`tail::TAILS_MAX`] places to wait in, one session.
//! - The port's worker is not blocked: whatever walks the store or the log runs where blocking is allowed.
//!
//! Knows the hub, the shards' router and the readers' side of the log; deliberately does not know metrics, the
//! configuration or the server, which hand in their figures as [`Facts`] and [`figures::Sample`]s.

mod commands;
mod denied;
mod devices;
pub mod facts;
pub mod figures;
mod gate;
pub mod observer;
mod page;
mod partitions;
mod serve;
pub mod session;
pub mod tail;
mod twin;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::hub::{Authenticator, Entropy, Groups, Live, Outboxes, Policies, Registry, Throttles, Twins};
use crate::log::DiskStorage;
use crate::model::time::Clock;
use crate::shard::lines::Lines;
use crate::shard::readers::Readers;
use crate::shard::router::Router;

pub use facts::Facts;
pub use figures::{History, Sample};
pub use observer::Observer;
pub use serve::{absent, routes};

/// The rooms of the hub that the console leads to.
pub struct Parts {
    pub authenticator: Authenticator,
    pub policies: Policies,
    pub registry: Registry,
    pub groups: Groups,
    pub twins: Twins,
    pub outboxes: Outboxes,
    pub throttles: Arc<Throttles>,
    pub live: Live,
    pub lines: Lines,
    pub router: Arc<Router<DiskStorage>>,
    pub readers: Arc<Readers>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub observer: Arc<dyn Observer>,
    pub facts: Arc<dyn Facts>,
    /// Names that the console answers to besides `localhost` and addresses; the first stands in connection strings.
    pub host_names: Vec<String>,
    /// Port of the listener: browsers do not tell the cookies of two ports apart, so its name does.
    pub port: u16,
}

/// The console of one hub.
pub struct Console {
    parts: Parts,
    sessions: session::Sessions,
    history: Arc<History>,
    /// Wrong attempts to sign in that are being slowed down.
    guesses: Semaphore,
    tails: Semaphore,
    /// Walks through the registry or the log that are under way.
    walks: Semaphore,
}

/// Wrong attempts to sign in that wait at a time: with what each of them waits, so many can be made in a second.
const GUESSES_MAX: usize = 4;
/// Walks at a time: one browser must not take the processors from telemetry.
const WALKS_MAX: usize = 2;

impl Console {
    pub fn new(parts: Parts) -> Self {
        Self {
            sessions: session::Sessions::new(parts.policies.clone(), parts.entropy.clone()),
            parts,
            history: Arc::default(),
            guesses: Semaphore::new(GUESSES_MAX),
            tails: Semaphore::new(tail::TAILS_MAX),
            walks: Semaphore::new(WALKS_MAX),
        }
    }

    /// Where the server puts its samples.
    pub fn history(&self) -> Arc<History> {
        self.history.clone()
    }
}
