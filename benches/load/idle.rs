//! What does a quiet session cost the server, over QUIC, MQTT or AMQP? And a link that is attached?

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use serde::Serialize;

use crate::amqp::Connection;
use crate::catchup::{CatchupArgs, ranges};
use crate::cpu::Memory;
use crate::fleet::{self, FleetOptions};
use crate::hub::Hub;
use crate::measure::Mark;
use crate::mqtt;
use crate::progress::Progress;
use crate::protocol::Protocol;
use crate::report::{Figure, Run};

/// Memory is read when what the handshakes needed has been given back.
const SETTLE: Duration = Duration::from_secs(2);

/// What stalled readers ask for, and could have.
const STALLED_CREDIT: u32 = 10_000;
const STALLED_MIB: u64 = 64;
/// Those of `endpoints.json`, and how many may read a partition in each.
const GROUPS: [&str; 2] = ["$Default", "cg2"];
const READERS_MAX: usize = 5;

/// Nothing ever comes from it.
const QUIET: &str = "/messages/servicebound/filenotifications";

#[derive(Clone, Debug, Args, Serialize)]
pub struct IdleArgs {
    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    sessions: usize,
    /// Client sockets they share
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    sockets: u64,
    /// Handshakes under way at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    parallel: usize,
    /// Time over which the quiet hub's CPU is measured
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// What is spoken; over AMQP a session is a service's connection with one session
    #[arg(long, value_enum, default_value_t = Protocol::Quic)]
    pub protocol: Protocol,
    /// Quiet receivers attached on each AMQP connection
    #[arg(long, value_name = "N", default_value_t = 0)]
    links: u32,
    /// Over AMQP, each connection has a receiver of the built-in endpoint that asks for 10,000 events and takes none; at most
    /// 5 for each partition of the two consumer groups
    #[arg(long, conflicts_with = "links")]
    stalled: bool,
}

impl IdleArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        match self.protocol {
            Protocol::Quic => self.run_quic(hub).await,
            Protocol::Amqp if self.stalled => self.run_stalled(hub).await,
            Protocol::Amqp => self.run_amqp(hub).await,
            Protocol::Mqtt => self.run_mqtt(hub).await,
        }
    }

    async fn run_amqp(&self, hub: &Hub) -> anyhow::Result<Run> {
        let connect = async || {
            let mut progress = Progress::new("connect", self.sessions as u64);
            let mut connections = Vec::new();
            for n in 0..self.sessions {
                let mut connection = Connection::open(hub, false).await?;
                for link in 0..self.links {
                    connection.receive(link, QUIET, 0, true).await?;
                }
                connections.push(connection);
                progress.set(n as u64);
            }
            Ok(connections)
        };
        self.measure(hub, connect).await
    }

    async fn run_stalled(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        let transport = TransportOptions::default();
        CatchupArgs::backlog(STALLED_MIB, 1024, 64)
            .run_fill(hub, &transport)
            .await?;
        let service = hub.service(&hub.endpoint(&transport)?).await?;
        let ranges = ranges(&service).await?;
        service.close();
        let filled: Vec<_> = ranges.iter().filter(|range| range.messages() > 0).collect();
        let seats = filled.len() * GROUPS.len() * READERS_MAX;
        ensure!(
            self.sessions <= seats,
            "there are {seats} places for readers, not {}",
            self.sessions
        );
        let (hub, entity) = (&*hub, hub.entity()?);
        let connect = async || {
            let mut connections = Vec::new();
            for n in 0..self.sessions {
                let (range, group) = (filled[n % filled.len()], GROUPS[n / filled.len() % GROUPS.len()]);
                let address = format!("{entity}/ConsumerGroups/{group}/Partitions/{}", range.id);
                let mut connection = Connection::open(hub, false).await?;
                connection.receive(0, &address, range.first, true).await?;
                connection.put_credit(STALLED_CREDIT, 0, 0);
                connection.flush().await?;
                connections.push(connection);
            }
            Ok(connections)
        };
        self.measure(hub, connect).await
    }

    async fn run_mqtt(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.sessions).await?;
        let tls = mqtt::Tls::new(hub)?;
        let connect = async || mqtt::connect_all(hub, &members, self.parallel, |_| tls.clone()).await;
        self.measure(hub, connect).await
    }

    async fn measure<C>(
        &self,
        hub: &Hub,
        connect: impl AsyncFnOnce() -> anyhow::Result<Vec<C>>,
    ) -> anyhow::Result<Run> {
        Progress::sleep("settle", SETTLE).await;
        let empty = Memory::of(hub.pid()?)?;
        let before = Mark::now(hub)?;
        let connections = connect().await?;
        let connecting = before.until(Mark::now(hub)?);
        Progress::sleep("settle", SETTLE).await;
        let full = Memory::of(hub.pid()?)?;
        let before = Mark::now(hub)?;
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let quiet = before.until(Mark::now(hub)?);
        drop(connections);
        let sessions = self.sessions as f64;
        let each = |full: u64, empty: u64| full.saturating_sub(empty) as f64 / sessions / 1024.0;
        Ok(Run {
            figures: vec![
                Figure::new("server_kib_per_session", each(full.anonymous, empty.anonymous), "KiB"),
                Figure::new("server_rss_kib_per_session", each(full.resident, empty.resident), "KiB"),
                Figure::new("handshakes_per_s", sessions / connecting.seconds, "1/s"),
                Figure::new(
                    "server_cpu_ms_per_handshake",
                    connecting.server.total() / sessions * 1e3,
                    "ms",
                ),
                Figure::new("server_cores_quiet", quiet.server.total() / quiet.seconds, ""),
                Figure::new("sessions", sessions, ""),
            ],
            latencies: None,
        })
    }

    async fn run_quic(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.sessions).await?;
        let endpoints = (0..self.sockets)
            .map(|_| hub.endpoint(&TransportOptions::default()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Progress::sleep("settle", SETTLE).await;
        let empty = Memory::of(hub.pid()?)?;
        let options = FleetOptions {
            parallel: self.parallel,
            ..FleetOptions::default()
        };
        let before = Mark::now(hub)?;
        let devices = fleet::connect(hub, &members, options, |index| {
            endpoints[index % endpoints.len()].clone()
        })
        .await?;
        let connecting = before.until(Mark::now(hub)?);
        Progress::sleep("settle", SETTLE).await;
        let full = Memory::of(hub.pid()?)?;
        let before = Mark::now(hub)?;
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let quiet = before.until(Mark::now(hub)?);
        let lost = devices.iter().filter(|device| device.connects() != 1).count();
        drop(devices);
        let sessions = self.sessions as f64;
        let each = |full: u64, empty: u64| full.saturating_sub(empty) as f64 / sessions / 1024.0;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let figures = vec![
            Figure::new("server_kib_per_session", each(full.anonymous, empty.anonymous), "KiB"),
            Figure::new("server_rss_kib_per_session", each(full.resident, empty.resident), "KiB"),
            Figure::new("server_rss_before", mib(empty.resident), "MiB"),
            Figure::new("server_rss_after", mib(full.resident), "MiB"),
            Figure::new("handshakes_per_s", sessions / connecting.seconds, "1/s"),
            Figure::new(
                "server_cpu_ms_per_handshake",
                connecting.server.total() / sessions * 1e3,
                "ms",
            ),
            Figure::new("server_cores_quiet", quiet.server.total() / quiet.seconds, ""),
            Figure::new("sessions", sessions, ""),
            Figure::new("sessions_lost", lost as f64, ""),
        ];
        Ok(Run {
            figures,
            latencies: None,
        })
    }
}
