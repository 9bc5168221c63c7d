//! Who comes in over MQTT, and by which way: modules, client certificates, WebSockets; and who is not fed any more.

use std::time::Duration;

use forebay::client::tls::Identity;
use forebay::hub::sas;
use forebay::hub::x509::thumbprint;
use forebay::model::UtcMillis;
use forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
use forebay::proto::mqtt::{Disconnect, Packet, Properties, Property, QoS, Reason, Version, Will};
use serde_json::{Value, json};

use crate::http::{Door, versioned};
use crate::hub::Hub;
use crate::mqtt_peer::{Hello, MqttPeer, Said, Way};
use crate::peers::{Rooms, Site, decode_key, device_token, now_seconds, until, within};
use crate::sessions::{authority, certificate, leaf};

const V3: Version = Version::V3;
const V5: Version = Version::V5;
const ACCEPTED: Said = Said::ConnAck {
    present: false,
    code: 0,
};

fn copy(identity: &Identity) -> Identity {
    Identity {
        chain: identity.chain.clone(),
        key: identity.key.clone_key(),
    }
}

/// Of a module `m` of `lamp`.
fn module_hello(token: &str) -> Hello<'_> {
    Hello {
        client_id: "lamp/m",
        user_name: "localhost/lamp/m/?api-version=2019-10-01",
        ..Hello::lamp(V3, token)
    }
}

fn create_module(hub: &Hub) -> String {
    let module = json!({ "deviceId": "lamp", "moduleId": "m" });
    let made = Door::of(hub).own("PUT", &versioned("/devices/lamp/modules/m"), &[], &module);
    assert_eq!(made.status, 201, "{made:?}");
    let key = made.json()["authentication"]["symmetricKey"]["primaryKey"].clone();
    let expiry = now_seconds() + 3600 - TOKEN_CLOCK_SKEW_SECONDS;
    let key = decode_key(key.as_str().unwrap());
    sas::generate("localhost/devices/lamp/modules/m", &key, expiry, None)
}

#[tokio::test]
async fn a_module_is_an_identity_of_its_own() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let token = create_module(&hub);
    let device_token = device_token("lamp", &key, 3600);
    // A device's key is not its module's, nor the other way round.
    for hello in [module_hello(&device_token), Hello::lamp(V3, &token)] {
        let (_, said) = MqttPeer::greet(&hub, hello).await;
        let refused = Said::ConnAck {
            present: false,
            code: 5,
        };
        assert_eq!(said, refused);
    }
    let (mut module, _) = MqttPeer::connect(&hub, module_hello(&token)).await;
    let (mut device, _) = MqttPeer::connect(&hub, Hello::lamp(V3, &device_token)).await;
    module
        .publish(1, "devices/lamp/modules/m/messages/events/%24.on=out&a=1", b"by m")
        .await;
    assert_eq!(module.hear().await, Said::PubAck(1, 0));
    device.publish(1, "devices/lamp/messages/events/", b"by lamp").await;
    assert_eq!(device.hear().await, Said::PubAck(1, 0));
    let stored: Vec<_> = site.read_all().await.into_iter().flatten().collect();
    let stored: Vec<_> = stored
        .iter()
        .map(|stored| (stored.device.as_str(), stored.module.as_str(), &stored.body[..]))
        .collect();
    assert_eq!(stored, [("lamp", "m", &b"by m"[..]), ("lamp", "", b"by lamp")]);

    // Its subscriptions, its twin, its methods and its messages.
    let filters = [
        ("devices/lamp/modules/m/inputs/#", QoS::AtLeastOnce),
        ("$iothub/twin/res/#", QoS::AtMostOnce),
        ("$iothub/methods/POST/#", QoS::AtMostOnce),
        ("devices/lamp/modules/m/messages/devicebound/#", QoS::AtLeastOnce),
        ("devices/lamp/messages/devicebound/#", QoS::AtLeastOnce),
    ];
    assert_eq!(module.subscribe(&filters).await, [1, 0, 0, 1, 0x80]);
    module
        .publish(0, "$iothub/twin/PATCH/properties/reported/?$rid=1", br#"{"by":"m"}"#)
        .await;
    assert_eq!(module.message().await.topic, "$iothub/twin/res/204/?$rid=1&$version=2");
    let twin = Door::of(&hub).own("GET", &versioned("/twins/lamp/modules/m"), &[], &Value::Null);
    assert_eq!(twin.json()["properties"]["reported"]["by"], "m");
    let service = site.service().await;
    let call = json!({ "deviceId": "lamp", "moduleId": "m", "methodName": "blink", "responseTimeoutInSeconds": 5 });
    let (answer, ()) = tokio::join!(within(service.request("method.invoke", &call)), async {
        let request = module.message().await;
        let rid = request.topic.strip_prefix("$iothub/methods/POST/blink/").unwrap();
        module
            .publish(0, &format!("$iothub/methods/res/200/{rid}"), b"true")
            .await;
    });
    assert_eq!(answer.unwrap(), json!({ "status": 200, "payload": true }));
    let command = json!({ "deviceId": "lamp", "moduleId": "m", "body": "for m" });
    site.request("c2d.send", &command).await;
    let message = module.message().await;
    assert_eq!(message.payload, b"for m");
    assert!(
        message
            .topic
            .starts_with("devices/lamp/modules/m/messages/devicebound/"),
        "{}",
        message.topic
    );
    module.acknowledge(message.id.unwrap(), 0).await;
    // The topics of its device are not its own.
    module.publish(2, "devices/lamp/messages/events/", b"x").await;
    assert_eq!(module.end().await, 0);
    device.publish(2, "devices/lamp/messages/events/", b"still here").await;
    assert_eq!(device.hear().await, Said::PubAck(2, 0));
    // Its name with its device's end.
    Door::of(&hub).own(
        "DELETE",
        &versioned("/devices/lamp"),
        &[("If-Match", "*")],
        &Value::Null,
    );
    assert_eq!(device.end().await, 0);
    let (_, said) = MqttPeer::greet(&hub, module_hello(&token)).await;
    assert_ne!(said, ACCEPTED);
}

#[tokio::test]
async fn certificates_let_in_whom_they_name_by_either_way() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let own = certificate("by-thumbprint", None);
    let by_thumbprint = json!({
        "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint(leaf(&own)) }
    });
    for (device, authentication) in [
        ("by-thumbprint", by_thumbprint),
        ("by-authority", json!({ "type": "certificateAuthority" })),
    ] {
        let wanted = json!({ "deviceId": device, "authentication": authentication });
        site.request("device.create", &wanted).await;
    }
    let key = site.create_device("by-key").await;
    // No door registers authorities yet: written into the stopped hub's store.
    hub.sigterm();
    let (known, unknown) = (authority("known"), authority("unknown"));
    let rooms = Rooms::open(&hub.data());
    let now = UtcMillis(now_seconds() as i64 * 1000);
    let add = |done| rooms.authorities.add("known", known.der(), true, now, done);
    rooms.authorities.wait(add).unwrap();
    drop(rooms);
    hub.restart();
    let token = device_token("by-key", &key, 3600);
    for (device, identity, password, code) in [
        ("by-thumbprint", copy(&own), "", 0),
        ("by-authority", certificate("by-authority", Some(&known)), "", 0),
        // A password counts, if there is one.
        ("by-key", copy(&own), &*token, 0),
        ("by-thumbprint", copy(&own), &token, 5),
        ("by-thumbprint", certificate("by-thumbprint", None), "", 5),
        ("by-authority", certificate("by-authority", Some(&unknown)), "", 5),
        ("by-authority", certificate("other", Some(&known)), "", 5),
        ("by-key", certificate("by-key", Some(&known)), "", 5),
    ] {
        let user_name = format!("localhost/{device}/?api-version=2021-04-12");
        for websocket in [None, Some(("mqtt", ""))] {
            let hello = Hello {
                is_clean: true,
                client_id: device,
                user_name: &user_name,
                ..Hello::lamp(V3, password)
            };
            let way = Way {
                identity: Some(copy(&identity)),
                websocket,
                ..Way::default()
            };
            let (mut peer, said) = MqttPeer::greet_by(&hub, hello, way).await;
            let expected = Said::ConnAck { present: false, code };
            assert_eq!(said, expected, "{device} {websocket:?}");
            if code == 0 {
                peer.publish(1, &format!("devices/{device}/messages/events/"), b"x")
                    .await;
                assert_eq!(peer.hear().await, Said::PubAck(1, 0), "{device}");
            }
        }
    }
    let printed = hub.run(&["tail", "--from", "earliest", "--count", "6", "--json"]);
    for line in printed.expect_success().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let method = event["systemProperties"]["iothub-connection-auth-method"]
            .as_str()
            .unwrap();
        let expected = if event["deviceId"] == "by-key" { "sas" } else { "x509" };
        assert!(method.contains(&format!(r#""type":"{expected}""#)), "{event}");
    }
}

#[tokio::test]
async fn a_websocket_carries_a_session_with_all_its_rules() {
    let hub = Hub::start(&["--set", "mqtt.handshake_timeout=1s"]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let token = device_token("lamp", &key, 3600);
    let by = |protocol, query| Way {
        websocket: Some((protocol, query)),
        ..Way::default()
    };
    // Who says nothing there is not waited for either.
    let mut silent = MqttPeer::open_by(&hub, V3, by("mqtt", "")).await;
    assert_eq!(silent.hear().await, Said::Closed);
    let large = "x".repeat(200_000);
    for (protocol, query) in [("mqtt", "?iothub-no-client-cert=true"), ("MQTT", "")] {
        let (mut peer, _) = MqttPeer::greet_by(&hub, Hello::lamp(V5, &token), by(protocol, query)).await;
        peer.publish(1, "devices/lamp/messages/events/", large.as_bytes()).await;
        assert_eq!(peer.hear().await, Said::PubAck(1, 0), "{protocol}");
        peer.say(&Packet::PingReq).await;
        assert_eq!(peer.hear().await, Said::PingResp);
        // As on the port: one connection an identity, and a reason for its end.
        let (_other, _) = MqttPeer::connect(&hub, Hello::lamp(V5, &token)).await;
        assert_eq!(peer.hear().await, Said::Disconnect(0x8e), "{protocol}");
    }
    let with_will = || {
        let will = Will {
            qos: QoS::AtLeastOnce,
            is_retain: false,
            topic: "devices/lamp/messages/events/",
            payload: b"lost",
            properties: Properties::NONE,
        };
        Hello {
            will: Some(will),
            ..Hello::lamp(V3, &token)
        }
    };
    let (mut polite, _) = MqttPeer::greet_by(&hub, with_will(), by("mqtt", "")).await;
    polite
        .say(&Packet::Disconnect(Disconnect {
            reason: Reason::SUCCESS,
            properties: Properties::NONE,
        }))
        .await;
    assert_eq!(polite.hear().await, Said::Closed);
    let (lost, _) = MqttPeer::greet_by(&hub, with_will(), by("mqtt", "")).await;
    drop(lost);
    until("the will", || {
        (hub.metric("forebay_mqtt_wills_total") == 1.0).then_some(())
    })
    .await;
    let bodies = site.read_by_device().await.remove("lamp").unwrap();
    assert_eq!(bodies, [large.as_bytes(), large.as_bytes(), b"lost"]);
}

/// What a client said is the longest it takes holds for all that the hub says.
#[tokio::test]
async fn what_a_client_does_not_take_is_not_sent() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let token = device_token("lamp", &key, 3600);
    let taking = [90, 30].map(|bytes| [Property::MaximumPacketSize(bytes)]);
    let hello = |properties| Hello {
        properties,
        ..Hello::lamp(V5, &token)
    };
    let (mut peer, _) = MqttPeer::connect(&hub, hello(&taking[0])).await;
    let filters = [
        ("$iothub/twin/res/#", QoS::AtMostOnce),
        ("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce),
    ];
    peer.subscribe(&filters).await;
    let patch = |member: &str| json!({ "properties": { "desired": { member: "x".repeat(10) } } }).to_string();
    let change = |member: &str| hub.run(&["twin", "patch", "lamp", &patch(member)]).expect_success();
    // The answer has 100 bytes, and so has the first of the changes.
    peer.publish(0, "$iothub/twin/GET/?$rid=1", b"").await;
    peer.publish(1, "devices/lamp/messages/events/", b"x").await;
    assert_eq!(peer.hear().await, Said::PubAck(1, 0));
    change(&"long".repeat(10));
    change("a");
    let desired = peer.message().await;
    assert_eq!(desired.topic, "$iothub/twin/PATCH/properties/desired/?$version=3");
    // A goodbye, and a refusal, are short enough without their words.
    let (mut peer, _) = MqttPeer::connect(&hub, hello(&taking[1])).await;
    peer.write(&[0xf0, 0]).await;
    assert_eq!(peer.end().await, 0x82);
    let wrong = Hello {
        client_id: "other",
        ..hello(&taking[1])
    };
    let (_, said) = MqttPeer::greet(&hub, wrong).await;
    let refused = Said::ConnAck {
        present: false,
        code: 0x85,
    };
    assert_eq!(said, refused);
}

/// A client that asks and never listens is read no further, costs its buffers, and is gone after a while.
#[tokio::test]
async fn who_takes_nothing_of_what_is_sent_is_held_and_then_gone() {
    const PEERS: u64 = 8;
    let hub = Hub::start(&["--set", "mqtt.stall_timeout=2s"]);
    let site = Site::of(&hub);
    let memory = || hub.memory("RssAnon");
    let mut peers = Vec::new();
    for n in 0..PEERS {
        let device = format!("deaf-{n}");
        let key = site.create_device(&device).await;
        let token = device_token(&device, &key, 3600);
        let user_name = format!("localhost/{device}/?api-version=2021-04-12");
        let hello = Hello {
            client_id: &device,
            user_name: &user_name,
            ..Hello::lamp(V3, &token)
        };
        let way = Way {
            receive_bytes: 4096,
            ..Way::default()
        };
        let (peer, said) = MqttPeer::greet_by(&hub, hello, way).await;
        assert_eq!(said, ACCEPTED);
        peers.push(peer);
    }
    let before = memory();
    let mut flooding = tokio::task::JoinSet::new();
    for mut peer in peers {
        flooding.spawn(async move { peer.flood(&[0xc0, 0]).await });
    }
    let mut grown = 0;
    let over = async {
        while !flooding.is_empty() {
            grown = grown.max(memory().saturating_sub(before));
            let _ = tokio::time::timeout(Duration::from_millis(50), flooding.join_next()).await;
        }
    };
    within(over).await;
    // README, memory: what is received and what is to be sent of each.
    assert!(
        grown < PEERS * (256 + 256 + 384) * 1024,
        "{grown} bytes for {PEERS} peers"
    );
    let stalled = "forebay_mqtt_ended_total{reason=\"stalled\"} 8";
    until("their end", || hub.metrics().contains(stalled).then_some(())).await;
}
