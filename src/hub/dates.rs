//! Dates as text, in the one form that every protocol of the contract has: ISO 8601 in UTC.

use crate::model::UtcMillis;

/// Whether a text is such a date.
// IoT Hub, message format section 2: UTC with `Z`; a form with an offset is invalid.
pub fn is_utc(text: &str) -> bool {
    text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()
}

/// A date with so many digits of a second's fraction.
pub fn text(at: UtcMillis, digits: usize) -> String {
    let time = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
    format!("{time:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_in_utc() {
        assert_eq!(text(UtcMillis(1_700_000_000_123), 7), "2023-11-14T22:13:20.1230000Z");
        assert!(is_utc(&text(UtcMillis(0), 3)));
        for text in [
            "",
            "2021-04-21",
            "2021-04-21T11:30:16-07:00",
            "2021-04-21T11:30:16",
            "Z",
        ] {
            assert!(!is_utc(text), "{text}");
        }
    }
}
