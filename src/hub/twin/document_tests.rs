//! The document against a plain model, and the examples of the contract.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn members(value: Value) -> Members {
    value.as_object().unwrap().clone()
}

fn desired(value: Value) -> TwinUpdate {
    TwinUpdate {
        tags: None,
        desired: Some(members(value)),
    }
}

fn at(time: i64) -> UtcMillis {
    UtcMillis(time)
}

#[test]
fn a_patch_deletes_merges_and_replaces() {
    let check = |before: Value, patch: Value, after: Value| {
        let twin = Twin::fresh().patched(&desired(before.clone()), at(1)).unwrap();
        let twin = twin.patched(&desired(patch.clone()), at(2)).unwrap();
        assert_eq!(
            Value::from(twin.desired.members.clone()),
            after,
            "{before} with {patch}"
        );
        let twin = Twin::fresh().patched_reported(&members(before), at(1)).unwrap();
        let twin = twin.patched_reported(&members(patch), at(2)).unwrap();
        assert_eq!(Value::from(twin.reported.members), after);
    };
    check(json!({ "a": 1 }), json!({ "b": 2 }), json!({ "a": 1, "b": 2 }));
    check(json!({ "a": 1 }), json!({ "a": null }), json!({}));
    check(json!({ "a": 1 }), json!({ "b": null }), json!({ "a": 1 }));
    check(
        json!({ "a": { "b": 1, "c": 2 } }),
        json!({ "a": { "b": null } }),
        json!({ "a": { "c": 2 } }),
    );
    check(
        json!({ "a": { "b": 1 } }),
        json!({ "a": { "b": null } }),
        json!({ "a": {} }),
    );
    check(json!({ "a": [1, 2] }), json!({ "a": [3] }), json!({ "a": [3] }));
    check(
        json!({ "a": { "b": 1 } }),
        json!({ "a": [{ "c": null }] }),
        json!({ "a": [{ "c": null }] }),
    );
    check(
        json!({ "a": 1 }),
        json!({ "a": { "b": null, "c": 2 } }),
        json!({ "a": { "c": 2 } }),
    );
    check(json!({ "a": { "b": 1 } }), json!({ "a": "x" }), json!({ "a": "x" }));
    check(json!({ "a": 1 }), json!({ "A": 2 }), json!({ "a": 1, "A": 2 }));
}

#[test]
fn versions_and_etag_count_what_they_are_for() {
    let fresh = Twin::fresh();
    assert_eq!((fresh.version, fresh.etag().as_str()), (2, "AAAAAAAAAAE="));
    assert_eq!((fresh.desired.version, fresh.reported.version), (1, 1));
    let check = |twin: &Twin, version: u64, etag: &str, desired: u64, reported: u64| {
        let found = (twin.version, twin.etag(), twin.desired.version, twin.reported.version);
        assert_eq!(found, (version, etag.to_owned(), desired, reported));
    };
    let tags = TwinUpdate {
        tags: Some(members(json!({ "a": 1 }))),
        desired: None,
    };
    let twin = fresh.patched(&tags, at(1)).unwrap();
    check(&twin, 3, "AAAAAAAAAAI=", 1, 1);
    let twin = twin.patched(&desired(json!({})), at(2)).unwrap();
    check(&twin, 4, "AAAAAAAAAAM=", 2, 1);
    let twin = twin.patched_reported(&members(json!({ "a": 1 })), at(3)).unwrap();
    check(&twin, 5, "AAAAAAAAAAM=", 2, 2);
    let twin = twin.replaced(&desired(json!({ "a": 1 })), at(4)).unwrap();
    check(&twin, 6, "AAAAAAAAAAQ=", 3, 2);
    assert_eq!(Value::from(twin.tags.clone()), json!({ "a": 1 }), "not given, so kept");
}

#[test]
fn a_device_that_was_away_gets_the_whole_section_or_nothing() {
    let twin = Twin::fresh();
    assert_eq!(twin.desired_since(1), None);
    let twin = twin.patched(&desired(json!({ "a": 1, "b": 2 })), at(1)).unwrap();
    let twin = twin.patched(&desired(json!({ "b": null })), at(2)).unwrap();
    for version in [1, 2, 9] {
        let missed = twin.desired_since(version).map(Value::from);
        assert_eq!(missed, Some(json!({ "a": 1, "$version": 3 })), "{version}");
    }
    assert_eq!(twin.desired_since(3), None);
}

#[test]
fn a_replacement_keeps_nothing_but_the_version() {
    let twin = Twin::fresh()
        .patched(&desired(json!({ "a": { "b": 1 }, "c": 1 })), at(1))
        .unwrap();
    let twin = twin
        .replaced(&desired(json!({ "a": { "d": 1, "e": null } })), at(2))
        .unwrap();
    assert_eq!(Value::from(twin.desired.members.clone()), json!({ "a": { "d": 1 } }));
    assert_eq!(twin.desired.version, 3);
    assert_eq!(twin.desired.metadata.members.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        twin.desired.metadata.members["a"].members.keys().collect::<Vec<_>>(),
        ["d"]
    );
}

#[test]
fn a_section_may_not_grow_beyond_its_limit_by_small_patches() {
    let mut twin = Twin::fresh();
    let mut count = 0;
    let refused = loop {
        let patch = members(json!({ format!("k{count:03}"): "x".repeat(1020) }));
        match twin.patched_reported(&patch, at(1)) {
            Ok(next) => twin = next,
            Err(refused) => break refused,
        }
        count += 1;
    };
    assert_eq!((count, refused.section), (32, SectionName::Reported));
    let room = members(json!({ "k000": null, "k032": "x".repeat(1020) }));
    assert!(
        twin.patched_reported(&room, at(1)).is_ok(),
        "what is deleted makes room"
    );
}

#[test]
fn a_service_may_send_back_what_it_read() {
    let sent = br#"{"deviceId":"d","etag":"x","version":9,"tags":{"a":1},"properties":{
        "desired":{"b":2,"$metadata":{"$lastUpdated":"x"},"$version":4},"reported":{"c":3}}}"#;
    let update = TwinUpdate::from_json(sent).unwrap().without_reserved();
    assert_eq!(update.tags, Some(members(json!({ "a": 1 }))));
    assert_eq!(update.desired, Some(members(json!({ "b": 2 }))));
    for nothing in [
        "{}",
        r#"{"tags":null,"properties":null}"#,
        r#"{"properties":{"desired":null}}"#,
    ] {
        assert_eq!(
            TwinUpdate::from_json(nothing.as_bytes()).unwrap(),
            TwinUpdate::default()
        );
    }
    for bad in [
        "",
        "[]",
        r#"{"tags":1}"#,
        r#"{"properties":{"desired":[]}}"#,
        r#"{"tags":{}"#,
    ] {
        assert!(TwinUpdate::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
    for bad in ["", "1", "[]", "null", "{"] {
        assert!(parse_members(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(
        parse_members("[".repeat(100_000).as_bytes()).is_err(),
        "no depth overflows the stack"
    );
}

/// Values of few keys, so that patches meet.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => Just(Value::Null),
        2 => (0..3).prop_map(Value::from),
        1 => Just(json!("x")),
        1 => Just(json!([null, { "a": null }])),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| object(inner).prop_map(Value::from))
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Members> {
    proptest::collection::btree_map("[a-c]", value, 0..3).prop_map(Members::from_iter)
}

/// RFC 7396, section 2, word for word.
fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Members::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let before = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), merge_patch(before, value));
        }
    }
    Value::Object(target)
}

/// The ways to all objects and leaves of a document, itself included.
fn ways(value: &Value, way: &str, found: &mut Vec<String>) {
    found.push(way.to_owned());
    if let Value::Object(members) = value {
        for (key, value) in members {
            ways(value, &format!("{way}/{key}"), found);
        }
    }
}

fn stamps(metadata: &Metadata, way: &str, found: &mut Vec<(String, u64, i64)>) {
    found.push((way.to_owned(), metadata.version, metadata.at.unwrap().0));
    for (key, metadata) in &metadata.members {
        stamps(metadata, &format!("{way}/{key}"), found);
    }
}

proptest! {
    /// Members are what RFC 7396 makes of the patches; each has the version and time of the last patch that named it.
    #[test]
    fn patches_make_what_a_plain_model_makes(
        steps in proptest::collection::vec((object(value()), any::<bool>()), 1..12),
    ) {
        let mut twin = Twin::fresh();
        let mut model = json!({});
        // What counts for metadata: all since the last replacement.
        let mut patches: Vec<(u64, Value)> = Vec::new();
        for (n, (patch, is_replacement)) in steps.into_iter().enumerate() {
            let version = n as u64 + 2;
            let now = at(1000 + n as i64);
            let update = TwinUpdate { tags: Some(patch.clone()), desired: Some(patch.clone()) };
            if is_replacement {
                model = json!({});
                patches.clear();
                twin = twin.replaced(&update, now).unwrap();
            } else {
                twin = twin.patched(&update, now).unwrap();
            }
            let patch = Value::from(patch);
            model = merge_patch(model, &patch);
            patches.push((version, patch));

            prop_assert_eq!(&Value::from(twin.desired.members.clone()), &model);
            prop_assert_eq!(&Value::from(twin.tags.clone()), &model);
            prop_assert_eq!(twin.desired.version, version);
            prop_assert_eq!(twin.version, version + 1);
            let mut expected = Vec::new();
            ways(&model, "", &mut expected);
            let expected: Vec<_> = expected.into_iter().map(|way| {
                let named = patches.iter().rev().find(|(_, patch)| patch.pointer(&way).is_some());
                let version = named.expect("all that is there was named").0;
                (way, version, 1000 + version as i64 - 2)
            }).collect();
            let mut found = Vec::new();
            stamps(&twin.desired.metadata, "", &mut found);
            prop_assert_eq!(found, expected);
            // What is stored is what is read.
            prop_assert_eq!(&serde_json::from_slice::<Twin>(&serde_json::to_vec(&twin).unwrap()).unwrap(), &twin);
        }
    }
}
