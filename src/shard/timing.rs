//! Waiting for a time: a turn under the throttles, or a date of the wall clock.
//!
//! Doors of sessions and of services wait in the same ways; what they wait for is decided below, where no timer is known.

use std::time::{Duration, Instant};

use crate::hub::Throttled;
use crate::hub::throttle::Turn;
use crate::model::UtcMillis;
use crate::model::time::Clock;

/// Timers of more than this would overflow nothing, but are never waited for.
const WAIT_MAX_MS: u64 = 366 * 86_400_000;

/// Waits for the turn of what was let in under the throttles.
///
/// # Errors
/// It was not.
pub async fn pass(turn: Result<Turn<'_>, Throttled>) -> Result<(), Throttled> {
    // Keeps its place among those that wait until its turn has come.
    let turn = turn?;
    if let Some(until) = turn.until() {
        tokio::time::sleep_until(until.into()).await;
    }
    Ok(())
}

/// Sleeps until then, or for ever.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// When a wall-clock time will be, on the monotonic clock that timers follow. Who waits looks at the wall clock again
/// then: it may have been set back, or the time lies further off than a timer is asked to wait.
pub fn instant_of(clock: &dyn Clock, at: UtcMillis) -> Instant {
    let ms = u64::try_from(at.0 - clock.now().0).unwrap_or(0);
    Instant::now() + Duration::from_millis(ms.min(WAIT_MAX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct At(i64);
    impl Clock for At {
        fn now(&self) -> UtcMillis {
            UtcMillis(self.0)
        }
    }

    #[test]
    fn a_date_gone_by_is_now_and_a_far_one_is_looked_at_again() {
        let clock = At(1_700_000_000_000);
        let wait = |ms: i64| {
            let before = Instant::now();
            let at = instant_of(&clock, UtcMillis(clock.0 + ms));
            at.saturating_duration_since(before).as_secs()
        };
        assert_eq!(wait(-1), 0);
        assert_eq!(wait(60_500), 60);
        assert_eq!(wait(i64::MAX - clock.0), WAIT_MAX_MS / 1000);
    }
}
