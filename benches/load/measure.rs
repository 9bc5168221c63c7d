//! What is read before and after a stretch of work, and the figures that follow from it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::cpu::Usage;
use crate::hub::Hub;
use crate::report::Figure;

/// Latencies in microseconds: three digits, up to ten minutes.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order")
}

/// # Errors
/// The latency is beyond ten minutes.
pub fn record(into: &mut Histogram<u64>, latency: Duration, count: u64) -> anyhow::Result<()> {
    Ok(into.record_n((latency.as_micros() as u64).max(1), count)?)
}

/// One moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    at: Instant,
    server: Usage,
    client: Usage,
}

impl Mark {
    /// # Errors
    /// The hub is gone.
    pub fn now(hub: &Hub) -> anyhow::Result<Self> {
        Self::taken(hub.pid().ok())
    }

    /// With another process as the server.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(server: u32) -> anyhow::Result<Self> {
        Self::taken(Some(server))
    }

    fn taken(server: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            server: server.map_or(Ok(Usage::UNKNOWN), Usage::of)?,
            client: Usage::of(std::process::id())?,
        })
    }

    pub fn until(self, later: Self) -> Stretch {
        Stretch {
            seconds: (later.at - self.at).as_secs_f64(),
            server: later.server.since(self.server),
            client: later.client.since(self.client),
        }
    }
}

/// The time between two marks and the CPU that went into it.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub seconds: f64,
    pub server: Usage,
    pub client: Usage,
}

impl Stretch {
    /// Cost and rate of messages whose bodies have this many bytes.
    pub fn of_messages(&self, messages: u64, body_bytes: usize) -> Vec<Figure> {
        let millions = messages as f64 / 1e6;
        let rate = messages as f64 / self.seconds;
        vec![
            Figure::new("server_cpu_s_per_million", self.server.total() / millions, "s"),
            Figure::new("server_user_s_per_million", self.server.user / millions, "s"),
            Figure::new("server_system_s_per_million", self.server.system / millions, "s"),
            Figure::new("messages_per_s", rate, "1/s"),
            Figure::new("body_mb_per_s", rate * body_bytes as f64 / 1e6, "MB/s"),
            Figure::new("server_cores", self.server.total() / self.seconds, ""),
            Figure::new("client_cpu_s_per_million", self.client.total() / millions, "s"),
        ]
    }
}

/// The percentiles that the figures name.
pub fn percentiles(latencies: &Histogram<u64>) -> Vec<Figure> {
    let at = |name, quantile| Figure::new(name, latencies.value_at_quantile(quantile) as f64, "us");
    vec![
        at("latency_p50", 0.5),
        at("latency_p99", 0.99),
        at("latency_p99_9", 0.999),
        Figure::new("latency_max", latencies.max() as f64, "us"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_cpu_over_millions() {
        let stretch = Stretch {
            seconds: 2.0,
            server: Usage { user: 1.0, system: 0.5 },
            client: Usage::default(),
        };
        let figures = stretch.of_messages(3_000_000, 100);
        let value = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert!((value("server_cpu_s_per_million") - 0.5).abs() < 1e-9);
        assert!((value("messages_per_s") - 1.5e6).abs() < 1e-3);
        assert!((value("body_mb_per_s") - 150.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_weigh_by_count() {
        let mut histogram = latencies();
        record(&mut histogram, Duration::from_micros(100), 990).unwrap();
        record(&mut histogram, Duration::from_millis(5), 10).unwrap();
        let figures = percentiles(&histogram);
        assert_eq!(figures[0].value, 100.0);
        assert_eq!(figures[1].value, 100.0);
        assert!((4_900.0..5_100.0).contains(&figures[2].value));
    }
}
