//! A line in which everybody gets a turn, in the order they came, at a rate.

use std::time::{Duration, Instant};

use super::bucket::{Rate, SharedBucket};

#[derive(Debug)]
pub struct Line {
    bucket: SharedBucket,
    origin: Instant,
}

impl Line {
    pub fn new(rate: Rate) -> Self {
        Self {
            bucket: SharedBucket::new(rate),
            origin: Instant::now(),
        }
    }

    /// Takes a place; when its turn is.
    pub fn turn(&self, now: Instant) -> Instant {
        let since = now.saturating_duration_since(self.origin).as_nanos();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        let (Ok(at) | Err(at)) = self.bucket.take(1, since, u64::MAX);
        now + Duration::from_nanos(at - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_the_rate_in_the_order_of_asking() {
        let now = Instant::now();
        let rate = Rate {
            per_second: 100,
            burst: 2,
        };
        let line = Line::new(rate);
        let turns: Vec<Duration> = (0..5).map(|_| line.turn(now) - now).collect();
        assert!(turns.is_sorted() && turns[1] == Duration::ZERO, "{turns:?}");
        assert!(
            turns[4] > Duration::from_millis(20) && turns[4] <= Duration::from_millis(30),
            "{turns:?}"
        );
        assert_eq!(Line::new(Rate::NONE).turn(now), now);
    }
}
