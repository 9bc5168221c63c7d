//! How fast is a backlog read by Event Hubs clients, over AMQP?
//!
//! The backlog comes in over the native protocol. Then every partition has a receiver on a connection of its own, which
//! reads to where the partition ended and checks the sequence numbers on the way.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use forebay::client::endpoint::TransportOptions;
use forebay::proto::amqp::Role;
use forebay::proto::amqp::performative::{DeliveryState, Disposition, Performative};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::amqp::Connection;
use crate::amqp::sink::Sink;
use crate::catchup::{CatchupArgs, PartitionRange, ranges};
use crate::hub::Hub;
use crate::measure::Mark;
use crate::progress::Progress;
use crate::report::{Figure, Run};

/// Deliveries of one disposition.
const SETTLE_EVERY: u64 = 1000;
/// Without an event for so long, reading has failed.
const SILENCE: Duration = Duration::from_secs(30);

/// What the receiver asks for, and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Settle {
    /// The hub sends settled
    Settled,
    /// The hub sends unsettled; each 1,000 are accepted at once
    Accept,
    /// The hub sends unsettled, and never hears of it
    Never,
}

#[derive(Clone, Debug, Args, Serialize)]
pub struct EventsArgs {
    /// Bodies of the backlog in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    mib: u64,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    size: u64,
    /// Devices that fill it
    #[arg(long, value_name = "N", default_value_t = 8)]
    devices: usize,
    /// How deliveries are settled
    #[arg(long, value_enum, default_value_t = Settle::Settled)]
    settle: Settle,
    /// Events the hub may send ahead on each link
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    credit: u32,
    /// Read from the port without TLS, which a hub of `dev` has on loopback
    #[arg(long)]
    plain: bool,
}

impl EventsArgs {
    /// # Errors
    /// The hub refuses or is gone, or an event is missing.
    pub async fn run(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        let transport = TransportOptions::default();
        let backlog = CatchupArgs::backlog(self.mib, self.size, self.devices);
        let filled = backlog.run_fill(hub, &transport).await?;
        let service = hub.service(&hub.endpoint(&transport)?).await?;
        let ranges = ranges(&service).await?;
        service.close();
        let wanted: u64 = ranges.iter().map(PartitionRange::messages).sum();
        let (counted, mut counts) = mpsc::unbounded_channel();
        let mut readers = Vec::new();
        for range in ranges.iter().filter(|range| range.messages() > 0) {
            let mut connection = Connection::open(hub, self.plain).await?;
            let address = format!("{}/ConsumerGroups/$Default/Partitions/{}", hub.entity()?, range.id);
            let is_settled = self.settle == Settle::Settled;
            connection.receive(0, &address, range.first, is_settled).await?;
            readers.push((connection, Sink::new(range.first, range.messages())));
        }
        let before = Mark::now(hub)?;
        let mut reading = JoinSet::new();
        for (connection, sink) in readers {
            reading.spawn(read(connection, sink, self.settle, self.credit, counted.clone()));
        }
        drop(counted);
        let mut progress = Progress::new("read", wanted);
        while let Some(events) = counts.recv().await {
            progress.add(events);
        }
        let (mut events, mut bytes) = (0, 0);
        while let Some(sink) = reading.join_next().await {
            let sink = sink??;
            events += sink.events;
            bytes += sink.bytes;
        }
        let stretch = before.until(Mark::now(hub)?);
        ensure!(events >= wanted, "{events} events of {wanted} were read");
        let each = |seconds: f64| seconds / events as f64 * 1e6;
        let mut figures = vec![
            Figure::new("server_cpu_us_per_event", each(stretch.server.total()), "us"),
            Figure::new("client_cpu_us_per_event", each(stretch.client.total()), "us"),
        ];
        figures.extend(stretch.of_messages(events, self.size as usize));
        figures.push(Figure::new(
            "amqp_mb_per_s",
            bytes as f64 / 1e6 / stretch.seconds,
            "MB/s",
        ));
        figures.push(Figure::new("messages", events as f64, ""));
        figures.push(Figure::new("read_s", stretch.seconds, "s"));
        figures.extend(filled);
        Ok(Run {
            figures,
            latencies: None,
        })
    }
}

/// Reads until the sink is full; `counted` hears of every renewal of the credit.
async fn read(
    mut connection: Connection,
    mut sink: Sink,
    settle: Settle,
    credit: u32,
    counted: mpsc::UnboundedSender<u64>,
) -> anyhow::Result<Sink> {
    connection.put_credit(credit, 0, 0);
    connection.flush().await?;
    let (mut granted, mut settled_to) = (0, None);
    let mut settled = 0;
    while !sink.is_full() {
        let input = tokio::time::timeout(SILENCE, connection.read())
            .await
            .with_context(|| format!("no event came for {SILENCE:?}"))??;
        sink.take(input)?;
        // Counters of the protocol go round.
        if sink.events - granted >= u64::from(credit / 2) {
            let _ = counted.send(sink.events - granted);
            granted = sink.events;
            connection.put_credit(credit, sink.events as u32, sink.transfers as u32);
        }
        if settle == Settle::Accept && (sink.events - settled >= SETTLE_EVERY || sink.is_full()) {
            let last = sink.last_complete.context("an event has no delivery number")?;
            let first = settled_to.map_or(last.wrapping_sub((sink.events - settled) as u32 - 1), |to: u32| {
                to.wrapping_add(1)
            });
            settled = sink.events;
            settled_to = Some(last);
            connection.put(&Performative::Disposition(Disposition {
                role: Role::Receiver,
                first,
                last,
                settled: true,
                state: Some(DeliveryState::Accepted),
            }));
        }
        connection.flush().await?;
    }
    let _ = counted.send(sink.events - granted);
    Ok(sink)
}
