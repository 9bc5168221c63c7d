//! Telemetry out of deliveries, and messages to devices into them.

use crate::amqp::{error, message};
use crate::hub::outbox::Delivered;
use crate::hub::{ErrorCode, IdentityName};
use crate::model::{Message, SystemKey, UtcMillis};
use crate::proto::amqp::Error;
use crate::proto::amqp::message::{BATCH_FORMAT, Body, Id, Message as Sections, MessageWriter, Properties};
use crate::proto::amqp::value::{Value, ValueError};

/// The messages of one delivery: one, or those of a batch. The limit is for all of them together.
///
/// # Errors
/// What the sender is to be told: none of them is taken.
pub fn telemetry(payload: &[u8], format: u32, bytes_max: usize) -> Result<Vec<Message>, Error> {
    let sections = Sections::read(payload).map_err(|error| malformed(&error))?;
    let messages = if format == BATCH_FORMAT {
        batch(&sections)?
    } else {
        vec![message::read(&sections).map_err(invalid)?]
    };
    // IoT Hub, message format section 8.
    let bytes: usize = messages.iter().map(Message::counted_bytes).sum();
    if bytes > bytes_max {
        let reason = format!("{} messages of {bytes} bytes exceed {bytes_max}", messages.len());
        return Err(error::of(ErrorCode::MESSAGE_TOO_LARGE, reason));
    }
    Ok(messages)
}

// IoT Hub, message format section 9: what stands outside of the data sections is not for the members.
fn batch(sections: &Sections<'_>) -> Result<Vec<Message>, Error> {
    let Body::Data(members) = &sections.body else {
        return Err(invalid("a batch is made of data sections"));
    };
    let member = |(index, bytes): (usize, &&[u8])| {
        let sections = Sections::read(bytes).map_err(|error| invalid(format_args!("message {index}: {error}")))?;
        message::read(&sections).map_err(|error| invalid(format_args!("message {index}: {error}")))
    };
    members.iter().enumerate().map(member).collect()
}

fn malformed(error: &ValueError) -> Error {
    invalid(format_args!("the message: {error}"))
}

fn invalid(reason: impl std::fmt::Display) -> Error {
    error::of(ErrorCode::ARGUMENT_INVALID, reason)
}

/// The bytes of a body.
///
/// # Errors
/// `MessageError::Body`.
pub(super) fn body(sections: &Sections<'_>) -> Result<Vec<u8>, message::MessageError> {
    message::body(&sections.body)
}

/// An application property, whatever the case of its name.
pub(super) fn property<'a>(sections: &Sections<'a>, name: &str) -> Option<Value<'a>> {
    let mut pairs = sections.application_properties.as_ref()?.pairs().map_while(Result::ok);
    pairs.find_map(|(key, value)| key.as_text()?.eq_ignore_ascii_case(name).then_some(value))
}

/// Appends a message to a device.
// IoT Hub, message format section 6.3 and AMQP section 6: places and types.
pub(super) fn command(delivered: &Delivered, target: &IdentityName, into: &mut Vec<u8>) {
    let message = &delivered.message;
    let mut writer = MessageWriter::new(into);
    let annotations: Vec<_> = of(message, is_annotation).collect();
    writer.annotations(4 + annotations.len(), |map| {
        map.symbol("x-opt-sequence-number");
        map.ulong(delivered.sequence);
        map.symbol("iothub-enqueuedtime");
        map.timestamp(delivered.enqueued.0);
        map.symbol("iothub-deliverycount");
        map.ubyte(delivered.delivery_count);
        map.symbol("x-opt-lock-token");
        map.string(&delivered.token.to_string());
        for (name, value) in &annotations {
            map.symbol(name);
            map.string(value);
        }
    });
    let to = match message.get(SystemKey::To) {
        Some(to) => to.to_owned(),
        None => address(target),
    };
    let UtcMillis(expires) = delivered.expires;
    writer.properties(&Properties {
        message_id: message.get(SystemKey::MessageId).map(Id::Text),
        user_id: message.get(SystemKey::UserId).map(str::as_bytes),
        to: Some(&to),
        correlation_id: message.get(SystemKey::CorrelationId).map(Id::Text),
        content_type: message.get(SystemKey::ContentType),
        content_encoding: message.get(SystemKey::ContentEncoding),
        // The one in force, also where the sender set none.
        absolute_expiry_time: Some(expires),
        ..Properties::default()
    });
    let own = message
        .properties
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let properties: Vec<(&str, &str)> = of(message, is_application_property).chain(own).collect();
    if !properties.is_empty() {
        writer.application_properties(properties.len(), |map| {
            for (name, value) in &properties {
                map.string(name);
                map.string(value);
            }
        });
    }
    writer.data(&message.body);
}

// IoT Hub, message format section 3.
fn address(target: &IdentityName) -> String {
    let device = target.device.as_str();
    match &target.module {
        None => format!("/devices/{device}/messages/devicebound"),
        Some(module) => format!("/devices/{device}/modules/{}/messages/devicebound", module.as_str()),
    }
}

fn of(message: &Message, is: fn(SystemKey) -> bool) -> impl Iterator<Item = (&str, &str)> {
    let system = message.system.iter().filter(move |(key, _)| is(*key));
    system.map(|(key, value)| (key.name(), value.as_str()))
}

// As on the way in: IoT Hub, message format section 6.1.
fn is_annotation(key: SystemKey) -> bool {
    matches!(
        key,
        SystemKey::InterfaceId | SystemKey::Subject | SystemKey::DiagnosticId | SystemKey::CorrelationContext
    )
}

fn is_application_property(key: SystemKey) -> bool {
    matches!(
        key,
        SystemKey::CreationTimeUtc
            | SystemKey::MessageSchema
            | SystemKey::Ack
            | SystemKey::Operation
            | SystemKey::OutputName
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::outbox::LockToken;
    use crate::model::{DeviceId, ModuleId};
    use crate::proto::amqp::performative::find;

    /// One message with a property and a body.
    fn encoded(name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.application_properties(1, |map| {
            map.string(name);
            map.string("v");
        });
        writer.data(body);
        bytes
    }

    /// Messages in one, with properties of their own outside.
    fn batch_of(members: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = encoded("outer", b"");
        bytes.truncate(bytes.len() - 5);
        let mut writer = MessageWriter::new(&mut bytes);
        members.iter().for_each(|member| writer.data(member));
        bytes
    }

    #[test]
    fn a_batch_is_its_members_and_nothing_of_its_cover() {
        let bytes = batch_of(&[encoded("a", b"one"), encoded("b", b""), encoded("c", b"three")]);
        let messages = telemetry(&bytes, BATCH_FORMAT, 1000).unwrap();
        let expected = [("a", "one"), ("b", ""), ("c", "three")];
        assert_eq!(
            messages,
            expected.map(|(name, body)| Message::new(body).property(name, "v"))
        );
        // In the other format it is one message.
        let one = telemetry(&bytes, 0, 1000).unwrap();
        assert_eq!((one.len(), one[0].properties.len()), (1, 1));
    }

    #[test]
    fn the_limit_is_for_a_delivery() {
        // Name, value and body: 7 bytes each.
        let bytes = batch_of(&[encoded("a", b"12345"), encoded("b", b"12345")]);
        assert_eq!(telemetry(&bytes, BATCH_FORMAT, 14).unwrap().len(), 2);
        let refused = telemetry(&bytes, BATCH_FORMAT, 13).unwrap_err();
        assert_eq!(refused.condition.name(), "amqp:link:message-size-exceeded");
        assert_eq!(telemetry(&encoded("a", b"12345"), 0, 7).unwrap().len(), 1);
        assert!(telemetry(&encoded("a", b"12345"), 0, 6).is_err());
    }

    #[test]
    fn one_bad_member_refuses_the_batch() {
        let mut sequence = Vec::new();
        MessageWriter::new(&mut sequence).value(|value| value.list(0, |_| ()));
        for bytes in [
            batch_of(&[encoded("a", b"one"), b"no message".to_vec()]),
            batch_of(&[encoded("a", b"one"), sequence.clone()]),
            batch_of(&[]),
            sequence,
        ] {
            let refused = telemetry(&bytes, BATCH_FORMAT, 1000).unwrap_err();
            assert_eq!(refused.condition.name(), "com.microsoft:argument-error");
        }
        assert!(telemetry(b"no message", 0, 1000).is_err());
    }

    #[test]
    fn a_command_has_every_property_in_its_place_and_type() {
        let token = LockToken::from([0x11; 16]);
        let delivered = Delivered {
            sequence: 7,
            token,
            locked_until: UtcMillis(0),
            delivery_count: 2,
            enqueued: UtcMillis(1_700_000_000_001),
            expires: UtcMillis(1_700_000_000_002),
            message: Message::new("do it")
                .system(SystemKey::MessageId, "m-1")
                .system(SystemKey::CorrelationId, "c-1")
                .system(SystemKey::UserId, "me")
                .system(SystemKey::ContentType, "text/plain")
                .system(SystemKey::ContentEncoding, "utf-8")
                .system(SystemKey::Ack, "full")
                .system(SystemKey::InterfaceId, "urn:i")
                .property("level", "7"),
        };
        let lamp = IdentityName::device(DeviceId::new("lamp").unwrap());
        let mut bytes = Vec::new();
        command(&delivered, &lamp, &mut bytes);
        let sections = Sections::read(&bytes).unwrap();
        let annotations = sections.annotations.unwrap();
        for (name, value) in [
            ("x-opt-sequence-number", Value::Ulong(7)),
            ("iothub-enqueuedtime", Value::Timestamp(1_700_000_000_001)),
            ("iothub-deliverycount", Value::Ubyte(2)),
            (
                "x-opt-lock-token",
                Value::String("11111111-1111-1111-1111-111111111111"),
            ),
            ("iothub-interface-id", Value::String("urn:i")),
        ] {
            assert_eq!(find(&annotations, name), Some(value));
        }
        assert_eq!(property(&sections, "IOTHUB-ack"), Some(Value::String("full")));
        // What a service wrote comes back as the hub would read it.
        let read = message::read(&sections).unwrap();
        let mut expected = delivered.message.clone();
        expected = expected
            .system(SystemKey::To, "/devices/lamp/messages/devicebound")
            .system(SystemKey::AbsoluteExpiryTime, "2023-11-14T22:13:20.002Z");
        let sorted = |mut message: Message| {
            message.system.sort();
            message
        };
        assert_eq!(sorted(read), sorted(expected));
        let part = IdentityName::module(DeviceId::new("lamp").unwrap(), ModuleId::new("m").unwrap());
        assert_eq!(address(&part), "/devices/lamp/modules/m/messages/devicebound");
    }

    #[test]
    fn a_bare_command_leaves_out_what_it_has_not() {
        let delivered = Delivered {
            sequence: 1,
            token: LockToken::from([0; 16]),
            locked_until: UtcMillis(0),
            delivery_count: 0,
            enqueued: UtcMillis(0),
            expires: UtcMillis(1),
            message: Message::new(""),
        };
        let mut bytes = Vec::new();
        command(
            &delivered,
            &IdentityName::device(DeviceId::new("d").unwrap()),
            &mut bytes,
        );
        let sections = Sections::read(&bytes).unwrap();
        assert_eq!(sections.application_properties, None);
        assert_eq!(sections.properties.message_id, None);
        assert_eq!(sections.body, Body::Data(vec![b""]));
    }
}
