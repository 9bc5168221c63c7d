//! Devices over AMQP against a real hub: what they send, what they are sent, and what ends their links.

use std::time::Duration;

use forebay::proto::amqp::message::{BATCH_FORMAT, Body, Id, Message, MessageWriter, Properties};
use forebay::proto::amqp::performative::{ReceiverSettles, SenderSettles, find};
use forebay::proto::amqp::value::{Value as Amqp, Writer};
use forebay::proto::amqp::{DeliveryState, Error};
use serde_json::{Value, json};

use crate::amqp_peer::{AmqpPeer, Asked, Received, data};
use crate::http::{Door, versioned};
use crate::hub::Hub;
use crate::peers::{Site, device_token, within};

const EVENTS: &str = "/devices/lamp/messages/events";
const COMMANDS: &str = "/devices/lamp/messages/deviceBound";
const TWIN: &str = "/devices/lamp/twin";
const METHODS: &str = "/devices/lamp/methods/deviceBound";

/// A hub with one device, and the device's connection.
struct Lamp {
    hub: Hub,
    site: Site,
    token: String,
}

impl Lamp {
    async fn new(args: &[&str]) -> Self {
        let hub = Hub::start(args);
        let site = Site::of(&hub);
        let key = site.create_device("lamp").await;
        let token = device_token("lamp", &key, 3600);
        Self { hub, site, token }
    }

    async fn peer(&self) -> AmqpPeer {
        AmqpPeer::with_token(&self.hub, &self.token).await
    }

    async fn bodies(&self) -> Vec<Vec<u8>> {
        self.site.read_by_device().await.remove("lamp").unwrap_or_default()
    }

    async fn command(&self, id: &str, properties: Value) {
        let command = json!({
            "deviceId": "lamp", "body": format!("do {id}"), "properties": properties,
            "system": { "message-id": id, "iothub-ack": "full" },
        });
        self.site.request("c2d.send", &command).await;
    }
}

fn condition(error: Option<Error>) -> String {
    error.expect("a reason").condition.name().to_owned()
}

fn rejected(state: DeliveryState) -> String {
    match state {
        DeliveryState::Rejected(error) => condition(error),
        other => panic!("not rejected: {other:?}"),
    }
}

fn message_id(received: &Received) -> String {
    let message = Message::read(&received.payload).unwrap();
    message.properties.message_id.and_then(Id::to_text).unwrap()
}

fn annotation<'a>(message: &Message<'a>, name: &str) -> Option<Amqp<'a>> {
    find(message.annotations.as_ref()?, name)
}

fn body(message: &Message<'_>) -> Value {
    match &message.body {
        Body::Data(data) => serde_json::from_slice(&data.concat()).unwrap(),
        other => panic!("no data: {other:?}"),
    }
}

#[tokio::test]
async fn telemetry_is_accepted_once_it_is_stored_and_survives_a_crash() {
    let mut lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::sender(EVENTS)).await.unwrap();
    // More than the credit of one grant.
    let mut sent = Vec::new();
    let mut expected = Vec::new();
    for n in 0..1200 {
        let body = format!("m-{n}").into_bytes();
        sent.push(peer.send(1, &data(&body), n % 100 == 7, 0).await);
        expected.push(body);
    }
    for (n, id) in sent.iter().enumerate().filter(|(n, _)| n % 100 != 7) {
        assert_eq!(peer.outcome(*id).await, DeliveryState::Accepted, "{n}");
    }
    // Bigger than a frame.
    let large = vec![b'x'; 200_000];
    let id = peer.send(1, &data(&large), false, 0).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    expected.push(large);
    lamp.hub.kill9();
    lamp.hub.restart();
    assert_eq!(lamp.bodies().await, expected);
}

/// The acknowledgement waits for the disk, and for no other message's.
#[tokio::test]
async fn nothing_is_accepted_before_it_is_durable() {
    let lamp = Lamp::new(&["--set", "process.sync_gap=1s"]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::sender(EVENTS)).await.unwrap();
    let first = peer.send(1, &data(b"first"), false, 0).await;
    assert_eq!(peer.outcome(first).await, DeliveryState::Accepted);
    // The next sync is a second off.
    let second = peer.send(1, &data(b"second"), false, 0).await;
    let early = tokio::time::timeout(Duration::from_millis(300), peer.outcome(second)).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(peer.outcome(second).await, DeliveryState::Accepted);
}

#[tokio::test]
async fn messages_keep_their_properties_and_a_batch_its_members() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::sender("amqps://localhost:5671/devices/lamp/messages/events"))
        .await
        .unwrap();
    let mut single = Vec::new();
    let mut writer = MessageWriter::new(&mut single);
    writer.annotations(1, |map| {
        map.symbol("dt-subject");
        map.string("thermostat");
    });
    writer.properties(&Properties {
        message_id: Some(Id::Text("m-1")),
        content_type: Some("application/json"),
        ..Properties::default()
    });
    writer.application_properties(1, |map| {
        map.string("alert");
        map.boolean(true);
    });
    writer.data(b"{\"a\"");
    writer.data(b":1}");
    let id = peer.send(1, &single, false, 0).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    let mut batch = Vec::new();
    let mut writer = MessageWriter::new(&mut batch);
    for n in 0..3 {
        writer.data(&data(format!("b-{n}").as_bytes()));
    }
    let id = peer.send(1, &batch, false, BATCH_FORMAT).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    let printed = lamp
        .hub
        .run(&["tail", "--from", "earliest", "--count", "4", "--json"])
        .expect_success();
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let bodies: Vec<&str> = events.iter().map(|event| event["body"].as_str().unwrap()).collect();
    assert_eq!(bodies, [r#"{"a":1}"#, "b-0", "b-1", "b-2"], "{printed}");
    assert_eq!(events[0]["properties"], json!({ "alert": "true" }), "{printed}");
    for (name, value) in [
        ("message-id", "m-1"),
        ("content-type", "application/json"),
        ("dt-subject", "thermostat"),
    ] {
        assert_eq!(events[0]["systemProperties"][name], value, "{printed}");
    }
}

#[tokio::test]
async fn what_is_no_message_or_too_much_is_rejected_and_the_link_goes_on() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::sender(EVENTS)).await.unwrap();
    let mut list = Vec::new();
    MessageWriter::new(&mut list).value(|value| value.list(0, |_| ()));
    let mut batch = Vec::new();
    let mut writer = MessageWriter::new(&mut batch);
    writer.data(&data(b"good"));
    writer.data(b"bad");
    for (payload, format, expected) in [
        (data(&vec![0; 256 * 1024 + 1]), 0, "amqp:link:message-size-exceeded"),
        (list, 0, "com.microsoft:argument-error"),
        (batch, BATCH_FORMAT, "com.microsoft:argument-error"),
        (b"bad".to_vec(), 0, "com.microsoft:argument-error"),
    ] {
        let id = peer.send(1, &payload, false, format).await;
        assert_eq!(rejected(peer.outcome(id).await), expected);
    }
    let id = peer.send(1, &data(&vec![0; 256 * 1024]), false, 0).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    assert_eq!(lamp.bodies().await.len(), 1);
}

#[tokio::test]
async fn a_device_reaches_its_own_addresses_alone() {
    let lamp = Lamp::new(&[]).await;
    lamp.site.create_device("other").await;
    let mut peer = lamp.peer().await;
    for (handle, asked, expected) in [
        (
            1,
            Asked::sender("/devices/other/messages/events"),
            "amqp:unauthorized-access",
        ),
        (
            2,
            Asked::sender("/devices/nobody/messages/events"),
            "amqp:unauthorized-access",
        ),
        (3, Asked::sender(COMMANDS), "amqp:not-allowed"),
        (4, Asked::receiver(EVENTS), "amqp:not-allowed"),
        (5, Asked::receiver("/devices/lamp/nothing"), "amqp:not-found"),
    ] {
        let refused = peer.attach(handle, asked).await.unwrap_err();
        assert_eq!(refused.condition.name(), expected, "{handle}");
    }
    let mut stranger = AmqpPeer::connect(&lamp.hub).await;
    let refused = stranger.attach(1, Asked::sender(EVENTS)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:unauthorized-access");
    // Still good for what it may do.
    peer.attach(6, Asked::sender(EVENTS)).await.unwrap();
}

#[tokio::test]
async fn a_message_to_a_device_is_completed_abandoned_or_rejected() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    let asked = Asked {
        sender_settles: SenderSettles::Unsettled,
        receiver_settles: ReceiverSettles::Second,
        ..Asked::receiver(COMMANDS)
    };
    peer.attach(1, asked).await.unwrap();
    lamp.command("one", json!({ "level": "7" })).await;
    lamp.command("two", json!({})).await;
    lamp.command("three", json!({})).await;
    // No more comes than is asked for.
    peer.grant(1, 0, 1).await;
    let one = peer.receive(1).await;
    assert_eq!(one.tag.len(), 16);
    assert!(!one.is_settled);
    {
        let message = Message::read(&one.payload).unwrap();
        assert_eq!(message.application_property("level"), Some(Amqp::String("7")));
        assert_eq!(message.application_property("iothub-ack"), Some(Amqp::String("full")));
        assert_eq!(annotation(&message, "iothub-deliverycount"), Some(Amqp::Ubyte(0)));
        assert!(matches!(
            annotation(&message, "x-opt-sequence-number"),
            Some(Amqp::Ulong(_))
        ));
        let Some(Amqp::String(token)) = annotation(&message, "x-opt-lock-token") else {
            panic!("a lock token")
        };
        // The first group of a GUID is little-endian in .NET's bytes.
        let first: String = one.tag[..4].iter().rev().map(|byte| format!("{byte:02x}")).collect();
        assert!(token.starts_with(&first), "{token} {:02x?}", one.tag);
        assert_eq!(message.properties.to, Some("/devices/lamp/messages/devicebound"));
    }
    peer.settle(one.id, DeliveryState::Released, false).await;
    assert_eq!(peer.answered(one.id).await, DeliveryState::Released);
    peer.grant(1, 1, 10).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let next = peer.receive(1).await;
        let message = Message::read(&next.payload).unwrap();
        let again = message_id(&next) == "one";
        let count = annotation(&message, "iothub-deliverycount");
        assert_eq!(count, Some(Amqp::Ubyte(u8::from(again))));
        let state = match message_id(&next).as_str() {
            "three" => DeliveryState::Rejected(None),
            _ => DeliveryState::Accepted,
        };
        peer.settle(next.id, state.clone(), false).await;
        assert_eq!(peer.answered(next.id).await, state);
        seen.push(message_id(&next));
    }
    seen.sort();
    assert_eq!(seen, ["one", "three", "two"]);
    let purged = lamp.site.request("c2d.purge", &json!({ "deviceId": "lamp" })).await;
    assert_eq!(purged["totalMessagesPurged"], 0);
}

/// What a device does not ask for stays with the hub: another door can have it.
#[tokio::test]
async fn no_more_is_locked_than_is_asked_for() {
    let lamp = Lamp::new(&[]).await;
    lamp.command("one", json!({})).await;
    lamp.command("two", json!({})).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::receiver(COMMANDS)).await.unwrap();
    peer.grant(1, 0, 1).await;
    assert_eq!(message_id(&peer.receive(1).await), "one");
    let path = versioned("/devices/lamp/messages/deviceBound");
    let other = Door::of(&lamp.hub).ask("GET", &path, &[("Authorization", &lamp.token)], b"");
    assert_eq!((other.status, other.header("iothub-messageid")), (200, "two"));
}

#[tokio::test]
async fn what_is_unsettled_when_a_link_goes_comes_again_at_once() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::receiver(COMMANDS)).await.unwrap();
    peer.grant(1, 0, 10).await;
    lamp.command("one", json!({})).await;
    let first = peer.receive(1).await;
    peer.detach(1).await;
    peer.attach(2, Asked::receiver(COMMANDS)).await.unwrap();
    peer.grant(2, 0, 10).await;
    let second = peer.receive(2).await;
    assert_eq!(message_id(&second), "one");
    assert_ne!(second.tag, first.tag);
    peer.drop_connection();
    // Asked for settled: delivered is completed.
    let mut peer = lamp.peer().await;
    let asked = Asked {
        sender_settles: SenderSettles::Settled,
        ..Asked::receiver(COMMANDS)
    };
    peer.attach(1, asked).await.unwrap();
    peer.grant(1, 0, 10).await;
    let third = peer.receive(1).await;
    assert!(third.is_settled);
    loop {
        let shown = lamp.site.request("device.get", &json!({ "deviceId": "lamp" })).await;
        if shown["cloudToDeviceMessageCount"] == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_lock_that_is_lost_is_said_so() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    let asked = Asked {
        receiver_settles: ReceiverSettles::Second,
        ..Asked::receiver(COMMANDS)
    };
    peer.attach(1, asked).await.unwrap();
    peer.grant(1, 0, 10).await;
    lamp.command("one", json!({})).await;
    let one = peer.receive(1).await;
    // The queue is emptied behind the lock's back.
    lamp.site.request("c2d.purge", &json!({ "deviceId": "lamp" })).await;
    peer.settle(one.id, DeliveryState::Accepted, false).await;
    assert_eq!(rejected(peer.answered(one.id).await), "com.microsoft:message-lock-lost");
}

#[tokio::test]
async fn a_newer_connection_or_link_takes_the_place_of_an_older_one() {
    let lamp = Lamp::new(&[]).await;
    let mut first = lamp.peer().await;
    first.attach(1, Asked::sender(EVENTS)).await.unwrap();
    first.attach(2, Asked::receiver(COMMANDS)).await.unwrap();
    first.attach(3, Asked::sender(EVENTS)).await.unwrap();
    let conflict = "com.microsoft:link-creation-conflict";
    assert_eq!(condition(first.ended(1).await), conflict);
    let id = first.send(3, &data(b"from the third"), false, 0).await;
    assert_eq!(first.outcome(id).await, DeliveryState::Accepted);
    first.attach(4, Asked::receiver(COMMANDS)).await.unwrap();
    assert_eq!(condition(first.ended(2).await), conflict);
    let mut second = lamp.peer().await;
    second.attach(1, Asked::sender(EVENTS)).await.unwrap();
    assert_eq!(condition(first.ended(3).await), conflict);
    assert_eq!(condition(first.ended(4).await), conflict);
    let id = second.send(1, &data(b"from the second"), false, 0).await;
    assert_eq!(second.outcome(id).await, DeliveryState::Accepted);
    // The first may come back on the connection it has.
    first.attach(5, Asked::sender(EVENTS)).await.unwrap();
    assert_eq!(condition(second.ended(1).await), conflict);
}

#[tokio::test]
async fn a_disabled_or_deleted_device_is_cut_off() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    peer.attach(1, Asked::sender(EVENTS)).await.unwrap();
    peer.attach(2, Asked::receiver(TWIN)).await.unwrap();
    lamp.hub.run(&["device", "disable", "lamp"]).expect_success();
    assert_eq!(condition(peer.ended(1).await), "amqp:unauthorized-access");
    assert_eq!(condition(peer.ended(2).await), "amqp:unauthorized-access");
    let refused = peer.attach(3, Asked::sender(EVENTS)).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:unauthorized-access");
    lamp.hub.run(&["device", "enable", "lamp"]).expect_success();
    peer.attach(4, Asked::sender(EVENTS)).await.unwrap();
    lamp.hub.run(&["device", "delete", "lamp"]).expect_success();
    assert_eq!(condition(peer.ended(4).await), "amqp:not-found");
}

#[tokio::test]
async fn links_live_as_long_as_their_token_and_longer_with_a_newer_one() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let lamp = site.create_device("lamp").await;
    let other = site.create_device("other").await;
    let mut peer = AmqpPeer::with_token(&hub, &device_token("lamp", &lamp, 3)).await;
    assert_eq!(peer.put_token(&device_token("other", &other, 3)).await, 200);
    peer.attach(1, Asked::sender(EVENTS)).await.unwrap();
    peer.attach(2, Asked::sender("/devices/other/messages/events"))
        .await
        .unwrap();
    assert_eq!(peer.put_token(&device_token("lamp", &lamp, 3600)).await, 200);
    assert_eq!(condition(peer.ended(2).await), "amqp:unauthorized-access");
    let id = peer.send(1, &data(b"renewed"), false, 0).await;
    assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
}

/// A pair of links for methods or the twin.
async fn pair(peer: &mut AmqpPeer, address: &str, correlation: &str, handle: u32) {
    let link = |asked| Asked {
        sender_settles: SenderSettles::Settled,
        correlation,
        ..asked
    };
    peer.attach(handle, link(Asked::sender(address))).await.unwrap();
    peer.attach(handle + 1, link(Asked::receiver(address))).await.unwrap();
    peer.grant(handle + 1, 0, 100).await;
}

fn twin_request(operation: &str, resource: Option<&str>, id: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.annotations(3, |map| {
        map.symbol("operation");
        map.string(operation);
        map.symbol("resource");
        map.optional(resource, Writer::string);
        map.symbol("version");
        map.null();
    });
    writer.properties(&Properties {
        correlation_id: Some(Id::Text(id)),
        ..Properties::default()
    });
    writer.data(body);
    bytes
}

/// An answer's id, status and body.
fn twin_answer(received: &Received) -> (String, i32, Value) {
    assert!(received.is_settled);
    let message = Message::read(&received.payload).unwrap();
    let Some(Amqp::Int(status)) = annotation(&message, "status") else {
        panic!("no status: {message:?}")
    };
    let id = message.properties.correlation_id.and_then(Id::to_text).unwrap();
    let body = match &message.body {
        Body::Data(data) if data.concat().is_empty() => Value::Null,
        _ => body(&message),
    };
    (id, status, body)
}

#[tokio::test]
async fn a_twin_is_read_reported_and_told_of() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    let asked = Asked {
        correlation: "twin:1",
        ..Asked::sender(TWIN)
    };
    peer.attach(1, asked).await.unwrap();
    // Asked before there is a link to answer on.
    peer.send(1, &twin_request("GET", None, "Get1", b" "), true, 0).await;
    let asked = Asked {
        correlation: "twin:1",
        ..Asked::receiver(TWIN)
    };
    peer.attach(2, asked).await.unwrap();
    peer.grant(2, 0, 100).await;
    let (id, status, twin) = twin_answer(&peer.receive(2).await);
    assert_eq!((id.as_str(), status), ("Get1", 200));
    assert_eq!(
        twin,
        json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } })
    );
    let patch = |desired: Value| {
        let update = json!({ "deviceId": "lamp", "twin": { "properties": { "desired": desired } } });
        let site = lamp.site.clone();
        async move { site.request("twin.patch", &update).await }
    };
    // Between the read and the subscription: told with it.
    patch(json!({ "a": 1 })).await;
    let notifications = Some("/notifications/twin/properties/desired");
    peer.send(1, &twin_request("PUT", notifications, "Put2", b" "), true, 0)
        .await;
    let (id, status, _) = twin_answer(&peer.receive(2).await);
    assert_eq!((id.as_str(), status), ("Put2", 200));
    let told = peer.receive(2).await;
    let message = Message::read(&told.payload).unwrap();
    assert_eq!(message.properties.correlation_id, None);
    assert_eq!(
        annotation(&message, "resource"),
        Some(Amqp::String("/properties/desired"))
    );
    assert_eq!(body(&message), json!({ "a": 1, "$version": 2 }));
    patch(json!({ "a": null, "b": 2 })).await;
    let told = peer.receive(2).await;
    let message = Message::read(&told.payload).unwrap();
    assert_eq!(annotation(&message, "version"), Some(Amqp::Long(3)));
    assert_eq!(body(&message), json!({ "a": null, "b": 2, "$version": 3 }));
    let reported = Some("/properties/reported");
    peer.send(
        1,
        &twin_request("PATCH", reported, "Patch3", br#"{"on":true}"#),
        true,
        0,
    )
    .await;
    let answered = peer.receive(2).await;
    let message = Message::read(&answered.payload).unwrap();
    assert_eq!(annotation(&message, "version"), Some(Amqp::Long(2)));
    assert_eq!(twin_answer(&answered).1, 204);
    for (operation, resource, body) in [("PATCH", reported, &b"[]"[..]), ("POST", None, b"")] {
        peer.send(1, &twin_request(operation, resource, "Bad4", body), true, 0)
            .await;
        let (id, status, body) = twin_answer(&peer.receive(2).await);
        assert_eq!((id.as_str(), status), ("Bad4", 400));
        assert!(body["errorCode"].is_u64() && body["message"].is_string(), "{body}");
    }
    peer.send(1, &twin_request("DELETE", notifications, "Del5", b" "), true, 0)
        .await;
    assert_eq!(twin_answer(&peer.receive(2).await).1, 200);
    patch(json!({ "c": 3 })).await;
    peer.send(1, &twin_request("GET", None, "Get6", b" "), true, 0).await;
    let (id, _, twin) = twin_answer(&peer.receive(2).await);
    assert_eq!(id, "Get6", "nothing is told after the end of the subscription");
    assert_eq!(twin["desired"], json!({ "b": 2, "c": 3, "$version": 4 }));
    assert_eq!(twin["reported"], json!({ "on": true, "$version": 2 }));
}

#[tokio::test]
async fn a_method_is_called_and_answered() {
    let lamp = Lamp::new(&[]).await;
    let mut peer = lamp.peer().await;
    pair(&mut peer, METHODS, "methods:1", 1).await;
    let site = lamp.site.clone();
    let call = tokio::spawn(async move {
        let call = json!({ "deviceId": "lamp", "methodName": "reboot", "payload": { "in": 5 } });
        site.request("method.invoke", &call).await
    });
    let request = peer.receive(2).await;
    assert!(request.is_settled);
    let message = Message::read(&request.payload).unwrap();
    assert_eq!(
        message.application_property("IoThub-methodname"),
        Some(Amqp::String("reboot"))
    );
    assert_eq!(body(&message), json!({ "in": 5 }));
    let Some(Id::Raw(id)) = message.properties.correlation_id else {
        panic!("an id")
    };
    assert_eq!(id[0], 0x98, "a UUID");
    let mut answer = Vec::new();
    let mut writer = MessageWriter::new(&mut answer);
    writer.properties(&Properties {
        correlation_id: Some(Id::Raw(id)),
        ..Properties::default()
    });
    writer.application_properties(1, |map| {
        map.string("IoThub-status");
        map.int(202);
    });
    writer.data(br#"{"ok":true}"#);
    peer.send(1, &answer, true, 0).await;
    let answered = within(call).await.unwrap();
    assert_eq!(answered, json!({ "status": 202, "payload": { "ok": true } }));
    // Another pair takes the place of the first.
    pair(&mut peer, METHODS, "methods:2", 3).await;
    let conflict = "com.microsoft:link-creation-conflict";
    assert_eq!(condition(peer.ended(1).await), conflict);
    assert_eq!(condition(peer.ended(2).await), conflict);
}

/// Modules and devices of a gateway: each with links of its own, on one connection, by one policy.
#[tokio::test]
async fn one_connection_carries_many_identities_and_each_is_connected_for_itself() {
    let hub = Hub::start(&["--set", "events.connection_window=0ms"]);
    let site = Site::of(&hub);
    let door = Door::of(&hub);
    for device in ["lamp", "pump"] {
        site.create_device(device).await;
    }
    let module = json!({ "deviceId": "lamp", "moduleId": "m" });
    let made = door.own("PUT", &versioned("/devices/lamp/modules/m"), &[], &module);
    assert_eq!(made.status, 201, "{made:?}");
    let state = async |device: &str, wanted: &str| loop {
        let shown = site.request("device.get", &json!({ "deviceId": device })).await;
        if shown["connectionState"] == wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut peer = AmqpPeer::with_token(&hub, &door.owner_token()).await;
    within(state("lamp", "Disconnected")).await;
    let module_events = "/devices/lamp/modules/m/messages/events";
    for (handle, address) in [(1, EVENTS), (2, "/devices/pump/messages/events"), (3, module_events)] {
        peer.attach(handle, Asked::sender(address)).await.unwrap();
    }
    // Inputs: accepted, and silent.
    peer.attach(4, Asked::receiver(module_events)).await.unwrap();
    for handle in [1, 2, 3, 1] {
        let id = peer
            .send(handle, &data(format!("by {handle}").as_bytes()), false, 0)
            .await;
        assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    }
    let mut stored: Vec<_> = site.read_all().await.into_iter().flatten().collect();
    stored.sort_by_key(|stored| stored.body.clone());
    let stored: Vec<_> = stored
        .iter()
        .map(|stored| (stored.device.as_str(), stored.module.as_str(), &stored.body[..]))
        .filter(|(_, _, body)| body.starts_with(b"by"))
        .collect();
    let expected: [(&str, &str, &[u8]); 4] = [
        ("lamp", "", b"by 1"),
        ("lamp", "", b"by 1"),
        ("pump", "", b"by 2"),
        ("lamp", "m", b"by 3"),
    ];
    assert_eq!(stored, expected);
    within(state("lamp", "Connected")).await;
    within(state("pump", "Connected")).await;
    // The last link of an identity takes it along; the others stay.
    peer.detach(1).await;
    within(state("lamp", "Disconnected")).await;
    within(state("pump", "Connected")).await;
    peer.drop_connection();
    within(state("pump", "Disconnected")).await;
}
