//! Telemetry out of topics and properties, and messages to devices into them.

use std::fmt;

use crate::hub::outbox::Delivered;
use crate::hub::{IdentityName, dates};
use crate::model::{Message, PropertyNames, SystemKey, UtcMillis};
use crate::proto::mqtt::{Properties, Property, PropertyBuf, bag};

// IoT Hub, MQTT section 4.1.
const KEYS: [(&str, SystemKey); 14] = [
    ("$.mid", SystemKey::MessageId),
    ("$.cid", SystemKey::CorrelationId),
    ("$.uid", SystemKey::UserId),
    ("$.to", SystemKey::To),
    ("$.exp", SystemKey::AbsoluteExpiryTime),
    ("$.ct", SystemKey::ContentType),
    ("$.ce", SystemKey::ContentEncoding),
    ("$.ctime", SystemKey::CreationTimeUtc),
    ("$.schema", SystemKey::MessageSchema),
    ("$.on", SystemKey::OutputName),
    ("$.ifid", SystemKey::InterfaceId),
    ("$.sub", SystemKey::Subject),
    ("$.diagid", SystemKey::DiagnosticId),
    ("$.diagctx", SystemKey::CorrelationContext),
];
/// Words of the hub that have no short form.
const NAMED: [SystemKey; 1] = [SystemKey::Ack];
// IoT Hub, message format section 5.
const RETAIN: &str = "mqtt-retain";
const MESSAGE_TYPE: &str = "iothub-MessageType";

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    CreationTime,
    PayloadFormat,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreationTime => "the creation time is not ISO 8601 in UTC",
            Self::PayloadFormat => "the payload is not the UTF-8 it is said to be",
        })
    }
}

/// What a bag says of a message, without its body.
///
/// # Errors
/// `Unreadable`.
pub fn of_bag(bag: &str) -> Result<Message, Unreadable> {
    let (mut message, mut names) = (Message::default(), PropertyNames::default());
    for (key, value) in bag::pairs(bag) {
        let value = value.unwrap_or_default();
        if let Some(key) = system_key(&key) {
            set(&mut message, key, &value)?;
        } else if !key.starts_with("$.") && names.is_new(&message.properties, &key) {
            message.properties.push((key.into_owned(), value.into_owned()));
        }
    }
    Ok(message)
}

/// Adds what an MQTT 5 PUBLISH, or a will, says beside its topic; what the bag says already stays.
///
/// # Errors
/// `Unreadable`.
pub fn add_properties(
    message: &mut Message,
    properties: &Properties<'_>,
    payload: &[u8],
    now: UtcMillis,
) -> Result<(), Unreadable> {
    let mut names = PropertyNames::default();
    for property in properties.iter() {
        match property {
            Property::ContentType(text) => set(message, SystemKey::ContentType, text)?,
            Property::CorrelationData(data) => {
                if let Ok(text) = std::str::from_utf8(data) {
                    set(message, SystemKey::CorrelationId, text)?;
                }
            }
            Property::MessageExpiry(seconds) => {
                let at = UtcMillis(now.0.saturating_add(i64::from(seconds) * 1000));
                set(message, SystemKey::AbsoluteExpiryTime, &dates::text(at, 3))?;
            }
            // MQTT 5 s3.3.2.3.2.
            Property::PayloadFormat(1) if std::str::from_utf8(payload).is_err() => {
                return Err(Unreadable::PayloadFormat);
            }
            Property::User(name, value) => match system_key(name) {
                Some(key) => set(message, key, value)?,
                None if !name.is_empty() && names.is_new(&message.properties, name) => {
                    message.properties.push((name.to_owned(), value.to_owned()));
                }
                None => {}
            },
            _ => {}
        }
    }
    Ok(())
}

// IoT Hub, MQTT section 4.2.
pub fn mark_retained(message: &mut Message) {
    mark(message, RETAIN, "true");
}

// IoT Hub, MQTT section 8.
pub fn mark_will(message: &mut Message) {
    mark(message, MESSAGE_TYPE, "Will");
}

/// Says which model the sender follows, if it follows one.
// IoT Hub, message format section 2: `dt-dataschema`.
pub fn mark_model(message: &mut Message, model_id: Option<&str>) {
    if let Some(model_id) = model_id {
        message.system.push((SystemKey::DataSchema, model_id.to_owned()));
    }
}

/// The hub's words stand whatever the device says under the same name.
fn mark(message: &mut Message, name: &str, value: &str) {
    message
        .properties
        .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    message.properties.push((name.to_owned(), value.to_owned()));
}

fn set(message: &mut Message, key: SystemKey, value: &str) -> Result<(), Unreadable> {
    if key == SystemKey::CreationTimeUtc && !dates::is_utc(value) {
        return Err(Unreadable::CreationTime);
    }
    if message.get(key).is_none() {
        message.system.push((key, value.to_owned()));
    }
    Ok(())
}

fn system_key(name: &str) -> Option<SystemKey> {
    if name.starts_with("$.") {
        let known = KEYS.iter().find(|(key, _)| *key == name);
        return known.map(|(_, key)| *key);
    }
    NAMED.into_iter().find(|key| key.name().eq_ignore_ascii_case(name))
}

/// The topic of a message to a device.
// IoT Hub, MQTT section 5: what clients need to find.
pub fn command_topic(delivered: &Delivered, target: &IdentityName) -> String {
    let message = &delivered.message;
    let mut topic = format!("{}devicebound/", messages_of(target));
    for (short, key) in KEYS.into_iter().filter(|(_, key)| is_told(*key)) {
        let value = match key {
            SystemKey::To => Some(message.get(key).map_or_else(|| address(target), str::to_owned)),
            // The one in force, also where the sender set none; C# wants seven digits.
            SystemKey::AbsoluteExpiryTime => Some(dates::text(delivered.expires, 7)),
            _ => message.get(key).map(str::to_owned),
        };
        if let Some(value) = value {
            bag::push(&mut topic, short, Some(&value));
        }
    }
    let named = NAMED
        .into_iter()
        .filter_map(|key| Some((key.name(), message.get(key)?)));
    let own = message
        .properties
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in named.chain(own) {
        bag::push(&mut topic, name, Some(value));
    }
    topic
}

/// What an MQTT 5 client is told beside the topic.
pub fn command_properties(delivered: &Delivered, now: UtcMillis) -> PropertyBuf {
    let (message, mut properties) = (&delivered.message, PropertyBuf::default());
    let seconds = (delivered.expires.0 - now.0).max(0) / 1000;
    properties.push(Property::MessageExpiry(u32::try_from(seconds).unwrap_or(u32::MAX)));
    if let Some(text) = message.get(SystemKey::ContentType) {
        properties.push(Property::ContentType(text));
    }
    if let Some(text) = message.get(SystemKey::CorrelationId) {
        properties.push(Property::CorrelationData(text.as_bytes()));
    }
    for (name, value) in &message.properties {
        properties.push(Property::User(name, value));
    }
    properties
}

// IoT Hub, MQTT section 4.1, the column of C2D.
fn is_told(key: SystemKey) -> bool {
    !matches!(
        key,
        SystemKey::MessageSchema
            | SystemKey::OutputName
            | SystemKey::InterfaceId
            | SystemKey::Subject
            | SystemKey::DiagnosticId
            | SystemKey::CorrelationContext
    )
}

/// The beginning of an identity's topics.
fn messages_of(name: &IdentityName) -> String {
    let device = name.device.as_str();
    match &name.module {
        None => format!("devices/{device}/messages/"),
        Some(module) => format!("devices/{device}/modules/{}/messages/", module.as_str()),
    }
}

// IoT Hub, MQTT section 5: how clients are used to see it, with a capital.
fn address(target: &IdentityName) -> String {
    format!("/{}deviceBound", messages_of(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::outbox::LockToken;
    use crate::model::{DeviceId, ModuleId};

    const NOW: UtcMillis = UtcMillis(1_700_000_000_000);

    #[test]
    fn a_bag_has_system_and_application_properties() {
        let message =
            of_bag("%24.mid=m-1&$.ct=application%2Fjson&$.unknown=x&Level=high&level=low&none&iothub-ack=full")
                .unwrap();
        let expected = Message::default()
            .system(SystemKey::MessageId, "m-1")
            .system(SystemKey::ContentType, "application/json")
            .system(SystemKey::Ack, "full")
            .property("Level", "high")
            .property("none", "");
        assert_eq!(message, expected);
        assert_eq!(of_bag("").unwrap(), Message::default());
        assert_eq!(of_bag("$.ctime=now"), Err(Unreadable::CreationTime));
        assert!(of_bag("$.ctime=2021-04-21T11:30:16Z").is_ok());
    }

    #[test]
    fn properties_stand_beside_the_bag() {
        let mut properties = PropertyBuf::default();
        properties.push(Property::ContentType("text/plain"));
        properties.push(Property::CorrelationData(b"c"));
        properties.push(Property::MessageExpiry(60));
        properties.push(Property::User("a", "1"));
        properties.push(Property::User("b", "2"));
        properties.push(Property::PayloadFormat(1));
        let mut message = of_bag("$.ct=application%2Fjson&A=0").unwrap();
        add_properties(&mut message, &properties.as_properties(), b"x", NOW).unwrap();
        let expected = Message::default()
            .system(SystemKey::ContentType, "application/json")
            .system(SystemKey::CorrelationId, "c")
            .system(SystemKey::AbsoluteExpiryTime, "2023-11-14T22:14:20.000Z")
            .property("A", "0")
            .property("b", "2");
        assert_eq!(message, expected);
        let refused = add_properties(&mut message, &properties.as_properties(), &[0xff], NOW);
        assert_eq!(refused, Err(Unreadable::PayloadFormat));
    }

    #[test]
    fn the_hub_has_the_last_word_on_its_marks() {
        let mut message = of_bag("IOTHUB-messagetype=x&MQTT-retain=false").unwrap();
        mark_will(&mut message);
        mark_retained(&mut message);
        let expected = Message::default()
            .property("iothub-MessageType", "Will")
            .property("mqtt-retain", "true");
        assert_eq!(message, expected);
    }

    #[test]
    fn a_message_to_a_device_says_all_in_its_topic() {
        let mut delivered = Delivered {
            sequence: 1,
            token: LockToken::from([1; 16]),
            locked_until: UtcMillis(NOW.0 + 60_000),
            delivery_count: 0,
            enqueued: NOW,
            expires: UtcMillis(NOW.0 + 3_600_000),
            message: Message::new("x")
                .system(SystemKey::MessageId, "m 1")
                .system(SystemKey::Ack, "full")
                .system(SystemKey::MessageSchema, "not told")
                .property("a/b", "c=d"),
        };
        let mut name = IdentityName::device(DeviceId::new("d").unwrap());
        assert_eq!(
            command_topic(&delivered, &name),
            "devices/d/messages/devicebound/%24.mid=m%201&%24.to=%2Fdevices%2Fd%2Fmessages%2FdeviceBound\
             &%24.exp=2023-11-14T23%3A13%3A20.0000000Z&iothub-ack=full&a%2Fb=c%3Dd"
        );
        name.module = Some(ModuleId::new("m").unwrap());
        delivered.message = Message::default().system(SystemKey::To, "/x");
        let topic = command_topic(&delivered, &name);
        assert!(
            topic.starts_with("devices/d/modules/m/messages/devicebound/%24.to=%2Fx&%24.exp="),
            "{topic}"
        );
    }

    #[test]
    fn a_client_of_mqtt_5_is_told_in_properties_too() {
        let delivered = Delivered {
            sequence: 1,
            token: LockToken::from([1; 16]),
            locked_until: NOW,
            delivery_count: 0,
            enqueued: NOW,
            expires: UtcMillis(NOW.0 + 61_500),
            message: Message::new("x")
                .system(SystemKey::CorrelationId, "c")
                .system(SystemKey::ContentType, "text/plain")
                .property("a", "1"),
        };
        let told = command_properties(&delivered, NOW);
        let told: Vec<Property<'_>> = told.as_properties().iter().collect();
        assert_eq!(
            told,
            [
                Property::MessageExpiry(61),
                Property::ContentType("text/plain"),
                Property::CorrelationData(b"c"),
                Property::User("a", "1"),
            ]
        );
    }
}
