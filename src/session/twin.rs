//! A device's twin, apart from how its door says it: what the device is told of its desired properties, and what it asks.
//!
//! ```text
//!   version told ── next one, a patch ──> the patch
//!        │───────── after a gap, or replaced ──> the whole section
//!        └───────── already told ──> nothing
//! ```
//!
//! Invariant: versions only grow for the device, and whoever applies all it is told has the section of the newest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::hub::throttle::Class;
use crate::hub::twin::{DeviceSide, Members, TwinChange, parse_members};
use crate::hub::{ErrorCode, IdentityName, Throttled, Throttles, Twin, TwinChanged, TwinError, Twins};
use crate::model::Generation;
use crate::model::time::Clock;
use crate::shard::lines::{Changes, Lines, Replaced};
use crate::shard::timing::pass;

/// What a device is told of its desired properties.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub version: u64,
    /// The whole section; otherwise a merge patch, in which null deletes, to the version before.
    pub is_complete: bool,
    /// With `$version`.
    pub members: Members,
}

impl Desired {
    pub fn json(&self) -> String {
        json(&self.members)
    }
}

/// The newest version the device was told of, or has itself.
#[derive(Clone, Copy, Debug)]
struct Told(u64);

impl Told {
    /// What a change is for the device; `None` if it has that already.
    fn follow(&mut self, changed: &TwinChanged) -> Option<Desired> {
        let version = changed.twin.desired.version;
        if version <= self.0 {
            return None;
        }
        let is_patch = matches!(&*changed.change, TwinChange::Patched(_)) && version == self.0 + 1;
        self.0 = version;
        let patch = changed.desired_notification().filter(|_| is_patch);
        Some(Desired {
            version,
            is_complete: patch.is_none(),
            // The whole section: no version is 0.
            members: patch.unwrap_or_else(|| changed.twin.desired_since(0).unwrap_or_default()),
        })
    }
}

/// The desired properties as the session that observes them is told.
pub struct Observed {
    changes: Changes,
    told: Told,
    /// Taken from the line and not told yet.
    news: VecDeque<TwinChanged>,
}

impl Observed {
    /// Observes from now on, in place of whoever did before. `seen` is the newest version the device holds, 0 for none:
    /// what it missed comes too. A device that is told only of what changes from now on passes that over.
    ///
    /// # Errors
    /// The twin cannot be read.
    pub fn open(
        lines: &Lines,
        twins: &Twins,
        name: &IdentityName,
        seen: u64,
    ) -> Result<(Self, Option<Desired>), TwinError> {
        // Before the twin is read, so that no change falls in between.
        let changes = lines.observe_desired(name);
        let version_and_missed = |twin: Twin| (twin.desired.version, twin.desired_since(seen));
        let (version, missed) = twins.get(name).map(version_and_missed)?;
        let missed = missed.map(|members| Desired {
            version,
            is_complete: true,
            members,
        });
        let observed = Self {
            changes,
            told: Told(version),
            news: VecDeque::new(),
        };
        Ok((observed, missed))
    }

    /// Waits for what to tell next; cancelling the wait loses nothing.
    ///
    /// # Errors
    /// `Replaced`: another session observes.
    pub async fn next(&mut self) -> Result<Desired, Replaced> {
        loop {
            while let Some(changed) = self.news.pop_front() {
                if let Some(desired) = self.told.follow(&changed) {
                    return Ok(desired);
                }
            }
            let news = self.changes.next().await;
            if news.is_replaced {
                return Err(Replaced);
            }
            self.news = news.changes;
        }
    }
}

/// Why a device's request about its twin came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TwinRefused {
    /// The hub's rate is used up: come back later.
    #[error(transparent)]
    Throttled(#[from] Throttled),
    /// The patch is no JSON object.
    #[error(transparent)]
    Malformed(serde_json::Error),
    #[error(transparent)]
    Twin(#[from] TwinError),
}

impl TwinRefused {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Throttled(throttled) => throttled.code(),
            Self::Malformed(_) => ErrorCode::FORMAT_ERROR,
            Self::Twin(error) => error.code(),
        }
    }
}

/// The version of the reported properties after a report, under the name that the device gave it.
pub type Outcome<Id> = (Id, Result<u64, TwinError>);

/// What a device or module may ask of its own twin. `Id` tells reports apart.
pub struct OwnTwin<Id> {
    twins: Twins,
    throttles: Arc<Throttles>,
    clock: Arc<dyn Clock>,
    name: IdentityName,
    generation: Generation,
    pending: usize,
    outcomes: mpsc::UnboundedSender<Outcome<Id>>,
    outcome: mpsc::UnboundedReceiver<Outcome<Id>>,
}

impl<Id: Send + 'static> OwnTwin<Id> {
    /// `generation`: of the life of the identity that the session was opened for.
    pub fn new(
        twins: Twins,
        throttles: Arc<Throttles>,
        clock: Arc<dyn Clock>,
        name: IdentityName,
        generation: Generation,
    ) -> Self {
        let (outcomes, outcome) = mpsc::unbounded_channel();
        Self {
            twins,
            throttles,
            clock,
            name,
            generation,
            pending: 0,
            outcomes,
            outcome,
        }
    }

    /// The twin as the device may see it, JSON. Waits for its turn under the throttles; the door reads its peer no further
    /// meanwhile.
    ///
    /// # Errors
    /// `Throttled`, `Twin`.
    pub async fn read(&self) -> Result<String, TwinRefused> {
        self.turn(Class::TwinReads).await?;
        Ok(json(&DeviceSide::of(&self.twins.get(&self.name)?)))
    }

    /// Patches the reported properties, with `if_version` only if they still have it; `outcome` follows. Waits as `read`.
    ///
    /// # Errors
    /// `Throttled`, `Malformed`: then no outcome follows.
    pub async fn report(&mut self, id: Id, patch: &[u8], if_version: Option<u64>) -> Result<(), TwinRefused> {
        self.turn(Class::TwinUpdates).await?;
        let patch = parse_members(patch).map_err(TwinRefused::Malformed)?;
        self.pending += 1;
        let outcomes = self.outcomes.clone();
        let (name, now) = (self.name.clone(), self.clock.now());
        self.twins
            .patch_reported(name, self.generation, patch, if_version, now, move |result| {
                let version = result.map(|changed| changed.twin.reported.version);
                // Without a session nobody asks.
                drop(outcomes.send((id, version)));
            });
        Ok(())
    }

    /// Reports without an outcome yet. A door that reads no further above a bound of its own bounds what a device can
    /// make the hub hold.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// What became of a report, once it is durable or refused; waits for ever when there is none. Cancel-safe.
    pub async fn outcome(&mut self) -> Outcome<Id> {
        match self.outcome.recv().await {
            Some(outcome) => {
                self.pending -= 1;
                outcome
            }
            None => unreachable!("the sender is a field beside it"),
        }
    }

    async fn turn(&self, class: Class) -> Result<(), Throttled> {
        pass(self.throttles.admit(class, 1, Instant::now())).await
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("twins have text keys and no failing serializers")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hub::throttle::Rate;
    use crate::hub::{IfMatch, TwinUpdate};
    use crate::session::tests::Hub;

    impl Hub {
        fn change(&self, desired: &str, is_patch: bool) {
            let update =
                TwinUpdate::from_json(format!(r#"{{"properties":{{"desired":{desired}}}}}"#).as_bytes()).unwrap();
            let (name, now) = (self.name.clone(), self.clock.now());
            let changed = if is_patch {
                self.twins.patch_blocking(name, update, IfMatch::Any, now)
            } else {
                self.twins.replace_blocking(name, update, IfMatch::Any, now)
            };
            changed.unwrap();
        }

        fn observe(&self, seen: u64) -> (Observed, Option<Desired>) {
            Observed::open(&self.lines, &self.twins, &self.name, seen).unwrap()
        }

        fn own_twin(&self, throttles: Arc<Throttles>) -> OwnTwin<&'static str> {
            let clock = self.clock.clone();
            OwnTwin::new(self.twins.clone(), throttles, clock, self.name.clone(), self.generation)
        }
    }

    async fn told(observed: &mut Observed) -> (u64, bool, String) {
        let desired = observed.next().await.unwrap();
        (desired.version, desired.is_complete, desired.json())
    }

    async fn is_silent(observed: &mut Observed) -> bool {
        tokio::time::timeout(Duration::from_secs(1), observed.next())
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_told_what_it_missed_and_then_each_patch() {
        let hub = Hub::new();
        hub.change(r#"{"a":1}"#, true);
        let (_, missed) = hub.observe(2);
        assert_eq!(missed, None);
        let (mut observed, missed) = hub.observe(1);
        let missed = missed.unwrap();
        assert_eq!((missed.version, missed.is_complete), (2, true));
        assert_eq!(missed.json(), r#"{"$version":2,"a":1}"#);
        hub.change(r#"{"b":2}"#, true);
        hub.change(r#"{"a":null}"#, true);
        assert_eq!(told(&mut observed).await, (3, false, r#"{"$version":3,"b":2}"#.into()));
        assert_eq!(
            told(&mut observed).await,
            (4, false, r#"{"$version":4,"a":null}"#.into())
        );
        hub.change(r#"{"c":3}"#, false);
        assert_eq!(told(&mut observed).await, (5, true, r#"{"$version":5,"c":3}"#.into()));
        assert!(is_silent(&mut observed).await);
    }

    /// The line keeps only the newest of many changes.
    #[tokio::test(start_paused = true)]
    async fn after_a_gap_a_device_is_told_the_whole_section() {
        let hub = Hub::new();
        let (mut observed, _) = hub.observe(1);
        for n in 0..17 {
            hub.change(&format!(r#"{{"k{n}":{n}}}"#), true);
        }
        let desired = observed.next().await.unwrap();
        assert_eq!((desired.version, desired.is_complete), (18, true));
        assert_eq!(desired.members.len(), 18);
        assert!(is_silent(&mut observed).await);
    }

    /// A change between the observing and the reading of the twin is in both.
    #[tokio::test(start_paused = true)]
    async fn what_a_device_has_is_not_told_again() {
        let hub = Hub::new();
        let (mut observed, _) = hub.observe(1);
        hub.change(r#"{"a":1}"#, true);
        hub.change(r#"{"a":2}"#, true);
        observed.told = Told(2);
        assert_eq!(told(&mut observed).await, (3, false, r#"{"$version":3,"a":2}"#.into()));
        assert!(is_silent(&mut observed).await);
        let _successor = hub.observe(3);
        assert_eq!(observed.next().await, Err(Replaced));
    }

    #[tokio::test]
    async fn reports_come_out_under_their_names() {
        let hub = Hub::new();
        let mut twin = hub.own_twin(hub.throttles(|_| Rate::NONE));
        twin.report("first", br#"{"a":1}"#, None).await.unwrap();
        twin.report("second", br#"{"a":2}"#, Some(9)).await.unwrap();
        assert_eq!(twin.pending(), 2);
        let (first, second) = (twin.outcome().await, twin.outcome().await);
        assert_eq!((first.0, first.1.unwrap()), ("first", 2));
        assert_eq!((second.0, second.1.unwrap_err().code().number), ("second", 412_001));
        assert_eq!(twin.pending(), 0);
        let refused = twin.report("third", b"[]", None).await.unwrap_err();
        assert_eq!((refused.code(), twin.pending()), (ErrorCode::FORMAT_ERROR, 0));
        assert_eq!(
            twin.read().await.unwrap(),
            r#"{"desired":{"$version":1},"reported":{"a":1,"$version":2}}"#
        );
    }

    #[tokio::test]
    async fn a_device_of_an_earlier_life_reports_to_nobody() {
        let hub = Hub::new();
        let mut twin = hub.own_twin(hub.throttles(|_| Rate::NONE));
        twin.generation = Generation(hub.generation.0 + 1);
        twin.report("late", b"{}", None).await.unwrap();
        assert!(matches!(twin.outcome().await.1, Err(TwinError::DeviceNotFound)));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_and_reporting_have_throttles_of_their_own() {
        let hub = Hub::new();
        let one = Rate {
            per_second: 1,
            burst: 1,
        };
        let only = |held: Class| hub.throttles(move |class| if class == held { one } else { Rate::NONE });
        let mut twin = hub.own_twin(only(Class::TwinReads));
        twin.read().await.unwrap();
        assert_eq!(twin.read().await.unwrap_err().code(), ErrorCode::THROTTLED);
        twin.report("free", b"{}", None).await.unwrap();
        twin.report("free", b"{}", None).await.unwrap();
        let mut twin = hub.own_twin(only(Class::TwinUpdates));
        twin.report("one", b"{}", None).await.unwrap();
        let refused = twin.report("two", b"{}", None).await.unwrap_err();
        assert_eq!((refused.code(), twin.pending()), (ErrorCode::THROTTLED, 1));
        twin.read().await.unwrap();
        twin.read().await.unwrap();
    }
}
