//! How long do a direct method's way to the device and back, and a message's way to the device, take on a quiet hub?

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use forebay::client::device::Device;
use forebay::client::endpoint::TransportOptions;
use forebay::client::service::Service;
use forebay::client::streams::{MethodAnswer, Outcome};
use forebay::proto::mqtt::{Packet, QoS};
use serde::Serialize;
use serde_json::json;

use crate::fleet::{self, FleetOptions};
use crate::hub::{Hub, Member};
use crate::measure::{Mark, latencies, percentiles, record};
use crate::mqtt::Connection;
use crate::progress::Progress;
use crate::protocol::DeviceProtocol;
use crate::report::{Figure, Run};

#[derive(Clone, Debug, Args, Serialize)]
pub struct QuietArgs {
    /// Calls or messages, one after the other
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    count: u64,
    /// Between the end of one and the next
    #[arg(long, value_name = "MS", default_value_t = 1)]
    pause_ms: u64,
    /// What the device speaks
    #[arg(long, value_enum, default_value_t = DeviceProtocol::Quic)]
    protocol: DeviceProtocol,
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
        if self.protocol == DeviceProtocol::Mqtt {
            return self.run_method_mqtt(hub).await;
        }
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
        if self.protocol == DeviceProtocol::Mqtt {
            return self.run_deliver_mqtt(hub).await;
        }
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

    async fn run_method_mqtt(&self, hub: &Hub) -> anyhow::Result<Run> {
        const FILTER: &str = "$iothub/methods/POST/#";
        let member = hub.members(1).await?.remove(0);
        let service = hub.service(&hub.endpoint(&TransportOptions::default())?).await?;
        let device = Connection::subscribed(hub, &member, FILTER, QoS::AtMostOnce).await?;
        let serving = tokio::spawn(echo(device));
        let call = json!({ "deviceId": member.id.as_str(), "methodName": "echo", "payload": 1 });
        let run = self
            .time(hub, "call", async || {
                let answer = service.request("method.invoke", &call).await?;
                ensure!(answer["status"] == 200, "the device answered {answer}");
                Ok(Instant::now())
            })
            .await;
        serving.abort();
        run
    }

    async fn run_deliver_mqtt(&self, hub: &Hub) -> anyhow::Result<Run> {
        let member = hub.members(1).await?.remove(0);
        let service = hub.service(&hub.endpoint(&TransportOptions::default())?).await?;
        let id = member.id.as_str();
        let filter = format!("devices/{id}/messages/devicebound/#");
        let mut device = Connection::subscribed(hub, &member, &filter, QoS::AtLeastOnce).await?;
        let message = json!({ "deviceId": id, "body": "on" });
        self.time(hub, "deliver", async || {
            let queued = service.request("c2d.send", &message);
            let told = device.hear(|packet| match packet {
                Packet::Publish(message) => Ok(message.packet_id),
                _ => Ok(None),
            });
            let (queued, told) = tokio::join!(queued, told);
            let arrived = Instant::now();
            queued?;
            device.acknowledge(told?).await?;
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

/// Answers every call with what it carries.
async fn echo(mut device: Connection) -> anyhow::Result<Infallible> {
    loop {
        let (topic, payload) = device
            .hear(|packet| {
                let Packet::Publish(call) = packet else {
                    return Ok(None);
                };
                let (_, rid) = call.topic.split_once("/?$rid=").context("a call without an id")?;
                let topic = format!("$iothub/methods/res/200/?$rid={rid}");
                Ok(Some((topic, call.payload.to_vec())))
            })
            .await?;
        device.say(&topic, &payload).await?;
    }
}
