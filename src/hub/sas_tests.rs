//! SAS tokens: vectors, forgeries, and texts of any kind.

use proptest::prelude::*;

use super::*;

const DEVICE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const POLICY_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const EXPIRY: u64 = 1_767_225_600;

fn bytes(key: &str) -> Vec<u8> {
    STANDARD.decode(key).unwrap()
}

/// Vectors of identity and security, section 5, and of the conformance kit.
#[test]
fn vectors_of_the_contract_verify() {
    let verified = |token: &str, key: &[u8]| {
        let parsed = SasToken::parse(token).unwrap();
        assert!(parsed.is_signed_by(key), "{token}");
        let mut other = key.to_vec();
        other[0] ^= 1;
        assert!(!parsed.is_signed_by(&other), "{token}");
    };
    for token in [
        "SharedAccessSignature sr=forebay.example.net%2Fdevices%2Fdev-01&sig=vTCMhI%2F0Wa6L%2FcLWpX1OkChuWR0rmlYEocmGUCpCBu0%3D&se=1767225600",
        "SharedAccessSignature sr=forebay.example.net%2fdevices%2fdev-01&sig=QyaUT6mNmpXbQJS1dmVrxDIPcFwci9d8RJAqfmwtS6k%3D&se=1767225600",
        "SharedAccessSignature sr=forebay.example.net/devices/dev-01&sig=HGgiqEDKnIJ7cClAGZYt9fh5fJHI6r47yKQJ4YcNjZA%3D&se=1767225600",
        "SharedAccessSignature sr=forebay.example.net%2Fdevices%2Fdev-01%2Fmodules%2Fm1&sig=ryWy9B7O5WAC3C6l1Ks%2BEgOQzqzdcs4l1ASzU4gZA4w%3D&se=1767225600",
        "SharedAccessSignature sr=hub.example%2Fdevices%2Fdev-1&sig=h6S%2BxYWKUrul13Vc1BUmsRDimf1iORgTML8osQSqBQI%3D&se=1893456000",
        "SharedAccessSignature sr=hub.example&sig=PiP8idcaErdWcSDJE%2B8YqR13Pft5ddoPDMXjO7506gU%3D&se=1893456000&skn=iothubowner",
    ] {
        verified(token, &bytes(DEVICE_KEY));
    }
    for token in [
        "SharedAccessSignature sr=forebay.example.net&sig=VTDwpA8roxtbtDHcUBbouXzybs8EAubtBLNg8I1QWpM%3D&se=1767225600&skn=service",
        "SharedAccessSignature sr=forebay.example.net%2Fdevices%2Fdev-01&sig=69XndqNaQuWu7FgIzm6VdxUL61DZ9bIBNDZtnN4eCtE%3D&se=1767225600&skn=device",
    ] {
        verified(token, &bytes(POLICY_KEY));
    }
    // Event Hubs: the text of the key, not its bytes.
    for token in [
        "SharedAccessSignature sr=sb%3A%2F%2Fforebay.example.net%2Fmessages-events&sig=v96mkH1SCkK0Vm0KRwOafN3w8XMa5p0sCCcs7bT9ANc%3D&se=1767225600&skn=service",
        "SharedAccessSignature sr=amqps%3A%2F%2Fforebay.example.net%2Fmessages-events%2Fconsumergroups%2F%24default%2Fpartitions%2F0&sig=UDHOE5cxXmA0VOSdpeEXkkMM7mOAMA7tdq3sw9p5vO4%3D&se=1767225600&skn=service",
    ] {
        verified(token, POLICY_KEY.as_bytes());
    }
    verified(
        "SharedAccessSignature sr=sb%3A%2F%2Fhub.example%2Fevents%2Fconsumergroups%2F%24Default&sig=15iKcA4dDLVt04ZIPGjZVH%2F5onGz%2BfUgV7V0dCYlPNA%3D&se=1893456000&skn=iothubowner",
        DEVICE_KEY.as_bytes(),
    );
}

#[test]
fn tokens_are_made_as_the_vectors_have_them() {
    assert_eq!(
        generate("forebay.example.net/devices/dev-01", &bytes(DEVICE_KEY), EXPIRY, None),
        "SharedAccessSignature sr=forebay.example.net%2Fdevices%2Fdev-01&sig=vTCMhI%2F0Wa6L%2FcLWpX1OkChuWR0rmlYEocmGUCpCBu0%3D&se=1767225600"
    );
    assert_eq!(
        generate("forebay.example.net", &bytes(POLICY_KEY), EXPIRY, Some("service")),
        "SharedAccessSignature sr=forebay.example.net&sig=VTDwpA8roxtbtDHcUBbouXzybs8EAubtBLNg8I1QWpM%3D&se=1767225600&skn=service"
    );
    assert_eq!(
        generate(
            "sb://forebay.example.net/messages-events",
            POLICY_KEY.as_bytes(),
            EXPIRY,
            Some("service")
        ),
        "SharedAccessSignature sr=sb%3A%2F%2Fforebay.example.net%2Fmessages-events&sig=v96mkH1SCkK0Vm0KRwOafN3w8XMa5p0sCCcs7bT9ANc%3D&se=1767225600&skn=service"
    );
}

#[test]
fn fields_come_in_any_order_and_case() {
    let token = SasToken::parse(
        "SharedAccessSignature SE=1767225600&x=1&Sig=VTDwpA8roxtbtDHcUBbouXzybs8EAubtBLNg8I1QWpM=&SKN=service&sR=forebay.example.net",
    )
    .unwrap();
    assert!(token.is_signed_by(&bytes(POLICY_KEY)));
    assert_eq!(token.policy().unwrap().as_str(), "service");
    let empty = "SharedAccessSignature sr=h&sig=VTDwpA8roxtbtDHcUBbouXzybs8EAubtBLNg8I1QWpM=&se=1&skn=";
    assert_eq!(SasToken::parse(empty).unwrap().policy(), None);
}

#[test]
fn broken_tokens_are_refused_with_their_reason() {
    const SIG: &str = "sig=VTDwpA8roxtbtDHcUBbouXzybs8EAubtBLNg8I1QWpM=";
    let check = |rest: String, expected: SasError| {
        assert_eq!(SasToken::parse(&rest).unwrap_err(), expected, "{rest}");
    };
    check(format!("sharedaccesssignature sr=h&{SIG}&se=1"), SasError::Prefix);
    check(format!("SharedAccessSignature  sr=h&{SIG}&se=1&"), SasError::Field);
    check(format!("SharedAccessSignature sr&{SIG}&se=1"), SasError::Field);
    check(
        format!("SharedAccessSignature sr=h&{SIG}&se=1{}", "&a=1".repeat(6)),
        SasError::Field,
    );
    check(
        format!("SharedAccessSignature sr=h&{SIG}&se=1&SE=2"),
        SasError::Repeated,
    );
    check(format!("SharedAccessSignature sr=h&{SIG}"), SasError::Missing);
    check(format!("SharedAccessSignature sr=&{SIG}&se=1"), SasError::Resource);
    check(format!("SharedAccessSignature sr=%2&{SIG}&se=1"), SasError::Resource);
    check(format!("SharedAccessSignature sr=%ff&{SIG}&se=1"), SasError::Resource);
    for se in ["", "+1", "-1", "1.0", "99999999999999999999999", "1%30"] {
        check(format!("SharedAccessSignature sr=h&{SIG}&se={se}"), SasError::Expiry);
    }
    // A raw `+` in `sig` is a space (identity and security, section 3): the client must escape it.
    let plus = "ryWy9B7O5WAC3C6l1Ks+EgOQzqzdcs4l1ASzU4gZA4w=";
    check(
        format!("SharedAccessSignature sr=h&sig={plus}&se=1"),
        SasError::Signature,
    );
    check("SharedAccessSignature sr=h&sig=AAAA&se=1".into(), SasError::Signature);
    check(
        format!("SharedAccessSignature sr=h&{SIG}&se=1&skn=a%20b"),
        SasError::Policy,
    );
    check(
        format!(
            "SharedAccessSignature sr=h&{SIG}&se=1&x={}",
            "y".repeat(TOKEN_BYTES_MAX)
        ),
        SasError::TooLong,
    );
}

#[test]
fn expiry_grants_five_minutes_and_no_more() {
    let token = generate("h", b"k", EXPIRY, None);
    let token = SasToken::parse(&token).unwrap();
    let end = (EXPIRY as i64 + 300) * 1000;
    assert_eq!(token.expires(), UtcMillis(end));
    assert!(!token.is_expired(UtcMillis(end - 1)));
    assert!(token.is_expired(UtcMillis(end)));
    let endless = generate("h", b"k", u64::MAX, None);
    assert!(!SasToken::parse(&endless).unwrap().is_expired(UtcMillis(end)));
}

#[test]
fn scope_goes_by_segment() {
    let covers = |resource: &str, path: &[&str]| Resource::parse(resource).unwrap().covers(path);
    let device = ["devices", "dev-1"];
    for granted in ["h", "h/devices", "h/devices/dev-1"] {
        assert!(covers(granted, &device), "{granted}");
        assert!(covers(granted, &["devices", "dev-1", "modules", "m"]), "{granted}");
    }
    for refused in [
        "h/devices/dev",
        "h/devices/dev-10",
        "h/devices/DEV-1",
        "h/Devices/dev-1",
        "h/devices/",
        "h//devices/dev-1",
        "h/devices/dev-1/",
        "h/devices/dev-1/modules/m",
        "h/devices%2Fdev-1",
        "h/devices/dev%2D1",
        "h/twins",
    ] {
        assert!(!covers(refused, &device), "{refused}");
    }
    assert!(!covers("h/devices/dev-1", &["devices", "dev-10"]));
    assert!(
        Resource::parse("H.Example")
            .unwrap()
            .is_host_one_of(&["h.eXample".into()])
    );
    assert!(
        !Resource::parse("h.example.evil")
            .unwrap()
            .is_host_one_of(&["h.example".into()])
    );
}

#[test]
fn an_identity_is_named_whole() {
    let names = |resource: &str, path: &[&str]| Resource::parse(resource).unwrap().names(path);
    assert!(names("h/devices/d", &["devices", "d"]));
    assert!(names("h/devices/d/api-version=2016-11-14", &["devices", "d"]));
    assert!(
        names("h/devices/a%23b", &["devices", "a#b"]),
        "escaped twice by the client"
    );
    assert!(names("h/devices/a%23b", &["devices", "a%23b"]));
    assert!(!names("h/devices/d/modules/m", &["devices", "d"]));
    assert!(
        !names("h/devices/d", &["devices", "d", "modules", "m"]),
        "a device's key is not its modules'"
    );
    assert!(!names("h", &["devices", "d"]));
    assert!(!names("h/devices%2Fd", &["devices", "d"]));
}

#[test]
fn event_hubs_addresses_compare_without_scheme_port_slash_and_case() {
    let covers = |resource: &str, path: &str| Resource::parse(resource).unwrap().covers_address(path);
    for resource in [
        "sb://h/events",
        "amqps://H:5671/Events/",
        "http://h/events/",
        "SB://h/events/consumergroups/$default",
        "h",
    ] {
        assert!(
            covers(resource, "Events/ConsumerGroups/$Default/Partitions/0"),
            "{resource}"
        );
        assert!(
            Resource::parse(resource).unwrap().is_host_one_of(&["h".into()]),
            "{resource}"
        );
    }
    assert!(!covers("sb://h/event", "events"));
    assert!(!covers("sb://h/events/consumergroups/a", "events/consumergroups/ab"));
    assert!(!covers("sb://h/events/consumergroups", "events"));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in ".*", tail in "[srigekn=&%0-9a-fA-F+/]{0,80}") {
        let _ = SasToken::parse(&text);
        let _ = SasToken::parse(&format!("SharedAccessSignature {tail}"));
        let _ = super::super::connection_string::ConnectionString::parse(&text);
    }

    #[test]
    fn what_was_made_is_accepted(resource in "[a-z]{1,9}(/[a-zA-Z0-9%+#$ä-]{1,9}){0,4}", key in any::<[u8; 32]>(), expiry in 0u64..1 << 40) {
        let token = generate(&resource, &key, expiry, Some("p_1"));
        let token = SasToken::parse(&token).unwrap();
        prop_assert!(token.is_signed_by(&key));
        prop_assert_eq!(token.resource(), &Resource::parse(&resource).unwrap());
        prop_assert_eq!(token.expires(), UtcMillis((expiry as i64 + 300) * 1000));
    }

    /// One changed byte: either nothing that counts changed, or the signature does not hold.
    #[test]
    fn a_changed_token_is_not_accepted(at in any::<prop::sample::Index>(), by in 0x20u8..0x7f) {
        let key = [7; 32];
        let original = generate("host.example/devices/dev-1", &key, EXPIRY, Some("device"));
        let mut changed = original.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = by;
        let changed = String::from_utf8(changed).unwrap();
        if let Ok(token) = SasToken::parse(&changed) && token.is_signed_by(&key) {
            let original = SasToken::parse(&original).unwrap();
            prop_assert_eq!(token.resource(), original.resource());
            prop_assert_eq!(token.resource_raw, original.resource_raw);
            prop_assert_eq!(token.expiry_raw, original.expiry_raw);
            prop_assert_eq!(token.signature, original.signature);
        }
    }
}
