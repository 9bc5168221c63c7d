//! Devices of the client library: messages, twins and methods, also across a hub that is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use forebay::client::ClientError;
use forebay::client::device::Device;
use forebay::client::streams::{MethodAnswer, Outcome};
use serde_json::{Value, json};

use crate::hub::Hub;
use crate::peers::{Site, within};

async fn queue(site: &Site, id: &str) {
    let command = json!({ "deviceId": "lamp", "body": id, "system": { "message-id": id } });
    site.request("c2d.send", &command).await;
}

async fn lamp(site: &Site) -> Device {
    let key = site.create_device("lamp").await;
    let device = site.device("lamp", &key);
    within(device.connected()).await.unwrap();
    device
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> u32 {
    match result {
        Err(ClientError::Refused { code, .. }) => code,
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test]
async fn commands_come_until_they_are_settled_also_across_a_crash() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let device = lamp(&site).await;
    let mut commands = device.commands(10);
    within(commands.listen()).await.unwrap();
    for id in ["a", "b", "c"] {
        queue(&site, id).await;
    }
    let a = within(commands.next()).await.unwrap();
    assert_eq!(a.message.body, b"a");
    within(commands.settle(&a, Outcome::Complete)).await.unwrap();
    assert_eq!(refused(within(commands.settle(&a, Outcome::Complete)).await), 412_002);
    let b = within(commands.next()).await.unwrap();
    within(commands.settle(&b, Outcome::Abandon)).await.unwrap();
    // Abandoned goes back to its place: whether "c" was under way already is the hub's affair.
    let (first, second) = (
        within(commands.next()).await.unwrap(),
        within(commands.next()).await.unwrap(),
    );
    let mut counts = [
        (first.message.body.clone(), first.delivery_count),
        (second.message.body.clone(), second.delivery_count),
    ];
    counts.sort();
    assert_eq!(counts, [(b"b".to_vec(), 1), (b"c".to_vec(), 0)]);
    for command in [&first, &second] {
        within(commands.settle(command, Outcome::Complete)).await.unwrap();
    }
    hub.kill9();
    hub.restart();
    queue(&site, "d").await;
    let d = within(commands.next()).await.unwrap();
    assert_eq!(d.message.body, b"d", "what was completed does not come again");
    within(commands.settle(&d, Outcome::Reject)).await.unwrap();
}

#[tokio::test]
async fn a_twin_is_followed_and_reported_across_a_crash() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let device = lamp(&site).await;
    let mut twin = device.twin(0);
    let first = within(twin.changed()).await.unwrap();
    assert_eq!((first.version, first.is_complete), (1, true));
    assert_eq!(within(twin.report(r#"{"on": true}"#, None)).await.unwrap(), 2);
    assert_eq!(refused(within(twin.report("{}", Some(1))).await), 412_001);
    let desire = async |value: u32| {
        let patch = json!({ "deviceId": "lamp", "twin": { "properties": { "desired": { "n": value } } } });
        site.request("twin.patch", &patch).await
    };
    desire(1).await;
    let change = within(twin.changed()).await.unwrap();
    assert_eq!(
        (change.version, change.is_complete, change.json.as_str()),
        (2, false, r#"{"$version":2,"n":1}"#)
    );
    hub.kill9();
    hub.restart();
    desire(2).await;
    desire(3).await;
    // By patches, or by the whole section where the device was away.
    let newest = within(async {
        loop {
            let change = twin.changed().await.unwrap();
            assert!(change.version > 2, "what was seen does not come again");
            if change.version == 4 {
                return change;
            }
        }
    })
    .await;
    assert_eq!(serde_json::from_str::<Value>(&newest.json).unwrap()["n"], 3);
    let document: Value = serde_json::from_str(&within(twin.get()).await.unwrap()).unwrap();
    let expected = json!({ "desired": { "n": 3, "$version": 4 }, "reported": { "on": true, "$version": 2 } });
    assert_eq!(document, expected, "kept through the crash");
}

#[tokio::test]
async fn methods_are_answered_several_at_once_and_again_after_a_crash() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let device = lamp(&site).await;
    let under_way = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
    let counts = under_way.clone();
    let serving = tokio::spawn(device.methods(4).serve(move |call| {
        let counts = counts.clone();
        async move {
            let now = counts.0.fetch_add(1, Ordering::SeqCst) + 1;
            counts.1.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            counts.0.fetch_sub(1, Ordering::SeqCst);
            if call.name == "large" {
                return MethodAnswer::new(200, &format!("{:?}", "x".repeat(300 * 1024)));
            }
            MethodAnswer::new(200, &format!("[{:?},{}]", call.name, call.payload))
        }
    }));
    let call =
        |n: u32| json!({ "deviceId": "lamp", "methodName": "echo", "payload": n, "connectTimeoutInSeconds": 30 });
    let service = Arc::new(site.service().await);
    let calls: Vec<_> = (0..8)
        .map(|n| {
            let (service, call) = (service.clone(), call(n));
            tokio::spawn(async move { service.request("method.invoke", &call).await.unwrap() })
        })
        .collect();
    for (n, answer) in calls.into_iter().enumerate() {
        assert_eq!(
            within(answer).await.unwrap(),
            json!({ "status": 200, "payload": ["echo", n] })
        );
    }
    assert_eq!(
        under_way.1.load(Ordering::SeqCst),
        4,
        "as many at once as the device takes"
    );
    let large = json!({ "deviceId": "lamp", "methodName": "large" });
    assert_eq!(refused(within(service.request("method.invoke", &large)).await), 502_000);
    hub.kill9();
    hub.restart();
    let answer = within(site.service().await.request("method.invoke", &call(9))).await;
    assert_eq!(
        answer.unwrap()["payload"],
        json!(["echo", 9]),
        "the call waits for the device to be back"
    );
    device.close().await;
    assert!(matches!(within(serving).await.unwrap(), Err(ClientError::Stopped)));
}
