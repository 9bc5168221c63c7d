//! What the operations port of a running hub says: its metrics as numbers, and whether it is ready.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;

const TIMEOUT: Duration = Duration::from_secs(5);
/// More than a hub with the most partitions and groups says.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// `/readyz`.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    pub state: String,
    /// Part to what is wrong with it.
    pub reasons: BTreeMap<String, String>,
}

/// Asks whether a hub is ready.
///
/// # Errors
/// Nobody answers, or not as a hub does.
pub fn ready(ops: SocketAddr) -> anyhow::Result<Ready> {
    let body = get(ops, "/readyz")?;
    serde_json::from_str(&body).with_context(|| format!("http://{ops}/readyz is not a hub's answer"))
}

/// The metrics at one time.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub at: Instant,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Scrape {
    /// # Errors
    /// Nobody answers, or not as a hub does.
    pub fn take(ops: SocketAddr) -> anyhow::Result<Self> {
        let text = get(ops, "/metrics")?;
        let at = Instant::now();
        let scrape = Self::read(&text, at);
        if scrape.each("forebay_info").next().is_none() {
            bail!("http://{ops}/metrics is not a hub's: it has no forebay_info");
        }
        Ok(scrape)
    }

    /// Lines that are no samples are passed over.
    pub fn read(text: &str, at: Instant) -> Self {
        let samples = text.lines().filter_map(sample).collect();
        Self { at, samples }
    }

    fn each<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// Over all labels; `None` if the hub has no such series.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.each(name)
            .map(|sample| sample.value)
            .reduce(|sum, value| sum + value)
    }

    /// By one label, summed over the others, in the label's order.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.each(name) {
            if let Some(value) = sample.label(label) {
                *sums.entry(value.to_owned()).or_default() += sample.value;
            }
        }
        sums
    }

    /// The value of a label of a series that has one sample.
    pub fn label<'a>(&'a self, name: &'a str, label: &str) -> Option<&'a str> {
        self.each(name).next()?.label(label)
    }

    /// Upper ends and counts, each of its own bucket, of a histogram's samples with this label.
    pub fn buckets(&self, name: &str, label: (&str, &str)) -> Vec<(f64, f64)> {
        let buckets = format!("{name}_bucket");
        let mut ends: Vec<(f64, f64)> = self
            .each(&buckets)
            .filter(|sample| sample.label(label.0) == Some(label.1))
            .filter_map(|sample| Some((sample.label("le")?.parse().ok()?, sample.value)))
            .collect();
        ends.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut below = 0.0;
        for (_, count) in &mut ends {
            let upto = *count;
            *count -= below;
            below = upto;
        }
        ends
    }
}

/// What grew between two scrapes; a counter that went back began anew with its process.
pub fn growth(earlier: f64, later: f64) -> f64 {
    if later >= earlier { later - earlier } else { later }
}

/// A quantile of buckets, as Prometheus computes it: evenly spread within a bucket, and the last finite end for what is
/// above all of them. `None` without counts.
pub fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let total: f64 = buckets.iter().map(|(_, count)| count).sum();
    if total <= 0.0 {
        return None;
    }
    let (wanted, mut seen, mut start) = (q * total, 0.0, 0.0);
    for &(end, count) in buckets {
        if seen + count >= wanted && count > 0.0 {
            let within = if end.is_finite() { end - start } else { 0.0 };
            return Some(start + within * (wanted - seen) / count);
        }
        seen += count;
        if end.is_finite() {
            start = end;
        }
    }
    Some(start)
}

/// One line of Prometheus' text format 0.0.4: `name{label="value",...} number`.
fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, value) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, behind) = unescaped(value)?;
            labels.push((label.to_owned(), value));
            rest = behind;
        }
        rest = &rest[1..];
    }
    let value = rest.split_ascii_whitespace().next()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: match value {
            "+Inf" => f64::INFINITY,
            value => value.parse().ok()?,
        },
    })
}

/// A label's value up to its closing quote, and what stands behind that.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// The body of an answer, whatever its status.
fn get(ops: SocketAddr, path: &str) -> anyhow::Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&ops, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // HTTP/1.0: no chunks, and the end of the stream is the end of the body.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {ops}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(|| format!("no hub answers on http://{ops} (the operations port)"))?;
    let Some((_, body)) = answer.split_once("\r\n\r\n") else {
        bail!("http://{ops}{path} does not answer as a hub does");
    };
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total Words.\n# TYPE a_total counter\na_total 3\nb{kind=\"x\",path=\"a\\\\b\\\"c\\nd\"} 1.5\n\
        b{kind=\"y\",path=\"\"} 2\nb{kind=\"x\",path=\"z\"} 1e3\nh_bucket{stage=\"total\",le=\"0.1\"} 2\n\
        h_bucket{stage=\"total\",le=\"+Inf\"} 10\nh_bucket{stage=\"total\",le=\"1\"} 6\nh_bucket{stage=\"door\",le=\"1\"} 9\n\
        broken{a=\"b 1\nnothing\n";

    #[test]
    fn samples_are_found_by_name_and_label() {
        let scrape = Scrape::read(TEXT, Instant::now());
        assert_eq!(scrape.sum("a_total"), Some(3.0));
        assert_eq!(scrape.sum("b"), Some(1003.5));
        assert_eq!(scrape.sum("broken"), None);
        let by_kind: Vec<_> = scrape.by("b", "kind").into_iter().collect();
        assert_eq!(by_kind, [("x".to_owned(), 1001.5), ("y".to_owned(), 2.0)]);
        assert_eq!(scrape.label("b", "path"), Some("a\\b\"c\nd"));
        let buckets = scrape.buckets("h", ("stage", "total"));
        assert_eq!(buckets, [(0.1, 2.0), (1.0, 4.0), (f64::INFINITY, 4.0)]);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets = [(0.1, 2.0), (1.0, 4.0), (f64::INFINITY, 4.0)];
        for (q, expected) in [(0.1, 0.05), (0.2, 0.1), (0.4, 0.55), (0.6, 1.0), (0.99, 1.0)] {
            let found = quantile(&buckets, q).unwrap();
            assert!((found - expected).abs() < 1e-9, "{q}: {found}");
        }
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!((growth(3.0, 5.0), growth(5.0, 3.0)), (2.0, 3.0));
    }
}
