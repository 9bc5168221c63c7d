//! How fast do devices come into the registry by import, what do they cost in memory, and how long does a hub that was
//! killed with them take to start?

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use forebay::client::endpoint::TransportOptions;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cpu::Memory;
use crate::hub::Hub;
use crate::measure::Mark;
use crate::progress::Progress;
use crate::report::{Figure, Run};

/// Devices of one request.
const PAGE: usize = 1_000;
/// Requests under way at a time.
const TOGETHER: usize = 4;
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args, Serialize)]
pub struct RegistryArgs {
    /// Devices
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    devices: u64,
}

impl RegistryArgs {
    /// # Errors
    /// The hub refuses, is gone, or was not started by this program.
    pub async fn run(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        let service = Arc::new(hub.service(&hub.endpoint(&TransportOptions::default())?).await?);
        let empty = Memory::of(hub.pid()?)?;
        let mut progress = Progress::new("import", self.devices);
        let before = Mark::now(hub)?;
        let (mut importing, mut next, mut created) = (JoinSet::new(), 0, 0);
        loop {
            while importing.len() < TOGETHER && next < self.devices {
                let end = (next + PAGE as u64).min(self.devices);
                let entries: Vec<Value> = (next..end).map(|n| json!({ "id": format!("import-{n}") })).collect();
                let (service, entries) = (service.clone(), json!({ "entries": entries }));
                importing.spawn(async move { service.request("device.import", &entries).await });
                next = end;
            }
            let Some(imported) = importing.join_next().await else {
                break;
            };
            created += imported??["created"].as_u64().unwrap_or(0);
            progress.set(created);
        }
        let stretch = before.until(Mark::now(hub)?);
        drop(progress);
        ensure!(
            created == self.devices,
            "{created} of {} devices were created",
            self.devices
        );
        Progress::sleep("settle", SETTLE).await;
        let full = Memory::of(hub.pid()?)?;
        service.close();
        let began = Instant::now();
        hub.kill_and_restart().await?;
        let restart = began.elapsed();
        let devices = self.devices as f64;
        let growth = full.anonymous.saturating_sub(empty.anonymous) as f64;
        let figures = vec![
            Figure::new("imported_per_s", devices / stretch.seconds, "1/s"),
            Figure::new("server_cpu_us_per_device", stretch.server.total() / devices * 1e6, "us"),
            Figure::new("server_memory_growth", growth / f64::from(1 << 20), "MiB"),
            Figure::new("server_bytes_per_device", growth / devices, "B"),
            Figure::new("restart_after_kill9", restart.as_secs_f64() * 1e3, "ms"),
            Figure::new("devices", devices, ""),
        ];
        Ok(Run {
            figures,
            latencies: None,
        })
    }
}
