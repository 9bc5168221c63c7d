//! Throttles and quotas: who is above a rate waits or comes back later, and nobody else notices.

use std::time::{Duration, Instant};

use forebay::client::ClientError;
use forebay::model::Message;
use forebay::wire::control::Ack;
use serde_json::{Value, json};

use crate::http::{Door, Reply, device_token as https_token, versioned};
use crate::hub::{Hub, PATIENCE};
use crate::peers::{Peer, Site, append, device_token, sample, within};

/// A hub with these keys of `[throttles]`.
fn throttled(keys: &[&str]) -> Hub {
    let keys: Vec<String> = keys.iter().map(|key| format!("throttles.{key}")).collect();
    let args: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
    Hub::start(&args)
}

fn post(door: &Door, device: &str, key: &str, count: usize) -> Reply {
    let batch = json!(vec![json!({ "body": "" }); count]).to_string();
    let token = https_token(device, key);
    let headers = [
        ("Content-Type", "application/vnd.microsoft.iothub.json"),
        ("Authorization", &token),
    ];
    let path = versioned(&format!("/devices/{device}/messages/events"));
    door.ask("POST", &path, &headers, batch.as_bytes())
}

#[track_caller]
fn check(reply: &Reply, status: u16, error: &str, retry_after: std::ops::RangeInclusive<u64>) {
    assert_eq!((reply.status, reply.error()), (status, error), "{reply:?}");
    let seconds = reply.header("retry-after").parse().unwrap();
    assert!(retry_after.contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn one_noisy_device_gets_its_rate_and_its_neighbours_notice_nothing() {
    const RATE: u64 = 50;
    const NOISY: u64 = 200;
    let hub = throttled(&["device_messages_per_second=50", "device_messages_burst=50"]);
    let site = Site::of(&hub);
    let noisy_key = site.create_device("noisy").await;
    let names: Vec<String> = (0..9).map(|index| format!("quiet-{index}")).collect();
    let mut quiet = Vec::new();
    for name in &names {
        let key = site.create_device(name).await;
        let device = site.device(name, &key);
        within(device.connected()).await.unwrap();
        quiet.push(device);
    }

    let began = Instant::now();
    let token = device_token("noisy", &noisy_key, 3600);
    let (mut noisy, _) = Peer::device(&site, "noisy", &token).await;
    for sequence in 1..=NOISY {
        let body = sequence.to_string();
        noisy.write(&append(sequence, &[body.as_bytes()])).await;
    }
    for round in 0..20 {
        for device in &quiet {
            let message = Message::new(round.to_string());
            let receipt = within(device.send(&message)).await.unwrap();
            within(device.acknowledged(receipt)).await.unwrap();
        }
    }
    let mut acknowledged = 0;
    while acknowledged < NOISY {
        let ack: Ack = noisy.hear().await;
        assert!(ack.sequence > acknowledged, "acknowledgements only grow");
        acknowledged = ack.sequence;
    }
    // One less: a part of the first may have come before.
    let least = Duration::from_millis((NOISY - RATE - 1) * 1000 / RATE);
    assert!(
        began.elapsed() >= least,
        "{:?} is faster than its rate",
        began.elapsed()
    );

    assert!(noisy.connection.close_reason().is_none());
    assert!(quiet.iter().all(|device| device.connects() == 1));
    assert_eq!(hub.metric("forebay_connections_closed_total"), 0.0);
    let delayed = "forebay_throttled_total{limit=\"device\",outcome=\"delayed\"}";
    assert!(sample(&hub, delayed) >= 1.0);
    assert!(sample(&hub, "forebay_throttle_wait_seconds_total{limit=\"device\"}") > 0.0);
    let stored = site.read_by_device().await;
    let bodies = |numbers: std::ops::RangeInclusive<u64>| -> Vec<Vec<u8>> {
        numbers.map(|number| number.to_string().into_bytes()).collect()
    };
    assert!(stored["noisy"] == bodies(1..=NOISY), "all of it, once, in order");
    for name in &names {
        assert_eq!(stored[name], bodies(0..=19), "{name}");
    }
}

#[tokio::test]
async fn requests_of_one_device_wait_for_their_turn_and_then_come_back_later() {
    let hub = throttled(&[
        "device_messages_per_second=5",
        "device_messages_burst=10",
        "wait_max=3s",
    ]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let other = door.create_device("other");
    let began = Instant::now();
    assert_eq!(post(&door, "d", &key, 10).status, 204);
    assert_eq!(post(&door, "d", &key, 5).status, 204);
    assert!(
        began.elapsed() >= Duration::from_millis(800),
        "the second waits for its turn"
    );
    // Larger than its wait could ever be: however slow this test is, 110 messages need 20 seconds beside a full bucket.
    check(
        &post(&door, "d", &key, 110),
        429,
        "DeviceThrottlingLimitExceeded",
        20..=22,
    );
    assert_eq!(post(&door, "other", &other, 10).status, 204, "others are not concerned");
    assert_eq!(
        sample(&hub, "forebay_throttled_total{limit=\"device\",outcome=\"refused\"}"),
        1.0
    );
    let stored = Site::of(&hub).read_by_device().await;
    assert_eq!((stored["d"].len(), stored["other"].len()), (15, 10));
}

#[test]
fn the_hubs_own_rates_hold_for_all_together() {
    let hub = throttled(&[
        "registry_per_second=1",
        "registry_burst=3",
        "d2c_messages_per_second=1",
        "d2c_messages_burst=10",
        "twin_reads_per_second=1",
        "twin_reads_burst=1",
    ]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let many = json!((0..50).map(|id| json!({ "id": format!("b-{id}") })).collect::<Vec<_>>());
    let bulk = || door.own("POST", &versioned("/devices"), &[], &many);
    check(&bulk(), 429, "ThrottlingException", 44..=50);
    check(&post(&door, "d", &key, 60), 429, "ThrottlingException", 45..=50);
    assert_eq!(post(&door, "d", &key, 10).status, 204, "what is refused takes nothing");
    let began = Instant::now();
    for _ in 0..3 {
        let read = door.own("GET", &versioned("/twins/d"), &[], &Value::Null);
        assert_eq!(read.status, 200, "{read:?}");
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "two of three wait");
    // A stranger uses nothing up, however often it asks.
    for _ in 0..10 {
        let refused = door.ask("GET", &versioned("/twins/d"), &[], b"");
        assert_eq!(refused.status, 401);
    }
    let delayed = "forebay_throttled_total{limit=\"twin_reads\",outcome=\"delayed\"}";
    assert!(
        sample(&hub, delayed) <= 2.0 && sample(&hub, "forebay_throttle_wait_seconds_total{limit=\"twin_reads\"}") > 0.0
    );
}

#[test]
fn without_a_place_to_wait_in_a_request_comes_back_later() {
    let hub = throttled(&[
        "registry_per_second=1",
        "registry_burst=1",
        "waiters_max=0",
        "wait_max=60s",
    ]);
    let door = Door::of(&hub);
    let many = json!((0..30).map(|id| json!({ "id": format!("b-{id}") })).collect::<Vec<_>>());
    let refused = door.own("POST", &versioned("/devices"), &[], &many);
    check(&refused, 429, "ThrottleBacklogLimitExceeded", 28..=30);
}

#[tokio::test]
async fn a_service_on_the_native_door_is_throttled_with_the_same_codes() {
    let hub = throttled(&[
        "registry_per_second=1",
        "registry_burst=1",
        "wait_max=0ms",
        "daily_messages_max=2",
    ]);
    let site = Site::of(&hub);
    site.create_device("d").await;
    let service = site.service().await;
    let mut refused = None;
    let deadline = Instant::now() + PATIENCE;
    while refused.is_none() && Instant::now() < deadline {
        refused = within(service.request("device.get", &json!({ "deviceId": "d" })))
            .await
            .err();
    }
    assert!(
        matches!(refused, Some(ClientError::Refused { code: 429_001, .. })),
        "{refused:?}"
    );
    let send = json!({ "deviceId": "d", "body": "x" });
    for _ in 0..2 {
        within(service.request("c2d.send", &send)).await.unwrap();
    }
    let full = within(service.request("c2d.send", &send)).await.unwrap_err();
    assert!(matches!(full, ClientError::Refused { code: 403_002, .. }), "{full:?}");
    service.close();
}

/// Runs into the next day only if it starts within seconds of midnight (UTC).
#[test]
fn the_days_quota_survives_a_restart() {
    let mut hub = throttled(&["daily_messages_max=3"]);
    let key = Door::of(&hub).create_device("d");
    assert_eq!(post(&Door::of(&hub), "d", &key, 2).status, 204);
    assert_eq!(post(&Door::of(&hub), "d", &key, 2).error(), "IotHubQuotaExceeded");
    assert_eq!(post(&Door::of(&hub), "d", &key, 1).status, 204);
    assert!(hub.sigterm().success());
    hub.restart();
    let refused = post(&Door::of(&hub), "d", &key, 1);
    assert_eq!((refused.status, refused.error()), (403, "IotHubQuotaExceeded"));
}
