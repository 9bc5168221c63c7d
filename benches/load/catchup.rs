//! How fast is a backlog read, and what does a kill cost a hub that has one?

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use forebay::client::service::{Service, Subscription};
use forebay::model::SequenceNumber;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::fleet::{self, FleetOptions};
use crate::hub::{Hub, Member};
use crate::measure::Mark;
use crate::progress::Progress;
use crate::report::{Figure, Run};
use crate::saturate::{Load, Saturation};

const FILL_TIMEOUT: Duration = Duration::from_secs(600);
/// After a kill: until every device is back and has sent the rest of its buffer.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Args, Serialize)]
pub struct CatchupArgs {
    /// Bodies of the backlog in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    mib: u64,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    size: u64,
    /// Devices that fill it
    #[arg(long, value_name = "N", default_value_t = 8)]
    devices: usize,
    /// Bytes the hub may send ahead to each cursor, KiB
    #[arg(long, value_name = "KIB", default_value_t = 4096)]
    credit_kib: u64,
    /// Connections the cursors are spread over [default: one for each partition]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    connections: Option<u64>,
    /// Largest UDP payload to take, bytes
    #[arg(long, value_name = "BYTES", default_value_t = TransportOptions::default().udp_payload_bytes_max)]
    udp_payload: u16,
    /// Kill the started hub while it is being filled, start it again, count what is lost, then read
    #[arg(long)]
    kill9: bool,
}

/// The hub's own word on its log, `hub.get`.
#[derive(Deserialize)]
struct HubDocument {
    partitions: Vec<PartitionRange>,
}

#[derive(Clone, Deserialize)]
pub struct PartitionRange {
    pub id: u16,
    pub first: u64,
    next: u64,
}

impl PartitionRange {
    /// Messages in it.
    pub fn messages(&self) -> u64 {
        self.next - self.first
    }
}

impl CatchupArgs {
    /// A backlog that others read.
    pub fn backlog(mib: u64, size: u64, devices: usize) -> Self {
        let transport = TransportOptions::default();
        Self {
            mib,
            size,
            devices,
            credit_kib: 0,
            connections: None,
            udp_payload: transport.udp_payload_bytes_max,
            kill9: false,
        }
    }

    /// Fills the backlog only.
    ///
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run_fill(&self, hub: &mut Hub, transport: &TransportOptions) -> anyhow::Result<Vec<Figure>> {
        let members = hub.members(self.devices.max(1) + 1).await?;
        let (probe, members) = members.split_last().expect("there are two at least");
        self.fill(hub, members, probe, transport).await
    }

    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        let transport = TransportOptions {
            udp_payload_bytes_max: self.udp_payload,
            ..TransportOptions::default()
        };
        let mut figures = self.run_fill(hub, &transport).await?;
        figures.splice(0..0, self.read(hub, &transport).await?);
        Ok(Run {
            figures,
            latencies: None,
        })
    }

    async fn fill(
        &self,
        hub: &mut Hub,
        members: &[Member],
        probe: &Member,
        transport: &TransportOptions,
    ) -> anyhow::Result<Vec<Figure>> {
        let endpoint = hub.endpoint(transport)?;
        let before = stored(&ranges(&hub.service(&endpoint).await?).await?);
        let devices = fleet::connect(hub, members, FleetOptions::default(), |_| endpoint.clone()).await?;
        let batch = ((64 << 10) / self.size as usize).max(1);
        let load = Load {
            batch,
            in_flight: batch * 16,
        };
        let mark = Mark::now(hub)?;
        let saturation = Saturation::start(&devices, load, &fleet::body(self.size as usize), Instant::now());
        let wanted = (self.mib << 20) / self.size;
        let mut progress = Progress::new("fill", wanted);
        let deadline = Instant::now() + FILL_TIMEOUT;
        loop {
            let filled = fleet::acknowledged(&devices);
            progress.set(filled);
            if filled >= wanted {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the backlog is not filled within {FILL_TIMEOUT:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let filled = mark
            .until(Mark::now(hub)?)
            .of_messages(fleet::acknowledged(&devices), self.size as usize);
        let mut figures = vec![Figure::new("fill_body_mb_per_s", filled[4].value, "MB/s")];
        let mut sent_by_probe = 0;
        if self.kill9 {
            // Senders go on: what they were told is stored at this moment must still be there afterwards.
            let killed = Instant::now();
            hub.kill_and_restart().await?;
            let ready = killed.elapsed();
            first_message(hub, probe, transport).await?;
            sent_by_probe = 1;
            figures.push(Figure::new("restart_ready_ms", ready.as_secs_f64() * 1e3, "ms"));
            figures.push(Figure::new(
                "restart_first_message_ms",
                killed.elapsed().as_secs_f64() * 1e3,
                "ms",
            ));
        }
        saturation.stop().await?;
        fleet::drained(&devices, RESUME_TIMEOUT).await?;
        // Every message is acknowledged once, so the log must hold exactly as many.
        let acknowledged = fleet::acknowledged(&devices);
        let kept = stored(&ranges(&hub.service(&endpoint).await?).await?) - before - sent_by_probe;
        figures.push(Figure::new("acknowledged", acknowledged as f64, ""));
        figures.push(Figure::new("lost", acknowledged.saturating_sub(kept) as f64, ""));
        figures.push(Figure::new("duplicates", kept.saturating_sub(acknowledged) as f64, ""));
        Ok(figures)
    }

    /// Reads every partition from its oldest message to where it ended at the start.
    async fn read(&self, hub: &Hub, transport: &TransportOptions) -> anyhow::Result<Vec<Figure>> {
        let endpoint = hub.endpoint(transport)?;
        let service = hub.service(&endpoint).await?;
        let ranges = ranges(&service).await?;
        let connections = self.connections.unwrap_or(ranges.len() as u64).min(ranges.len() as u64) as usize;
        let mut services = vec![service];
        while services.len() < connections {
            services.push(hub.service(&endpoint).await?);
        }
        let services: Vec<_> = services.into_iter().map(std::sync::Arc::new).collect();
        let before = Mark::now(hub)?;
        let mut reading = JoinSet::new();
        for (index, range) in ranges.iter().enumerate() {
            let service = services[index % services.len()].clone();
            reading.spawn(read_partition(service, range.clone(), self.credit_kib << 10));
        }
        let (mut messages, mut bytes) = (0, 0);
        while let Some(read) = reading.join_next().await {
            let read = read??;
            messages += read.0;
            bytes += read.1;
        }
        let stretch = before.until(Mark::now(hub)?);
        let mut figures = stretch.of_messages(messages, self.size as usize);
        figures.push(Figure::new(
            "log_mb_per_s",
            bytes as f64 / 1e6 / stretch.seconds,
            "MB/s",
        ));
        figures.push(Figure::new("messages", messages as f64, ""));
        figures.push(Figure::new("read_s", stretch.seconds, "s"));
        Ok(figures)
    }
}

/// Messages and bytes of log records.
async fn read_partition(
    service: std::sync::Arc<Service>,
    range: PartitionRange,
    credit_bytes: u64,
) -> anyhow::Result<(u64, u64)> {
    let from = Subscription::earliest(range.id).credit_bytes(credit_bytes);
    let mut cursor = service.subscribe(&from).await?;
    let start = cursor.position().0;
    let mut bytes = 0;
    while cursor.position().0 < range.next {
        let chunk = cursor.next().await?;
        bytes += chunk.bytes().len() as u64;
    }
    Ok((cursor.position().0 - start, bytes))
}

/// # Errors
/// The hub refuses, or is gone.
pub async fn ranges(service: &Service) -> anyhow::Result<Vec<PartitionRange>> {
    let answer = service.request("hub.get", &serde_json::json!({})).await?;
    let document: HubDocument = serde_json::from_value(answer).context("the hub's answer")?;
    Ok(document.partitions)
}

fn stored(ranges: &[PartitionRange]) -> u64 {
    // The first one ever has the number 0, whatever was deleted since.
    ranges.iter().map(|range| range.next).sum()
}

/// One message through the hub: sent, acknowledged, read.
async fn first_message(hub: &Hub, probe: &Member, transport: &TransportOptions) -> anyhow::Result<()> {
    let endpoint = hub.endpoint(transport)?;
    let service = hub.service(&endpoint).await?;
    let ends = ranges(&service).await?;
    let devices = fleet::connect(hub, std::slice::from_ref(probe), FleetOptions::default(), |_| {
        endpoint.clone()
    })
    .await?;
    let body = fleet::body(64);
    let (receipt, _) = devices[0].try_send_bodies(std::iter::once(&*body))?;
    devices[0]
        .acknowledged(receipt.context("an empty buffer takes a message")?)
        .await?;
    // Any message of any partition that has one: what is read is what was stored before or since.
    let range = ends.iter().find(|range| range.next > range.first).unwrap_or(&ends[0]);
    let from = Subscription::sequence(range.id, SequenceNumber(range.next.saturating_sub(1)));
    service.subscribe(&from).await?.next().await?;
    Ok(())
}
