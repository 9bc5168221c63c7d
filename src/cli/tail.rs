//! `forebay tail`: prints messages as they arrive.

use clap::Args;

use super::endpoints::HubArgs;
use crate::model::{ConsumerGroup, SequenceNumber, UtcMillis};

/// Prints messages as they become readable, one a line.
#[derive(Args, Clone, Debug)]
pub struct TailArgs {
    /// Only this partition; all without it
    #[arg(long, value_name = "N")]
    pub partition: Option<u16>,
    /// Where to start: earliest, latest, offset:TEXT, sequence:N, or time:2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = start)]
    pub from: Start,
    /// Consumer group to read as; nothing is checkpointed
    #[arg(long, value_name = "NAME", default_value = "$Default", value_parser = group)]
    pub group: ConsumerGroup,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// One JSON object a line, with properties
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Where reading starts in each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// As a message showed it.
    Offset(String),
    Sequence(SequenceNumber),
    /// The first message that was enqueued then or later.
    Time(UtcMillis),
}

fn start(text: &str) -> Result<Start, String> {
    let wrong = || format!("{text:?} is not earliest, latest, offset:TEXT, sequence:N or time:RFC3339");
    match text.split_once(':') {
        None if text == "earliest" => Ok(Start::Earliest),
        None if text == "latest" => Ok(Start::Latest),
        Some(("offset", offset)) if !offset.is_empty() => Ok(Start::Offset(offset.to_owned())),
        Some(("sequence", number)) => number
            .parse()
            .map(|n| Start::Sequence(SequenceNumber(n)))
            .map_err(|_| wrong()),
        Some(("time", time)) => {
            let time: jiff::Timestamp = time.parse().map_err(|error| format!("{}: {error}", wrong()))?;
            Ok(Start::Time(UtcMillis(time.as_millisecond())))
        }
        _ => Err(wrong()),
    }
}

fn group(text: &str) -> Result<ConsumerGroup, String> {
    ConsumerGroup::new(text).map_err(|error| format!("the consumer group {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_read() {
        for (text, expected) in [
            ("earliest", Start::Earliest),
            ("latest", Start::Latest),
            ("offset:17:a", Start::Offset("17:a".into())),
            ("sequence:5", Start::Sequence(SequenceNumber(5))),
            ("time:1970-01-01T00:00:01.5Z", Start::Time(UtcMillis(1500))),
        ] {
            assert_eq!(start(text), Ok(expected), "{text}");
        }
        for text in ["", "offset:", "sequence:-1", "time:noon", "5"] {
            assert!(start(text).is_err(), "{text}");
        }
    }
}
