//! How one value is read from TOML or text, written back, and held inside its range.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value as it came in: typed from the file, plain text from the environment and from flags.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    Toml(&'a toml::Value),
    Text(&'a str),
}

/// A type that a key can have. Errors are half sentences that follow the key's name.
pub trait Setting: Sized {
    fn read(raw: Raw<'_>) -> Result<Self, String>;
    /// The value as it would stand in the file.
    fn write(&self) -> String;
}

/// What a key accepts, both ends included.
#[derive(Clone, Debug)]
pub enum Range<T> {
    Any,
    Between(T, T),
}

impl<T: Setting + PartialOrd> Range<T> {
    pub fn contains(&self, value: &T) -> bool {
        match self {
            Self::Any => true,
            Self::Between(min, max) => min <= value && value <= max,
        }
    }

    /// Smallest and largest value as they would stand in the file.
    pub fn ends(&self) -> Option<(String, String)> {
        match self {
            Self::Any => None,
            Self::Between(min, max) => Some((min.write(), max.write())),
        }
    }
}

fn text<'a>(raw: Raw<'a>, wanted: &str) -> Result<&'a str, String> {
    match raw {
        Raw::Text(text) => Ok(text),
        Raw::Toml(toml::Value::String(text)) => Ok(text),
        Raw::Toml(other) => Err(format!("is a {}, wanted is {wanted}", other.type_str())),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

macro_rules! integer_setting {
    ($($integer:ty),*) => {$(
        impl Setting for $integer {
            fn read(raw: Raw<'_>) -> Result<Self, String> {
                let wrong = |value: &dyn fmt::Display| {
                    format!("is {value}, wanted is a whole number from {} to {}", <$integer>::MIN, <$integer>::MAX)
                };
                match raw {
                    Raw::Toml(toml::Value::Integer(integer)) => Self::try_from(*integer).map_err(|_| wrong(integer)),
                    Raw::Toml(other) => Err(format!("is a {}, wanted is a whole number", other.type_str())),
                    Raw::Text(text) => text.trim().parse().map_err(|_| wrong(&format_args!("{text:?}"))),
                }
            }
            fn write(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

integer_setting!(u16, u32);

/// A size. Written as an integer of bytes or as `"64KiB"`, `"256MiB"`, `"1GiB"`, `"2TiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let factor = match unit {
            "" => Some(1),
            unit => BYTE_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| *factor),
        };
        let bytes = number
            .parse()
            .ok()
            .zip(factor)
            .and_then(|(n, factor): (u64, u64)| n.checked_mul(factor));
        bytes
            .map(Self)
            .ok_or_else(|| format!("is {text:?}, wanted are bytes such as 65536 or \"64KiB\" (B, KiB, MiB, GiB, TiB)"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: u64| self.0 >= unit && self.0.is_multiple_of(unit);
        match BYTE_UNITS.iter().find(|(_, unit)| fits(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Setting for Bytes {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Toml(toml::Value::Integer(integer)) => u64::try_from(*integer)
                .map(Self)
                .map_err(|_| format!("is {integer}, wanted are bytes, 0 or more")),
            other => text(other, "an integer of bytes or a text such as \"64MiB\"")?
                .trim()
                .parse(),
        }
    }

    fn write(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        Self::read(Raw::Toml(&value)).map_err(serde::de::Error::custom)
    }
}

/// Number and unit of "64MiB" or "10ms"; blanks between them are allowed.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

const DURATION_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Reads "10ms", "30s", "5m", "1h", "7d".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text.trim());
    let factor = DURATION_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, micros)| *micros);
    let micros = number
        .parse()
        .ok()
        .zip(factor)
        .and_then(|(n, micros): (u64, u64)| n.checked_mul(micros));
    micros
        .map(Duration::from_micros)
        .ok_or_else(|| format!("is {text:?}, wanted is a duration such as \"10ms\", \"30s\", \"5m\", \"1h\" or \"7d\""))
}

pub fn duration_text(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let fits = |unit: u64| micros >= unit && micros.is_multiple_of(unit);
    match DURATION_UNITS.iter().find(|(_, unit)| fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", micros / unit),
        None => "0ms".to_owned(),
    }
}

impl Setting for Duration {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        parse_duration(text(raw, "a text such as \"30s\"")?)
    }

    fn write(&self) -> String {
        quoted(&duration_text(*self))
    }
}

/// When an append counts as stored, and is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Durability {
    /// After the disk said so. Survives power loss.
    Sync,
    /// At once; the disk is told this often. Power loss may cost the last interval.
    Interval(Duration),
    /// At once; the kernel writes when it likes. Survives a crash of the process only.
    Os,
}

impl Durability {
    const INTERVAL_MIN: Duration = Duration::from_millis(1);
    const INTERVAL_MAX: Duration = Duration::from_secs(60);

    /// Label of metrics and benchmark lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Interval(_) => "interval",
            Self::Os => "os",
        }
    }

    fn interval(text: &str) -> Result<Self, String> {
        let interval = parse_duration(text)?;
        if !(Self::INTERVAL_MIN..=Self::INTERVAL_MAX).contains(&interval) {
            return Err(format!("has the interval {text:?}, allowed are \"1ms\" to \"1m\""));
        }
        Ok(Self::Interval(interval))
    }
}

impl Setting for Durability {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        const WANTED: &str = "\"sync\", \"os\" or { interval = \"10ms\" }";
        if let Raw::Toml(toml::Value::Table(table)) = raw {
            return match (table.get("interval"), table.len()) {
                (Some(toml::Value::String(interval)), 1) => Self::interval(interval),
                _ => Err(format!("is a table of another shape, wanted is {WANTED}")),
            };
        }
        match text(raw, WANTED)?.trim() {
            "sync" => Ok(Self::Sync),
            "os" => Ok(Self::Os),
            other => match other.strip_prefix("interval=") {
                Some(interval) => Self::interval(interval),
                None => Err(format!("is {other:?}, wanted is {WANTED}")),
            },
        }
    }

    fn write(&self) -> String {
        match self {
            Self::Sync | Self::Os => quoted(self.name()),
            Self::Interval(interval) => format!("{{ interval = {} }}", interval.write()),
        }
    }
}

impl Setting for SocketAddr {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let text = text(raw, "an address such as \"0.0.0.0:8883\"")?;
        text.trim()
            .parse()
            .map_err(|_| format!("is {text:?}, wanted is address:port such as \"0.0.0.0:8883\" or \"[::]:8883\""))
    }

    fn write(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Setting for PathBuf {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match text(raw, "a path")? {
            "" => Err("is empty, wanted is a path".to_owned()),
            path => Ok(path.into()),
        }
    }

    fn write(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

/// An optional value is written as an empty text when there is none.
impl<T: Setting> Setting for Option<T> {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Text("") => Ok(None),
            Raw::Toml(toml::Value::String(text)) if text.is_empty() => Ok(None),
            other => T::read(other).map(Some),
        }
    }

    fn write(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), Setting::write)
    }
}

/// A list is an array in the file, and comma-separated in the environment and in flags.
impl<T: Setting> Setting for Vec<T> {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw {
            Raw::Toml(toml::Value::Array(items)) => items.iter().map(|item| T::read(Raw::Toml(item))).collect(),
            Raw::Toml(other) => Err(format!("is a {}, wanted is an array", other.type_str())),
            Raw::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| T::read(Raw::Text(item))).collect()
            }
        }
    }

    fn write(&self) -> String {
        let items: Vec<_> = self.iter().map(Setting::write).collect();
        format!("[{}]", items.join(", "))
    }
}

/// A name clients may call the hub by: a DNS name or an address, kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub struct Host(pub String);

impl Setting for Host {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let name = text(raw, "a host name")?.trim().to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // RFC 1123 s2.1
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        if is_name || name.parse::<IpAddr>().is_ok() {
            Ok(Self(name))
        } else {
            Err(format!(
                "is {name:?}, wanted is a host name such as \"hub.example.net\""
            ))
        }
    }

    fn write(&self) -> String {
        quoted(&self.0)
    }
}

/// A filter of log lines in the form of `tracing`: `info`, or `warn,forebay::log=debug`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub struct LogFilter(pub String);

impl Setting for LogFilter {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let filter = text(raw, "a filter such as \"info\"")?.trim();
        match tracing_subscriber::EnvFilter::try_new(filter) {
            Ok(_) if !filter.is_empty() => Ok(Self(filter.to_owned())),
            _ => Err(format!(
                "is {filter:?}, wanted is error, warn, info, debug, trace or a filter such as \"info,forebay::log=debug\""
            )),
        }
    }

    fn write(&self) -> String {
        quoted(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum LogFormat {
    Text,
    Json,
}

impl Setting for LogFormat {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match text(raw, "\"text\" or \"json\"")?.trim() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("is {other:?}, wanted is \"text\" or \"json\"")),
        }
    }

    fn write(&self) -> String {
        quoted(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Where the console is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum ConsoleAccess {
    /// Where the operations port is on loopback.
    Auto,
    On,
    Off,
}

impl Setting for ConsoleAccess {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match text(raw, "\"auto\", \"on\" or \"off\"")?.trim() {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(format!("is {other:?}, wanted is \"auto\", \"on\" or \"off\"")),
        }
    }

    fn write(&self) -> String {
        quoted(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// What the hub may record of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum EventKind {
    Connection,
    Lifecycle,
    Twin,
}

impl Setting for EventKind {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        const WANTED: &str = "\"connection\", \"lifecycle\" or \"twin\"";
        match text(raw, WANTED)?.trim() {
            "connection" => Ok(Self::Connection),
            "lifecycle" => Ok(Self::Lifecycle),
            "twin" => Ok(Self::Twin),
            other => Err(format!("is {other:?}, wanted is {WANTED}")),
        }
    }

    fn write(&self) -> String {
        quoted(match self {
            Self::Connection => "connection",
            Self::Lifecycle => "lifecycle",
            Self::Twin => "twin",
        })
    }
}

/// A text that is never shown: `Debug` and `write` hide it.
#[derive(Clone, PartialEq, Eq, PartialOrd)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl Setting for Secret {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        Ok(Self(text(raw, "a text")?.to_owned()))
    }

    fn write(&self) -> String {
        quoted("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in [
            ("0", 0, "0B"),
            ("1000", 1000, "1000B"),
            ("64KiB", 65_536, "64KiB"),
            ("65536", 65_536, "64KiB"),
            ("1536 MiB", 1536 << 20, "1536MiB"),
            ("2TiB", 2 << 40, "2TiB"),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5MiB", "64kb", "64 XiB", "99999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis, shown) in [
            ("0ms", 0, "0ms"),
            ("0s", 0, "0ms"),
            ("10ms", 10, "10ms"),
            ("1000ms", 1000, "1s"),
            ("90s", 90_000, "90s"),
            ("2m", 120_000, "2m"),
            ("24h", 86_400_000, "1d"),
        ] {
            let read = parse_duration(text).unwrap();
            assert_eq!(
                (read.as_millis(), duration_text(read).as_str()),
                (millis, shown),
                "{text}"
            );
        }
        for text in ["", "10", "ms", "1.5s", "-1s", "1 week", "999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret("s3cret".into());
        assert!(!format!("{secret:?}{}", secret.write()).contains("s3cret"));
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["localhost", "Hub.Example.net", "127.0.0.1", "::1", "a-b.c"] {
            assert!(Host::read(Raw::Text(good)).is_ok(), "{good}");
        }
        for bad in ["", "a b", "-a", "a..b", "http://x", "a/b", "ä.de"] {
            assert!(Host::read(Raw::Text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_serialize_with_serde() {
        #[derive(Serialize, Deserialize)]
        struct Holder {
            size: Bytes,
        }
        let holder: Holder = toml::from_str("size = \"1MiB\"").unwrap();
        assert_eq!(holder.size, Bytes(1 << 20));
        assert_eq!(serde_json::to_string(&holder).unwrap(), "{\"size\":1048576}");
    }
}
