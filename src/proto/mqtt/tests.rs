//! Packets of both versions, whole, cut, mutated, and those that break a rule.

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;

/// A packet that owns what it says.
#[derive(Clone, Debug)]
struct Made {
    version: Version,
    bytes: Vec<u8>,
}

fn id() -> impl Strategy<Value = NonZeroU16> {
    (1u16..).prop_map(|id| NonZeroU16::new(id).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

fn topic() -> impl Strategy<Value = String> {
    "[^\0+#]{1,12}"
}

/// User properties, and others in places that have them.
fn properties(others: fn(&mut PropertyBuf, u32, &str)) -> impl Strategy<Value = PropertyBuf> {
    (
        prop::collection::vec((text(), text()), 0..3),
        any::<bool>(),
        1u32..1000,
        topic(),
    )
        .prop_map(move |(users, has_others, number, text)| {
            let mut properties = PropertyBuf::default();
            if has_others {
                others(&mut properties, number, &text);
            }
            users
                .iter()
                .for_each(|(name, value)| properties.push(Property::User(name, value)));
            properties
        })
}

fn encoded(packet: &Packet<'_>, version: Version) -> Made {
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).unwrap();
    Made { version, bytes }
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V3), Just(Version::V5)]
}

fn only_v5(version: Version, properties: &PropertyBuf) -> Properties<'_> {
    match version {
        Version::V3 => Properties::NONE,
        Version::V5 => properties.as_properties(),
    }
}

fn publish() -> impl Strategy<Value = Made> {
    let of_publish = |into: &mut PropertyBuf, number: u32, text: &str| {
        into.push(Property::PayloadFormat((number % 2) as u8));
        into.push(Property::MessageExpiry(number));
        into.push(Property::TopicAlias(number as u16));
        into.push(Property::ResponseTopic(text));
        into.push(Property::CorrelationData(text.as_bytes()));
        into.push(Property::SubscriptionId(number));
        into.push(Property::SubscriptionId(number + 1));
        into.push(Property::ContentType(text));
    };
    let parts = (version(), 0u8..3, any::<bool>(), any::<bool>(), topic(), id());
    (
        parts,
        properties(of_publish),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|((version, qos, is_dup, is_retain, topic, id), properties, payload)| {
            let publish = Publish {
                is_dup: is_dup && qos > 0,
                qos: QoS::from_bits(qos).unwrap(),
                is_retain,
                topic: &topic,
                packet_id: (qos > 0).then_some(id),
                properties: only_v5(version, &properties),
                payload: &payload,
            };
            encoded(&Packet::Publish(publish), version)
        })
}

fn connect() -> impl Strategy<Value = Made> {
    let of_connect = |into: &mut PropertyBuf, number: u32, text: &str| {
        into.push(Property::SessionExpiry(number));
        into.push(Property::ReceiveMaximum(number as u16));
        into.push(Property::MaximumPacketSize(number));
        into.push(Property::TopicAliasMaximum(number as u16));
        into.push(Property::RequestResponseInfo(1));
        into.push(Property::RequestProblemInfo(0));
        into.push(Property::AuthMethod(text));
        into.push(Property::AuthData(text.as_bytes()));
    };
    let of_will = |into: &mut PropertyBuf, number: u32, text: &str| {
        into.push(Property::WillDelay(number));
        into.push(Property::ContentType(text));
    };
    let will = prop::option::of((
        topic(),
        prop::collection::vec(any::<u8>(), 0..20),
        0u8..3,
        any::<bool>(),
    ));
    let parts = (
        version(),
        any::<bool>(),
        any::<u16>(),
        text(),
        prop::option::of(text()),
        prop::option::of(text()),
    );
    (parts, will, properties(of_connect), properties(of_will)).prop_map(
        |((version, is_clean, keep_alive, client_id, user_name, password), will, properties, of_will)| {
            let connect = Connect {
                version,
                is_clean,
                keep_alive,
                client_id: &client_id,
                will: will.as_ref().map(|(topic, payload, qos, is_retain)| Will {
                    qos: QoS::from_bits(*qos).unwrap(),
                    is_retain: *is_retain,
                    topic,
                    payload,
                    properties: only_v5(version, &of_will),
                }),
                user_name: user_name.as_deref(),
                // MQTT 3.1.1 has no password without a user name.
                password: password
                    .as_deref()
                    .map(str::as_bytes)
                    .filter(|_| version == Version::V5 || user_name.is_some()),
                properties: only_v5(version, &properties),
            };
            encoded(&Packet::Connect(connect), version)
        },
    )
}

/// The packets with an id and a reason, a code or a list.
fn others() -> impl Strategy<Value = Made> {
    let of_answers = |into: &mut PropertyBuf, _: u32, text: &str| into.push(Property::ReasonString(text));
    let parts = (version(), 0u8..14, id(), any::<u8>());
    let lists = (
        prop::collection::vec(any::<u8>(), 1..4),
        prop::collection::vec((topic(), 0u8..3), 1..4),
    );
    (parts, lists, properties(of_answers)).prop_map(|((version, kind, id, code), (codes, filters), properties)| {
        let properties = only_v5(version, &properties);
        let reason = match version {
            Version::V3 => Reason::SUCCESS,
            Version::V5 => Reason(code),
        };
        let ack = Ack {
            packet_id: id,
            reason,
            properties,
        };
        let only_user = Properties::NONE;
        let mut bytes = Vec::new();
        let packet = match kind {
            0 => Packet::PubAck(ack),
            1 => Packet::PubRec(ack),
            2 => Packet::PubRel(ack),
            3 => Packet::PubComp(ack),
            4 => Packet::ConnAck(ConnAck {
                is_session_present: code == 0,
                code,
                properties,
            }),
            5 => Packet::SubAck(SubAck {
                packet_id: id,
                properties,
                codes: &codes,
            }),
            6 => Packet::UnsubAck(UnsubAck {
                packet_id: id,
                properties,
                codes: if version == Version::V5 { &codes } else { &[] },
            }),
            7 => Packet::PingReq,
            8 => Packet::PingResp,
            9 => Packet::Disconnect(Disconnect { reason, properties }),
            10 if version == Version::V5 => Packet::Auth(Auth { reason, properties }),
            11 | 10 => {
                let filters: Vec<Filter<'_>> = filters
                    .iter()
                    .map(|(filter, qos)| Filter::new(filter, QoS::from_bits(*qos).unwrap()))
                    .collect();
                Packet::encode_subscribe(id, &only_user, &filters, version, &mut bytes).unwrap();
                return Made { version, bytes };
            }
            _ => {
                let filters: Vec<&str> = filters.iter().map(|(filter, _)| filter.as_str()).collect();
                Packet::encode_unsubscribe(id, &only_user, &filters, version, &mut bytes).unwrap();
                return Made { version, bytes };
            }
        };
        encoded(&packet, version)
    })
}

fn any_packet() -> impl Strategy<Value = Made> {
    prop_oneof![publish(), connect(), others()]
}

/// Walks everything a packet lets one walk.
fn walk(packet: &Packet<'_>) {
    let _ = format!("{packet:?}");
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_written_again(made in any_packet()) {
        let (packet, used) = Packet::decode(&made.bytes, made.version).unwrap().unwrap();
        prop_assert_eq!(used, made.bytes.len());
        let mut again = Vec::new();
        packet.encode(made.version, &mut again).unwrap();
        prop_assert_eq!(again, made.bytes);
    }

    #[test]
    fn a_cut_packet_wants_more(made in any_packet(), at in any::<prop::sample::Index>()) {
        let cut = &made.bytes[..at.index(made.bytes.len())];
        prop_assert_eq!(Packet::decode(cut, made.version), Ok(None));
    }

    #[test]
    fn what_follows_is_left_alone(made in any_packet(), rest in prop::collection::vec(any::<u8>(), 0..9)) {
        let bytes = [&made.bytes[..], &rest].concat();
        let (_, used) = Packet::decode(&bytes, made.version).unwrap().unwrap();
        prop_assert_eq!(used, made.bytes.len());
    }

    #[test]
    fn mutated_packets_are_packets_or_refused(
        made in any_packet(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        version in version(),
    ) {
        let mut bytes = made.bytes;
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(Some((packet, used))) = Packet::decode(&bytes, version) {
            prop_assert!(used <= bytes.len());
            walk(&packet);
        }
    }

    #[test]
    fn random_bytes_are_packets_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), version in version()) {
        if let Ok(Some((packet, _))) = Packet::decode(&bytes, version) {
            walk(&packet);
        }
    }
}

fn refused(bytes: &[u8], version: Version) -> Error {
    match Packet::decode(bytes, version) {
        Err(error) => error,
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}

#[test]
fn broken_rules_have_names() {
    let property_value = |number| Error::PropertyValue { number };
    for (bytes, version, expected) in [
        (&[0x00, 0][..], Version::V3, Error::Header { first: 0x00 }),
        (&[0xf1, 0], Version::V5, Error::Header { first: 0xf1 }),
        // [MQTT-2.2.2-2]
        (&[0x80, 0], Version::V3, Error::Header { first: 0x80 }),
        (&[0x60, 0], Version::V3, Error::Header { first: 0x60 }),
        (&[0xc1, 0], Version::V3, Error::Header { first: 0xc1 }),
        // AUTH is of MQTT 5.
        (&[0xf0, 0], Version::V3, Error::Header { first: 0xf0 }),
        (&[0x30, 0x80, 0x80, 0x80, 0x80], Version::V3, Error::Length),
        (&[0xc0, 1, 0], Version::V3, Error::Trailing { bytes: 1 }),
        (&[0xe0, 1, 0], Version::V3, Error::Trailing { bytes: 1 }),
        (&[0x40, 3, 0, 1, 0], Version::V3, Error::Trailing { bytes: 1 }),
        (&[0x40, 2, 0, 0], Version::V3, Error::PacketId),
        (&[0x40, 1, 0], Version::V3, Error::Truncated),
        // PUBLISH: QoS 3, DUP with QoS 0, id 0, wildcards, no topic, texts.
        (&[0x36, 5, 0, 1, b'a', 0, 1], Version::V3, Error::QoS),
        (&[0x38, 3, 0, 1, b'a'], Version::V3, Error::Duplicate),
        (&[0x32, 5, 0, 1, b'a', 0, 0], Version::V3, Error::PacketId),
        (&[0x30, 3, 0, 1, b'#'], Version::V3, Error::Topic),
        (&[0x30, 3, 0, 1, b'+'], Version::V3, Error::Topic),
        (&[0x30, 2, 0, 0], Version::V3, Error::Topic),
        (&[0x30, 3, 0, 0, 0], Version::V5, Error::Topic),
        (&[0x30, 3, 0, 1, 0xff], Version::V3, Error::Text),
        (&[0x30, 3, 0, 1, 0], Version::V3, Error::Text),
        (&[0x30, 3, 0, 9, b'a'], Version::V3, Error::Truncated),
        // Properties: unknown, of another packet, twice, bad values, longer than the packet.
        (
            &[0x30, 6, 0, 1, b'a', 2, 99, 0],
            Version::V5,
            Error::Property { number: 99 },
        ),
        (
            &[0x30, 7, 0, 1, b'a', 3, 33, 0, 1],
            Version::V5,
            Error::Property { number: 33 },
        ),
        (
            &[0x30, 8, 0, 1, b'a', 4, 1, 0, 1, 0],
            Version::V5,
            Error::PropertyTwice { number: 1 },
        ),
        (&[0x30, 6, 0, 1, b'a', 2, 1, 2], Version::V5, property_value(1)),
        (&[0x30, 7, 0, 1, b'a', 3, 35, 0, 0], Version::V5, property_value(35)),
        (&[0x30, 7, 0, 1, b'a', 3, 8, 0, 0], Version::V5, property_value(8)),
        (&[0x30, 6, 0, 1, b'a', 2, 11, 0], Version::V5, property_value(11)),
        (&[0x30, 4, 0, 1, b'a', 9], Version::V5, Error::Truncated),
        // SUBSCRIBE and UNSUBSCRIBE.
        (&[0x82, 2, 0, 1], Version::V3, Error::NoFilters),
        (&[0xa2, 2, 0, 1], Version::V3, Error::NoFilters),
        (&[0x82, 6, 0, 1, 0, 1, b'a', 3], Version::V3, Error::QoS),
        (&[0x82, 6, 0, 1, 0, 1, b'a', 4], Version::V3, Error::Options),
        (&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x40], Version::V5, Error::Options),
        (&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x30], Version::V5, Error::Options),
        (&[0x82, 5, 0, 1, 0, 0, 0], Version::V3, Error::Filter),
        (&[0x82, 7, 0, 1, 0, 2, b'a', b'#', 0], Version::V3, Error::Filter),
        (&[0x82, 8, 0, 1, 0, 3, b'#', b'/', b'a', 0], Version::V3, Error::Filter),
        (&[0xa2, 6, 0, 1, 0, 2, b'+', b'a'], Version::V3, Error::Filter),
        // CONNACK.
        (&[0x20, 2, 2, 0], Version::V3, Error::AckFlags { flags: 2 }),
        (&[0x20, 2, 1, 5], Version::V3, Error::AckFlags { flags: 1 }),
    ] {
        assert_eq!(refused(bytes, version), expected, "{bytes:02x?}");
    }
}

#[test]
fn a_connect_that_contradicts_itself_is_refused() {
    let connect = |name: &[u8], level: u8, flags: u8, rest: &[u8]| {
        let mut body = vec![0, name.len() as u8];
        body.extend_from_slice(name);
        body.extend_from_slice(&[level, flags, 0, 60]);
        body.extend_from_slice(rest);
        [&[0x10, body.len() as u8][..], &body].concat()
    };
    let id = &[0, 1, b'd'][..];
    let flags = |flags| Error::ConnectFlags { flags };
    for (bytes, expected) in [
        (connect(b"MQTX", 4, 2, id), Error::ProtocolName),
        (connect(b"MQIsdp", 3, 2, id), Error::ProtocolLevel { level: 3 }),
        (connect(b"MQTT", 3, 2, id), Error::ProtocolLevel { level: 3 }),
        (connect(b"MQTT", 6, 2, id), Error::ProtocolLevel { level: 6 }),
        // [MQTT-3.1.2-3], [MQTT-3.1.2-11], [MQTT-3.1.2-14], [MQTT-3.1.2-22]
        (connect(b"MQTT", 4, 1, id), flags(1)),
        (connect(b"MQTT", 4, 0x08, id), flags(0x08)),
        (connect(b"MQTT", 4, 0x20, id), flags(0x20)),
        (connect(b"MQTT", 4, 0x1c, id), flags(0x1c)),
        (connect(b"MQTT", 4, 0x40, id), flags(0x40)),
        (connect(b"MQTT", 4, 0x80, id), Error::Truncated),
        (
            connect(b"MQTT", 4, 0x02, &[0, 1, b'd', 0]),
            Error::Trailing { bytes: 1 },
        ),
        (connect(b"MQTT", 4, 0x04, &[0, 1, b'd', 0, 1, b'#', 0, 0]), Error::Topic),
    ] {
        assert_eq!(refused(&bytes, Version::V3), expected, "{bytes:02x?}");
    }
    let plain = connect(b"MQTT", 4, 2, id);
    let Ok(Some((Packet::Connect(connect), _))) = Packet::decode(&plain, Version::V3) else {
        panic!("a CONNECT");
    };
    assert_eq!(
        (connect.client_id, connect.keep_alive, connect.is_clean),
        ("d", 60, true)
    );
}

#[test]
fn every_fault_has_a_reason_of_mqtt_5() {
    assert_eq!(Error::Length.reason(), Reason::MALFORMED_PACKET);
    assert_eq!(Error::Duplicate.reason(), Reason::PROTOCOL_ERROR);
    assert_eq!(Error::Topic.reason(), Reason::TOPIC_NAME_INVALID);
    assert_eq!(Error::TooLarge.reason(), Reason::PACKET_TOO_LARGE);
    assert_eq!(
        Error::ProtocolLevel { level: 9 }.reason(),
        Reason::UNSUPPORTED_PROTOCOL_VERSION
    );
}
