//! What does it cost to queue a message for a device until the hub answers that it is durable, and what do full queues
//! cost the hub's memory?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use forebay::client::endpoint::TransportOptions;
use forebay::client::service::Service;
use forebay::proto::amqp::message::{MessageWriter, Properties};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::amqp::Connection;
use crate::amqp::sender::Sender;
use crate::cpu::Memory;
use crate::fleet;
use crate::hub::Hub;
use crate::measure::{Mark, latencies, percentiles, record};
use crate::progress::Progress;
use crate::report::{Figure, Run};

/// Memory is read when the store has written what it held back.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args, Serialize)]
pub struct C2dArgs {
    /// Devices, all of them offline
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    devices: usize,
    /// Messages queued for each device; a queue holds 50
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=50))]
    queued: u64,
    /// Senders, each with one message under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    senders: usize,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,
    /// How services send
    #[arg(long, value_enum, default_value_t = Protocol::Quic)]
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Quic,
    Amqp,
}

/// What one sender holds.
enum Way {
    Quic(Arc<Service>, String),
    Amqp(Box<Sender>, Vec<u8>),
}

impl Way {
    /// Sends one message and waits until it is durable.
    async fn send(&mut self, device: &str) -> anyhow::Result<()> {
        match self {
            Self::Quic(service, body) => {
                let document = json!({ "deviceId": device, "bodyBase64": body });
                service.request("c2d.send", &document).await?;
            }
            Self::Amqp(sender, body) => {
                let mut payload = Vec::new();
                let mut writer = MessageWriter::new(&mut payload);
                writer.properties(&Properties {
                    to: Some(&format!("/devices/{device}/messages/devicebound")),
                    ..Properties::default()
                });
                writer.data(body);
                while !sender.may_send() {
                    sender.wait(|_| ()).await?;
                }
                sender.put(&payload, std::time::Instant::now());
                sender.flush().await?;
                while sender.unsettled() > 0 {
                    sender.wait(|_| ()).await?;
                }
            }
        }
        Ok(())
    }
}

impl C2dArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(
            self.devices > 0 && self.senders > 0,
            "there must be devices and senders"
        );
        let members = Arc::new(hub.members(self.devices).await?);
        let endpoint = hub.endpoint(&TransportOptions::default())?;
        let service = Arc::new(hub.service(&endpoint).await?);
        let body = fleet::body(self.size);
        let mut ways = Vec::new();
        for _ in 0..self.senders {
            ways.push(match self.protocol {
                Protocol::Quic => Way::Quic(service.clone(), STANDARD.encode(&body)),
                Protocol::Amqp => {
                    let connection = Connection::open(hub, false).await?;
                    let sender = Sender::attach(connection, "/messages/devicebound").await?;
                    Way::Amqp(Box::new(sender), body.to_vec())
                }
            });
        }
        Progress::sleep("settle", SETTLE).await;
        let empty = Memory::of(hub.pid()?)?;
        let total = self.devices as u64 * self.queued;
        let next = Arc::new(AtomicU64::new(0));
        let before = Mark::now(hub)?;
        let mut senders = JoinSet::new();
        for mut way in ways {
            let (members, next) = (members.clone(), next.clone());
            senders.spawn(async move {
                let mut latencies = latencies();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= total {
                        return Ok::<_, anyhow::Error>(latencies);
                    }
                    let device = &members[index as usize % members.len()];
                    let begun = Instant::now();
                    way.send(device.id.as_str()).await?;
                    record(&mut latencies, begun.elapsed(), 1)?;
                }
            });
        }
        let mut progress = Progress::new("queue", total);
        let mut all = latencies();
        loop {
            tokio::select! {
                ended = senders.join_next() => match ended {
                    Some(sender) => all.add(sender??)?,
                    None => break,
                },
                () = tokio::time::sleep(Duration::from_millis(100)) => progress.set(next.load(Ordering::Relaxed)),
            }
        }
        let stretch = before.until(Mark::now(hub)?);
        drop(progress);
        Progress::sleep("settle", SETTLE).await;
        let full = Memory::of(hub.pid()?)?;
        service.close();
        let growth = full.anonymous.saturating_sub(empty.anonymous) as f64 / f64::from(1 << 20);
        let mut figures = vec![
            Figure::new("queued_per_s", total as f64 / stretch.seconds, "1/s"),
            Figure::new(
                "server_cpu_us_per_message",
                stretch.server.total() / total as f64 * 1e6,
                "us",
            ),
            Figure::new("server_cores", stretch.server.total() / stretch.seconds, ""),
            Figure::new(
                "client_cpu_us_per_message",
                stretch.client.total() / total as f64 * 1e6,
                "us",
            ),
            Figure::new("server_memory_growth", growth, "MiB"),
            Figure::new("messages", total as f64, ""),
        ];
        figures.extend(percentiles(&all));
        Ok(Run {
            figures,
            latencies: Some(all),
        })
    }
}
