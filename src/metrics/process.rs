//! What the kernel says of this process, and of the volume its data is on.

use std::fs;
use std::io;
use std::path::Path;

/// Ticks of `/proc/self/stat` in a second: the kernel's ABI constant, whatever its timer runs at.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessReadings {
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub resident_bytes: u64,
    /// Resident and not of a file.
    pub anonymous_bytes: u64,
    /// The least of the cgroups' limits and the machine's memory.
    pub memory_limit_bytes: u64,
    pub open_fds: u64,
    pub fds_limit: u64,
}

/// Reads `/proc` and the cgroups. What cannot be read is zero: metrics never stop the hub.
pub fn read() -> ProcessReadings {
    let (user_seconds, system_seconds) = text("/proc/self/stat")
        .and_then(|stat| cpu_seconds(&stat))
        .unwrap_or_default();
    let status = text("/proc/self/status").unwrap_or_default();
    let limits = text("/proc/self/limits").unwrap_or_default();
    ProcessReadings {
        user_seconds,
        system_seconds,
        resident_bytes: kib_field(&status, "VmRSS:").unwrap_or(0),
        anonymous_bytes: kib_field(&status, "RssAnon:").unwrap_or(0),
        memory_limit_bytes: memory_limit_bytes().unwrap_or(0),
        open_fds: open_fds().unwrap_or(0),
        fds_limit: fds_limit(&limits).unwrap_or(0),
    }
}

/// Room on a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Volume {
    /// What this process may still use.
    pub free_bytes: u64,
    pub size_bytes: u64,
}

/// The volume that holds `path`; zero if the kernel does not tell.
pub fn volume(path: &Path) -> Volume {
    rustix::fs::statvfs(path).map_or_else(
        |_| Volume::default(),
        |stat| Volume {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        },
    )
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// User and system seconds. The command name may hold blanks and brackets, so fields count from the last bracket.
fn cpu_seconds(stat: &str) -> Option<(f64, f64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? as f64 / TICKS_PER_SECOND, ticks()? as f64 / TICKS_PER_SECOND))
}

/// Bytes of a line such as `VmRSS:  2048 kB`.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib << 10)
}

fn memory_limit_bytes() -> Option<u64> {
    let of_machine = kib_field(&text("/proc/meminfo")?, "MemTotal:");
    let groups = text("/proc/self/cgroup").unwrap_or_default();
    let of_groups = limit_files(&groups).into_iter().filter_map(|path| {
        // "max" where there is none.
        text(&path)?.trim().parse().ok()
    });
    of_groups.chain(of_machine).min()
}

/// Where the limits of the process's group and of those around it stand, by the text of `/proc/self/cgroup`.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path).ancestors() {
            let group = group.to_string_lossy();
            files.push(format!("{root}{}/{file}", group.trim_end_matches('/')));
        }
    }
    files
}

fn open_fds() -> io::Result<u64> {
    // The directory that is being listed is one of them.
    Ok((fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1))
}

/// The soft limit in the text of `/proc/self/limits`.
fn fds_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_an_odd_name() {
        let stat = "71 (a) b (c) S 1 71 71 0 -1 4194560 900 0 0 0 250 75 0 0 20 0 3 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some((2.5, 0.75)));
        assert_eq!(cpu_seconds("71 (a"), None);
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n";
        assert_eq!(kib_field(status, "VmRSS:"), Some(2 << 20));
        assert_eq!(kib_field(status, "RssAnon:"), Some(1 << 20));
        assert_eq!(kib_field("Name:\tx\n", "VmRSS:"), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(fds_limit(limits), Some(1024));
    }

    #[test]
    fn limits_of_all_groups_around_count() {
        assert_eq!(
            limit_files("0::/kubepods/pod1\n"),
            [
                "/sys/fs/cgroup/kubepods/pod1/memory.max",
                "/sys/fs/cgroup/kubepods/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            limit_files("5:cpu,cpuacct:/a\n4:memory:/a\nbroken"),
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
    }

    #[test]
    fn this_process_has_memory_files_and_room() {
        let readings = read();
        assert!(readings.anonymous_bytes > 1 << 18, "{readings:?}");
        assert!(readings.resident_bytes >= readings.anonymous_bytes, "{readings:?}");
        assert!(readings.memory_limit_bytes > readings.anonymous_bytes, "{readings:?}");
        assert!((3..10_000).contains(&readings.open_fds), "{readings:?}");
        assert!(readings.fds_limit >= readings.open_fds, "{readings:?}");
        let volume = volume(&std::env::temp_dir());
        assert!(
            volume.size_bytes >= volume.free_bytes && volume.size_bytes > 0,
            "{volume:?}"
        );
        assert_eq!(super::volume(Path::new("/nowhere/at/all")), Volume::default());
    }
}
