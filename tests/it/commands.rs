//! Messages to devices and twins of a real hub, over HTTPS: sent, received, settled, reported, and kept through kill -9.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::http::{Door, Reply, device_token, versioned};
use crate::hub::Hub;
use crate::peers::{Site, until, within};

/// One device, and what its owner and it may do.
struct Commanded {
    door: Door,
    site: Site,
    token: String,
}

impl Commanded {
    async fn new(hub: &Hub) -> Self {
        let site = Site::of(hub);
        let key = site.create_device("lamp").await;
        Self {
            door: Door::of(hub),
            site,
            token: device_token("lamp", &key),
        }
    }

    async fn queue(&self, command: Value) -> Value {
        within(self.site.service().await.request("c2d.send", &command))
            .await
            .unwrap()
    }

    fn device(&self, method: &str, path: &str) -> Reply {
        let path = versioned(&format!("/devices/lamp/messages/deviceBound{path}"));
        self.door.ask(method, &path, &[("Authorization", &self.token)], b"")
    }

    fn receive(&self) -> Option<(String, Reply)> {
        let reply = self.device("GET", "");
        match reply.status {
            200 => Some((reply.header("etag").trim_matches('"').to_owned(), reply)),
            204 => None,
            _ => panic!("{reply:?}"),
        }
    }

    fn feedback(&self) -> Reply {
        self.door
            .own("GET", &versioned("/messages/serviceBound/feedback"), &[], &Value::Null)
    }

    /// What became of the next messages, by their ids; the batches are completed.
    async fn outcomes(&self, count: usize) -> Vec<(String, String)> {
        let mut outcomes = Vec::new();
        let all = until("feedback", move || {
            let reply = self.feedback();
            if reply.status == 200 {
                for record in reply.json().as_array().unwrap() {
                    let text = |name: &str| record[name].as_str().unwrap().to_owned();
                    assert_eq!(record["deviceId"], "lamp");
                    outcomes.push((text("originalMessageId"), text("statusCode")));
                }
                let lock = reply.header("etag").trim_matches('"').to_owned();
                let path = versioned(&format!("/messages/serviceBound/feedback/{lock}"));
                assert_eq!(self.door.own("DELETE", &path, &[], &Value::Null).status, 204);
            }
            (outcomes.len() >= count).then(|| std::mem::take(&mut outcomes))
        });
        let mut outcomes = all.await;
        outcomes.sort();
        outcomes
    }
}

#[tokio::test]
async fn a_command_reaches_its_device_and_its_outcome_the_service() {
    let hub = Hub::start(&[]);
    let lamp = Commanded::new(&hub).await;
    let send = |id: &str| {
        json!({
            "deviceId": "lamp", "body": format!("do {id}"), "properties": { "level": "7" },
            "system": { "message-id": id, "iothub-ack": "full", "content-type": "text/plain" },
        })
    };
    for id in ["done", "refused", "purged"] {
        lamp.queue(send(id)).await;
    }
    let (lock, first) = lamp.receive().expect("three messages wait");
    assert_eq!(first.body, b"do done");
    for (name, value) in [
        ("iothub-messageid", "done"),
        ("iothub-ack", "full"),
        ("iothub-app-level", "7"),
        ("iothub-deliverycount", "0"),
        ("contenttype", "text/plain"),
        ("iothub-contenttype", "text/plain"),
    ] {
        assert_eq!(first.header(name), value, "{name}");
    }
    // An abandoned message comes again, and is counted.
    assert_eq!(lamp.device("POST", &format!("/{lock}/abandon")).status, 204);
    let (again, second) = lamp.receive().unwrap();
    assert_eq!(
        (second.header("iothub-messageid"), second.header("iothub-deliverycount")),
        ("done", "1")
    );
    assert_ne!(again, lock);
    let late = lamp.device("DELETE", &format!("/{lock}"));
    assert_eq!((late.status, late.error()), (412, "DeviceMessageLockLost"));
    assert_eq!(lamp.device("DELETE", &format!("/{again}")).status, 204);
    let (reject, third) = lamp.receive().unwrap();
    assert_eq!(third.header("iothub-messageid"), "refused");
    assert_eq!(lamp.device("DELETE", &format!("/{reject}?reject")).status, 204);
    let purged = lamp
        .door
        .own("DELETE", &versioned("/devices/lamp/commands"), &[], &Value::Null);
    assert_eq!(
        purged.json(),
        json!({ "deviceId": "lamp", "moduleId": null, "totalMessagesPurged": 1 })
    );
    assert!(lamp.receive().is_none());
    let expected = [("done", "Success"), ("purged", "Purged"), ("refused", "Rejected")];
    assert_eq!(
        lamp.outcomes(3).await,
        expected.map(|(id, outcome)| (id.to_owned(), outcome.to_owned()))
    );
    assert_eq!(lamp.feedback().status, 204);
}

#[tokio::test]
async fn what_a_queue_cannot_take_is_refused_by_name() {
    let hub = Hub::start(&[]);
    let lamp = Commanded::new(&hub).await;
    let service = lamp.site.service().await;
    let refused = async |command: Value| {
        let error = within(service.request("c2d.send", &command)).await.unwrap_err();
        match error {
            forebay::client::ClientError::Refused { code, .. } => code,
            other => panic!("{other}"),
        }
    };
    for (command, code) in [
        (json!({ "deviceId": "nobody", "body": "" }), 404_001),
        (json!({ "deviceId": "lamp", "body": "x".repeat(70_000) }), 413_001),
        (
            json!({ "deviceId": "lamp", "system": { "iothub-ack": "perhaps" } }),
            400_004,
        ),
        (
            json!({ "deviceId": "lamp", "system": { "absolute-expiry-time": "2001-01-01T00:00:00Z" } }),
            403_009,
        ),
        (
            json!({ "deviceId": "lamp", "system": { "message-id": "a\nb" } }),
            400_004,
        ),
        (
            json!({ "deviceId": "lamp", "body": "a", "bodyBase64": "YQ==" }),
            400_004,
        ),
    ] {
        assert_eq!(refused(command.clone()).await, code, "{command}");
    }
    for _ in 0..50 {
        lamp.queue(json!({ "deviceId": "lamp", "body": "x" })).await;
    }
    assert_eq!(refused(json!({ "deviceId": "lamp", "body": "x" })).await, 403_004);
}

#[tokio::test]
async fn commands_locks_and_twins_survive_a_crash_and_nothing_completed_returns() {
    let mut hub = Hub::start(&[]);
    let lamp = Commanded::new(&hub).await;
    let twin = |patch: Value| lamp.door.own("PATCH", &versioned("/twins/lamp"), &[], &patch);
    for number in 0..10 {
        let id = format!("m-{number}");
        lamp.queue(
            json!({ "deviceId": "lamp", "body": "x", "system": { "message-id": id, "iothub-ack": "positive" } }),
        )
        .await;
        assert_eq!(
            twin(json!({ "properties": { "desired": { "step": number } } })).status,
            200
        );
    }
    let mut completed = BTreeSet::new();
    for _ in 0..4 {
        let (lock, message) = lamp.receive().unwrap();
        assert_eq!(lamp.device("DELETE", &format!("/{lock}")).status, 204);
        completed.insert(message.header("iothub-messageid").to_owned());
    }
    let (held, message) = lamp.receive().unwrap();
    assert_eq!(message.header("iothub-messageid"), "m-4");

    hub.kill9();
    hub.restart();
    let document = lamp
        .door
        .own("GET", &versioned("/twins/lamp"), &[], &Value::Null)
        .json();
    assert_eq!(document["properties"]["desired"]["step"], 9);
    assert_eq!(document["properties"]["desired"]["$version"], 11);
    let mut rest = Vec::new();
    while let Some((_, message)) = lamp.receive() {
        rest.push(message.header("iothub-messageid").to_owned());
    }
    // m-4 is still locked, by the token given out before the crash.
    assert_eq!(rest, ["m-5", "m-6", "m-7", "m-8", "m-9"]);
    assert_eq!(lamp.device("DELETE", &format!("/{held}")).status, 204);
    completed.insert("m-4".into());
    let reported: Vec<_> = lamp.outcomes(5).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(reported, completed.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn twins_are_read_patched_and_replaced() {
    let hub = Hub::start(&[]);
    let lamp = Commanded::new(&hub).await;
    let twin = |method: &str, headers: &[(&str, &str)], body: Value| {
        lamp.door.own(method, &versioned("/twins/lamp"), headers, &body)
    };
    let fresh = twin("GET", &[], Value::Null).json();
    assert_eq!((&fresh["deviceId"], &fresh["tags"]), (&json!("lamp"), &json!({})));
    let patch =
        json!({ "tags": { "room": { "floor": 2, "name": "hall" } }, "properties": { "desired": { "on": true } } });
    let patched = twin("PATCH", &[], patch);
    assert_eq!(patched.status, 200);
    assert_eq!(patched.json()["properties"]["desired"]["$version"], 2);
    let etag = patched.header("etag").to_owned();
    assert_eq!(format!("\"{}\"", patched.json()["etag"].as_str().unwrap()), etag);
    let removed = twin(
        "PATCH",
        &[("If-Match", &etag)],
        json!({ "tags": { "room": { "name": null } } }),
    );
    assert_eq!(removed.json()["tags"], json!({ "room": { "floor": 2 } }));
    let stale = twin("PATCH", &[("If-Match", &etag)], json!({ "tags": { "a": 1 } }));
    assert_eq!((stale.status, stale.error()), (412, "PreconditionFailed"));
    let replaced = twin(
        "PUT",
        &[("If-Match", "*")],
        json!({ "tags": { "b": 2 }, "properties": { "desired": {} } }),
    );
    assert_eq!(replaced.json()["tags"], json!({ "b": 2 }));
    assert_eq!(replaced.json()["properties"]["desired"].get("on"), None);
    let bulk = |entry: Value| {
        lamp.door
            .own("POST", &versioned("/devices"), &[], &json!([entry]))
            .json()
    };
    let entry = json!({ "id": "lamp", "importMode": "updateTwin", "tags": { "c": 3 }, "properties": { "desired": { "on": 1 } } });
    assert_eq!(bulk(entry)["isSuccessful"], true);
    let document = twin("GET", &[], Value::Null).json();
    assert_eq!(document["tags"], json!({ "b": 2, "c": 3 }));
    assert_eq!(document["properties"]["desired"]["on"], 1);
    let entry = json!({ "id": "lamp", "importMode": "updateTwinIfMatchETag", "twinETag": "stale", "tags": { "c": 4 } });
    assert_eq!(bulk(entry)["errors"][0]["errorCode"], "PreconditionFailed");
    let deep = (0..12).fold(json!(1), |value, _| json!({ "a": value }));
    assert_eq!(twin("PATCH", &[], json!({ "tags": deep })).error(), "ArgumentInvalid");
    let unknown = lamp.door.own("GET", &versioned("/twins/nobody"), &[], &Value::Null);
    assert_eq!((unknown.status, unknown.error()), (404, "DeviceNotFound"));
    // A device's own credential is no service's.
    let path = versioned("/twins/lamp");
    let refused = lamp.door.ask("GET", &path, &[("Authorization", &lamp.token)], b"");
    assert_eq!(refused.status, 401);
}
