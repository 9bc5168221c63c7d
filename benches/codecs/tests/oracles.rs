//! Two other codecs and the hub's write the same messages in the same bytes, and read each other's; and what they make of
//! the golden vectors, of every type of packet, is a packet to all.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use forebay_codecs::mqtt::{Header, Packet, Properties, Property, PropertyBuf, Publish, QoS, Version};
use mqtt_protocol_core::mqtt::packet::{Qos, v3_1_1 as core};
use proptest::prelude::*;
use rmqtt_codec::{types, v3, v5};
use tokio_util::codec::{Decoder as _, Encoder as _};

#[derive(Clone, Debug)]
struct Message {
    is_dup: bool,
    qos: u8,
    is_retain: bool,
    topic: String,
    id: NonZeroU16,
    payload: Vec<u8>,
    users: Vec<(String, String)>,
}

prop_compose! {
    fn message()(
        qos in 0u8..3,
        is_dup in any::<bool>(),
        is_retain in any::<bool>(),
        topic in "[^+#\\x00-\\x1f\\x7f-\\u{9f}\\p{Co}\\p{Cn}]{1,200}",
        id in 1u16..,
        payload in prop::collection::vec(any::<u8>(), 0..2000),
        users in prop::collection::vec(("[a-z]{0,20}", "[a-z]{0,20}"), 0..4),
    ) -> Message {
        let id = NonZeroU16::new(id).expect("from 1 on");
        Message { is_dup: is_dup && qos > 0, qos, is_retain, topic, id, payload, users }
    }
}

impl Message {
    fn packet_id(&self) -> Option<NonZeroU16> {
        (self.qos > 0).then_some(self.id)
    }

    fn forebay(&self, version: Version) -> Vec<u8> {
        let mut users = PropertyBuf::default();
        for (name, value) in self.users.iter().filter(|_| version == Version::V5) {
            users.push(Property::User(name, value));
        }
        let publish = Publish {
            is_dup: self.is_dup,
            qos: [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(self.qos)],
            is_retain: self.is_retain,
            topic: &self.topic,
            packet_id: self.packet_id(),
            properties: if self.users.is_empty() {
                Properties::NONE
            } else {
                users.as_properties()
            },
            payload: &self.payload,
        };
        let mut bytes = Vec::new();
        Packet::Publish(publish).encode(version, &mut bytes).expect("a message");
        let (read, used) = Packet::decode(&bytes, version).expect("a message").expect("all of it");
        assert_eq!((read, used), (Packet::Publish(publish), bytes.len()));
        bytes
    }

    fn rmqtt(&self, properties: Option<v5::PublishProperties>) -> types::Publish {
        types::Publish {
            dup: self.is_dup,
            retain: self.is_retain,
            qos: [types::QoS::AtMostOnce, types::QoS::AtLeastOnce, types::QoS::ExactlyOnce][usize::from(self.qos)],
            topic: self.topic.as_str().into(),
            packet_id: self.packet_id(),
            payload: Bytes::copy_from_slice(&self.payload),
            properties,
        }
    }
}

proptest! {
    #[test]
    fn messages_of_3_1_1_are_the_same_bytes(message in message()) {
        let bytes = message.forebay(Version::V3);
        let mut codec = v3::Codec::default();
        let mut written = BytesMut::new();
        let packet = v3::Packet::Publish(Box::new(message.rmqtt(None)));
        codec.encode(packet.clone(), &mut written).expect("a message");
        prop_assert_eq!(&written[..], &bytes[..]);
        let (read, _) = codec.decode(&mut written).expect("a message").expect("all of it");
        prop_assert_eq!(read, packet);

        let mut builder = core::Publish::builder().topic_name(&message.topic).expect("a topic");
        builder = builder.qos([Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][usize::from(message.qos)]);
        builder = builder.dup(message.is_dup).retain(message.is_retain).payload(&message.payload[..]);
        if let Some(id) = message.packet_id() {
            builder = builder.packet_id(id.get());
        }
        let packet = builder.build().expect("a message");
        prop_assert_eq!(&packet.to_continuous_buffer(), &bytes);
        let header = Header::read(&bytes).expect("a header").expect("all of it");
        let body: Arc<[u8]> = bytes[header.header_bytes..].into();
        let (read, _) = core::Publish::parse(header.flags, body).expect("a message");
        prop_assert_eq!(read.topic_name(), &message.topic);
        prop_assert_eq!(read.payload().as_slice(), &message.payload[..]);
    }

    #[test]
    fn messages_of_5_are_the_same_bytes(message in message()) {
        let bytes = message.forebay(Version::V5);
        let properties = v5::PublishProperties {
            user_properties: message.users.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
            ..v5::PublishProperties::default()
        };
        let packet = v5::Packet::Publish(Box::new(message.rmqtt(Some(properties))));
        let mut codec = v5::Codec::new(0, 0);
        let mut written = BytesMut::new();
        codec.encode(packet.clone(), &mut written).expect("a message");
        prop_assert_eq!(&written[..], &bytes[..]);
        let (read, _) = codec.decode(&mut written).expect("a message").expect("all of it");
        prop_assert_eq!(read, packet);
    }
}

/// The bytes of a vector: hexadecimal, with comments.
fn vector(path: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).expect("a vector");
    let bytes = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_ascii_whitespace());
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
        .collect()
}

#[test]
fn every_vector_is_a_packet_to_both() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mqtt");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("vectors") {
        let path = file.expect("a file").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
            .to_owned();
        let Some(name) = name.strip_suffix(".hex") else {
            continue;
        };
        let bytes = vector(&path);
        let mut input = BytesMut::from(&bytes[..]);
        if name.ends_with(".v3") {
            assert!(matches!(Packet::decode(&bytes, Version::V3), Ok(Some(_))), "{name}");
            let mut codec = v3::Codec::default();
            let (packet, _) = codec.decode(&mut input).expect(name).expect(name);
            let mut written = BytesMut::new();
            codec.encode(packet, &mut written).expect(name);
            assert_eq!(written[..], bytes[..], "{name}");
        } else {
            assert!(matches!(Packet::decode(&bytes, Version::V5), Ok(Some(_))), "{name}");
            let read = v5::Codec::new(0, 0).decode(&mut input);
            assert!(matches!(read, Ok(Some(_))), "{name}: {read:?}");
        }
        assert!(input.is_empty(), "{name}");
        count += 1;
    }
    assert!(count >= 43, "{count} vectors");
}
