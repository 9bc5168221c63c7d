//! MQTT as another encoder writes it: `mqtt/<what>.<v3 or v5>.hex`, by mqtt-packet (JavaScript). What it says must be
//! read, and written in the same bytes.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use forebay::proto::mqtt::{
    Ack, Auth, ConnAck, Connect, Disconnect, Filter, Packet, Properties, Property, PropertyBuf, Publish, QoS, Reason,
    SubAck, UnsubAck, Version, Will,
};

const TELEMETRY: &str = "devices/lamp/messages/events/%24.mid=m-1&level=high";
const USERS: [Property<'static>; 2] = [Property::User("room", "hall"), Property::User("ü", "x y")];
const BOTH: [Version; 2] = [Version::V3, Version::V5];

fn file(what: &str, version: Version) -> String {
    let version = match version {
        Version::V3 => "v3",
        Version::V5 => "v5",
    };
    format!("mqtt/{what}.{version}.hex")
}

fn id(id: u16) -> NonZeroU16 {
    NonZeroU16::new(id).unwrap()
}

/// Those of MQTT 5; 3.1.1 has none.
fn with(version: Version, properties: &[Property<'_>]) -> PropertyBuf {
    let mut buf = PropertyBuf::default();
    if version == Version::V5 {
        properties.iter().for_each(|property| buf.push(*property));
    }
    buf
}

/// Reads a vector as this packet, and writes the packet as the vector.
fn check(what: &str, version: Version, packet: &Packet<'_>) {
    let name = file(what, version);
    let bytes = super::read(&name);
    assert_eq!(
        Packet::decode(&bytes, version),
        Ok(Some((*packet, bytes.len()))),
        "{name}"
    );
    let mut written = Vec::new();
    packet.encode(version, &mut written).unwrap();
    assert_eq!(written, bytes, "{name}");
}

#[test]
fn connections_begin() {
    for version in BOTH {
        let properties = with(
            version,
            &[
                Property::SessionExpiry(600),
                Property::ReceiveMaximum(20),
                Property::MaximumPacketSize(100_000),
                Property::RequestProblemInfo(1),
                USERS[0],
                USERS[1],
            ],
        );
        let connect = Connect {
            version,
            is_clean: false,
            keep_alive: 60,
            client_id: "lamp",
            will: None,
            user_name: Some("hub.example/lamp/?api-version=2021-04-12"),
            password: Some(b"SharedAccessSignature sr=x"),
            properties: properties.as_properties(),
        };
        check("connect", version, &Packet::Connect(connect));
        let of_will = with(version, &[Property::WillDelay(30), Property::ContentType("text/plain")]);
        let connect = Connect {
            is_clean: true,
            keep_alive: 0,
            will: Some(Will {
                qos: QoS::AtLeastOnce,
                is_retain: true,
                topic: "devices/lamp/messages/events/",
                payload: b"gone",
                properties: of_will.as_properties(),
            }),
            user_name: None,
            password: None,
            properties: Properties::NONE,
            ..connect
        };
        check("connect-will", version, &Packet::Connect(connect));
        let properties = with(
            version,
            &[
                Property::ReceiveMaximum(1024),
                Property::MaximumQoS(1),
                Property::RetainAvailable(0),
                Property::ServerKeepAlive(1177),
                Property::AssignedClientId("lamp"),
            ],
        );
        let ack = ConnAck {
            is_session_present: true,
            code: 0,
            properties: properties.as_properties(),
        };
        check("connack", version, &Packet::ConnAck(ack));
        let properties = with(version, &[Property::ReasonString("not authorized")]);
        let ack = ConnAck {
            is_session_present: false,
            code: if version == Version::V3 { 5 } else { 0x87 },
            properties: properties.as_properties(),
        };
        check("connack-refused", version, &Packet::ConnAck(ack));
    }
}

#[test]
fn messages_are_published() {
    for version in BOTH {
        let plain = Publish {
            is_dup: false,
            qos: QoS::AtMostOnce,
            is_retain: true,
            topic: TELEMETRY,
            packet_id: None,
            properties: Properties::NONE,
            payload: b"{}",
        };
        check("publish-0", version, &Packet::Publish(plain));
        let properties = with(
            version,
            &[
                Property::PayloadFormat(1),
                Property::MessageExpiry(60),
                Property::ContentType("text/plain"),
                Property::CorrelationData(b"c"),
                Property::ResponseTopic("a/b"),
                USERS[0],
                USERS[1],
            ],
        );
        let again = Publish {
            is_dup: true,
            qos: QoS::AtLeastOnce,
            is_retain: false,
            packet_id: Some(id(0x1234)),
            properties: properties.as_properties(),
            payload: br#"{"on":true}"#,
            ..plain
        };
        check("publish-1", version, &Packet::Publish(again));
        let empty = Publish {
            qos: QoS::ExactlyOnce,
            is_retain: false,
            topic: "a",
            packet_id: Some(id(65_535)),
            payload: b"",
            ..plain
        };
        check("publish-2", version, &Packet::Publish(empty));
        let long = Publish {
            qos: QoS::AtLeastOnce,
            packet_id: Some(id(1)),
            payload: &[0xff; 200],
            ..empty
        };
        check("publish-long", version, &Packet::Publish(long));
    }
}

#[test]
fn messages_are_acknowledged() {
    type Kind = fn(Ack<'_>) -> Packet<'_>;
    let kinds: [(&str, Kind, u8); 4] = [
        ("puback", |ack| Packet::PubAck(ack), 0x97),
        ("pubrec", |ack| Packet::PubRec(ack), 0x97),
        ("pubrel", |ack| Packet::PubRel(ack), 0x92),
        ("pubcomp", |ack| Packet::PubComp(ack), 0x92),
    ];
    for (what, kind, reason) in kinds {
        for version in BOTH {
            check(what, version, &kind(Ack::new(id(7), Reason::SUCCESS)));
        }
        let properties = with(Version::V5, &[Property::ReasonString("why"), USERS[0], USERS[1]]);
        let ack = Ack {
            packet_id: id(7),
            reason: Reason(reason),
            properties: properties.as_properties(),
        };
        check(&format!("{what}-reason"), Version::V5, &kind(ack));
    }
}

#[test]
fn filters_are_subscribed_and_unsubscribed() {
    for version in BOTH {
        let is_v5 = version == Version::V5;
        let filters = [
            Filter::new("devices/lamp/messages/devicebound/#", QoS::AtLeastOnce),
            Filter {
                filter: "$iothub/methods/POST/#",
                qos: QoS::AtMostOnce,
                no_local: is_v5,
                retain_as_published: is_v5,
                retain_handling: if is_v5 { 2 } else { 0 },
            },
        ];
        let properties = with(version, &[Property::SubscriptionId(300), USERS[0], USERS[1]]);
        let bytes = super::read(&file("subscribe", version));
        let mut written = Vec::new();
        Packet::encode_subscribe(id(9), &properties.as_properties(), &filters, version, &mut written).unwrap();
        assert_eq!(written, bytes);
        let Ok(Some((Packet::Subscribe(subscribe), _))) = Packet::decode(&bytes, version) else {
            panic!("a SUBSCRIBE");
        };
        assert_eq!(
            (subscribe.packet_id, subscribe.properties),
            (id(9), properties.as_properties())
        );
        assert_eq!(subscribe.filters().collect::<Vec<_>>(), filters);

        let filters = ["$iothub/twin/res/#", "a"];
        let properties = with(version, &USERS);
        let bytes = super::read(&file("unsubscribe", version));
        let mut written = Vec::new();
        Packet::encode_unsubscribe(id(10), &properties.as_properties(), &filters, version, &mut written).unwrap();
        assert_eq!(written, bytes);
        let Ok(Some((Packet::Unsubscribe(unsubscribe), _))) = Packet::decode(&bytes, version) else {
            panic!("an UNSUBSCRIBE");
        };
        assert_eq!(
            (unsubscribe.packet_id, unsubscribe.properties),
            (id(10), properties.as_properties())
        );
        assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), filters);

        let properties = with(version, &[Property::ReasonString("why")]);
        let ack = SubAck {
            packet_id: id(9),
            properties: properties.as_properties(),
            codes: &[1, 0, 0x80],
        };
        check("suback", version, &Packet::SubAck(ack));
        let ack = UnsubAck {
            packet_id: id(10),
            properties: Properties::NONE,
            codes: if is_v5 { &[0, 0x11] } else { &[] },
        };
        check("unsuback", version, &Packet::UnsubAck(ack));
    }
}

#[test]
fn connections_are_kept_and_ended() {
    for version in BOTH {
        check("pingreq", version, &Packet::PingReq);
        check("pingresp", version, &Packet::PingResp);
        let properties = with(
            version,
            &[Property::ReasonString("elsewhere"), Property::ServerReference("b")],
        );
        let disconnect = Disconnect {
            reason: if version == Version::V3 {
                Reason::SUCCESS
            } else {
                Reason::SESSION_TAKEN_OVER
            },
            properties: properties.as_properties(),
        };
        check("disconnect", version, &Packet::Disconnect(disconnect));
    }
    let properties = with(Version::V5, &[Property::AuthMethod("m"), Property::AuthData(b"d")]);
    let auth = Auth {
        reason: Reason(0x18),
        properties: properties.as_properties(),
    };
    check("auth", Version::V5, &Packet::Auth(auth));
}

/// A vector that no test names proves nothing.
#[test]
fn every_vector_has_a_test() {
    let folder = super::folder().join("mqtt");
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let whats: BTreeSet<String> = names
        .filter_map(|name| Some(name.strip_suffix(".hex")?.split('.').next()?.to_owned()))
        .collect();
    let source = include_str!("mqtt.rs");
    for what in whats {
        let named = what.strip_suffix("-reason").unwrap_or(&what);
        assert!(source.contains(&format!("\"{named}\"")), "{what}");
    }
}
