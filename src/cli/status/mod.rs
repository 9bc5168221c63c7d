//! What a hub does: `forebay status` for one that runs anywhere, and the line that `forebay dev` draws.

mod figures;
mod line;
mod report;
mod scrape;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;

use super::endpoints::Endpoints;
pub(super) use figures::{size, time_left};
pub use line::{Status, StatusLine};
pub use report::Report;
use scrape::Scrape;

/// Looks at the metrics twice, so that rates and latencies are of this moment. Ends with 1 if the hub cannot be reached or
/// is not ready.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Data folder of a hub that `forebay dev` runs on this machine
    #[arg(long, value_name = "DIR", default_value = "forebay-data", conflicts_with = "ops")]
    pub hub: PathBuf,
    /// Operations port of a hub anywhere, as host:port
    #[arg(long, value_name = "ADDRESS")]
    pub ops: Option<String>,
    /// Seconds between the two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval)]
    pub interval: f64,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "wanted are 0.1 to 3600 seconds".to_owned())
}

impl StatusArgs {
    /// # Errors
    /// No hub answers, or it is not ready.
    pub fn run(self) -> anyhow::Result<()> {
        let ops = self.address()?;
        let earlier = Scrape::take(ops)?;
        std::thread::sleep(Duration::from_secs_f64(self.interval));
        let (later, ready) = (Scrape::take(ops)?, scrape::ready(ops)?);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.unwrap_or_default().as_secs_f64();
        let report = Report::of(ops.to_string(), ready, &earlier, &later, now);
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            out.write_all(report.text(now).as_bytes())?;
        }
        out.flush()?;
        if !report.is_ready() {
            bail!("the hub is not ready");
        }
        Ok(())
    }

    fn address(&self) -> anyhow::Result<SocketAddr> {
        let Some(ops) = &self.ops else {
            let endpoints = Endpoints::read(&self.hub)
                .context("no hub of `forebay dev` was found; --ops names the operations port of another")?;
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, endpoints.ops_port)));
        };
        let mut addresses = ops.to_socket_addrs().with_context(|| format!("--ops {ops}"))?;
        addresses.next().with_context(|| format!("--ops {ops} has no address"))
    }
}
