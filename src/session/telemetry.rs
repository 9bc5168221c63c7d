//! A session's telemetry on its way to the home shard, apart from how its door reads it.
//!
//! ```text
//!   the door's batches ──pulled──> throttles ──> budgets ──> home shard ── durable ──> acknowledged
//!                                     └ until when └ blocked, in line
//! ```
//!
//! One batch waits at a time. The next ones stay with the door, which stops reading while there is no room, so that its
//! protocol slows the device down. A session is never refused.
//!
//! It costs a batch no allocation, lock, timer or wake-up beside the shard's queue.

use std::cell::LazyCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::home::HomeSession;
use crate::hub::Throttles;
use crate::hub::throttle::{Gate, Pace};
use crate::model::PartitionId;
use crate::model::time::Clock;
use crate::shard::budget::{Cause, Reserved, Waiting};
use crate::shard::command::{Append, SessionId};
use crate::shard::inbox::Inbox;
use crate::shard::link::SessionLink;
use crate::wire::batch::Batch;

/// One session's batches. They carry consecutive sequences of the session's epoch, from `Opened::last_sequence` on.
pub struct Telemetry {
    session: SessionId,
    partition: PartitionId,
    inbox: Arc<Inbox>,
    link: Arc<SessionLink>,
    clock: Arc<dyn Clock>,
    inflight_bytes_max: u64,
    /// Under which throttles the session stands.
    pace: Pace,
    /// The next batch, if it waits for them.
    paced: Option<Paced>,
    /// The next batch, if it waits for the budgets.
    blocked: Option<Blocked>,
    /// Last sequence and price of what is handed over and not acknowledged.
    inflight: VecDeque<(u64, u32)>,
    inflight_bytes: u64,
    /// Counts the time in which that is too much.
    full: Option<Waiting>,
}

/// A batch that waits for room among those on their way.
struct Blocked {
    batch: Batch,
    price: u32,
    received: Instant,
    _waiting: Waiting,
}

/// A batch that waits for its turn.
struct Paced {
    batch: Batch,
    received: Instant,
    gate: Gate,
    /// When to try the gate.
    until: Instant,
}

impl Paced {
    fn new(batch: Batch, received: Instant) -> Self {
        Self {
            batch,
            received,
            gate: Gate::default(),
            until: received,
        }
    }
}

impl Telemetry {
    /// `inflight_bytes_max`: handed over and not acknowledged, above which there is no room for more.
    pub fn new(home: &HomeSession, throttles: &Arc<Throttles>, clock: Arc<dyn Clock>, inflight_bytes_max: u32) -> Self {
        Self {
            session: home.session,
            partition: home.partition,
            inbox: home.inbox.clone(),
            link: home.link.clone(),
            clock,
            inflight_bytes_max: inflight_bytes_max.into(),
            pace: throttles.pace(),
            paced: None,
            blocked: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            full: None,
        }
    }

    /// Hands the door's batches over until one has to wait. Call it again after each of: a batch came, `deadline` passed,
    /// `unblocked` completed.
    pub fn hand_over(&mut self, next: impl FnMut() -> Option<Batch>) {
        self.hand_over_at(Instant::now, next);
    }

    fn hand_over_at(&mut self, now: impl FnOnce() -> Instant, mut next: impl FnMut() -> Option<Batch>) {
        // Read only when there is a batch, and once for all that came together.
        let now = LazyCell::new(now);
        while self.blocked.is_none() {
            let paced = self.paced.take().or_else(|| Some(Paced::new(next()?, *now)));
            let Some((batch, received)) = paced.and_then(|paced| self.pass(paced, *now)) else {
                return;
            };
            let budgets = &self.inbox.budgets;
            let price = budgets.price(batch.payload.len());
            match budgets.try_reserve(self.partition, price) {
                Ok(reserved) => self.submit(batch, reserved, received),
                Err(cause) => {
                    self.blocked = Some(Blocked {
                        batch,
                        price,
                        received,
                        _waiting: Waiting::begin(budgets, cause),
                    });
                }
            }
        }
    }

    /// Whether the door is to read on: nothing waits, and not too much is unacknowledged.
    pub fn has_room(&self) -> bool {
        self.blocked.is_none() && self.paced.is_none() && self.inflight_bytes < self.inflight_bytes_max
    }

    /// Whether a batch waits for the budgets: then `unblocked` is to be waited for.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Hands over the batch that waits for the budgets, once there is enough; waits for ever if none does.
    /// Cancelling the wait leaves the batch where it is.
    pub async fn unblocked(&mut self) {
        let Some(blocked) = &self.blocked else {
            return std::future::pending().await;
        };
        let reserved = self.inbox.budgets.reserve(self.partition, blocked.price).await;
        let Blocked { batch, received, .. } = self.blocked.take().expect("looked at above");
        self.submit(batch, reserved, received);
    }

    /// When the batch that waits for the throttles may go on.
    pub fn deadline(&self) -> Option<Instant> {
        self.paced.as_ref().map(|paced| paced.until)
    }

    /// Makes room of what is stored, after the session's link has changed. The last sequence that is.
    pub fn take_acknowledged(&mut self) -> u64 {
        let acknowledged = self.link.acknowledged();
        while let Some((_, price)) = self.inflight.pop_front_if(|(last, _)| *last <= acknowledged) {
            self.inflight_bytes -= u64::from(price);
        }
        if self.inflight_bytes < self.inflight_bytes_max {
            self.full = None;
        }
        acknowledged
    }

    /// Whether all that was handed over is acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.inflight.is_empty()
    }

    /// Whether nothing waits and all is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.is_acknowledged() && self.blocked.is_none() && self.paced.is_none()
    }

    /// The batch and since when it is here, if it may go on.
    fn pass(&mut self, mut paced: Paced, now: Instant) -> Option<(Batch, Instant)> {
        if paced.until <= now {
            let (messages, bytes) = (u64::from(paced.batch.count), paced.batch.payload.len() as u64);
            let (gate, until) = self.pace.pass(paced.gate, messages, bytes, now, self.clock.now());
            let Some(until) = until else {
                return Some((paced.batch, paced.received));
            };
            (paced.gate, paced.until) = (gate, until);
        }
        self.paced = Some(paced);
        None
    }

    /// What is reserved goes with the batch: the shard gives it back.
    fn submit(&mut self, batch: Batch, reserved: Reserved, received: Instant) {
        self.inflight.push_back((batch.last_sequence(), reserved.bytes()));
        self.inflight_bytes += u64::from(reserved.bytes());
        if self.full.is_none() && self.inflight_bytes >= self.inflight_bytes_max {
            self.full = Some(Waiting::begin(&self.inbox.budgets, Cause::Session));
        }
        let submitted = Instant::now();
        self.inbox.push_append(Append {
            session: self.session,
            batch,
            reserved,
            received,
            submitted,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hub::throttle::Rate;
    use crate::session::tests::{Hub, OPENED, opened};
    use crate::shard::budget::{APPEND_BUDGET_BYTES_MIN as PRICE, Budgets};
    use crate::shard::command::Command;
    use crate::wire::batch::BatchBuilder;

    /// A session whose shard's budget and own room are so many of the smallest batches.
    async fn telemetry(budget: u32, room: u32, rate: Rate) -> (Telemetry, HomeSession) {
        let inbox = Inbox::new(Budgets::new(budget * PRICE, budget * PRICE, 1));
        let home = opened(&inbox, Ok(OPENED)).await.unwrap();
        let hub = Hub::new();
        let throttles = hub.throttles(|_| rate);
        let telemetry = Telemetry::new(&home, &throttles, hub.clock.clone(), room * PRICE);
        (telemetry, home)
    }

    /// Batches of one message each.
    fn batches(sequences: std::ops::RangeInclusive<u64>) -> VecDeque<Batch> {
        let batch = |first_sequence| {
            let mut builder = BatchBuilder::default();
            builder.push_body(b"x");
            Batch {
                first_sequence,
                count: 1,
                skip: false,
                payload: builder.finish_payload(),
            }
        };
        sequences.map(batch).collect()
    }

    /// What the shard gets, in order, and what it is to give back.
    fn taken(home: &HomeSession) -> (Vec<u64>, Vec<Reserved>) {
        let appends = std::iter::from_fn(|| home.inbox.pop()).map(|command| match command {
            Command::Append(append) if append.session == home.session => (append.batch.first_sequence, append.reserved),
            other => panic!("no append of the session: {other:?}"),
        });
        appends.unzip()
    }

    /// What the shard gets, and keeps.
    fn handed_over(home: &HomeSession) -> Vec<u64> {
        taken(home).0
    }

    #[tokio::test]
    async fn a_session_has_room_until_too_much_is_unacknowledged() {
        let (mut telemetry, home) = telemetry(100, 2, Rate::NONE).await;
        assert!(telemetry.has_room() && telemetry.is_idle());
        let mut batches = batches(10..=12);
        telemetry.hand_over(|| batches.pop_front());
        // What the door has already goes over: it stops reading then.
        assert_eq!(handed_over(&home), [10, 11, 12]);
        assert!(!telemetry.has_room() && !telemetry.is_idle());
        let budgets = home.inbox.budgets.clone();
        assert_eq!(budgets.waiting(Cause::Session), 1);
        home.link.acknowledge(10);
        assert_eq!(telemetry.take_acknowledged(), 10);
        assert!(!telemetry.has_room());
        home.link.acknowledge(11);
        telemetry.take_acknowledged();
        assert!(telemetry.has_room() && !telemetry.is_acknowledged());
        assert_eq!(budgets.waiting(Cause::Session), 0);
        home.link.acknowledge(12);
        telemetry.take_acknowledged();
        assert!(telemetry.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn batches_wait_for_the_budget_in_their_order() {
        let (mut telemetry, home) = telemetry(2, 100, Rate::NONE).await;
        let mut batches = batches(10..=14);
        telemetry.hand_over(|| batches.pop_front());
        let (sequences, mut reserved) = taken(&home);
        assert_eq!(sequences, [10, 11]);
        assert!(telemetry.is_blocked() && !telemetry.has_room());
        assert_eq!(home.inbox.budgets.waiting(Cause::Partition), 1);
        assert_eq!(batches.len(), 2, "one waits here, the others with the door");
        telemetry.hand_over(|| batches.pop_front());
        let waited = tokio::time::timeout(Duration::from_secs(1), telemetry.unblocked()).await;
        assert!(waited.is_err(), "there is no budget");
        home.inbox.release(reserved.remove(0));
        telemetry.unblocked().await;
        telemetry.hand_over(|| batches.pop_front());
        let (sequences, more) = taken(&home);
        assert_eq!(sequences, [12]);
        reserved.into_iter().chain(more).for_each(|one| home.inbox.release(one));
        telemetry.unblocked().await;
        telemetry.hand_over(|| batches.pop_front());
        assert_eq!(handed_over(&home), [13, 14]);
        assert!(!telemetry.is_blocked());
        assert_eq!(home.inbox.budgets.waiting(Cause::Partition), 0);
    }

    #[tokio::test]
    async fn a_batch_waits_for_its_turn_under_the_throttles() {
        let rate = Rate {
            per_second: 50,
            burst: 1,
        };
        let (mut telemetry, home) = telemetry(100, 100, rate).await;
        let mut batches = batches(10..=12);
        telemetry.hand_over(|| batches.pop_front());
        assert_eq!(handed_over(&home), [10]);
        assert!(!telemetry.has_room() && !telemetry.is_blocked());
        let deadline = telemetry.deadline().expect("the next batch has a turn");
        assert_eq!(batches.len(), 1, "one waits here, the other with the door");
        telemetry.hand_over_at(|| deadline - Duration::from_millis(1), || batches.pop_front());
        assert!(handed_over(&home).is_empty());
        telemetry.hand_over_at(|| deadline, || batches.pop_front());
        assert_eq!(handed_over(&home), [11]);
        let second = telemetry.deadline().expect("the last batch has a turn");
        assert!(second > deadline);
    }
}
