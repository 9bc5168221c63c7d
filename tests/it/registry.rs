//! The registry as a whole: queries over HTTPS, import and export by file, and a hub that dies in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::http::{Door, Reply, versioned};
use crate::hub::{Hub, until, wait};

fn ask(door: &Door, text: &str, headers: &[(&str, &str)]) -> Reply {
    door.own("POST", &versioned("/devices/query"), headers, &json!({ "query": text }))
}

/// All pages of at most `size`, and how long each was.
fn pages(door: &Door, text: &str, size: &str) -> (Vec<Value>, Vec<usize>) {
    let (mut items, mut sizes, mut token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let mut headers = vec![("x-ms-max-item-count", size)];
        if !token.is_empty() {
            headers.push(("x-ms-continuation", &token));
        }
        let reply = ask(door, text, &headers);
        assert_eq!(reply.status, 200, "{reply:?}");
        let page = reply.json().as_array().unwrap().clone();
        sizes.push(page.len());
        items.extend(page);
        token = reply.header("x-ms-continuation").to_owned();
        if token.is_empty() {
            return (items, sizes);
        }
    }
}

#[test]
fn queries_go_page_by_page_over_https() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let entries: Vec<_> = (0..7)
        .map(|n| {
            let half = if n < 4 { "low" } else { "high" };
            json!({ "id": format!("d{n}"), "tags": { "half": half }, "properties": { "desired": { "n": n } } })
        })
        .collect();
    let made = door.own("POST", &versioned("/devices"), &[], &json!(entries));
    assert_eq!(
        (made.status, &made.json()["isSuccessful"]),
        (200, &json!(true)),
        "{made:?}"
    );
    // IoT Hub, life cycle: the twin is created with the device, not changed after it.
    let twin = door.own("GET", &versioned("/twins/d5"), &[], &Value::Null).json();
    assert_eq!((&twin["version"], &twin["tags"]["half"]), (&json!(2), &json!("high")));
    assert_eq!(twin["properties"]["desired"]["$version"], 1);

    let (all, sizes) = pages(&door, "SELECT * FROM devices", "3");
    assert_eq!(all.len(), 7);
    assert!(sizes.iter().all(|size| *size <= 3), "{sizes:?}");
    let (high, _) = pages(
        &door,
        "SELECT deviceId AS id FROM devices WHERE tags.half = 'high'",
        "2",
    );
    let mut ids: Vec<_> = high.iter().map(|item| item["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["d4", "d5", "d6"]);
    let groups = "SELECT tags.half, COUNT() AS n FROM devices GROUP BY tags.half";
    let (mut groups, _) = pages(&door, groups, "1");
    groups.sort_by_key(|group| group["n"].as_u64());
    assert_eq!(
        groups,
        [json!({ "half": "high", "n": 3 }), json!({ "half": "low", "n": 4 })]
    );

    let whole = ask(&door, "SELECT * FROM devices WHERE deviceId = 'd3'", &[]);
    assert_eq!(whole.header("x-ms-item-type"), "twin");
    assert_eq!(whole.json()[0]["properties"]["desired"]["n"], 3);
    let some = ask(&door, "SELECT deviceId FROM devices", &[("x-ms-max-item-count", "2")]);
    assert_eq!(some.header("x-ms-item-type"), "raw");
    let token = some.header("x-ms-continuation").to_owned();
    let check = |text: &str, headers: &[(&str, &str)]| {
        let reply = ask(&door, text, headers);
        assert_eq!(
            (reply.status, reply.error()),
            (400, "ArgumentInvalid"),
            "{text} {headers:?}"
        );
    };
    check("SELECT deviceId FROM", &[]);
    check("SELECT deviceId FROM devices", &[("x-ms-max-item-count", "0")]);
    check("SELECT deviceId FROM devices", &[("x-ms-continuation", &token[1..])]);
    check("SELECT moduleId FROM devices", &[("x-ms-continuation", &token)]);
    let goes_on = ask(&door, "SELECT deviceId FROM devices", &[("x-ms-continuation", &token)]);
    assert_eq!(goes_on.json().as_array().unwrap().len(), 5);
}

fn line(n: usize) -> Value {
    let key = |which: char| format!("{which}AECAwQFBgcICQoLDA0ODw==");
    let mut line = json!({
        "id": format!("device-{n}"),
        "status": if n.is_multiple_of(10) { "disabled" } else { "enabled" },
        "authentication": { "type": "sas", "symmetricKey": { "primaryKey": key('A'), "secondaryKey": key('B') } },
    });
    if n.is_multiple_of(100) {
        line["tags"] = json!({ "n": n });
        line["properties"] = json!({ "desired": { "interval": n } });
    }
    line
}

fn write_lines(file: &Path, lines: impl Iterator<Item = Value>) {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    fs::write(file, text).unwrap();
}

/// What an import says of each device, by id.
fn devices(file: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(file).unwrap();
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let keys = &line["authentication"]["symmetricKey"];
        let name = format!(
            "{}/{}",
            line["id"].as_str().unwrap(),
            line["moduleId"].as_str().unwrap_or_default()
        );
        let said = json!([line["status"], keys, line["tags"], line["properties"]["desired"]]);
        (name, said)
    };
    text.lines().map(read).collect()
}

fn count(door: &Door) -> u64 {
    let statistics = door.own("GET", &versioned("/statistics/devices"), &[], &Value::Null);
    statistics.json()["totalDeviceCount"].as_u64().unwrap()
}

/// The hub dies in the middle of an import. The same command again makes it exactly what the file says; an export says
/// the same.
#[test]
fn an_import_broken_off_by_kill9_is_finished_by_the_same_command() {
    const LINES: usize = 6_000;
    let mut hub = Hub::start(&[]);
    let file = hub.data().with_file_name("devices.txt");
    write_lines(&file, (0..LINES).map(line));
    let path = file.to_str().unwrap();
    let mut first = hub.command(&["device", "import", path]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let door = Door::of(&hub);
    until("some devices are there", || (count(&door) >= 500).then_some(()));
    hub.kill9();
    assert_eq!(wait(&mut first).code(), Some(1), "the hub died before all was there");
    hub.restart();
    let door = Door::of(&hub);
    let survived = count(&door);
    assert!((500..LINES as u64).contains(&survived), "{survived} devices survived");

    let answer = hub.run(&["device", "import", path, "--json"]).expect_success();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["errors"], 0);
    let statistics = door
        .own("GET", &versioned("/statistics/devices"), &[], &Value::Null)
        .json();
    assert_eq!(
        statistics,
        json!({ "totalDeviceCount": 6_000, "enabledDeviceCount": 5_400, "disabledDeviceCount": 600 })
    );
    let exported = hub.data().with_file_name("exported.txt");
    hub.run(&["device", "export", exported.to_str().unwrap()])
        .expect_success();
    assert!(devices(&exported) == devices(&file), "the export differs from the file");
}

#[test]
fn an_import_does_what_each_line_says_and_names_the_lines_it_refused() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let file = hub.data().with_file_name("changes.txt");
    let path = file.to_str().unwrap();
    let mut lines = vec![
        json!({ "id": "a", "tags": { "x": 1 } }),
        json!({ "id": "a", "moduleId": "m", "tags": { "of": "a" } }),
        json!({ "id": "a", "moduleId": "n" }),
        json!({ "id": "b" }),
        json!({ "id": "b", "importMode": "update", "status": "disabled", "statusReason": "sold" }),
        json!({ "id": "c" }),
        json!({ "id": "c", "importMode": "delete" }),
        json!({ "id": "a", "importMode": "updateTwin", "tags": { "y": 2 } }),
    ];
    write_lines(&file, lines.clone().into_iter());
    hub.run(&["device", "import", path]).expect_success();
    let twin = |id: &str| door.own("GET", &versioned(&format!("/twins/{id}")), &[], &Value::Null);
    assert_eq!(twin("a").json()["tags"], json!({ "x": 1, "y": 2 }));
    assert_eq!(twin("a/modules/m").json()["tags"], json!({ "of": "a" }));
    assert_eq!(twin("b").json()["statusReason"], "sold");
    assert_eq!(twin("c").status, 404);

    lines.truncate(3);
    lines.push(json!({ "id": "b" }));
    lines.push(json!({ "id": "no/id" }));
    lines.push(json!({ "id": "a", "importMode": "updateIfMatchETag", "eTag": "old" }));
    lines.push(json!({ "id": "z", "importMode": "updateTwin", "tags": {} }));
    write_lines(&file, lines.into_iter());
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}{{broken\n")).unwrap();
    let told = hub.run(&["device", "import", path]).expect_failure();
    assert!(told.contains("5 lines were refused"), "{told}");
    let errors = fs::read_to_string(file.with_file_name("changes.txt.errors")).unwrap();
    let mut errors: Vec<_> = errors
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|error| {
            (
                error["line"].as_u64().unwrap(),
                error["errorCode"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    errors.sort();
    let expected = [
        (4, "DeviceAlreadyExists"),
        (5, "ArgumentInvalid"),
        (6, "PreconditionFailed"),
        (7, "DeviceNotFound"),
        (8, "ArgumentInvalid"),
    ];
    assert_eq!(errors, expected.map(|(line, code)| (line, code.to_owned())));
}
