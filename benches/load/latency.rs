//! How long does a device wait for its acknowledgement at a given load?
//!
//! Open loop: messages leave when they are due, also while the hub is slow, and their latency counts from the moment they
//! were due. A stall is then seen by every message that fell into it.

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
use crate::telemetry::{AmqpArgs, TelemetryArgs};

#[derive(Clone, Debug, Args, Serialize)]
pub struct LatencyArgs {
    /// Messages a second of all devices together
    #[arg(long, value_name = "N", default_value_t = 20_000.0)]
    rate: f64,
    /// Devices, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 8)]
    devices: usize,
    /// What devices speak
    #[arg(long, value_enum, default_value_t = Protocol::Quic)]
    pub protocol: Protocol,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,
    /// A device sends what is due this often; a message counts from its burst
    #[arg(long, value_name = "MS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    burst_ms: u64,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
}

impl LatencyArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(
            self.devices > 0 && self.rate > 0.0,
            "there must be devices and messages"
        );
        let load = TelemetryArgs {
            devices: self.devices,
            in_flight: 1,
            size: u32::try_from(self.size)?,
            rate: Some(self.rate / self.devices as f64),
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
        let members = hub.members(self.devices).await?;
        let endpoint = hub.endpoint(&TransportOptions::default())?;
        let devices = fleet::connect(hub, &members, FleetOptions::default(), |_| endpoint.clone()).await?;
        let body = fleet::body(self.size);
        let (warmup, measured) = (
            Duration::from_secs_f64(self.warmup),
            Duration::from_secs_f64(self.seconds),
        );
        let pace = Pace::new(self.rate / self.devices as f64, self.burst_ms, warmup + measured);
        let paced = Paced::start(&devices, pace, &body, Instant::now() + warmup);
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::now(hub)?, fleet::acknowledged(&devices));
        // The end is left to those that are under way.
        Progress::sleep("measure", measured.mul_f64(0.95)).await;
        let (after, messages) = (Mark::now(hub)?, fleet::acknowledged(&devices) - counted);
        let latencies = paced.finish().await?;
        let mut figures = percentiles(&latencies);
        figures.extend(before.until(after).of_messages(messages, self.size));
        figures.push(Figure::new("messages_timed", latencies.len() as f64, ""));
        Ok(Run {
            figures,
            latencies: Some(latencies),
        })
    }
}
