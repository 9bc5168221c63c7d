//! How much CPU does a message cost that a device sends and the hub stores?

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use serde::Serialize;

use crate::fleet::{self, FleetOptions};
use crate::hub::Hub;
use crate::measure::{Mark, percentiles};
use crate::pace::{Pace, Paced};
use crate::progress::Progress;
use crate::protocol::Protocol;
use crate::report::{Figure, Run};
use crate::saturate::{Load, Saturation};
use crate::telemetry::{AmqpArgs, TelemetryArgs};

#[derive(Clone, Debug, Args, Serialize)]
pub struct IngestArgs {
    /// Devices, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 64)]
    devices: usize,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,
    /// What devices speak; over MQTT with QoS 1, over AMQP unsettled
    #[arg(long, value_enum, default_value_t = Protocol::Quic)]
    pub protocol: Protocol,
    /// Over QUIC, messages of one frame; 1 for devices that do not batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: u32,
    /// Messages a device has unacknowledged at most [default: 64; over QUIC 8 batches, at least 64]
    #[arg(long, value_name = "N", conflicts_with = "rate")]
    in_flight: Option<usize>,
    /// Messages a second of each device, instead of as many as possible
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// With --rate: a device sends what is due this often
    #[arg(long, value_name = "MS", default_value_t = 500, requires = "rate")]
    burst_ms: u64,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
    /// Over QUIC, largest UDP payload to try, bytes
    #[arg(long, value_name = "BYTES", default_value_t = TransportOptions::default().udp_payload_bytes_max)]
    udp_payload: u16,
}

impl IngestArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        let load = TelemetryArgs {
            devices: self.devices,
            in_flight: self.in_flight.unwrap_or(64),
            size: u32::try_from(self.size)?,
            rate: self.rate,
            burst_ms: self.burst_ms,
            seconds: self.seconds,
            warmup: self.warmup,
        };
        match self.protocol {
            Protocol::Quic => self.run_quic(hub).await,
            Protocol::Mqtt => load.run(hub).await,
            Protocol::Amqp => AmqpArgs { load, plain: false }.run(hub).await,
        }
    }

    async fn run_quic(&self, hub: &Hub) -> anyhow::Result<Run> {
        let in_flight = self.in_flight.unwrap_or(self.batch as usize * 8).max(64);
        ensure!(self.batch > 0 && self.devices > 0, "there must be devices and messages");
        ensure!(in_flight >= self.batch as usize, "--in-flight is below --batch");
        let members = hub.members(self.devices).await?;
        let transport = TransportOptions {
            udp_payload_bytes_max: self.udp_payload,
            ..TransportOptions::default()
        };
        let endpoint = hub.endpoint(&transport)?;
        let options = FleetOptions {
            batch: self.batch,
            ..FleetOptions::default()
        };
        let devices = fleet::connect(hub, &members, options, |_| endpoint.clone()).await?;
        let body = fleet::body(self.size);
        let (warmup, measured) = (
            Duration::from_secs_f64(self.warmup),
            Duration::from_secs_f64(self.seconds),
        );
        let measured_from = Instant::now() + warmup;
        let sending = match self.rate {
            None => Sending::Saturated(Saturation::start(
                &devices,
                Load {
                    batch: self.batch as usize,
                    in_flight,
                },
                &body,
                measured_from,
            )),
            Some(rate) => {
                let pace = Pace::new(rate, self.burst_ms, warmup + measured);
                Sending::Paced(Paced::start(&devices, pace, &body, measured_from))
            }
        };
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::now(hub)?, fleet::acknowledged(&devices));
        Progress::sleep("measure", measured).await;
        let (after, messages) = (Mark::now(hub)?, fleet::acknowledged(&devices) - counted);
        let latencies = match sending {
            Sending::Saturated(saturation) => saturation.stop().await?,
            Sending::Paced(paced) => paced.finish().await?,
        };
        fleet::drained(&devices, Duration::from_secs(10)).await?;
        let mut figures = before.until(after).of_messages(messages, self.size);
        figures.extend(percentiles(&latencies));
        figures.push(Figure::new("messages", messages as f64, ""));
        Ok(Run {
            figures,
            latencies: Some(latencies),
        })
    }
}

enum Sending {
    Saturated(Saturation),
    Paced(Paced),
}
