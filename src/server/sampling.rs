//! Figures that nobody pushes (sizes, positions, depths), taken at intervals; and the sign of life of each thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Admissions;
use crate::hub::{EventKind, Events, Outboxes, Recorder};
use crate::log::DiskStorage;
use crate::metrics::{Backpressure, Commands, Metrics, Readiness};
use crate::session::quic::door::Door;
use crate::shard::budget::Cause;
use crate::shard::lines::Lines;
use crate::shard::router::Router;

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Says that this thread turns, for `/healthz`: whatever blocks a shard's thread for good also ends this.
pub(super) async fn beat(readiness: Arc<Readiness>, thread: usize) {
    loop {
        readiness.beat(thread, Instant::now());
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

pub(super) fn backpressure(cause: Cause) -> Backpressure {
    match cause {
        Cause::Session => Backpressure::Session,
        Cause::Partition => Backpressure::Partition,
        Cause::Shard => Backpressure::Shard,
    }
}

/// Who counts by itself and is asked.
pub(super) struct Told {
    pub(super) recorder: Recorder,
    pub(super) events: Events,
    pub(super) outboxes: Outboxes,
    pub(super) lines: Lines,
    /// By door.
    pub(super) admissions: Admissions,
}

/// Takes the figures that nobody pushes.
pub(super) async fn sample(metrics: Arc<Metrics>, router: Arc<Router<DiskStorage>>, door: Arc<Door>, told: Told) {
    let mut sampled = Instant::now();
    loop {
        metrics.set_quic_connections(door.sessions() as u64);
        let now = Instant::now();
        metrics.passed(now.duration_since(std::mem::replace(&mut sampled, now)));
        for (door, admission) in &told.admissions {
            metrics.set_admission(door, admission.readings());
        }
        let names = EventKind::ALL.iter().map(|kind| kind.name());
        metrics.set_events(names.zip(told.recorder.recorded()), told.events.dropped());
        let counts = told.outboxes.counts();
        metrics.set_commands(Commands {
            queued: counts.queued(),
            delivered: counts.delivered(),
            ended: counts
                .ended()
                .map(|(outcome, count)| (outcome.label(), count))
                .collect(),
            methods: told
                .lines
                .calls_ended()
                .map(|(outcome, count)| (outcome.label(), count))
                .collect(),
        });
        for partition in router.partitions() {
            let cell = metrics.partition(partition.view.partition());
            let statistics = partition.view.statistics();
            cell.set_size(statistics.bytes, statistics.segments);
            cell.set_next_sequence(partition.view.durable().0);
            let id = partition.view.partition();
            let inflight = router.inbox(id).budgets.partition_inflight_bytes(id);
            cell.set_inflight(inflight.into());
        }
        for (shard, inbox) in router.inboxes().iter().enumerate() {
            let cell = metrics.shard(shard);
            cell.set_queue(inbox.depth() as u64);
            cell.set_inflight(u64::from(inbox.budgets.inflight_bytes()));
            for cause in Cause::ALL {
                cell.set_backpressure(backpressure(cause), inbox.budgets.waited_ns(cause));
            }
        }
        for (group, partition, next) in door.readers.positions() {
            if let Some(position) = metrics.position(&group, partition) {
                position.set(next.0);
            }
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}
