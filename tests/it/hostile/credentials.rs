//! Credentials that are expired, somebody else's, or of nobody.

use forebay::client::credential::PolicyKey;
use forebay::client::tls::Identity;
use forebay::hub::sas;
use forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
use forebay::wire::close::CloseCode;
use forebay::wire::control::Hello;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;

use super::Scene;
use crate::peers::{HOST, Peer, decode_key, device_token, hello, now_seconds, sample, service_hello, service_token};

#[tokio::test]
async fn credentials_that_are_not_right_are_refused_by_the_table() {
    use CloseCode::{DeviceDisabled, Unauthorized};
    let scene = Scene::start(&[]).await;
    let site = &scene.site;
    let disabled_key = site.create_device("disabled").await;
    let mut identity = site.request("device.get", &json!({ "deviceId": "disabled" })).await;
    identity["status"] = "disabled".into();
    site.request("device.update", &identity).await;
    let other_key = site.create_device("other").await;
    let wrong_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let skew = TOKEN_CLOCK_SKEW_SECONDS;
    let key = decode_key(&scene.key);
    let signed = |resource: &str, expiry| sas::generate(resource, &key, expiry, None);
    let later = now_seconds() + 600;
    let nobody = service_token(&PolicyKey {
        policy: "nobody".to_owned(),
        ..site.owner.clone()
    });
    let module = Hello {
        module_id: "none".to_owned(),
        ..hello("hostile", &signed("localhost/devices/hostile/modules/none", later))
    };
    let as_device = |device: &str, token: String| hello(device, &token);
    let table = [
        (
            "expired",
            Unauthorized,
            "expired",
            as_device("hostile", signed("localhost/devices/hostile", now_seconds() - skew - 1)),
        ),
        (
            "long expired",
            Unauthorized,
            "expired",
            as_device("hostile", signed("localhost/devices/hostile", 1)),
        ),
        (
            "a wrong key",
            Unauthorized,
            "signature",
            as_device("hostile", device_token("hostile", wrong_key, 600)),
        ),
        (
            "another device's key",
            Unauthorized,
            "signature",
            as_device("hostile", device_token("hostile", &other_key, 600)),
        ),
        (
            "another device's token",
            Unauthorized,
            "scope",
            as_device("hostile", device_token("other", &other_key, 600)),
        ),
        (
            "another hub's token",
            Unauthorized,
            "scope",
            as_device("hostile", signed("elsewhere/devices/hostile", later)),
        ),
        (
            "the hub's token by a device's key",
            Unauthorized,
            "scope",
            as_device("hostile", signed("localhost", later)),
        ),
        (
            "a disabled device",
            DeviceDisabled,
            "disabled",
            as_device("disabled", device_token("disabled", &disabled_key, 600)),
        ),
        (
            "a disabled device by a wrong key",
            Unauthorized,
            "signature",
            as_device("disabled", device_token("disabled", wrong_key, 600)),
        ),
        (
            "an unknown device",
            Unauthorized,
            "unknown_identity",
            as_device("nobody", device_token("nobody", wrong_key, 600)),
        ),
        ("an unknown module", Unauthorized, "unknown_identity", module),
        ("no token", Unauthorized, "missing", as_device("hostile", String::new())),
        (
            "no such thing as a token",
            Unauthorized,
            "malformed",
            as_device("hostile", "Bearer x".into()),
        ),
        (
            "a token of 10 KiB",
            Unauthorized,
            "malformed",
            as_device("hostile", "x".repeat(10_000)),
        ),
        (
            "an unknown policy",
            Unauthorized,
            "unknown_policy",
            as_device("hostile", nobody.clone()),
        ),
        (
            "a service by an unknown policy",
            Unauthorized,
            "unknown_policy",
            service_hello(&nobody),
        ),
        (
            "a service by a device's token",
            Unauthorized,
            "scope",
            service_hello(&scene.token()),
        ),
        (
            "a service by a device's key",
            Unauthorized,
            "unknown_policy",
            service_hello(&signed(HOST, later)),
        ),
        (
            "a service without a token",
            Unauthorized,
            "malformed",
            service_hello(""),
        ),
    ];
    let refused = |label: &str| {
        sample(
            &scene.hub,
            &format!("forebay_credentials_refused_total{{reason=\"{label}\"}}"),
        )
    };
    for (what, expected, label, hello) in table {
        let before = refused(label);
        scene
            .check(what, expected, async || {
                let mut peer = Peer::connect(site).await;
                peer.say(&hello).await;
                peer
            })
            .await;
        assert_eq!(refused(label), before + 1.0, "{what} counts as {label}");
    }
    // Device ids that no device can have are refused before anything is looked up.
    for id in ["", "a/b", "a b", &"x".repeat(129)] {
        scene
            .check(id, Unauthorized, async || {
                let mut peer = Peer::connect(site).await;
                peer.say(&hello(id, &scene.token())).await;
                peer
            })
            .await;
    }
    // A certificate that nobody registered, for a device that proves itself by keys.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["hostile".to_owned()]).unwrap();
    let identity = Identity {
        chain: vec![certificate.self_signed(&key).unwrap().der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    };
    let before = refused("wrong_kind");
    scene
        .check("an unknown certificate", Unauthorized, async || {
            let mut peer = Peer::connect(&site.with_certificate(identity)).await;
            peer.say(&hello("hostile", "")).await;
            peer
        })
        .await;
    assert_eq!(refused("wrong_kind"), before + 1.0);
    // The close says nothing of who exists: the same words for whoever cannot prove himself.
    let mut told = Vec::new();
    for (device, key) in [("hostile", wrong_key), ("nobody", wrong_key), ("disabled", wrong_key)] {
        let mut peer = Peer::connect(site).await;
        peer.say(&hello(device, &device_token(device, key, 600))).await;
        told.push(peer.closed().await);
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
}
