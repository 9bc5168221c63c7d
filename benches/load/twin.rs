//! How many reported patches does the hub store a second, and what does one cost?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use forebay::client::streams::Twin as TwinStream;
use forebay::proto::mqtt::{Packet, QoS};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::fleet::{self, FleetOptions};
use crate::hub::Hub;
use crate::measure::{Mark, latencies, percentiles, record};
use crate::mqtt::Connection;
use crate::progress::Progress;
use crate::protocol::DeviceProtocol;
use crate::report::{Figure, Run};

#[derive(Clone, Debug, Args, Serialize)]
pub struct TwinArgs {
    /// Devices, each with one patch under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    devices: usize,
    /// What devices speak
    #[arg(long, value_enum, default_value_t = DeviceProtocol::Quic)]
    protocol: DeviceProtocol,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
}

/// A device that reports.
trait Reporter: Send + 'static {
    /// Reports one patch and waits until it is stored.
    fn report(&mut self, patch: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
}

impl Reporter for TwinStream {
    async fn report(&mut self, patch: &str) -> anyhow::Result<()> {
        Self::report(self, patch, None).await?;
        Ok(())
    }
}

impl Reporter for Connection {
    async fn report(&mut self, patch: &str) -> anyhow::Result<()> {
        self.say("$iothub/twin/PATCH/properties/reported/?$rid=1", patch.as_bytes())
            .await?;
        self.hear(|packet| match packet {
            Packet::Publish(answer) => {
                let is_stored = answer.topic.starts_with("$iothub/twin/res/204/");
                ensure!(is_stored, "a patch is answered on {}", answer.topic);
                Ok(Some(()))
            }
            _ => Ok(None),
        })
        .await
    }
}

impl TwinArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.devices).await?;
        match self.protocol {
            DeviceProtocol::Quic => {
                let endpoint = hub.endpoint(&TransportOptions::default())?;
                let devices = fleet::connect(hub, &members, FleetOptions::default(), |_| endpoint.clone()).await?;
                let twins = devices.iter().map(|device| device.twin(0)).collect();
                self.measure(hub, twins).await
            }
            DeviceProtocol::Mqtt => {
                let mut devices = Vec::new();
                for member in &members {
                    let answers = "$iothub/twin/res/#";
                    devices.push(Connection::subscribed(hub, member, answers, QoS::AtMostOnce).await?);
                }
                self.measure(hub, devices).await
            }
        }
    }

    async fn measure<R: Reporter>(&self, hub: &Hub, devices: Vec<R>) -> anyhow::Result<Run> {
        let warmup = Duration::from_secs_f64(self.warmup);
        let measured_from = Instant::now() + warmup;
        let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut reporters = JoinSet::new();
        for mut device in devices {
            let (stop, stored) = (stop.clone(), stored.clone());
            reporters.spawn(async move {
                let mut latencies = latencies();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let begun = Instant::now();
                    device
                        .report(&format!(r#"{{"reading":{n},"state":{{"on":true}}}}"#))
                        .await?;
                    stored.fetch_add(1, Ordering::Relaxed);
                    if begun >= measured_from {
                        record(&mut latencies, begun.elapsed(), 1)?;
                    }
                }
                Ok::<_, anyhow::Error>(latencies)
            });
        }
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::now(hub)?, stored.load(Ordering::Relaxed));
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let (after, patches) = (Mark::now(hub)?, stored.load(Ordering::Relaxed) - counted);
        stop.store(true, Ordering::Relaxed);
        let mut all = latencies();
        while let Some(reporter) = reporters.join_next().await {
            all.add(reporter??)?;
        }
        let stretch = before.until(after);
        let mut figures = vec![
            Figure::new("patches_per_s", patches as f64 / stretch.seconds, "1/s"),
            Figure::new(
                "server_cpu_us_per_patch",
                stretch.server.total() / patches as f64 * 1e6,
                "us",
            ),
            Figure::new("server_cores", stretch.server.total() / stretch.seconds, ""),
        ];
        figures.extend(percentiles(&all));
        Ok(Run {
            figures,
            latencies: Some(all),
        })
    }
}
