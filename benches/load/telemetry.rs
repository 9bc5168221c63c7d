//! What does a message cost that a device sends over MQTT or AMQP, until it is acknowledged because it is durable?
//!
//! Closed loop: each device keeps a set number of messages unacknowledged. With a rate it sends what is due, in bursts, and
//! latency counts from the moment a message was due, whenever it leaves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use forebay::hub::sas;
use forebay::proto::amqp::message::MessageWriter;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::amqp::Connection;
use crate::amqp::sender::Sender;
use crate::fleet;
use crate::hub::{Hub, Member};
use crate::measure::{Mark, latencies, percentiles, record};
use crate::mqtt;
use crate::pace::{self, ACKNOWLEDGE_TIMEOUT, Pace};
use crate::progress::Progress;
use crate::report::{Figure, Run};

const TOKEN_SECONDS: u64 = 3600;
/// Connections that are being made at a time.
const PARALLEL: usize = 32;

#[derive(Clone, Debug, Args, Serialize)]
pub struct TelemetryArgs {
    /// Connections, each of a device of its own
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub devices: usize,
    /// Messages that a device sends before the first is acknowledged
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub in_flight: usize,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=32_768))]
    pub size: u32,
    /// Messages a second of each device, instead of as many as possible
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
    /// With --rate: a device sends what is due this often
    #[arg(long, value_name = "MS", default_value_t = 500, requires = "rate")]
    pub burst_ms: u64,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub warmup: f64,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct AmqpArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub load: TelemetryArgs,
    /// Without TLS, over the port for emulator clients
    #[arg(long)]
    pub plain: bool,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// A connection that sends messages, many before the first is acknowledged.
trait Pipeline: Send + 'static {
    fn unacknowledged(&self) -> usize;
    /// Whether the hub lets it send now.
    fn may_send(&self) -> bool;
    /// Puts a message into the buffer. `since`: from when its latency counts.
    fn put(&mut self, payload: &[u8], since: Instant) -> anyhow::Result<()>;
    fn flush(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Waits for the hub; cancelling the wait loses nothing.
    fn wait(&mut self, acknowledged: impl FnMut(Instant) + Send) -> impl Future<Output = anyhow::Result<()>> + Send;
}

impl Pipeline for Sender {
    fn unacknowledged(&self) -> usize {
        self.unsettled()
    }

    fn may_send(&self) -> bool {
        Self::may_send(self)
    }

    fn put(&mut self, payload: &[u8], since: Instant) -> anyhow::Result<()> {
        Self::put(self, payload, since);
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        Self::flush(self).await
    }

    async fn wait(&mut self, acknowledged: impl FnMut(Instant) + Send) -> anyhow::Result<()> {
        Self::wait(self, acknowledged).await
    }
}

impl Pipeline for mqtt::sender::Device {
    fn unacknowledged(&self) -> usize {
        Self::unacknowledged(self)
    }

    fn may_send(&self) -> bool {
        true
    }

    fn put(&mut self, payload: &[u8], since: Instant) -> anyhow::Result<()> {
        Self::put(self, payload, since)
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        Self::flush(self).await
    }

    async fn wait(&mut self, acknowledged: impl FnMut(Instant) + Send) -> anyhow::Result<()> {
        Self::wait(self, acknowledged).await
    }
}

impl AmqpArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        // A message of the sender is one frame.
        ensure!(self.load.size <= 32_768, "over AMQP a body has at most 32768 bytes");
        let mut payload = Vec::new();
        MessageWriter::new(&mut payload).data(&fleet::body(self.load.size as usize));
        let mut senders = Vec::new();
        for member in hub.members(self.load.devices).await? {
            senders.push(amqp_sender(hub, &member, self.plain).await?);
        }
        self.load.measure(hub, senders, payload).await
    }
}

impl TelemetryArgs {
    /// Over MQTT.
    ///
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.devices).await?;
        let tls = mqtt::Tls::new(hub)?;
        let devices = mqtt::connect_all(hub, &members, PARALLEL, |_| tls.clone()).await?;
        self.measure(hub, devices, fleet::body(self.size as usize)).await
    }

    async fn measure<P: Pipeline>(&self, hub: &Hub, senders: Vec<P>, payload: Vec<u8>) -> anyhow::Result<Run> {
        ensure!(
            self.devices > 0 && self.in_flight > 0,
            "there must be devices and messages"
        );
        let payload: Arc<[u8]> = payload.into();
        let shared = Arc::new(Shared::default());
        let warmup = Duration::from_secs_f64(self.warmup);
        let start = Instant::now();
        let measured_from = start + warmup;
        let mut running = JoinSet::new();
        match self.rate {
            None => {
                for sender in senders {
                    let (payload, shared) = (payload.clone(), shared.clone());
                    running.spawn(saturate(sender, payload, self.in_flight, shared, measured_from));
                }
            }
            Some(rate) => {
                let pace = Pace::new(rate, self.burst_ms, warmup + Duration::from_secs_f64(self.seconds));
                let bursts = pace::bursts(senders.len(), pace, start);
                for (index, (sender, bursts)) in senders.into_iter().zip(bursts).enumerate() {
                    let schedule = Schedule {
                        pace,
                        start,
                        index,
                        bursts,
                    };
                    let (payload, shared) = (payload.clone(), shared.clone());
                    running.spawn(send_paced(sender, payload, schedule, shared, measured_from));
                }
            }
        }
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::now(hub)?, shared.acknowledged.load(Ordering::Relaxed));
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let (after, count) = (Mark::now(hub)?, shared.acknowledged.load(Ordering::Relaxed) - counted);
        shared.stop.store(true, Ordering::Relaxed);
        let mut all = latencies();
        while let Some(ended) = running.join_next().await {
            all.add(ended??)?;
        }
        let stretch = before.until(after);
        let mut figures = stretch.of_messages(count, self.size as usize);
        figures.push(Figure::new("messages_timed", all.len() as f64, ""));
        figures.push(Figure::new(
            "server_cpu_us_per_message",
            stretch.server.total() / count as f64 * 1e6,
            "us",
        ));
        figures.extend(percentiles(&all));
        Ok(Run {
            figures,
            latencies: Some(all),
        })
    }
}

/// A device's connection.
// IoT Hub, AMQP section 2.1.
async fn amqp_sender(hub: &Hub, member: &Member, is_plain: bool) -> anyhow::Result<Sender> {
    let (host, id) = (hub.host_name(), member.id.as_str());
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let key = STANDARD.decode(&member.key)?;
    let token = sas::generate(&format!("{host}/devices/{id}"), &key, now + TOKEN_SECONDS, None);
    let connection = Connection::open_as(hub, is_plain, &format!("{id}@sas.{host}"), &token).await?;
    Sender::attach(connection, &format!("/devices/{id}/messages/events")).await
}

/// Takes acknowledgements, and counts them.
async fn acknowledged<P: Pipeline>(
    sender: &mut P,
    shared: &Shared,
    measured_from: Instant,
    latencies: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let (mut count, mut recorded) = (0, Ok(()));
    sender
        .wait(|since| {
            count += 1;
            if since >= measured_from && recorded.is_ok() {
                recorded = record(latencies, since.elapsed(), 1);
            }
        })
        .await?;
    shared.acknowledged.fetch_add(count, Ordering::Relaxed);
    recorded
}

async fn saturate<P: Pipeline>(
    mut sender: P,
    payload: Arc<[u8]>,
    in_flight: usize,
    shared: Arc<Shared>,
    measured_from: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = latencies();
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while sender.unacknowledged() < in_flight && sender.may_send() {
            sender.put(&payload, now)?;
        }
        sender.flush().await?;
        acknowledged(&mut sender, &shared, measured_from, &mut latencies).await?;
    }
    Ok(latencies)
}

/// What a device sends, settled before the first message leaves.
struct Schedule {
    pace: Pace,
    start: Instant,
    index: usize,
    /// Those that are due, as they come due.
    bursts: mpsc::UnboundedReceiver<u64>,
}

async fn send_paced<P: Pipeline>(
    mut sender: P,
    payload: Arc<[u8]>,
    mut schedule: Schedule,
    shared: Arc<Shared>,
    measured_from: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = latencies();
    // Messages that are due and may not leave yet.
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut is_over = false;
    while !is_over || !waiting.is_empty() || sender.unacknowledged() > 0 {
        tokio::select! {
            taken = acknowledged(&mut sender, &shared, measured_from, &mut latencies) => taken?,
            burst = schedule.bursts.recv(), if !is_over => match burst {
                Some(burst) => {
                    let pace = &schedule.pace;
                    let count = pace.messages(burst + 1) - pace.messages(burst);
                    let due = pace.due(schedule.start, schedule.index, burst);
                    waiting.extend(std::iter::repeat_n(due, count as usize));
                }
                None => is_over = true,
            },
            () = tokio::time::sleep(ACKNOWLEDGE_TIMEOUT) => {
                bail!("{} messages are unacknowledged after {ACKNOWLEDGE_TIMEOUT:?}", sender.unacknowledged())
            }
        }
        while sender.may_send()
            && let Some(due) = waiting.pop_front()
        {
            sender.put(&payload, due)?;
        }
        sender.flush().await?;
    }
    Ok(latencies)
}
