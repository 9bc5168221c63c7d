//! What the kernel says of this process.

use std::fs;
use std::io;

/// Ticks of `/proc/self/stat` in a second: the kernel's ABI constant, whatever its timer runs at.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessReadings {
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub resident_bytes: u64,
    pub open_fds: u64,
}

/// Reads `/proc/self`. What cannot be read is zero: metrics never stop the hub.
pub fn read() -> ProcessReadings {
    let (user_seconds, system_seconds) = text("/proc/self/stat")
        .and_then(|stat| cpu_seconds(&stat))
        .unwrap_or_default();
    ProcessReadings {
        user_seconds,
        system_seconds,
        resident_bytes: text("/proc/self/status")
            .and_then(|status| resident_bytes(&status))
            .unwrap_or(0),
        open_fds: open_fds().unwrap_or(0),
    }
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

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

fn open_fds() -> io::Result<u64> {
    // The directory that is being listed is one of them.
    Ok((fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_an_odd_name() {
        let stat = "71 (a) b (c) S 1 71 71 0 -1 4194560 900 0 0 0 250 75 0 0 20 0 3 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some((2.5, 0.75)));
        assert_eq!(cpu_seconds("71 (a"), None);
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let readings = read();
        assert!(readings.resident_bytes > 1 << 20, "{readings:?}");
        assert!((3..10_000).contains(&readings.open_fds), "{readings:?}");
    }
}
