//! How shards come to their partitions: what was stored tells which messages are duplicates, then each shard's actor starts
//! on its arbiter.

use std::sync::Arc;
use std::time::Instant;

use actix::Actor as _;
use actix_rt::Arbiter;
use anyhow::Context as _;

use super::Actors;
use super::settings::Settings;
use crate::hub::Presence;
use crate::hub::filter::PersistedFilter;
use crate::log::{Appender, DiskStorage};
use crate::metrics::Metrics;
use crate::metrics::observe::ShardFacts;
use crate::model::SequenceNumber;
use crate::model::time::Clock;
use crate::shard::Durability;
use crate::shard::actor::ShardActor;
use crate::shard::filter::DuplicateFilter;
use crate::shard::recovery;
use crate::shard::router::{Partition, Router, shard_of};
use crate::shard::shard::Shard;
use crate::shard::syncer::Bell;

pub(super) type OwnedPartition = (Appender<DiskStorage>, Arc<Partition<DiskStorage>>, DuplicateFilter);

/// Rebuilds every partition's duplicate filter, in parallel. A partition whose log cannot give it is closed: its consumers
/// read on, its devices are refused, and the others serve.
pub(super) fn replay_filters(
    persisted: &PersistedFilter,
    appenders: Vec<Appender<DiskStorage>>,
) -> anyhow::Result<Vec<OwnedPartition>> {
    std::thread::scope(|scope| {
        let replays: Vec<_> = appenders
            .into_iter()
            .map(|appender| {
                scope.spawn(move || -> anyhow::Result<OwnedPartition> {
                    let view = appender.view().clone();
                    let (filter, covered) = match recovery::rebuild(&view, persisted) {
                        Ok(rebuilt) => rebuilt,
                        Err(error) if error.is_of_partition() => {
                            tracing::error!(partition = %view.partition(), %error, "no duplicate filter: the partition is closed");
                            view.close_after(std::io::Error::other(error));
                            // Nothing is covered: retention leaves what a repaired log will be asked for.
                            (DuplicateFilter::default(), SequenceNumber(0))
                        }
                        Err(error) => {
                            return Err(error).with_context(|| format!("duplicate filter of partition {}", view.partition()));
                        }
                    };
                    let partition = Arc::new(Partition::new(view, covered));
                    Ok((appender, partition, filter))
                })
            })
            .collect();
        replays
            .into_iter()
            .map(|replay| replay.join().expect("a replay does not panic"))
            .collect()
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn start_shards(
    arbiters: &[Arbiter],
    router: &Arc<Router<DiskStorage>>,
    owned: Vec<OwnedPartition>,
    persisted: &PersistedFilter,
    presence: &Presence,
    settings: &Settings,
    metrics: &Arc<Metrics>,
    bell: &Arc<Bell>,
    clock: &Arc<dyn Clock>,
) -> Actors {
    let mut shards: Vec<_> = (0..arbiters.len())
        .map(|shard| {
            let facts = ShardFacts {
                cell: metrics.shard(shard),
                metrics: metrics.clone(),
            };
            let inbox = router.inboxes()[shard].clone();
            let mut shard = Shard::new(inbox, persisted.clone(), settings.durability, Instant::now, facts);
            shard.set_presence(presence.clone());
            shard
        })
        .collect();
    for (appender, partition, filter) in owned {
        let shard = shard_of(partition.view.partition(), shards.len());
        shards[shard].adopt(appender, partition, filter);
    }
    shards
        .into_iter()
        .zip(arbiters)
        .enumerate()
        .map(|(index, (shard, arbiter))| {
            let inbox = router.inboxes()[index].clone();
            let bell = (settings.durability != Durability::Os).then(|| bell.clone());
            let actor = ShardActor::new(shard, inbox, clock.clone(), bell, persisted.clone());
            ShardActor::start_in_arbiter(&arbiter.handle(), move |_| actor)
        })
        .collect()
}
