//! All cells of a process, and their sum as Prometheus text.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::proto::{Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType};

use super::cells::{Backpressure, DISK_FULL, Handshake, POISONED, PartitionCell, SessionKind, ShardCell, Stage};
use super::histogram::{Histogram, Snapshot};
use super::mqtt::MqttCells;
use super::process;
use super::series::{self, Kind, Series};
use crate::amqp::observer::Began;
use crate::http::route::Route;
use crate::http::websocket::{Protocol, UpgradeRefused};
use crate::hub::throttle::Limit;
use crate::model::limits::CONSUMER_GROUPS_MAX;
use crate::model::{ConsumerGroup, PartitionId};
use crate::wire::close::CloseCode;

/// Upper ends of the exported latency buckets, in microseconds. The cells behind them are finer.
const BOUNDS_MICROS: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 750, 1_000, 1_500, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000,
    10_000_000,
];

/// Statuses that routes answer with; 0 stands for any other.
const HTTP_STATUSES: [u16; 17] = [
    200, 201, 204, 207, 400, 401, 403, 404, 405, 409, 412, 413, 429, 500, 503, 504, 0,
];

/// Where a consumer group's reading of one partition stands; the cursor's owner stores, a scrape reads.
#[derive(Clone, Debug, Default)]
pub struct Position(Arc<AtomicU64>);

impl Position {
    /// The next sequence number the group will read.
    pub fn set(&self, next: u64) {
        self.0.store(next, Relaxed);
    }
}

/// What one limit held up.
#[derive(Debug, Default)]
struct ThrottleCell {
    delayed: AtomicU64,
    refused: AtomicU64,
    wait_nanos: AtomicU64,
}

/// Every metric of the process. Made once, shared by `Arc`; each part keeps the cell it writes.
#[derive(Debug)]
pub struct Metrics {
    durability: &'static str,
    started: SystemTime,
    shards: Box<[Arc<ShardCell>]>,
    partitions: Box<[Arc<PartitionCell>]>,
    sync: Histogram,
    sync_failures: AtomicU64,
    recovery_nanos: AtomicU64,
    positions: Mutex<BTreeMap<(ConsumerGroup, PartitionId), Position>>,
    /// By `hub::AuthError::label`, a closed set.
    auth_refused: Mutex<BTreeMap<&'static str, u64>>,
    checkpoints: AtomicU64,
    /// By `Limit::index`.
    throttles: [ThrottleCell; Limit::COUNT],
    /// By `hub::EventKind::name`, a closed set; and those dropped.
    events: Mutex<(BTreeMap<&'static str, u64>, u64)>,
    /// Routes times statuses.
    http_requests: Box<[AtomicU64]>,
    upgrades: [AtomicU64; Protocol::ALL.len()],
    upgrades_refused: [AtomicU64; UpgradeRefused::ALL.len()],
    pub(super) amqp: AmqpCells,
    pub(super) mqtt: MqttCells,
}

/// Of the AMQP server and what is read through it.
#[derive(Debug, Default)]
pub(super) struct AmqpCells {
    pub connections: [AtomicU64; Began::ALL.len()],
    pub links: AtomicU64,
    pub handshakes_failed: AtomicU64,
    /// By `Condition::label`, a closed set.
    pub ended: Mutex<BTreeMap<&'static str, u64>>,
    pub displaced: AtomicU64,
}

impl Metrics {
    /// `durability` is the level's name as in the configuration.
    pub fn new(shard_count: usize, partition_count: u16, durability: &'static str, started: SystemTime) -> Self {
        Self {
            durability,
            started,
            shards: (0..shard_count).map(|_| Arc::default()).collect(),
            partitions: (0..partition_count).map(|_| Arc::default()).collect(),
            sync: Histogram::default(),
            sync_failures: AtomicU64::new(0),
            recovery_nanos: AtomicU64::new(0),
            positions: Mutex::default(),
            auth_refused: Mutex::default(),
            checkpoints: AtomicU64::new(0),
            throttles: std::array::from_fn(|_| ThrottleCell::default()),
            events: Mutex::default(),
            http_requests: (0..Route::ALL.len() * HTTP_STATUSES.len())
                .map(|_| AtomicU64::new(0))
                .collect(),
            upgrades: Default::default(),
            upgrades_refused: Default::default(),
            amqp: AmqpCells::default(),
            mqtt: MqttCells::default(),
        }
    }

    pub fn shard(&self, shard: usize) -> Arc<ShardCell> {
        self.shards[shard].clone()
    }

    pub fn partition(&self, partition: PartitionId) -> Arc<PartitionCell> {
        self.partitions[usize::from(partition.0)].clone()
    }

    /// The cell of a group's cursor; the same one for every reader of the group. Ask once and keep it: this locks.
    /// `None` when there are more groups than the contract allows, so that the number of series stays bounded.
    pub fn position(&self, group: &ConsumerGroup, partition: PartitionId) -> Option<Position> {
        let mut positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (group.clone(), partition);
        let entries_max = CONSUMER_GROUPS_MAX * self.partitions.len();
        if !positions.contains_key(&key) && positions.len() >= entries_max {
            return None;
        }
        Some(positions.entry(key).or_default().clone())
    }

    /// Forgets a deleted group.
    pub fn remove_group(&self, group: &ConsumerGroup) {
        let mut positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        positions.retain(|(name, _), _| name != group);
    }

    /// A credential was refused; `reason` is from a closed set.
    pub fn auth_refused(&self, reason: &'static str) {
        *self
            .auth_refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
    }

    pub fn checkpoint_stored(&self) {
        self.checkpoints.fetch_add(1, Relaxed);
    }

    /// A request or batch was made to wait.
    pub fn throttle_delayed(&self, limit: Limit, wait: Duration) {
        let cell = &self.throttles[limit.index()];
        cell.delayed.fetch_add(1, Relaxed);
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        cell.wait_nanos.fetch_add(nanos, Relaxed);
    }

    /// A request was told to come back later.
    pub fn throttle_refused(&self, limit: Limit) {
        self.throttles[limit.index()].refused.fetch_add(1, Relaxed);
    }

    /// Events recorded so far by kind, and dropped by retention.
    pub fn set_events(&self, recorded: impl IntoIterator<Item = (&'static str, u64)>, dropped: u64) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = (recorded.into_iter().collect(), dropped);
    }

    /// A request was answered over HTTPS.
    pub fn http_answered(&self, route: Route, status: u16) {
        let known = HTTP_STATUSES.iter().position(|&known| known == status);
        // The last one stands for all that no route gives.
        let column = known.unwrap_or(HTTP_STATUSES.len() - 1);
        self.http_requests[route as usize * HTTP_STATUSES.len() + column].fetch_add(1, Relaxed);
    }

    /// A WebSocket was opened.
    pub fn upgraded(&self, protocol: Protocol) {
        self.upgrades[protocol as usize].fetch_add(1, Relaxed);
    }

    /// A request on the path of WebSockets opened none.
    pub fn upgrade_refused(&self, reason: UpgradeRefused) {
        self.upgrades_refused[reason as usize].fetch_add(1, Relaxed);
    }

    pub fn synced(&self, duration: Duration) {
        self.sync.record(duration);
    }

    pub fn sync_failed(&self) {
        self.sync_failures.fetch_add(1, Relaxed);
    }

    pub fn recovered(&self, duration: Duration) {
        self.recovery_nanos
            .store(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Latency of one stage over all shards, for status lines and reports.
    pub fn latency(&self, stage: Stage) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for shard in &self.shards {
            shard.latency.at(stage as usize).add_to(&mut snapshot);
        }
        snapshot
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.sum(|shard| &shard.acknowledged)
    }

    /// Messages appended so far.
    pub fn appended(&self) -> u64 {
        self.sum(|shard| &shard.appended)
    }

    pub fn sessions(&self, kind: SessionKind) -> u64 {
        let open: i64 = self
            .shards
            .iter()
            .map(|shard| shard.sessions.at(kind as usize).load(Relaxed))
            .sum();
        open.max(0) as u64
    }

    pub fn log_bytes(&self) -> u64 {
        self.partitions
            .iter()
            .map(|partition| partition.bytes.load(Relaxed))
            .sum()
    }

    fn sum(&self, cell: impl Fn(&ShardCell) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| cell(shard).load(Relaxed)).sum()
    }

    /// The whole exposition, Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let families = self.families();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .expect("every family has a name and a metric, and writing to memory cannot fail")
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut out = Families::default();
        let seconds = |nanos: u64| nanos as f64 / 1e9;

        out.one(&series::INFO, &[env!("CARGO_PKG_VERSION"), self.durability], 1.0);
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        out.one(&series::START, &[], started.as_secs_f64());
        out.one(&series::ACCEPTED, &[], self.sum(|s| &s.accepted) as f64);
        out.one(&series::ACCEPTED_BYTES, &[], self.sum(|s| &s.accepted_bytes) as f64);
        out.one(&series::APPENDED, &[], self.sum(|s| &s.appended) as f64);
        out.one(&series::APPENDED_BYTES, &[], self.sum(|s| &s.appended_bytes) as f64);
        out.one(&series::ACKNOWLEDGED, &[], self.sum(|s| &s.acknowledged) as f64);
        out.one(&series::DUPLICATES, &[], self.sum(|s| &s.duplicates) as f64);
        out.each(
            &series::REFUSED,
            CloseCode::ALL.iter().enumerate().map(|(index, reason)| {
                (
                    vec![reason.label().to_owned()],
                    self.sum(|s| s.refused.at(index)) as f64,
                )
            }),
        );
        out.one(&series::DELIVERED, &[], self.sum(|s| &s.delivered) as f64);
        out.one(&series::DELIVERED_BYTES, &[], self.sum(|s| &s.delivered_bytes) as f64);
        out.histograms(
            &series::ACK_LATENCY,
            Stage::ALL.iter().map(|&stage| {
                (
                    vec![stage.name().to_owned(), self.durability.to_owned()],
                    self.latency(stage),
                )
            }),
        );
        out.one(&series::QUEUE, &[], self.sum(|s| &s.queue) as f64);
        out.one(&series::INFLIGHT, &[], self.sum(|s| &s.inflight_bytes) as f64);
        out.each(
            &series::BACKPRESSURE,
            Backpressure::ALL.iter().map(|&cause| {
                let nanos = self.sum(|s| s.backpressure_nanos.at(cause as usize));
                (vec![cause.name().to_owned()], seconds(nanos))
            }),
        );
        out.each(
            &series::SESSIONS,
            SessionKind::ALL
                .iter()
                .map(|&kind| (vec![kind.name().to_owned()], self.sessions(kind) as f64)),
        );
        out.each(
            &series::CLOSED,
            CloseCode::ALL
                .iter()
                .enumerate()
                .map(|(index, reason)| (vec![reason.label().to_owned()], self.sum(|s| s.closed.at(index)) as f64)),
        );
        out.each(
            &series::HANDSHAKES,
            Handshake::ALL.iter().map(|&outcome| {
                (
                    vec![outcome.name().to_owned()],
                    self.sum(|s| s.handshakes.at(outcome as usize)) as f64,
                )
            }),
        );
        let refused = self.auth_refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.each(
            &series::AUTH_REFUSED,
            refused
                .into_iter()
                .map(|(reason, count)| (vec![reason.to_owned()], count as f64)),
        );
        out.each(&series::HTTP_REQUESTS, self.http_requests());
        out.each(
            &series::UPGRADES,
            Protocol::ALL.iter().map(|&protocol| {
                let count = self.upgrades[protocol as usize].load(Relaxed);
                (vec![protocol.label().to_owned()], count as f64)
            }),
        );
        out.each(
            &series::UPGRADES_REFUSED,
            UpgradeRefused::ALL.iter().map(|&reason| {
                let count = self.upgrades_refused[reason as usize].load(Relaxed);
                (vec![reason.label().to_owned()], count as f64)
            }),
        );
        self.render_amqp(&mut out);
        out.each(
            &series::THROTTLED,
            Limit::ALL.iter().flat_map(|limit| {
                let cell = &self.throttles[limit.index()];
                let outcomes = [("delayed", &cell.delayed), ("refused", &cell.refused)];
                outcomes.map(|(outcome, count)| {
                    let labels = vec![limit.label().to_owned(), outcome.to_owned()];
                    (labels, count.load(Relaxed) as f64)
                })
            }),
        );
        out.each(
            &series::THROTTLE_WAIT,
            Limit::ALL.iter().map(|limit| {
                let nanos = self.throttles[limit.index()].wait_nanos.load(Relaxed);
                (vec![limit.label().to_owned()], seconds(nanos))
            }),
        );
        out.one(&series::CHECKPOINTS, &[], self.checkpoints.load(Relaxed) as f64);
        let (recorded, dropped) = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let by_kind = recorded
            .into_iter()
            .map(|(kind, count)| (vec![kind.to_owned()], count as f64));
        out.each(&series::EVENTS, by_kind);
        out.one(&series::EVENTS_DROPPED, &[], dropped as f64);
        self.log_families(&mut out);
        out.histograms(&series::SYNC, [(vec![], self.sync.snapshot())].into_iter());
        out.one(&series::SYNC_FAILED, &[], self.sync_failures.load(Relaxed) as f64);
        out.one(&series::RECOVERY, &[], seconds(self.recovery_nanos.load(Relaxed)));
        out.each(&series::LAG, self.lags().into_iter());
        let process = process::read();
        let cpu = [("user", process.user_seconds), ("system", process.system_seconds)];
        out.each(
            &series::CPU,
            cpu.into_iter().map(|(mode, seconds)| (vec![mode.to_owned()], seconds)),
        );
        out.one(&series::RESIDENT, &[], process.resident_bytes as f64);
        out.one(&series::FDS, &[], process.open_fds as f64);
        out.0
    }

    fn log_families(&self, out: &mut Families) {
        let each = |cell: fn(&PartitionCell) -> &AtomicU64| {
            let numbered = self.partitions.iter().enumerate();
            numbered.map(move |(number, partition)| (vec![number.to_string()], cell(partition).load(Relaxed) as f64))
        };
        out.each(&series::LOG_BYTES, each(|partition| &partition.bytes));
        out.each(&series::LOG_SEGMENTS, each(|partition| &partition.segments));
        out.each(&series::LOG_NEXT, each(|partition| &partition.next_sequence));
        let refusing = |bit: u64| {
            let is = |partition: &&Arc<PartitionCell>| partition.refusing.load(Relaxed) & bit != 0;
            self.partitions.iter().filter(is).count() as f64
        };
        let causes = [("poisoned", refusing(POISONED)), ("disk_full", refusing(DISK_FULL))];
        out.each(
            &series::LOG_STATE,
            causes.into_iter().map(|(cause, count)| (vec![cause.to_owned()], count)),
        );
    }

    /// What was answered at least once.
    /// The label is a condition's.
    pub fn amqp_ended(&self, condition: &'static str) {
        let mut ended = self.amqp.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry(condition).or_default() += 1;
    }

    fn render_amqp(&self, out: &mut Families) {
        let cells = &self.amqp;
        out.each(
            &series::AMQP_CONNECTIONS,
            Began::ALL.iter().map(|&began| {
                let count = cells.connections[began as usize].load(Relaxed);
                (vec![began.label().to_owned()], count as f64)
            }),
        );
        out.one(&series::AMQP_LINKS, &[], cells.links.load(Relaxed) as f64);
        let failed = cells.handshakes_failed.load(Relaxed);
        out.one(&series::AMQP_HANDSHAKES_FAILED, &[], failed as f64);
        let ended = cells.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.each(
            &series::AMQP_ENDED,
            ended
                .into_iter()
                .map(|(condition, count)| (vec![condition.to_owned()], count as f64)),
        );
        self.mqtt.render(out);
        out.one(&series::READERS_DISPLACED, &[], cells.displaced.load(Relaxed) as f64);
    }

    fn http_requests(&self) -> impl Iterator<Item = (Vec<String>, f64)> {
        let counted = self.http_requests.iter().enumerate();
        counted.filter_map(|(index, cell)| {
            let count = cell.load(Relaxed);
            let (route, status) = (index / HTTP_STATUSES.len(), index % HTTP_STATUSES.len());
            let status = match HTTP_STATUSES[status] {
                0 => "other".to_owned(),
                status => status.to_string(),
            };
            (count > 0).then(|| (vec![Route::ALL[route].label().to_owned(), status], count as f64))
        })
    }

    fn lags(&self) -> Vec<(Vec<String>, f64)> {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = |((group, partition), position): (&(ConsumerGroup, PartitionId), &Position)| {
            let head = self.partitions[usize::from(partition.0)].next_sequence.load(Relaxed);
            let labels = vec![group.to_string(), partition.to_string()];
            (labels, head.saturating_sub(position.0.load(Relaxed)) as f64)
        };
        positions.iter().map(lag).collect()
    }
}

/// The exposition under construction.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    pub(super) fn one(&mut self, series: &Series, labels: &[&str], value: f64) {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        self.each(series, [(labels, value)].into_iter());
    }

    pub(super) fn each(&mut self, series: &Series, values: impl Iterator<Item = (Vec<String>, f64)>) {
        let metric = |(labels, value)| {
            let mut metric = Metric::from_label(pairs(series, labels));
            match series.kind {
                Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    metric.set_counter(counter);
                }
                Kind::Gauge => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    metric.set_gauge(gauge);
                }
                Kind::Histogram => unreachable!("histograms come through `histograms`"),
            }
            metric
        };
        self.family(series, values.map(metric).collect());
    }

    fn histograms(&mut self, series: &Series, values: impl Iterator<Item = (Vec<String>, Snapshot)>) {
        let bounds = BOUNDS_MICROS.map(Duration::from_micros);
        let metric = |(labels, snapshot): (_, Snapshot)| {
            let cumulative = snapshot.cumulative(&bounds).into_iter();
            let bucket = |(count, bound): (u64, &Duration)| {
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(count);
                bucket.set_upper_bound(bound.as_secs_f64());
                bucket
            };
            let mut buckets = Buckets::default();
            buckets.set_bucket(cumulative.zip(&bounds).map(bucket).collect());
            buckets.set_sample_count(snapshot.count());
            buckets.set_sample_sum(snapshot.sum_seconds());
            let mut metric = Metric::from_label(pairs(series, labels));
            metric.set_histogram(buckets);
            metric
        };
        self.family(series, values.map(metric).collect());
    }

    fn family(&mut self, series: &Series, metrics: Vec<Metric>) {
        // The encoder refuses a family without metrics: a group without readers has no lag yet.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(series.name.to_owned());
        family.set_help(series.help.to_owned());
        family.set_field_type(match series.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(metrics);
        self.0.push(family);
    }
}

fn pairs(series: &Series, values: Vec<String>) -> Vec<LabelPair> {
    assert_eq!(series.labels.len(), values.len(), "{} has other labels", series.name);
    let pair = |(name, value): (&&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    };
    series.labels.iter().zip(values).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::mqtt::observer as mqtt;

    fn metrics() -> Metrics {
        Metrics::new(2, 2, "sync", SystemTime::UNIX_EPOCH + Duration::from_secs(5))
    }

    #[track_caller]
    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }

    #[test]
    fn a_scrape_sums_the_shards() {
        let metrics = metrics();
        for (shard, factor) in [(0, 1), (1, 10)] {
            let cell = metrics.shard(shard);
            cell.accepted(3 * factor, 300);
            cell.appended(2 * factor, 200);
            cell.acknowledged(factor);
            cell.duplicates(factor);
            cell.refused(CloseCode::MessageTooLarge, factor);
            cell.closed(CloseCode::TakenOver);
            cell.handshake(Handshake::Resumed);
            cell.session_opened(SessionKind::Device);
            cell.set_queue(3);
            cell.set_inflight(1000);
            cell.set_backpressure(Backpressure::DiskFull, 250_000_000);
            cell.latency(Stage::Sync, Duration::from_micros(120), factor);
        }
        metrics.shard(0).session_ended(SessionKind::Device);
        metrics.auth_refused("expired");
        metrics.http_answered(Route::DeviceEvents, 204);
        metrics.http_answered(Route::DeviceEvents, 204);
        metrics.http_answered(Route::None, 418);
        metrics.upgraded(Protocol::Mqtt);
        metrics.upgrade_refused(UpgradeRefused::Protocol);
        metrics.throttle_delayed(Limit::Device, Duration::from_millis(1500));
        metrics.throttle_delayed(Limit::Device, Duration::from_millis(500));
        metrics.throttle_refused(Limit::DailyMessages);
        metrics.synced(Duration::from_millis(3));
        metrics.sync_failed();
        metrics.recovered(Duration::from_millis(40));
        let text = metrics.render();
        for line in [
            "forebay_messages_accepted_total 33",
            "forebay_accepted_bytes_total 600",
            "forebay_messages_appended_total 22",
            "forebay_messages_acknowledged_total 11",
            "forebay_messages_duplicate_total 11",
            "forebay_messages_refused_total{reason=\"message_too_large\"} 11",
            "forebay_messages_refused_total{reason=\"malformed_frame\"} 0",
            "forebay_connections_closed_total{reason=\"taken_over\"} 2",
            "forebay_credentials_refused_total{reason=\"expired\"} 1",
            "forebay_handshakes_total{outcome=\"resumed\"} 2",
            "forebay_sessions{kind=\"device\"} 1",
            "forebay_http_requests_total{route=\"device_events\",status=\"204\"} 2",
            "forebay_http_requests_total{route=\"none\",status=\"other\"} 1",
            "forebay_websockets_opened_total{protocol=\"mqtt\"} 1",
            "forebay_websockets_opened_total{protocol=\"amqp\"} 0",
            "forebay_websockets_refused_total{reason=\"protocol\"} 1",
            "forebay_throttled_total{limit=\"device\",outcome=\"delayed\"} 2",
            "forebay_throttled_total{limit=\"daily_messages\",outcome=\"refused\"} 1",
            "forebay_throttled_total{limit=\"registry\",outcome=\"refused\"} 0",
            "forebay_throttle_wait_seconds_total{limit=\"device\"} 2",
            "forebay_queue_commands 6",
            "forebay_inflight_bytes 2000",
            "forebay_backpressure_seconds_total{cause=\"disk_full\"} 0.5",
            "forebay_ack_latency_seconds_bucket{stage=\"sync\",durability=\"sync\",le=\"0.0001\"} 0",
            "forebay_ack_latency_seconds_bucket{stage=\"sync\",durability=\"sync\",le=\"0.00025\"} 11",
            "forebay_ack_latency_seconds_bucket{stage=\"sync\",durability=\"sync\",le=\"+Inf\"} 11",
            "forebay_ack_latency_seconds_count{stage=\"sync\",durability=\"sync\"} 11",
            "forebay_sync_seconds_count 1",
            "forebay_sync_failures_total 1",
            "forebay_recovery_seconds 0.04",
            "forebay_start_timestamp_seconds 5",
            "# TYPE forebay_ack_latency_seconds histogram",
        ] {
            check(&text, line);
        }
        assert_eq!(
            (
                metrics.acknowledged(),
                metrics.appended(),
                metrics.sessions(SessionKind::Device)
            ),
            (11, 22, 1)
        );
    }

    #[test]
    fn lag_is_what_a_group_has_not_read() {
        let metrics = metrics();
        let group = ConsumerGroup::new("cg2").unwrap();
        let partition = PartitionId(1);
        metrics.partition(partition).set_next_sequence(100);
        metrics.position(&group, partition).unwrap().set(60);
        check(
            &metrics.render(),
            "forebay_consumer_lag_messages{group=\"cg2\",partition=\"1\"} 40",
        );
        // Nobody reads on: the lag grows with the log.
        metrics.partition(partition).set_next_sequence(150);
        check(
            &metrics.render(),
            "forebay_consumer_lag_messages{group=\"cg2\",partition=\"1\"} 90",
        );
        metrics.remove_group(&group);
        assert!(!metrics.render().contains("cg2"));
    }

    #[test]
    fn the_number_of_lag_series_is_bounded() {
        let metrics = metrics();
        for n in 0..CONSUMER_GROUPS_MAX {
            let group = ConsumerGroup::new(&format!("g{n}")).unwrap();
            assert!(
                (0..2).all(|p| metrics.position(&group, PartitionId(p)).is_some()),
                "{n}"
            );
        }
        assert!(
            metrics
                .position(&ConsumerGroup::new("more").unwrap(), PartitionId(0))
                .is_none()
        );
        assert!(
            metrics
                .position(&ConsumerGroup::new("g0").unwrap(), PartitionId(0))
                .is_some()
        );
    }

    #[test]
    fn partitions_tell_size_and_state() {
        let metrics = metrics();
        metrics.partition(PartitionId(0)).set_size(4096, 2);
        metrics.partition(PartitionId(1)).set_poisoned(true);
        metrics.partition(PartitionId(0)).set_disk_full(true);
        metrics.partition(PartitionId(0)).set_disk_full(false);
        let text = metrics.render();
        check(&text, "forebay_log_bytes{partition=\"0\"} 4096");
        check(&text, "forebay_log_segments{partition=\"0\"} 2");
        check(&text, "forebay_log_refusing_partitions{cause=\"poisoned\"} 1");
        check(&text, "forebay_log_refusing_partitions{cause=\"disk_full\"} 0");
        assert_eq!(metrics.log_bytes(), 4096);
    }

    #[test]
    fn the_scrape_and_the_table_name_the_same_series() {
        let metrics = Arc::new(metrics());
        metrics.position(&ConsumerGroup::new("$Default").unwrap(), PartitionId(0));
        metrics.set_events([("twin", 1)], 0);
        metrics.auth_refused("expired");
        metrics.amqp_ended("amqp:not-found");
        let mqtt = super::super::mqtt::MqttFacts {
            cell: metrics.shard(0),
            metrics: metrics.clone(),
        };
        mqtt::Observer::connect_refused(&mqtt, "client_id");
        mqtt::Observer::ended(&mqtt, "malformed");
        mqtt::Observer::message_refused(&mqtt, "topic");
        metrics.http_answered(Route::DeviceGet, 200);
        metrics.set_events([("twin", 2)], 1);
        let text = metrics.render();
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
            .collect();
        let table: Vec<_> = series::ALL.iter().map(|series| series.name).collect();
        assert_eq!(names, table);
    }
}
