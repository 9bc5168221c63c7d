//! CPU and memory of a process as the kernel counts them.

use std::fs;

use anyhow::Context as _;

/// Ticks of `/proc/PID/stat` in a second: the kernel's ABI constant, whatever its timer runs at.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds of all threads of a process since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub user: f64,
    pub system: f64,
}

impl Usage {
    /// Of a process on another machine; what is computed from it is not a number, and not reported.
    pub const UNKNOWN: Self = Self {
        user: f64::NAN,
        system: f64::NAN,
    };

    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        parse_usage(&stat).with_context(|| format!("{path} has an unknown form"))
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }
}

/// The command name may hold blanks and brackets, so fields count from the last bracket.
fn parse_usage(stat: &str) -> Option<Usage> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / TICKS_PER_SECOND);
    Some(Usage {
        user: seconds()?,
        system: seconds()?,
    })
}

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All pages in memory, those of mapped log segments included.
    pub resident: u64,
    /// Its own pages: heap and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        parse_memory(&status).with_context(|| format!("{path} has an unknown form"))
    }
}

fn parse_memory(status: &str) -> Option<Memory> {
    let bytes = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    Some(Memory {
        resident: bytes("VmRSS:")?,
        anonymous: bytes("RssAnon:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_count_from_the_end_of_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 4 0 1 2 3";
        assert_eq!(parse_usage(stat), Some(Usage { user: 2.5, system: 0.5 }));
        assert_eq!(parse_usage("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t 1024 kB\n";
        let expected = Memory {
            resident: 2 << 20,
            anonymous: 1 << 20,
        };
        assert_eq!(parse_memory(status), Some(expected));
        assert_eq!(parse_memory("VmRSS:\t2048 kB\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(Memory::of(pid).unwrap().resident > 0);
        assert!(Usage::of(pid).unwrap().total() >= 0.0);
    }
}
