//! A message's sections as the hub's own message: telemetry from devices, and messages to them from services.

use crate::hub::dates;
use crate::model::{Message, PropertyNames, SystemKey};
use crate::proto::amqp::message::{Body, Id, Message as Sections, uuid_text};
use crate::proto::amqp::value::{Compound, Value, ValueError};

/// Why a message cannot be taken. The words are for its sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a body is data, or one value that is binary or text")]
    Body,
    #[error("the property {0:?} is no text, number, date or boolean")]
    Property(String),
    #[error("a property's name is no text, or empty")]
    Name,
    #[error("a map of properties cannot be read: {0}")]
    Map(ValueError),
    #[error("{0} is not valid")]
    System(&'static str),
    #[error("the creation time is not ISO 8601 in UTC")]
    CreationTime,
}

/// Application properties that are the hub's words in one protocol or another.
// IoT Hub, message format section 6.1.
const OF_APPLICATION: [SystemKey; 5] = [
    SystemKey::CreationTimeUtc,
    SystemKey::MessageSchema,
    SystemKey::Ack,
    SystemKey::Operation,
    SystemKey::OutputName,
];
const OF_ANNOTATIONS: [SystemKey; 4] = [
    SystemKey::InterfaceId,
    SystemKey::Subject,
    SystemKey::DiagnosticId,
    SystemKey::CorrelationContext,
];

/// Reads what a peer sent; limits of size are the caller's.
///
/// # Errors
/// `MessageError`.
pub fn read(sections: &Sections<'_>) -> Result<Message, MessageError> {
    let mut message = Message::default();
    let properties = &sections.properties;
    let id = |id: Option<Id<'_>>, name| match id {
        None => Ok(None),
        Some(id) => id.to_text().map(Some).ok_or(MessageError::System(name)),
    };
    let user = match properties.user_id {
        None => None,
        Some(bytes) => Some(std::str::from_utf8(bytes).map_err(|_| MessageError::System("user-id"))?),
    };
    let expiry = properties.absolute_expiry_time.map(time_text).transpose()?;
    let mut set = |key, value: Option<String>| message.system.extend(value.map(|value| (key, value)));
    set(SystemKey::MessageId, id(properties.message_id, "message-id")?);
    set(
        SystemKey::CorrelationId,
        id(properties.correlation_id, "correlation-id")?,
    );
    set(SystemKey::UserId, user.map(str::to_owned));
    set(SystemKey::To, properties.to.map(str::to_owned));
    set(SystemKey::ContentType, properties.content_type.map(str::to_owned));
    set(
        SystemKey::ContentEncoding,
        properties.content_encoding.map(str::to_owned),
    );
    set(SystemKey::AbsoluteExpiryTime, expiry);
    for pair in pairs(sections.annotations.as_ref()) {
        let (name, value) = pair?;
        let is = |key: &&SystemKey| name.is_some_and(|name| key.name().eq_ignore_ascii_case(name));
        let key = OF_ANNOTATIONS.iter().find(is);
        if let Some(key) = key
            && message.get(*key).is_none()
        {
            let text = text(&value).ok_or_else(|| MessageError::Property(key.name().into()))?;
            message.system.push((*key, text));
        }
    }
    let mut names = PropertyNames::default();
    for pair in pairs(sections.application_properties.as_ref()) {
        let (name, value) = pair?;
        let name = name.filter(|name| !name.is_empty()).ok_or(MessageError::Name)?;
        // IoT Hub, AMQP section 4.1: property values are text. What has one clear text is taken as that.
        let value = text(&value).ok_or_else(|| MessageError::Property(name.to_owned()))?;
        match OF_APPLICATION.iter().find(|key| key.name().eq_ignore_ascii_case(name)) {
            Some(key) => {
                if *key == SystemKey::CreationTimeUtc && !dates::is_utc(&value) {
                    return Err(MessageError::CreationTime);
                }
                if message.get(*key).is_none() {
                    message.system.push((*key, value));
                }
            }
            // IoT Hub, message format section 7: of names that differ only in case, one is forwarded.
            None if names.is_new(&message.properties, name) => message.properties.push((name.to_owned(), value)),
            None => {}
        }
    }
    message.body = body(&sections.body)?;
    Ok(message)
}

/// The bytes of a body.
///
/// # Errors
/// `MessageError::Body`.
pub fn body(body: &Body<'_>) -> Result<Vec<u8>, MessageError> {
    match body {
        Body::None => Ok(Vec::new()),
        Body::Data(sections) => Ok(sections.concat()),
        Body::Value(Value::Binary(bytes)) => Ok(bytes.to_vec()),
        Body::Value(Value::String(text)) => Ok(text.as_bytes().to_vec()),
        Body::Value(Value::Null) => Ok(Vec::new()),
        Body::Value(_) | Body::Sequence => Err(MessageError::Body),
    }
}

/// A lock token as delivery tag: the bytes of a GUID as .NET writes them.
// IoT Hub, C2D section 7: clients build a GUID from exactly 16 bytes.
pub fn guid_tag(token: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = token;
    let mut tag = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    tag[8..].copy_from_slice(&rest);
    tag
}

fn pairs<'a>(map: Option<&Compound<'a>>) -> impl Iterator<Item = Result<(Option<&'a str>, Value<'a>), MessageError>> {
    let pairs = map.map(Compound::pairs).into_iter().flatten();
    pairs.map(|pair| {
        let (name, value) = pair.map_err(MessageError::Map)?;
        Ok((name.as_text(), value))
    })
}

/// The text of a simple value.
pub fn text(value: &Value<'_>) -> Option<String> {
    Some(match *value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Ulong(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Char(code) => char::from_u32(code)?.to_string(),
        Value::Timestamp(ms) => time_text(ms).ok()?,
        Value::Uuid(uuid) => uuid_text(&uuid),
        Value::Binary(bytes) => std::str::from_utf8(bytes).ok()?.to_owned(),
        Value::String(text) | Value::Symbol(text) => text.to_owned(),
        Value::Decimal(_) | Value::List(_) | Value::Map(_) | Value::Array(_) | Value::Described(_) => return None,
        Value::Ubyte(_)
        | Value::Ushort(_)
        | Value::Uint(_)
        | Value::Byte(_)
        | Value::Short(_)
        | Value::Int(_)
        | Value::Long(_) => value.as_integer()?.to_string(),
    })
}

fn time_text(ms: i64) -> Result<String, MessageError> {
    let time = jiff::Timestamp::from_millisecond(ms).map_err(|_| MessageError::System("absolute-expiry-time"))?;
    Ok(format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::amqp::message::{MessageWriter, Properties};
    use crate::proto::amqp::value::Writer;

    fn read_of(write: impl FnOnce(&mut MessageWriter<'_>)) -> Result<Message, MessageError> {
        let mut bytes = Vec::new();
        write(&mut MessageWriter::new(&mut bytes));
        read(&Sections::read(&bytes).unwrap())
    }

    #[test]
    fn every_property_is_taken() {
        let message = read_of(|writer| {
            writer.annotations(2, |map| {
                map.symbol("iothub-interface-id");
                map.string("urn:i");
                map.symbol("x-opt-other");
                map.uint(1);
            });
            writer.properties(&Properties {
                message_id: Some(Id::Text("m-1")),
                correlation_id: Some(Id::Raw(&[0x53, 7])),
                user_id: Some(b"me"),
                to: Some("/devices/d/messages/events"),
                content_type: Some("application/json"),
                content_encoding: Some("utf-8"),
                absolute_expiry_time: Some(1_766_000_000_123),
                ..Properties::default()
            });
            writer.application_properties(8, |map| {
                for (name, value) in [
                    ("iothub-ack", "full"),
                    ("iothub-creation-time-utc", "2021-04-21T11:30:16Z"),
                ] {
                    map.string(name);
                    map.string(value);
                }
                map.string("count");
                map.int(-5);
                map.string("share");
                map.double(21.5);
                map.string("is");
                map.boolean(true);
                map.string("none");
                map.null();
                map.string("Level");
                map.string("high");
                map.string("level");
                map.string("low");
            });
            writer.data(b"one");
            writer.data(b"two");
        });
        let expected = Message::new("onetwo")
            .system(SystemKey::MessageId, "m-1")
            .system(SystemKey::CorrelationId, "7")
            .system(SystemKey::UserId, "me")
            .system(SystemKey::To, "/devices/d/messages/events")
            .system(SystemKey::ContentType, "application/json")
            .system(SystemKey::ContentEncoding, "utf-8")
            .system(SystemKey::AbsoluteExpiryTime, "2025-12-17T19:33:20.123Z")
            .system(SystemKey::InterfaceId, "urn:i")
            .system(SystemKey::Ack, "full")
            .system(SystemKey::CreationTimeUtc, "2021-04-21T11:30:16Z")
            .property("count", "-5")
            .property("share", "21.5")
            .property("is", "true")
            .property("none", "")
            .property("Level", "high");
        assert_eq!(message, Ok(expected));
    }

    #[test]
    fn of_very_many_names_each_comes_once_too() {
        let names: Vec<String> = (0..100_000)
            .map(|n| format!("{}{n}", if n % 2 == 0 { 'a' } else { 'A' }))
            .collect();
        let again = names.iter().map(|name| name.to_ascii_uppercase());
        let all: Vec<String> = names.iter().cloned().chain(again).collect();
        let message = read_of(|writer| {
            writer.application_properties(all.len(), |map| {
                for name in &all {
                    map.string(name);
                    map.null();
                }
            });
        });
        let read: Vec<String> = message.unwrap().properties.into_iter().map(|(name, _)| name).collect();
        assert_eq!(read, names);
    }

    #[test]
    fn a_tag_is_the_guid_of_dotnet() {
        // {00112233-4455-6677-8899-aabbccddeeff}
        let tag = guid_tag(std::array::from_fn(|n| n as u8 * 0x11));
        let expected = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ];
        assert_eq!(tag, expected);
    }

    #[test]
    fn bodies_are_bytes_however_they_are_written() {
        let value = |write: &dyn Fn(&mut Writer<'_>)| read_of(|writer| writer.value(write)).map(|message| message.body);
        assert_eq!(value(&|writer| writer.string("tür")), Ok("tür".as_bytes().to_vec()));
        assert_eq!(value(&|writer| writer.binary(&[1, 2])), Ok(vec![1, 2]));
        assert_eq!(value(&|writer| writer.uint(1)), Err(MessageError::Body));
        assert_eq!(read_of(|_| ()).map(|message| message.body), Ok(Vec::new()));
    }

    #[test]
    fn a_map_that_breaks_off_is_refused() {
        // One pair is announced, and there is no value for its key.
        let broken = [0x00, 0x53, 0x74, 0xc1, 4, 2, 0xa1, 1, b'a'];
        let sections = Sections::read(&broken).unwrap();
        assert_eq!(read(&sections), Err(MessageError::Map(ValueError::Truncated)));
    }

    #[test]
    fn what_has_no_text_is_refused() {
        let property = |write: &dyn Fn(&mut Writer<'_>)| {
            read_of(|writer| writer.application_properties(1, |map| write(map))).unwrap_err()
        };
        let list = property(&|map| {
            map.string("a");
            map.list(0, |_| ());
        });
        assert_eq!(list, MessageError::Property("a".into()));
        let number = property(&|map| {
            map.uint(1);
            map.string("a");
        });
        assert_eq!(number, MessageError::Name);
        let created = property(&|map| {
            map.string("iothub-creation-time-utc");
            map.string("2021-04-21T11:30:16-07:00");
        });
        assert_eq!(created, MessageError::CreationTime);
        let user = read_of(|writer| {
            writer.properties(&Properties {
                user_id: Some(&[0xff]),
                ..Properties::default()
            });
        });
        assert_eq!(user, Err(MessageError::System("user-id")));
    }
}
