//! The demo fleet's input: this machine's own readings, from the kernel.
//!
//! Counters of the kernel become rates between two samples. A reading the machine does not have (no temperature sensor,
//! no `/proc/diskstats`) is left out. Parsing is apart from reading, so that it is tested on fixed text. Who sends the
//! readings, and when, is not decided here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::model::{Message, SystemKey, UtcMillis};

/// `/proc/diskstats` counts in sectors of this size whatever the device's own is.
const SECTOR_BYTES: u64 = 512;

const CPU_ALERT: f64 = 0.9;
const MEMORY_ALERT: f64 = 0.9;
const DISK_ALERT: f64 = 0.9;

/// Raw counters of one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    pub taken: Instant,
    pub cpu: CpuTimes,
    pub memory: Memory,
    pub disk: DiskCounters,
    pub file_system: Option<FileSystem>,
    pub network: BTreeMap<String, NetworkCounters>,
    pub load: [f64; 3],
    pub uptime_seconds: f64,
    pub temperature_celsius: Option<f64>,
}

/// Busy and total ticks of all cores together and of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    pub total: Ticks,
    pub cores: Vec<Ticks>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    pub busy: u64,
    pub total: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// What the demo devices report: shares are 0 to 1, rates are per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Readings {
    pub cpu_used: f64,
    pub cores_used: Vec<f64>,
    pub load: [f64; 3],
    pub uptime_seconds: f64,
    pub temperature_celsius: Option<f64>,
    pub memory: Memory,
    pub read_bytes_per_second: f64,
    pub written_bytes_per_second: f64,
    pub file_system: Option<FileSystem>,
    /// Interface name, bytes received and sent per second.
    pub network: Vec<(String, f64, f64)>,
}

/// Reads the kernel's counters now; `data` chooses the file system whose space is reported.
pub fn sample(data: &Path, now: Instant) -> Sample {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Sample {
        taken: now,
        cpu: parse_stat(&text("/proc/stat")),
        memory: parse_meminfo(&text("/proc/meminfo")),
        disk: parse_diskstats(&text("/proc/diskstats")),
        file_system: file_system(data),
        network: parse_net_dev(&text("/proc/net/dev")),
        load: parse_load(&text("/proc/loadavg")),
        uptime_seconds: text("/proc/uptime")
            .split(' ')
            .next()
            .and_then(|s| s.parse().ok())
            .unwrap_or(0.0),
        temperature_celsius: parse_temperature(&text("/sys/class/thermal/thermal_zone0/temp")),
    }
}

fn file_system(path: &Path) -> Option<FileSystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(FileSystem {
        total_bytes: stat.f_blocks * stat.f_frsize,
        free_bytes: stat.f_bavail * stat.f_frsize,
    })
}

impl Readings {
    /// What happened between two samples.
    pub fn between(earlier: &Sample, later: &Sample) -> Self {
        let seconds = later
            .taken
            .saturating_duration_since(earlier.taken)
            .max(Duration::from_millis(1))
            .as_secs_f64();
        // A counter that ran backwards (a device came and went) counts as unchanged.
        let rate = |then: u64, now: u64| now.saturating_sub(then) as f64 / seconds;
        let network = later.network.iter().map(|(name, now)| {
            let then = earlier.network.get(name).unwrap_or(now);
            (
                name.clone(),
                rate(then.received_bytes, now.received_bytes),
                rate(then.sent_bytes, now.sent_bytes),
            )
        });
        let cores = earlier.cpu.cores.iter().zip(&later.cpu.cores);
        Self {
            cpu_used: used(earlier.cpu.total, later.cpu.total),
            cores_used: cores.map(|(then, now)| used(*then, *now)).collect(),
            load: later.load,
            uptime_seconds: later.uptime_seconds,
            temperature_celsius: later.temperature_celsius,
            memory: later.memory,
            read_bytes_per_second: rate(earlier.disk.read_bytes, later.disk.read_bytes),
            written_bytes_per_second: rate(earlier.disk.written_bytes, later.disk.written_bytes),
            file_system: later.file_system,
            network: network.collect(),
        }
    }
}

fn used(then: Ticks, now: Ticks) -> f64 {
    let total = now.total.saturating_sub(then.total);
    if total == 0 {
        return 0.0;
    }
    (now.busy.saturating_sub(then.busy) as f64 / total as f64).min(1.0)
}

/// One device of the fleet: what it is called and what it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DemoDevice {
    Cpu,
    Memory,
    Disk,
    Network,
    Core(usize),
    Interface(String),
    /// More devices than the machine has parts: they report the load, each by itself.
    Load(usize),
}

/// The first `count` devices: the four of the whole machine, then one a core, one a network interface, and then as many
/// load reporters as are asked for. The same machine gives the same names at every start.
pub fn fleet(count: usize, sample: &Sample) -> Vec<DemoDevice> {
    let whole = [
        DemoDevice::Cpu,
        DemoDevice::Memory,
        DemoDevice::Disk,
        DemoDevice::Network,
    ];
    let cores = (0..sample.cpu.cores.len()).map(DemoDevice::Core);
    let interfaces = sample.network.keys().cloned().map(DemoDevice::Interface);
    whole
        .into_iter()
        .chain(cores)
        .chain(interfaces)
        .chain((0..).map(DemoDevice::Load))
        .take(count)
        .collect()
}

impl DemoDevice {
    pub fn id(&self) -> String {
        match self {
            Self::Cpu => "demo-cpu".to_owned(),
            Self::Memory => "demo-memory".to_owned(),
            Self::Disk => "demo-disk".to_owned(),
            Self::Network => "demo-network".to_owned(),
            Self::Core(number) => format!("demo-core-{number}"),
            // Interface names may hold what a device id may not (`eth0/1`, a non-ASCII alias).
            Self::Interface(name) => {
                let safe = |c: char| {
                    if c.is_ascii_alphanumeric() || "-._".contains(c) {
                        c
                    } else {
                        '-'
                    }
                };
                format!("demo-interface-{}", name.chars().map(safe).collect::<String>())
            }
            Self::Load(number) => format!("demo-load-{number}"),
        }
    }

    /// The device's telemetry: JSON, with properties to route by. `alert` is there when a threshold is passed.
    pub fn message(&self, readings: &Readings, now: UtcMillis) -> Message {
        let (kind, alert, body) = self.body(readings);
        let message = Message::new(Value::Object(body).to_string())
            .system(SystemKey::ContentType, "application/json")
            .system(SystemKey::ContentEncoding, "utf-8")
            .system(SystemKey::CreationTimeUtc, iso_8601(now))
            .property("kind", kind);
        if alert {
            message.property("alert", "true")
        } else {
            message
        }
    }

    fn body(&self, readings: &Readings) -> (&'static str, bool, Map<String, Value>) {
        let share = |value: f64| json!((value * 10_000.0).round() / 10_000.0);
        let whole = |value: f64| json!(value.round() as u64);
        let mut body = Map::new();
        let mut put = |name: &str, value: Value| {
            body.insert(name.to_owned(), value);
        };
        let (kind, alert) = match self {
            Self::Cpu => {
                put("used", share(readings.cpu_used));
                put("cores", json!(readings.cores_used.len()));
                put("load1", json!(readings.load[0]));
                put("uptime_seconds", whole(readings.uptime_seconds));
                if let Some(celsius) = readings.temperature_celsius {
                    put("temperature_celsius", json!(celsius));
                }
                ("cpu", readings.cpu_used > CPU_ALERT)
            }
            Self::Memory => {
                let Memory {
                    total_bytes,
                    available_bytes,
                } = readings.memory;
                let used = fraction(total_bytes.saturating_sub(available_bytes), total_bytes);
                put("used", share(used));
                put("total_bytes", json!(total_bytes));
                put("available_bytes", json!(available_bytes));
                ("memory", used > MEMORY_ALERT)
            }
            Self::Disk => {
                put("read_bytes_per_second", whole(readings.read_bytes_per_second));
                put("written_bytes_per_second", whole(readings.written_bytes_per_second));
                let mut used = 0.0;
                if let Some(space) = readings.file_system {
                    used = fraction(space.total_bytes.saturating_sub(space.free_bytes), space.total_bytes);
                    put("used", share(used));
                    put("total_bytes", json!(space.total_bytes));
                    put("free_bytes", json!(space.free_bytes));
                }
                ("disk", used > DISK_ALERT)
            }
            Self::Network => {
                // The loopback interface carries what the hub and its fleet say to each other.
                let outside = || readings.network.iter().filter(|(name, _, _)| name != "lo");
                put(
                    "received_bytes_per_second",
                    whole(outside().map(|(_, received, _)| received).sum()),
                );
                put("sent_bytes_per_second", whole(outside().map(|(_, _, sent)| sent).sum()));
                put("interfaces", json!(outside().count()));
                ("network", false)
            }
            Self::Core(number) => {
                let used = readings.cores_used.get(*number).copied().unwrap_or(0.0);
                put("core", json!(number));
                put("used", share(used));
                ("core", used > CPU_ALERT)
            }
            Self::Interface(name) => {
                let found = readings.network.iter().find(|(known, _, _)| known == name);
                let (received, sent) = found.map_or((0.0, 0.0), |(_, received, sent)| (*received, *sent));
                put("interface", json!(name));
                put("received_bytes_per_second", whole(received));
                put("sent_bytes_per_second", whole(sent));
                ("interface", false)
            }
            Self::Load(number) => {
                put("number", json!(number));
                put("load1", json!(readings.load[0]));
                put("load5", json!(readings.load[1]));
                put("load15", json!(readings.load[2]));
                ("load", readings.load[0] > readings.cores_used.len().max(1) as f64)
            }
        };
        (kind, alert, body)
    }
}

fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn iso_8601(time: UtcMillis) -> String {
    jiff::Timestamp::from_millisecond(time.0).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

/// `/proc/stat`: `cpu  user nice system idle iowait irq softirq steal ...`; idle and iowait are not busy.
pub fn parse_stat(text: &str) -> CpuTimes {
    let mut times = CpuTimes::default();
    for line in text.lines().filter(|line| line.starts_with("cpu")) {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next().unwrap_or_default();
        // Guest time, after the eighth field, is part of user time already.
        let ticks: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
        let total: u64 = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let ticks = Ticks {
            busy: total - idle,
            total,
        };
        if name == "cpu" {
            times.total = ticks
        } else {
            times.cores.push(ticks)
        }
    }
    times
}

/// `/proc/meminfo`.
pub fn parse_meminfo(text: &str) -> Memory {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib << 10)
    };
    Memory {
        total_bytes: bytes("MemTotal"),
        available_bytes: bytes("MemAvailable"),
    }
}

/// `/proc/diskstats`: the sum of whole disks. A partition's name continues that of a disk, and loop, RAM and mapped
/// devices stand on others: both would count twice.
pub fn parse_diskstats(text: &str) -> DiskCounters {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let names: Vec<&str> = lines.iter().filter_map(|fields| fields.get(2).copied()).collect();
    let is_whole = |name: &str| {
        let stands_on_others = ["loop", "ram", "zram", "dm-", "md"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        let is_part = |disk: &&str| {
            let rest = name.strip_prefix(*disk).unwrap_or_default();
            let digits = if disk.ends_with(|c: char| c.is_ascii_digit()) {
                rest.strip_prefix('p').unwrap_or_default()
            } else {
                rest
            };
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        !stands_on_others && !names.iter().any(is_part)
    };
    let mut sum = DiskCounters::default();
    for fields in lines.iter().filter(|fields| fields.len() >= 10 && is_whole(fields[2])) {
        sum.read_bytes += fields[5].parse().unwrap_or(0) * SECTOR_BYTES;
        sum.written_bytes += fields[9].parse().unwrap_or(0) * SECTOR_BYTES;
    }
    sum
}

/// `/proc/net/dev`: a name, a colon, eight numbers of reception, eight of sending.
pub fn parse_net_dev(text: &str) -> BTreeMap<String, NetworkCounters> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_ascii_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let counters = NetworkCounters {
            received_bytes: *numbers.first()?,
            sent_bytes: *numbers.get(8)?,
        };
        Some((name.trim().to_owned(), counters))
    };
    text.lines().filter_map(interface).collect()
}

/// `/proc/loadavg`.
pub fn parse_load(text: &str) -> [f64; 3] {
    let mut numbers = text
        .split_ascii_whitespace()
        .map(|number| number.parse().unwrap_or(0.0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0.0))
}

/// A thermal zone's file: thousandths of a degree.
pub fn parse_temperature(text: &str) -> Option<f64> {
    text.trim()
        .parse::<i64>()
        .ok()
        .map(|thousandths| thousandths as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeviceId;

    const STAT: &str =
        "cpu  100 10 50 800 40 0 0 0 7 0\ncpu0 50 5 25 400 20 0 0 0 0 0\ncpu1 50 5 25 400 20 0 0 0 0 0\nintr 1\n";
    const NET: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets errs|bytes\n    lo: 500 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0\n  eth0:1000 2 0 0 0 0 0 0 2000 3 0 0 0 0 0 0\n";
    const DISKS: &str = "   8  0 sda 10 0 100 0 20 0 200 0 0 0 0\n   8  1 sda1 5 0 50 0 10 0 100 0 0 0 0\n \
        259 0 nvme0n1 1 0 8 0 1 0 4 0 0 0 0\n 259 1 nvme0n1p1 1 0 8 0 1 0 4 0 0 0 0\n   7 0 loop0 9 0 9 0 9 0 9 0 0 0 0\n";

    fn fixture(busy: u64, received: u64, taken: Instant) -> Sample {
        let mut network = parse_net_dev(NET);
        network.get_mut("eth0").unwrap().received_bytes += received;
        let mut cpu = parse_stat(STAT);
        for ticks in std::iter::once(&mut cpu.total).chain(&mut cpu.cores) {
            ticks.busy += busy;
            ticks.total += 100;
        }
        Sample {
            taken,
            cpu,
            memory: parse_meminfo("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  50 kB\n"),
            disk: parse_diskstats(DISKS),
            file_system: Some(FileSystem {
                total_bytes: 1000,
                free_bytes: 400,
            }),
            network,
            load: parse_load("0.50 1.25 2.00 1/200 99\n"),
            uptime_seconds: 12.5,
            temperature_celsius: parse_temperature("45500\n"),
        }
    }

    fn readings() -> Readings {
        let start = Instant::now();
        let mut earlier = fixture(0, 0, start);
        earlier.cpu = parse_stat(STAT);
        Readings::between(&earlier, &fixture(95, 3_000, start + Duration::from_secs(2)))
    }

    #[test]
    fn kernel_texts_are_parsed() {
        let cpu = parse_stat(STAT);
        assert_eq!((cpu.total, cpu.cores.len()), (Ticks { busy: 160, total: 1000 }, 2));
        let disk = parse_diskstats(DISKS);
        assert_eq!((disk.read_bytes, disk.written_bytes), (108 * 512, 204 * 512));
        let network = parse_net_dev(NET);
        assert_eq!(network.keys().collect::<Vec<_>>(), ["eth0", "lo"]);
        assert_eq!(
            (network["eth0"].received_bytes, network["eth0"].sent_bytes),
            (1000, 2000)
        );
        assert_eq!(parse_load("0.50 1.25 2.00 1/200 99\n"), [0.5, 1.25, 2.0]);
        assert_eq!(parse_temperature(""), None);
        assert_eq!(parse_meminfo("").total_bytes, 0);
        assert_eq!(parse_stat("").cores.len(), 0);
    }

    #[test]
    fn counters_become_rates() {
        let readings = readings();
        assert!((readings.cpu_used - 0.95).abs() < 1e-9, "{readings:?}");
        assert_eq!(readings.cores_used.len(), 2);
        assert_eq!(readings.network[0], ("eth0".into(), 1500.0, 0.0));
        assert_eq!(readings.read_bytes_per_second, 0.0);
    }

    #[test]
    fn messages_are_json_with_properties() {
        let readings = readings();
        let now = UtcMillis(1_700_000_000_123);
        let check = |device: DemoDevice, alert: bool, key: &str, expected: Value| {
            let message = device.message(&readings, now);
            let body: Value = serde_json::from_slice(&message.body).unwrap();
            assert_eq!(body[key], expected, "{device:?} {body}");
            assert_eq!(message.get(SystemKey::ContentType), Some("application/json"));
            assert_eq!(message.get(SystemKey::ContentEncoding), Some("utf-8"));
            assert_eq!(
                message.get(SystemKey::CreationTimeUtc),
                Some("2023-11-14T22:13:20.123Z")
            );
            let has_alert = message.properties.contains(&("alert".into(), "true".into()));
            assert_eq!(has_alert, alert, "{device:?}");
        };
        check(DemoDevice::Cpu, true, "used", json!(0.95));
        check(DemoDevice::Cpu, true, "temperature_celsius", json!(45.5));
        check(DemoDevice::Memory, true, "used", json!(0.95));
        check(DemoDevice::Disk, false, "used", json!(0.6));
        check(DemoDevice::Network, false, "received_bytes_per_second", json!(1500));
        check(DemoDevice::Core(1), true, "core", json!(1));
        check(
            DemoDevice::Interface("lo".into()),
            false,
            "received_bytes_per_second",
            json!(0),
        );
        check(DemoDevice::Load(3), false, "load15", json!(2.0));
    }

    #[test]
    fn a_fleet_has_the_size_that_is_asked_for_and_valid_names() {
        let sample = fixture(0, 0, Instant::now());
        let ids = |count| fleet(count, &sample).iter().map(DemoDevice::id).collect::<Vec<_>>();
        assert_eq!(ids(0), [""; 0]);
        assert_eq!(ids(2), ["demo-cpu", "demo-memory"]);
        let many = ids(20);
        assert_eq!(many.iter().collect::<std::collections::BTreeSet<_>>().len(), 20);
        assert!(many.iter().all(|id| DeviceId::new(id).is_ok()), "{many:?}");
        assert!(DeviceId::new(&DemoDevice::Interface("ä/b".into()).id()).is_ok());
    }

    #[test]
    fn this_machine_can_be_read() {
        let sample = sample(Path::new("/"), Instant::now());
        assert!(!sample.cpu.cores.is_empty() && sample.memory.total_bytes > 0 && sample.file_system.is_some());
        assert!(sample.uptime_seconds > 0.0);
    }
}
