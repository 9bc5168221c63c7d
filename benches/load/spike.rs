//! Ten times the load for a minute while nobody reads: is anything lost, what does the hub hold, how late are
//! acknowledgements, and how long until readers have caught up?
//!
//! Devices send at a steady rate, then at a multiple of it, then steadily again. Readers of all partitions stay connected
//! during the flood and take nothing. In the end every message that was acknowledged must have been read.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use forebay::client::service::{Cursor, Service, Subscription};
use forebay::config::memory::{Memory, Usage};
use forebay::config::{self, Config, Sources};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::fleet::{self, FleetOptions};
use crate::hub::Hub;
use crate::mqtt;
use crate::open_loop::{BODY_BYTES_MIN, OpenLoop, Phase, Plan, Sent, read_body};
use crate::plot::{Band, Line, Panel, Plot};
use crate::progress::Progress;
use crate::protocol::DeviceProtocol;
use crate::report::{Figure, Run};
use crate::watch::{Look, Watch, level, rate};

/// Memory is read when what the handshakes needed has been given back.
const SETTLE: Duration = Duration::from_secs(2);
/// Readers that have not caught up by then never will.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(300);
/// Behind by what comes in so long, a reader has caught up.
const CAUGHT_UP_SECONDS: f64 = 0.5;
/// Steps of the latency in the plot.
const STEP: Duration = Duration::from_millis(500);
const PARALLEL: usize = 32;
const MIB: f64 = 1_048_576.0;

#[derive(Clone, Debug, Args, Serialize)]
pub struct SpikeArgs {
    /// What devices speak
    #[arg(long, value_enum, default_value_t = DeviceProtocol::Quic)]
    protocol: DeviceProtocol,
    /// Devices, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    devices: u32,
    /// Messages a second of all devices together, before and after
    #[arg(long, value_name = "N", default_value_t = 2_000.0)]
    rate: f64,
    /// How many times as many during the spike
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    factor: f64,
    /// The spike
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    /// Steady load before it
    #[arg(long, value_name = "S", default_value_t = 15.0)]
    before: f64,
    /// Steady load after it
    #[arg(long, value_name = "S", default_value_t = 30.0)]
    after: f64,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(BODY_BYTES_MIN as i64..=65_536))]
    size: u32,
    /// A device sends what is due this often; a message counts from its burst
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    burst_ms: u64,
    /// Write the run over time as an SVG picture
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    plot: Option<PathBuf>,
}

/// What readers have seen, in each device's order.
#[derive(Debug)]
struct Seen {
    devices: Mutex<Vec<OfDevice>>,
    read: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfDevice {
    /// The number that comes next.
    next: u64,
    distinct: u64,
    /// Numbers that came again, or behind a later one.
    repeated: u64,
}

impl OfDevice {
    fn see(&mut self, number: u64) {
        if number < self.next {
            self.repeated += 1;
        } else {
            self.distinct += 1;
            self.next = number + 1;
        }
    }
}

impl SpikeArgs {
    /// # Errors
    /// The hub refuses or is gone, loses a message, or holds more than the formula allows.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(self.rate > 0.0 && self.factor > 0.0, "there must be messages");
        let members = hub.members(self.devices as usize).await?;
        Progress::sleep("settle", SETTLE).await;
        let plan = self.plan();
        let endpoint = hub.endpoint(&TransportOptions::default())?;
        let fleet = match self.protocol {
            DeviceProtocol::Quic => {
                let devices = fleet::connect(hub, &members, FleetOptions::default(), |_| endpoint.clone()).await?;
                Fleet::Quic(devices)
            }
            DeviceProtocol::Mqtt => {
                let tls = mqtt::Tls::new(hub)?;
                Fleet::Mqtt(mqtt::connect_all(hub, &members, PARALLEL, |_| tls.clone()).await?)
            }
        };
        let seen = Arc::new(Seen {
            devices: Mutex::new(vec![OfDevice::default(); members.len()]),
            read: AtomicU64::new(0),
        });
        let (is_reading, gate) = watch::channel(true);
        let (mut readers, partitions) = start_readers(hub, &seen, &gate).await?;
        Progress::sleep("settle", SETTLE).await;

        let start = Instant::now();
        let read = seen.clone();
        let watch = Watch::start(hub, start, move || read.read.load(Relaxed) as f64)?;
        let sending = match &fleet {
            Fleet::Quic(devices) => OpenLoop::over_quic(devices, &plan, start),
            Fleet::Mqtt(_) => OpenLoop::over_mqtt(fleet.into_mqtt(), &plan, start),
        };
        let [before, spike, after] = [self.before, self.seconds, self.after].map(Duration::from_secs_f64);
        Progress::sleep("before", before).await;
        is_reading.send_replace(false);
        Progress::sleep("spike", spike).await;
        is_reading.send_replace(true);
        Progress::sleep("after", after).await;
        let sent = sending.finish().await?;
        let total: u64 = sent.acknowledged.iter().sum();
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        // One more look than needed: the plot ends with everything read.
        while seen.read.load(Relaxed) < total {
            ensure!(
                Instant::now() < deadline,
                "readers have not caught up after {CATCH_UP_TIMEOUT:?}"
            );
            if let Some(ended) = readers.try_join_next() {
                ended??;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        let looks = watch.finish().await?;
        readers.abort_all();

        let bound = self.bound(hub.settings(), partitions)?;
        let measured = Measured {
            args: self,
            sent: &sent,
            looks: &looks,
            bound_mib: bound as f64 / MIB,
        };
        let devices = seen.devices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let run = measured.figures(&devices)?;
        if let Some(file) = &self.plot {
            measured.plot(hub.durability()).write(file)?;
        }
        let figure = |name: &str| {
            run.figures
                .iter()
                .find(|figure| figure.name == name)
                .map_or(0.0, |f| f.value)
        };
        ensure!(
            figure("lost") == 0.0,
            "{} acknowledged messages were lost",
            figure("lost")
        );
        let peak = figure("memory_peak");
        ensure!(
            peak <= measured.bound_mib,
            "the hub held {peak:.1} MiB, the formula says {:.1} MiB",
            measured.bound_mib
        );
        Ok(run)
    }

    fn plan(&self) -> Plan {
        let phase = |seconds, factor| Phase {
            time: Duration::from_secs_f64(seconds),
            rate: self.rate * factor,
        };
        Plan {
            phases: vec![
                phase(self.before, 1.0),
                phase(self.seconds, self.factor),
                phase(self.after, 1.0),
            ],
            devices: self.devices as usize,
            burst: Duration::from_millis(self.burst_ms),
            body_bytes: self.size as usize,
        }
    }

    /// The published formula for these devices and readers, all with their windows full.
    fn bound(&self, settings: &[String], readers: u16) -> anyhow::Result<u64> {
        let mut config = config::load(&Sources::of_process(None, settings.to_vec()))?;
        let readers = u32::from(readers);
        let (quic, mqtt) = match self.protocol {
            DeviceProtocol::Quic => (self.devices, 0),
            DeviceProtocol::Mqtt => (0, self.devices),
        };
        // The bench's own requests come over two connections more.
        only(&mut config, quic + readers + 2, mqtt);
        let usage = Usage {
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            busy_percent: 100,
            consumers: readers.into(),
        };
        Ok(Memory::of(&config, &usage).busy())
    }
}

/// So many sessions and no others.
fn only(config: &mut Config, quic: u32, mqtt: u32) {
    config.quic.sessions_max = quic;
    config.quic.resumptions_max = config.quic.resumptions_max.min(quic);
    config.mqtt.connections_max = mqtt;
    config.amqp.connections_max = 0;
    config.https.connections_max = 0;
}

enum Fleet {
    Quic(Vec<forebay::client::device::Device>),
    Mqtt(Vec<mqtt::sender::Device>),
}

impl Fleet {
    fn into_mqtt(self) -> Vec<mqtt::sender::Device> {
        match self {
            Self::Mqtt(devices) => devices,
            Self::Quic(_) => Vec::new(),
        }
    }
}

/// A reader for each partition, on a connection of its own; how many.
async fn start_readers(
    hub: &Hub,
    seen: &Arc<Seen>,
    gate: &watch::Receiver<bool>,
) -> anyhow::Result<(JoinSet<anyhow::Result<()>>, u16)> {
    let endpoint = hub.endpoint(&TransportOptions::default())?;
    let mut readers = JoinSet::new();
    let mut partition = 0;
    loop {
        let service = hub.service(&endpoint).await?;
        let partitions = service.partition_count();
        let cursor = service.subscribe(&Subscription::latest(partition)).await?;
        readers.spawn(read(service, cursor, seen.clone(), gate.clone()));
        partition += 1;
        if partition == partitions {
            return Ok((readers, partitions));
        }
    }
}

async fn read(
    _service: Service,
    mut cursor: Cursor,
    seen: Arc<Seen>,
    mut gate: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        gate.wait_for(|is_reading| *is_reading).await?;
        let chunk = cursor.next().await?;
        let mut devices = seen.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for event in chunk.events() {
            let event = event?;
            let read = read_body(event.message.body()).context("a message that is not of this run")?;
            devices
                .get_mut(read.0)
                .context("a device that is not of this run")?
                .see(read.1);
            seen.read.fetch_add(1, Relaxed);
        }
    }
}

struct Measured<'a> {
    args: &'a SpikeArgs,
    sent: &'a Sent,
    looks: &'a [Look],
    bound_mib: f64,
}

impl Measured<'_> {
    /// Beginning and end of the spike, seconds.
    fn spike(&self) -> (f64, f64) {
        (self.args.before, self.args.before + self.args.seconds)
    }

    fn appended(&self, look: &Look) -> f64 {
        let first = self
            .looks
            .first()
            .map_or(0.0, |first| first.metric("forebay_messages_appended_total", &[]));
        look.metric("forebay_messages_appended_total", &[]) - first
    }

    fn lag(&self, look: &Look) -> f64 {
        (self.appended(look) - look.read).max(0.0)
    }

    fn backpressure(&self) -> f64 {
        let total = |look: &Look| look.metric("forebay_backpressure_seconds_total", &[]);
        match (self.looks.first(), self.looks.last()) {
            (Some(first), Some(last)) => total(last) - total(first),
            _ => 0.0,
        }
    }

    fn figures(&self, devices: &[OfDevice]) -> anyhow::Result<Run> {
        let acknowledged: u64 = self.sent.acknowledged.iter().sum();
        let lost = |(device, acknowledged): (&OfDevice, &u64)| acknowledged.saturating_sub(device.distinct);
        let lost: u64 = devices.iter().zip(&self.sent.acknowledged).map(lost).sum();
        let repeated: u64 = devices.iter().map(|device| device.repeated).sum();
        let (from, to) = self.spike();
        let second = Duration::from_secs_f64;
        let end = second(to + self.args.after) + Duration::from_secs(1);
        let windows = [
            (second(0.0), second(from)),
            (second(from), second(to)),
            (second(to), end),
        ];
        let mib = |bytes: u64| bytes as f64 / MIB;
        let peak = |of: fn(&Look) -> u64| self.looks.iter().map(of).max().unwrap_or(0);
        let idle = self.looks.first().map_or(0, |look| look.memory.anonymous);
        let is_caught_up = |look: &&Look| look.at > to && self.lag(look) <= self.args.rate * CAUGHT_UP_SECONDS;
        let caught_up = self
            .looks
            .iter()
            .find(is_caught_up)
            .map_or(f64::NAN, |look| look.at - to);
        let mut figures = vec![
            Figure::new("acknowledged", acknowledged as f64, ""),
            Figure::new("lost", lost as f64, ""),
            Figure::new("stored_twice", repeated as f64, ""),
        ];
        let mut all = crate::measure::latencies();
        let names = [
            ["before_rate", "before_p50", "before_p99", "before_max"],
            ["spike_rate", "spike_p50", "spike_p99", "spike_max"],
            ["after_rate", "after_p50", "after_p99", "after_max"],
        ];
        let times = [self.args.before, self.args.seconds, self.args.after];
        for ((window, names), time) in windows.into_iter().zip(names).zip(times) {
            let window: Histogram<u64> = self.sent.timeline.window(window.0, window.1)?;
            let at = |quantile| window.value_at_quantile(quantile) as f64 / 1e3;
            figures.extend([
                Figure::new(names[0], window.len() as f64 / time, "1/s"),
                Figure::new(names[1], at(0.5), "ms"),
                Figure::new(names[2], at(0.99), "ms"),
                Figure::new(names[3], at(1.0), "ms"),
            ]);
            all.add(window)?;
        }
        let backlog = self.looks.iter().map(|look| self.lag(look)).fold(0.0, f64::max);
        figures.extend([
            Figure::new("memory_connected", mib(idle), "MiB"),
            Figure::new("memory_peak", mib(peak(|look| look.memory.anonymous)), "MiB"),
            Figure::new("memory_bound", self.bound_mib, "MiB"),
            Figure::new("resident_peak", mib(peak(|look| look.memory.resident)), "MiB"),
            Figure::new("backlog_peak", backlog, ""),
            Figure::new("caught_up_after", caught_up, "s"),
            Figure::new("backpressure", self.backpressure(), "s"),
        ]);
        Ok(Run {
            figures,
            latencies: Some(all),
        })
    }

    fn plot(&self, durability: &str) -> Plot {
        let (from, to) = self.spike();
        let args = self.args;
        let latency = |label, quantile| Line {
            label,
            points: self.sent.timeline.quantile_by_step(quantile, STEP),
        };
        let gauge = |label, value: &dyn Fn(&Look) -> f64| Line {
            label,
            points: level(self.looks, value),
        };
        let counter = |label, value: &dyn Fn(&Look) -> f64| Line {
            label,
            points: rate(self.looks, value),
        };
        let panel = |title, lines| Panel {
            title,
            lines,
            is_logarithmic: false,
            limit: None,
        };
        Plot {
            title: format!(
                "Spike: {} devices over {}, {} messages/s, {} times as many for {} s, durability {durability}",
                args.devices,
                args.protocol.label(),
                args.rate,
                args.factor,
                args.seconds
            ),
            bands: vec![Band {
                label: "spike, nobody reads",
                from,
                to,
            }],
            panels: vec![
                Panel {
                    is_logarithmic: true,
                    ..panel(
                        "messages a second",
                        vec![
                            counter("acknowledged", &|look| {
                                look.metric("forebay_messages_acknowledged_total", &[])
                            }),
                            counter("read", &|look| look.read),
                        ],
                    )
                },
                Panel {
                    is_logarithmic: true,
                    ..panel(
                        "acknowledgement latency, ms",
                        vec![latency("p50", 0.5), latency("p99", 0.99), latency("max", 1.0)],
                    )
                },
                Panel {
                    limit: Some(("formula", self.bound_mib)),
                    ..panel(
                        "memory of the hub, MiB",
                        vec![
                            gauge("its own", &|look| look.memory.anonymous as f64 / MIB),
                            gauge("with log pages", &|look| look.memory.resident as f64 / MIB),
                        ],
                    )
                },
                panel("messages not read yet", vec![gauge("backlog", &|look| self.lag(look))]),
                panel(
                    "sessions that are not read, on average",
                    vec![counter("back-pressure", &|look| {
                        look.metric("forebay_backpressure_seconds_total", &[])
                    })],
                ),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_comes_again_is_counted() {
        let mut device = OfDevice::default();
        [0, 1, 3, 3, 2, 4].into_iter().for_each(|number| device.see(number));
        // 2 came behind 3: out of order is not read.
        assert_eq!((device.distinct, device.repeated, device.next), (4, 2, 5));
    }
}
