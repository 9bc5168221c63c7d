//! All sessions are lost at one moment and come back: how long does that take, and what does a handshake cost?

use std::time::Duration;

use clap::Args;
use forebay::client::endpoint::{ClientEndpoint, TransportOptions};
use serde::Serialize;

use crate::fleet::{self, FleetOptions};
use crate::hub::{Hub, Member};
use crate::measure::{Mark, Stretch};
use crate::mqtt;
use crate::progress::Progress;
use crate::protocol::DeviceProtocol;
use crate::report::{Figure, Run};

/// Between the loss and the return: the hub takes note of the farewells.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Args, Serialize)]
pub struct StormArgs {
    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    sessions: usize,
    /// Client sockets they share
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    sockets: u64,
    /// Handshakes under way at a time
    #[arg(long, value_name = "N", default_value_t = 256)]
    parallel: usize,
    /// What is spoken
    #[arg(long, value_enum, default_value_t = DeviceProtocol::Quic)]
    pub protocol: DeviceProtocol,
}

impl StormArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.sessions).await?;
        if self.protocol == DeviceProtocol::Mqtt {
            return self.run_mqtt(hub, &members).await;
        }
        let sockets = (0..self.sockets)
            .map(|_| hub.endpoint(&TransportOptions::default()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        // Each session remembers its own ticket, as a device would.
        let strangers = || -> anyhow::Result<Vec<ClientEndpoint>> {
            let endpoint = |index: usize| Ok(sockets[index % sockets.len()].with_tls(hub.tls()?)?);
            (0..self.sessions).map(endpoint).collect()
        };
        let options = FleetOptions {
            parallel: self.parallel,
            ..FleetOptions::default()
        };
        let connect = async |endpoints: &[ClientEndpoint]| -> anyhow::Result<Stretch> {
            let before = Mark::now(hub)?;
            let devices = fleet::connect(hub, &members, options, |index| endpoints[index].clone()).await?;
            let stretch = before.until(Mark::now(hub)?);
            // The ticket comes right after the welcome.
            tokio::time::sleep(PAUSE).await;
            drop(devices);
            tokio::time::sleep(PAUSE).await;
            Ok(stretch)
        };
        // The first time, memory is taken and code is read; it does not count.
        Progress::sleep("settle", PAUSE).await;
        connect(&strangers()?).await?;
        let known = strangers()?;
        let full = connect(&known).await?;
        let resumed = connect(&known).await?;
        Ok(self.figures(&full, &resumed))
    }

    async fn run_mqtt(&self, hub: &Hub, members: &[Member]) -> anyhow::Result<Run> {
        let strangers = || -> anyhow::Result<Vec<mqtt::Tls>> { members.iter().map(|_| mqtt::Tls::new(hub)).collect() };
        let connect = async |tls: &[mqtt::Tls]| -> anyhow::Result<Stretch> {
            let before = Mark::now(hub)?;
            let devices = mqtt::connect_all(hub, members, self.parallel, |index| tls[index].clone()).await?;
            let stretch = before.until(Mark::now(hub)?);
            tokio::time::sleep(PAUSE).await;
            drop(devices);
            tokio::time::sleep(PAUSE).await;
            Ok(stretch)
        };
        Progress::sleep("settle", PAUSE).await;
        connect(&strangers()?).await?;
        let known = strangers()?;
        let full = connect(&known).await?;
        let resumed = connect(&known).await?;
        Ok(self.figures(&full, &resumed))
    }

    fn figures(&self, full: &Stretch, resumed: &Stretch) -> Run {
        let sessions = self.sessions as f64;
        let milliseconds = |stretch: &Stretch| stretch.server.total() / sessions * 1e3;
        let figures = vec![
            Figure::new("full_s", full.seconds, "s"),
            Figure::new("full_handshakes_per_s", sessions / full.seconds, "1/s"),
            Figure::new("full_server_cpu_ms", milliseconds(full), "ms"),
            Figure::new("resumed_s", resumed.seconds, "s"),
            Figure::new("resumed_handshakes_per_s", sessions / resumed.seconds, "1/s"),
            Figure::new("resumed_server_cpu_ms", milliseconds(resumed), "ms"),
            Figure::new("client_cpu_ms_per_full", full.client.total() / sessions * 1e3, "ms"),
            Figure::new(
                "client_cpu_ms_per_resumed",
                resumed.client.total() / sessions * 1e3,
                "ms",
            ),
            Figure::new("sessions", sessions, ""),
        ];
        Run {
            figures,
            latencies: None,
        }
    }
}
