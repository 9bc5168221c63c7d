//! Wall-clock time as the hub stores and sends it.

/// UTC milliseconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcMillis(pub i64);

impl UtcMillis {
    /// The whole second this time lies in, as SAS tokens count.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// Where a part below the doors gets the wall clock from. Production hands in the system's, tests a simulated one.
pub trait Clock: Send + Sync {
    fn now(&self) -> UtcMillis;
}
