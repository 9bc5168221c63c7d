//! Authentication against forged, stale, misplaced and revoked credentials.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair as CertificateKey};

use super::super::entropy::testing::Counting;
use super::super::identity::{DeviceIdentity, ModuleIdentity};
use super::super::registry::IfMatch;
use super::super::sas::generate;
use super::super::x509;
use super::*;
use crate::model::{DeviceId, ModuleId};
use crate::state::MemoryState;

const NOW: UtcMillis = UtcMillis(1_767_225_600_000);
const LATER: u64 = 1_767_229_200;
const HOST: &str = "hub.example";

struct Hub {
    registry: Registry,
    policies: Policies,
    authorities: Authorities,
    auth: Authenticator,
}

fn hub() -> Hub {
    let state = MemoryState::new();
    let entropy = Arc::new(Counting::default());
    let registry = Registry::open(state.clone(), entropy.clone(), 4).unwrap();
    let policies = Policies::open(state.clone(), entropy.clone()).unwrap();
    let authorities = Authorities::open(state, entropy).unwrap();
    let auth = Authenticator::new(registry.clone(), policies.clone(), authorities.clone(), &[HOST.into()]);
    Hub {
        registry,
        policies,
        authorities,
        auth,
    }
}

fn name(device: &str, module: Option<&str>) -> IdentityName {
    IdentityName {
        device: DeviceId::new(device).unwrap(),
        module: module.map(|module| ModuleId::new(module).unwrap()),
    }
}

fn label<T>(result: Result<T, AuthError>) -> (&'static str, u32) {
    let of_error = |error: AuthError| {
        assert!(AuthError::LABELS.contains(&error.label()), "{error}");
        (error.label(), error.code().number)
    };
    result.map_or_else(of_error, |_| ("ok", 0))
}

impl Hub {
    /// Makes an identity and says its decoded keys.
    fn device(&self, id: &str, change: impl FnOnce(&mut DeviceIdentity)) -> [Vec<u8>; 2] {
        let mut wanted = DeviceIdentity::new(DeviceId::new(id).unwrap());
        change(&mut wanted);
        decoded(
            &self
                .registry
                .create_device_blocking(wanted, NOW)
                .unwrap()
                .identity
                .authentication,
        )
    }

    fn module(&self, device: &str, id: &str) -> [Vec<u8>; 2] {
        let wanted = ModuleIdentity::new(DeviceId::new(device).unwrap(), ModuleId::new(id).unwrap());
        decoded(
            &self
                .registry
                .create_module_blocking(wanted, NOW)
                .unwrap()
                .identity
                .authentication,
        )
    }

    fn policy_key(&self, policy: &str) -> String {
        let policy = self.policies.get(&PolicyName::new(policy).unwrap()).unwrap();
        policy.keys.primary_key.unwrap()
    }

    fn policy_token(&self, resource: &str, policy: &str) -> String {
        generate(
            resource,
            &STANDARD.decode(self.policy_key(policy)).unwrap(),
            LATER,
            Some(policy),
        )
    }

    fn try_sas(&self, token: &str, device: &str, module: Option<&str>) -> Result<Authenticated, AuthError> {
        self.auth
            .authenticate(Credential::Sas(token), &name(device, module), HOST, NOW)
    }

    fn try_certificate(
        &self,
        leaf: &[u8],
        intermediates: &[&[u8]],
        device: &str,
        now: UtcMillis,
    ) -> Result<Authenticated, AuthError> {
        self.auth.authenticate(
            Credential::Certificate { leaf, intermediates },
            &name(device, None),
            HOST,
            now,
        )
    }
}

fn decoded(authentication: &Authentication) -> [Vec<u8>; 2] {
    let mut keys = authentication
        .symmetric_key
        .iter()
        .map(|key| STANDARD.decode(key).unwrap());
    [keys.next().unwrap_or_default(), keys.next().unwrap_or_default()]
}

#[test]
fn both_keys_of_a_device_open_its_door_and_no_other() {
    let hub = hub();
    let keys = hub.device("dev-1", |_| {});
    hub.device("dev-10", |_| {});
    hub.module("dev-1", "m");
    for key in &keys {
        let token = generate("HUB.example/devices/dev-1", key, LATER, None);
        let granted = hub.try_sas(&token, "dev-1", None).unwrap();
        assert_eq!(granted.method, AuthMethod::DeviceSas);
        assert_eq!(granted.expires, Some(UtcMillis((LATER as i64 + 300) * 1000)));
        assert_eq!(granted.permissions, Permissions::DEVICE_CONNECT);
        assert_eq!(
            granted.generation,
            hub.registry.device(&granted.identity.device).unwrap().generation_id
        );
        assert_eq!(label(hub.try_sas(&token, "dev-10", None)), ("scope", 401_003));
        assert_eq!(label(hub.try_sas(&token, "dev-1", Some("m"))), ("scope", 401_003));
        for (resource, device, module) in [
            ("hub.example", "dev-1", None),
            ("hub.example/devices", "dev-1", None),
            ("hub.example/devices/dev-1", "dev-1", Some("m")),
            ("hub.example/devices/DEV-1", "dev-1", None),
            ("other.example/devices/dev-1", "dev-1", None),
            ("https://hub.example/devices/dev-1", "dev-1", None),
            ("hub.example/devices/dev-1/modules/m", "dev-1", None),
        ] {
            let token = generate(resource, key, LATER, None);
            assert_eq!(
                label(hub.try_sas(&token, device, module)),
                ("scope", 401_003),
                "{resource}"
            );
        }
        let token = generate("hub.example/devices/dev-10", key, LATER, None);
        assert_eq!(label(hub.try_sas(&token, "dev-10", None)), ("signature", 401_003));
        let token = generate("hub.example/devices/dev-1/modules/m", key, LATER, None);
        assert_eq!(label(hub.try_sas(&token, "dev-1", Some("m"))), ("signature", 401_003));
    }
    let key = hub.module("dev-1", "m2");
    let token = generate("hub.example/devices/dev-1/modules/m2", &key[1], LATER, None);
    assert_eq!(
        hub.try_sas(&token, "dev-1", Some("m2")).unwrap().method,
        AuthMethod::ModuleSas
    );
}

#[test]
fn an_unknown_device_and_a_wrong_key_look_the_same_outside() {
    let hub = hub();
    hub.device("known", |_| {});
    hub.device("disabled", |device| device.status = Status::Disabled);
    let wrong = |device: &str| {
        let token = generate(&format!("hub.example/devices/{device}"), &[9; 32], LATER, None);
        hub.try_sas(&token, device, None)
    };
    assert_eq!(label(wrong("known")), ("signature", 401_003));
    assert_eq!(label(wrong("unknown")), ("unknown_identity", 401_003));
    assert_eq!(
        label(wrong("disabled")),
        ("signature", 401_003),
        "only who proved itself hears of being disabled"
    );
}

/// Every way to be refused, with what a peer hears.
#[test]
fn every_refusal_has_its_code() {
    let hub = hub();
    let key = &hub.device("d", |_| {})[0];
    let off = &hub.device("off", |device| device.status = Status::Disabled)[0];
    hub.device("none", |device| device.authentication.kind = AuthenticationKind::None);
    let sas = |token: &str, device: &str| label(hub.try_sas(token, device, None));
    let token = |device: &str, key: &[u8], se| generate(&format!("hub.example/devices/{device}"), key, se, None);
    let nothing = hub.auth.authenticate(Credential::Nothing, &name("d", None), HOST, NOW);
    assert_eq!(label(nothing), ("missing", 401_003));
    assert_eq!(sas("hello", "d"), ("malformed", 401_003));
    let seconds = NOW.seconds() as u64;
    assert_eq!(sas(&token("d", key, seconds - 300), "d"), ("expired", 401_003));
    assert_eq!(sas(&token("d", key, seconds - 299), "d"), ("ok", 0));
    assert_eq!(sas(&token("off", off, LATER), "off"), ("disabled", 403_012));
    assert_eq!(sas(&token("none", key, LATER), "none"), ("wrong_kind", 401_003));
    let right = token("d", key, LATER);
    let elsewhere = hub
        .auth
        .authenticate(Credential::Sas(&right), &name("d", None), "other.example", NOW);
    assert_eq!(label(elsewhere), ("unknown_host", 401_001));
    assert_eq!(sas(&hub.policy_token(HOST, "device"), "d"), ("ok", 0));
    assert_eq!(
        sas(&hub.policy_token("hub.example/devices/d", "iothubowner"), "d"),
        ("ok", 0)
    );
    assert_eq!(
        sas(&hub.policy_token("hub.example/devices/d", "device"), "off"),
        ("scope", 401_003)
    );
    assert_eq!(sas(&hub.policy_token(HOST, "device"), "off"), ("disabled", 403_012));
    assert_eq!(sas(&hub.policy_token(HOST, "service"), "d"), ("not_permitted", 401_002));
    assert_eq!(
        sas(&hub.policy_token(HOST, "device"), "nobody"),
        ("device_not_found", 404_001)
    );
    let module = hub.try_sas(&hub.policy_token(HOST, "device"), "d", Some("nobody"));
    assert_eq!(label(module), ("module_not_found", 404_010));
    assert_eq!(
        sas(&generate(HOST, key, LATER, Some("device")), "d"),
        ("signature", 401_003)
    );
    assert_eq!(
        sas(&generate(HOST, key, LATER, Some("nobody")), "d"),
        ("unknown_policy", 401_003)
    );
    let text_key = generate(HOST, hub.policy_key("device").as_bytes(), LATER, Some("device"));
    assert_eq!(
        sas(&text_key, "d"),
        ("signature", 401_003),
        "text keys are for Event Hubs only"
    );
    let certificate = hub.try_certificate(b"not DER", &[], "d", NOW);
    assert_eq!(label(certificate), ("certificate_malformed", 401_003));
}

#[test]
fn a_policy_opens_a_device_and_is_stamped_so() {
    let hub = hub();
    hub.device("d", |_| {});
    hub.module("d", "m");
    let granted = hub
        .try_sas(&hub.policy_token("hub.example/devices/d", "device"), "d", Some("m"))
        .unwrap();
    assert_eq!(granted.method, AuthMethod::HubSas);
    let json: serde_json::Value = serde_json::from_str(granted.method.json()).unwrap();
    assert_eq!(json["scope"], "hub");
    for method in [
        AuthMethod::DeviceSas,
        AuthMethod::ModuleSas,
        AuthMethod::DeviceX509,
        AuthMethod::ModuleX509,
    ] {
        assert!(serde_json::from_str::<serde_json::Value>(method.json()).is_ok());
    }
    assert_eq!(
        AuthMethod::DeviceSas.json(),
        r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
    );
}

#[test]
fn services_need_the_right_and_the_whole_hub() {
    let hub = hub();
    let service = |token: &str, right| label(hub.auth.authenticate_service(token, right, HOST, NOW));
    let owner = hub.policy_token(HOST, "iothubowner");
    assert_eq!(service(&owner, Permissions::REGISTRY_WRITE), ("ok", 0));
    let reader = hub.policy_token(HOST, "registryRead");
    assert_eq!(service(&reader, Permissions::REGISTRY_READ), ("ok", 0));
    assert_eq!(
        service(&reader, Permissions::REGISTRY_WRITE),
        ("not_permitted", 401_002)
    );
    let writer = hub.policy_token(HOST, "registryReadWrite");
    assert_eq!(
        service(&writer, Permissions::SERVICE_CONNECT),
        ("not_permitted", 401_002)
    );
    let scoped = hub.policy_token("hub.example/devices/d", "iothubowner");
    assert_eq!(service(&scoped, Permissions::REGISTRY_READ), ("scope", 401_003));
    let key = &hub.device("d", |_| {})[0];
    let device = generate(HOST, key, LATER, None);
    assert_eq!(
        service(&device, Permissions::REGISTRY_READ),
        ("unknown_policy", 401_003)
    );
    let name = PolicyName::new("iothubowner").unwrap();
    hub.policies
        .wait(|done| {
            hub.policies
                .regenerate(&name, super::super::policy::KeySlot::Primary, done)
        })
        .unwrap();
    assert_eq!(
        service(&owner, Permissions::REGISTRY_WRITE),
        ("signature", 401_003),
        "the old key is gone at once"
    );
}

#[test]
fn event_hubs_take_the_text_of_a_key_and_its_bytes() {
    let hub = hub();
    let address = "events/ConsumerGroups/$Default/Partitions/0";
    let check = |token: &str| label(hub.auth.authenticate_eventhub(token, address, HOST, NOW));
    let text = hub.policy_key("service");
    let signed = |resource: &str, policy: &str| generate(resource, text.as_bytes(), LATER, Some(policy));
    assert_eq!(check(&signed("sb://HUB.example:5671/Events", "service")), ("ok", 0));
    assert_eq!(
        check(&signed("sb://hub.example/events/consumergroups/$default", "service")),
        ("ok", 0)
    );
    assert_eq!(check(&signed("sb://hub.example/other", "service")), ("scope", 401_003));
    assert_eq!(
        check(&signed("sb://other.example/events", "service")),
        ("scope", 401_003)
    );
    assert_eq!(
        check(&signed("sb://hub.example/events", "device")),
        ("signature", 401_003)
    );
    assert_eq!(check(&hub.policy_token(HOST, "service")), ("ok", 0));
    assert_eq!(
        check(&hub.policy_token(HOST, "registryRead")),
        ("not_permitted", 401_002)
    );
    let key = |policy: &str, key: &str| label(hub.auth.authenticate_key(policy, key, Permissions::SERVICE_CONNECT));
    assert_eq!(key("service", &text), ("ok", 0));
    assert_eq!(key("service", &text[1..]), ("signature", 401_003));
    assert_eq!(key("device", &hub.policy_key("device")), ("not_permitted", 401_002));
    assert_eq!(key("a b", ""), ("unknown_policy", 401_003));
}

fn params(common_name: &str, days: std::ops::Range<i32>) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = rcgen::date_time_ymd(2026 + days.start, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026 + days.end, 1, 1);
    params
}

fn authority(common_name: &str) -> CertifiedIssuer<'static, CertificateKey> {
    let mut params = params(common_name, -1..9);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, CertificateKey::generate().unwrap()).unwrap()
}

#[test]
fn a_thumbprint_stands_for_its_certificate_while_that_is_valid() {
    let hub = hub();
    let key = CertificateKey::generate().unwrap();
    let leaf = params("whatever", -1..1).self_signed(&key).unwrap();
    let other = params("whatever", -1..1)
        .self_signed(&CertificateKey::generate().unwrap())
        .unwrap();
    let sha256 = x509::thumbprint(leaf.der());
    let sha1: String = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, leaf.der())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    for (id, primary, secondary) in [("a", Some(sha256), None), ("b", None, Some(sha1))] {
        hub.device(id, |device| {
            device.authentication.kind = AuthenticationKind::SelfSigned;
            device.authentication.x509_thumbprint.primary_thumbprint = primary;
            device.authentication.x509_thumbprint.secondary_thumbprint = secondary;
        });
        let granted = hub.try_certificate(leaf.der(), &[], id, NOW).unwrap();
        assert_eq!(granted.method, AuthMethod::DeviceX509);
        let end = granted.expires.unwrap();
        assert_eq!(
            label(hub.try_certificate(other.der(), &[], id, NOW)),
            ("thumbprint", 401_003)
        );
        assert!(hub.try_certificate(leaf.der(), &[], id, UtcMillis(end.0 - 1)).is_ok());
        assert_eq!(
            label(hub.try_certificate(leaf.der(), &[], id, end)),
            ("certificate_expired", 401_003)
        );
        assert_eq!(
            label(hub.try_certificate(leaf.der(), &[], id, UtcMillis(0))),
            ("certificate_expired", 401_003)
        );
    }
    hub.device("sas", |_| {});
    assert_eq!(
        label(hub.try_certificate(leaf.der(), &[], "sas", NOW)),
        ("wrong_kind", 401_003)
    );
    assert_eq!(
        label(hub.try_certificate(leaf.der(), &[], "nobody", NOW)),
        ("unknown_identity", 401_003)
    );
}

#[test]
fn a_chain_must_lead_to_a_verified_authority_and_bear_the_name() {
    let hub = hub();
    hub.device("d", |device| {
        device.authentication.kind = AuthenticationKind::CertificateAuthority
    });
    let root = authority("root");
    let mut middle = params("middle", -1..5);
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let middle = CertifiedIssuer::signed_by(middle, CertificateKey::generate().unwrap(), &root).unwrap();
    let key = CertificateKey::generate().unwrap();
    let direct = params("d", -1..1).signed_by(&key, &root).unwrap();
    let below = params("d", -1..1).signed_by(&key, &middle).unwrap();
    let other = params("d2", -1..1).signed_by(&key, &root).unwrap();
    let stale = params("d", -2..-1).signed_by(&key, &root).unwrap();
    let foreign = params("d", -1..1).signed_by(&key, &authority("root")).unwrap();
    let check = |leaf: &[u8], intermediates: &[&[u8]]| label(hub.try_certificate(leaf, intermediates, "d", NOW));

    assert_eq!(check(direct.der(), &[]), ("chain", 401_003));
    let add = |name: &str, der: &[u8], verified| {
        hub.authorities
            .wait(|done| hub.authorities.add(name, der, verified, NOW, done))
    };
    add("root", root.der(), false).unwrap();
    assert_eq!(check(direct.der(), &[]), ("chain", 401_003), "not verified yet");
    hub.authorities
        .wait(|done| hub.authorities.set_verified("root", true, done))
        .unwrap();
    assert_eq!(check(direct.der(), &[]), ("ok", 0));
    assert_eq!(check(below.der(), &[middle.der()]), ("ok", 0));
    assert_eq!(check(below.der(), &[]), ("chain", 401_003));
    assert_eq!(check(other.der(), &[]), ("common_name", 401_003));
    assert_eq!(check(stale.der(), &[]), ("certificate_expired", 401_003));
    assert_eq!(
        check(foreign.der(), &[]),
        ("chain", 401_003),
        "the same name, another key"
    );
    assert!(matches!(
        add("leaf", direct.der(), true),
        Err(super::super::authority::AuthorityError::NotAnAuthority)
    ));
    hub.authorities
        .wait(|done| hub.authorities.remove("root", done))
        .unwrap();
    assert_eq!(check(direct.der(), &[]), ("chain", 401_003));
}

#[test]
fn an_authority_is_verified_by_what_only_its_owner_can_sign() {
    use super::super::authority::AuthorityError;
    let hub = hub();
    hub.device("d", |device| {
        device.authentication.kind = AuthenticationKind::CertificateAuthority
    });
    let (root, other) = (authority("root"), authority("root"));
    let key = CertificateKey::generate().unwrap();
    let leaf = params("d", -1..1).signed_by(&key, &root).unwrap();
    let is_known = || label(hub.try_certificate(leaf.der(), &[], "d", NOW)) == ("ok", 0);
    let authorities = &hub.authorities;
    let prove = |proof: &[u8]| authorities.wait(|done| authorities.prove("root", proof, NOW, done));
    let challenge = || authorities.wait(|done| authorities.challenge("root", done));
    assert!(matches!(challenge(), Err(AuthorityError::NotFound)));
    authorities
        .wait(|done| authorities.add("root", root.der(), false, NOW, done))
        .unwrap();
    assert!(matches!(prove(leaf.der()), Err(AuthorityError::NoChallenge)));
    let earlier = challenge().unwrap();
    let code = challenge().unwrap();
    assert_ne!(earlier, code);
    let proof = |name: &str, by: &CertifiedIssuer<'_, CertificateKey>| params(name, -1..1).signed_by(&key, by).unwrap();
    for wrong in [
        proof(&code, &other).der().to_vec(),
        proof(&earlier, &root).der().to_vec(),
        params(&code, -1..1).self_signed(&key).unwrap().der().to_vec(),
        params(&code, -2..-1).signed_by(&key, &root).unwrap().der().to_vec(),
        b"no certificate".to_vec(),
    ] {
        assert!(matches!(prove(&wrong), Err(AuthorityError::NotProven)));
        assert!(!is_known());
    }
    let right = proof(&code, &root);
    prove(right.der()).unwrap();
    assert!(is_known());
    assert!(matches!(prove(right.der()), Err(AuthorityError::NoChallenge)), "once");
    let known = &authorities.list()[0];
    assert!(known.is_verified && known.challenge.is_none());
}

#[test]
fn a_module_is_as_enabled_as_its_device_and_gone_with_it() {
    let hub = hub();
    hub.device("d", |_| {});
    let key = &hub.module("d", "m")[0];
    let token = generate("hub.example/devices/d/modules/m", key, LATER, None);
    assert_eq!(label(hub.try_sas(&token, "d", Some("m"))), ("ok", 0));
    let mut device = hub.registry.device(&DeviceId::new("d").unwrap()).unwrap();
    device.status = Status::Disabled;
    hub.registry
        .update_device_blocking(device.clone(), IfMatch::Any, NOW)
        .unwrap();
    assert_eq!(label(hub.try_sas(&token, "d", Some("m"))), ("disabled", 403_012));
    hub.registry
        .delete_device_blocking(&device.device_id, IfMatch::Any)
        .unwrap();
    assert_eq!(
        label(hub.try_sas(&token, "d", Some("m"))),
        ("unknown_identity", 401_003)
    );
}
