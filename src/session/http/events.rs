//! Telemetry as HTTPS carries it: one message in headers and body, or a batch as JSON.

use std::borrow::Cow;

use actix_web::http::header::CONTENT_TYPE;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::http::{Call, Refused};
use crate::hub::{ErrorCode, dates};
use crate::model::{Message, PropertyNames, SystemKey};
use crate::shard::command::Messages;
use crate::wire::batch::BatchBuilder;

// IoT Hub, HTTPS section 3.2.
const BATCH_TYPE: &str = "application/vnd.microsoft.iothub.json";
const PROPERTY_PREFIX: &str = "iothub-app-";
/// Messages of one batch; bounds what empty ones, which count no bytes, may cost.
const COUNT_MAX: usize = 16 * 1024;

/// Reads the messages of a request.
pub(super) async fn read(call: &Call) -> Result<Messages, Refused> {
    let bytes_max = call.config().message_bytes_max;
    let messages = if is_batch(call.header(CONTENT_TYPE.as_str())) {
        let body = call.body(usize::MAX, ErrorCode::MESSAGE_TOO_LARGE).await?;
        from_json(&body)?
    } else {
        let mut message = from_headers(call)?;
        message.body = call.body(bytes_max, ErrorCode::MESSAGE_TOO_LARGE).await?.to_vec();
        vec![message]
    };
    encode(&messages, bytes_max)
}

// IoT Hub, message format section 8: the limit is for one message, and for all of a batch together.
fn encode(messages: &[Message], bytes_max: usize) -> Result<Messages, Refused> {
    let bytes: usize = messages.iter().map(Message::counted_bytes).sum();
    if bytes > bytes_max || messages.len() > COUNT_MAX {
        let reason = format!("{} messages of {bytes} bytes exceed {bytes_max}", messages.len());
        return Err(Refused::new(ErrorCode::MESSAGE_TOO_LARGE, reason));
    }
    let mut builder = BatchBuilder::default();
    for message in messages {
        builder.push(message);
    }
    if builder.is_empty() {
        return Err(Refused::invalid("the batch has no messages"));
    }
    Ok(Messages {
        count: builder.count(),
        payload: builder.finish_payload(),
    })
}

fn is_batch(content_type: Option<&str>) -> bool {
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(BATCH_TYPE)
}

fn from_headers(call: &Call) -> Result<Message, Refused> {
    let (mut message, mut names) = (Message::default(), PropertyNames::default());
    for (name, value) in call.headers() {
        let name = name.as_str();
        if !may_be_property(name) {
            continue;
        }
        let value = std::str::from_utf8(value.as_bytes())
            .map_err(|_| Refused::invalid(format_args!("the header {name} is not text")))?;
        add(&mut message, &mut names, name, value)?;
    }
    Ok(message)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    #[serde(borrow)]
    body: Cow<'a, str>,
    base64_encoded: Option<bool>,
    properties: Option<Properties>,
}

/// An object of texts in the order the client wrote it.
#[derive(Default)]
struct Properties(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Properties;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object of texts")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut properties = Vec::new();
                while let Some(property) = map.next_entry()? {
                    properties.push(property);
                }
                Ok(Properties(properties))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn from_json(body: &[u8]) -> Result<Vec<Message>, Refused> {
    let items: Vec<Item<'_>> =
        serde_json::from_slice(body).map_err(|error| Refused::invalid(format_args!("the batch: {error}")))?;
    let message = |(index, item): (usize, Item<'_>)| {
        // IoT Hub, HTTPS section 3.2: base64 unless it is said not to be.
        let body = if item.base64_encoded.unwrap_or(true) {
            let decoded = STANDARD.decode(item.body.as_bytes());
            decoded.map_err(|_| Refused::invalid(format_args!("message {index}: the body is not base64")))?
        } else {
            item.body.into_owned().into_bytes()
        };
        let (mut message, mut names) = (Message::new(body), PropertyNames::default());
        for (name, value) in item.properties.unwrap_or_default().0 {
            add(&mut message, &mut names, &name, &value)?;
        }
        Ok(message)
    };
    items.into_iter().enumerate().map(message).collect()
}

fn may_be_property(name: &str) -> bool {
    name.starts_with("iothub-") || name == "dt-subject"
}

/// Adds what a header, or a batch's property of the same name, says. Others are passed over.
fn add(message: &mut Message, names: &mut PropertyNames, name: &str, value: &str) -> Result<(), Refused> {
    if let Some(key) = system_key(name) {
        if key == SystemKey::CreationTimeUtc {
            check_creation_time(value)?;
        }
        if message.get(key).is_none() {
            message.system.push((key, value.to_owned()));
        }
        return Ok(());
    }
    let prefix = name.get(..PROPERTY_PREFIX.len());
    if !prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PROPERTY_PREFIX)) {
        return Ok(());
    }
    let property = &name[PROPERTY_PREFIX.len()..];
    if property.is_empty() {
        return Err(Refused::invalid("an application property without a name"));
    }
    if names.is_new(&message.properties, property) {
        message.properties.push((property.to_owned(), value.to_owned()));
    }
    Ok(())
}

// IoT Hub, HTTPS section 3.1.
fn system_key(name: &str) -> Option<SystemKey> {
    const KEYS: [(&str, SystemKey); 15] = [
        ("iothub-messageid", SystemKey::MessageId),
        ("iothub-correlationid", SystemKey::CorrelationId),
        ("iothub-userid", SystemKey::UserId),
        ("iothub-to", SystemKey::To),
        ("iothub-expiry", SystemKey::AbsoluteExpiryTime),
        ("iothub-ack", SystemKey::Ack),
        ("iothub-operation", SystemKey::Operation),
        ("iothub-contenttype", SystemKey::ContentType),
        ("iothub-contentencoding", SystemKey::ContentEncoding),
        ("iothub-messageschema", SystemKey::MessageSchema),
        ("iothub-creationtimeutc", SystemKey::CreationTimeUtc),
        ("iothub-creation-time-utc", SystemKey::CreationTimeUtc),
        // Message format section 2: how a batch carries it.
        ("iothub-app-iothub-creation-time-utc", SystemKey::CreationTimeUtc),
        ("iothub-interface-id", SystemKey::InterfaceId),
        ("dt-subject", SystemKey::Subject),
    ];
    let known = KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map(|(_, key)| *key)
}

fn check_creation_time(value: &str) -> Result<(), Refused> {
    if dates::is_utc(value) {
        return Ok(());
    }
    Err(Refused::invalid("the creation time is not ISO 8601 in UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_becomes_messages_in_its_order() {
        let json = br#"[
            {"body":"AAH/","properties":{"iothub-app-Level":"high","IoTHub-MessageId":"m-1","other":"x"}},
            {"body":"t\u00fcr","base64Encoded":false,"ignored":1},
            {"body":"","base64Encoded":true,"properties":null}
        ]"#;
        let messages = from_json(json).unwrap();
        let first = Message::new([0, 1, 255])
            .system(SystemKey::MessageId, "m-1")
            .property("Level", "high");
        assert_eq!(messages, [first, Message::new("tür"), Message::new("")]);
    }

    #[test]
    fn what_cannot_be_a_batch_is_refused() {
        for json in [
            "",
            "{}",
            "[1]",
            "[{}]",
            r#"[{"body":"!"}]"#,
            r#"[{"body":1}]"#,
            r#"[{"body":"","properties":{"a":1}}]"#,
            r#"[{"body":"","properties":{"iothub-app-":"1"}}]"#,
            r#"[{"body":"","properties":{"iothub-creationtimeutc":"2021-04-21T11:30:16-07:00"}}]"#,
        ] {
            let refused = from_json(json.as_bytes()).unwrap_err();
            assert_eq!(refused.code, ErrorCode::ARGUMENT_INVALID, "{json}");
        }
        assert_eq!(encode(&[], 10).unwrap_err().code, ErrorCode::ARGUMENT_INVALID);
    }

    #[test]
    fn the_limit_counts_values_and_names_of_all_messages() {
        let message = Message::new("12345")
            .system(SystemKey::MessageId, "id")
            .property("name", "val");
        let messages = [message.clone(), message];
        assert_eq!(encode(&messages, 28).unwrap().count, 2);
        assert_eq!(encode(&messages, 27).unwrap_err().code, ErrorCode::MESSAGE_TOO_LARGE);
        let empty = vec![Message::default(); COUNT_MAX + 1];
        assert_eq!(encode(&empty, 1).unwrap_err().code, ErrorCode::MESSAGE_TOO_LARGE);
    }

    #[test]
    fn of_names_that_differ_in_case_the_first_stays() {
        let (mut message, mut names) = (Message::default(), PropertyNames::default());
        for (name, value) in [
            ("iothub-app-a", "1"),
            ("IOTHUB-APP-A", "2"),
            ("iothub-to", "x"),
            ("iothub-to", "y"),
        ] {
            add(&mut message, &mut names, name, value).unwrap();
        }
        assert_eq!(
            message,
            Message::default().property("a", "1").system(SystemKey::To, "x")
        );
    }

    #[test]
    fn a_batch_is_known_by_its_media_type() {
        assert!(is_batch(Some("Application/vnd.microsoft.iothub.json; charset=utf-8")));
        assert!(!is_batch(Some("application/json")));
        assert!(!is_batch(None));
    }
}
