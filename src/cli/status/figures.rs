//! Figures in few letters.

use std::time::Duration;

use crate::config::Bytes;

/// Three or four digits and a unit: 950, 12.3k, 4.56M.
pub(super) fn amount(value: f64) -> String {
    match value {
        v if v < 10.0 && v.fract() > 0.05 => format!("{v:.1}"),
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 999_950.0 => format!("{:.1}k", v / 1e3),
        v if v < 999_995_000.0 => format!("{:.2}M", v / 1e6),
        v => format!("{:.2}G", v / 1e9),
    }
}

pub(super) fn duration(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} us"),
        micros @ 1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        micros => format!("{:.1} s", micros as f64 / 1e6),
    }
}

pub(in crate::cli) fn size(bytes: Bytes) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes.0 as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value:.0} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// The two largest units of a time: `45s`, `1h 6m`, `12d 3h`, `729d`.
pub(in crate::cli) fn time_left(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m"),
        3_600..86_400 => format!("{hours}h {minutes}m"),
        86_400..2_592_000 => format!("{days}d {hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stay_short() {
        for (value, expected) in [
            (0.0, "0"),
            (3.24, "3.2"),
            (950.0, "950"),
            (12_340.0, "12.3k"),
            (4_560_000.0, "4.56M"),
            (2e9, "2.00G"),
        ] {
            assert_eq!(amount(value), expected);
        }
        assert_eq!((size(Bytes(10)), size(Bytes(1536))), ("10 B".into(), "1.5 KiB".into()));
        assert_eq!(duration(Duration::from_millis(2_500)), "2.5 s");
    }

    #[test]
    fn times_have_two_units_at_most() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_960, "1h 6m"),
            (86_400 * 2 + 3_700, "2d 1h"),
            (86_400 * 729, "729d"),
        ] {
            assert_eq!(time_left(seconds), expected);
        }
    }
}
