//! Client certificates over HTTPS: whom they let in, and that they are worth nothing without their key.

use std::sync::Arc;

use forebay::client::tls::Identity;
use forebay::hub::x509::thumbprint;
use forebay::model::UtcMillis;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use crate::http::{Door, device_token, versioned};
use crate::hub::Hub;
use crate::peers::{Rooms, Site, now_seconds, sample};
use crate::sessions::{authority, certificate, leaf};

/// Shows what it was given, whether or not the key belongs to the certificate.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl Shows {
    fn with(certificate: &Identity, key: &Identity) -> Arc<dyn ResolvesClientCert> {
        let key = any_supported_type(&key.key).unwrap();
        Arc::new(Self(Arc::new(CertifiedKey::new(certificate.chain.clone(), key))))
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn expired(name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    Identity {
        chain: vec![params.self_signed(&key).unwrap().der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

fn events(device: &str) -> String {
    versioned(&format!("/devices/{device}/messages/events"))
}

#[tokio::test]
async fn certificates_let_in_whom_they_name_with_either_version_of_tls() {
    let mut hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let (own, old) = (certificate("by-thumbprint", None), expired("expired"));
    for (device, identity) in [("by-thumbprint", &own), ("expired", &old)] {
        let wanted = json!({ "deviceId": device, "authentication": {
            "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint(leaf(identity)) }
        } });
        let made = door.own("PUT", &versioned(&format!("/devices/{device}")), &[], &wanted);
        assert_eq!(made.status, 200, "{made:?}");
    }
    let wanted = json!({ "deviceId": "by-authority", "authentication": { "type": "certificateAuthority" } });
    let made = door.own("PUT", &versioned("/devices/by-authority"), &[], &wanted);
    assert_eq!(made.status, 200, "{made:?}");
    let key = door.create_device("by-key");
    // No door registers authorities yet: written into the stopped hub's store.
    hub.sigterm();
    let (known, unknown) = (authority("known"), authority("unknown"));
    let rooms = Rooms::open(&hub.data());
    let now = UtcMillis(now_seconds() as i64 * 1000);
    let add = |done| rooms.authorities.add("known", known.der(), true, now, done);
    rooms.authorities.wait(add).unwrap();
    drop(rooms);
    hub.restart();

    let cases = [
        ("by-thumbprint", own.clone(), None),
        ("by-authority", certificate("by-authority", Some(&known)), None),
        ("by-thumbprint", certificate("by-thumbprint", None), Some("thumbprint")),
        (
            "by-authority",
            certificate("by-authority", Some(&unknown)),
            Some("chain"),
        ),
        ("by-authority", certificate("by-authority", None), Some("chain")),
        ("by-authority", certificate("other", Some(&known)), Some("common_name")),
        ("expired", old, Some("certificate_expired")),
        ("by-key", certificate("by-key", Some(&known)), Some("wrong_kind")),
        ("nobody", certificate("nobody", Some(&known)), Some("unknown_identity")),
    ];
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        for (device, identity, refused) in &cases {
            let door = Door::with(&hub, versions, Some(Shows::with(identity, identity)));
            let label = refused.unwrap_or("missing");
            let count = format!("forebay_credentials_refused_total{{reason=\"{label}\"}}");
            let before = sample(&hub, &count);
            let reply = door.ask("POST", &events(device), &[], device.as_bytes());
            match refused {
                None => assert_eq!(reply.status, 204, "{device}: {reply:?}"),
                Some(_) => assert_eq!(
                    (reply.status, reply.error(), sample(&hub, &count)),
                    (401, "IotHubUnauthorized", before + 1.0),
                    "{device}: {label}"
                ),
            }
        }
        // All routes of a device, not telemetry alone.
        let door = Door::with(&hub, versions, Some(Shows::with(&own, &own)));
        let commands = versioned("/devices/by-thumbprint/messages/devicebound");
        assert_eq!(door.ask("GET", &commands, &[], b"").status, 204);
        // A header counts, if there is one, for good and for bad.
        let token = device_token("by-key", &key);
        let headers = [("Authorization", &*token)];
        assert_eq!(door.ask("POST", &events("by-key"), &headers, b"").status, 204);
        for header in ["", "nonsense", "t\u{f6}ken"] {
            let reply = door.ask("POST", &events("by-thumbprint"), &[("Authorization", header)], b"");
            assert_eq!(reply.error(), "IotHubUnauthorized", "{header:?}");
        }
        // Services have no certificates.
        let reply = door.ask("GET", &versioned("/devices/by-thumbprint"), &[], b"");
        assert_eq!(reply.error(), "IotHubUnauthorized");
        assert_eq!(door.own("GET", &versioned("/devices"), &[], &Value::Null).status, 200);
    }
    let stored = Site::of(&hub).read_by_device().await;
    let counts: Vec<_> = stored
        .iter()
        .map(|(device, bodies)| (&**device, bodies.len()))
        .collect();
    assert_eq!(counts, [("by-authority", 2), ("by-key", 2), ("by-thumbprint", 2)]);
}

/// Certificates are no secrets: what counts is the key that signs the handshake.
#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let hub = Hub::start(&[]);
    let (own, other) = (certificate("d", None), certificate("d", None));
    let wanted = json!({ "deviceId": "d", "authentication": {
        "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint(leaf(&own)) }
    } });
    let made = Door::of(&hub).own("PUT", &versioned("/devices/d"), &[], &wanted);
    assert_eq!(made.status, 200, "{made:?}");
    let path = versioned("/devices/d/messages/devicebound");
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        assert!(Door::with(&hub, versions, Some(Shows::with(&own, &own))).is_heard(&path));
        assert!(!Door::with(&hub, versions, Some(Shows::with(&own, &other))).is_heard(&path));
    }
}
