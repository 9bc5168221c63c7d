//! The hub's own description of its routes against the hub: each route is there, each error can be met, and answers
//! have the form that is told.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::http::{Door, Reply, device_token, versioned};
use crate::hub::Hub;

fn document(hub: &Hub) -> Value {
    let (status, text) = hub.get("/openapi.json");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Method, path and description of each operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    assert!(found.len() > 25, "{found:?}");
    found
}

#[test]
fn every_route_that_is_told_asks_for_a_credential() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    for (method, path, _) in operations(&document(&hub)) {
        let words = path
            .split('/')
            .map(|word| if word.starts_with('{') { "x" } else { word });
        let path = versioned(&words.collect::<Vec<_>>().join("/"));
        let reply = door.ask(&method, &path, &[], b"");
        assert_eq!(
            (reply.status, reply.error()),
            (401, "IotHubUnauthorized"),
            "{method} {path}"
        );
    }
}

/// What a request alone cannot bring about: a store that fails or is overrun, a body that takes its time (`http.rs`), and
/// devices that answer a method wrongly, late or not often enough.
const ELSEWHERE: [&str; 6] = [
    "ServerError",
    "ServerBusy",
    "RequestTimedOut",
    "DeviceMaximumInflightMethodExceeded",
    "GenericBadGateway",
    "GatewayTimeout",
];

#[test]
fn every_error_that_is_told_can_be_met() {
    let hub = Hub::start(&[
        "--set",
        "throttles.registry_per_second=1",
        "--set",
        "throttles.registry_burst=150",
        "--set",
        "throttles.twin_updates_per_second=1",
        "--set",
        "throttles.twin_updates_burst=1",
        "--set",
        "throttles.device_messages_per_second=1",
        "--set",
        "throttles.device_messages_burst=100",
        "--set",
        "throttles.daily_messages_max=10",
        "--set",
        "throttles.waiters_max=0",
        "--set",
        "throttles.wait_max=1s",
    ]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let device = device_token("d", &key);
    let met = RefCell::new(BTreeSet::new());
    let note = |reply: Reply, wanted: &str| {
        assert_eq!(reply.header("iothub-errorcode"), wanted, "{reply:?}");
        met.borrow_mut().insert(wanted.to_owned());
    };
    let own = |request: &str, body: Value, wanted: &str| {
        let (method, path) = request.split_once(' ').unwrap();
        note(
            door.own(method, &versioned(path), &[("If-Match", "stale")], &body),
            wanted,
        );
    };
    let create = |request: &str, body: Value, wanted: &str| {
        let (method, path) = request.split_once(' ').unwrap();
        note(door.own(method, &versioned(path), &[], &body), wanted);
    };
    let send = |request: &str, body: &[u8], wanted: &str| {
        let (method, path) = request.split_once(' ').unwrap();
        let headers = [
            ("Authorization", &*device),
            ("Content-Type", "application/vnd.microsoft.iothub.json"),
        ];
        note(door.ask(method, &versioned(path), &headers, body), wanted);
    };
    let batch = |count: usize| json!(vec![json!({ "body": "" }); count]).to_string();
    let many = |count: usize, entry: &dyn Fn(usize) -> Value| json!((0..count).map(entry).collect::<Vec<_>>());

    note(
        door.own("GET", "/devices/d", &[], &Value::Null),
        "InvalidProtocolVersion",
    );
    own("GET /devices/%zz", Value::Null, "GenericBadRequest");
    own("GET /devices/a%2Fb", Value::Null, "ArgumentInvalid");
    note(
        door.ask("GET", &versioned("/devices/d"), &[], b""),
        "IotHubUnauthorized",
    );
    let refused = door.ask("GET", &versioned("/devices/d"), &[("Authorization", "x")], b"");
    note(refused, "IotHubUnauthorized");
    own("GET /devices/no", Value::Null, "DeviceNotFound");
    own("GET /devices/d/modules/no", Value::Null, "ModuleNotFound");
    create("PUT /devices/d", json!({ "deviceId": "d" }), "DeviceAlreadyExists");
    own("PUT /devices/d", json!({ "deviceId": "d" }), "PreconditionFailed");
    let modules = many(50, &|index| json!({ "id": "d", "moduleId": format!("m{index}") }));
    assert_eq!(door.own("POST", &versioned("/devices"), &[], &modules).status, 200);
    let module = |id: &str| json!({ "deviceId": "d", "moduleId": id });
    create("PUT /devices/d/modules/m0", module("m0"), "ModuleAlreadyExistsOnDevice");
    create("PUT /devices/d/modules/more", module("more"), "TooManyModulesOnDevice");
    create("POST /devices", many(101, &|_| json!({ "id": "x" })), "TooManyDevices");
    let existing = many(1, &|_| json!({ "id": "d" }));
    create("POST /devices", existing, "BulkRegistryOperationFailure");
    let regenerate = |policy: &str| json!({ "policyKey": policy, "devices": [{ "id": "no" }] });
    create("POST /devices/keys/regenerate", regenerate("third"), "InvalidPolicyKey");
    create(
        "POST /devices/keys/regenerate",
        regenerate("both"),
        "BulkRegenerateDeviceKeyOperationFailure",
    );
    let owner = door.owner_token();
    let put = |body: &[u8], wanted: &str| {
        let headers = [("Authorization", &*owner)];
        note(door.ask("PUT", &versioned("/devices/e"), &headers, body), wanted);
    };
    put(b"{", "IotHubFormatError");
    put(&vec![b' '; (1 << 20) + 1], "GenericRequestEntityTooLarge");
    own(
        "DELETE /messages/servicebound/feedback/no",
        Value::Null,
        "DeviceMessageLockLost",
    );
    own("POST /twins/d/methods", json!({ "methodName": "m" }), "DeviceNotOnline");
    let events = "POST /devices/d/messages/events";
    send(
        "DELETE /devices/d/messages/devicebound/no",
        b"",
        "DeviceMessageLockLost",
    );
    send("POST /devices/d/files", b"{}", "DefaultStorageEndpointNotConfigured");
    let large = json!([{ "body": "x".repeat(262_145), "base64Encoded": false }]).to_string();
    send(events, large.as_bytes(), "MessageTooLarge");
    send(events, batch(200).as_bytes(), "DeviceThrottlingLimitExceeded");
    send(events, batch(11).as_bytes(), "IotHubQuotaExceeded");
    let patch = || door.own("PATCH", &versioned("/twins/d"), &[], &json!({ "tags": {} }));
    let mut refused = patch();
    while refused.status == 200 {
        refused = patch();
    }
    note(refused, "ThrottleBacklogLimitExceeded");
    let disabled = json!({ "deviceId": "d", "status": "disabled" });
    let changed = door.own("PUT", &versioned("/devices/d"), &[("If-Match", "*")], &disabled);
    assert_eq!(changed.status, 200, "{changed:?}");
    let key = changed.json()["authentication"]["symmetricKey"]["primaryKey"].clone();
    let token = device_token("d", key.as_str().unwrap());
    let headers = [("Authorization", &*token)];
    let commands = versioned("/devices/d/messages/devicebound");
    note(door.ask("GET", &commands, &headers, b""), "DeviceDisabled");
    // What is left of the burst is less than two of these.
    let full = many(100, &|_| json!({ "id": "d" }));
    let mut refused = door.own("POST", &versioned("/devices"), &[], &full);
    if refused.status == 400 {
        refused = door.own("POST", &versioned("/devices"), &[], &full);
    }
    note(refused, "ThrottlingException");

    let mut told = BTreeSet::new();
    for (_, _, operation) in operations(&document(&hub)) {
        for response in operation["responses"].as_object().unwrap().values() {
            let names = response["headers"]["iothub-errorcode"]["schema"]["enum"].as_array();
            told.extend(
                names
                    .into_iter()
                    .flatten()
                    .map(|name| name.as_str().unwrap().to_owned()),
            );
        }
    }
    let mut known = met.into_inner();
    assert!(
        known.is_subset(&told),
        "met and not told: {:?}",
        known.difference(&told)
    );
    known.extend(ELSEWHERE.map(str::to_owned));
    // Policies with fewer rights are those of `http.rs`.
    known.insert("IotHubUnauthorizedAccess".to_owned());
    assert_eq!(known, told);
}

/// All members of an answer are told, and all that are told as required are there.
#[track_caller]
fn check_form(document: &Value, schema: &str, answer: &Value) {
    let schema = &document["components"]["schemas"][schema];
    let members = answer.as_object().unwrap_or_else(|| panic!("{answer}"));
    for name in members.keys() {
        assert!(schema["properties"][name].is_object(), "{name} is not told");
    }
    for name in schema["required"].as_array().unwrap() {
        assert!(members.contains_key(name.as_str().unwrap()), "{name} is missing");
    }
}

#[test]
fn answers_have_the_form_that_is_told() {
    let hub = Hub::start(&[]);
    let (door, document) = (Door::of(&hub), document(&hub));
    let own = |method: &str, path: &str, body: Value| door.own(method, &versioned(path), &[], &body).json();
    let check = |schema: &str, answer: &Value| check_form(&document, schema, answer);
    check("Device", &own("PUT", "/devices/d", json!({ "deviceId": "d" })));
    check(
        "Module",
        &own(
            "PUT",
            "/devices/d/modules/m",
            json!({ "deviceId": "d", "moduleId": "m" }),
        ),
    );
    check("Twin", &own("GET", "/twins/d", Value::Null));
    check("Twin", &own("GET", "/twins/d/modules/m", Value::Null));
    check("Device", &own("GET", "/devices", Value::Null)[0]);
    check("Module", &own("GET", "/devices/d/modules", Value::Null)[0]);
    check("RegistryStatistics", &own("GET", "/statistics/devices", Value::Null));
    check("ServiceStatistics", &own("GET", "/statistics/service", Value::Null));
    check("Purged", &own("DELETE", "/devices/d/commands", Value::Null));
    let failed = own("POST", "/devices", json!([{ "id": "d" }]));
    check("BulkResult", &failed);
    check_form(
        &json!({ "components": { "schemas": { "entry": document["components"]["schemas"]["BulkResult"]["properties"]["errors"]["items"] } } }),
        "entry",
        &failed["errors"][0],
    );
    let keys = json!({ "policyKey": "both", "devices": [{ "id": "d" }] });
    check("RegeneratedKeys", &own("POST", "/devices/keys/regenerate", keys));
    check("Error", &own("GET", "/devices/no", Value::Null));
}
