//! Messages: their sections, read in place and written.

use super::value::{Compound, Fields, Reader, Value, ValueError, Writer};

// AMQP 1.0 s3.2.
const HEADER: u8 = 0x70;
const DELIVERY_ANNOTATIONS: u8 = 0x71;
const MESSAGE_ANNOTATIONS: u8 = 0x72;
const PROPERTIES: u8 = 0x73;
const APPLICATION_PROPERTIES: u8 = 0x74;
const DATA: u8 = 0x75;
const SEQUENCE: u8 = 0x76;
const VALUE: u8 = 0x77;
const FOOTER: u8 = 0x78;

/// The body holds whole messages, each in a data section.
// IoT Hub, message format section 9.
pub const BATCH_FORMAT: u32 = 0x8001_3700;
/// A message with more data sections than this is refused: an empty one costs five bytes on the wire.
pub const DATA_SECTIONS_MAX: usize = 16 * 1024;

/// A message id or correlation id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id<'a> {
    /// As it came: ids are answered in the type they were asked in.
    Raw(&'a [u8]),
    Text(&'a str),
}

impl Id<'_> {
    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Id::Raw(raw) => writer.raw(raw),
            Id::Text(text) => writer.string(text),
        }
    }

    /// The id as text; `None` for a value that is no id.
    // AMQP 1.0 s3.2.11 to s3.2.14.
    pub fn to_text(self) -> Option<String> {
        let raw = match self {
            Id::Text(text) => return Some(text.to_owned()),
            Id::Raw(raw) => raw,
        };
        match Reader::new(raw).value().ok()? {
            Value::String(text) | Value::Symbol(text) => Some(text.to_owned()),
            Value::Ulong(number) => Some(number.to_string()),
            Value::Uuid(uuid) => Some(uuid_text(&uuid)),
            Value::Binary(bytes) => String::from_utf8(bytes.to_vec()).ok(),
            _ => None,
        }
    }
}

/// The text of a UUID, with hyphens, in lower case.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let number = u128::from_be_bytes(*uuid);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        number >> 96,
        (number >> 80) & 0xffff,
        (number >> 64) & 0xffff,
        (number >> 48) & 0xffff,
        number & 0xffff_ffff_ffff
    )
}

/// The properties section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    pub message_id: Option<Id<'a>>,
    pub user_id: Option<&'a [u8]>,
    pub to: Option<&'a str>,
    pub subject: Option<&'a str>,
    pub reply_to: Option<&'a str>,
    pub correlation_id: Option<Id<'a>>,
    pub content_type: Option<&'a str>,
    pub content_encoding: Option<&'a str>,
    /// UTC milliseconds.
    pub absolute_expiry_time: Option<i64>,
    /// UTC milliseconds.
    pub creation_time: Option<i64>,
}

impl<'a> Properties<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, ValueError> {
        Ok(Self {
            message_id: fields.raw()?.map(Id::Raw),
            user_id: match fields.value()? {
                Value::Null => None,
                Value::Binary(bytes) => Some(bytes),
                // Some clients write it as text.
                other => Some(other.as_text().ok_or(ValueError::Type("binary"))?.as_bytes()),
            },
            to: fields.text()?,
            subject: fields.text()?,
            reply_to: fields.text()?,
            correlation_id: fields.raw()?.map(Id::Raw),
            content_type: fields.text()?,
            content_encoding: fields.text()?,
            absolute_expiry_time: fields.timestamp()?,
            creation_time: fields.timestamp()?,
        })
    }
}

/// What a message carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body<'a> {
    #[default]
    None,
    /// Data sections in order.
    Data(Vec<&'a [u8]>),
    Value(Value<'a>),
    /// A sequence: nobody here takes one.
    Sequence,
}

/// A message read in place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message<'a> {
    pub annotations: Option<Compound<'a>>,
    pub properties: Properties<'a>,
    pub application_properties: Option<Compound<'a>>,
    pub body: Body<'a>,
}

impl<'a> Message<'a> {
    /// # Errors
    /// `ValueError`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ValueError> {
        let mut message = Self::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let Value::Described(section) = reader.value()? else {
                return Err(ValueError::Type("a section"));
            };
            let code = section_code(section.descriptor()?)?;
            let value = section.value()?;
            let map = || match value {
                Value::Map(map) => Ok(Some(map)),
                Value::Null => Ok(None),
                _ => Err(ValueError::Type("a map")),
            };
            match code {
                HEADER | DELIVERY_ANNOTATIONS | FOOTER => {}
                MESSAGE_ANNOTATIONS => message.annotations = map()?,
                APPLICATION_PROPERTIES => message.application_properties = map()?,
                PROPERTIES => {
                    let Value::List(list) = value else {
                        return Err(ValueError::Type("a list"));
                    };
                    message.properties = Properties::read(&mut Fields::new(&list))?;
                }
                DATA => {
                    let Value::Binary(data) = value else {
                        return Err(ValueError::Type("binary"));
                    };
                    match &mut message.body {
                        Body::Data(sections) if sections.len() >= DATA_SECTIONS_MAX => return Err(ValueError::Length),
                        Body::Data(sections) => sections.push(data),
                        _ => message.body = Body::Data(vec![data]),
                    }
                }
                VALUE => message.body = Body::Value(value),
                SEQUENCE => message.body = Body::Sequence,
                _ => return Err(ValueError::Type("a section")),
            }
        }
        Ok(message)
    }

    /// An application property of text or number.
    pub fn application_property(&self, key: &str) -> Option<Value<'a>> {
        super::performative::find(self.application_properties.as_ref()?, key)
    }
}

fn section_code(descriptor: Value<'_>) -> Result<u8, ValueError> {
    const NAMES: [(&str, u8); 9] = [
        ("amqp:header:list", HEADER),
        ("amqp:delivery-annotations:map", DELIVERY_ANNOTATIONS),
        ("amqp:message-annotations:map", MESSAGE_ANNOTATIONS),
        ("amqp:properties:list", PROPERTIES),
        ("amqp:application-properties:map", APPLICATION_PROPERTIES),
        ("amqp:data:binary", DATA),
        ("amqp:amqp-sequence:list", SEQUENCE),
        ("amqp:amqp-value:*", VALUE),
        ("amqp:footer:map", FOOTER),
    ];
    match descriptor {
        Value::Ulong(code) => Ok(u8::try_from(code).unwrap_or(0)),
        Value::Symbol(name) => {
            let known = NAMES.iter().find(|(known, _)| *known == name);
            Ok(known.map_or(0, |(_, code)| *code))
        }
        _ => Err(ValueError::Type("a descriptor")),
    }
}

/// Appends the sections of a message, each at most once and in this order.
#[derive(Debug)]
pub struct MessageWriter<'a>(Writer<'a>);

impl<'a> MessageWriter<'a> {
    pub fn new(into: &'a mut Vec<u8>) -> Self {
        Self(Writer(into))
    }

    pub fn delivery_annotations(&mut self, pairs: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.0.descriptor(DELIVERY_ANNOTATIONS);
        self.0.map(pairs, write);
    }

    pub fn annotations(&mut self, pairs: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.0.descriptor(MESSAGE_ANNOTATIONS);
        self.0.map(pairs, write);
    }

    /// Leaves out the section if nothing is set.
    pub fn properties(&mut self, properties: &Properties<'_>) {
        if *properties == Properties::default() {
            return;
        }
        self.0.descriptor(PROPERTIES);
        self.0.list(13, |list| {
            list.optional(properties.message_id, |list, id| id.write(list));
            list.optional(properties.user_id, Writer::binary);
            list.optional(properties.to, Writer::string);
            list.optional(properties.subject, Writer::string);
            list.optional(properties.reply_to, Writer::string);
            list.optional(properties.correlation_id, |list, id| id.write(list));
            list.optional(properties.content_type, Writer::symbol);
            list.optional(properties.content_encoding, Writer::symbol);
            list.optional(properties.absolute_expiry_time, Writer::timestamp);
            list.optional(properties.creation_time, Writer::timestamp);
            // Groups.
            (0..3).for_each(|_| list.null());
        });
    }

    pub fn application_properties(&mut self, pairs: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.0.descriptor(APPLICATION_PROPERTIES);
        self.0.map(pairs, write);
    }

    pub fn data(&mut self, body: &[u8]) {
        self.0.descriptor(DATA);
        self.0.binary(body);
    }

    pub fn value(&mut self, write: impl FnOnce(&mut Writer<'_>)) {
        self.0.descriptor(VALUE);
        write(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_written() {
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.annotations(1, |map| {
            map.symbol("iothub-interface-id");
            map.string("urn:x");
        });
        let properties = Properties {
            message_id: Some(Id::Text("m-1")),
            user_id: Some(b"me"),
            to: Some("/devices/d/messages/devicebound"),
            correlation_id: Some(Id::Raw(&[0x53, 7])),
            content_type: Some("application/json"),
            absolute_expiry_time: Some(1_766_000_000_123),
            ..Properties::default()
        };
        writer.properties(&properties);
        writer.application_properties(1, |map| {
            map.string("alert");
            map.string("true");
        });
        writer.data(b"one");
        writer.data(b"two");
        let message = Message::read(&bytes).unwrap();
        assert_eq!(message.body, Body::Data(vec![b"one", b"two"]));
        assert_eq!(message.application_property("alert"), Some(Value::String("true")));
        assert_eq!(message.application_property("ALERT"), None);
        assert_eq!(message.properties.message_id.unwrap().to_text().unwrap(), "m-1");
        assert_eq!(message.properties.correlation_id.unwrap().to_text().unwrap(), "7");
        assert_eq!(message.properties.absolute_expiry_time, Some(1_766_000_000_123));
        assert_eq!(
            (message.properties.user_id, message.properties.content_type),
            (properties.user_id, properties.content_type)
        );
    }

    #[test]
    fn a_uuid_is_written_as_its_bytes_stand() {
        let uuid = std::array::from_fn(|n| n as u8 * 0x11);
        assert_eq!(uuid_text(&uuid), "00112233-4455-6677-8899-aabbccddeeff");
        let raw = [&[0x98][..], &uuid].concat();
        assert_eq!(Id::Raw(&raw).to_text().unwrap(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn sections_that_are_none_are_refused() {
        for bytes in [
            &[0x40][..],
            &[0x00, 0x53, 0x99, 0x40],
            &[0x00, 0x53, 0x75, 0xa1, 1, b'a'],
            &[0x00, 0x53, 0x73, 0x40],
            &[0x00, 0x53, 0x72, 0x45],
        ] {
            assert!(Message::read(bytes).is_err(), "{bytes:02x?}");
        }
        let empty = [0x00, 0x53, 0x75, 0xa0, 0].repeat(DATA_SECTIONS_MAX + 1);
        assert_eq!(Message::read(&empty), Err(ValueError::Length));
    }
}
