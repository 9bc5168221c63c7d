//! The documents of both sides against golden files.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::hub::identity::IdentityName;
use crate::hub::twin::TwinUpdate;
use crate::model::{DeviceId, Generation, ModuleId};

const CREATED: UtcMillis = UtcMillis(1_767_225_600_000);
const CHANGED: UtcMillis = UtcMillis(1_767_312_000_250);

fn device() -> DeviceIdentity {
    let mut device = DeviceIdentity::new(DeviceId::new("pump-1").unwrap());
    device.generation_id = Generation(638_000_000_000_000_000);
    device.etag = "ZGV2aWNl".into();
    device.status = Status::Disabled;
    device.status_reason = Some("stolen".into());
    device.status_updated_time = Some(CHANGED);
    device.connection_state = ConnectionState::Connected;
    device.connection_state_updated_time = Some(CREATED);
    device.last_activity_time = Some(CREATED);
    device.cloud_to_device_message_count = 3;
    device.capabilities.iot_edge = true;
    device.device_scope = Some("ms-azure-iot-edge://pump-1-1".into());
    device.parent_scopes = vec!["ms-azure-iot-edge://site-1".into()];
    device.authentication.kind = AuthenticationKind::SelfSigned;
    device.authentication.symmetric_key.primary_key = Some("c2VjcmV0".into());
    device.authentication.x509_thumbprint.primary_thumbprint = Some("ab".repeat(20));
    device
}

fn members(value: Value) -> Members {
    value.as_object().unwrap().clone()
}

fn written() -> Twin {
    let update = |tags: Value, desired: Value| TwinUpdate {
        tags: Some(members(tags)),
        desired: Some(members(desired)),
    };
    let first = update(
        json!({ "building": { "floor": 1, "name": "43" } }),
        json!({ "telemetry": { "interval": "5m", "off": true }, "levels": [1, 2, { "x": null }] }),
    );
    let second = update(
        json!({ "building": { "name": null } }),
        json!({ "telemetry": { "off": null } }),
    );
    let reported = members(json!({ "battery": 55, "firmware": { "version": "1.2" } }));
    Twin::fresh()
        .patched(&first, CREATED)
        .and_then(|twin| twin.patched_reported(&reported, CREATED))
        .and_then(|twin| twin.patched(&second, CHANGED))
        .unwrap()
}

fn check(found: impl Serialize, golden: &str) {
    let found = serde_json::to_value(found).unwrap();
    let expected: Value = serde_json::from_str(golden).unwrap();
    assert!(found == expected, "expected other than\n{found:#}");
}

#[test]
fn a_service_sees_all_of_a_device() {
    let side = serde_json::to_string(&ServiceSide::of_device(&device(), &written())).unwrap();
    assert!(!side.contains("c2VjcmV0"), "a twin never shows keys");
    let golden = include_str!("../../../tests/golden/twin/service-device.json");
    check(ServiceSide::of_device(&device(), &written()), golden);
}

#[test]
fn a_service_sees_a_fresh_module() {
    let id = device().device_id;
    let module = ModuleIdentity::new(id, ModuleId::new("$edgeHub").unwrap());
    let golden = include_str!("../../../tests/golden/twin/service-module-fresh.json");
    check(ServiceSide::of_module(&module, &Twin::fresh()), golden);
}

#[test]
fn a_device_sees_properties_and_versions() {
    let golden = include_str!("../../../tests/golden/twin/device.json");
    check(DeviceSide::of(&written()), golden);
}

#[test]
fn a_change_event_has_what_changed_or_all_of_it() {
    let changed = |change: TwinChange, twin: Twin| TwinChanged {
        identity: IdentityName::module(device().device_id, ModuleId::new("m").unwrap()),
        generation: Generation(1),
        change: Arc::new(change),
        at: CHANGED,
        twin: Arc::new(twin),
    };
    let before = written();
    let check = |change: TwinChange, after: Twin, operation: &str, golden: &str| {
        let changed = changed(change, after);
        assert_eq!(changed.change.operation().name(), operation);
        check(ChangeEvent::of(&changed), golden);
    };

    let update = TwinUpdate {
        tags: Some(members(json!({ "building": null, "site": "north" }))),
        desired: Some(members(json!({ "telemetry": { "off": false, "gone": null } }))),
    };
    let after = before.patched(&update, CHANGED).unwrap();
    let golden = include_str!("../../../tests/golden/twin/event-update.json");
    check(TwinChange::Patched(update.clone()), after, "updateTwin", golden);

    let patch = members(json!({ "battery": 54, "firmware": null }));
    let after = before.patched_reported(&patch, CHANGED).unwrap();
    let golden = include_str!("../../../tests/golden/twin/event-reported.json");
    check(TwinChange::Reported(patch), after, "updateTwin", golden);

    let after = before.replaced(&update, CHANGED).unwrap();
    let golden = include_str!("../../../tests/golden/twin/event-replace.json");
    check(TwinChange::Replaced(update), after, "replaceTwin", golden);

    let tags = TwinUpdate {
        tags: Some(members(json!({ "a": 1 }))),
        desired: None,
    };
    let after = Twin::fresh().patched(&tags, CHANGED).unwrap();
    let golden = r#"{ "version": 3, "tags": { "a": 1 } }"#;
    check(TwinChange::Patched(tags), after, "updateTwin", golden);
}
