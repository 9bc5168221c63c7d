//! The data directory: whose it is, what it was made with, how much room it has, and how fast its disk makes things durable.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Finding, Patient};
use crate::cli::status::size;
use crate::config::{Bytes, Config, Durability};
use crate::log::Layout;
use crate::metrics::process::{Volume, volume};

const MEASURE_TIME_MAX: Duration = Duration::from_millis(1_500);
const MEASURED_SYNCS_MAX: usize = 200;
/// A sync of a good disk with a cache that survives power loss takes a tenth of this, one of a cheap disk about as long.
const SYNC_WARN: Duration = Duration::from_millis(25);
/// Below this share of the volume the operator should know.
const FREE_PERCENT_WARN: u64 = 10;

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    let folder = match existing(&patient.data) {
        Ok(folder) => folder,
        Err(error) => {
            let text = format!("{}: {error}", patient.data.display());
            return vec![Finding::fail(
                "data",
                text,
                "set process.data_dir to a directory that can be made",
            )];
        }
    };
    let mut findings = vec![state_finding(patient)];
    findings.push(file_system_finding(&folder));
    findings.push(room_finding(&patient.config, volume(&folder), is_new(&patient.data)));
    let measured = measure(&folder);
    findings.push(sync_finding(&folder, measured, patient));
    findings
}

fn is_new(data: &Path) -> bool {
    !data.join("log/format").exists()
}

/// The directory, or the nearest one above it that exists.
fn existing(data: &Path) -> io::Result<PathBuf> {
    let mut folder = std::path::absolute(data)?;
    while !folder.try_exists()? {
        if !folder.pop() {
            return Err(io::ErrorKind::NotFound.into());
        }
    }
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a directory", folder.display()),
        ))
    }
}

/// Who has it and what it was made with.
fn state_finding(patient: &Patient) -> Finding {
    const CHECK: &str = "data";
    let shown = patient.data.display();
    let format = match fs::read(patient.data.join("log/format")) {
        Ok(format) => format,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(CHECK, format!("{shown} has no hub yet: it is made at the first start"));
        }
        Err(error) => {
            let text = format!("{shown}/log/format cannot be read: {error}");
            return Finding::fail(CHECK, text, "run as the user that runs the hub");
        }
    };
    let Some(layout) = Layout::read(&format) else {
        let text = format!("{shown}/log/format is damaged");
        return Finding::fail(
            CHECK,
            text,
            "`forebay log verify` looks at the rest; restore the file from a backup",
        );
    };
    if layout.version != Layout::VERSION {
        let text = format!(
            "{shown} has log format {}, this program reads {}",
            layout.version,
            Layout::VERSION
        );
        return Finding::fail(CHECK, text, "run the program that wrote it");
    }
    let wanted = patient.config.identity.partition_count;
    // `forebay dev` takes the default and is refused as well.
    if layout.partition_count != wanted {
        let text = format!(
            "{shown} was made with {} partitions, identity.partition_count is {wanted}",
            layout.partition_count
        );
        let advice = format!(
            "set identity.partition_count = {}: it is fixed when the data is made",
            layout.partition_count
        );
        return Finding::fail(CHECK, text, advice);
    }
    let holder = match &patient.hub {
        Some(hub) => format!("held by {hub}, which runs"),
        None if patient.data.join("running").exists() => {
            "not in use; the last hub did not stop in order, and the next start recovers".to_owned()
        }
        None => "not in use".to_owned(),
    };
    Finding::ok(
        CHECK,
        format!(
            "{shown}: {} partitions, format {}, {holder}",
            layout.partition_count, layout.version
        ),
    )
}

/// Numbers of `statfs` (linux/magic.h), with what they mean for a log that is mapped, allocated ahead and synced.
const FILE_SYSTEMS: [(i64, &str, &str); 14] = [
    (0xEF53, "ext4", ""),
    (0x5846_5342, "xfs", ""),
    (0x9123_683E, "btrfs", ""),
    (0x2FC1_2FC1, "zfs", ""),
    (0xF2F5_2010, "f2fs", ""),
    (
        0x0102_1994,
        "tmpfs",
        "all is lost when the machine or the container stops",
    ),
    (0x8584_58F6, "ramfs", "all is lost when the machine stops"),
    (
        0x794C_7630,
        "overlay",
        "a container's own layer: all is lost with the container",
    ),
    (0x6969, "nfs", "locks and mapped files are only as good as its server's"),
    (
        0xFF53_4D42,
        "cifs",
        "locks and mapped files are only as good as its server's",
    ),
    (
        0xFE53_4D42,
        "smb",
        "locks and mapped files are only as good as its server's",
    ),
    (
        0x6573_5546,
        "fuse",
        "locks, allocation and syncs are only as good as the program behind it",
    ),
    (
        0x0102_1997,
        "9p",
        "locks and mapped files are only as good as its server's",
    ),
    (
        0x00C3_6400,
        "ceph",
        "locks and mapped files are only as good as its servers'",
    ),
];

fn file_system_finding(folder: &Path) -> Finding {
    const CHECK: &str = "file system";
    match rustix::fs::statfs(folder) {
        // The kernel's number has 32 bits, whatever the type here has.
        Ok(stat) => kind_finding(stat.f_type & 0xFFFF_FFFF),
        Err(error) => Finding::warn(
            CHECK,
            format!("{}: {error}", folder.display()),
            "run as the user that runs the hub",
        ),
    }
}

fn kind_finding(kind: i64) -> Finding {
    const CHECK: &str = "file system";
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == kind);
    match known {
        Some((_, name, "")) => Finding::ok(CHECK, *name),
        Some((_, name, doubt)) => Finding::warn(
            CHECK,
            format!("{name}: {doubt}"),
            "keep data that matters on a local disk's ext4 or xfs (a volume, for a container)",
        ),
        None => Finding::ok(CHECK, format!("kind {kind:#x}, which nobody has tried")),
    }
}

/// `is_new`: the first segments are not allocated yet.
fn room_finding(config: &Config, volume: Volume, is_new: bool) -> Finding {
    const CHECK: &str = "disk space";
    if volume.size_bytes == 0 {
        return Finding::warn(CHECK, "the kernel does not tell", "look at it with df");
    }
    let segment = config.log.segment_bytes.0;
    let partitions = u64::from(config.identity.partition_count);
    // The active one of each partition, and the next.
    let start = if is_new {
        partitions * segment * 2
    } else {
        partitions * segment
    };
    let percent = volume.free_bytes.saturating_mul(100) / volume.size_bytes;
    let text = format!(
        "{} free of {} ({percent} %)",
        size(Bytes(volume.free_bytes)),
        size(Bytes(volume.size_bytes))
    );
    let advice = "make room, or lower log.retention or log.retention_bytes, which a running hub takes on SIGHUP";
    if volume.free_bytes < start {
        let text = format!(
            "{text}, {} needed for the next segments: devices are not taken",
            size(Bytes(start))
        );
        return Finding::fail(CHECK, text, advice);
    }
    if percent < FREE_PERCENT_WARN {
        return Finding::warn(CHECK, text, advice);
    }
    let bound = config.log.retention_bytes.0;
    if bound == 0 {
        return Finding::ok(CHECK, format!("{text}; the log is bounded by log.retention alone"));
    }
    let most = bound.saturating_add(2 * segment).saturating_mul(partitions);
    Finding::ok(CHECK, format!("{text}; the log takes {} at most", size(Bytes(most))))
}

/// Times of `fdatasync` after small writes, in order.
fn measure(folder: &Path) -> io::Result<Vec<Duration>> {
    let path = folder.join(format!(".doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let mut measure = || {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < MEASURE_TIME_MAX && times.len() < MEASURED_SYNCS_MAX {
            file.write_all(&[0x5a; 4096])?;
            let started = Instant::now();
            file.sync_data()?;
            times.push(started.elapsed());
        }
        times.sort();
        Ok(times)
    };
    let measured = measure();
    let removed = fs::remove_file(&path);
    measured.and_then(|times| removed.map(|()| times))
}

fn sync_finding(folder: &Path, measured: io::Result<Vec<Duration>>, patient: &Patient) -> Finding {
    const CHECK: &str = "disk sync";
    let times = match measured {
        Ok(times) => times,
        Err(error) => {
            let text = format!("{} cannot be written: {error}", folder.display());
            let advice = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
                io::ErrorKind::ReadOnlyFilesystem => "mount it for writing",
                _ => "give it to the user that runs the hub, or run this as that user",
            };
            return Finding::fail(CHECK, text, advice);
        }
    };
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .or(times.last())
            .copied()
            .unwrap_or_default()
    };
    let (p50, p99) = (at(50), at(99));
    let beside = if patient.hub.is_some() {
        ", beside the hub's own"
    } else {
        ""
    };
    let text = format!("{p50:.1?} (p50), {p99:.1?} (p99) of {} syncs{beside}", times.len());
    // Only then does an acknowledgement wait for it.
    if patient.config.process.durability == Durability::Sync && p99 > SYNC_WARN {
        let text = format!("{text}: an acknowledgement takes at least that long");
        return Finding::warn(
            CHECK,
            text,
            "take a disk with power-loss protection; see process.durability for what else there is",
        );
    }
    Finding::ok(CHECK, text)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn patient(data: &Path) -> Patient {
        Patient {
            config: Config::default(),
            data: data.to_owned(),
            certificate: Err(String::new()),
            is_dev: false,
            hub: None,
        }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("forebay-doctor-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("log")).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_data_was_made_with_is_held_against_the_configuration() {
        let folder = Folder::new("format");
        let found = state_finding(&patient(&folder.0));
        assert!(
            found.level == Level::Ok && found.text.contains("no hub yet"),
            "{found:?}"
        );
        let disk = crate::log::DiskStorage::new(folder.0.join("log"));
        let config = crate::log::Config {
            segment_bytes: 1 << 20,
            ..crate::log::Config::default()
        };
        drop(crate::log::Log::open(disk, 4, config, crate::model::UtcMillis(0)).unwrap());
        let mut patient = patient(&folder.0);
        let found = state_finding(&patient);
        assert!(
            found.level == Level::Ok && found.text.contains("4 partitions, format 1, not in use"),
            "{found:?}"
        );
        fs::write(folder.0.join("running"), "").unwrap();
        let found = state_finding(&patient);
        assert!(
            found.level == Level::Ok && found.text.contains("did not stop in order"),
            "{found:?}"
        );
        patient.config.identity.partition_count = 8;
        let found = state_finding(&patient);
        assert!(
            found.level == Level::Fail && found.advice.contains("partition_count = 4"),
            "{found:?}"
        );
        fs::write(folder.0.join("log/format"), "nonsense").unwrap();
        let found = state_finding(&patient);
        assert!(
            found.level == Level::Fail && found.text.contains("damaged"),
            "{found:?}"
        );
    }

    #[test]
    fn room_is_judged_by_what_the_next_segments_need() {
        let config = Config::default();
        let gib = 1 << 30;
        for (free, all, is_new, level) in [
            (100 * gib, 200 * gib, true, Level::Ok),
            (gib / 2 - 1, gib, true, Level::Fail),
            (gib / 2 - 1, gib, false, Level::Ok),
            (5 * gib, 100 * gib, false, Level::Warn),
            (gib / 8, 100 * gib, false, Level::Fail),
            (0, 0, false, Level::Warn),
        ] {
            let volume = Volume {
                free_bytes: free,
                size_bytes: all,
            };
            let found = room_finding(&config, volume, is_new);
            assert_eq!(found.level, level, "{found:?}");
        }
        assert_eq!(kind_finding(0xEF53).level, Level::Ok);
        assert_eq!(kind_finding(0x0102_1994).level, Level::Warn);
        assert_eq!(kind_finding(1).level, Level::Ok);
    }

    #[test]
    fn syncs_are_measured_and_leave_nothing_behind() {
        let folder = Folder::new("sync");
        let times = measure(&folder.0).unwrap();
        assert!(!times.is_empty() && times.is_sorted());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "the log's folder");
        let patient = patient(&folder.0);
        let slow = vec![Duration::from_millis(30); 3];
        assert_eq!(sync_finding(&folder.0, Ok(slow), &patient).level, Level::Warn);
        let denied = Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(sync_finding(&folder.0, denied, &patient).level, Level::Fail);
        assert_eq!(existing(&folder.0.join("a/b")).unwrap(), folder.0);
        fs::write(folder.0.join("file"), "").unwrap();
        assert!(existing(&folder.0.join("file")).is_err());
    }
}
