//! Devices over MQTT against a real hub: what they send, what they are sent, what is remembered of them, and what ends
//! their connections.

use std::time::Duration;

use forebay::proto::mqtt::{Disconnect, Packet, Properties, Property, QoS, Reason, Version, Will};
use serde_json::{Value, json};

use crate::hub::Hub;
use crate::mqtt_peer::{Hello, Message, MqttPeer, Said};
use crate::peers::{Chance, Site, device_token, sample, until, within};

const EVENTS: &str = "devices/lamp/messages/events/";
const COMMANDS: &str = "devices/lamp/messages/devicebound/#";
const V3: Version = Version::V3;
const V5: Version = Version::V5;

/// A hub with one device.
struct Lamp {
    hub: Hub,
    site: Site,
    key: String,
    token: String,
}

impl Lamp {
    async fn new(args: &[&str]) -> Self {
        let hub = Hub::start(args);
        let site = Site::of(&hub);
        let key = site.create_device("lamp").await;
        let token = device_token("lamp", &key, 3600);
        Self { hub, site, key, token }
    }

    fn hello(&self, version: Version) -> Hello<'_> {
        Hello::lamp(version, &self.token)
    }

    async fn peer(&self, version: Version) -> MqttPeer {
        MqttPeer::connect(&self.hub, self.hello(version)).await.0
    }

    async fn bodies(&self) -> Vec<String> {
        let bodies = self.site.read_by_device().await.remove("lamp").unwrap_or_default();
        bodies
            .into_iter()
            .map(|body| String::from_utf8(body).unwrap())
            .collect()
    }

    async fn command(&self, id: &str) {
        let command = json!({ "deviceId": "lamp", "body": format!("do {id}"), "system": { "message-id": id, "iothub-ack": "full" } });
        self.site.request("c2d.send", &command).await;
    }

    /// What a scrape says of a counter with a label.
    fn count(&self, name: &str, reason: &str) -> f64 {
        let line = format!("{name}{{reason=\"{reason}\"}} ");
        let metrics = self.hub.metrics();
        let value = metrics.lines().find_map(|known| known.strip_prefix(&line));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The last messages as `forebay tail` prints them.
    fn events(&self, count: usize) -> Vec<Value> {
        let printed = self
            .hub
            .run(&["tail", "--from", "earliest", "--count", &count.to_string(), "--json"])
            .expect_success();
        printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn telemetry_is_acknowledged_in_order_and_survives_a_crash() {
    let mut lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    let mut expected = Vec::new();
    for n in 1..=1200 {
        let body = format!("m-{n}");
        // QoS 0 in between.
        peer.publish(if n % 100 == 7 { 0 } else { n }, EVENTS, body.as_bytes())
            .await;
        expected.push(body);
    }
    for n in (1..=1200).filter(|n| n % 100 != 7) {
        assert_eq!(peer.hear().await, Said::PubAck(n, 0));
    }
    // Larger than a TLS record.
    let large = "x".repeat(200_000);
    peer.publish(1, EVENTS, large.as_bytes()).await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    expected.push(large);
    lamp.hub.kill9();
    lamp.hub.restart();
    assert_eq!(lamp.bodies().await, expected);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let lamp = Lamp::new(&["--set", "process.sync_gap=1s"]).await;
    let mut peer = lamp.peer(V3).await;
    peer.publish(1, EVENTS, b"first").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    // The next sync is a second off.
    peer.publish(2, EVENTS, b"second").await;
    let early = tokio::time::timeout(Duration::from_millis(300), peer.hear()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(peer.hear().await, Said::PubAck(2, 0));
}

#[tokio::test]
async fn properties_are_those_of_the_topic_and_of_the_packet() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    let bag = "%24.mid=m%201&%24.ct=application%2Fjson&a%20b=x%3D1%26y&none&empty=";
    peer.publish(1, &format!("{EVENTS}{bag}"), br#"{"a":1}"#).await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    drop(peer);
    let mut peer = lamp.peer(V5).await;
    let properties = [
        Property::ContentType("text/plain"),
        Property::CorrelationData(b"c-1"),
        Property::User("room", "hall"),
    ];
    peer.publish_with(2, EVENTS, b"five", false, &properties).await;
    assert_eq!(peer.hear().await, Said::PubAck(2, 0));
    let events = lamp.events(2);
    assert_eq!(
        events[0]["properties"],
        json!({ "a b": "x=1&y", "none": "", "empty": "" }),
        "{events:?}"
    );
    assert_eq!(events[0]["systemProperties"]["message-id"], "m 1", "{events:?}");
    assert_eq!(
        events[0]["systemProperties"]["content-type"], "application/json",
        "{events:?}"
    );
    assert_eq!(events[1]["properties"], json!({ "room": "hall" }), "{events:?}");
    assert_eq!(
        events[1]["systemProperties"]["content-type"], "text/plain",
        "{events:?}"
    );
    assert_eq!(events[1]["systemProperties"]["correlation-id"], "c-1", "{events:?}");
}

#[tokio::test]
async fn telemetry_names_the_model_its_device_follows() {
    let lamp = Lamp::new(&[]).await;
    let hello = || Hello {
        user_name: "localhost/lamp/?api-version=2020-09-30&model-id=dtmi%3Aexample%3ALamp%3B1",
        ..lamp.hello(V3)
    };
    let (mut peer, _) = MqttPeer::connect(&lamp.hub, hello()).await;
    // Not for the device to say otherwise.
    peer.publish(1, &format!("{EVENTS}$.dt-dataschema=dtmi:other;1&$.sub=switch"), b"x")
        .await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    let mut peer = lamp.peer(V3).await;
    peer.publish(1, EVENTS, b"y").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    let events = lamp.events(2);
    assert_eq!(events[0]["systemProperties"]["dt-dataschema"], "dtmi:example:Lamp;1");
    assert_eq!(events[0]["systemProperties"]["dt-subject"], "switch");
    assert_eq!(events[1]["systemProperties"]["dt-dataschema"], Value::Null);
    let long = format!("localhost/lamp/?api-version=2020-09-30&model-id={}", "x".repeat(2049));
    let hello = Hello {
        user_name: &long,
        ..lamp.hello(V3)
    };
    let (_, said) = MqttPeer::greet(&lamp.hub, hello).await;
    let refused = Said::ConnAck {
        present: false,
        code: 4,
    };
    assert_eq!(said, refused);
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let lamp = Lamp::new(&[]).await;
    let wrong = device_token("lamp", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", 3600);
    let expired = device_token("lamp", &lamp.key, 0);
    let token = lamp.token.as_str();
    let user = "localhost/lamp/?api-version=2021-04-12";
    for (client_id, user_name, password, code, reason, label) in [
        ("other", user, token, 2, 0x85, "client_id"),
        ("lamp", "lamp", token, 4, 0x86, "user_name"),
        ("lamp", user, "no token", 4, 0x86, "malformed"),
        ("lamp", user, &wrong, 5, 0x87, "signature"),
        ("lamp", user, &expired, 5, 0x87, "expired"),
        ("lamp", user, "", 5, 0x87, "missing"),
        (
            "lamp",
            "elsewhere/lamp/?api-version=2021-04-12",
            token,
            5,
            0x87,
            "unknown_host",
        ),
        (
            "nobody",
            "localhost/nobody/?api-version=2021-04-12",
            token,
            5,
            0x87,
            "scope",
        ),
    ] {
        for (version, expected) in [(V3, code), (V5, reason)] {
            let hello = Hello {
                client_id,
                user_name,
                password,
                ..lamp.hello(version)
            };
            let (mut peer, said) = MqttPeer::greet(&lamp.hub, hello).await;
            let refused = Said::ConnAck {
                present: false,
                code: expected,
            };
            assert_eq!(said, refused, "{label}");
            assert_eq!(peer.hear().await, Said::Closed, "{label}");
        }
        assert_eq!(lamp.count("forebay_mqtt_connects_refused_total", label), 2.0, "{label}");
    }
    // Other versions hear it in the words of 3.1.1.
    let mut peer = MqttPeer::open(&lamp.hub, V3).await;
    peer.write(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 3, 2, 0, 60, 0, 1, b'd'])
        .await;
    let said = Said::ConnAck {
        present: false,
        code: 1,
    };
    assert_eq!(peer.hear().await, said);
    assert_eq!(peer.hear().await, Said::Closed);
}

#[tokio::test]
async fn every_violation_ends_its_connection_with_its_reason() {
    let lamp = Lamp::new(&["--set", "mqtt.inflight_max=4", "--set", "process.sync_gap=1s"]).await;
    let raw = |bytes: &[u8]| bytes.to_vec();
    let packet = |packet: Packet<'_>| {
        let mut bytes = Vec::new();
        packet.encode(V5, &mut bytes).unwrap();
        bytes
    };
    let foreign = |topic: &str, qos: u8| {
        let mut bytes = vec![0x30 | qos << 1, 0];
        bytes.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        bytes.extend_from_slice(topic.as_bytes());
        if qos > 0 {
            bytes.extend_from_slice(&[0, 1]);
        }
        bytes.push(0);
        bytes[1] = bytes.len() as u8 - 2;
        bytes
    };
    let alias = [&[0x30, 7, 0, 1, b'a', 3, 35, 0, 1][..]].concat();
    // More than any packet may have, of which nothing but the length comes.
    let huge = raw(&[0x30, 0xff, 0xff, 0xff, 0x7f]);
    for (bytes, reason, label) in [
        (
            raw(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 0]),
            0x81,
            "malformed",
        ),
        (packet(Packet::PingResp), 0x82, "protocol"),
        (raw(&[0x50, 2, 0, 1]), 0x82, "protocol"),
        (raw(&[0x62, 2, 0, 1]), 0x82, "protocol"),
        (raw(&[0x70, 2, 0, 1]), 0x82, "protocol"),
        (raw(&[0xf0, 0]), 0x82, "protocol"),
        (raw(&[0x90, 4, 0, 1, 0, 0]), 0x82, "protocol"),
        (raw(&[0x00, 0]), 0x81, "malformed"),
        (raw(&[0xc1, 0]), 0x81, "malformed"),
        (raw(&[0xc0, 0x80, 0x80, 0x80, 0x80]), 0x81, "malformed"),
        (raw(&[0x40, 2, 0, 0]), 0x81, "malformed"),
        (foreign(EVENTS, 3), 0x81, "malformed"),
        (foreign(EVENTS, 2), 0x9b, "qos"),
        (alias, 0x94, "protocol"),
        (huge, 0x95, "too_large"),
        // A subscription identifier.
        (raw(&[0x82, 8, 0, 1, 2, 11, 1, 0, 1, b'a', 0][..10]), 0x81, "malformed"),
    ] {
        let before = lamp.count("forebay_mqtt_ended_total", label);
        let mut peer = lamp.peer(V5).await;
        peer.write(&bytes).await;
        assert_eq!(peer.end().await, reason, "{bytes:02x?}");
        let after = lamp.count("forebay_mqtt_ended_total", label);
        assert_eq!(after, before + 1.0, "{bytes:02x?} {label}");
        // 3.1.1 has no words for it.
        let mut peer = lamp.peer(V3).await;
        let is_v5_only = matches!(bytes[0], 0xf0 | 0x30 | 0x82 | 0x90) && reason != 0x95;
        if !is_v5_only {
            peer.write(&bytes).await;
            assert_eq!(peer.end().await, 0, "{bytes:02x?}");
        }
    }
    // More at a time than the hub said; a client of 3.1.1, which was not told, is only read more slowly.
    let mut peer = lamp.peer(V5).await;
    // The first ones may be stored at once, then a sync is a second off.
    for id in 1..=12 {
        peer.publish(id, EVENTS, b"x").await;
    }
    let mut ended = peer.hear().await;
    while matches!(ended, Said::PubAck(..)) {
        ended = peer.hear().await;
    }
    assert_eq!(ended, Said::Disconnect(0x93));
    let mut peer = lamp.peer(V3).await;
    for id in 1..=9 {
        peer.publish(id, EVENTS, b"x").await;
    }
    for id in 1..=9 {
        assert_eq!(peer.hear().await, Said::PubAck(id, 0));
    }
}

#[tokio::test]
async fn what_comes_before_the_connect_gets_no_answer() {
    let lamp = Lamp::new(&["--set", "mqtt.handshake_timeout=1s"]).await;
    for bytes in [
        &[0xc0, 0][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x10, 0xff, 0xff, 0xff, 0x7f],
    ] {
        let mut peer = MqttPeer::open(&lamp.hub, V3).await;
        peer.write(bytes).await;
        assert_eq!(peer.hear().await, Said::Closed);
    }
    let failed = |lamp: &Lamp| lamp.hub.metric("forebay_mqtt_handshakes_failed_total");
    let before = failed(&lamp);
    // Says nothing, or only a beginning.
    let mut silent = MqttPeer::open(&lamp.hub, V3).await;
    let mut slow = MqttPeer::open(&lamp.hub, V3).await;
    slow.write(&[0x10, 40, 0, 4]).await;
    assert_eq!(silent.hear().await, Said::Closed);
    assert_eq!(slow.hear().await, Said::Closed);
    assert_eq!(failed(&lamp), before + 2.0);
}

#[tokio::test]
async fn a_message_that_is_refused_ends_3_1_1_and_is_told_to_5() {
    let lamp = Lamp::new(&[]).await;
    let large = vec![0; 256 * 1024 + 1];
    for (topic, payload, reason, label) in [
        ("somewhere/else", &b"x"[..], 0x90, "topic"),
        ("devices/other/messages/events/", b"x", 0x87, "topic"),
        ("devices/lamp/messages/events/$.ctime=now", b"x", 0x83, "property"),
        (EVENTS, &large, 0x97, "too_large"),
    ] {
        let mut peer = lamp.peer(V3).await;
        peer.publish(1, topic, payload).await;
        assert_eq!(peer.end().await, 0, "{topic}");
        let mut peer = lamp.peer(V5).await;
        let before = lamp.count("forebay_mqtt_messages_refused_total", label);
        peer.publish(1, topic, payload).await;
        assert_eq!(peer.hear().await, Said::PubAck(1, reason), "{topic}");
        assert_eq!(lamp.count("forebay_mqtt_messages_refused_total", label), before + 1.0);
        peer.publish(2, EVENTS, b"goes on").await;
        assert_eq!(peer.hear().await, Said::PubAck(2, 0));
    }
    // The largest that is taken.
    let mut peer = lamp.peer(V3).await;
    peer.publish(3, EVENTS, &large[1..]).await;
    assert_eq!(peer.hear().await, Said::PubAck(3, 0));
}

#[tokio::test]
async fn a_session_is_kept_over_connections_and_crashes_until_it_is_cleaned() {
    let mut lamp = Lamp::new(&[]).await;
    let (mut peer, present) = MqttPeer::connect(&lamp.hub, lamp.hello(V3)).await;
    assert!(!present);
    let filters = [
        (COMMANDS, QoS::ExactlyOnce),
        ("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce),
        ("devices/other/messages/devicebound/#", QoS::AtLeastOnce),
        ("#", QoS::AtLeastOnce),
    ];
    assert_eq!(peer.subscribe(&filters).await, [1, 0, 0x80, 0x80]);
    lamp.hub.kill9();
    lamp.hub.restart();
    lamp.command("m-2").await;
    let (mut peer, present) = MqttPeer::connect(&lamp.hub, lamp.hello(V3)).await;
    assert!(present);
    let message = peer.message().await;
    assert_eq!((message.payload.as_slice(), message.qos), (&b"do m-2"[..], 1));
    peer.acknowledge(message.id.unwrap(), 0).await;
    lamp.hub
        .run(&["twin", "patch", "lamp", r#"{"properties":{"desired":{"on":true}}}"#])
        .expect_success();
    let desired = peer.message().await;
    assert_eq!(desired.topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    assert_eq!(
        serde_json::from_slice::<Value>(&desired.payload).unwrap(),
        json!({ "on": true, "$version": 2 })
    );
    // Nothing comes any more, and then there is no such session.
    peer.unsubscribe(COMMANDS).await;
    lamp.command("m-3").await;
    assert!(
        tokio::time::timeout(Duration::from_millis(300), peer.hear())
            .await
            .is_err()
    );
    let clean = Hello {
        is_clean: true,
        ..lamp.hello(V3)
    };
    assert!(!MqttPeer::connect(&lamp.hub, clean).await.1);
    assert!(!MqttPeer::connect(&lamp.hub, lamp.hello(V3)).await.1);
    // MQTT 5 says for how long.
    let expiring = |seconds| [Property::SessionExpiry(seconds)];
    for (seconds, is_kept) in [(0, false), (600, true)] {
        let properties = expiring(seconds);
        let hello = || Hello {
            properties: &properties,
            ..lamp.hello(V5)
        };
        let (mut peer, _) = MqttPeer::connect(&lamp.hub, hello()).await;
        peer.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]).await;
        drop(peer);
        let kept = within(until("the session's end", || {
            (sample(&lamp.hub, "forebay_sessions{kind=\"device\"}") == 0.0).then_some(())
        }));
        kept.await;
        assert_eq!(MqttPeer::connect(&lamp.hub, hello()).await.1, is_kept, "{seconds}");
    }
}

#[tokio::test]
async fn what_was_stored_is_not_stored_again_and_what_was_not_is() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    for (id, body) in [(1, "a"), (2, "b")] {
        peer.publish(id, EVENTS, body.as_bytes()).await;
        assert_eq!(peer.hear().await, Said::PubAck(id, 0));
    }
    // On the same connection.
    peer.publish_with(2, EVENTS, b"b", true, &[]).await;
    assert_eq!(peer.hear().await, Said::PubAck(2, 0));
    drop(peer);
    let mut peer = lamp.peer(V3).await;
    // Known, known with another content, unknown.
    for (id, body) in [(1, "a"), (2, "B"), (3, "c")] {
        peer.publish_with(id, EVENTS, body.as_bytes(), true, &[]).await;
        assert_eq!(peer.hear().await, Said::PubAck(id, 0));
    }
    // The packet id is used again.
    peer.publish(1, EVENTS, b"a").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    assert_eq!(lamp.bodies().await, ["a", "b", "B", "c", "a"]);
    assert_eq!(lamp.hub.metric("forebay_mqtt_duplicates_total"), 2.0);
    // Another door has served the device: the hub does not know any more, and rather stores it.
    drop(peer);
    let device = lamp.site.device("lamp", &lamp.key);
    let receipt = within(device.send(&forebay::model::Message::new("quic")))
        .await
        .unwrap();
    within(device.acknowledged(receipt)).await.unwrap();
    drop(device);
    let mut peer = lamp.peer(V3).await;
    peer.publish_with(3, EVENTS, b"c", true, &[]).await;
    assert_eq!(peer.hear().await, Said::PubAck(3, 0));
    assert_eq!(lamp.bodies().await, ["a", "b", "B", "c", "a", "quic", "c"]);
    // A clean session knows nothing.
    drop(peer);
    let clean = Hello {
        is_clean: true,
        ..lamp.hello(V3)
    };
    let (mut peer, _) = MqttPeer::connect(&lamp.hub, clean).await;
    peer.publish_with(3, EVENTS, b"c", true, &[]).await;
    assert_eq!(peer.hear().await, Said::PubAck(3, 0));
    assert_eq!(lamp.bodies().await.len(), 8);
}

#[tokio::test]
async fn messages_to_a_device_are_completed_by_its_acknowledgement() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    assert_eq!(peer.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]).await, [1]);
    for id in ["m-1", "m-2", "m-3"] {
        lamp.command(id).await;
    }
    let mut taken = Vec::new();
    for id in ["m-1", "m-2", "m-3"] {
        let message = peer.message().await;
        let start = format!(
            "devices/lamp/messages/devicebound/%24.mid={id}&%24.to=%2Fdevices%2Flamp%2Fmessages%2FdeviceBound&"
        );
        assert!(message.topic.starts_with(&start), "{}", message.topic);
        assert!(message.topic.contains("&iothub-ack=full"), "{}", message.topic);
        taken.push(message);
    }
    peer.acknowledge(taken[0].id.unwrap(), 0).await;
    // One that was never sent.
    peer.acknowledge(999, 0).await;
    peer.say(&Packet::PingReq).await;
    assert_eq!(peer.hear().await, Said::PingResp);
    drop(peer);
    // Those that were not acknowledged come again, also to a client of MQTT 5, which can refuse.
    let mut peer = lamp.peer(V5).await;
    assert_eq!(peer.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]).await, [1]);
    let again = [peer.message().await, peer.message().await];
    assert_eq!(
        again.each_ref().map(|message| message.payload.clone()),
        [b"do m-2", b"do m-3"]
    );
    assert!(again[0].properties.contains("MessageExpiry"), "{:?}", again[0]);
    peer.acknowledge(again[0].id.unwrap(), 0x83).await;
    peer.acknowledge(again[1].id.unwrap(), 0).await;
    let feedback = lamp.hub.run(&["feedback", "tail", "--count", "3"]).expect_success();
    for outcome in ["Success m-1", "Rejected m-2", "Success m-3"] {
        assert!(feedback.contains(outcome), "{feedback}");
    }
    // Asked for at most once: sent is done.
    assert_eq!(peer.subscribe(&[(COMMANDS, QoS::AtMostOnce)]).await, [0]);
    lamp.command("m-4").await;
    let message = peer.message().await;
    assert_eq!((message.qos, message.id), (0, None));
    let feedback = lamp.hub.run(&["feedback", "tail", "--count", "1"]).expect_success();
    assert!(feedback.contains("Success m-4"), "{feedback}");
}

/// Accident: more to say at once than the hub holds for a client, and it listened no more until the client was silent for
/// too long.
#[tokio::test]
async fn messages_that_fill_the_buffer_are_all_taken() {
    let lamp = Lamp::new(&[]).await;
    for n in 0..12 {
        let command = json!({ "deviceId": "lamp", "body": format!("{n:060000}") });
        lamp.site.request("c2d.send", &command).await;
    }
    let mut peer = lamp.peer(V3).await;
    peer.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]).await;
    for n in 0..12 {
        let message = peer.message().await;
        assert!(message.payload.ends_with(format!("{n:03}").as_bytes()), "{n}");
        peer.acknowledge(message.id.unwrap(), 0).await;
    }
    peer.publish(1, EVENTS, b"goes on").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
}

#[tokio::test]
async fn a_twin_is_read_and_reported_on_topics() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    // Who has not subscribed is not answered.
    peer.publish(0, "$iothub/twin/GET/?$rid=0", b" ").await;
    peer.subscribe(&[("$iothub/twin/res/#", QoS::AtLeastOnce)]).await;
    let ask = async |peer: &mut MqttPeer, id: u16, topic: &str, body: &str| -> Message {
        peer.publish(id, topic, body.as_bytes()).await;
        if id > 0 {
            assert_eq!(peer.hear().await, Said::PubAck(id, 0));
        }
        peer.message().await
    };
    let twin = ask(&mut peer, 0, "$iothub/twin/GET/?$rid=a%20b", " ").await;
    assert_eq!(twin.topic, "$iothub/twin/res/200/?$rid=a%20b");
    let expected = json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } });
    assert_eq!(serde_json::from_slice::<Value>(&twin.payload).unwrap(), expected);
    let report = "$iothub/twin/PATCH/properties/reported/?$rid=";
    let reported = ask(&mut peer, 7, &format!("{report}1"), r#"{"on":true,"off":null}"#).await;
    assert_eq!(
        (reported.topic.as_str(), reported.payload.len()),
        ("$iothub/twin/res/204/?$rid=1&$version=2", 0)
    );
    for (rest, body, status, code) in [
        ("2", "no JSON", 400, 400_006),
        ("3&$version=1", "{}", 412, 412_001),
        ("4&$version=x", "{}", 400, 400_004),
    ] {
        let refused = ask(&mut peer, 0, &format!("{report}{rest}"), body).await;
        let rid = &rest[..1];
        assert_eq!(refused.topic, format!("$iothub/twin/res/{status}/?$rid={rid}"));
        let body: Value = serde_json::from_slice(&refused.payload).unwrap();
        assert_eq!(body["errorCode"], code, "{body}");
    }
    // A client of MQTT 5 finds its own correlation data again.
    let mut peer = lamp.peer(V5).await;
    peer.subscribe(&[("$iothub/twin/res/#", QoS::AtMostOnce)]).await;
    let correlated = [Property::CorrelationData(b"mine")];
    peer.publish_with(0, "$iothub/twin/GET/?$rid=1", b"", false, &correlated)
        .await;
    let twin = peer.message().await;
    assert!(twin.properties.contains("109, 105, 110, 101"), "{twin:?}");
}

#[tokio::test]
async fn methods_are_called_and_answered_on_topics() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer(V3).await;
    peer.subscribe(&[("$iothub/methods/POST/blink/#", QoS::AtMostOnce)])
        .await;
    let service = lamp.site.service().await;
    let call =
        |name: &str| json!({ "deviceId": "lamp", "methodName": name, "payload": [1], "responseTimeoutInSeconds": 5 });
    // Only what is subscribed to is called.
    let refused = within(service.request("method.invoke", &call("other")))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("404103"), "{refused}");
    let blink = call("blink");
    let (answer, request) = tokio::join!(within(service.request("method.invoke", &blink)), async {
        let request = peer.message().await;
        let rid = request
            .topic
            .strip_prefix("$iothub/methods/POST/blink/?$rid=")
            .unwrap()
            .to_owned();
        // Nobody's answer, and no answer.
        peer.publish(0, "$iothub/methods/res/200/?$rid=ffff", b"{}").await;
        peer.publish(0, &format!("$iothub/methods/res/207/?$rid={rid}"), br#"{"done":1}"#)
            .await;
        request
    });
    assert_eq!((request.qos, request.payload.as_slice()), (0, &b"[1]"[..]));
    assert_eq!(answer.unwrap(), json!({ "status": 207, "payload": { "done": 1 } }));
    // In MQTT 5 the request says where the answer goes, and the answer its status beside.
    let mut peer = lamp.peer(V5).await;
    peer.subscribe(&[("$iothub/methods/POST/#", QoS::AtMostOnce)]).await;
    let (answer, ()) = tokio::join!(within(service.request("method.invoke", &blink)), async {
        let request = peer.message().await;
        let start = request.properties.find("ResponseTopic(\"").unwrap() + "ResponseTopic(\"".len();
        let topic: String = request.properties[start..].chars().take_while(|c| *c != '"').collect();
        peer.publish_with(0, &topic, b"", false, &[Property::User("status", "418")])
            .await;
    });
    assert_eq!(answer.unwrap(), json!({ "status": 418, "payload": null }));
}

#[tokio::test]
async fn an_identity_has_one_connection_whatever_it_speaks() {
    let lamp = Lamp::new(&[]).await;
    let mut first = lamp.peer(V5).await;
    let mut second = lamp.peer(V5).await;
    assert_eq!(first.end().await, 0x8e);
    second.publish(1, EVENTS, b"x").await;
    assert_eq!(second.hear().await, Said::PubAck(1, 0));
    let device = lamp.site.device("lamp", &lamp.key);
    within(device.connected()).await.unwrap();
    assert_eq!(second.end().await, 0x8e);
    let mut third = lamp.peer(V3).await;
    third.publish(1, EVENTS, b"y").await;
    assert_eq!(third.hear().await, Said::PubAck(1, 0));
    assert!(lamp.count("forebay_mqtt_ended_total", "taken_over") >= 2.0);
}

#[tokio::test]
async fn a_connection_ends_with_its_credential_its_silence_and_its_identity() {
    let lamp = Lamp::new(&[]).await;
    let short = device_token("lamp", &lamp.key, 2);
    let mut peer = MqttPeer::connect(&lamp.hub, Hello::lamp(V5, &short)).await.0;
    assert_eq!(peer.end().await, 0xa0);
    let quiet = Hello {
        keep_alive: 1,
        ..lamp.hello(V5)
    };
    let mut peer = MqttPeer::connect(&lamp.hub, quiet).await.0;
    assert_eq!(peer.end().await, 0x8d);
    let mut peer = lamp.peer(V5).await;
    lamp.hub.run(&["device", "disable", "lamp"]).expect_success();
    assert_eq!(peer.end().await, 0x98);
    let (_, said) = MqttPeer::greet(&lamp.hub, lamp.hello(V3)).await;
    let refused = Said::ConnAck {
        present: false,
        code: 5,
    };
    assert_eq!(said, refused);
}

#[tokio::test]
async fn a_will_is_published_unless_the_device_says_goodbye() {
    let lamp = Lamp::new(&[]).await;
    let will = |payload: &'static [u8]| Will {
        qos: QoS::AtLeastOnce,
        is_retain: true,
        topic: "devices/lamp/messages/events/why=lost",
        payload,
        properties: Properties::NONE,
    };
    let goodbye = |reason| {
        Packet::Disconnect(Disconnect {
            reason: Reason(reason),
            properties: Properties::NONE,
        })
    };
    let connect = async |version, payload| {
        let hello = Hello {
            will: Some(will(payload)),
            ..lamp.hello(version)
        };
        MqttPeer::connect(&lamp.hub, hello).await.0
    };
    drop(connect(V3, b"lost").await);
    until("the will", || {
        (lamp.hub.metric("forebay_mqtt_wills_total") == 1.0).then_some(())
    })
    .await;
    let mut polite = connect(V3, b"never").await;
    polite.say(&goodbye(0)).await;
    assert_eq!(polite.end().await, 0);
    let mut insistent = connect(V5, b"insisted").await;
    insistent.say(&goodbye(0x04)).await;
    assert_eq!(insistent.end().await, 0);
    until("the second will", || {
        (lamp.hub.metric("forebay_mqtt_wills_total") == 2.0).then_some(())
    })
    .await;
    assert_eq!(lamp.bodies().await, ["lost", "insisted"]);
    let events = lamp.events(1);
    let marks = json!({ "why": "lost", "mqtt-retain": "true", "iothub-MessageType": "Will" });
    assert_eq!(events[0]["properties"], marks);
    // Another's topic.
    let stolen = Will {
        topic: "devices/other/messages/events/",
        ..will(b"x")
    };
    let hello = Hello {
        will: Some(stolen),
        ..lamp.hello(V3)
    };
    let (_, said) = MqttPeer::greet(&lamp.hub, hello).await;
    let refused = Said::ConnAck {
        present: false,
        code: 2,
    };
    assert_eq!(said, refused);
}

#[tokio::test]
async fn a_hub_that_stops_stores_what_it_took_and_says_goodbye() {
    let mut lamp = Lamp::new(&["--set", "process.sync_gap=500ms"]).await;
    let mut peer = lamp.peer(V5).await;
    peer.publish(1, EVENTS, b"a").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    for id in 2..=20 {
        peer.publish(id, EVENTS, b"b").await;
    }
    // Read, but not synced yet.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = lamp.hub.sigterm();
    assert!(status.success());
    for id in 2..=20 {
        assert_eq!(peer.hear().await, Said::PubAck(id, 0));
    }
    assert_eq!(peer.end().await, 0x8b);
}

#[tokio::test]
async fn who_sends_too_fast_is_slowed_down_and_loses_nothing() {
    let lamp = Lamp::new(&[
        "--set",
        "throttles.device_messages_per_second=200",
        "--set",
        "throttles.device_messages_burst=10",
    ])
    .await;
    let mut peer = lamp.peer(V3).await;
    let begun = std::time::Instant::now();
    for id in 1..=300 {
        peer.publish(id, EVENTS, format!("{id}").as_bytes()).await;
    }
    for id in 1..=300 {
        assert_eq!(peer.hear().await, Said::PubAck(id, 0));
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    let expected: Vec<String> = (1..=300).map(|id| id.to_string()).collect();
    assert_eq!(lamp.bodies().await, expected);
}

/// Newcomers wait for their turn, all of them get it, and who is there already does not wait with them.
#[tokio::test]
async fn a_storm_is_let_in_at_a_rate() {
    let lamp = Lamp::new(&["--set", "mqtt.handshakes_per_second=40"]).await;
    let mut peer = lamp.peer(V3).await;
    let begun = std::time::Instant::now();
    let storm = async {
        let hub = &lamp.hub;
        let mut waiting: Vec<_> = (0..60).map(|_| Box::pin(MqttPeer::open(hub, V3))).collect();
        let mut open = Vec::new();
        for coming in &mut waiting {
            open.push(coming.await);
        }
        begun.elapsed()
    };
    let steady = async {
        let mut slowest = Duration::ZERO;
        for id in 1..=50 {
            let sent = std::time::Instant::now();
            peer.publish(id, EVENTS, b"x").await;
            assert_eq!(peer.hear().await, Said::PubAck(id, 0));
            slowest = slowest.max(sent.elapsed());
        }
        slowest
    };
    let (took, slowest) = tokio::join!(storm, steady);
    // One after the other: 60 turns at 40 a second, a burst of two among them.
    assert!(took >= Duration::from_millis(1300), "{took:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

/// A device that resends with DUP what it has no acknowledgement for, while the hub is killed again and again.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_hub_is_killed() {
    const IN_FLIGHT: usize = 20;
    let points: u64 = std::env::var("FOREBAY_KILL9_POINTS").map_or(3, |points| points.parse().unwrap());
    let mut chance = Chance::new(Chance::seed());
    let mut lamp = Lamp::new(&[]).await;
    let (mut next, mut duplicates) = (1_u64, 0);
    // Sent and not acknowledged: packet id, number.
    let mut waiting: std::collections::VecDeque<(u16, u64)> = std::collections::VecDeque::new();
    for _ in 0..=points {
        let mut peer = lamp.peer(V3).await;
        for (id, number) in &waiting {
            peer.publish_with(*id, EVENTS, number.to_string().as_bytes(), true, &[])
                .await;
        }
        let until = chance.within(200..=2000) + next;
        while next < until {
            while waiting.len() < IN_FLIGHT {
                let id = (next % 60_000) as u16 + 1;
                peer.publish(id, EVENTS, next.to_string().as_bytes()).await;
                waiting.push_back((id, next));
                next += 1;
            }
            let Said::PubAck(id, 0) = peer.hear().await else {
                panic!("no PUBACK")
            };
            assert_eq!(waiting.pop_front().map(|(id, _)| id), Some(id));
        }
        lamp.hub.kill9();
        lamp.hub.restart();
    }
    let mut highest = 0;
    let mut seen = std::collections::BTreeSet::new();
    for body in lamp.bodies().await {
        let number: u64 = body.parse().unwrap();
        if !seen.insert(number) {
            duplicates += 1;
        } else {
            // New ones come in their order.
            assert!(number > highest, "{number} after {highest}");
            highest = number;
        }
    }
    let first_unknown = waiting.front().map_or(next, |(_, number)| *number);
    let lost: Vec<u64> = (1..first_unknown).filter(|number| !seen.contains(number)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    println!("{} messages, {points} kills, {duplicates} stored twice", next - 1);
    assert!(duplicates <= points * IN_FLIGHT as u64, "{duplicates}");
}
