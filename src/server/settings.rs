//! The parts of a configuration in the terms of the rooms they are for.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::http;
use crate::hub::{EventKind, EventSettings, QueueSettings};
use crate::log::{self, Retention};
use crate::shard::Durability;

/// Requests are short: what has not ended by then is not going to.
const HTTPS_DRAIN_MAX: Duration = Duration::from_secs(5);
/// A client that takes nothing for this long is gone, or might as well be: every SDK reads its socket all the time.
const HTTPS_STALL_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) struct Settings {
    pub(super) data: PathBuf,
    pub(super) shards: usize,
    pub(super) durability: Durability,
    pub(super) log: log::Config,
    pub(super) quic: crate::session::quic::config::Config,
    pub(super) https: http::Config,
}

impl Settings {
    pub(super) fn of(config: &Config) -> Self {
        let process = &config.process;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let durability = match process.durability {
            crate::config::Durability::Sync => Durability::Sync,
            crate::config::Durability::Interval(interval) => Durability::Interval(interval),
            crate::config::Durability::Os => Durability::Os,
        };
        let shards = match process.shards {
            0 => cores,
            shards => usize::from(shards),
        };
        let u32_of = |bytes: crate::config::Bytes| u32::try_from(bytes.0).unwrap_or(u32::MAX);
        Self {
            data: process.data_dir.clone(),
            shards,
            durability,
            log: log::Config {
                segment_bytes: config.log.segment_bytes.0,
                index_interval_bytes: u32_of(config.log.index_interval_bytes),
                retention_ms: retention(config).ms,
                retention_bytes: retention(config).bytes,
                ..log::Config::default()
            },
            quic: crate::session::quic::config::Config {
                listen: config.quic.listen,
                sessions_max: config.quic.sessions_max as usize,
                idle_timeout: config.quic.idle_timeout,
                handshake_timeout: config.quic.handshake_timeout,
                handshakes_per_second: config.quic.handshakes_per_second,
                udp_payload_bytes_max: config.quic.udp_payload_bytes_max,
                stream_window_bytes: u32_of(config.quic.stream_window_bytes),
                connection_window_bytes: u32_of(config.quic.connection_window_bytes),
                send_window_bytes: u32_of(config.quic.send_window_bytes),
                consumer_send_window_bytes: u32_of(config.quic.consumer_window_bytes),
                service_streams_max: 1024,
                batch_bytes_max: u32_of(config.quic.batch_bytes_max),
                message_bytes_max: u32_of(config.limits.message_bytes_max),
                inflight_bytes_max: u32_of(config.quic.inflight_bytes_max),
            },
            https: http::Config {
                listen: config.https.listen,
                workers: shards,
                connections_max: config.https.connections_max as usize,
                head_timeout: config.https.head_timeout,
                body_timeout: config.https.body_timeout,
                keep_alive: config.https.keep_alive,
                stall_timeout: HTTPS_STALL_TIMEOUT,
                body_bytes_max: u32_of(config.https.body_bytes_max) as usize,
                busy_timeout: config.https.busy_timeout,
                message_bytes_max: u32_of(config.limits.message_bytes_max) as usize,
                drain_timeout: process.drain_timeout.min(HTTPS_DRAIN_MAX),
            },
        }
    }
}

/// The configuration's ranges are those of the settings.
pub(super) fn queue_settings(config: &Config) -> QueueSettings {
    let commands = &config.commands;
    let count = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    QueueSettings {
        default_ttl: commands.default_ttl,
        delivery_count_max: count(commands.delivery_count_max),
        feedback_ttl: commands.feedback_ttl,
        feedback_delivery_count_max: count(commands.feedback_delivery_count_max),
        feedback_lock: commands.feedback_lock,
    }
}

pub(super) fn event_settings(config: &Config) -> EventSettings {
    EventSettings {
        retention: config.events.retention,
        records_max: u64::from(config.events.records_max),
    }
}

pub(super) fn retention(config: &Config) -> Retention {
    Retention {
        ms: i64::try_from(config.log.retention.as_millis()).unwrap_or(i64::MAX),
        bytes: config.log.retention_bytes.0,
    }
}

pub(super) fn event_kinds(config: &Config) -> Vec<EventKind> {
    let kind = |kind: &crate::config::EventKind| match kind {
        crate::config::EventKind::Connection => EventKind::Connection,
        crate::config::EventKind::Lifecycle => EventKind::LifeCycle,
        crate::config::EventKind::Twin => EventKind::Twin,
    };
    config.events.kinds.iter().map(kind).collect()
}
