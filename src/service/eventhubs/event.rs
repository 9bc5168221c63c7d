//! One event as an AMQP message: what the device wrote and what the hub stamped, in the sections clients look in.
//!
//! All events of a record share what the hub stamped, so that part is written once and copied; a record of the same
//! origin as the one before needs only its time changed.

use std::ops::Range;

use crate::log::record::RecordHeader;
use crate::model::{SequenceNumber, SystemKey, UtcMillis};
use crate::proto::amqp::message::{Id, MessageWriter, Properties};
use crate::proto::amqp::value::Writer;
use crate::wire::message::MessageRef;
use crate::wire::stamp::{FIRST_BYTES, Stamp, StampError};

// IoT Hub, message format section 5.
const TELEMETRY: &str = "Telemetry";

/// What a reader that asked for it is told with each event.
// Built-in endpoint section 4.5.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastEnqueued {
    pub sequence: i64,
    pub time: UtcMillis,
    pub retrieved: UtcMillis,
}

/// Writes events of one reader.
#[derive(Debug, Default)]
pub(super) struct EventWriter {
    /// The origin that `annotations` stand for: a stamp without its first sequence.
    origin: Vec<u8>,
    /// The annotations section up to, and without, those of each event.
    annotations: Vec<u8>,
    /// Where the enqueued time stands in it, twice.
    times: [Range<usize>; 2],
    /// Pairs in it.
    pairs: u32,
}

/// Where the size and the count of a section's map stand: descriptor, constructor, size, count.
const SIZE: Range<usize> = 4..8;
const COUNT: Range<usize> = 8..12;
const TIME_BYTES: usize = 8;

impl EventWriter {
    /// Prepares for the events of a record.
    ///
    /// # Errors
    /// `StampError`: the log holds what no version has written.
    pub fn begin(&mut self, header: &RecordHeader, stamp: &[u8]) -> Result<(), StampError> {
        let origin = stamp.get(FIRST_BYTES..).ok_or(StampError)?;
        if self.annotations.is_empty() || origin != self.origin {
            self.prepare(stamp)?;
            self.origin.clear();
            self.origin.extend_from_slice(origin);
        }
        let time = header.enqueued_time.0.to_be_bytes();
        for range in &self.times {
            self.annotations[range.clone()].copy_from_slice(&time);
        }
        Ok(())
    }

    // IoT Hub, message format section 6.2.
    fn prepare(&mut self, stamp: &[u8]) -> Result<(), StampError> {
        let origin = Stamp::read(stamp)?.origin;
        let has_module = !origin.module_id.is_empty();
        self.annotations.clear();
        self.pairs = 7 + u32::from(has_module);
        let times = &mut self.times;
        MessageWriter::new(&mut self.annotations).annotations(self.pairs as usize, |map| {
            map.symbol("iothub-connection-device-id");
            map.string(&origin.device_id);
            if has_module {
                map.symbol("iothub-connection-module-id");
                map.string(&origin.module_id);
            }
            map.symbol("iothub-connection-auth-method");
            map.string(&origin.auth_method);
            map.symbol("iothub-connection-auth-generation-id");
            map.string(&origin.generation.to_string());
            map.symbol("iothub-message-source");
            map.string(TELEMETRY);
            map.symbol("x-opt-partition-key");
            map.string(&origin.device_id);
            for (key, range) in ["iothub-enqueuedtime", "x-opt-enqueued-time"].into_iter().zip(times) {
                map.symbol(key);
                map.timestamp(0);
                *range = map.0.len() - TIME_BYTES..map.0.len();
            }
        });
        Ok(())
    }

    /// Appends one event of the record.
    pub fn write(
        &self,
        sequence: SequenceNumber,
        message: &MessageRef<'_>,
        last: Option<&LastEnqueued>,
        out: &mut Vec<u8>,
    ) {
        if let Some(last) = last {
            write_last_enqueued(last, out);
        }
        let start = out.len();
        out.extend_from_slice(&self.annotations);
        let mut pairs = self.pairs + 2;
        let mut map = Writer(out);
        map.symbol("x-opt-sequence-number");
        map.long(sequence.0.cast_signed());
        map.symbol("x-opt-offset");
        offset(sequence, &mut map);
        let mut properties = Properties::default();
        let mut further = 0;
        for (key, value) in message.system() {
            match key {
                SystemKey::MessageId => properties.message_id = Some(Id::Text(value)),
                SystemKey::CorrelationId => properties.correlation_id = Some(Id::Text(value)),
                SystemKey::UserId => properties.user_id = Some(value.as_bytes()),
                SystemKey::ContentType => properties.content_type = Some(value),
                SystemKey::ContentEncoding => properties.content_encoding = Some(value),
                SystemKey::InterfaceId
                | SystemKey::Subject
                | SystemKey::DiagnosticId
                | SystemKey::CorrelationContext
                | SystemKey::DataSchema => {
                    pairs += 1;
                    map.symbol(key.name());
                    map.string(value);
                }
                SystemKey::CreationTimeUtc
                | SystemKey::MessageSchema
                | SystemKey::OutputName
                | SystemKey::Ack
                | SystemKey::Operation => further += 1,
                // Where the device sent it, and until when it was of use: not for readers.
                SystemKey::To | SystemKey::AbsoluteExpiryTime => {}
            }
        }
        let size = (out.len() - start - SIZE.end) as u32;
        out[start + SIZE.start..start + SIZE.end].copy_from_slice(&size.to_be_bytes());
        out[start + COUNT.start..start + COUNT.end].copy_from_slice(&(pairs * 2).to_be_bytes());
        let mut sections = MessageWriter::new(out);
        sections.properties(&properties);
        let application = message.property_count() + further;
        if application > 0 {
            sections.application_properties(application, |map| {
                for (name, value) in message.properties() {
                    map.string(name);
                    map.string(value);
                }
                let is_further = |key: &SystemKey| {
                    matches!(
                        key,
                        SystemKey::CreationTimeUtc
                            | SystemKey::MessageSchema
                            | SystemKey::OutputName
                            | SystemKey::Ack
                            | SystemKey::Operation
                    )
                };
                for (key, value) in message.system().filter(|(key, _)| is_further(key)) {
                    map.string(key.name());
                    map.string(value);
                }
            });
        }
        sections.data(message.body());
    }
}

/// The text that stands for a place: its sequence number in digits. Clients treat it as opaque.
fn offset(sequence: SequenceNumber, writer: &mut Writer<'_>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = sequence.0;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    writer.string(std::str::from_utf8(&digits[at..]).expect("digits"));
}

/// The sequence number that an offset stands for; `None` for text that no event carried.
pub(super) fn of_offset(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn write_last_enqueued(last: &LastEnqueued, out: &mut Vec<u8>) {
    MessageWriter::new(out).delivery_annotations(4, |map| {
        map.symbol("last_enqueued_sequence_number");
        map.long(last.sequence);
        map.symbol("last_enqueued_offset");
        map.string(&last.sequence.to_string());
        map.symbol("last_enqueued_time_utc");
        map.timestamp(last.time.0);
        map.symbol("runtime_info_retrieval_time_utc");
        map.timestamp(last.retrieved.0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Message;
    use crate::proto::amqp::message::{Body, Message as AmqpMessage};
    use crate::proto::amqp::performative::find;
    use crate::proto::amqp::value::Value;
    use crate::wire::message;
    use crate::wire::stamp::{Origin, StampTemplate};

    fn header(time: i64) -> RecordHeader {
        RecordHeader {
            length: 0,
            crc: 0,
            stamp_bytes: 0,
            count: 1,
            first: SequenceNumber(0),
            incarnation: 1,
            enqueued_time: UtcMillis(time),
        }
    }

    fn origin(device: &str, module: &str) -> Origin {
        Origin {
            device_id: device.into(),
            module_id: module.into(),
            generation: 637_540_164_221_770_949,
            epoch: 1,
            auth_method: r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#.into(),
        }
    }

    fn written(writer: &EventWriter, sequence: u64, from: &Message, last: Option<&LastEnqueued>) -> Vec<u8> {
        let mut archive = Vec::new();
        message::encode(from, &mut archive);
        let mut out = b"before".to_vec();
        writer.write(
            SequenceNumber(sequence),
            &MessageRef::check(&archive).unwrap(),
            last,
            &mut out,
        );
        out.split_off(6)
    }

    fn annotation<'a>(message: &AmqpMessage<'a>, key: &str) -> Option<Value<'a>> {
        find(message.annotations.as_ref().unwrap(), key)
    }

    #[test]
    fn every_property_stands_where_readers_look() {
        let mut writer = EventWriter::default();
        writer
            .begin(
                &header(1_620_647_502_173),
                StampTemplate::new(&origin("simulation", "sim")).with(1),
            )
            .unwrap();
        let message = Message::new("body")
            .system(SystemKey::MessageId, "m-1")
            .system(SystemKey::UserId, "u")
            .system(SystemKey::ContentType, "application/json")
            .system(SystemKey::ContentEncoding, "utf-8")
            .system(SystemKey::InterfaceId, "urn:i")
            .system(SystemKey::DataSchema, "dtmi:example:Lamp;1")
            .system(SystemKey::CreationTimeUtc, "2021-04-21T11:30:16Z")
            .system(SystemKey::To, "/devices/simulation/messages/events")
            .property("batchId", "7f")
            .property("level", "high");
        let bytes = written(&writer, 13_975, &message, None);
        let read = AmqpMessage::read(&bytes).unwrap();
        for (key, value) in [
            ("iothub-connection-device-id", Value::String("simulation")),
            ("iothub-connection-module-id", Value::String("sim")),
            (
                "iothub-connection-auth-generation-id",
                Value::String("637540164221770949"),
            ),
            ("iothub-message-source", Value::String("Telemetry")),
            ("iothub-enqueuedtime", Value::Timestamp(1_620_647_502_173)),
            ("iothub-interface-id", Value::String("urn:i")),
            ("dt-dataschema", Value::String("dtmi:example:Lamp;1")),
            ("x-opt-partition-key", Value::String("simulation")),
            ("x-opt-enqueued-time", Value::Timestamp(1_620_647_502_173)),
            ("x-opt-sequence-number", Value::Long(13_975)),
            ("x-opt-offset", Value::String("13975")),
        ] {
            assert_eq!(annotation(&read, key), Some(value), "{key}");
        }
        assert!(annotation(&read, "iothub-connection-auth-method").is_some());
        assert_eq!(read.annotations.unwrap().pairs().count(), 12);
        assert_eq!(read.properties.message_id.unwrap().to_text().unwrap(), "m-1");
        assert_eq!(read.properties.user_id, Some(&b"u"[..]));
        assert_eq!(read.properties.content_type, Some("application/json"));
        assert_eq!(read.properties.to, None);
        assert_eq!(read.application_properties.unwrap().count, 6);
        assert_eq!(read.application_property("level"), Some(Value::String("high")));
        let created = read.application_property("iothub-creation-time-utc");
        assert_eq!(created, Some(Value::String("2021-04-21T11:30:16Z")));
        assert_eq!(read.body, Body::Data(vec![b"body"]));
    }

    #[test]
    fn what_is_kept_of_one_origin_is_not_given_to_another() {
        let mut writer = EventWriter::default();
        writer
            .begin(&header(1), StampTemplate::new(&origin("a", "")).with(1))
            .unwrap();
        let first = written(&writer, 9, &Message::new("x"), None);
        writer
            .begin(&header(2), StampTemplate::new(&origin("a", "")).with(2))
            .unwrap();
        let second = written(&writer, 10, &Message::new("x"), None);
        writer
            .begin(&header(3), StampTemplate::new(&origin("b", "")).with(1))
            .unwrap();
        let third = written(&writer, 11, &Message::new("x"), None);
        let seen = |bytes: &[u8]| {
            let message = AmqpMessage::read(bytes).unwrap();
            let text = |key| annotation(&message, key).unwrap().as_text().map(str::to_owned).unwrap();
            let time = annotation(&message, "iothub-enqueuedtime")
                .unwrap()
                .as_integer()
                .unwrap();
            (text("iothub-connection-device-id"), text("x-opt-offset"), time)
        };
        assert_eq!(seen(&first), ("a".into(), "9".into(), 1));
        assert_eq!(seen(&second), ("a".into(), "10".into(), 2));
        assert_eq!(seen(&third), ("b".into(), "11".into(), 3));
        let message = AmqpMessage::read(&third).unwrap();
        assert_eq!(message.application_properties, None);
        assert_eq!(message.properties, Properties::default());
        assert_eq!(writer.begin(&header(3), &[1; 12]), Err(StampError));
    }

    #[test]
    fn who_asks_is_told_of_the_end_of_the_partition() {
        let mut writer = EventWriter::default();
        writer
            .begin(&header(1), StampTemplate::new(&origin("a", "")).with(1))
            .unwrap();
        let last = LastEnqueued {
            sequence: 77,
            time: UtcMillis(5),
            retrieved: UtcMillis(6),
        };
        let bytes = written(&writer, 9, &Message::new("x"), Some(&last));
        // Delivery annotations come first.
        assert_eq!(bytes[..3], [0x00, 0x53, 0x71]);
        assert!(AmqpMessage::read(&bytes).is_ok());
    }

    #[test]
    fn offsets_are_the_digits_of_sequence_numbers() {
        for number in [0, 7, 10, 1_000_000, u64::from(u32::MAX), i64::MAX as u64] {
            let mut bytes = Vec::new();
            offset(SequenceNumber(number), &mut Writer(&mut bytes));
            assert_eq!(bytes[2..], *number.to_string().as_bytes());
            assert_eq!(of_offset(&number.to_string()), Some(number as i64));
        }
        assert_eq!(of_offset("12a"), None);
    }
}
