//! When to try a lost connection again: exponential back-off with full jitter.
//!
//! A sans-IO state machine: chance and time are arguments. The wait before attempt n is drawn evenly from
//! `wait_min ..= min(wait_max, wait_min * 2^n)`, so that a fleet that lost its hub at one moment does not come back at
//! one moment. Only a connection that stayed up for `stable_after` starts the count anew: a hub that accepts and drops
//! is a failing hub. What the hub asks for (`retry_after`) is a lower bound, spread by jitter on top.

use std::time::{Duration, Instant};

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffConfig {
    /// Shortest wait, and the scale of the first. More than zero.
    pub wait_min: Duration,
    /// Longest wait that the client chooses itself; at least `wait_min`.
    pub wait_max: Duration,
    /// A connection that lived this long clears the failures before it.
    pub stable_after: Duration,
    /// Longest `retry_after` that is believed.
    pub retry_after_max: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            wait_min: Duration::from_millis(200),
            wait_max: Duration::from_secs(60),
            stable_after: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(3600),
        }
    }
}

/// The reconnect policy of one connection.
#[derive(Clone, Debug)]
pub struct Backoff {
    config: BackoffConfig,
    /// Failures since the last stable connection.
    failures_count: u32,
    connected_at: Option<Instant>,
}

impl Backoff {
    pub fn new(config: BackoffConfig) -> Self {
        assert!(!config.wait_min.is_zero() && config.wait_min <= config.wait_max);
        Self {
            config,
            failures_count: 0,
            connected_at: None,
        }
    }

    /// Failures since the last stable connection.
    pub fn failures_count(&self) -> u32 {
        self.failures_count
    }

    /// The connection is up: its life counts from `now`.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// An attempt failed or a connection ended; returns how long to wait before the next attempt.
    ///
    /// `random` returns a number evenly drawn from all of `u64`; it is called once. `retry_after` is what the hub asked
    /// for, if it did.
    pub fn handle_failure(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        random: impl FnOnce() -> u64,
    ) -> Duration {
        let was_stable = self
            .connected_at
            .take()
            .is_some_and(|at| now.saturating_duration_since(at) >= self.config.stable_after);
        if was_stable {
            self.failures_count = 0;
        }
        let ceiling = self
            .config
            .wait_min
            .saturating_mul(1u32.checked_shl(self.failures_count + 1).unwrap_or(u32::MAX))
            .min(self.config.wait_max);
        self.failures_count = (self.failures_count + 1).min(31);
        let span = ceiling - self.config.wait_min;
        // The upper half of the product: an even draw from the span without floating point.
        let nanos = (u128::from(random()) * (span.as_nanos() + 1)) >> 64;
        let jitter = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        match retry_after {
            Some(asked) => asked.min(self.config.retry_after_max).max(self.config.wait_min) + jitter,
            None => self.config.wait_min + jitter,
        }
    }
}

/// A small seeded source for jitter (SplitMix64). Not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, evenly drawn from all of `u64`.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BackoffConfig = BackoffConfig {
        wait_min: Duration::from_millis(100),
        wait_max: Duration::from_secs(10),
        stable_after: Duration::from_secs(30),
        retry_after_max: Duration::from_secs(600),
    };

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let (mut backoff, now) = (Backoff::new(CONFIG), Instant::now());
        for expected_ms in [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let wait = backoff.handle_failure(now, None, || u64::MAX);
            assert_eq!(wait, Duration::from_millis(expected_ms));
        }
        for _ in 0..100 {
            assert_eq!(backoff.handle_failure(now, None, || u64::MAX), CONFIG.wait_max);
        }
        assert_eq!(backoff.handle_failure(now, None, || 0), CONFIG.wait_min);
    }

    #[test]
    fn waits_fill_the_whole_span() {
        let (mut jitter, now) = (Jitter::new(7), Instant::now());
        let mut quarters = [0u32; 4];
        for _ in 0..4000 {
            let mut backoff = Backoff::new(CONFIG);
            let wait = backoff.handle_failure(now, None, || jitter.draw());
            quarters[((wait.as_millis() - 100) / 25).min(3) as usize] += 1;
        }
        assert!(
            quarters.iter().all(|&count| (900..1100).contains(&count)),
            "{quarters:?}"
        );
    }

    #[test]
    fn only_a_stable_connection_resets() {
        let (mut backoff, start) = (Backoff::new(CONFIG), Instant::now());
        backoff.handle_failure(start, None, || 0);
        backoff.handle_failure(start, None, || 0);
        backoff.handle_connected(start);
        let flapped = start + CONFIG.stable_after - Duration::from_millis(1);
        assert_eq!(
            backoff.handle_failure(flapped, None, || u64::MAX),
            Duration::from_millis(800)
        );
        backoff.handle_connected(flapped);
        let stable = flapped + CONFIG.stable_after;
        assert_eq!(
            backoff.handle_failure(stable, None, || u64::MAX),
            Duration::from_millis(200)
        );
        // The stable connection is spent: it does not reset the next failure again.
        assert_eq!(
            backoff.handle_failure(stable + CONFIG.stable_after, None, || u64::MAX),
            Duration::from_millis(400)
        );
    }

    #[test]
    fn a_hubs_wish_is_a_lower_bound_within_reason() {
        let (mut backoff, now) = (Backoff::new(CONFIG), Instant::now());
        let asked = Duration::from_secs(20);
        assert_eq!(backoff.handle_failure(now, Some(asked), || 0), asked);
        assert!(backoff.handle_failure(now, Some(asked), || u64::MAX) > asked);
        assert_eq!(
            backoff.handle_failure(now, Some(Duration::MAX), || 0),
            CONFIG.retry_after_max
        );
        assert_eq!(backoff.handle_failure(now, Some(Duration::ZERO), || 0), CONFIG.wait_min);
    }
}
