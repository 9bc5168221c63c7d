//! All cells of a process; their sum as Prometheus text is `exposition`'s.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::cells::{Backpressure, PartitionCell, STALLED, SessionKind, ShardCell, Stage};
use super::console::ConsoleCells;
use super::histogram::{Histogram, Snapshot};
use super::mqtt::MqttCells;
use super::upkeep::UpkeepCells;
use crate::amqp::observer::Began;
use crate::http::route::Route;
use crate::http::websocket::{Protocol, UpgradeRefused};
use crate::hub::auth::AuthError;
use crate::hub::throttle::Limit;
use crate::model::limits::CONSUMER_GROUPS_MAX;
use crate::model::{ConsumerGroup, PartitionId};
use crate::net::admission::Readings;

/// Where handshakes wait for their turn.
pub const DOORS: [&str; 4] = ["amqp", "https", "mqtt", "quic"];

/// Statuses that routes answer with; 0 stands for any other.
pub(super) const HTTP_STATUSES: [u16; 17] = [
    200, 201, 204, 207, 400, 401, 403, 404, 405, 409, 412, 413, 429, 500, 503, 504, 0,
];

/// Where a consumer group's reading of one partition stands; the cursor's owner stores, a scrape reads.
#[derive(Clone, Debug, Default)]
pub struct Position(pub(super) Arc<AtomicU64>);

impl Position {
    /// The next sequence number the group will read.
    pub fn set(&self, next: u64) {
        self.0.store(next, Relaxed);
    }
}

/// What went to devices since the start.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    pub queued: u64,
    pub delivered: u64,
    /// By `Outcome::label`, a closed set.
    pub ended: Vec<(&'static str, u64)>,
    /// By `MethodOutcome::label`, a closed set.
    pub methods: Vec<(&'static str, u64)>,
}

/// What one limit held up.
#[derive(Debug, Default)]
pub(super) struct ThrottleCell {
    pub(super) delayed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) wait_nanos: AtomicU64,
}

/// Every metric of the process. Made once, shared by `Arc`; each part keeps the cell it writes.
#[derive(Debug)]
pub struct Metrics {
    pub(super) durability: &'static str,
    pub(super) started: SystemTime,
    pub(super) shards: Box<[Arc<ShardCell>]>,
    pub(super) partitions: Box<[Arc<PartitionCell>]>,
    pub(super) sync: Histogram,
    pub(super) sync_failures: AtomicU64,
    pub(super) recovery_nanos: AtomicU64,
    pub(super) drained: AtomicU64,
    /// By door, a closed set.
    pub(super) admissions: Mutex<BTreeMap<&'static str, Readings>>,
    pub(super) start_unclean: AtomicBool,
    pub(super) quic_connections: AtomicU64,
    pub(super) damaged_partitions: AtomicU64,
    /// Where the volume is that holds the data.
    pub(super) data_dir: OnceLock<PathBuf>,
    pub(super) positions: Mutex<BTreeMap<(ConsumerGroup, PartitionId), Position>>,
    /// By `hub::AuthError::label`, a closed set.
    pub(super) auth_refused: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) checkpoints: AtomicU64,
    /// By `Limit::index`.
    pub(super) throttles: [ThrottleCell; Limit::COUNT],
    pub(super) commands: Mutex<Commands>,
    /// By `hub::EventKind::name`, a closed set; and those dropped.
    pub(super) events: Mutex<(BTreeMap<&'static str, u64>, u64)>,
    /// Routes times statuses.
    pub(super) http_requests: Box<[AtomicU64]>,
    pub(super) upgrades: [AtomicU64; Protocol::ALL.len()],
    pub(super) upgrades_refused: [AtomicU64; UpgradeRefused::ALL.len()],
    pub(super) amqp: AmqpCells,
    pub(super) mqtt: MqttCells,
    pub(super) upkeep: UpkeepCells,
    pub(super) console: ConsoleCells,
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
            drained: AtomicU64::new(0),
            admissions: Mutex::new(DOORS.map(|door| (door, Readings::default())).into()),
            start_unclean: AtomicBool::new(false),
            quic_connections: AtomicU64::new(0),
            damaged_partitions: AtomicU64::new(0),
            data_dir: OnceLock::new(),
            positions: Mutex::default(),
            // All from the start: a rate over a series that appears with its first count would miss that one.
            auth_refused: Mutex::new(AuthError::LABELS.map(|label| (label, 0)).into()),
            checkpoints: AtomicU64::new(0),
            throttles: std::array::from_fn(|_| ThrottleCell::default()),
            commands: Mutex::default(),
            events: Mutex::default(),
            http_requests: (0..Route::ALL.len() * HTTP_STATUSES.len())
                .map(|_| AtomicU64::new(0))
                .collect(),
            upgrades: Default::default(),
            upgrades_refused: Default::default(),
            amqp: AmqpCells::default(),
            mqtt: MqttCells::default(),
            upkeep: UpkeepCells::default(),
            console: ConsoleCells::default(),
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
        debug_assert!(
            AuthError::LABELS.contains(&reason),
            "{reason} is none of the closed set"
        );
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

    /// What went to devices so far.
    pub fn set_commands(&self, commands: Commands) {
        *self.commands.lock().unwrap_or_else(PoisonError::into_inner) = commands;
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

    /// Connections of QUIC that are open now.
    pub fn set_quic_connections(&self, connections: u64) {
        self.quic_connections.store(connections, Relaxed);
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

    /// What this start found: whether the process before stopped in order, and how many logs are damaged.
    pub fn started(&self, is_unclean: bool, damaged_partitions: u64) {
        self.start_unclean.store(is_unclean, Relaxed);
        self.damaged_partitions.store(damaged_partitions, Relaxed);
    }

    /// Each scrape tells of the volume that holds this directory. The first call counts.
    pub fn watch_volume(&self, data_dir: PathBuf) {
        let _ = self.data_dir.set(data_dir);
    }

    /// For `elapsed` partitions were as they are: time without room on the disk is back-pressure, of each by itself.
    pub fn passed(&self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let waited = nanos.saturating_mul(self.refusing(STALLED));
        let cell = self.shards[0].backpressure_nanos.at(Backpressure::DiskFull as usize);
        cell.fetch_add(waited, Relaxed);
    }

    /// Partitions with one of these bits.
    pub(super) fn refusing(&self, bits: u64) -> u64 {
        let is = |partition: &&Arc<PartitionCell>| partition.refusing.load(Relaxed) & bits != 0;
        self.partitions.iter().filter(is).count() as u64
    }

    /// Who waits for the turn of a handshake, and did so far. A door is one of `DOORS`.
    pub fn set_admission(&self, door: &'static str, readings: Readings) {
        let mut admissions = self.admissions.lock().unwrap_or_else(PoisonError::into_inner);
        admissions.insert(door, readings);
    }

    /// Sessions were told to go because the hub stops.
    pub fn drained(&self, sessions: usize) {
        self.drained.fetch_add(sessions as u64, Relaxed);
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

    pub(super) fn sum(&self, cell: impl Fn(&ShardCell) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| cell(shard).load(Relaxed)).sum()
    }

    /// The label is a condition's.
    pub fn amqp_ended(&self, condition: &'static str) {
        let mut ended = self.amqp.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry(condition).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells::Handshake;
    use super::super::series;
    use super::*;
    use crate::session::mqtt::observer as mqtt;
    use crate::wire::close::CloseCode;

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
        metrics.drained(7);
        let readings = Readings {
            waiting: 3,
            admitted: 20,
            left: 2,
            waited: Duration::from_millis(1500),
        };
        metrics.set_admission("mqtt", readings);
        metrics.partition(PartitionId(1)).set_inflight(4096);
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
            "forebay_credentials_refused_total{reason=\"scope\"} 0",
            "forebay_handshakes_total{outcome=\"resumed\"} 2",
            "forebay_sessions{kind=\"device\"} 1",
            "forebay_sessions_drained_total 7",
            "forebay_admission_waiting{door=\"mqtt\"} 3",
            "forebay_admitted_total{door=\"mqtt\"} 20",
            "forebay_admitted_total{door=\"quic\"} 0",
            "forebay_admission_left_total{door=\"mqtt\"} 2",
            "forebay_admission_wait_seconds_total{door=\"mqtt\"} 1.5",
            "forebay_backpressure_seconds_total{cause=\"partition_inflight\"} 0",
            "forebay_partition_inflight_bytes{partition=\"1\"} 4096",
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
    fn a_start_tells_how_the_process_before_ended() {
        let metrics = metrics();
        check(&metrics.render(), "forebay_start_unclean 0");
        metrics.started(true, 2);
        metrics.watch_volume(std::env::temp_dir());
        let text = metrics.render();
        check(&text, "forebay_start_unclean 1");
        check(&text, "forebay_log_damaged_partitions 2");
        assert!(!text.contains("\nforebay_data_volume_size_bytes 0\n"), "{text}");
    }

    #[test]
    fn time_without_room_is_back_pressure() {
        let metrics = metrics();
        let waits = |seconds| format!("forebay_backpressure_seconds_total{{cause=\"disk_full\"}} {seconds}");
        metrics.passed(Duration::from_secs(1));
        check(&metrics.render(), &waits("0"));
        metrics.partition(PartitionId(0)).set_stalled(true);
        metrics.partition(PartitionId(1)).set_stalled(true);
        // What the maintenance thread says of the same partition is another matter.
        metrics.partition(PartitionId(1)).set_disk_full(false);
        metrics.passed(Duration::from_secs(2));
        check(&metrics.render(), &waits("4"));
        check(
            &metrics.render(),
            "forebay_log_refusing_partitions{cause=\"disk_full\"} 2",
        );
        metrics.partition(PartitionId(0)).set_stalled(false);
        metrics.passed(Duration::from_secs(1));
        check(&metrics.render(), &waits("5"));
    }

    /// Closed sets stand in the table with every value.
    #[test]
    fn values_of_labels_are_documented() {
        let open_sets = ["version", "group", "partition", "route", "status", "condition"];
        let families = metrics().families();
        for (series, family) in series::ALL.iter().filter_map(|series| {
            let family = families.iter().find(|family| family.name() == series.name)?;
            Some((series, family))
        }) {
            for pair in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
                let label = series.labels.iter().find(|label| label.name == pair.name());
                let text = label.expect("the table has the label").values;
                // "as in ..." refers to a series whose values are documented there.
                let is_documented =
                    text.contains(&format!("`{}`", pair.value())) || text.contains("as in ") || text.contains("as of ");
                assert!(
                    is_documented || open_sets.contains(&pair.name()),
                    "{} does not explain {}={}",
                    series.name,
                    pair.name(),
                    pair.value()
                );
            }
        }
    }

    #[test]
    fn the_scrape_and_the_table_name_the_same_series() {
        let metrics = Arc::new(metrics());
        metrics.position(&ConsumerGroup::new("$Default").unwrap(), PartitionId(0));
        metrics.set_commands(Commands {
            queued: 3,
            delivered: 2,
            ended: vec![("success", 1)],
            methods: vec![("answered", 1)],
        });
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
        metrics.certificate_expires(crate::metrics::CertificateName::Server, 5);
        let text = metrics.render();
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
            .collect();
        let table: Vec<_> = series::ALL.iter().map(|series| series.name).collect();
        assert_eq!(names, table);
    }
}
