//! All sessions are lost at one moment and come back while others, which never left, go on sending: how long does the
//! return take, what does a handshake cost, and what do those who stayed notice?

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use forebay::client::endpoint::{ClientEndpoint, TransportOptions};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::fleet::{self, FleetOptions};
use crate::hub::{Hub, Member};
use crate::measure::{Mark, Stretch};
use crate::mqtt;
use crate::open_loop::{OpenLoop, Phase, Plan, Sent};
use crate::plot::{Band, Line, Panel, Plot};
use crate::progress::Progress;
use crate::protocol::DeviceProtocol;
use crate::report::{Figure, Run};
use crate::watch::{Look, Watch, level, rate};

/// Between the return and the next loss: tickets come, the hub takes note of farewells.
const PAUSE: Duration = Duration::from_secs(1);
/// Before and between storms, for the latency without one.
const CALM: Duration = Duration::from_secs(5);
/// Longer than any run.
const STEADY_MAX: Duration = Duration::from_secs(900);
const STEADY_BODY_BYTES: usize = 128;
const STEADY_BURST: Duration = Duration::from_millis(50);
/// Steps of the latency in the plot.
const STEP: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Args, Serialize)]
pub struct StormArgs {
    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    sessions: usize,
    /// Client sockets they share
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    sockets: u64,
    /// Handshakes under way at a time; 0: all at once
    #[arg(long, value_name = "N", default_value_t = 0)]
    parallel: usize,
    /// What is spoken
    #[arg(long, value_enum, default_value_t = DeviceProtocol::Quic)]
    pub protocol: DeviceProtocol,
    /// Devices that never lose their connection
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steady: u32,
    /// Messages a second of those together
    #[arg(long, value_name = "N", default_value_t = 1_000.0)]
    steady_rate: f64,
    /// Write the run over time as an SVG picture
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    plot: Option<PathBuf>,
}

/// Who comes back, each with the memory of its former sessions.
enum Fleet {
    Quic(Vec<ClientEndpoint>),
    Mqtt(Vec<mqtt::Tls>),
}

/// Held by nobody, they end.
enum Connected {
    Quic(Vec<forebay::client::device::Device>),
    Mqtt(Vec<mqtt::sender::Device>),
}

/// One return of all.
struct Return {
    /// Since the start.
    from: Duration,
    to: Duration,
    stretch: Stretch,
}

/// A thread for tasks that are not to wait for those of this one; it ends when this is dropped.
struct Apart {
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Apart {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = runtime.block_on(ended);
        });
        Ok(Self {
            runtime: handle,
            _end: end,
        })
    }

    /// What the future makes and spawns lives on that thread.
    async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let _entered = self.runtime.enter();
            future.as_mut().poll(context)
        })
        .await
    }
}

impl StormArgs {
    /// # Errors
    /// The hub refuses, or is gone, or one that stayed lost its connection.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(self.steady_rate > 0.0, "those that stay must send");
        let mut members = hub.members(self.sessions + self.steady as usize).await?;
        let staying = members.split_off(self.sessions);
        let plan = Plan {
            phases: vec![Phase {
                time: STEADY_MAX,
                rate: self.steady_rate,
            }],
            devices: staying.len(),
            burst: STEADY_BURST,
            body_bytes: STEADY_BODY_BYTES,
        };
        // The first time, memory is taken and code is read; it does not count.
        Progress::sleep("settle", PAUSE).await;
        let strangers = self.fleet(hub)?;
        drop(self.connect(hub, &members, &strangers).await?);
        Progress::sleep("settle", PAUSE).await;

        let start = Instant::now();
        let watch = Watch::start(hub, start, || 0.0).ok();
        // On a thread of their own: they are not to notice how busy the others keep this one.
        let apart = Apart::start()?;
        let steady = apart.run(async {
            Ok::<_, anyhow::Error>(match self.protocol {
                DeviceProtocol::Quic => {
                    let endpoint = hub.endpoint(&TransportOptions::default())?;
                    let devices = fleet::connect(hub, &staying, FleetOptions::default(), |_| endpoint.clone()).await?;
                    OpenLoop::over_quic(&devices, &plan, start)
                }
                DeviceProtocol::Mqtt => {
                    let tls = mqtt::Tls::new(hub)?;
                    let devices = mqtt::connect_all(hub, &staying, staying.len(), |_| tls.clone()).await?;
                    OpenLoop::over_mqtt(devices, &plan, start)
                }
            })
        });
        let steady = steady.await?;
        let begun = start.elapsed();
        Progress::sleep("calm", CALM).await;
        let known = self.fleet(hub)?;
        let full = self.come_back(hub, &members, &known, start).await?;
        Progress::sleep("calm", CALM).await;
        let resumed = self.come_back(hub, &members, &known, start).await?;
        Progress::sleep("calm", CALM / 2).await;
        let sent = steady.stop().await?;
        drop(apart);
        let looks = match watch {
            Some(watch) => watch.finish().await?,
            None => Vec::new(),
        };
        if let Some(file) = &self.plot {
            let plot = self.plot(&sent, &looks, [&full, &resumed], hub.durability());
            plot.write(file)?;
        }
        self.figures(&sent, &looks, begun, &full, &resumed)
    }

    fn fleet(&self, hub: &Hub) -> anyhow::Result<Fleet> {
        Ok(match self.protocol {
            DeviceProtocol::Quic => {
                let sockets = (0..self.sockets)
                    .map(|_| hub.endpoint(&TransportOptions::default()))
                    .collect::<anyhow::Result<Vec<_>>>()?;
                // Each session remembers its own ticket, as a device would.
                let endpoint = |index: usize| Ok(sockets[index % sockets.len()].with_tls(hub.tls()?)?);
                let endpoints: anyhow::Result<Vec<ClientEndpoint>> = (0..self.sessions).map(endpoint).collect();
                Fleet::Quic(endpoints?)
            }
            DeviceProtocol::Mqtt => {
                let tls: anyhow::Result<Vec<_>> = (0..self.sessions).map(|_| mqtt::Tls::new(hub)).collect();
                Fleet::Mqtt(tls?)
            }
        })
    }

    async fn connect(&self, hub: &Hub, members: &[Member], fleet: &Fleet) -> anyhow::Result<Connected> {
        let parallel = if self.parallel == 0 {
            self.sessions
        } else {
            self.parallel
        };
        let options = FleetOptions {
            parallel,
            ..FleetOptions::default()
        };
        Ok(match fleet {
            Fleet::Quic(endpoints) => {
                let devices = fleet::connect(hub, members, options, |index| endpoints[index].clone()).await?;
                Connected::Quic(devices)
            }
            Fleet::Mqtt(tls) => {
                Connected::Mqtt(mqtt::connect_all(hub, members, parallel, |index| tls[index].clone()).await?)
            }
        })
    }

    async fn come_back(&self, hub: &Hub, members: &[Member], fleet: &Fleet, start: Instant) -> anyhow::Result<Return> {
        let (from, before) = (start.elapsed(), Mark::now(hub)?);
        let connected = self.connect(hub, members, fleet).await?;
        let (to, stretch) = (start.elapsed(), before.until(Mark::now(hub)?));
        // The ticket comes right after the welcome.
        tokio::time::sleep(PAUSE).await;
        match connected {
            Connected::Quic(devices) => drop(devices),
            Connected::Mqtt(devices) => drop(devices),
        }
        tokio::time::sleep(PAUSE).await;
        Ok(Return { from, to, stretch })
    }

    fn figures(
        &self,
        sent: &Sent,
        looks: &[Look],
        begun: Duration,
        full: &Return,
        resumed: &Return,
    ) -> anyhow::Result<Run> {
        let sessions = self.sessions as f64;
        let milliseconds = |stretch: &Stretch| stretch.server.total() / sessions * 1e3;
        let client = |stretch: &Stretch| stretch.client.total() / sessions * 1e3;
        let (first, second) = (&full.stretch, &resumed.stretch);
        let mut figures = vec![
            Figure::new("full_s", first.seconds, "s"),
            Figure::new("full_handshakes_per_s", sessions / first.seconds, "1/s"),
            Figure::new("full_server_cpu_ms", milliseconds(first), "ms"),
            Figure::new("resumed_s", second.seconds, "s"),
            Figure::new("resumed_handshakes_per_s", sessions / second.seconds, "1/s"),
            Figure::new("resumed_server_cpu_ms", milliseconds(second), "ms"),
            Figure::new("client_cpu_ms_per_full", client(first), "ms"),
            Figure::new("client_cpu_ms_per_resumed", client(second), "ms"),
            Figure::new("sessions", sessions, ""),
        ];
        let admitted = self
            .admitted(looks)
            .into_iter()
            .map(|point| point.1)
            .fold(f64::NAN, f64::max);
        figures.push(Figure::new("admitted_per_s_most", admitted, "1/s"));
        // The first second of those who stay is their own handshakes'.
        let windows = [
            (["calm_p50", "calm_p99", "calm_max"], begun + PAUSE, full.from),
            (["full_p50", "full_p99", "full_max"], full.from, full.to),
            (["resumed_p50", "resumed_p99", "resumed_max"], resumed.from, resumed.to),
        ];
        let mut all = crate::measure::latencies();
        for (names, from, to) in windows {
            let window: Histogram<u64> = sent.timeline.window(from, to)?;
            for (name, quantile) in names.into_iter().zip([0.5, 0.99, 1.0]) {
                figures.push(Figure::new(name, window.value_at_quantile(quantile) as f64 / 1e3, "ms"));
            }
            all.add(window)?;
        }
        figures.push(Figure::new(
            "steady_acknowledged",
            sent.acknowledged.iter().sum::<u64>() as f64,
            "",
        ));
        Ok(Run {
            figures,
            latencies: Some(all),
        })
    }

    /// Handshakes let in a second.
    fn admitted(&self, looks: &[Look]) -> Vec<(f64, f64)> {
        let door = format!("door=\"{}\"", self.protocol.label());
        rate(looks, |look| look.metric("forebay_admitted_total", &[&door]))
    }

    fn plot(&self, sent: &Sent, looks: &[Look], returns: [&Return; 2], durability: &str) -> Plot {
        let door = format!("door=\"{}\"", self.protocol.label());
        let band = |label, of: &Return| Band {
            label,
            from: of.from.as_secs_f64(),
            to: of.to.as_secs_f64(),
        };
        let latency = |label, quantile| Line {
            label,
            points: sent.timeline.quantile_by_step(quantile, STEP),
        };
        let gauge = |label, value: &dyn Fn(&Look) -> f64| Line {
            label,
            points: level(looks, value),
        };
        let panel = |title, lines| Panel {
            title,
            lines,
            is_logarithmic: false,
            limit: None,
        };
        Plot {
            title: format!(
                "Storm: {} sessions over {} return at once; {} devices stay, {} messages/s; durability {durability}",
                self.sessions,
                self.protocol.label(),
                self.steady,
                self.steady_rate
            ),
            bands: vec![band("return", returns[0]), band("return, resumed", returns[1])],
            panels: vec![
                Panel {
                    is_logarithmic: true,
                    ..panel(
                        "acknowledgement latency of those who stay, ms",
                        vec![latency("p50", 0.5), latency("p99", 0.99), latency("max", 1.0)],
                    )
                },
                panel(
                    "handshakes let in a second",
                    vec![Line {
                        label: "admitted",
                        points: self.admitted(looks),
                    }],
                ),
                panel(
                    "connections",
                    vec![
                        gauge("sessions", &|look| {
                            look.metric("forebay_sessions", &["kind=\"device\""])
                        }),
                        gauge("waiting for their turn", &|look| {
                            look.metric("forebay_admission_waiting", &[&door])
                        }),
                    ],
                ),
            ],
        }
    }
}
