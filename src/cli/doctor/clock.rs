//! Whether the clock can be trusted: tokens, certificates, retention and enqueued times all follow it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::{Finding, Patient};
use crate::cli::status::time_left;

const CHECK: &str = "clock";
/// 2025-01-01. A machine without a battery starts in 1970.
const EARLIEST_SECONDS: u64 = 1_735_689_600;
/// How far both clocks may drift apart in the seconds of the examination: slewing is much slower.
const DRIFT_MAX: Duration = Duration::from_millis(50);
/// Files may be this much newer than now: rounding, and clocks of network disks.
const AHEAD_MAX: Duration = Duration::from_secs(60);
const SYNC: &str = "run chrony or systemd-timesyncd; devices' tokens expire by this clock";

/// Both clocks at the start of the examination.
pub(super) struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    /// At the end of the examination.
    pub fn check(&self, patient: &Patient) -> Vec<Finding> {
        let (wall, steady) = (SystemTime::now(), self.steady.elapsed());
        let elapsed = wall.duration_since(self.wall).ok();
        let newest = newest_file(patient);
        vec![judge(wall, elapsed, steady, newest), sync_finding(is_synchronized())]
    }
}

/// `elapsed`: by the wall clock; `None` if it went back.
fn judge(wall: SystemTime, elapsed: Option<Duration>, steady: Duration, newest: Option<SystemTime>) -> Finding {
    let seconds = wall
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let time = jiff::Timestamp::try_from(wall).map_or_else(|_| seconds.to_string(), |time| format!("{time:.0}"));
    if seconds < EARLIEST_SECONDS {
        return Finding::fail(
            CHECK,
            format!("it is {time}, which is before this program was made"),
            SYNC,
        );
    }
    let drift = elapsed.map(|elapsed| elapsed.abs_diff(steady));
    if drift.is_none_or(|drift| drift > DRIFT_MAX) {
        let text = match drift {
            Some(drift) => format!("it jumped by {drift:.0?} during the examination"),
            None => "it went back during the examination".to_owned(),
        };
        return Finding::warn(CHECK, text, "let it be slewed instead of set, by one program only");
    }
    let ahead = newest.and_then(|newest| newest.duration_since(wall).ok());
    if let Some(ahead) = ahead.filter(|ahead| *ahead > AHEAD_MAX) {
        let ahead = time_left(i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX));
        return Finding::warn(
            CHECK,
            format!("it is {time}, but data was written {ahead} later: the clock is behind, or was ahead"),
            "set it; enqueued times of new messages stay at the latest one until the clock has passed it",
        );
    }
    Finding::ok(CHECK, time)
}

/// When the log was last written.
fn newest_file(patient: &Patient) -> Option<SystemTime> {
    let partitions = std::fs::read_dir(patient.data.join("log")).ok()?;
    let folders = partitions.filter_map(|entry| std::fs::read_dir(entry.ok()?.path()).ok());
    let files = folders.flatten();
    files
        .filter_map(|file| file.ok()?.metadata().ok()?.modified().ok())
        .max()
}

/// `None`: nobody knows.
fn is_synchronized() -> Option<bool> {
    if std::path::Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let asked = Command::new("timedatectl")
        .args(["show", "--property", "NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    match (asked.status.success(), String::from_utf8_lossy(&asked.stdout).trim()) {
        (true, "yes") => Some(true),
        (true, "no") => Some(false),
        _ => None,
    }
}

fn sync_finding(is_synchronized: Option<bool>) -> Finding {
    match is_synchronized {
        Some(true) => Finding::ok(CHECK, "synchronized"),
        Some(false) => Finding::warn(CHECK, "not synchronized with any time server", SYNC),
        None => Finding::ok(
            CHECK,
            "this system does not tell whether it is synchronized (a container is by its host)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_clock_that_lies_is_named() {
        let seconds = Duration::from_secs;
        let now = SystemTime::UNIX_EPOCH + seconds(1_800_000_000);
        for (wall, elapsed, newest, level, part) in [
            (now, Some(seconds(2)), None, Level::Ok, "2027-01-15T08:00:00Z"),
            (now, Some(seconds(2)), Some(now + seconds(59)), Level::Ok, "2027"),
            (
                now,
                Some(seconds(2)),
                Some(now + seconds(7_200)),
                Level::Warn,
                "2h 0m later",
            ),
            (now, Some(seconds(3)), None, Level::Warn, "jumped by 1s"),
            (now, None, None, Level::Warn, "went back"),
            (
                SystemTime::UNIX_EPOCH,
                Some(seconds(2)),
                None,
                Level::Fail,
                "1970-01-01",
            ),
        ] {
            let found = judge(wall, elapsed, seconds(2), newest);
            assert!(found.level == level && found.text.contains(part), "{found:?}");
        }
        assert_eq!(sync_finding(Some(false)).level, Level::Warn);
    }
}
