//! How a queue stands in the store. Every change of a queue reads and writes its whole record, so it is small and needs no
//! parsing: numbers in little-endian, texts behind a byte of their length.
//!
//! ```text
//!   version 1 | device | generation u64 | next sequence u64 | slots u16
//!   a slot:     sequence u64 | state | delivery count u8 | expires i64 | ack u8 | message id, empty for none
//!   a state:    0 enqueued | 1 invisible, token 16 B, until i64 | 2 done, outcome u8
//! ```
//!
//! Records of earlier hubs are JSON, which begins with `{`: they are read for ever, and written in this form with the
//! next change of their queue.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Queue;
use crate::hub::feedback::Ack;
use crate::hub::json;
use crate::model::{DeviceId, Generation};
use crate::state::StateError;

const VERSION: u8 = 1;

/// One queue as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(with = "json::device_id")]
    pub device: DeviceId,
    #[serde(with = "json::generation")]
    pub generation: Generation,
    pub queue: Queue<Wish>,
}

/// Which feedback the sender wants, and about what.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wish {
    pub(super) ack: Ack,
    /// Never empty.
    pub(super) message_id: Option<String>,
}

impl Stored {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        write_text(self.device.as_str(), &mut bytes);
        bytes.extend_from_slice(&self.generation.0.to_le_bytes());
        self.queue.write(&mut bytes, |wish, bytes| {
            bytes.push(wish.ack as u8);
            write_text(wish.message_id.as_deref().unwrap_or_default(), bytes);
        });
        bytes
    }

    /// # Errors
    /// `StateError::Failed`: a record that cannot be read is damage, not an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.first() == Some(&b'{') {
            return crate::hub::decide::decode(bytes);
        }
        let mut reader = Reader(bytes);
        let stored = Self::read(&mut reader).filter(|_| reader.0.is_empty());
        stored.ok_or_else(|| StateError::Failed(Arc::new(Damaged)))
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        (reader.u8()? == VERSION).then_some(())?;
        Some(Self {
            device: DeviceId::new(reader.text()?).ok()?,
            generation: Generation(u64::from_le_bytes(reader.array()?)),
            queue: Queue::read(reader, |reader| {
                let ack = Ack::ALL.get(usize::from(reader.u8()?)).copied()?;
                let message_id = Some(reader.text()?).filter(|id| !id.is_empty());
                Some(Wish {
                    ack,
                    message_id: message_id.map(str::to_owned),
                })
            })?,
        })
    }
}

/// The bytes are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("the record of a queue is damaged")]
struct Damaged;

/// Ids are short: device ids, and message ids by the contract, have at most 128 bytes.
fn write_text(text: &str, into: &mut Vec<u8>) {
    into.push(u8::try_from(text.len()).expect("ids are checked where they come in"));
    into.extend_from_slice(text.as_bytes());
}

/// Takes values from the front of a record; `None` where it ends too early.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*value)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::from(self.u8()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::outbox::{LockToken, Settlement};
    use crate::model::UtcMillis;

    /// A queue in which everything that can stand in one does.
    fn stored() -> Stored {
        let mut queue = Queue::default();
        for (n, ack) in Ack::ALL.into_iter().enumerate() {
            let message_id = (n > 0).then(|| "x".repeat(n * 42));
            queue.push(UtcMillis(1_700_000_000_000 + n as i64), Wish { ack, message_id });
        }
        let token = LockToken::from([7; 16]);
        queue.lock_next(1, UtcMillis(60_000), || token);
        queue.settle(token, Settlement::Abandon, UtcMillis(1), 10).unwrap();
        queue.lock_next(2, UtcMillis(i64::MAX), || LockToken::from([9; 16]));
        Stored {
            device: DeviceId::new("a#b").unwrap(),
            generation: Generation(u64::MAX),
            queue,
        }
    }

    fn shown(stored: &Stored) -> String {
        format!("{stored:?}")
    }

    #[test]
    fn records_are_read_back_and_damaged_ones_are_not() {
        for stored in [
            stored(),
            Stored {
                queue: Queue::default(),
                ..stored()
            },
        ] {
            let bytes = stored.encode();
            assert_eq!(shown(&Stored::decode(&bytes).unwrap()), shown(&stored));
            for length in 0..bytes.len() {
                assert!(Stored::decode(&bytes[..length]).is_err(), "{length}");
            }
            assert!(Stored::decode(&[&bytes[..], &[0]].concat()).is_err());
            assert!(
                Stored::decode(&[&[2], &bytes[1..]].concat()).is_err(),
                "another version"
            );
        }
    }

    /// Any bytes are a record or damage.
    #[test]
    fn no_bytes_panic() {
        let bytes = stored().encode();
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 3, 0x7b, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = Stored::decode(&changed);
            }
        }
    }

    /// As hubs wrote it before there was this form.
    #[test]
    fn records_in_json_are_read() {
        let json = br#"{"device":"lamp","generation":"638000000000000001","queue":{"next_sequence":4,"slots":[
            {"sequence":1,"delivery":{"state":{"Invisible":{"token":"07070707-0707-0707-0707-070707070707","until":60000}},"delivery_count":2,"expires":1700000000000},"about":{"ack":"Full","message_id":"m-1"}},
            {"sequence":3,"delivery":{"state":"Enqueued","delivery_count":0,"expires":1700000000001},"about":{"ack":"None","message_id":null}}]}}"#;
        let stored = Stored::decode(json).unwrap();
        assert_eq!(
            (stored.device.as_str(), stored.generation),
            ("lamp", Generation(638_000_000_000_000_001))
        );
        assert_eq!(
            (stored.queue.depth(), stored.queue.locked_until()),
            (2, Some(UtcMillis(60_000)))
        );
        let again = Stored::decode(&stored.encode()).unwrap();
        assert_eq!(shown(&again), shown(&stored));
        assert!(Stored::decode(b"{\"device\":1}").is_err());
    }
}
