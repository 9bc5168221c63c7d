//! When a handshake may begin: so many a second, in the order they came.
//!
//! A handshake is the dearest thing a stranger can ask for. A fleet that comes back at once would take the processor from
//! the devices that never left; here it waits, and costs nothing meanwhile.
//!
//! Invariant: who leaves the line has used up no turn.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a burst is worth of a second: time that connected devices do not get.
const BURST: Duration = Duration::from_millis(50);

/// Of one door.
pub struct Admission {
    /// 0: nobody waits.
    per_second: AtomicU32,
    /// Whoever holds it waits for the next turn, the others for it: its queue is the order of coming.
    front: tokio::sync::Mutex<()>,
    /// When the next turn is, if it has been taken from ever.
    next: Mutex<Option<Instant>>,
    waiting: AtomicU64,
    admitted: AtomicU64,
    left: AtomicU64,
    waited_ns: AtomicU64,
}

/// So far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// In the line now.
    pub waiting: u64,
    pub admitted: u64,
    /// Without a turn: they gave up, or were sent away.
    pub left: u64,
    /// Of all that are in the line no more.
    pub waited: Duration,
}

impl Admission {
    /// Turns in a second; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second: AtomicU32::new(per_second),
            front: tokio::sync::Mutex::new(()),
            next: Mutex::new(None),
            waiting: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            left: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }

    pub fn per_second(&self) -> u32 {
        self.per_second.load(Relaxed)
    }

    /// Another rate from the next turn on, which those who wait keep their order for.
    pub fn set_per_second(&self, per_second: u32) {
        self.per_second.store(per_second, Relaxed);
    }

    /// Between two turns. Zero: nobody waits.
    fn interval(&self) -> Duration {
        match self.per_second() {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        }
    }

    /// Takes a turn if there is one now and nobody waits.
    pub fn try_admit(&self) -> bool {
        if !self.interval().is_zero() {
            let Ok(_front) = self.front.try_lock() else {
                return false;
            };
            if self.take(Instant::now()).is_err() {
                return false;
            }
        }
        self.admitted.fetch_add(1, Relaxed);
        true
    }

    /// Waits for a turn. Dropping the wait leaves the line.
    pub async fn turn(&self) {
        if self.try_admit() {
            return;
        }
        let mut place = Place::new(self);
        let _front = self.front.lock().await;
        while let Err(at) = self.take(Instant::now()) {
            tokio::time::sleep_until(at.into()).await;
        }
        place.is_admitted = true;
    }

    /// Somebody was sent away without having been in the line.
    pub fn turned_away(&self) {
        self.left.fetch_add(1, Relaxed);
    }

    pub fn readings(&self) -> Readings {
        Readings {
            waiting: self.waiting.load(Relaxed),
            admitted: self.admitted.load(Relaxed),
            left: self.left.load(Relaxed),
            waited: Duration::from_nanos(self.waited_ns.load(Relaxed)),
        }
    }

    /// Takes a turn, or says when the next one is.
    fn take(&self, now: Instant) -> Result<(), Instant> {
        let interval = self.interval();
        if interval.is_zero() {
            return Ok(());
        }
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = next.unwrap_or(now);
        if at > now {
            return Err(at);
        }
        // Counted from when the turn was, not from when it was taken: timers are late, the rate is not.
        let burst = BURST.max(interval);
        let earliest = now.checked_sub(burst).unwrap_or(now);
        *next = Some(at.max(earliest) + interval);
        Ok(())
    }
}

/// Somebody in the line.
struct Place<'a> {
    admission: &'a Admission,
    since: Instant,
    is_admitted: bool,
}

impl<'a> Place<'a> {
    fn new(admission: &'a Admission) -> Self {
        admission.waiting.fetch_add(1, Relaxed);
        Self {
            admission,
            since: Instant::now(),
            is_admitted: false,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Admission {
            waiting,
            admitted,
            left,
            waited_ns,
            ..
        } = self.admission;
        waiting.fetch_sub(1, Relaxed);
        let ended = if self.is_admitted { admitted } else { left };
        ended.fetch_add(1, Relaxed);
        let waited = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        waited_ns.fetch_add(waited, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn turns_come_at_the_rate_in_the_order_of_coming() {
        let admission = Arc::new(Admission::new(200));
        while admission.try_admit() {}
        let before = admission.readings();
        let (order, mut came) = tokio::sync::mpsc::unbounded_channel();
        let started = Instant::now();
        for n in 0..40 {
            let (admission, order) = (admission.clone(), order.clone());
            tokio::spawn(async move {
                admission.turn().await;
                order.send(n).unwrap();
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(admission.readings().waiting, 40);
        assert!(!admission.try_admit(), "nobody overtakes those who wait");
        for n in 0..40 {
            assert_eq!(came.recv().await, Some(n));
        }
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(190), "{took:?} for 40 turns at 200/s");
        let readings = admission.readings();
        assert_eq!(
            (readings.waiting, readings.left, readings.admitted),
            (0, 0, before.admitted + 40)
        );
        assert!(readings.waited >= Duration::from_millis(40 * 90), "{readings:?}");
    }

    #[tokio::test]
    async fn who_leaves_uses_up_no_turn() {
        let admission = Admission::new(1);
        while admission.try_admit() {}
        let before = admission.readings().admitted;
        let left = tokio::time::timeout(Duration::from_millis(5), admission.turn()).await;
        assert!(left.is_err());
        assert_eq!((admission.readings().left, admission.readings().waiting), (1, 0));
        let started = Instant::now();
        admission.turn().await;
        assert!(
            started.elapsed() < Duration::from_millis(1_900),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(admission.readings().admitted, before + 1);
    }

    #[test]
    fn a_rest_is_made_up_for_by_a_short_burst() {
        let admission = Admission::new(1_000);
        let now = Instant::now() + Duration::from_secs(60);
        assert!(admission.take(now - Duration::from_secs(50)).is_ok());
        let burst = std::iter::repeat_with(|| admission.take(now))
            .take_while(Result::is_ok)
            .count();
        assert!((50..=51).contains(&burst), "{burst}");
    }

    #[tokio::test]
    async fn another_rate_holds_for_those_who_wait() {
        let admission = Arc::new(Admission::new(1));
        while admission.try_admit() {}
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let admission = admission.clone();
                tokio::spawn(async move { admission.turn().await })
            })
            .collect();
        tokio::task::yield_now().await;
        let started = Instant::now();
        admission.set_per_second(1_000);
        for one in waiting {
            one.await.unwrap();
        }
        // The one that is next may have been told its turn at the rate before.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        admission.set_per_second(0);
        assert!((0..1_000).all(|_| admission.try_admit()));
    }

    #[tokio::test]
    async fn without_a_rate_nobody_waits() {
        let admission = Admission::new(0);
        for _ in 0..10_000 {
            admission.turn().await;
        }
        assert_eq!(admission.readings().admitted, 10_000);
    }
}
