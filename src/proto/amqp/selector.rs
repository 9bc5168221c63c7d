//! Where a reader of the built-in endpoint wants to begin: the selector in its source's filter.
//!
//! ```text
//!   amqp.annotation.<name> <op> <value>     x-opt-offset, x-opt-sequence-number, x-opt-enqueued-time; > or >=
//! ```

use super::performative::find;
use super::value::{Reader, Value};

// Built-in endpoint section 4.4.
const KEY: &str = "apache.org:selector-filter:string";
const CODES: [u64; 2] = [0x0000_468C_0000_0004, 0x0000_0137_0000_000A];
const PREFIX: &str = "amqp.annotation.";

/// A place in a partition, as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    Earliest,
    /// Only what is enqueued from now on.
    Latest,
    /// Text that an earlier event carried.
    Offset(String),
    Sequence(i64),
    /// UTC milliseconds.
    Time(i64),
}

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub position: Position,
    /// With what stands at the position; otherwise behind it.
    pub is_inclusive: bool,
}

/// Why a filter cannot be followed. The words are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("the filter is not a map with a described text")]
    Form,
    #[error("the filter {0:?} is not understood")]
    Text(String),
}

impl Selector {
    /// Reads a source's filter; without one, or without a selector in it, everything is wanted.
    ///
    /// # Errors
    /// `SelectorError`.
    pub fn read(filter: Option<&[u8]>) -> Result<Self, SelectorError> {
        let Some(filter) = filter else {
            return Ok(Self::earliest());
        };
        let Ok(Value::Map(map)) = Reader::new(filter).value() else {
            return Err(SelectorError::Form);
        };
        match find(&map, KEY) {
            None => Ok(Self::earliest()),
            Some(Value::Described(described)) => {
                let is_known = match described.descriptor() {
                    Ok(Value::Symbol(name)) => name == KEY,
                    Ok(Value::Ulong(code)) => CODES.contains(&code),
                    _ => false,
                };
                match described.value() {
                    Ok(Value::String(text)) if is_known => Self::parse(text),
                    _ => Err(SelectorError::Form),
                }
            }
            Some(_) => Err(SelectorError::Form),
        }
    }

    fn earliest() -> Self {
        Self {
            position: Position::Earliest,
            is_inclusive: true,
        }
    }

    /// # Errors
    /// `SelectorError::Text`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Self::parsed(text).ok_or_else(|| SelectorError::Text(text.chars().take(200).collect()))
    }

    fn parsed(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix(PREFIX)?;
        let (name, rest) = rest.split_once('>')?;
        let (is_inclusive, value) = match rest.strip_prefix('=') {
            Some(value) => (true, value),
            None => (false, rest),
        };
        let value = value.trim();
        let value = match value.strip_prefix('\'') {
            Some(quoted) => quoted.strip_suffix('\'')?,
            None => value,
        };
        let position = match name.trim() {
            "x-opt-offset" if value == "-1" => Position::Earliest,
            "x-opt-offset" if value == "@latest" => Position::Latest,
            "x-opt-offset" if !value.is_empty() && !value.contains('\'') => Position::Offset(value.to_owned()),
            "x-opt-sequence-number" => Position::Sequence(value.parse().ok()?),
            "x-opt-enqueued-time" | "x-opt-enqueuedtimeutc" => Position::Time(value.parse().ok()?),
            _ => return None,
        };
        Some(Self { position, is_inclusive })
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::Writer;
    use super::*;

    #[test]
    fn every_client_s_way_of_writing_is_read() {
        let check = |text: &str, position: Position, is_inclusive: bool| {
            assert_eq!(Selector::parse(text), Ok(Selector { position, is_inclusive }), "{text}");
        };
        check("amqp.annotation.x-opt-offset > '-1'", Position::Earliest, false);
        check("amqp.annotation.x-opt-offset > '@latest'", Position::Latest, false);
        check(
            "amqp.annotation.x-opt-offset >= '4096'",
            Position::Offset("4096".into()),
            true,
        );
        check("amqp.annotation.x-opt-sequence-number>5", Position::Sequence(5), false);
        check(
            "amqp.annotation.x-opt-sequence-number >= '-1'",
            Position::Sequence(-1),
            true,
        );
        check(
            "amqp.annotation.x-opt-enqueued-time > '1766000000123'",
            Position::Time(1_766_000_000_123),
            false,
        );
        check("amqp.annotation.x-opt-enqueuedtimeutc > 7", Position::Time(7), false);
        for text in [
            "",
            "x-opt-offset > 1",
            "amqp.annotation.x-opt-offset = 1",
            "amqp.annotation.x-opt-offset > 'a",
            "amqp.annotation.x-opt-sequence-number > 'x'",
            "amqp.annotation.other > 1",
        ] {
            assert_eq!(Selector::parse(text), Err(SelectorError::Text(text.into())));
        }
    }

    #[test]
    fn all_three_descriptors_are_taken() {
        let filter = |descriptor: &dyn Fn(&mut Writer<'_>)| {
            let mut bytes = Vec::new();
            Writer(&mut bytes).map(1, |map| {
                map.symbol(KEY);
                map.raw(&[0]);
                descriptor(map);
                map.string("amqp.annotation.x-opt-sequence-number > 9");
            });
            Selector::read(Some(&bytes))
        };
        let expected = Ok(Selector {
            position: Position::Sequence(9),
            is_inclusive: false,
        });
        assert_eq!(filter(&|map| map.symbol(KEY)), expected);
        assert_eq!(filter(&|map| map.ulong(CODES[0])), expected);
        assert_eq!(filter(&|map| map.ulong(CODES[1])), expected);
        assert_eq!(filter(&|map| map.ulong(3)), Err(SelectorError::Form));
        assert_eq!(Selector::read(None).unwrap().position, Position::Earliest);
        assert_eq!(
            Selector::read(Some(&[0xc1, 1, 0])).unwrap().position,
            Position::Earliest
        );
        assert_eq!(Selector::read(Some(&[0x43])), Err(SelectorError::Form));
    }
}
