//! What does a message cost that a device sends over AMQP, pipelined, until it is accepted because it is durable?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use forebay::hub::sas;
use forebay::proto::amqp::message::MessageWriter;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::amqp::Connection;
use crate::amqp::sender::Sender;
use crate::fleet;
use crate::hub::{Hub, Member};
use crate::measure::{Mark, latencies, percentiles, record};
use crate::progress::Progress;
use crate::report::{Figure, Run};

const TOKEN_SECONDS: u64 = 3600;

#[derive(Clone, Debug, Args, Serialize)]
pub struct AmqpArgs {
    /// Connections, each of a device of its own
    #[arg(long, value_name = "N", default_value_t = 64)]
    devices: usize,
    /// Messages that a device sends before the first is accepted
    #[arg(long, value_name = "N", default_value_t = 64)]
    in_flight: usize,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=32_768))]
    size: u32,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
    /// Without TLS, over the port for emulator clients
    #[arg(long)]
    plain: bool,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
}

impl AmqpArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(
            self.devices > 0 && self.in_flight > 0,
            "there must be devices and messages"
        );
        let members = hub.members(self.devices).await?;
        let mut payload = Vec::new();
        MessageWriter::new(&mut payload).data(&fleet::body(self.size as usize));
        let payload: Arc<[u8]> = payload.into();
        let shared = Arc::new(Shared::default());
        let warmup = Duration::from_secs_f64(self.warmup);
        let mut senders = Vec::new();
        for member in &members {
            senders.push(connect(hub, member, self.plain).await?);
        }
        let measured_from = Instant::now() + warmup;
        let mut running = JoinSet::new();
        for sender in senders {
            let (payload, shared) = (payload.clone(), shared.clone());
            running.spawn(send(sender, payload, self.in_flight, shared, measured_from));
        }
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::now(hub)?, shared.accepted.load(Ordering::Relaxed));
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let (after, count) = (Mark::now(hub)?, shared.accepted.load(Ordering::Relaxed) - counted);
        shared.stop.store(true, Ordering::Relaxed);
        let mut all = latencies();
        while let Some(ended) = running.join_next().await {
            all.add(ended??)?;
        }
        let stretch = before.until(after);
        let mut figures = stretch.of_messages(count, self.size as usize);
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
async fn connect(hub: &Hub, member: &Member, is_plain: bool) -> anyhow::Result<Sender> {
    let (host, id) = (hub.host_name(), member.id.as_str());
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let key = STANDARD.decode(&member.key)?;
    let token = sas::generate(&format!("{host}/devices/{id}"), &key, now + TOKEN_SECONDS, None);
    let connection = Connection::open_as(hub, is_plain, &format!("{id}@sas.{host}"), &token).await?;
    Sender::attach(connection, &format!("/devices/{id}/messages/events")).await
}

async fn send(
    mut sender: Sender,
    payload: Arc<[u8]>,
    in_flight: usize,
    shared: Arc<Shared>,
    measured_from: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = latencies();
    let mut failed = Ok(());
    while !shared.stop.load(Ordering::Relaxed) {
        while sender.unsettled() < in_flight && sender.may_send() {
            sender.put(&payload);
        }
        sender.flush().await?;
        let mut count = 0;
        sender
            .wait(|sent| {
                count += 1;
                if sent >= measured_from && failed.is_ok() {
                    failed = record(&mut latencies, sent.elapsed(), 1);
                }
            })
            .await?;
        shared.accepted.fetch_add(count, Ordering::Relaxed);
    }
    failed.map(|()| latencies)
}
