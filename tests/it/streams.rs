//! A connected device's streams, frame by frame: messages to it, its twin, direct methods.

use forebay::wire::control::{Failed, Goodbye};
use forebay::wire::device::{
    Answer, Command, CommandsOpen, Desired, Invoke, MethodsOpen, Outcome, Ready, Report, Reported, Settle, Settled,
    TwinDocument, TwinGet, TwinOpen,
};
use forebay::wire::frame::Kind;
use forebay::wire::message::MessageRef;
use serde_json::{Value, json};

use crate::http::{Door, Reply, versioned};
use crate::hub::Hub;
use crate::peers::{Peer, Site, device_token, raw, within};

/// One device, whose session the tests speak for.
struct Lamp {
    site: Site,
    door: Door,
    key: String,
}

impl Lamp {
    async fn new(hub: &Hub) -> Self {
        let site = Site::of(hub);
        let key = site.create_device("lamp").await;
        Self {
            site,
            door: Door::of(hub),
            key,
        }
    }

    async fn session(&self) -> Peer {
        Peer::device(&self.site, "lamp", &device_token("lamp", &self.key, 600))
            .await
            .0
    }

    async fn queue(&self, id: &str) {
        let command = json!({ "deviceId": "lamp", "body": id, "system": { "message-id": id } });
        self.site.request("c2d.send", &command).await;
    }

    fn twin(&self, method: &str, body: Value) -> Value {
        let reply = self.door.own(method, &versioned("/twins/lamp"), &[], &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    fn desire(&self, desired: Value) -> u64 {
        let twin = self.twin("PATCH", json!({ "properties": { "desired": desired } }));
        twin["properties"]["desired"]["$version"].as_u64().unwrap()
    }

    /// Calls a method over HTTPS, on a thread of its own.
    fn invoke(&self, path: &str, method: Value) -> tokio::task::JoinHandle<Reply> {
        let (door, path) = (self.door.clone(), versioned(path));
        tokio::task::spawn_blocking(move || door.own("POST", &path, &[], &method))
    }
}

async fn commands(session: &Peer, window: u32) -> Peer {
    let mut stream = session.stream(&CommandsOpen { window }).await;
    assert_eq!(stream.hear::<Ready>().await.window, window);
    stream
}

/// The next command: its text, its lock, how often it was abandoned.
async fn command(stream: &mut Peer) -> (String, [u8; 16], u8) {
    let command: Command = stream.hear().await;
    let message = MessageRef::check(&command.message).unwrap().to_message();
    let text = String::from_utf8(message.body.to_vec()).unwrap();
    assert!(command.expires_ms > command.enqueued_ms);
    (text, command.lock_token, command.delivery_count)
}

async fn settle(stream: &mut Peer, lock_token: [u8; 16], outcome: Outcome) -> u32 {
    stream.say(&Settle { lock_token, outcome }).await;
    let settled: Settled = stream.hear().await;
    assert_eq!(settled.lock_token, lock_token);
    settled.code
}

#[tokio::test]
async fn commands_are_delivered_in_order_settled_and_given_back() {
    let hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    lamp.queue("first").await;
    lamp.queue("second").await;
    lamp.queue("third").await;
    let session = lamp.session().await;
    let mut stream = commands(&session, 2).await;
    let (text, first, _) = command(&mut stream).await;
    assert_eq!(text, "first");
    let (text, second, count) = command(&mut stream).await;
    assert_eq!((text.as_str(), count), ("second", 0));
    // The window is full: the third comes when there is room.
    assert_eq!(settle(&mut stream, first, Outcome::Complete).await, 0);
    let (text, third, _) = command(&mut stream).await;
    assert_eq!(text, "third");
    assert_eq!(
        settle(&mut stream, first, Outcome::Complete).await,
        412_002,
        "settled twice"
    );
    assert_eq!(
        settle(&mut stream, [7; 16], Outcome::Reject).await,
        412_002,
        "nobody's lock"
    );
    assert_eq!(settle(&mut stream, third, Outcome::Reject).await, 0);
    // An abandoned one comes again, and counts.
    stream
        .say(&Settle {
            lock_token: second,
            outcome: Outcome::Abandon,
        })
        .await;
    let mut again = None;
    for _ in 0..2 {
        // The settlement and the redelivery come in either order.
        let frame = stream.frame().await.unwrap();
        if frame.kind == Kind::Command {
            again = Some(<Command as forebay::wire::control::Control>::from_body(&frame.body).unwrap());
        }
    }
    let again = again.expect("the abandoned message");
    assert_eq!(again.delivery_count, 1);

    // A connection that is lost gives its locks back at once: no waiting for their end.
    session.connection.close(0u32.into(), b"");
    let session = lamp.session().await;
    let mut stream = commands(&session, 50).await;
    let (text, lock, count) = command(&mut stream).await;
    assert_eq!((text.as_str(), count), ("second", 1));
    // What is queued while the device listens comes without being asked for.
    lamp.queue("fourth").await;
    let (text, fourth, _) = command(&mut stream).await;
    assert_eq!(text, "fourth");
    assert_eq!(settle(&mut stream, lock, Outcome::Complete).await, 0);
    assert_eq!(settle(&mut stream, fourth, Outcome::Complete).await, 0);
}

#[tokio::test]
async fn a_second_stream_for_the_same_purpose_takes_the_first_ones_place() {
    let hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    let session = lamp.session().await;
    let mut first = commands(&session, 5).await;
    lamp.queue("one").await;
    let (text, _, _) = command(&mut first).await;
    assert_eq!(text, "one");
    let mut second = commands(&session, 5).await;
    assert_eq!(first.hear::<Failed>().await.code, 409_003);
    let (text, lock, _) = command(&mut second).await;
    assert_eq!(text, "one", "given back by the first");
    assert_eq!(settle(&mut second, lock, Outcome::Complete).await, 0);
    let mut twin = session.stream(&TwinOpen { desired_seen: 1 }).await;
    twin.hear::<Ready>().await;
    session
        .stream(&TwinOpen { desired_seen: 1 })
        .await
        .hear::<Ready>()
        .await;
    assert_eq!(twin.hear::<Failed>().await.code, 409_003);
    let mut methods = session.stream(&MethodsOpen { window: 1 }).await;
    methods.hear::<Ready>().await;
    session.stream(&MethodsOpen { window: 1 }).await.hear::<Ready>().await;
    assert_eq!(methods.hear::<Failed>().await.code, 409_003);
}

#[tokio::test]
async fn a_killed_hub_delivers_nothing_again_that_was_completed() {
    let mut hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    for n in 0..10 {
        lamp.queue(&format!("m{n}")).await;
    }
    let session = lamp.session().await;
    let mut stream = commands(&session, 50).await;
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(command(&mut stream).await);
    }
    // Settled while the hub may die at any moment: what it confirmed must not come back, the rest must.
    let mut completed = Vec::new();
    for (text, lock, _) in taken.drain(..6) {
        assert_eq!(settle(&mut stream, lock, Outcome::Complete).await, 0);
        completed.push(text);
    }
    hub.kill9();
    hub.restart();
    let session = lamp.session().await;
    let mut stream = commands(&session, 50).await;
    lamp.queue("last").await;
    // The others stay locked until their minute is over, or until somebody says they are lost; "last" is behind them.
    let (text, _, _) = command(&mut stream).await;
    assert!(!completed.contains(&text), "{text} was completed");
}

#[tokio::test]
async fn desired_properties_reach_a_device_also_those_it_missed() {
    let hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    let session = lamp.session().await;
    let mut stream = session.stream(&TwinOpen { desired_seen: 0 }).await;
    stream.hear::<Ready>().await;
    let first: Desired = stream.hear().await;
    assert_eq!(
        (first.version, first.is_complete, first.json.as_str()),
        (1, true, r#"{"$version":1}"#)
    );
    let version = lamp.desire(json!({ "period": 30, "color": "red" }));
    let told: Desired = stream.hear().await;
    assert_eq!((told.version, told.is_complete), (version, false));
    lamp.desire(json!({ "color": null }));
    let told: Desired = stream.hear().await;
    let patch: Value = serde_json::from_str(&told.json).unwrap();
    assert_eq!(
        patch,
        json!({ "color": null, "$version": 3 }),
        "the patch as it was sent"
    );
    lamp.twin("PUT", json!({ "properties": { "desired": { "mode": "night" } } }));
    let told: Desired = stream.hear().await;
    assert_eq!((told.version, told.is_complete), (4, true), "a replacement is whole");

    // Reported, and read back.
    stream
        .say(&Report {
            id: 7,
            if_version: 0,
            json: r#"{"mode": "night", "since": 1}"#.into(),
        })
        .await;
    let reported: Reported = stream.hear().await;
    assert_eq!((reported.id, reported.code, reported.version), (7, 0, 2));
    stream
        .say(&Report {
            id: 8,
            if_version: 1,
            json: "{}".into(),
        })
        .await;
    assert_eq!(stream.hear::<Reported>().await.code, 412_001, "another version");
    for (id, wrong, code) in [(9, "{", 400_006), (10, "[]", 400_006), (11, r#"{"a.b": 1}"#, 400_004)] {
        stream
            .say(&Report {
                id,
                if_version: 0,
                json: wrong.into(),
            })
            .await;
        let refused: Reported = stream.hear().await;
        assert_eq!(
            (refused.id, refused.code, refused.version),
            (id, code, 0),
            "{wrong}: {}",
            refused.reason
        );
    }
    stream.say(&TwinGet { id: 12 }).await;
    let document: TwinDocument = stream.hear().await;
    let document: Value = serde_json::from_str(&document.json).unwrap();
    let expected = json!({
        "desired": { "mode": "night", "$version": 4 },
        "reported": { "mode": "night", "since": 1, "$version": 2 },
    });
    assert_eq!(document, expected);
    let seen = lamp.twin("GET", Value::Null);
    assert_eq!(seen["properties"]["reported"]["since"], 1, "{seen}");

    // Offline for two changes; then whoever holds version 4 is told, and whoever holds the newest is not.
    session.connection.close(0u32.into(), b"");
    lamp.desire(json!({ "a": 1 }));
    let newest = lamp.desire(json!({ "b": 2 }));
    let session = lamp.session().await;
    let mut stream = session.stream(&TwinOpen { desired_seen: 4 }).await;
    stream.hear::<Ready>().await;
    let missed: Desired = stream.hear().await;
    assert_eq!((missed.version, missed.is_complete), (newest, true));
    let section: Value = serde_json::from_str(&missed.json).unwrap();
    assert_eq!(section, json!({ "mode": "night", "a": 1, "b": 2, "$version": newest }));
    let mut stream = session.stream(&TwinOpen { desired_seen: newest }).await;
    stream.hear::<Ready>().await;
    lamp.desire(json!({ "c": 3 }));
    assert_eq!(stream.hear::<Desired>().await.version, newest + 1, "nothing before it");
}

#[tokio::test]
async fn methods_are_called_answered_and_fail_by_name() {
    let hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    let path = "/twins/lamp/methods";
    let offline = lamp.invoke(path, json!({ "methodName": "blink" })).await.unwrap();
    assert_eq!((offline.status, offline.error()), (404, "DeviceNotOnline"));
    let unknown = lamp
        .invoke("/twins/nobody/methods", json!({ "methodName": "blink" }))
        .await
        .unwrap();
    assert_eq!((unknown.status, unknown.error()), (404, "DeviceNotFound"));
    let unknown = lamp
        .invoke("/twins/lamp/modules/m/methods", json!({ "methodName": "blink" }))
        .await
        .unwrap();
    assert_eq!((unknown.status, unknown.error()), (404, "ModuleNotFound"));
    let wrong = lamp.invoke(path, json!({ "methodName": "a b" })).await.unwrap();
    assert_eq!((wrong.status, wrong.error()), (400, "ArgumentInvalid"));
    let large = json!({ "methodName": "blink", "payload": "x".repeat(128 * 1024) });
    let large = lamp.invoke(path, large).await.unwrap();
    assert_eq!((large.status, large.error()), (413, "MessageTooLarge"));

    // A call may wait for its device.
    let waiting = lamp.invoke(
        path,
        json!({ "methodName": "blink", "payload": { "times": 3 }, "connectTimeoutInSeconds": 60 }),
    );
    let session = lamp.session().await;
    let connected = lamp.invoke(path, json!({ "methodName": "blink" })).await.unwrap();
    assert_eq!(connected.error(), "DeviceNotOnline", "connected, but not listening");
    let mut stream = session.stream(&MethodsOpen { window: 4 }).await;
    assert_eq!(stream.hear::<Ready>().await.window, 4);
    let call: Invoke = stream.hear().await;
    assert_eq!((call.name.as_str(), call.payload.as_str()), ("blink", r#"{"times":3}"#));
    assert!(call.timeout_ms > 20_000 && call.timeout_ms <= 30_000);
    // Nobody asked for that one.
    stream
        .say(&Answer {
            id: call.id + 1000,
            status: 1,
            payload: String::new(),
        })
        .await;
    stream
        .say(&Answer {
            id: call.id,
            status: 207,
            payload: r#"{"z": 1, "a": [1.0]}"#.into(),
        })
        .await;
    let answered = waiting.await.unwrap();
    assert_eq!(answered.status, 200);
    assert_eq!(
        answered.body, br#"{"status":207,"payload":{"z": 1, "a": [1.0]}}"#,
        "as the device wrote it"
    );

    // An answer that is no JSON, and none at all.
    let broken = lamp.invoke(path, json!({ "methodName": "blink" }));
    let call: Invoke = stream.hear().await;
    stream
        .say(&Answer {
            id: call.id,
            status: 200,
            payload: "{".into(),
        })
        .await;
    let broken = broken.await.unwrap();
    assert_eq!((broken.status, broken.error()), (502, "GenericBadGateway"));
    let slow = lamp.invoke(path, json!({ "methodName": "blink", "responseTimeoutInSeconds": 5 }));
    stream.hear::<Invoke>().await;
    let slow = slow.await.unwrap();
    assert_eq!((slow.status, slow.error()), (504, "GatewayTimeout"));

    // Ten at a time; four of them at the device. The next is refused, and those cut off are told.
    let many: Vec<_> = (0..10)
        .map(|_| lamp.invoke(path, json!({ "methodName": "blink" })))
        .collect();
    for _ in 0..4 {
        stream.hear::<Invoke>().await;
    }
    let mut took_a_place = 0;
    let refused = within(async {
        loop {
            let reply = lamp
                .invoke(path, json!({ "methodName": "blink", "responseTimeoutInSeconds": 5 }))
                .await
                .unwrap();
            if reply.status != 504 {
                return reply;
            }
            took_a_place += 1;
        }
    })
    .await;
    let too_many = (403, "DeviceMaximumInflightMethodExceeded");
    assert_eq!((refused.status, refused.error()), too_many);
    session.connection.close(0u32.into(), b"");
    let mut found_none = 0;
    for call in many {
        let cut = call.await.unwrap();
        if (cut.status, cut.error()) == too_many {
            found_none += 1;
        } else {
            assert_eq!((cut.status, cut.error()), (404, "DeviceNotOnline"));
        }
    }
    // One of ours may have been faster than the last of the ten.
    assert!(found_none <= took_a_place, "{found_none} of the ten were refused");

    // The same over the native protocol.
    let session = lamp.session().await;
    let mut stream = session.stream(&MethodsOpen { window: 100 }).await;
    assert_eq!(stream.hear::<Ready>().await.window, 10, "the hub's own limit");
    let service = lamp.site.service().await;
    let call = json!({ "deviceId": "lamp", "methodName": "blink" });
    let called = service.request("method.invoke", &call);
    let answering = async {
        let call: Invoke = stream.hear().await;
        assert_eq!(call.payload, "", "no payload is none");
        stream
            .say(&Answer {
                id: call.id,
                status: 200,
                payload: String::new(),
            })
            .await;
    };
    let (answer, ()) = within(async { tokio::join!(called, answering) }).await;
    assert_eq!(answer.unwrap(), json!({ "status": 200, "payload": null }));
}

#[tokio::test]
async fn what_has_no_place_on_a_stream_ends_the_stream_alone() {
    let hub = Hub::start(&[]);
    let lamp = Lamp::new(&hub).await;
    let mut session = lamp.session().await;
    let goodbye = Goodbye {
        code: 0,
        retry_after_ms: 0,
        reason: String::new(),
    };
    let mut cases = Vec::new();
    cases.push((session.stream(&goodbye).await, 400_003));
    let mut unknown = session.stream(&TwinOpen { desired_seen: 1 }).await;
    unknown.hear::<Ready>().await;
    unknown.write(&[0, 0, 0, 0, 0xee, 1, 0, 0]).await;
    cases.push((unknown, 400_006));
    let mut torn = commands(&session, 1).await;
    torn.write(&raw(Kind::Settle, 0, &[1, 2, 3])).await;
    cases.push((torn, 400_006));
    let mut misplaced = session.stream(&MethodsOpen { window: 1 }).await;
    misplaced.hear::<Ready>().await;
    misplaced.say(&TwinGet { id: 1 }).await;
    cases.push((misplaced, 400_003));
    for (mut stream, code) in cases {
        let failed: Failed = stream.hear().await;
        assert_eq!(failed.code, code, "{}", failed.reason);
        assert!(stream.frame().await.is_none(), "the stream has ended");
    }
    let mut large = session.stream(&TwinOpen { desired_seen: 1 }).await;
    large.hear::<Ready>().await;
    large.write(&[0, 0, 0, 1, Kind::Report as u8, 1, 0, 0]).await;
    assert_eq!(large.hear::<Failed>().await.code, 400_006, "16 MiB are announced");
    // The session lives.
    session.write(&crate::peers::append(1, &[b"still here"])).await;
    assert_eq!(session.hear::<forebay::wire::control::Ack>().await.sequence, 1);
}
