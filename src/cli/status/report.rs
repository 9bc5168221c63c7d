//! What a running hub does, computed from two looks at its metrics; as text for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::figures::{amount, duration, size, time_left};
use super::scrape::{Ready, Scrape, growth, quantile};
use crate::cli::lines::Visible;

/// `forebay status --json`. Rates are of the time between the two looks; members whose series the hub lacks are null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub address: String,
    pub state: String,
    /// Part to what is wrong with it; empty when the hub is ready.
    pub reasons: BTreeMap<String, String>,
    pub version: String,
    pub durability: String,
    pub uptime_seconds: f64,
    pub interval_seconds: f64,
    pub rates: Rates,
    pub ack_latency: Latency,
    /// Open sessions by kind: devices over any protocol, and services over QUIC.
    pub sessions: BTreeMap<String, f64>,
    /// Open connections by protocol, handshakes included.
    pub connections: BTreeMap<String, f64>,
    /// Consumer group to what it has not read yet.
    pub lag: BTreeMap<String, f64>,
    /// Cause to the share of the time for which sessions were not read; above 1 where several were not.
    pub backpressure: BTreeMap<String, f64>,
    /// Limit to what was delayed or refused in a second.
    pub throttled_per_second: BTreeMap<String, f64>,
    pub log: Log,
    /// Name to its end in seconds since 1970.
    pub certificates: BTreeMap<String, f64>,
    pub process: Process,
}

/// All in a second.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    pub accepted_messages: f64,
    pub accepted_bytes: f64,
    pub acknowledged_messages: f64,
    pub refused_messages: f64,
    pub delivered_messages: f64,
    pub delivered_bytes: f64,
    pub credentials_refused: f64,
    pub log_lines_suppressed: f64,
}

/// From the door to the acknowledgement, of the messages acknowledged between the two looks; null if there were none.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub messages: f64,
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Log {
    pub bytes: f64,
    pub partitions: usize,
    /// Cause to the partitions that refuse appends for it.
    pub refusing_partitions: BTreeMap<String, f64>,
    pub volume_free_bytes: Option<f64>,
    pub volume_size_bytes: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Process {
    pub cores_in_use: f64,
    pub resident_bytes: f64,
    pub anonymous_bytes: Option<f64>,
    pub memory_limit_bytes: Option<f64>,
    pub open_fds: f64,
    pub fds_limit: Option<f64>,
}

impl Report {
    /// `now`: seconds since 1970.
    pub fn of(address: String, ready: Ready, earlier: &Scrape, later: &Scrape, now: f64) -> Self {
        let interval = later.at.duration_since(earlier.at).as_secs_f64().max(1e-3);
        let sum = |name: &str| later.sum(name).unwrap_or(0.0);
        let rate = |name: &str| growth(earlier.sum(name).unwrap_or(0.0), sum(name)) / interval;
        let rates_by = |name: &str, label: &str| -> BTreeMap<String, f64> {
            let before = earlier.by(name, label);
            let rate = |(value, after): (String, f64)| {
                let before = before.get(&value).copied().unwrap_or(0.0);
                (value, growth(before, after) / interval)
            };
            later.by(name, label).into_iter().map(rate).collect()
        };
        let label = |label: &str| later.label("forebay_info", label).unwrap_or("unknown").to_owned();
        let connections = ["quic", "mqtt", "amqp"].into_iter().filter_map(|protocol| {
            let count = later.sum(&format!("forebay_{protocol}_connections"))?;
            Some((protocol.to_owned(), count))
        });
        Self {
            address,
            state: ready.state,
            reasons: ready.reasons,
            version: label("version"),
            durability: label("durability"),
            uptime_seconds: (now - sum("forebay_start_timestamp_seconds")).max(0.0),
            interval_seconds: interval,
            rates: Rates {
                accepted_messages: rate("forebay_messages_accepted_total"),
                accepted_bytes: rate("forebay_accepted_bytes_total"),
                acknowledged_messages: rate("forebay_messages_acknowledged_total"),
                refused_messages: rate("forebay_messages_refused_total"),
                delivered_messages: rate("forebay_messages_delivered_total"),
                delivered_bytes: rate("forebay_delivered_bytes_total"),
                credentials_refused: rate("forebay_credentials_refused_total"),
                log_lines_suppressed: rate("forebay_log_lines_suppressed_total"),
            },
            ack_latency: Latency::between(earlier, later),
            sessions: later.by("forebay_sessions", "kind"),
            connections: connections.collect(),
            lag: later.by("forebay_consumer_lag_messages", "group"),
            backpressure: rates_by("forebay_backpressure_seconds_total", "cause"),
            throttled_per_second: rates_by("forebay_throttled_total", "limit"),
            log: Log {
                bytes: sum("forebay_log_bytes"),
                partitions: later.by("forebay_log_bytes", "partition").len(),
                refusing_partitions: later.by("forebay_log_refusing_partitions", "cause"),
                volume_free_bytes: later.sum("forebay_data_volume_free_bytes"),
                volume_size_bytes: later.sum("forebay_data_volume_size_bytes"),
            },
            certificates: later.by("forebay_certificate_expiry_timestamp_seconds", "certificate"),
            process: Process {
                cores_in_use: rate("forebay_process_cpu_seconds_total"),
                resident_bytes: sum("forebay_process_resident_bytes"),
                anonymous_bytes: later.sum("forebay_process_anonymous_bytes"),
                memory_limit_bytes: later.sum("forebay_process_memory_limit_bytes"),
                open_fds: sum("forebay_process_open_fds"),
                fds_limit: later.sum("forebay_process_fds_limit"),
            },
        }
    }

    pub fn is_ready(&self) -> bool {
        self.state == "ready" && self.reasons.is_empty()
    }

    /// The report for people; `now` in seconds since 1970.
    pub fn text(&self, now: f64) -> String {
        Text { report: self, now }.to_string()
    }
}

impl Latency {
    fn between(earlier: &Scrape, later: &Scrape) -> Self {
        const SERIES: (&str, (&str, &str)) = ("forebay_ack_latency_seconds", ("stage", "total"));
        let before = earlier.buckets(SERIES.0, SERIES.1);
        let mut buckets = later.buckets(SERIES.0, SERIES.1);
        if before.len() == buckets.len() {
            for ((_, count), (_, before)) in buckets.iter_mut().zip(before) {
                *count = growth(before, *count);
            }
        }
        Self {
            messages: buckets.iter().map(|(_, count)| count).sum(),
            p50_seconds: quantile(&buckets, 0.5),
            p99_seconds: quantile(&buckets, 0.99),
        }
    }
}

struct Text<'a> {
    report: &'a Report,
    now: f64,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.report;
        let seconds = |value: f64| std::time::Duration::try_from_secs_f64(value).unwrap_or_default();
        let bytes = |value: f64| size(crate::config::Bytes(value as u64));
        write!(f, "Forebay {} at {}: ", r.version, r.address)?;
        match (r.is_ready(), &*r.state) {
            (false, "ready") => write!(f, "NOT READY")?,
            (_, state) => write!(f, "{state}")?,
        }
        writeln!(
            f,
            ", up {}, durability {}",
            time_left(r.uptime_seconds as i64),
            r.durability
        )?;
        for (part, reason) in &r.reasons {
            writeln!(f, "  ! {}: {}", Visible(part), Visible(reason))?;
        }
        let rates = &r.rates;
        writeln!(
            f,
            "  messages     {}/s in ({}/s), {}/s acknowledged, {}/s refused; {}/s to consumers ({}/s)",
            amount(rates.accepted_messages),
            bytes(rates.accepted_bytes),
            amount(rates.acknowledged_messages),
            amount(rates.refused_messages),
            amount(rates.delivered_messages),
            bytes(rates.delivered_bytes),
        )?;
        match (r.ack_latency.p50_seconds, r.ack_latency.p99_seconds) {
            (Some(p50), Some(p99)) => writeln!(
                f,
                "  latency      acknowledged in {} (p50), {} (p99)",
                duration(seconds(p50)),
                duration(seconds(p99))
            )?,
            _ => writeln!(f, "  latency      nothing was acknowledged meanwhile")?,
        }
        let counts = |map: &BTreeMap<String, f64>| -> String {
            let counts = map
                .iter()
                .map(|(name, count)| format!("{} {}", amount(*count), Visible(name)));
            counts.collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "  sessions     {}; connections: {}",
            counts(&r.sessions),
            counts(&r.connections)
        )?;
        let lag = r
            .lag
            .iter()
            .map(|(group, lag)| format!("{} {}", Visible(group), amount(*lag)));
        writeln!(f, "  lag          {}", or(lag, "nobody has read"))?;
        let pressure = r.backpressure.iter().filter(|(_, share)| **share > 0.0);
        let pressure = pressure.map(|(cause, share)| format!("{} {:.0} % of the time", Visible(cause), share * 100.0));
        writeln!(f, "  pressure     {}", or(pressure, "none"))?;
        let throttled = r.throttled_per_second.iter().filter(|(_, rate)| **rate > 0.0);
        let throttled = throttled.map(|(limit, rate)| format!("{} {}/s", Visible(limit), amount(*rate)));
        writeln!(f, "  throttled    {}", or(throttled, "none"))?;
        let refusing = r.log.refusing_partitions.iter().filter(|(_, count)| **count > 0.0);
        let refusing = refusing.map(|(cause, count)| format!("{count} refusing ({})", Visible(cause)));
        writeln!(
            f,
            "  log          {} in {} partitions, {}",
            bytes(r.log.bytes),
            r.log.partitions,
            or(refusing, "none refusing")
        )?;
        if let (Some(free), Some(all)) = (r.log.volume_free_bytes, r.log.volume_size_bytes) {
            let share = if all > 0.0 { free / all * 100.0 } else { 0.0 };
            writeln!(
                f,
                "  disk         {} free of {} ({share:.0} %)",
                bytes(free),
                bytes(all)
            )?;
        }
        for (name, at) in &r.certificates {
            let left = (at - self.now) as i64;
            let end = jiff::Timestamp::from_second(*at as i64).map_or_else(|_| at.to_string(), |at| at.to_string());
            if left >= 0 {
                writeln!(
                    f,
                    "  certificate  {} expires in {} ({end})",
                    Visible(name),
                    time_left(left)
                )?;
            } else {
                writeln!(
                    f,
                    "  certificate  {} EXPIRED {} ago ({end})",
                    Visible(name),
                    time_left(-left)
                )?;
            }
        }
        let p = &r.process;
        write!(
            f,
            "  process      {:.2} cores, {} resident",
            p.cores_in_use,
            bytes(p.resident_bytes)
        )?;
        if let Some(anonymous) = p.anonymous_bytes {
            write!(f, ", {} its own", bytes(anonymous))?;
        }
        if let Some(limit) = p.memory_limit_bytes {
            write!(f, " (limit {})", bytes(limit))?;
        }
        write!(f, "; {} files", p.open_fds)?;
        if let Some(limit) = p.fds_limit {
            write!(f, " of {limit}")?;
        }
        writeln!(f)?;
        let refused = [
            ("credentials refused", rates.credentials_refused),
            ("log lines left out", rates.log_lines_suppressed),
        ];
        for (what, rate) in refused.into_iter().filter(|(_, rate)| *rate > 0.0) {
            writeln!(f, "  ! {what}: {}/s", amount(rate))?;
        }
        Ok(())
    }
}

fn or(items: impl Iterator<Item = String>, none: &str) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        none.to_owned()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn scrape(accepted: u64, fast: u64, at: Instant) -> Scrape {
        let all = fast + 1;
        let text = format!(
            "forebay_info{{version=\"1.2.3\",durability=\"sync\"}} 1\nforebay_start_timestamp_seconds 1000\n\
             forebay_messages_accepted_total {accepted}\nforebay_accepted_bytes_total {}\n\
             forebay_ack_latency_seconds_bucket{{stage=\"total\",le=\"0.001\"}} {fast}\n\
             forebay_ack_latency_seconds_bucket{{stage=\"total\",le=\"1\"}} {all}\n\
             forebay_ack_latency_seconds_bucket{{stage=\"total\",le=\"+Inf\"}} {all}\n\
             forebay_sessions{{kind=\"device\"}} 3\nforebay_mqtt_connections{{transport=\"tls\"}} 2\n\
             forebay_mqtt_connections{{transport=\"websocket\"}} 1\n\
             forebay_consumer_lag_messages{{group=\"a\\u{{1b}}\",partition=\"0\"}} 5\n\
             forebay_consumer_lag_messages{{group=\"$Default\",partition=\"1\"}} 12000\n\
             forebay_backpressure_seconds_total{{cause=\"disk_full\"}} {}\n\
             forebay_log_bytes{{partition=\"0\"}} 1048576\nforebay_log_bytes{{partition=\"1\"}} 0\n\
             forebay_log_refusing_partitions{{cause=\"poisoned\"}} 1\n\
             forebay_certificate_expiry_timestamp_seconds{{certificate=\"server\"}} 100\n",
            accepted * 100,
            accepted as f64 / 2000.0,
        );
        Scrape::read(&text, at)
    }

    fn report(reasons: &[(&str, &str)]) -> Report {
        let start = Instant::now();
        let ready = Ready {
            state: "ready".to_owned(),
            reasons: reasons
                .iter()
                .map(|(part, why)| ((*part).to_owned(), (*why).to_owned()))
                .collect(),
        };
        let (earlier, later) = (
            scrape(1_000, 10, start),
            scrape(3_000, 109, start + Duration::from_secs(2)),
        );
        Report::of("127.0.0.1:9600".to_owned(), ready, &earlier, &later, 5_000.0)
    }

    #[test]
    fn rates_and_quantiles_are_of_the_time_between() {
        let report = report(&[]);
        assert!(report.is_ready());
        assert_eq!(
            (report.rates.accepted_messages, report.rates.accepted_bytes),
            (1_000.0, 100_000.0)
        );
        assert_eq!(report.ack_latency.messages, 99.0);
        assert!(report.ack_latency.p50_seconds.unwrap() < 0.001);
        assert_eq!(report.uptime_seconds, 4_000.0);
        assert_eq!(report.connections["mqtt"], 3.0);
        assert_eq!(report.lag["$Default"], 12_000.0);
        assert_eq!(report.backpressure["disk_full"], 0.5);
        let text = report.text(5_000.0);
        for part in [
            "Forebay 1.2.3 at 127.0.0.1:9600: ready, up 1h 6m, durability sync\n",
            "1000/s in (97.7 KiB/s)",
            "3 device; connections: 3 mqtt",
            "$Default 12.0k",
            "disk_full 50 % of the time",
            "1.0 MiB in 2 partitions, 1 refusing (poisoned)",
            "server EXPIRED 1h 21m ago (1970-01-01T00:01:40Z)",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rates"]["accepted_messages"], 1_000.0);
        assert!(json["process"]["anonymous_bytes"].is_null());
    }

    #[test]
    fn what_keeps_a_hub_from_being_ready_stands_first() {
        let report = report(&[("partition 3", "closed after an I/O error")]);
        assert!(!report.is_ready());
        let text = report.text(5_000.0);
        let mut lines = text.lines();
        assert!(lines.next().unwrap().contains("NOT READY"), "{text}");
        assert_eq!(lines.next(), Some("  ! partition 3: closed after an I/O error"));
    }
}
