//! The way of device sessions out of a hub that stops: told to go in slices, so that a fleet does not come back to another
//! hub all at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Actors;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::shard::actor::{Dismiss, Poll, Stop};

const SLICE: Duration = Duration::from_millis(20);

/// How fast sessions are told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// 0: all at once.
    pub sessions_per_second: u32,
    /// Of the whole stop.
    pub timeout: Duration,
}

impl Pace {
    pub fn of(config: &Config) -> Self {
        Self {
            sessions_per_second: config.process.drain_sessions_per_second,
            timeout: config.process.drain_timeout,
        }
    }

    /// Of `total` sessions, how many are to be told `elapsed` after the first.
    fn due(self, total: usize, elapsed: Duration) -> usize {
        if self.sessions_per_second == 0 {
            return total;
        }
        // The other half is for farewells and the disk.
        let at_least = total as f64 / (self.timeout / 2).as_secs_f64();
        let rate = f64::from(self.sessions_per_second).max(at_least);
        // To be told by the end of this slice. A division by no time at all is all at once too.
        let due = rate * (elapsed + SLICE).as_secs_f64();
        (due.ceil() as usize).min(total)
    }
}

/// Tells all sessions to go, at the pace, and waits until they have gone; at most until `deadline`.
pub(super) async fn dismiss(actors: &Actors, pace: Pace, metrics: &Metrics, reason: &str, deadline: Instant) {
    let mut total = 0;
    for actor in actors {
        total += actor.send(Stop).await.unwrap_or(0);
    }
    let started = Instant::now();
    let mut told = 0;
    // Those that still have sessions, in turn.
    let mut having: VecDeque<_> = actors.iter().collect();
    while !having.is_empty() && told < total && Instant::now() < deadline {
        let due = pace.due(total, started.elapsed()).saturating_sub(told);
        let each = due.div_ceil(having.len());
        for _ in 0..having.len().min(due) {
            let actor = having.pop_front().expect("counted above");
            let dismiss = Dismiss {
                count: each,
                reason: reason.to_owned(),
            };
            let went = actor.send(dismiss).await.unwrap_or(0);
            metrics.drained(went);
            told += went;
            if went == each {
                having.push_back(actor);
            }
        }
        tokio::time::sleep(SLICE).await;
    }
    while Instant::now() < deadline && sessions(actors).await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn sessions(actors: &Actors) -> usize {
    let mut sessions = 0;
    for actor in actors {
        sessions += actor.send(Poll).await.map_or(0, |drained| drained.sessions);
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_at_the_pace_or_faster_if_time_is_short() {
        let pace = Pace {
            sessions_per_second: 1_000,
            timeout: Duration::from_secs(20),
        };
        assert_eq!(pace.due(5_000, Duration::ZERO), 20);
        assert_eq!(pace.due(5_000, Duration::from_millis(980)), 1_000);
        assert_eq!(pace.due(5_000, Duration::from_secs(60)), 5_000);
        assert_eq!(pace.due(3, Duration::ZERO), 3);
        // 100,000 in 10 s.
        assert_eq!(pace.due(100_000, Duration::from_millis(980)), 10_000);
        let at_once = Pace {
            sessions_per_second: 0,
            ..pace
        };
        assert_eq!(at_once.due(100_000, Duration::ZERO), 100_000);
        let no_time = Pace {
            timeout: Duration::ZERO,
            ..pace
        };
        assert_eq!(no_time.due(100_000, Duration::ZERO), 100_000);
    }
}
