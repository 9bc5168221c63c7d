//! A hub looked at again and again while it is loaded: its memory by the kernel's word, the rest by its own metrics.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::cpu::Memory;
use crate::hub::Hub;

const LOOKS_PER_SECOND: usize = 4;
const EVERY: Duration = Duration::from_millis(1000 / LOOKS_PER_SECOND as u64);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One look.
#[derive(Clone, Debug)]
pub struct Look {
    /// Since the start, seconds; negative before it.
    pub at: f64,
    pub memory: Memory,
    /// Messages that the bench has read.
    pub read: f64,
    metrics: String,
}

impl Look {
    /// The sum of a metric's samples with all of these labels, `name="value"`; 0 if there are none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.metrics.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let of_name = series.split('{').next() == Some(name);
            (of_name && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }
}

/// Looks until it is told to stop.
pub struct Watch {
    stop: oneshot::Sender<()>,
    looking: JoinHandle<anyhow::Result<Vec<Look>>>,
}

impl Watch {
    /// `read`: messages that the bench has read so far.
    ///
    /// # Errors
    /// The hub is elsewhere, or has no operations port.
    pub fn start(hub: &Hub, start: Instant, read: impl Fn() -> f64 + Send + Sync + 'static) -> anyhow::Result<Self> {
        let (pid, ops) = (hub.pid()?, hub.ops_address()?);
        let (stop, mut stopped) = oneshot::channel();
        let looking = tokio::spawn(async move {
            let mut looks = Vec::new();
            let mut tick = tokio::time::interval(EVERY);
            loop {
                tokio::select! {
                    _ = tick.tick() => looks.push(look(pid, ops, start, &read).await?),
                    _ = &mut stopped => return Ok(looks),
                }
            }
        });
        Ok(Self { stop, looking })
    }

    /// # Errors
    /// The hub was gone, or did not answer.
    pub async fn finish(self) -> anyhow::Result<Vec<Look>> {
        let _ = self.stop.send(());
        self.looking.await?
    }
}

async fn look(pid: u32, ops: SocketAddr, start: Instant, read: impl Fn() -> f64 + Sync) -> anyhow::Result<Look> {
    let metrics = tokio::time::timeout(ANSWER_TIMEOUT, scrape(ops))
        .await
        .context("the hub does not tell its metrics")??;
    let now = Instant::now();
    Ok(Look {
        at: now.saturating_duration_since(start).as_secs_f64() - start.saturating_duration_since(now).as_secs_f64(),
        memory: Memory::of(pid)?,
        read: read(),
        metrics,
    })
}

async fn scrape(ops: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(ops).await?;
    // HTTP/1.0: the end of the stream is the end of the body.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(
        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"),
        "no metrics: {answer:.40}"
    );
    Ok(answer)
}

/// How much a counter grew a second, over the second before each look: the hub itself looks at some of its counters only
/// twice in that time.
pub fn rate(looks: &[Look], value: impl Fn(&Look) -> f64) -> Vec<(f64, f64)> {
    let grown = |second: &[Look]| {
        let (first, last) = (&second[0], &second[second.len() - 1]);
        let seconds = (last.at - first.at).max(1e-3);
        (last.at, (value(last) - value(first)).max(0.0) / seconds)
    };
    let grown = looks.windows(LOOKS_PER_SECOND + 1).map(grown);
    grown.filter(|point| point.0 >= 0.0).collect()
}

/// A gauge over time.
pub fn level(looks: &[Look], value: impl Fn(&Look) -> f64) -> Vec<(f64, f64)> {
    let points = looks.iter().map(|look| (look.at, value(look)));
    points.filter(|point| point.0 >= 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: f64, count: u32) -> Look {
        Look {
            at,
            memory: Memory::default(),
            read: 0.0,
            metrics: format!(
                "# HELP a_total x\na_total{{door=\"quic\",x=\"1\"}} {count}\na_total{{door=\"mqtt\"}} 5\na_totals 100\nb 0.5\n"
            ),
        }
    }

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let look = at(0.0, 10);
        assert_eq!(look.metric("a_total", &[]), 15.0);
        assert_eq!(look.metric("a_total", &["door=\"quic\""]), 10.0);
        assert_eq!(look.metric("b", &[]), 0.5);
        assert_eq!(look.metric("c", &[]), 0.0);
    }

    #[test]
    fn rates_are_differences_over_time() {
        let looks: Vec<Look> = (-2..5)
            .map(|n: i32| at(f64::from(n) / 4.0, n.unsigned_abs().pow(2)))
            .collect();
        let grown = rate(&looks, |look| look.metric("a_total", &["door=\"quic\""]));
        assert_eq!(grown, [(0.5, 0.0), (0.75, 8.0), (1.0, 16.0)]);
        assert_eq!(level(&looks, |look| look.metric("b", &[])).len(), 5);
    }
}
