//! How long do a direct method's way to the device and back, and a message's way to the device, take on a quiet hub?

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use forebay::client::device::Device;
use forebay::client::endpoint::TransportOptions;
use forebay::client::service::Service;
use forebay::client::streams::{MethodAnswer, Outcome};
use serde::Serialize;
use serde_json::json;

use crate::fleet::{self, FleetOptions};
use crate::hub::{Hub, Member};
use crate::measure::{Mark, latencies, percentiles, record};
use crate::progress::Progress;
use crate::report::{Figure, Run};

#[derive(Clone, Debug, Args, Serialize)]
pub struct QuietArgs {
    /// Calls or messages, one after the other
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    count: u64,
    /// Between the end of one and the next
    #[arg(long, value_name = "MS", default_value_t = 1)]
    pause_ms: u64,
}

/// One device, its service, and the server's CPU over what is done with them.
struct Pair {
    member: Member,
    device: Device,
    service: Service,
}

impl Pair {
    async fn new(hub: &Hub) -> anyhow::Result<Self> {
        let members = hub.members(1).await?;
        let endpoint = hub.endpoint(&TransportOptions::default())?;
        let mut devices = fleet::connect(hub, &members, FleetOptions::default(), |_| endpoint.clone()).await?;
        Ok(Self {
            member: members[0].clone(),
            device: devices.remove(0),
            service: hub.service(&hub.endpoint(&TransportOptions::default())?).await?,
        })
    }
}

impl QuietArgs {
    /// Calls a method that answers at once.
    ///
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run_method(&self, hub: &Hub) -> anyhow::Result<Run> {
        let pair = Pair::new(hub).await?;
        let serving = tokio::spawn(
            pair.device
                .methods(10)
                .serve(|call| async move { MethodAnswer::new(200, &call.payload) }),
        );
        let id = pair.member.id.as_str();
        let call = json!({ "deviceId": id, "methodName": "echo", "payload": 1, "connectTimeoutInSeconds": 10 });
        let run = self
            .time(hub, "call", async || {
                let answer = pair.service.request("method.invoke", &call).await?;
                ensure!(answer["status"] == 200, "the device answered {answer}");
                Ok(Instant::now())
            })
            .await;
        serving.abort();
        run
    }

    /// Queues a message and waits until the device has it; settling it does not count.
    ///
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run_deliver(&self, hub: &Hub) -> anyhow::Result<Run> {
        let pair = Pair::new(hub).await?;
        let mut commands = pair.device.commands(10);
        commands.listen().await?;
        let message = json!({ "deviceId": pair.member.id.as_str(), "body": "on" });
        self.time(hub, "deliver", async || {
            let queued = pair.service.request("c2d.send", &message);
            let (queued, command) = tokio::join!(queued, commands.next());
            let arrived = Instant::now();
            queued?;
            commands.settle(&command?, Outcome::Complete).await?;
            Ok(arrived)
        })
        .await
    }

    /// Times `once`, which says when what counts was done.
    async fn time(
        &self,
        hub: &Hub,
        label: &'static str,
        mut once: impl AsyncFnMut() -> anyhow::Result<Instant>,
    ) -> anyhow::Result<Run> {
        // The first one waits for streams to open.
        once().await?;
        let mut latencies = latencies();
        let mut progress = Progress::new(label, self.count);
        let before = Mark::now(hub)?;
        for _ in 0..self.count {
            let begun = Instant::now();
            record(&mut latencies, once().await?.duration_since(begun), 1)?;
            progress.add(1);
            tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
        }
        let stretch = before.until(Mark::now(hub)?);
        let mut figures = percentiles(&latencies);
        let each = stretch.server.total() / self.count as f64 * 1e6;
        figures.push(Figure::new("server_cpu_us_each", each, "us"));
        Ok(Run {
            figures,
            latencies: Some(latencies),
        })
    }
}
