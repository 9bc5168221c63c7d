//! How much of the hub may be used, by everybody together and by one device (IoT Hub, quotas and errors, sections 2 to 4).
//!
//! ```text
//!   request ──> device's buckets ──> day's quota ──> hub's bucket ──> now | wait until then | refused
//! ```
//!
//! Traffic is shaped before it is refused: a burst goes through at once, what comes faster waits for its turn, and only
//! who would wait too long, or finds too many waiting, is told to come back later. A session, which can be read no
//! further, is never refused.
//!
//! It deliberately does not wait itself: `now` is an argument, and a grant says until when its holder is to wait.
//!
//! Invariants:
//! - No lock on the way of a session's messages: its own buckets are plain fields, the hub's are one word each.
//! - Between any two times no more is granted than the burst and what came between them.
//! - What was granted is used up, also by a peer that leaves while it waits.

mod bucket;
mod devices;
mod quota;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use bucket::Rate;
use bucket::SharedBucket;
pub use devices::DeviceRates;
use devices::{DeviceBuckets, Devices};
pub use quota::COUNT_MAX as DAILY_MESSAGES_MAX;
use quota::Quota;

use super::code::ErrorCode;
use super::identity::IdentityName;
use crate::model::UtcMillis;
use crate::state::{State, StateError};

/// The day's quota is asked again after this long, since clocks are set.
const QUOTA_LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a throttle of the whole hub counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Identity registry operations, each item of a bulk request.
    Registry,
    /// Sessions begun.
    Connections,
    D2cMessages,
    Queries,
    C2dSends,
    /// Receives over HTTPS; sessions are sent what there is.
    C2dReceives,
    /// Bytes of requests to methods.
    MethodBytes,
    TwinReads,
    TwinUpdates,
}

impl Class {
    pub const ALL: [Self; 9] = [
        Self::Registry,
        Self::Connections,
        Self::D2cMessages,
        Self::Queries,
        Self::C2dSends,
        Self::C2dReceives,
        Self::MethodBytes,
        Self::TwinReads,
        Self::TwinUpdates,
    ];
}

/// What a method's request counts for.
// IoT Hub, quotas and errors section 2: by the payload, in blocks of 4 KB.
pub fn method_bytes(payload_bytes: usize) -> u64 {
    const BLOCK_BYTES: u64 = 4096;
    (payload_bytes as u64).div_ceil(BLOCK_BYTES).max(1) * BLOCK_BYTES
}

/// What held somebody up; the value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Hub(Class),
    /// What one device may send.
    Device,
    DailyMessages,
}

impl Limit {
    pub const COUNT: usize = Class::ALL.len() + 2;
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Device; Self::COUNT];
        let mut index = 0;
        while index < Class::ALL.len() {
            all[index] = Self::Hub(Class::ALL[index]);
            index += 1;
        }
        all[index + 1] = Self::DailyMessages;
        all
    };

    pub fn index(self) -> usize {
        match self {
            Self::Hub(class) => class as usize,
            Self::Device => Class::ALL.len(),
            Self::DailyMessages => Class::ALL.len() + 1,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Hub(Class::Registry) => "registry",
            Self::Hub(Class::Connections) => "connections",
            Self::Hub(Class::D2cMessages) => "d2c_messages",
            Self::Hub(Class::Queries) => "queries",
            Self::Hub(Class::C2dSends) => "c2d_sends",
            Self::Hub(Class::C2dReceives) => "c2d_receives",
            Self::Hub(Class::MethodBytes) => "method_bytes",
            Self::Hub(Class::TwinReads) => "twin_reads",
            Self::Hub(Class::TwinUpdates) => "twin_updates",
            Self::Device => "device",
            Self::DailyMessages => "daily_messages",
        }
    }
}

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    /// Somebody is made to wait.
    fn delayed(&self, _limit: Limit, _wait: Duration) {}
    /// Somebody was told to come back later.
    fn refused(&self, _limit: Limit) {}
}

impl Observer for () {}

/// What an operator allows. See `config` for defaults and ranges of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// In the order of `Class::ALL`.
    pub hub: [Rate; Class::ALL.len()],
    pub device: DeviceRates,
    /// A request that would wait longer is refused at once.
    pub wait_max: Duration,
    /// Requests that wait at a time.
    pub waiters_max: usize,
    /// 0: none.
    pub daily_messages_max: u64,
}

/// Why a request has to come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Throttled {
    #[error("the hub's rate of {} is used up", Limit::Hub(*class).label())]
    Hub { class: Class, wait: Duration },
    #[error("the device sends more than one device may")]
    Device { wait: Duration },
    #[error("too many requests wait for their turn")]
    Backlog { wait: Duration },
    #[error("the hub has taken all messages of this day")]
    DailyMessages { wait: Duration },
}

impl Throttled {
    // IoT Hub, quotas and errors section 6. ThrottlingBacklogTimeout (429003) is not among them: how long a request
    // would wait is known before it does.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Hub { .. } => ErrorCode::THROTTLED,
            Self::Device { .. } => ErrorCode::DEVICE_THROTTLED,
            Self::Backlog { .. } => ErrorCode::THROTTLE_BACKLOG,
            Self::DailyMessages { .. } => ErrorCode::QUOTA_EXCEEDED,
        }
    }

    /// When it is worth coming back.
    pub fn wait(&self) -> Duration {
        match self {
            Self::Hub { wait, .. } | Self::Device { wait } | Self::Backlog { wait } | Self::DailyMessages { wait } => {
                *wait
            }
        }
    }
}

/// What is allowed for the time being, and what was used of it.
struct Allowed {
    config: Config,
    hub: [SharedBucket; Class::ALL.len()],
}

impl Allowed {
    fn new(config: Config) -> Self {
        Self {
            hub: config.hub.map(SharedBucket::new),
            config,
        }
    }
}

/// The throttles of one hub.
pub struct Throttles {
    allowed: ArcSwap<Allowed>,
    /// Where the buckets' time begins.
    origin: Instant,
    devices: Devices,
    quota: Quota,
    waiting: AtomicUsize,
    observer: Arc<dyn Observer>,
}

impl Throttles {
    /// All buckets are full at first; the day's count goes on where the store says.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        config: Config,
        state: Arc<dyn State>,
        origin: Instant,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StateError> {
        Ok(Self {
            devices: Devices::new(),
            quota: Quota::open(state, config.daily_messages_max)?,
            waiting: AtomicUsize::new(0),
            allowed: ArcSwap::from_pointee(Allowed::new(config)),
            origin,
            observer,
        })
    }

    /// What is allowed now.
    pub fn config(&self) -> Config {
        self.allowed.load().config.clone()
    }

    /// Allows something else from now on, also to sessions that are open. What was used of a rate of the whole hub above
    /// what came is still owed under its new rate; a device whose rates change begins with a full burst. Turns that were
    /// granted stay, and so does the day's count.
    pub fn set(&self, config: Config, now: Instant) {
        let at = self.nanos(now);
        let mut new = Allowed::new(config);
        let old = self.allowed.load();
        for (new, old) in new.hub.iter_mut().zip(&old.hub) {
            *new = old.with_rate(new.rate(), at);
        }
        self.quota.set_messages_max(new.config.daily_messages_max);
        self.allowed.store(Arc::new(new));
    }

    /// Asks for units of a class on behalf of a request.
    ///
    /// # Errors
    /// `Throttled`; nothing was taken.
    pub fn admit(&self, class: Class, units: u64, now: Instant) -> Result<Turn<'_>, Throttled> {
        let asked = self.ask(now);
        let granted = self.take(class, units, &asked);
        self.turn(asked, granted.map(|granted| (Limit::Hub(class), granted)))
    }

    /// Asks for what a message to a device takes, on behalf of the request that sends it.
    ///
    /// # Errors
    /// As `admit_telemetry`.
    pub fn admit_command(&self, now: Instant, today: UtcMillis) -> Result<Turn<'_>, Throttled> {
        let turn = self.admit(Class::C2dSends, 1, now)?;
        self.count(1, today)?;
        Ok(turn)
    }

    /// Asks for what telemetry takes, on behalf of a device's or module's request.
    ///
    /// # Errors
    /// `Throttled`; nothing was taken but, if the day has no room, the rate's units.
    pub fn admit_telemetry(
        &self,
        name: &IdentityName,
        messages: u64,
        bytes: u64,
        now: Instant,
        today: UtcMillis,
    ) -> Result<Turn<'_>, Throttled> {
        let asked = self.ask(now);
        let class = Class::D2cMessages;
        let allowed = self.allowed.load();
        let rates = &allowed.config.device;
        let granted = if rates.is_none() {
            self.take(class, messages, &asked)
                .map(|granted| (Limit::Hub(class), granted))
        } else {
            // The hub is asked while the device's buckets are held, so that either both give or none.
            self.devices.with(rates, name, asked.at, |buckets| {
                let device = buckets.take(rates, messages, bytes, asked.at);
                if device > asked.until {
                    return Err((Limit::Device, device));
                }
                let hub = self.take(class, messages, &asked)?;
                let limit = if device > hub { Limit::Device } else { Limit::Hub(class) };
                Ok((limit, device.max(hub)))
            })
        };
        let turn = self.turn(asked, granted)?;
        self.count(messages, today)?;
        Ok(turn)
    }

    /// The pace of one session's telemetry.
    pub fn pace(self: &Arc<Self>) -> Pace {
        Pace {
            throttles: self.clone(),
            device: DeviceBuckets::default(),
        }
    }

    /// Writes the day's count down. `done` is called only if there is something to write.
    pub fn store_count(&self, done: impl FnOnce(Result<(), StateError>) + Send + 'static) {
        self.quota.store(done);
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request that may wait for as long as there is a place to wait in.
    fn ask(&self, now: Instant) -> Asked<'_> {
        let at = self.nanos(now);
        // Taken before it is known whether there is need of it: units that nobody could wait for must not be taken.
        let has_room = self.waiting.fetch_add(1, Ordering::Relaxed) < self.allowed.load().config.waiters_max;
        let place = Place(&self.waiting);
        let until = if has_room { self.last(at) } else { at };
        Asked { at, until, place }
    }

    /// How long the patience of a request that comes at `at` lasts.
    fn last(&self, at: u64) -> u64 {
        let wait_max = self.allowed.load().config.wait_max;
        at.saturating_add(u64::try_from(wait_max.as_nanos()).unwrap_or(u64::MAX))
    }

    fn take(&self, class: Class, units: u64, asked: &Asked<'_>) -> Result<u64, (Limit, u64)> {
        let taken = self.allowed.load().hub[class as usize].take(units, asked.at, asked.until);
        taken.map_err(|granted| (Limit::Hub(class), granted))
    }

    fn count(&self, messages: u64, today: UtcMillis) -> Result<(), Throttled> {
        if self.quota.take(messages, today) {
            return Ok(());
        }
        self.observer.refused(Limit::DailyMessages);
        let wait = Duration::from_millis(quota::until_midnight(today));
        Err(Throttled::DailyMessages { wait })
    }

    fn turn<'a>(&self, asked: Asked<'a>, granted: Result<(Limit, u64), (Limit, u64)>) -> Result<Turn<'a>, Throttled> {
        match granted {
            Ok((_, granted)) if granted <= asked.at => Ok(Turn(None)),
            Ok((limit, granted)) => {
                self.observer.delayed(limit, Duration::from_nanos(granted - asked.at));
                let until = self.origin + Duration::from_nanos(granted);
                Ok(Turn(Some((until, asked.place))))
            }
            Err((limit, granted)) => {
                self.observer.refused(limit);
                let wait = Duration::from_nanos(granted - asked.at);
                Err(match limit {
                    _ if granted <= self.last(asked.at) => Throttled::Backlog { wait },
                    Limit::Hub(class) => Throttled::Hub { class, wait },
                    Limit::Device | Limit::DailyMessages => Throttled::Device { wait },
                })
            }
        }
    }
}

/// A request at the gate.
struct Asked<'a> {
    at: u64,
    /// When it would have waited too long.
    until: u64,
    place: Place<'a>,
}

/// One of those that wait.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to go on, now or later. Keep it until then.
#[must_use = "whoever was granted a later turn has to wait for it"]
pub struct Turn<'a>(Option<(Instant, Place<'a>)>);

impl Turn<'_> {
    /// `None`: now.
    pub fn until(&self) -> Option<Instant> {
        self.0.as_ref().map(|(until, _)| *until)
    }
}

/// How fast one session's telemetry is taken. A batch passes three gates in turn, so that none takes units that it
/// could not use yet because of an earlier one.
pub struct Pace {
    throttles: Arc<Throttles>,
    device: DeviceBuckets,
}

/// Which gate a batch stands before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Device,
    Quota,
    Hub,
    Open,
}

impl Pace {
    /// Passes gates from `gate` on. `Open`: go on; else which gate is next, and when.
    pub fn pass(
        &mut self,
        mut gate: Gate,
        messages: u64,
        bytes: u64,
        now: Instant,
        today: UtcMillis,
    ) -> (Gate, Option<Instant>) {
        let throttles = &*self.throttles;
        let at = throttles.nanos(now);
        let allowed = throttles.allowed.load();
        loop {
            let (limit, granted) = match gate {
                Gate::Device => {
                    gate = Gate::Quota;
                    let rates = &allowed.config.device;
                    (Limit::Device, self.device.take(rates, messages, bytes, at))
                }
                Gate::Quota if throttles.quota.take(messages, today) => {
                    gate = Gate::Hub;
                    continue;
                }
                // Stays before this gate.
                Gate::Quota => {
                    let midnight = Duration::from_millis(quota::until_midnight(today));
                    let wait = midnight.min(QUOTA_LOOK_EVERY);
                    (Limit::DailyMessages, at + wait.as_nanos() as u64)
                }
                Gate::Hub => {
                    gate = Gate::Open;
                    let bucket = &allowed.hub[Class::D2cMessages as usize];
                    let granted = bucket.take(messages, at, u64::MAX).unwrap_or(u64::MAX);
                    (Limit::Hub(Class::D2cMessages), granted)
                }
                Gate::Open => return (Gate::Open, None),
            };
            if granted > at {
                let wait = Duration::from_nanos(granted - at);
                throttles.observer.delayed(limit, wait);
                return (gate, Some(now + wait));
            }
        }
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
