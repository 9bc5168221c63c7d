//! What a message to a device may look like, and how it stands in the store.

use serde::{Deserialize, Serialize};

use super::settings::TTL_MAX;
use super::{MESSAGE_BYTES_MAX, later, millis};
use crate::hub::feedback::Ack;
use crate::model::{Message, SystemKey, UtcMillis};
use crate::state::StateError;

/// IoT Hub, message format: characters of a message id.
const MESSAGE_ID_BYTES_MAX: usize = 128;

/// Why a message cannot be queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("the message counts {bytes} bytes, allowed are {MESSAGE_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("absolute-expiry-time is past, or more than 2 days ahead")]
    Expiry,
    #[error("absolute-expiry-time is no time in UTC")]
    ExpiryText,
    #[error("iothub-ack is none of none, positive, negative and full")]
    Ack,
    #[error("message-id has a character that is not allowed, or is empty or longer than {MESSAGE_ID_BYTES_MAX}")]
    MessageId,
    #[error("property {name:?}: it has no name, or its name or value has a control character")]
    Property { name: String },
}

/// What the hub has to know of a message it accepts.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    pub expires: UtcMillis,
    pub ack: Ack,
    pub message_id: Option<String>,
}

/// # Errors
/// The first rule of the contract that the message breaks.
pub fn check(message: &Message, now: UtcMillis, default_expiry: UtcMillis) -> Result<Accepted, InvalidMessage> {
    let bytes = message.counted_bytes();
    if bytes > MESSAGE_BYTES_MAX {
        return Err(InvalidMessage::TooLarge { bytes });
    }
    let ack = match message.get(SystemKey::Ack) {
        Some(text) => Ack::from_name(text).ok_or(InvalidMessage::Ack)?,
        None => Ack::None,
    };
    let message_id = message.get(SystemKey::MessageId);
    if message_id.is_some_and(|id| id.is_empty() || id.len() > MESSAGE_ID_BYTES_MAX || !id.bytes().all(is_id_byte)) {
        return Err(InvalidMessage::MessageId);
    }
    // IoT Hub, message format section 7 allows less; back ends send more, and their devices read it.
    for (name, value) in &message.properties {
        if name.is_empty() || name.chars().chain(value.chars()).any(char::is_control) {
            return Err(InvalidMessage::Property { name: name.clone() });
        }
    }
    let expires = match message.get(SystemKey::AbsoluteExpiryTime) {
        None => default_expiry,
        Some(text) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| InvalidMessage::ExpiryText)?;
            let expires = UtcMillis(time.as_millisecond());
            if expires <= now || expires > later(now, TTL_MAX) {
                return Err(InvalidMessage::Expiry);
            }
            expires
        }
    };
    Ok(Accepted {
        expires,
        ack,
        message_id: message_id.map(str::to_owned),
    })
}

// IoT Hub, message format section 2.
fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte)
}

/// What stands before the body: the body is bytes, and most of the message.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(with = "millis")]
    enqueued: UtcMillis,
    system: Vec<(u8, String)>,
    properties: Vec<(String, String)>,
}

/// Length of the header, header, body.
pub fn encode(message: &Message, enqueued: UtcMillis) -> Vec<u8> {
    let header = crate::hub::decide::encode(&Header {
        enqueued,
        system: message
            .system
            .iter()
            .map(|(key, value)| (*key as u8, value.clone()))
            .collect(),
        properties: message.properties.clone(),
    });
    let length = u32::try_from(header.len()).expect("a checked message is small");
    [&length.to_be_bytes()[..], &header, &message.body].concat()
}

/// # Errors
/// `Failed` when the bytes are damaged.
pub fn decode(bytes: &[u8]) -> Result<(Message, UtcMillis), StateError> {
    let split = bytes.split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.split_at_checked(length)
    });
    let (header, body) = split.ok_or_else(damaged)?;
    let header: Header = crate::hub::decide::decode(header)?;
    let system = header
        .system
        .into_iter()
        .map(|(number, value)| Some((SystemKey::from_number(number)?, value)));
    let message = Message {
        system: system.collect::<Option<_>>().ok_or_else(damaged)?,
        properties: header.properties,
        body: body.to_vec(),
    };
    Ok((message, header.enqueued))
}

pub fn damaged() -> StateError {
    StateError::Failed(std::sync::Arc::new(std::io::Error::from(
        std::io::ErrorKind::InvalidData,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_767_225_600_000);

    fn check(message: &Message, expected: Result<i64, InvalidMessage>) {
        let checked = super::check(message, NOW, UtcMillis(7));
        assert_eq!(checked.map(|accepted| accepted.expires.0), expected, "{message:?}");
    }

    #[test]
    fn messages_are_checked() {
        let with = |key, value: &str| Message::new("x").system(key, value);
        let property = |name: &str, value: &str| Message::new("x").property(name, value);
        let refused = |name: &str| Err(InvalidMessage::Property { name: name.to_owned() });
        check(&Message::new(vec![0; MESSAGE_BYTES_MAX]), Ok(7));
        let bytes = MESSAGE_BYTES_MAX + 1;
        check(&Message::new(vec![0; bytes]), Err(InvalidMessage::TooLarge { bytes }));
        check(
            &Message::new(vec![0; MESSAGE_BYTES_MAX - 1]).property("ab", ""),
            Err(InvalidMessage::TooLarge { bytes }),
        );
        let expiry = |text| with(SystemKey::AbsoluteExpiryTime, text);
        check(&expiry("2026-01-01T00:00:00.001Z"), Ok(NOW.0 + 1));
        check(&expiry("2026-01-01T01:00:00.001+01:00"), Ok(NOW.0 + 1));
        check(&expiry("2026-01-01T00:00:00Z"), Err(InvalidMessage::Expiry));
        check(&expiry("2026-01-03T00:00:00Z"), Ok(NOW.0 + 172_800_000));
        check(&expiry("2026-01-03T00:00:00.001Z"), Err(InvalidMessage::Expiry));
        check(&expiry("soon"), Err(InvalidMessage::ExpiryText));
        check(&with(SystemKey::Ack, "Full"), Ok(7));
        check(&with(SystemKey::Ack, "half"), Err(InvalidMessage::Ack));
        check(&with(SystemKey::MessageId, "a-:.+%_#*?!(),=@;$'Z9"), Ok(7));
        check(&with(SystemKey::MessageId, &"a".repeat(128)), Ok(7));
        for bad in ["", "a b", "ä", "a/b", &"a".repeat(129)] {
            check(&with(SystemKey::MessageId, bad), Err(InvalidMessage::MessageId));
        }
        check(&property("a!#$%&'*+-.^_`|~", "Z"), Ok(7));
        check(&property("a", ""), Ok(7));
        check(&property("a b", "x=1&y/2?z#%25+é"), Ok(7));
        for (name, value) in [("", "v"), ("a\n", "v"), ("a", "v\0"), ("a", "\u{85}")] {
            check(&property(name, value), refused(name));
        }
    }

    #[test]
    fn messages_are_read_back_and_damage_is_told() {
        let message = SystemKey::ALL.into_iter().fold(
            Message::new([0, 255, 10]).property("a", "b").property("a", ""),
            |message, key| message.system(key, "ü\"\0"),
        );
        let bytes = encode(&message, NOW);
        assert_eq!(decode(&bytes).unwrap(), (message, NOW));
        let body_at = bytes.len() - 3;
        for length in 0..body_at {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(decode(&u32::MAX.to_be_bytes()).is_err());
    }
}
