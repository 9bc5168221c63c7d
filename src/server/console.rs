//! The console: whether it is served, what it is told, and the samples that its charts are drawn from.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::web;

use crate::config::{self, Config, ConsoleAccess};
use crate::metrics::{Figures, Metrics, Phase, Readiness};
use crate::model::UtcMillis;
use crate::model::time::Clock;
use crate::service::console::facts::{About, Facts, Health, Key, Section};
use crate::service::console::figures::{Open, SAMPLES_MAX, Sample};
use crate::service::console::{self, Console, History, Parts};
use crate::session::quic::door::Door;

/// How often a sample is taken.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
// Ten minutes are what a person looks back on in a chart that moves.
const _: () = assert!(SAMPLES_MAX as u64 * SAMPLE_EVERY.as_secs() == 600);

/// Whether the console is served.
pub(super) fn is_on(config: &Config) -> bool {
    match config.ops.console {
        ConsoleAccess::Auto => config.ops.listen.ip().is_loopback(),
        ConsoleAccess::On => true,
        ConsoleAccess::Off => false,
    }
}

/// What the operations port serves at `/console`; takes samples for as long as the process runs.
pub(super) fn serve(
    config: &Config,
    parts: Parts,
    metrics: Arc<Metrics>,
    door: Arc<Door>,
) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let console = is_on(config).then(|| {
        let clock = parts.clock.clone();
        let shards = parts.router.shard_count();
        let console = web::Data::new(Console::new(parts));
        actix_rt::spawn(sample(console.history(), metrics, door, shards, clock));
        console
    });
    move |server| match &console {
        Some(console) => console::routes(console.clone(), server),
        None => console::absent(server),
    }
}

/// What stays as it is from the start on.
pub(super) fn about(config: &Config, durability: &'static str, shards: usize, now: UtcMillis) -> About {
    let data = &config.process.data_dir;
    About {
        version: env!("CARGO_PKG_VERSION"),
        host_names: config.identity.host_names.iter().map(|host| host.0.clone()).collect(),
        started: now.0,
        durability,
        partitions: config.identity.partition_count,
        shards,
        data_directory: std::fs::canonicalize(data)
            .unwrap_or_else(|_| data.clone())
            .display()
            .to_string(),
    }
}

/// What the console is told of the hub.
pub(super) struct HubFacts {
    pub about: About,
    pub readiness: Arc<Readiness>,
    /// In force: a reload changes it.
    pub config: Arc<Mutex<Config>>,
}

impl Facts for HubFacts {
    fn about(&self) -> About {
        self.about.clone()
    }

    fn health(&self) -> Health {
        let (phase, reasons) = self.readiness.state();
        Health {
            state: phase.name().to_owned(),
            is_ready: phase == Phase::Ready && reasons.is_empty(),
            reasons,
        }
    }

    fn configuration(&self) -> Vec<Section> {
        let values = self.config.lock().unwrap_or_else(PoisonError::into_inner).values();
        let keys: Vec<_> = config::keys::keys().into_iter().zip(values).collect();
        let section = |(name, doc)| Section {
            name,
            doc,
            keys: keys
                .iter()
                .filter(|(key, _)| key.section == name)
                .map(|(key, value)| Key {
                    name: key.name,
                    doc: key.doc,
                    value: value.clone(),
                    default: key.default.clone(),
                })
                .collect(),
        };
        config::keys::sections().into_iter().map(section).collect()
    }
}

async fn sample(history: Arc<History>, metrics: Arc<Metrics>, door: Arc<Door>, shards: usize, clock: Arc<dyn Clock>) {
    let mut earlier = (Instant::now(), metrics.figures());
    loop {
        tokio::time::sleep(SAMPLE_EVERY).await;
        let later = (Instant::now(), metrics.figures());
        let seconds = later.0.duration_since(earlier.0).as_secs_f64();
        let mut sample = between(&earlier.1, &later.1, seconds, shards, clock.now());
        sample.sessions = sessions(&later.1, door.sessions() as u64);
        history.push(sample);
        earlier = later;
    }
}

fn between(earlier: &Figures, later: &Figures, seconds: f64, shards: usize, now: UtcMillis) -> Sample {
    let seconds = seconds.max(0.001);
    let rate = |figure: fn(&Figures) -> u64| figure(later).saturating_sub(figure(earlier)) as f64 / seconds;
    let ack = later.ack.since(&earlier.ack);
    let quantile = |quantile: f64| (ack.count() > 0).then(|| ack.quantile(quantile).as_secs_f64() * 1000.0);
    let held = |figure: fn(&Figures) -> u64| (rate(figure) / 1e9 / shards as f64).min(1.0);
    let cpu = |figures: &Figures| figures.process.user_seconds + figures.process.system_seconds;
    Sample {
        number: 0,
        time: now.0,
        seconds,
        messages_in: rate(|figures| figures.acknowledged),
        bytes_in: rate(|figures| figures.accepted_bytes),
        messages_out: rate(|figures| figures.delivered),
        bytes_out: rate(|figures| figures.delivered_bytes),
        refused: rate(|figures| figures.refused),
        throttled: rate(|figures| figures.throttled),
        ack_p50: quantile(0.5),
        ack_p99: quantile(0.99),
        ack_max: quantile(1.0),
        held_by_shards: held(|figures| figures.held_by_shards_ns),
        held_by_disk: held(|figures| figures.held_by_disk_ns),
        inflight_bytes: later.inflight_bytes,
        queued: later.queued,
        lag: later.lag,
        sessions: Vec::new(),
        log_bytes: later.log_bytes,
        resident_bytes: later.process.resident_bytes,
        open_files: later.process.open_fds,
        cpu: (cpu(later) - cpu(earlier)).max(0.0) / seconds,
    }
}

fn sessions(figures: &Figures, quic: u64) -> Vec<Open> {
    let total = |counts: &[(&'static str, u64)], is_websocket: bool| {
        let counts = counts
            .iter()
            .filter(|(label, _)| (*label == "websocket") == is_websocket);
        counts.map(|(_, count)| count).sum()
    };
    [
        ("QUIC", quic),
        ("MQTT", total(&figures.mqtt, false)),
        ("MQTT, WebSocket", total(&figures.mqtt, true)),
        ("AMQP", total(&figures.amqp, false)),
        ("AMQP, WebSocket", total(&figures.amqp, true)),
    ]
    .into_iter()
    .map(|(protocol, count)| Open { protocol, count })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::metrics::{Backpressure, Stage};

    #[test]
    fn a_sample_is_what_happened_in_between() {
        let metrics = Metrics::new(2, 2, "os", SystemTime::now());
        metrics.shard(0).acknowledged(1_000);
        let earlier = metrics.figures();
        let shard = metrics.shard(1);
        shard.acknowledged(50);
        shard.accepted(50, 6_400);
        shard.latency(Stage::Total, Duration::from_millis(4), 50);
        shard.set_backpressure(Backpressure::Shard, 2_000_000_000);
        let sample = between(&earlier, &metrics.figures(), 2.0, 2, UtcMillis(7));
        assert_eq!((sample.messages_in, sample.bytes_in), (25.0, 3_200.0));
        assert!((sample.ack_p99.unwrap() - 4.0).abs() < 0.1, "{sample:?}");
        assert!(
            (sample.held_by_shards - 0.5).abs() < 1e-9,
            "one of two shards, all the time"
        );
        let quiet = between(&earlier, &earlier, 2.0, 2, UtcMillis(7));
        assert_eq!((quiet.messages_in, quiet.ack_p99), (0.0, None));
    }

    #[test]
    fn the_console_stays_on_this_machine_unless_told() {
        let check = |listen: &str, access, expected| {
            let mut config = Config::default();
            config.ops.listen = listen.parse().unwrap();
            config.ops.console = access;
            assert_eq!(is_on(&config), expected, "{listen} {access:?}");
        };
        check("127.0.0.1:9600", ConsoleAccess::Auto, true);
        check("[::1]:9600", ConsoleAccess::Auto, true);
        check("0.0.0.0:9600", ConsoleAccess::Auto, false);
        check("10.0.0.1:9600", ConsoleAccess::Auto, false);
        check("0.0.0.0:9600", ConsoleAccess::On, true);
        check("127.0.0.1:9600", ConsoleAccess::Off, false);
    }
}
