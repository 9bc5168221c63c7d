//! Event Hubs consumers and services over AMQP against a real hub: what they read, what they send, what ends their links.

use std::time::Duration;

use forebay::hub::connection_string::ConnectionString;
use forebay::hub::sas;
use forebay::proto::amqp::message::{Body, Message, MessageWriter, Properties};
use forebay::proto::amqp::performative::{ReceiverSettles, SenderSettles, find};
use forebay::proto::amqp::value::Value;
use forebay::proto::amqp::{DeliveryState, Error};
use forebay::server::EVENTHUB_NAME;
use serde_json::json;

use crate::amqp_peer::{AmqpPeer, Asked, Received};
use crate::hub::Hub;
use crate::peers::{Site, decode_key, now_seconds, sample};

/// Of two, the partition of the device that sends.
pub const READER: &str = "forebay/ConsumerGroups/$Default/Partitions/0";
const COMMANDS: &str = "/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";

fn owner_key(hub: &Hub) -> String {
    let text = &hub.endpoints().iothub_connection_string;
    ConnectionString::parse(text).unwrap().shared_access_key.unwrap()
}

/// As Event Hubs clients make them: over a full address, with the key's text.
pub fn events_token(hub: &Hub, path: &str, seconds: u64) -> String {
    let key = owner_key(hub);
    let resource = format!("sb://localhost/{path}");
    sas::generate(&resource, key.as_bytes(), now_seconds() + seconds, Some("iothubowner"))
}

/// As service clients make them: over the hub's name, with the decoded key.
fn hub_token(hub: &Hub, seconds: u64) -> String {
    let key = decode_key(&owner_key(hub));
    sas::generate("localhost", &key, now_seconds() + seconds, Some("iothubowner"))
}

fn reader(selector: &str) -> Asked<'_> {
    Asked {
        selector: Some(selector),
        sender_settles: SenderSettles::Settled,
        ..Asked::receiver(READER)
    }
}

fn condition(error: Option<Error>) -> String {
    error.expect("a reason").condition.name().to_owned()
}

/// Sequence number and body.
fn event(received: &Received) -> (i64, String) {
    let message = Message::read(&received.payload).unwrap();
    let number = find(message.annotations.as_ref().unwrap(), "x-opt-sequence-number");
    let Body::Data(data) = message.body else {
        panic!("no data")
    };
    let body = String::from_utf8(data.concat()).unwrap();
    (number.and_then(|value| value.as_integer()).unwrap(), body)
}

async fn events(peer: &mut AmqpPeer, handle: u32, count: usize) -> Vec<(i64, String)> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(event(&peer.receive(handle).await));
    }
    events
}

fn expected(numbers: std::ops::Range<i64>) -> Vec<(i64, String)> {
    numbers.map(|n| (n, format!("m-{n}"))).collect()
}

/// A hub of one partition with so many messages `m-0` and on.
async fn hub_with(messages: usize) -> (Hub, Site) {
    let hub = Hub::start(&["--set", "identity.partition_count=2"]);
    let site = Site::of(&hub);
    site.create_device("lamp").await;
    send(&hub, 0, messages);
    (hub, site)
}

fn send(hub: &Hub, from: usize, count: usize) {
    let lines: String = (from..from + count).map(|n| format!("m-{n}\n")).collect();
    hub.run_with_input(&["send", "lamp", "--lines"], lines.as_bytes())
        .expect_success();
}

#[tokio::test]
async fn readers_begin_where_they_ask_to_and_follow_what_comes() {
    let (mut hub, _site) = hub_with(10).await;
    let mut peer = AmqpPeer::with_token(&hub, &events_token(&hub, EVENTHUB_NAME, 3600)).await;
    let at = |selector| reader(selector);
    for (handle, selector, first) in [
        (1, "amqp.annotation.x-opt-offset > '-1'", 0),
        (2, "amqp.annotation.x-opt-offset > '3'", 4),
        (3, "amqp.annotation.x-opt-offset >= '3'", 3),
        (4, "amqp.annotation.x-opt-sequence-number > 7", 8),
        (5, "amqp.annotation.x-opt-enqueued-time > '0'", 0),
    ] {
        peer.attach(handle, at(selector)).await.unwrap();
        peer.grant(handle, 0, 100).await;
        assert_eq!(
            events(&mut peer, handle, 10 - first).await,
            expected(first as i64..10),
            "{selector}"
        );
    }
    peer.attach(6, at("amqp.annotation.x-opt-offset > '@latest'"))
        .await
        .unwrap_err();
    peer.detach(1).await;
    peer.attach(6, at("amqp.annotation.x-opt-offset > '@latest'"))
        .await
        .unwrap();
    peer.grant(6, 0, 100).await;
    send(&hub, 10, 3);
    assert_eq!(events(&mut peer, 6, 3).await, expected(10..13));
    // Credit is all a reader gets.
    peer.detach(2).await;
    peer.attach(7, at("amqp.annotation.x-opt-offset > '-1'")).await.unwrap();
    peer.grant(7, 0, 5).await;
    assert_eq!(events(&mut peer, 7, 5).await, expected(0..5));
    let more = tokio::time::timeout(Duration::from_millis(200), peer.receive(7)).await;
    assert!(more.is_err(), "more than the credit");
    peer.grant(7, 5, 8).await;
    assert_eq!(events(&mut peer, 7, 8).await, expected(5..13));
    // After a crash a reader goes on where it was.
    hub.kill9();
    hub.restart();
    let mut peer = AmqpPeer::with_token(&hub, &events_token(&hub, EVENTHUB_NAME, 3600)).await;
    peer.attach(1, at("amqp.annotation.x-opt-offset > '11'")).await.unwrap();
    peer.grant(1, 0, 10).await;
    assert_eq!(events(&mut peer, 1, 1).await, expected(12..13));
}

#[tokio::test]
async fn what_a_reader_may_not_is_refused_by_name() {
    let (hub, _site) = hub_with(3).await;
    let mut peer = AmqpPeer::connect(&hub).await;
    let refused = peer.attach(1, Asked::receiver(READER)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:unauthorized-access");
    let wrong = sas::generate(
        "sb://localhost/forebay",
        b"wrong",
        now_seconds() + 60,
        Some("iothubowner"),
    );
    assert_eq!(peer.put_token(&wrong).await, 401);
    // A token for one group opens no other.
    let token = events_token(&hub, "forebay/consumergroups/cg2", 3600);
    assert_eq!(peer.put_token(&token).await, 200);
    let refused = peer.attach(1, Asked::receiver(READER)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:unauthorized-access");
    peer.attach(1, Asked::receiver("forebay/ConsumerGroups/cg2/Partitions/0"))
        .await
        .unwrap();
    assert_eq!(peer.put_token(&events_token(&hub, EVENTHUB_NAME, 3600)).await, 200);
    for (address, name) in [
        ("forebay/ConsumerGroups/none/Partitions/0", "amqp:not-found"),
        ("forebay/ConsumerGroups/$Default/Partitions/7", "amqp:not-found"),
        ("forebay/ConsumerGroups/$Default/Partitions/x", "amqp:not-found"),
        ("nowhere", "amqp:unauthorized-access"),
        ("a/b/c/d/e/f", "amqp:not-found"),
    ] {
        let refused = peer.attach(2, Asked::receiver(address)).await.unwrap_err();
        assert_eq!(refused.condition.name(), name, "{address}");
    }
    // Outside senders cannot write.
    let refused = peer.attach(2, Asked::sender(EVENTHUB_NAME)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:not-allowed");
    for (selector, words) in [
        (
            "amqp.annotation.x-opt-offset > '99'",
            "The supplied offset '99' is invalid. The last offset in the system is '2'",
        ),
        (
            "amqp.annotation.x-opt-sequence-number > 99",
            "The supplied sequence number '99' is invalid. The last sequence number in the system is '2'",
        ),
        (
            "amqp.annotation.x-opt-offset > 'x'",
            "The supplied offset 'x' is invalid",
        ),
        ("something else", "is not understood"),
    ] {
        let refused = peer.attach(2, reader(selector)).await.unwrap_err();
        assert_eq!(refused.condition.name(), "com.microsoft:argument-error", "{selector}");
        assert!(refused.description.contains(words), "{}", refused.description);
    }
    // Under the hub's own name a reader is told where to go.
    assert_eq!(peer.put_token(&hub_token(&hub, 3600)).await, 200);
    let refused = peer
        .attach(
            2,
            Asked::receiver("amqps://localhost/messages/events/ConsumerGroups/$Default/Partitions/0"),
        )
        .await
        .unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:link:redirect");
    assert!(sample(&hub, "forebay_amqp_ended_total{condition=\"amqp:not-found\"}") >= 4.0);
    assert!(sample(&hub, "forebay_credentials_refused_total{reason=\"signature\"}") >= 1.0);
}

#[tokio::test]
async fn owner_levels_take_partitions_and_give_them_up() {
    let (hub, _site) = hub_with(3).await;
    let token = events_token(&hub, EVENTHUB_NAME, 3600);
    let level = |level| Asked {
        level,
        ..reader("amqp.annotation.x-opt-offset > '-1'")
    };
    let mut first = AmqpPeer::with_token(&hub, &token).await;
    first.attach(1, level(Some(0))).await.unwrap();
    let mut second = AmqpPeer::with_token(&hub, &token).await;
    second.attach(1, level(Some(0))).await.unwrap();
    assert_eq!(condition(first.ended(1).await), "amqp:link:stolen");
    let refused = first.attach(2, level(None)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:link:stolen");
    second.grant(1, 0, 10).await;
    assert_eq!(events(&mut second, 1, 3).await, expected(0..3));
    // A connection that is gone leaves its place.
    second.drop_connection();
    let mut third = AmqpPeer::with_token(&hub, &token).await;
    crate::peers::until("the place to be free", || {
        (sample(&hub, "forebay_amqp_connections{transport=\"tls\"}") <= 2.0).then_some(())
    })
    .await;
    for handle in 1..=5 {
        third.attach(handle, level(None)).await.unwrap();
    }
    let sixth = third.attach(6, level(None)).await.unwrap_err();
    assert_eq!(sixth.condition.name(), "amqp:resource-limit-exceeded");
    assert_eq!(sample(&hub, "forebay_readers_displaced_total"), 1.0);
}

#[tokio::test]
async fn a_link_lives_no_longer_than_its_token_unless_it_is_renewed() {
    let (hub, _site) = hub_with(1).await;
    // Tokens are taken for five minutes longer than they say: clocks differ.
    let skew = forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
    let short = || {
        let key = owner_key(&hub);
        let expiry = now_seconds() + 3 - skew;
        sas::generate("sb://localhost/forebay", key.as_bytes(), expiry, Some("iothubowner"))
    };
    let mut lapsing = AmqpPeer::with_token(&hub, &short()).await;
    lapsing.attach(1, Asked::receiver(READER)).await.unwrap();
    let mut renewing = AmqpPeer::with_token(&hub, &short()).await;
    renewing.attach(1, Asked::receiver(READER)).await.unwrap();
    assert_eq!(renewing.put_token(&events_token(&hub, EVENTHUB_NAME, 3600)).await, 200);
    assert_eq!(condition(lapsing.ended(1).await), "amqp:unauthorized-access");
    renewing.grant(1, 0, 10).await;
    assert_eq!(events(&mut renewing, 1, 1).await, expected(0..1));
}

/// A reader that takes nothing costs its connection's buffers and nothing more.
#[tokio::test]
async fn a_stalled_reader_is_not_read_ahead_for() {
    let hub = Hub::start(&["--set", "identity.partition_count=2"]);
    let site = Site::of(&hub);
    site.create_device("lamp").await;
    let line = "x".repeat(20_000);
    let lines = format!("{line}\n").repeat(3000);
    hub.run_with_input(&["send", "lamp", "--lines"], lines.as_bytes())
        .expect_success();
    let mut peers = Vec::new();
    let before = sample(&hub, "forebay_messages_delivered_total");
    let token = events_token(&hub, EVENTHUB_NAME, 3600);
    for _ in 0..4 {
        let mut peer = AmqpPeer::with_token(&hub, &token).await;
        peer.attach(1, reader("amqp.annotation.x-opt-offset > '-1'"))
            .await
            .unwrap();
        peer.grant(1, 0, 100_000).await;
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let delivered = sample(&hub, "forebay_messages_delivered_total") - before;
    // Buffers of the hub, and of the kernel on both sides (some MiB each), of 60 MB that there are for each.
    assert!(
        delivered * 20_000.0 < 4.0 * 20e6,
        "{delivered} messages were handed out"
    );
    for peer in &mut peers {
        assert_eq!(events(peer, 1, 3000).await.len(), 3000);
    }
}

/// A message to a device.
fn command(to: Option<&str>, id: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.properties(&Properties {
        message_id: Some(forebay::proto::amqp::message::Id::Text(id)),
        to,
        ..Properties::default()
    });
    writer.application_properties(1, |map| {
        map.string("iothub-ack");
        map.string("full");
    });
    writer.data(body);
    bytes
}

fn rejected(state: DeliveryState) -> String {
    match state {
        DeliveryState::Rejected(error) => condition(error),
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn messages_to_devices_are_accepted_once_they_are_stored_and_others_refused() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("lamp").await;
    let mut peer = AmqpPeer::with_token(&hub, &hub_token(&hub, 3600)).await;
    peer.attach(1, Asked::sender(COMMANDS)).await.unwrap();
    let to = Some("/devices/lamp/messages/devicebound");
    for n in 0..50 {
        let id = peer.send(1, &command(to, &format!("m-{n}"), b"on"), false, 0).await;
        assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    }
    for (message, name) in [
        (command(to, "one-too-many", b"on"), "amqp:resource-limit-exceeded"),
        (
            command(Some("/devices/none/messages/devicebound"), "m", b""),
            "amqp:not-found",
        ),
        (command(None, "m", b""), "amqp:not-allowed"),
        (command(to, "m", &[0; 70_000]), "amqp:link:message-size-exceeded"),
        (command(to, "no id\u{7f}", b""), "com.microsoft:argument-error"),
        (b"no message".to_vec(), "com.microsoft:argument-error"),
    ] {
        let id = peer.send(1, &message, false, 0).await;
        assert_eq!(rejected(peer.outcome(id).await), name);
    }
    // The link goes on, and what was accepted is there after a crash.
    hub.kill9();
    hub.restart();
    let purged = site_of(&hub).request("c2d.purge", &json!({ "deviceId": "lamp" })).await;
    assert_eq!(purged["totalMessagesPurged"], 50);
}

fn site_of(hub: &Hub) -> Site {
    Site::of(hub)
}

#[tokio::test]
async fn feedback_is_read_settled_and_comes_again_if_it_is_not() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("lamp").await;
    let token = hub_token(&hub, 3600);
    let mut peer = AmqpPeer::with_token(&hub, &token).await;
    peer.attach(1, Asked::sender(COMMANDS)).await.unwrap();
    let to = Some("/devices/lamp/messages/devicebound");
    let id = peer.send(1, &command(to, "m-1", b"on"), false, 0).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    site.request("c2d.purge", &json!({ "deviceId": "lamp" })).await;
    let feedback = || Asked {
        receiver_settles: ReceiverSettles::Second,
        sender_settles: SenderSettles::Unsettled,
        ..Asked::receiver(FEEDBACK)
    };
    peer.attach(2, feedback()).await.unwrap();
    peer.grant(2, 0, 10).await;
    let first = peer.receive(2).await;
    assert_eq!(first.tag.len(), 16);
    let records = |received: &Received| {
        let message = Message::read(&received.payload).unwrap();
        assert_eq!(
            message.properties.content_type,
            Some("application/vnd.microsoft.iothub.feedback.json")
        );
        let annotations = message.annotations.unwrap();
        assert!(matches!(
            find(&annotations, "iothub-enqueuedtime"),
            Some(Value::Timestamp(_))
        ));
        let Body::Data(data) = message.body else {
            panic!("no data")
        };
        serde_json::from_slice::<serde_json::Value>(&data.concat()).unwrap()
    };
    let seen = records(&first);
    assert_eq!(
        (&seen[0]["originalMessageId"], &seen[0]["statusCode"]),
        (&json!("m-1"), &json!("Purged"))
    );
    // Left without a word: it is the next receiver's.
    peer.drop_connection();
    let mut peer = AmqpPeer::with_token(&hub, &token).await;
    peer.attach(2, feedback()).await.unwrap();
    peer.grant(2, 0, 10).await;
    let again = peer.receive(2).await;
    assert_eq!(records(&again), seen);
    peer.settle(again.id, DeliveryState::Released, false).await;
    assert_eq!(peer.answered(again.id).await, DeliveryState::Released);
    let third = peer.receive(2).await;
    peer.settle(third.id, DeliveryState::Accepted, false).await;
    assert_eq!(peer.answered(third.id).await, DeliveryState::Accepted);
    let more = tokio::time::timeout(Duration::from_millis(700), peer.receive(2)).await;
    assert!(more.is_err(), "completed feedback comes no more");
    // Uploads do not exist: their receiver is silent, and stays.
    peer.attach(3, Asked::receiver("/messages/servicebound/filenotifications"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_hub_that_stops_says_so() {
    let (mut hub, _site) = hub_with(1).await;
    let mut peer = AmqpPeer::with_token(&hub, &events_token(&hub, EVENTHUB_NAME, 3600)).await;
    peer.attach(1, Asked::receiver(READER)).await.unwrap();
    assert!(hub.sigterm().success());
    assert_eq!(condition(peer.closed().await), "amqp:connection:forced");
}
