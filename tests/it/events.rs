//! Who is connected, and what the hub tells of itself, through the program and through kill -9.

use serde_json::{Value, json};

use crate::http::{Door, versioned};
use crate::hub::Hub;
use crate::peers::{PARTITION_COUNT, Peer, Site, device_token};

/// One device and its module are all the hub has, so that all events are theirs.
struct Watched {
    hub: Hub,
    site: Site,
    door: Door,
}

impl Watched {
    fn new(args: &[&str]) -> Self {
        let hub = Hub::start(args);
        Self {
            site: Site::of(&hub),
            door: Door::of(&hub),
            hub,
        }
    }

    /// Kills the hub and starts it again.
    fn kill9(&mut self) {
        self.hub.kill9();
        self.hub.restart();
    }

    fn own(&self, method: &str, path: &str, body: &Value) -> Value {
        let headers: &[(&str, &str)] = match method {
            "DELETE" => &[("If-Match", "*")],
            _ => &[],
        };
        let reply = self.door.own(method, &versioned(path), headers, body);
        assert!((200..300).contains(&reply.status), "{method} {path}: {reply:?}");
        match reply.body.is_empty() {
            true => Value::Null,
            false => reply.json(),
        }
    }

    fn get(&self, path: &str) -> Value {
        self.own("GET", path, &Value::Null)
    }

    async fn events(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for partition in 0..PARTITION_COUNT {
            let page = self
                .site
                .request("event.list", &json!({ "partition": partition }))
                .await;
            let events = page["events"].as_array().unwrap();
            assert_eq!(page["last"], events.len());
            all.extend(events.iter().cloned());
        }
        all
    }

    /// Waits until there are so many events; what happened in each.
    async fn told(&self, count: usize) -> Vec<String> {
        loop {
            let events = self.events().await;
            assert!(events.len() <= count, "{:?}", operations(&events));
            if events.len() == count {
                return operations(&events);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn connect(&self, key: &str) -> Peer {
        Peer::device(&self.site, "pump", &device_token("pump", key, 900))
            .await
            .0
    }
}

fn operations(events: &[Value]) -> Vec<String> {
    let text = |event: &Value| {
        let properties = &event["properties"];
        assert_eq!(properties["deviceId"], "pump");
        let operation = properties["opType"].as_str().unwrap();
        match properties["moduleId"].as_str() {
            Some(module) => format!("{operation} {module}"),
            None => operation.to_owned(),
        }
    };
    events.iter().map(text).collect()
}

#[tokio::test]
async fn a_life_of_a_device_is_told_once_and_in_order_through_crashes() {
    let mut watched = Watched::new(&["--set", "events.connection_window=0ms"]);
    let key = watched.site.create_device("pump").await;
    let module = json!({ "deviceId": "pump", "moduleId": "m" });
    watched.own("PUT", "/devices/pump/modules/m", &module);
    watched.kill9();

    let peer = watched.connect(&key).await;
    watched.told(3).await;
    watched.kill9();
    drop(peer);
    // The disconnection that nobody saw.
    watched.told(4).await;

    let patch = json!({ "properties": { "desired": { "level": 3 } } });
    watched.own("PATCH", "/twins/pump", &patch);
    watched.kill9();

    let peer = watched.connect(&key).await;
    watched.told(6).await;
    peer.connection.close(0u32.into(), b"");
    watched.told(7).await;
    watched.own("DELETE", "/devices/pump", &Value::Null);
    watched.kill9();

    let expected = [
        "createDeviceIdentity",
        "createDeviceIdentity m",
        "deviceConnected",
        "deviceDisconnected",
        "updateTwin",
        "deviceConnected",
        "deviceDisconnected",
        "deleteDeviceIdentity",
    ];
    let events = watched.events().await;
    assert_eq!(operations(&events), expected);
    let connections = events
        .iter()
        .filter_map(|event| event["body"]["sequenceNumber"].as_str());
    let connections: Vec<&str> = connections.collect();
    assert!(
        connections.len() == 4 && connections.is_sorted_by(|a, b| a < b),
        "{connections:?}"
    );
    assert_eq!(events[4]["body"]["properties"]["desired"]["level"], 3);
    assert_eq!(
        events[7]["body"]["properties"]["desired"]["level"], 3,
        "the last twin known"
    );

    // A person sees the same.
    let shown = watched
        .hub
        .run(&["events", "tail", "--earliest", "--json", "--count", "8"]);
    let shown: Vec<Value> = shown
        .expect_success()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(shown, events);
}

#[tokio::test]
async fn presence_shows_in_all_answers_and_a_restart_disconnects() {
    let mut watched = Watched::new(&[]);
    let key = watched.site.create_device("pump").await;
    let never = watched.get("/devices/pump");
    assert_eq!(never["connectionState"], "Disconnected");
    assert_eq!(never["connectionStateUpdatedTime"], "0001-01-01T00:00:00Z");
    let queued = json!({ "deviceId": "pump", "body": "x" });
    watched.site.request("c2d.send", &queued).await;

    let peer = watched.connect(&key).await;
    let by_quic = watched.site.request("device.get", &json!({ "deviceId": "pump" })).await;
    let since = by_quic["connectionStateUpdatedTime"].clone();
    let listed = watched.site.request("device.list", &json!({})).await[0].clone();
    let all = watched.get("/devices");
    for found in [&by_quic, &listed, &all[0], &watched.get("/devices/pump")] {
        assert_eq!(found["connectionState"], "Connected");
        assert_eq!(found["connectionStateUpdatedTime"], since);
        assert_ne!(found["lastActivityTime"], "0001-01-01T00:00:00Z");
        assert_eq!(found["cloudToDeviceMessageCount"], 1);
    }
    let twin = watched.get("/twins/pump");
    assert_eq!(twin["connectionState"], "Connected");
    assert_eq!(twin["lastActivityTime"], by_quic["lastActivityTime"]);
    assert_eq!(twin["cloudToDeviceMessageCount"], 1);

    // An orderly stop tells it before the end, within the window too; the start has nothing to add.
    watched.told(2).await;
    assert!(watched.hub.sigterm().success());
    drop(peer);
    watched.hub.restart();
    let expected = ["createDeviceIdentity", "deviceConnected", "deviceDisconnected"];
    assert_eq!(watched.told(3).await, expected);
    let after = watched.get("/devices/pump");
    assert_eq!(after["connectionState"], "Disconnected");
    assert!(after["connectionStateUpdatedTime"].as_str() > since.as_str());
    assert_eq!(after["lastActivityTime"], by_quic["lastActivityTime"]);
    assert_eq!(after["cloudToDeviceMessageCount"], 1);

    // Within the window of that disconnection, so: shown at once, told later.
    let _peer = watched.connect(&key).await;
    assert_eq!(watched.get("/devices/pump")["connectionState"], "Connected");
    assert_eq!(watched.told(3).await, expected);
    watched.own("PATCH", "/twins/pump", &json!({ "tags": { "a": 1 } }));
    let recorded = crate::hub::until("the metric of the twin's event", || {
        (watched.hub.metric("forebay_events_recorded_total") >= 1.0).then(|| watched.hub.metrics())
    });
    assert!(
        recorded.contains("forebay_events_recorded_total{kind=\"twin\"} 1"),
        "{recorded}"
    );
}
