//! Results: a table for people, JSON for machines, the latency distribution as text.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::measure;

/// One number of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

impl Figure {
    pub fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit }
    }
}

/// What one run measured; every run of a report has the same figures.
#[derive(Debug, Default)]
pub struct Run {
    pub figures: Vec<Figure>,
    /// Microseconds.
    pub latencies: Option<Histogram<u64>>,
}

/// All runs of one scenario at one durability level.
#[derive(Debug)]
pub struct Report {
    scenario: &'static str,
    parameters: Value,
    durability: String,
    settings: Vec<String>,
    runs: Vec<Run>,
}

impl Report {
    pub fn new(scenario: &'static str, parameters: Value, durability: &str, settings: &[String]) -> Self {
        Self {
            scenario,
            parameters,
            durability: durability.to_owned(),
            settings: settings.to_owned(),
            runs: Vec::new(),
        }
    }

    /// Figures that could not be measured, such as the CPU of a hub elsewhere, are not numbers and are left out.
    pub fn add(&mut self, mut run: Run) {
        run.figures.retain(|figure| !figure.value.is_nan());
        self.runs.push(run);
    }

    /// Each figure with its values over the runs, in ascending order.
    fn spread(&self) -> Vec<(Figure, Vec<f64>)> {
        let Some(first) = self.runs.first() else {
            return Vec::new();
        };
        let values = |name: &str| {
            let figures = self.runs.iter().flat_map(|run| &run.figures);
            let mut values: Vec<f64> = figures.filter(|figure| figure.name == name).map(|f| f.value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        first
            .figures
            .iter()
            .map(|figure| (*figure, values(figure.name)))
            .collect()
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{}, durability {}, {} run{}\n{}\n",
            self.scenario,
            self.durability,
            self.runs.len(),
            if self.runs.len() == 1 {
                ""
            } else {
                "s: median (least - most)"
            },
            members(&self.parameters),
        );
        if !self.settings.is_empty() {
            let _ = writeln!(text, "hub: {}", self.settings.join(", "));
        }
        let machine = machine();
        let _ = writeln!(text, "machine: {}\n", members(&machine));
        for (figure, values) in self.spread() {
            let _ = write!(
                text,
                "  {:<30} {:>12} {:<4}",
                figure.name,
                number(median(&values)),
                figure.unit
            );
            if let [least, .., most] = values[..] {
                let _ = write!(text, " ({} - {})", number(least), number(most));
            }
            let end = text.trim_end().len();
            text.truncate(end);
            text.push('\n');
        }
        text
    }

    pub fn json(&self) -> Value {
        let figures: Map<String, Value> = self
            .spread()
            .into_iter()
            .map(|(figure, values)| {
                let of_runs = json!({
                    "unit": figure.unit,
                    "median": median(&values),
                    "min": values.first(),
                    "max": values.last(),
                });
                (figure.name.to_owned(), of_runs)
            })
            .collect();
        let run = |run: &Run| -> Value {
            let figures = run
                .figures
                .iter()
                .map(|figure| (figure.name.to_owned(), json!(figure.value)));
            Value::Object(figures.collect())
        };
        json!({
            "scenario": self.scenario,
            "durability": self.durability,
            "parameters": self.parameters,
            "hub_settings": self.settings,
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine(),
            "figures": figures,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }

    /// The distribution of all runs together, in the text form that HdrHistogram's plotters read; milliseconds.
    ///
    /// # Errors
    /// The file cannot be written, or the scenario has no latencies.
    pub fn write_hdr(&self, file: &Path) -> anyhow::Result<()> {
        let mut all = measure::latencies();
        for run in &self.runs {
            let latencies = run.latencies.as_ref();
            all.add(latencies.with_context(|| format!("{} measures no latencies", self.scenario))?)?;
        }
        let head = format!("#[{}, durability {}]\n", self.scenario, self.durability);
        fs::write(file, head + &distribution(&all)).with_context(|| file.display().to_string())
    }
}

fn distribution(latencies: &Histogram<u64>) -> String {
    const MICROSECONDS_PER_VALUE: f64 = 1000.0;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for step in latencies.iter_quantiles(5) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / MICROSECONDS_PER_VALUE;
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {quantile:2.12} {count:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let milliseconds = |value: f64| value / MICROSECONDS_PER_VALUE;
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        milliseconds(latencies.mean()),
        milliseconds(latencies.stdev())
    );
    let _ = writeln!(
        text,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        milliseconds(latencies.max() as f64),
        latencies.len()
    );
    let _ = writeln!(
        text,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        latencies.buckets(),
        latencies.distinct_values() / usize::from(latencies.buckets())
    );
    text
}

fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": model.map_or("unknown", |(_, model)| model),
        "kernel": kernel.trim(),
    })
}

fn members(object: &Value) -> String {
    let object = object.as_object().into_iter().flatten();
    let shown = object
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            value => format!("{name} {value}"),
        });
    shown.collect::<Vec<_>>().join(", ")
}

/// Of values in ascending order; the mean of the middle two when their number is even.
fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    match values {
        [] => f64::NAN,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Three digits that matter, thousands apart.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let decimals = if value == value.trunc() { 0 } else { 3 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[f64]) -> Report {
        let mut report = Report::new("ingest", json!({ "devices": 64 }), "sync", &[]);
        for value in values {
            report.add(Run {
                figures: vec![Figure::new("messages_per_s", *value, "1/s")],
                latencies: None,
            });
        }
        report
    }

    #[test]
    fn runs_are_reported_as_median_and_spread_with_the_durability_level() {
        let report = report(&[3.0, 1.0, 2_000_000.0]);
        let json = report.json();
        assert_eq!(json["durability"], "sync");
        assert_eq!(json["figures"]["messages_per_s"]["median"], 3.0);
        assert_eq!(json["figures"]["messages_per_s"]["max"], 2_000_000.0);
        assert_eq!(json["runs"].as_array().unwrap().len(), 3);
        let text = report.text();
        assert!(text.starts_with("ingest, durability sync, 3 runs"), "{text}");
        assert!(text.contains("(1 - 2,000,000)"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_reported() {
        let report = report(&[f64::NAN]);
        assert_eq!(report.json()["figures"], json!({}));
        assert!(!report.text().contains("messages_per_s"));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.1234, "0.123"),
            (7.0, "7"),
            (1234.5, "1,234"),
            (1e6, "1,000,000"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn the_distribution_ends_with_everything() {
        let mut latencies = measure::latencies();
        for micros in 1..=1000 {
            latencies.record(micros).unwrap();
        }
        let text = distribution(&latencies);
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(fields, ["1.000", "1.000000000000", "1000"]);
        assert!(text.contains("Total count    =         1000"), "{text}");
    }
}
