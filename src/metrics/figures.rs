//! The few figures that a person looks at, as numbers: for status lines and pages, which need no exposition.

use std::sync::atomic::Ordering::Relaxed;

use super::cells::{Backpressure, Stage};
use super::histogram::Snapshot;
use super::process::{self, ProcessReadings};
use super::registry::{Metrics, ThrottleCell};
use crate::amqp::observer as amqp;
use crate::session::mqtt::observer as mqtt;

/// What was counted since the start, and what is so now.
#[derive(Clone)]
pub struct Figures {
    pub acknowledged: u64,
    pub accepted_bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    /// Messages refused to devices.
    pub refused: u64,
    /// Requests and batches that a throttle delayed or refused.
    pub throttled: u64,
    /// From the door to the acknowledgement, by message.
    pub ack: Snapshot,
    /// Nanoseconds for which sessions were not read because of the budgets of shards and partitions, over all of them.
    pub held_by_shards_ns: u64,
    pub held_by_disk_ns: u64,
    pub inflight_bytes: u64,
    pub queued: u64,
    /// Over all groups and partitions.
    pub lag: u64,
    /// Open connections with label of the transport they began with, see `Began` of the two doors.
    pub amqp: [(&'static str, u64); amqp::Began::ALL.len()],
    pub mqtt: [(&'static str, u64); mqtt::Began::ALL.len()],
    pub log_bytes: u64,
    pub process: ProcessReadings,
}

impl Metrics {
    /// Costs about what a scrape does; for once a second.
    pub fn figures(&self) -> Figures {
        let held = |cause: Backpressure| self.sum(|shard| shard.backpressure_nanos.at(cause as usize));
        let refused = |shard: &super::ShardCell| shard.refused.each().map(|cell| cell.load(Relaxed)).sum::<u64>();
        let throttled = |cell: &ThrottleCell| cell.delayed.load(Relaxed) + cell.refused.load(Relaxed);
        Figures {
            acknowledged: self.acknowledged(),
            accepted_bytes: self.sum(|shard| &shard.accepted_bytes),
            delivered: self.sum(|shard| &shard.delivered),
            delivered_bytes: self.sum(|shard| &shard.delivered_bytes),
            refused: self.shards.iter().map(|shard| refused(shard)).sum(),
            throttled: self.throttles.iter().map(throttled).sum(),
            ack: self.latency(Stage::Total),
            held_by_shards_ns: held(Backpressure::Shard) + held(Backpressure::Partition),
            held_by_disk_ns: held(Backpressure::DiskFull),
            inflight_bytes: self.sum(|shard| &shard.inflight_bytes),
            queued: self.sum(|shard| &shard.queue),
            lag: self.lags().into_iter().map(|(_, lag)| lag as u64).sum(),
            amqp: amqp::Began::ALL.map(|began| (began.label(), self.amqp.connections[began as usize].load(Relaxed))),
            mqtt: mqtt::Began::ALL.map(|began| (began.label(), self.mqtt.open(began))),
            log_bytes: self.log_bytes(),
            process: process::read(),
        }
    }
}
