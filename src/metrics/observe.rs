//! The observers of the rooms below, written over the cells.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::cells::{Handshake, SessionKind, ShardCell, Stage};
use super::http::Readiness;
use super::registry::Metrics;
use crate::amqp::observer as amqp;
use crate::http::observer as http;
use crate::http::route::Route;
use crate::http::websocket::{Protocol, UpgradeRefused};
use crate::hub::throttle;
use crate::log::SyncError;
use crate::model::PartitionId;
use crate::service::eventhubs::observer as eventhubs;
use crate::session::amqp::observer as session_amqp;
use crate::session::quic::observer as quic;
use crate::shard::keeper::KeeperObserver;
use crate::shard::observer::{Acknowledged, Appended, Observer};
use crate::shard::syncer::{SyncObserver, Synced};
use crate::wire::close::CloseCode;

/// One shard's facts, into that shard's cell.
#[derive(Clone, Debug)]
pub struct ShardFacts {
    pub cell: Arc<ShardCell>,
    pub metrics: Arc<Metrics>,
}

impl Observer for ShardFacts {
    fn appended(&self, event: Appended) {
        let messages = u64::from(event.messages);
        self.cell.accepted(messages, u64::from(event.record_bytes));
        self.cell.appended(messages, u64::from(event.record_bytes));
        self.cell.latency(Stage::Door, event.door, messages);
        self.cell.latency(Stage::Queue, event.queue, messages);
        self.cell.latency(Stage::Append, event.append, messages);
    }

    fn acknowledged(&self, event: Acknowledged) {
        let messages = u64::from(event.messages);
        self.cell.acknowledged(messages);
        self.cell.latency(Stage::Sync, event.sync, messages);
        self.cell.latency(Stage::Total, event.total, messages);
    }

    fn duplicates(&self, messages: u32) {
        self.cell.duplicates(u64::from(messages));
        self.cell.accepted(u64::from(messages), 0);
    }

    fn ended(&self, code: CloseCode, messages: u32) {
        self.cell.refused(code, u64::from(messages));
    }

    fn stalled(&self, partition: PartitionId, is_stalled: bool, disk_full: bool) {
        self.metrics.partition(partition).set_stalled(is_stalled && disk_full);
    }
}

/// The native door's facts; all rare, so one cell serves all arbiters.
#[derive(Clone, Debug)]
pub struct QuicFacts {
    pub cell: Arc<ShardCell>,
    pub metrics: Arc<Metrics>,
}

impl quic::Observer for QuicFacts {
    fn handshake(&self, outcome: quic::Handshake) {
        self.cell.handshake(match outcome {
            quic::Handshake::Full => Handshake::Full,
            quic::Handshake::Resumed0Rtt => Handshake::Resumed,
            quic::Handshake::Failed => Handshake::Failed,
            quic::Handshake::TimedOut => Handshake::TimedOut,
            quic::Handshake::Retried => Handshake::Retried,
            quic::Handshake::Refused => Handshake::Refused,
        });
    }

    fn session_opened(&self, peer: quic::Peer) {
        self.cell.session_opened(kind(peer));
    }

    fn session_closed(&self, peer: quic::Peer) {
        self.cell.session_ended(kind(peer));
    }

    fn closed(&self, code: CloseCode) {
        self.cell.closed(code);
    }

    fn auth_refused(&self, label: &'static str) {
        self.metrics.auth_refused(label);
        self.cell.handshake(Handshake::Unauthorized);
    }

    fn delivered(&self, bytes: u64, messages: u64) {
        self.cell.delivered(messages, bytes);
    }

    fn checkpoint_stored(&self) {
        self.metrics.checkpoint_stored();
    }
}

/// The HTTPS server's facts.
#[derive(Clone, Debug)]
pub struct HttpFacts(pub Arc<Metrics>);

impl http::Observer for HttpFacts {
    fn answered(&self, route: Route, status: u16) {
        self.0.http_answered(route, status);
    }

    fn upgraded(&self, protocol: Protocol) {
        self.0.upgraded(protocol);
    }

    fn upgrade_refused(&self, reason: UpgradeRefused) {
        self.0.upgrade_refused(reason);
    }

    fn auth_refused(&self, label: &'static str) {
        self.0.auth_refused(label);
    }
}

/// The AMQP server's facts, and those of who reads through it.
#[derive(Clone, Debug)]
pub struct AmqpFacts {
    pub cell: Arc<ShardCell>,
    pub metrics: Arc<Metrics>,
}

impl amqp::Observer for AmqpFacts {
    fn connection_opened(&self, began: amqp::Began) {
        self.metrics.amqp.connections[began as usize].fetch_add(1, Relaxed);
    }

    fn connection_closed(&self, began: amqp::Began) {
        self.metrics.amqp.connections[began as usize].fetch_sub(1, Relaxed);
    }

    fn handshake_failed(&self) {
        self.metrics.amqp.handshakes_failed.fetch_add(1, Relaxed);
    }

    fn link_opened(&self) {
        self.metrics.amqp.links.fetch_add(1, Relaxed);
    }

    fn link_closed(&self) {
        self.metrics.amqp.links.fetch_sub(1, Relaxed);
    }

    fn ended(&self, condition: &'static str) {
        self.metrics.amqp_ended(condition);
    }

    fn auth_refused(&self, label: &'static str) {
        self.metrics.auth_refused(label);
    }
}

impl eventhubs::Observer for AmqpFacts {
    fn delivered(&self, bytes: u64, events: u64) {
        self.cell.delivered(events, bytes);
    }

    fn displaced(&self) {
        self.metrics.amqp.displaced.fetch_add(1, Relaxed);
    }
}

impl session_amqp::Observer for AmqpFacts {
    fn session_opened(&self) {
        self.cell.session_opened(SessionKind::Device);
    }

    fn session_closed(&self) {
        self.cell.session_ended(SessionKind::Device);
    }
}

/// What the throttles held up.
#[derive(Clone, Debug)]
pub struct ThrottleFacts(pub Arc<Metrics>);

impl throttle::Observer for ThrottleFacts {
    fn delayed(&self, limit: throttle::Limit, wait: Duration) {
        self.0.throttle_delayed(limit, wait);
    }

    fn refused(&self, limit: throttle::Limit) {
        self.0.throttle_refused(limit);
    }
}

fn kind(peer: quic::Peer) -> SessionKind {
    match peer {
        quic::Peer::Device => SessionKind::Device,
        quic::Peer::Service => SessionKind::Service,
    }
}

/// The syncer's and keeper's facts; what keeps a partition from storing also shows in the readiness.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
}

impl DiskFacts {
    /// A partition stores nothing until the hub is started again.
    pub fn closed(&self, partition: PartitionId, reason: &str) {
        self.metrics.partition(partition).set_poisoned(true);
        self.readiness.block(&format!("partition {partition}"), reason);
    }
}

impl SyncObserver for DiskFacts {
    fn synced(&self, event: Synced) {
        self.metrics.synced(event.elapsed);
    }

    fn failed(&self, partition: PartitionId, error: &SyncError) {
        self.metrics.sync_failed();
        self.closed(partition, &error.to_string());
    }
}

impl KeeperObserver for DiskFacts {
    fn disk_full(&self, partition: PartitionId, is_full: bool) {
        self.metrics.partition(partition).set_disk_full(is_full);
        let part = format!("disk of partition {partition}");
        if is_full {
            self.readiness.block(&part, "full");
        } else {
            self.readiness.unblock(&part);
        }
    }
}
