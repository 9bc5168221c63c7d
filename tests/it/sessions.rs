//! The life of a session: who gets in, what ends it and with which close code, what survives it.

use std::time::Duration;

use forebay::client::ClientError;
use forebay::client::credential::{Credential, PolicyKey};
use forebay::client::device::{Device, Receipt};
use forebay::client::service::Subscription;
use forebay::client::tls::Identity;
use forebay::hub::identity::{Authentication, AuthenticationKind};
use forebay::hub::x509::thumbprint;
use forebay::hub::{ModuleIdentity, sas};
use forebay::model::{DeviceId, Message, ModuleId, PartitionId, SequenceNumber, UtcMillis};
use forebay::wire::close::CloseCode;
use forebay::wire::control::{Ack, Goodbye, Hello, Renew, Renewed, Welcome};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::hub::Hub;
use crate::peers::{
    Peer, Rooms, Site, append, closed_sample, decode_key, device_token, hello, now_seconds, sample, service_hello,
    service_token, until, within,
};

/// A peer that is let in sends one message and has it acknowledged.
async fn send_one(peer: &mut Peer, welcome: &Welcome) {
    peer.write(&append(welcome.last_sequence + 1, &[b"one"])).await;
    let ack: Ack = peer.hear().await;
    assert_eq!(ack.sequence, welcome.last_sequence + 1);
}

#[tokio::test]
async fn the_newer_session_of_a_device_wins() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("twice").await;
    let token = device_token("twice", &key, 3600);
    let (older, _) = Peer::device(&site, "twice", &token).await;
    let (mut newer, welcome) = Peer::device(&site, "twice", &token).await;
    assert_eq!(older.closed().await.0, CloseCode::TakenOver);
    send_one(&mut newer, &welcome).await;
    assert_eq!(sample(&hub, &closed_sample(CloseCode::TakenOver)), 1.0);
    assert_eq!(sample(&hub, "forebay_sessions{kind=\"device\"}"), 1.0);

    // The library does not fight for it.
    let device = site.device("twice", &key);
    within(device.connected()).await.unwrap();
    assert_eq!(newer.closed().await.0, CloseCode::TakenOver);
    let (_newest, _) = Peer::device(&site, "twice", &token).await;
    let receipt = device.try_send(&Message::new("late"));
    let refused = match receipt {
        Ok(receipt) => within(device.acknowledged(receipt)).await.unwrap_err(),
        Err(refused) => refused,
    };
    assert!(
        matches!(
            refused,
            ClientError::Closed {
                code: CloseCode::TakenOver,
                ..
            }
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn a_token_ends_its_session_unless_it_is_renewed() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let mut keys = Vec::new();
    for name in ["short", "renewed", "flooding", "false"] {
        keys.push(site.create_device(name).await);
    }
    let short_token = |name, key: &str| device_token(name, key, 3);
    let (mut short, welcome) = Peer::device(&site, "short", &short_token("short", &keys[0])).await;
    assert!(welcome.expires_ms > now_seconds() as i64 * 1000);
    send_one(&mut short, &welcome).await;

    let (mut renewed, renewed_welcome) = Peer::device(&site, "renewed", &short_token("renewed", &keys[1])).await;
    let long = device_token("renewed", &keys[1], 3600);
    renewed.say(&Renew { token: long }).await;
    let answer: Renewed = renewed.hear().await;
    assert!(answer.expires_ms > renewed_welcome.expires_ms + 3_000_000);

    // One that always has more to say is cut as well: a busy stream must not hide the clock.
    let (flooding, _) = Peer::device(&site, "flooding", &short_token("flooding", &keys[2])).await;
    let flood = tokio::spawn({
        let Peer { mut send, recv, .. } = flooding;
        async move {
            let body = vec![7; 1000];
            let mut next = 1;
            while send.write_all(&append(next, &[&body[..]; 60])).await.is_ok() {
                next += 60;
            }
            drop(recv);
        }
    });

    // A service's connection lasts no longer than its token either.
    let expiry = now_seconds() + 3 - forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
    let owner = site.owner.clone();
    let token = sas::generate("localhost", &decode_key(&owner.key), expiry, Some(&owner.policy));
    let mut service = Peer::connect(&site).await;
    service.say(&service_hello(&token)).await;
    let _: Welcome = service.hear().await;

    let (mut false_renewal, _) = Peer::device(&site, "false", &device_token("false", &keys[3], 3600)).await;
    false_renewal
        .say(&Renew {
            token: device_token("false", &keys[0], 3600),
        })
        .await;
    assert_eq!(false_renewal.closed().await.0, CloseCode::Unauthorized);

    assert_eq!(short.closed().await.0, CloseCode::TokenExpired);
    assert_eq!(service.closed().await.0, CloseCode::TokenExpired);
    within(flood).await.unwrap();
    until("three sessions are ended by their tokens", || {
        (sample(&hub, &closed_sample(CloseCode::TokenExpired)) == 3.0).then_some(())
    })
    .await;
    send_one(&mut renewed, &renewed_welcome).await;
}

#[tokio::test]
async fn changing_an_identity_cuts_its_session_at_once() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("watched").await;
    let neighbour_key = site.create_device("neighbour").await;
    let neighbour = site.device("neighbour", &neighbour_key);
    within(neighbour.connected()).await.unwrap();
    let token = device_token("watched", &key, 3600);

    let update = async |change: &dyn Fn(&mut serde_json::Value)| {
        let mut identity = site.request("device.get", &json!({ "deviceId": "watched" })).await;
        change(&mut identity);
        site.request("device.update", &identity).await
    };
    let refused = async |token: &str| {
        let mut peer = Peer::connect(&site).await;
        peer.say(&hello("watched", token)).await;
        peer.closed().await.0
    };

    let (mut peer, welcome) = Peer::device(&site, "watched", &token).await;
    send_one(&mut peer, &welcome).await;
    update(&|identity| identity["status"] = "disabled".into()).await;
    assert_eq!(peer.closed().await.0, CloseCode::DeviceDisabled);
    assert_eq!(refused(&token).await, CloseCode::DeviceDisabled);
    update(&|identity| identity["status"] = "enabled".into()).await;

    let (peer, _) = Peer::device(&site, "watched", &token).await;
    let changed = update(&|identity| {
        identity["authentication"]["symmetricKey"] =
            json!({ "primaryKey": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", "secondaryKey": "GBkaGxwdHh8gISIjJCUmJygpKissLS4v" });
    })
    .await;
    assert_eq!(peer.closed().await.0, CloseCode::Unauthorized);
    assert_eq!(refused(&token).await, CloseCode::Unauthorized);

    let key = changed["authentication"]["symmetricKey"]["secondaryKey"]
        .as_str()
        .unwrap();
    let token = device_token("watched", key, 3600);
    let (peer, _) = Peer::device(&site, "watched", &token).await;
    site.request("device.delete", &json!({ "deviceId": "watched" })).await;
    assert_eq!(peer.closed().await.0, CloseCode::DeviceDeleted);
    // Who cannot prove who he is learns nothing of who exists.
    assert_eq!(refused(&token).await, CloseCode::Unauthorized);

    // A device made anew under the name starts from nothing: its numbers are not those of its namesake.
    let key = site.create_device("watched").await;
    let (mut peer, welcome) = Peer::device(&site, "watched", &device_token("watched", &key, 3600)).await;
    assert_eq!((welcome.epoch, welcome.last_sequence), (1, 0));
    send_one(&mut peer, &welcome).await;

    // All that meanwhile left others in peace.
    let receipt = neighbour.try_send(&Message::new("still here")).unwrap();
    within(neighbour.acknowledged(receipt)).await.unwrap();
    assert_eq!(neighbour.connects(), 1);
}

/// IoT Hub, identity: two keys, so that one can be changed while the other is used.
#[tokio::test]
async fn a_key_that_is_replaced_ends_what_it_proved_and_nothing_else() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("d").await;
    let camera = site
        .request("module.create", &json!({ "deviceId": "d", "moduleId": "camera" }))
        .await;
    let identity = site.request("device.get", &json!({ "deviceId": "d" })).await;
    let key = |of: &serde_json::Value, slot: &str| of[slot].as_str().unwrap().to_owned();
    let keys = &identity["authentication"]["symmetricKey"];
    let (primary, secondary) = (key(keys, "primaryKey"), key(keys, "secondaryKey"));
    let rotate = async |slot: &str| {
        let wanted = json!({ "deviceId": "d", "policyKey": slot });
        site.request("device.regenerate", &wanted).await
    };
    let goes_on = async |peer: &mut Peer| peer.write(&append(1, &[b"still here"])).await;

    let module_key = key(&camera["authentication"]["symmetricKey"], "primaryKey");
    let resource = "localhost/devices/d/modules/camera";
    let token = sas::generate(resource, &decode_key(&module_key), now_seconds() + 600, None);
    let mut module = Peer::connect(&site).await;
    module
        .say(&Hello {
            module_id: "camera".to_owned(),
            ..hello("d", &token)
        })
        .await;
    let _: Welcome = module.hear().await;

    let (mut peer, _) = Peer::device(&site, "d", &device_token("d", &secondary, 3600)).await;
    rotate("primaryKey").await;
    goes_on(&mut peer).await;
    assert_eq!(peer.hear::<Ack>().await.sequence, 1);
    let renewed = rotate("secondaryKey").await;
    assert_eq!(peer.closed().await.0, CloseCode::Unauthorized);
    for old in [&primary, &secondary] {
        let mut refused = Peer::connect(&site).await;
        refused.say(&hello("d", &device_token("d", old, 3600))).await;
        assert_eq!(refused.closed().await.0, CloseCode::Unauthorized);
    }

    // Renewed by the other key, a session is the other key's.
    let (mut peer, _) = Peer::device(&site, "d", &device_token("d", &key(&renewed, "primaryKey"), 3600)).await;
    peer.say(&Renew {
        token: device_token("d", &key(&renewed, "secondaryKey"), 3600),
    })
    .await;
    let _: Renewed = peer.hear().await;
    rotate("primaryKey").await;
    goes_on(&mut peer).await;
    assert_eq!(peer.hear::<Ack>().await.sequence, 1);

    // A policy's token is no key of the device; and a module's key is none of its device's.
    drop(peer);
    let (mut peer, _) = Peer::device(&site, "d", &service_token(&site.owner)).await;
    rotate("both").await;
    goes_on(&mut peer).await;
    assert_eq!(peer.hear::<Ack>().await.sequence, 1);
    goes_on(&mut module).await;
    assert_eq!(module.hear::<Ack>().await.sequence, 1);
}

/// A certificate for `name`, signed by `issuer` or by itself.
pub fn certificate(name: &str, issuer: Option<&CertifiedIssuer<'_, KeyPair>>) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let made = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Identity {
        chain: vec![made.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

pub fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub fn leaf(identity: &Identity) -> &CertificateDer<'static> {
    &identity.chain[0]
}

/// What a device with this certificate is told.
async fn certificate_answer(site: &Site, device: &str, identity: Identity) -> Result<Welcome, CloseCode> {
    let mut peer = Peer::connect(&site.with_certificate(identity)).await;
    peer.say(&hello(device, "")).await;
    match peer.frame().await {
        Some(frame) => {
            use forebay::wire::control::Control as _;
            Ok(Welcome::from_body(&frame.body).unwrap())
        }
        None => Err(peer.closed().await.0),
    }
}

#[tokio::test]
async fn certificates_and_modules_let_in_whom_they_name() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let own = certificate("by-thumbprint", None);
    site.request(
        "device.create",
        &json!({ "deviceId": "by-thumbprint", "authentication": {
            "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint(leaf(&own)) }
        } }),
    )
    .await;
    site.request(
        "device.create",
        &json!({ "deviceId": "by-authority", "authentication": { "type": "certificateAuthority" } }),
    )
    .await;
    site.create_device("carrier").await;

    hub.sigterm();
    let (known, unknown, unverified) = (authority("known"), authority("unknown"), authority("unverified"));
    let rooms = Rooms::open(&hub.data());
    let now = UtcMillis(now_seconds() as i64 * 1000);
    for (name, authority, is_verified) in [("known", &known, true), ("unverified", &unverified, false)] {
        rooms
            .authorities
            .wait(|done| rooms.authorities.add(name, authority.der(), is_verified, now, done))
            .unwrap();
    }
    let module = ModuleIdentity::new(DeviceId::new("carrier").unwrap(), ModuleId::new("camera").unwrap());
    let module = rooms.registry.create_module_blocking(module, now).unwrap().identity;
    drop(rooms);
    hub.restart();

    let check = async |device: &str, identity: Identity, expected: Result<(), (CloseCode, &str)>| {
        let refused = |label: &str| {
            sample(
                &hub,
                &format!("forebay_credentials_refused_total{{reason=\"{label}\"}}"),
            )
        };
        let before = expected.map_or_else(|(_, label)| refused(label), |()| 0.0);
        let answer = certificate_answer(&site, device, identity).await;
        match expected {
            Ok(()) => assert!(answer.unwrap().expires_ms > now.0, "a certificate ends its session too"),
            Err((code, label)) => {
                assert_eq!(answer.unwrap_err(), code, "{device}: {label}");
                assert_eq!(refused(label), before + 1.0, "{device}: {label}");
            }
        }
    };
    use CloseCode::Unauthorized;
    check("by-thumbprint", own.clone(), Ok(())).await;
    check(
        "by-thumbprint",
        certificate("by-thumbprint", None),
        Err((Unauthorized, "thumbprint")),
    )
    .await;
    check("by-authority", certificate("by-authority", Some(&known)), Ok(())).await;
    check(
        "by-authority",
        certificate("by-authority", Some(&unknown)),
        Err((Unauthorized, "chain")),
    )
    .await;
    check(
        "by-authority",
        certificate("by-authority", Some(&unverified)),
        Err((Unauthorized, "chain")),
    )
    .await;
    check(
        "by-authority",
        certificate("by-thumbprint", Some(&known)),
        Err((Unauthorized, "common_name")),
    )
    .await;
    check(
        "by-authority",
        certificate("by-authority", None),
        Err((Unauthorized, "chain")),
    )
    .await;
    // A certificate, however good, says nothing for a device that has keys.
    check(
        "carrier",
        certificate("carrier", Some(&known)),
        Err((Unauthorized, "wrong_kind")),
    )
    .await;
    check(
        "nobody",
        certificate("nobody", Some(&known)),
        Err((Unauthorized, "unknown_identity")),
    )
    .await;

    // The library logs in the same way.
    let by_library = site.with_certificate(certificate("by-authority", Some(&known)));
    let device = Device::start(
        by_library.endpoint(),
        by_library.options("by-authority", Credential::Certificate),
    )
    .unwrap();
    let receipt = device.try_send(&Message::new("signed")).unwrap();
    within(device.acknowledged(receipt)).await.unwrap();

    let Authentication {
        kind, symmetric_key, ..
    } = module.authentication;
    assert_eq!(kind, AuthenticationKind::Sas);
    let module_key = symmetric_key.primary_key.unwrap();
    let token = |resource: &str| sas::generate(resource, &decode_key(&module_key), now_seconds() + 600, None);
    let module_hello = |token: String| Hello {
        module_id: "camera".to_owned(),
        ..hello("carrier", &token)
    };
    let mut peer = Peer::connect(&site).await;
    peer.say(&module_hello(token("localhost/devices/carrier/modules/camera")))
        .await;
    let welcome: Welcome = peer.hear().await;
    send_one(&mut peer, &welcome).await;
    // Its key is not its device's.
    let mut peer = Peer::connect(&site).await;
    peer.say(&hello("carrier", &token("localhost/devices/carrier"))).await;
    assert_eq!(peer.closed().await.0, Unauthorized);

    let stored: Vec<_> = site.read_all().await.into_iter().flatten().collect();
    assert!(
        stored
            .iter()
            .any(|one| one.device == "carrier" && one.module == "camera" && one.body == b"one")
    );
    assert!(
        stored
            .iter()
            .any(|one| one.device == "by-authority" && one.module.is_empty() && one.body == b"signed")
    );
}

#[tokio::test]
async fn a_session_is_resumed_with_early_data() {
    const TIMES: u64 = 4;
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("sleepy").await;
    let endpoint = site.endpoint();
    let resumed = || sample(&hub, "forebay_handshakes_total{outcome=\"resumed\"}");
    for time in 0..TIMES {
        // A device that keeps its epoch sleeps between its messages.
        let mut options = site.options("sleepy", Credential::Key(key.clone()));
        options.buffer.directory = Some(hub.data().join("../buffer"));
        let device = Device::start(endpoint.clone(), options).unwrap();
        let receipt = device.try_send(&Message::new(format!("{time}"))).unwrap();
        assert_eq!(receipt, Receipt(time + 1));
        within(device.acknowledged(receipt)).await.unwrap();
        within(device.close()).await;
        assert_eq!(resumed(), time as f64, "each time but the first");
    }
    let expected: Vec<Vec<u8>> = (0..TIMES).map(|time| time.to_string().into_bytes()).collect();
    assert_eq!(site.read_by_device().await["sleepy"], expected);
}

#[tokio::test]
async fn sigterm_tells_sessions_to_go_and_keeps_what_was_acknowledged() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("busy").await;
    let quiet_key = site.create_device("quiet").await;
    let (mut quiet, welcome) = Peer::device(&site, "quiet", &device_token("quiet", &quiet_key, 3600)).await;
    send_one(&mut quiet, &welcome).await;
    let service = site.service().await;

    let device = site.device("busy", &key);
    let sender = tokio::spawn({
        let device = device.clone();
        async move {
            let mut sent = 0;
            while device.connects() < 2 {
                sent += 1;
                within(device.send(&Message::new(format!("{sent}")))).await.unwrap();
                if sent % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            sent
        }
    });
    until("the device is busy", || {
        (device.last_acknowledged() >= Receipt(100)).then_some(())
    })
    .await;
    let hub = tokio::task::spawn_blocking(move || {
        let status = hub.sigterm();
        assert_eq!(status.code(), Some(0));
        hub.restart();
        hub
    });
    let goodbye: Goodbye = quiet.hear_past_acks().await;
    assert_eq!(goodbye.code, CloseCode::Draining as u8);
    assert!(goodbye.retry_after_ms > 0);
    assert_eq!(quiet.closed().await.0, CloseCode::Draining);
    let told = within(service.closed()).await;
    assert!(
        matches!(
            told,
            ClientError::Closed {
                code: CloseCode::Draining,
                ..
            }
        ),
        "{told}"
    );
    let hub = within(hub).await.unwrap();
    assert!(!hub.output().contains("drain_timeout"), "{}", hub.output());

    let sent: u64 = within(sender).await.unwrap();
    within(device.acknowledged(Receipt(sent))).await.unwrap();
    let stored = site.read_by_device().await;
    let expected: Vec<Vec<u8>> = (1..=sent).map(|number| number.to_string().into_bytes()).collect();
    assert!(
        stored["busy"] == expected,
        "{} of {sent} messages are stored",
        stored["busy"].len()
    );
    assert_eq!(stored["quiet"], [b"one"]);
}

fn refused_with(error: &ClientError) -> u32 {
    match error {
        ClientError::Refused { code, .. } => *code,
        other => panic!("{other} is no refusal"),
    }
}

#[tokio::test]
async fn checkpoints_survive_a_crash_and_a_second_owner_fences_the_first() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("source").await;
    let device = site.device("source", &key);
    let partition = PartitionId::of_hash(DeviceId::new("source").unwrap().hash64(), 4).0;
    for number in 0..100 {
        device.try_send(&Message::new(format!("{number}"))).unwrap();
    }
    within(device.acknowledged(Receipt(100))).await.unwrap();
    let subscription = |owner: &str, level| Subscription::checkpoint(partition).group("cg2").owner(owner, level);

    let first = site.service().await;
    let mut first_cursor = within(first.subscribe(&subscription("first", 1))).await.unwrap();
    assert_eq!(
        first_cursor.position(),
        SequenceNumber(0),
        "no checkpoint is the beginning"
    );
    within(first_cursor.checkpoint_stored(SequenceNumber(40)))
        .await
        .unwrap();

    let second = site.service().await;
    let mut second_cursor = within(second.subscribe(&subscription("second", 1))).await.unwrap();
    assert_eq!(second_cursor.position(), SequenceNumber(40));
    // The first one is told, and what it still says does not count.
    let lost = loop {
        match within(first_cursor.next()).await {
            Ok(_) => {}
            Err(lost) => break lost,
        }
    };
    assert_eq!(refused_with(&lost), 409_000);
    let _ = within(first_cursor.checkpoint(SequenceNumber(99))).await;
    within(second_cursor.checkpoint_stored(SequenceNumber(60)))
        .await
        .unwrap();

    // A higher level holds the partition against a lower one.
    let mut third_cursor = within(second.subscribe(&subscription("third", 5))).await.unwrap();
    let refused = within(first.subscribe(&subscription("first", 4)))
        .await
        .err()
        .expect("a lower level");
    assert_eq!(refused_with(&refused), 409_000);
    within(third_cursor.checkpoint_stored(SequenceNumber(70)))
        .await
        .unwrap();
    // Groups do not see each other.
    let other = Subscription::checkpoint(partition).owner("other", 1);
    let other = within(second.subscribe(&other)).await.unwrap();
    assert_eq!(other.position(), SequenceNumber(0));

    hub.kill9();
    hub.restart();
    let service = site.service().await;
    let after = Subscription::checkpoint(partition).group("cg2");
    let mut after = within(service.subscribe(&after)).await.unwrap();
    assert_eq!(after.position(), SequenceNumber(70));
    let chunk = within(after.next()).await.unwrap();
    let event = chunk.events().next().unwrap().unwrap();
    assert_eq!((event.sequence.0, event.message.body()), (70, &b"70"[..]));
}

#[tokio::test]
async fn a_reader_in_full_flow_learns_that_it_was_taken_over() {
    const MESSAGES: u64 = 400;
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("source").await;
    let device = site.device("source", &key);
    let partition = PartitionId::of_hash(DeviceId::new("source").unwrap().hash64(), 4).0;
    // More than all windows between hub and reader hold.
    for _ in 0..MESSAGES {
        within(device.send(&Message::new(vec![0; 100_000]))).await.unwrap();
    }
    within(device.acknowledged(Receipt(MESSAGES))).await.unwrap();
    let subscription = |owner: &str| Subscription::earliest(partition).owner(owner, 1).credit_bytes(1 << 40);
    let first = site.service().await;
    let mut first_cursor = within(first.subscribe(&subscription("first"))).await.unwrap();
    within(first_cursor.next()).await.unwrap();
    // It reads no further: the hub has a write under way and never waits for more messages.
    let second = site.service().await;
    let _second_cursor = within(second.subscribe(&subscription("second"))).await.unwrap();
    let lost = loop {
        match within(first_cursor.next()).await {
            Ok(_) => assert!(
                first_cursor.position().0 < MESSAGES,
                "all was delivered to the former owner"
            ),
            Err(lost) => break lost,
        }
    };
    assert_eq!(refused_with(&lost), 409_000);
}

#[tokio::test]
async fn rights_are_checked_for_each_thing_asked() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("there").await;
    hub.sigterm();
    let rooms = Rooms::open(&hub.data());
    let policies: Vec<PolicyKey> = ["service", "device", "registryRead", "registryReadWrite"]
        .map(|name| rooms.policy(name))
        .into();
    drop(rooms);
    hub.restart();
    let [service, device, registry_read, registry_write] = &policies[..] else {
        unreachable!()
    };
    let asked = async |policy: &PolicyKey, operation: &str, document: serde_json::Value| {
        let connection = site.service_of(policy.clone()).await;
        let answer = within(connection.request(operation, &document)).await;
        connection.close();
        answer.map_err(|error| refused_with(&error)).map(drop)
    };
    let there = || json!({ "deviceId": "there" });
    let new = |name: &str| json!({ "deviceId": name });
    assert_eq!(asked(registry_read, "device.get", there()).await, Ok(()));
    assert_eq!(asked(registry_read, "device.create", new("a")).await, Err(401_002));
    assert_eq!(asked(registry_read, "device.delete", there()).await, Err(401_002));
    assert_eq!(asked(registry_read, "hub.get", json!({})).await, Err(401_002));
    assert_eq!(asked(registry_write, "device.create", new("b")).await, Ok(()));
    assert_eq!(asked(registry_write, "device.get", there()).await, Ok(()));
    assert_eq!(asked(service, "hub.get", json!({})).await, Ok(()));
    assert_eq!(asked(service, "device.get", there()).await, Err(401_002));
    assert_eq!(asked(device, "device.get", there()).await, Err(401_002));
    assert_eq!(asked(device, "group.list", json!({})).await, Err(401_002));
    // IoT Hub, identity and security section 2: what concerns devices but is no registry is for services.
    let twin = || json!({ "deviceId": "there", "twin": { "tags": { "a": 1 } } });
    let call = || json!({ "deviceId": "there", "methodName": "m" });
    let lock = || json!({ "lockToken": "3d00c1ed-215b-4618-841d-c74039f56449" });
    let late = || json!({ "waitSeconds": 61 });
    for (operation, document, of_service) in [
        ("twin.get", there(), Ok(())),
        ("twin.patch", twin(), Ok(())),
        ("twin.replace", twin(), Ok(())),
        ("method.invoke", call(), Err(404_103)),
        ("feedback.receive", json!({}), Ok(())),
        ("feedback.receive", late(), Err(400_004)),
        ("feedback.complete", lock(), Err(412_002)),
        ("feedback.abandon", lock(), Err(412_002)),
        ("event.list", json!({ "partition": 0 }), Ok(())),
        ("device.import", json!({ "entries": [] }), Err(401_002)),
        ("device.export", json!({}), Err(401_002)),
    ] {
        assert_eq!(
            asked(service, operation, document.clone()).await,
            of_service,
            "{operation}"
        );
        for policy in [device, registry_read] {
            assert_eq!(
                asked(policy, operation, document.clone()).await,
                Err(401_002),
                "{operation}"
            );
        }
    }
    for (policy, expected) in [
        (service, None),
        (device, Some(401_002)),
        (registry_write, Some(401_002)),
    ] {
        let connection = site.service_of(policy.clone()).await;
        let refused = within(connection.subscribe(&Subscription::earliest(0))).await.err();
        assert_eq!(refused.as_ref().map(refused_with), expected, "{}", policy.policy);
    }
    // The policy for devices lets any device in that exists; the others none.
    for (policy, expected) in [(device, None), (service, Some(CloseCode::Forbidden))] {
        let token = crate::peers::service_token(policy);
        let mut peer = Peer::connect(&site).await;
        peer.say(&hello("there", &token)).await;
        let answer = match peer.frame().await {
            Some(_) => None,
            None => Some(peer.closed().await.0),
        };
        assert_eq!(answer, expected, "{}", policy.policy);
    }
}
