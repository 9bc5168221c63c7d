//! The sum of all cells as Prometheus text, in the order of the table of series.

use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use prometheus::proto::{Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType};

use super::cells::{Backpressure, DISK_FULL, Handshake, POISONED, PartitionCell, STALLED, SessionKind, Stage};
use super::histogram::Snapshot;
use super::process;
use super::registry::{HTTP_STATUSES, Metrics, Position};
use super::series::{self, Kind, Label, Series};
use crate::amqp::observer::Began;
use crate::http::route::Route;
use crate::http::websocket::{Protocol, UpgradeRefused};
use crate::hub::throttle::Limit;
use crate::model::{ConsumerGroup, PartitionId};
use crate::net::admission::Readings;
use crate::wire::close::CloseCode;

/// Upper ends of the exported latency buckets, in microseconds. The cells behind them are finer.
const BOUNDS_MICROS: [u64; 21] = [
    10, 25, 50, 100, 250, 500, 750, 1_000, 1_500, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

impl Metrics {
    /// The whole exposition, Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let families = self.families();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .expect("every family has a name and a metric, and writing to memory cannot fail")
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut out = Families::default();
        out.one(&series::INFO, &[env!("CARGO_PKG_VERSION"), self.durability], 1.0);
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        out.one(&series::START, &[], started.as_secs_f64());
        let is_unclean = self.start_unclean.load(Relaxed);
        out.one(&series::UNCLEAN, &[], f64::from(u8::from(is_unclean)));
        out.one(&series::RECOVERY, &[], seconds(self.recovery_nanos.load(Relaxed)));
        self.telemetry_families(&mut out);
        self.consumer_families(&mut out);
        self.log_families(&mut out);
        self.session_families(&mut out);
        self.http_families(&mut out);
        self.amqp_families(&mut out);
        self.mqtt.render(&mut out);
        self.command_families(&mut out);
        self.console.render(&mut out);
        self.throttle_families(&mut out);
        let (recorded, dropped) = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.each(&series::EVENTS, labelled(recorded));
        out.one(&series::EVENTS_DROPPED, &[], dropped as f64);
        process_families(&mut out);
        self.upkeep.render(&mut out);
        out.0
    }

    fn telemetry_families(&self, out: &mut Families) {
        out.one(&series::ACCEPTED, &[], self.sum(|s| &s.accepted) as f64);
        out.one(&series::ACCEPTED_BYTES, &[], self.sum(|s| &s.accepted_bytes) as f64);
        out.one(&series::APPENDED, &[], self.sum(|s| &s.appended) as f64);
        out.one(&series::APPENDED_BYTES, &[], self.sum(|s| &s.appended_bytes) as f64);
        out.one(&series::ACKNOWLEDGED, &[], self.sum(|s| &s.acknowledged) as f64);
        out.one(&series::DUPLICATES, &[], self.sum(|s| &s.duplicates) as f64);
        let refused = |index| self.sum(|s| s.refused.at(index)) as f64;
        out.each(
            &series::REFUSED,
            CloseCode::ALL
                .iter()
                .enumerate()
                .map(|(index, reason)| (vec![reason.label().to_owned()], refused(index))),
        );
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
        let inflight = self.of_partitions(|partition| &partition.inflight_bytes);
        out.each(&series::INFLIGHT_OF, inflight);
        out.each(
            &series::BACKPRESSURE,
            Backpressure::ALL.iter().map(|&cause| {
                let nanos = self.sum(|s| s.backpressure_nanos.at(cause as usize));
                (vec![cause.name().to_owned()], seconds(nanos))
            }),
        );
    }

    fn consumer_families(&self, out: &mut Families) {
        out.one(&series::DELIVERED, &[], self.sum(|s| &s.delivered) as f64);
        out.one(&series::DELIVERED_BYTES, &[], self.sum(|s| &s.delivered_bytes) as f64);
        out.one(
            &series::READERS_DISPLACED,
            &[],
            self.amqp.displaced.load(Relaxed) as f64,
        );
        out.one(&series::CHECKPOINTS, &[], self.checkpoints.load(Relaxed) as f64);
        out.each(&series::LAG, self.lags().into_iter());
    }

    fn session_families(&self, out: &mut Families) {
        out.each(
            &series::SESSIONS,
            SessionKind::ALL
                .iter()
                .map(|&kind| (vec![kind.name().to_owned()], self.sessions(kind) as f64)),
        );
        out.one(&series::DRAINED, &[], self.drained.load(Relaxed) as f64);
        let quic = self.quic_connections.load(Relaxed);
        out.one(&series::QUIC_CONNECTIONS, &[], quic as f64);
        let closed = |index| self.sum(|s| s.closed.at(index)) as f64;
        out.each(
            &series::CLOSED,
            CloseCode::ALL
                .iter()
                .enumerate()
                .map(|(index, reason)| (vec![reason.label().to_owned()], closed(index))),
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
        self.admission_families(out);
        let refused = self.auth_refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.each(&series::AUTH_REFUSED, labelled(refused));
    }

    fn admission_families(&self, out: &mut Families) {
        let admissions = self.admissions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let each = |value: fn(&Readings) -> f64| {
            let doors = admissions.iter();
            doors.map(move |(door, readings)| (vec![(*door).to_owned()], value(readings)))
        };
        out.each(&series::ADMISSION_WAITING, each(|door| door.waiting as f64));
        out.each(&series::ADMITTED, each(|door| door.admitted as f64));
        out.each(&series::ADMISSION_LEFT, each(|door| door.left as f64));
        out.each(&series::ADMISSION_WAIT, each(|door| door.waited.as_secs_f64()));
    }

    fn of_partitions(&self, cell: fn(&PartitionCell) -> &AtomicU64) -> impl Iterator<Item = (Vec<String>, f64)> {
        let numbered = self.partitions.iter().enumerate();
        numbered.map(move |(number, partition)| (vec![number.to_string()], cell(partition).load(Relaxed) as f64))
    }

    fn http_families(&self, out: &mut Families) {
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
    }

    fn command_families(&self, out: &mut Families) {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.one(&series::COMMANDS_QUEUED, &[], commands.queued as f64);
        out.one(&series::COMMANDS_DELIVERED, &[], commands.delivered as f64);
        out.each(&series::COMMANDS_ENDED, labelled(commands.ended));
        out.each(&series::METHODS, labelled(commands.methods));
    }

    fn throttle_families(&self, out: &mut Families) {
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
    }

    fn log_families(&self, out: &mut Families) {
        let bytes = self.of_partitions(|partition| &partition.bytes);
        out.each(&series::LOG_BYTES, bytes);
        let segments = self.of_partitions(|partition| &partition.segments);
        out.each(&series::LOG_SEGMENTS, segments);
        let next = self.of_partitions(|partition| &partition.next_sequence);
        out.each(&series::LOG_NEXT, next);
        let causes = [("poisoned", POISONED), ("disk_full", DISK_FULL | STALLED)];
        out.each(
            &series::LOG_STATE,
            causes
                .into_iter()
                .map(|(cause, bits)| (vec![cause.to_owned()], self.refusing(bits) as f64)),
        );
        let damaged = self.damaged_partitions.load(Relaxed);
        out.one(&series::LOG_DAMAGED, &[], damaged as f64);
        out.histograms(&series::SYNC, [(vec![], self.sync.snapshot())].into_iter());
        out.one(&series::SYNC_FAILED, &[], self.sync_failures.load(Relaxed) as f64);
        let volume = self
            .data_dir
            .get()
            .map(|path| process::volume(path))
            .unwrap_or_default();
        out.one(&series::VOLUME_FREE, &[], volume.free_bytes as f64);
        out.one(&series::VOLUME_SIZE, &[], volume.size_bytes as f64);
    }

    fn amqp_families(&self, out: &mut Families) {
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
        out.each(&series::AMQP_ENDED, labelled(ended));
    }

    /// What was answered at least once.
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

    pub(super) fn lags(&self) -> Vec<(Vec<String>, f64)> {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = |((group, partition), position): (&(ConsumerGroup, PartitionId), &Position)| {
            let head = self.partitions[usize::from(partition.0)].next_sequence.load(Relaxed);
            let labels = vec![group.to_string(), partition.to_string()];
            (labels, head.saturating_sub(position.0.load(Relaxed)) as f64)
        };
        positions.iter().map(lag).collect()
    }
}

fn process_families(out: &mut Families) {
    let process = process::read();
    let cpu = [("user", process.user_seconds), ("system", process.system_seconds)];
    out.each(
        &series::CPU,
        cpu.into_iter().map(|(mode, seconds)| (vec![mode.to_owned()], seconds)),
    );
    out.one(&series::RESIDENT, &[], process.resident_bytes as f64);
    out.one(&series::ANONYMOUS, &[], process.anonymous_bytes as f64);
    out.one(&series::MEMORY_LIMIT, &[], process.memory_limit_bytes as f64);
    out.one(&series::FDS, &[], process.open_fds as f64);
    out.one(&series::FDS_LIMIT, &[], process.fds_limit as f64);
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Counts by the only label.
fn labelled(counts: impl IntoIterator<Item = (&'static str, u64)>) -> impl Iterator<Item = (Vec<String>, f64)> {
    counts
        .into_iter()
        .map(|(label, count)| (vec![label.to_owned()], count as f64))
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
    let pair = |(label, value): (&Label, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(label.name.to_owned());
        pair.set_value(value);
        pair
    };
    series.labels.iter().zip(values).map(pair).collect()
}
