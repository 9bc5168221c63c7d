//! How many reported patches does the hub store a second, and what does one cost?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use forebay::client::endpoint::TransportOptions;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::fleet::{self, FleetOptions};
use crate::hub::Hub;
use crate::measure::{Mark, latencies, percentiles, record};
use crate::progress::Progress;
use crate::report::{Figure, Run};

#[derive(Clone, Debug, Args, Serialize)]
pub struct TwinArgs {
    /// Devices, each with one patch under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    devices: usize,
    /// Measured time
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
}

impl TwinArgs {
    /// # Errors
    /// The hub refuses, or is gone.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        let members = hub.members(self.devices).await?;
        let endpoint = hub.endpoint(&TransportOptions::default())?;
        let devices = fleet::connect(hub, &members, FleetOptions::default(), |_| endpoint.clone()).await?;
        let warmup = Duration::from_secs_f64(self.warmup);
        let measured_from = Instant::now() + warmup;
        let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut reporters = JoinSet::new();
        for device in &devices {
            let mut twin = device.twin(0);
            let (stop, stored) = (stop.clone(), stored.clone());
            reporters.spawn(async move {
                let mut latencies = latencies();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let begun = Instant::now();
                    twin.report(&format!(r#"{{"reading":{n},"state":{{"on":true}}}}"#), None)
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
