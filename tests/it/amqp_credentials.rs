//! Who an AMQP connection is, what its devices say of themselves, and how long it lasts: client certificates, SASL PLAIN,
//! models, silence.

use std::time::{Duration, Instant};

use forebay::client::tls::Identity;
use forebay::hub::x509::thumbprint;
use forebay::hub::{connection_string::ConnectionString, sas};
use forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
use forebay::proto::amqp::{DeliveryState, Error};
use serde_json::{Value, json};

use crate::amqp_peer::{AmqpPeer, Asked, data};
use crate::hub::Hub;
use crate::peers::{HOST, Site, decode_key, device_token, now_seconds};
use crate::sessions::{certificate, leaf};

fn condition(error: Option<Error>) -> String {
    error.expect("a reason").condition.name().to_owned()
}

fn events(device: &str) -> String {
    format!("/devices/{device}/messages/events")
}

/// A token of the owner's policy, for the hub as a whole.
fn owner_token(hub: &Hub, seconds: u64) -> String {
    let owner = ConnectionString::parse(&hub.endpoints().iothub_connection_string).unwrap();
    let key = decode_key(&owner.shared_access_key.unwrap());
    let expiry = now_seconds() + seconds - TOKEN_CLOCK_SKEW_SECONDS;
    sas::generate(HOST, &key, expiry, Some("iothubowner"))
}

#[tokio::test]
async fn a_certificate_opens_the_links_of_its_device_with_sasl_and_without() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let own = certificate("lamp", None);
    let wanted = json!({ "deviceId": "lamp", "authentication": {
        "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint(leaf(&own)) }
    } });
    site.request("device.create", &wanted).await;
    site.create_device("pump").await;
    let shown = || {
        Some(Identity {
            chain: own.chain.clone(),
            key: own.key.clone_key(),
        })
    };
    for sasl in [None, Some(("EXTERNAL", "")), Some(("ANONYMOUS", ""))] {
        let mut peer = AmqpPeer::connect_with(&hub, shown(), sasl).await;
        peer.attach(1, Asked::sender(&events("lamp"))).await.unwrap();
        let id = peer.send(1, &data(b"x"), false, 0).await;
        assert_eq!(peer.outcome(id).await, DeliveryState::Accepted, "{sasl:?}");
        let refused = peer.attach(2, Asked::sender(&events("pump"))).await.unwrap_err();
        assert_eq!(refused.condition.name(), "amqp:unauthorized-access", "{sasl:?}");
    }
    let mut stranger = AmqpPeer::connect_with(&hub, Some(certificate("lamp", None)), None).await;
    let refused = stranger.attach(1, Asked::sender(&events("lamp"))).await.unwrap_err();
    assert_eq!(refused.condition.name(), "amqp:unauthorized-access");
    let stored = site.read_by_device().await;
    assert_eq!(stored["lamp"].len(), 3);
}

#[tokio::test]
async fn a_user_of_plain_is_one_identity_whatever_its_token_allows() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("lamp").await;
    site.create_device("pump").await;
    let token = owner_token(&hub, 3600);
    let check = async |user: &str, expected: [bool; 2]| {
        let response = format!("\0{user}\0{token}");
        let mut peer = AmqpPeer::connect_with(&hub, None, Some(("PLAIN", &response))).await;
        for (handle, device) in ["lamp", "pump"].into_iter().enumerate() {
            let attached = peer.attach(handle as u32, Asked::sender(&events(device))).await;
            assert_eq!(attached.is_ok(), expected[handle], "{user}: {attached:?}");
        }
    };
    check("lamp@sas.localhost", [true, false]).await;
    check("pump@sas.localhost", [false, true]).await;
    check("lamp/modules/m@sas.localhost", [false, false]).await;
    // A policy acts for all.
    check("iothubowner@sas.root.localhost", [true, true]).await;
}

#[tokio::test]
async fn a_connection_of_plain_ends_with_its_token() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let (token, later) = (device_token("lamp", &key, 3), device_token("lamp", &key, 3600));
    let response = format!("\0lamp@sas.localhost\0{token}");
    let mut idle = AmqpPeer::connect_with(&hub, None, Some(("PLAIN", &response))).await;
    let mut busy = AmqpPeer::connect_with(&hub, None, Some(("PLAIN", &response))).await;
    busy.attach(1, Asked::sender(&events("lamp"))).await.unwrap();
    // There is no renewal of it.
    assert_eq!(idle.put_token(&later).await, 200);
    for peer in [&mut idle, &mut busy] {
        assert_eq!(condition(peer.closed().await), "amqp:unauthorized-access");
    }
    assert_eq!(condition(busy.ended(1).await), "amqp:unauthorized-access");
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_twice_what_the_hub_said() {
    let hub = Hub::start(&["--set", "amqp.idle_timeout=10s"]);
    let begun = Instant::now();
    let mut peer = AmqpPeer::connect(&hub).await;
    assert_eq!(condition(peer.closed().await), "amqp:connection:forced");
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(20)..Duration::from_secs(40)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_device_names_the_model_it_follows_on_any_of_its_links() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let mut peer = AmqpPeer::with_token(&hub, &device_token("lamp", &key, 3600)).await;
    let (telemetry, commands) = (events("lamp"), "/devices/lamp/messages/devicebound");
    peer.attach(1, Asked::sender(&telemetry)).await.unwrap();
    for (number, model_id) in ["", "dtmi:example:Lamp;1"].into_iter().enumerate() {
        let asked = Asked {
            model_id,
            ..Asked::receiver(commands)
        };
        peer.attach(2 + number as u32, asked).await.unwrap();
        let id = peer.send(1, &data(model_id.as_bytes()), false, 0).await;
        assert_eq!(peer.outcome(id).await, DeliveryState::Accepted);
    }
    let long = "x".repeat(2049);
    let asked = Asked {
        model_id: &long,
        ..Asked::receiver(commands)
    };
    let refused = peer.attach(9, asked).await.unwrap_err();
    assert_eq!(refused.condition.name(), "com.microsoft:argument-error");
    let printed = hub.run(&["tail", "--from", "earliest", "--count", "2", "--json"]);
    for line in printed.expect_success().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let model_id = event["systemProperties"]["dt-dataschema"].as_str().unwrap_or_default();
        assert_eq!(event["body"], model_id, "{event}");
    }
}
