//! The client subcommands against a running hub, and the log tools against what it leaves behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use forebay::model::{DeviceId, PartitionId};
use rustix::process::Signal;
use serde_json::Value;

use crate::hub::{Hub, PROGRAM, run, signal, until, wait};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn bodies(lines: &str) -> Vec<String> {
    let body = |line| json(line)["body"].as_str().unwrap().to_owned();
    lines.lines().map(body).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn lines(numbers: &[String]) -> String {
    numbers.iter().map(|number| format!("{number}\n")).collect()
}

#[test]
fn a_device_is_made_used_disabled_and_deleted() {
    let mut hub = Hub::start(&[]);
    let created = hub.run(&["device", "create", "dev-1"]).expect_success();
    let connection_string = created.trim();
    assert!(
        connection_string.starts_with("HostName=localhost;DeviceId=dev-1;SharedAccessKey="),
        "{created}"
    );
    let again = hub.run(&["device", "create", "dev-1"]).expect_failure();
    assert!(again.contains("DeviceAlreadyExists (409001)"), "{again}");
    let shown = hub.run(&["device", "show", "dev-1"]).expect_success();
    assert!(
        shown.contains(connection_string) && shown.contains("enabled"),
        "{shown}"
    );

    let send = [
        "send",
        "dev-1",
        "hot",
        "-p",
        "a=b=c",
        "--content-type",
        "text/plain",
        "--message-id",
        "m-1",
    ];
    let sent = hub.run(&send).expect_success();
    assert!(sent.starts_with("1 message acknowledged in "), "{sent}");
    assert_eq!(hub.metric("forebay_messages_acknowledged_total"), 1.0);
    let tail = ["tail", "--from", "earliest", "--count", "1"];
    let message = json(&hub.run(&[&tail[..], &["--json"]].concat()).expect_success());
    assert_eq!(message["deviceId"], "dev-1");
    assert_eq!(message["body"], "hot");
    assert_eq!((&message["sequence"], &message["offset"]), (&0.into(), &"0".into()));
    assert_eq!(message["properties"]["a"], "b=c");
    assert_eq!(message["systemProperties"]["content-type"], "text/plain");
    assert_eq!(message["systemProperties"]["message-id"], "m-1");
    let line = hub.run(&tail).expect_success();
    assert!(line.contains("  dev-1             hot  a=b=c "), "{line}");

    let disabled = hub
        .run(&["device", "disable", "dev-1", "--reason", "lost"])
        .expect_success();
    assert_eq!(disabled, "dev-1 is disabled\n");
    let refused = hub.run(&send).expect_failure();
    assert!(refused.contains("device_disabled"), "{refused}");
    let listed = hub.run(&["device", "list"]).expect_success();
    assert!(listed.contains("disabled (lost)"), "{listed}");
    hub.run(&["device", "enable", "dev-1"]).expect_success();
    hub.run(&send).expect_success();

    let listed = hub.run(&["device", "list", "--json"]).expect_success();
    assert_eq!(json(&listed)["deviceId"], "dev-1");
    hub.run(&["device", "delete", "dev-1"]).expect_success();
    assert_eq!(hub.run(&["device", "list", "--json"]).expect_success(), "");
    let gone = hub.run(&["device", "show", "dev-1"]).expect_failure();
    assert!(gone.contains("DeviceNotFound (404001)"), "{gone}");
    let gone = hub.run(&send).expect_failure();
    assert!(gone.contains("DeviceNotFound (404001)"), "{gone}");
    assert_eq!(hub.sigterm().code(), Some(0));
}

/// What a person on another machine has: connection string, CA file and port, no data folder.
#[test]
fn a_device_sends_by_connection_string_alone() {
    let hub = Hub::start(&[]);
    let endpoints = hub.endpoints();
    let remote = |args: &[&str], connection_string: &str, input: &str| {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .args(["--connection-string", connection_string, "--ca"]);
        command
            .arg(&endpoints.ca_file)
            .arg(format!("--port={}", endpoints.quic_port));
        run(command, input.as_bytes())
    };
    let device = hub.run(&["device", "create", "dev-1"]).expect_success();
    let device = device.trim();
    let policy = &endpoints.iothub_connection_string;
    remote(&["send", "by-device"], device, "").expect_success();
    remote(&["send", "--lines"], device, "by-lines").expect_success();
    remote(&["send", "dev-1", "by-policy"], policy, "").expect_success();
    let other = remote(&["send", "dev-2", "hello"], device, "").expect_failure();
    assert!(other.contains("is of dev-1, not of dev-2"), "{other}");
    let wrong = device.replace("SharedAccessKey=", "SharedAccessKey=AAAA");
    let refused = remote(&["send", "hello"], &wrong, "").expect_failure();
    assert!(refused.contains("unauthorized"), "{refused}");
    let denied = remote(&["device", "list"], device, "").expect_failure();
    assert!(denied.contains("SharedAccessKeyName"), "{denied}");

    let tail = ["tail", "--from", "earliest", "--count", "3", "--json"];
    let read = remote(&tail, policy, "").expect_success();
    assert_eq!(bodies(&read), ["by-device", "by-lines", "by-policy"]);
    assert_eq!(hub.get("/readyz").0, 200);
}

/// The demo fleet's keys stand in the endpoints file.
#[test]
fn a_device_may_bring_its_key() {
    let hub = Hub::start(&[]);
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let created = hub.run(&["device", "create", "dev-1", "--key", key]).expect_success();
    assert!(created.contains(&format!("SharedAccessKey={key}")), "{created}");
    hub.run(&["send", "dev-1", "hello"]).expect_success();
    hub.run(&["device", "create", "dev-2", "--key", "no key"])
        .expect_failure();
}

#[test]
fn a_demo_device_reports_and_can_be_sent_as() {
    let hub = Hub::start(&["--fleet", "1"]);
    let demo = &hub.endpoints().devices[0].device_id;
    let tail = ["tail", "--from", "earliest", "--json", "--count"];
    let first = json(&hub.run(&[&tail[..], &["1"]].concat()).expect_success());
    assert_eq!(first["deviceId"], demo.as_str());
    hub.run(&["send", demo, "known"]).expect_success();
}

#[test]
fn lines_are_stored_once_each_and_in_order() {
    let hub = Hub::start(&[]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    let sent = numbers(0..20_000);
    let report = hub.run_with_input(&["send", "dev-1", "--lines", "--json"], lines(&sent).as_bytes());
    let report = json(&report.expect_success());
    assert_eq!(report["acknowledged"], 20_000);
    let tail = ["tail", "--json", "--count"];
    let first = json(
        &hub.run(&[&tail[..], &["1", "--from", "earliest"]].concat())
            .expect_success(),
    );
    let partition = first["partition"].to_string();
    let read = |from: &str, count: &str| {
        let where_from = [count, "--partition", &partition, "--from", from];
        bodies(&hub.run(&[&tail[..], &where_from].concat()).expect_success())
    };
    assert_eq!(read("earliest", "20000"), sent);
    assert_eq!(read("sequence:19990", "10"), sent[19_990..]);
    assert_eq!(read("offset:5", "1"), sent[5..6]);
    assert_eq!(read("time:1970-01-01T00:00:00Z", "2"), sent[..2]);
    let which = hub.run(&["tail", "--from", "sequence:5"]).expect_failure();
    assert!(which.contains("--partition"), "{which}");
    let beyond = hub.run(&["tail", "--partition", "9"]).expect_failure();
    assert!(beyond.contains("no partition 9: the hub has 0 to 3"), "{beyond}");
    let group = hub.run(&["tail", "--group", "nobody"]).expect_failure();
    assert!(group.contains("404302"), "{group}");
}

/// A reader that ends first, as in `tail | head`, is no error and leaves no complaint.
#[test]
fn a_closed_pipe_ends_tail_silently() {
    let hub = Hub::start(&[]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    hub.run_with_input(&["send", "dev-1", "--lines"], lines(&numbers(0..50_000)).as_bytes())
        .expect_success();
    let mut tail = hub.command(&["tail", "--from", "earliest"]);
    let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(tail.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert!(first.ends_with("  0\n"), "{first}");
    assert!(wait(&mut tail).success());
    let mut complaint = String::new();
    tail.stderr.unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!(complaint, "");
}

/// Both ends outlive a crash of the hub: no message is missing, none comes twice.
#[test]
fn send_and_tail_go_on_over_a_crash_of_the_hub() {
    let mut hub = Hub::start(&[]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    let mut tail = hub.command(&["tail", "--json", "--from", "earliest", "--count", "4000"]);
    let tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut send = hub.command(&["send", "dev-1", "--lines"]);
    let mut send = send
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = send.stdin.take().unwrap();
    input.write_all(lines(&numbers(0..2000)).as_bytes()).unwrap();
    until("messages are stored", || {
        (hub.metric("forebay_messages_acknowledged_total") >= 100.0).then_some(())
    });
    hub.kill9();
    input.write_all(lines(&numbers(2000..4000)).as_bytes()).unwrap();
    hub.restart();
    drop(input);
    let sent = send.wait_with_output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let report = String::from_utf8(sent.stdout).unwrap();
    assert!(report.starts_with("4000 messages acknowledged"), "{report}");
    let read = tail.wait_with_output().unwrap();
    assert!(read.status.success(), "{read:?}");
    assert_eq!(bodies(&String::from_utf8(read.stdout).unwrap()), numbers(0..4000));
    let told = String::from_utf8(read.stderr).unwrap();
    assert!(told.contains("connected again"), "{told}");
}

#[test]
fn an_interrupted_send_says_how_much_is_stored() {
    let hub = Hub::start(&[]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    let mut send = hub.command(&["send", "dev-1", "--lines", "--json"]);
    let mut send = send
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = send.stdin.take().unwrap();
    input.write_all(b"1\n2\n3\n").unwrap();
    until("messages are stored", || {
        (hub.metric("forebay_messages_acknowledged_total") == 3.0).then_some(())
    });
    signal(&send, Signal::INT);
    assert_eq!(wait(&mut send).code(), Some(1));
    let mut report = String::new();
    send.stdout.unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(json(&report)["acknowledged"], 3);
    drop(input);
}

#[test]
fn a_device_that_listens_shows_what_comes_and_the_service_sees_its_answers() {
    let hub = Hub::start(&[]);
    hub.run(&["device", "create", "lamp"]).expect_success();
    let offline = hub.run(&["method", "invoke", "lamp", "blink"]).expect_failure();
    assert!(offline.contains("404103"), "{offline}");
    hub.run(&["c2d", "send", "lamp", "hello", "--message-id", "m-1", "--ack", "full"])
        .expect_success();
    let mut listen = hub.command(&["listen", "lamp", "--status", "207", "--count", "4"]);
    let mut listen = listen.stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(listen.stdout.take().unwrap())
        .lines()
        .map(|line| json(&line.unwrap()));
    // The twin as it stands and the message that waited, in either order.
    let mut first: Vec<Value> = shown.by_ref().take(2).collect();
    first.sort_by_key(|line| line.get("command").is_none());
    assert_eq!(first[0]["command"], "hello");
    assert_eq!(first[0]["system"]["message-id"], "m-1");
    assert_eq!(first[1], serde_json::json!({ "desired": { "$version": 1 } }));
    let call = [
        "method",
        "invoke",
        "lamp",
        "blink",
        "{\"times\":3}",
        "--connect-timeout",
        "30",
    ];
    let answer = hub.run(&call).expect_success();
    assert_eq!(
        json(&answer),
        serde_json::json!({ "status": 207, "payload": { "times": 3 } })
    );
    assert_eq!(
        shown.next().unwrap(),
        serde_json::json!({ "method": "blink", "payload": { "times": 3 } })
    );
    let patch = r#"{"tags":{"room":"hall"},"properties":{"desired":{"on":true}}}"#;
    let twin = json(&hub.run(&["twin", "patch", "lamp", patch]).expect_success());
    assert_eq!(
        shown.next().unwrap(),
        serde_json::json!({ "desiredPatch": { "on": true, "$version": 2 } })
    );
    assert!(wait(&mut listen).success());
    let shown = json(&hub.run(&["twin", "show", "lamp"]).expect_success());
    assert_eq!(
        (&shown["tags"]["room"], &shown["version"]),
        (&"hall".into(), &twin["version"])
    );
    let stale = ["twin", "patch", "lamp", "-", "--if-match", "AAAAAAAAAAE="];
    let stale = hub.run_with_input(&stale, patch.as_bytes()).expect_failure();
    assert!(stale.contains("412001"), "{stale}");
    let feedback = hub
        .run(&["feedback", "tail", "--count", "1", "--json"])
        .expect_success();
    let feedback = json(&feedback);
    assert_eq!(
        (&feedback["originalMessageId"], &feedback["statusCode"]),
        (&"m-1".into(), &"Success".into())
    );
    let tokens = [
        hub.run(&["token"]).expect_success(),
        hub.run(&["token", "lamp", "--ttl", "60"]).expect_success(),
    ];
    assert!(tokens[0].contains("&skn=iothubowner"), "{tokens:?}");
    assert!(
        tokens[1].starts_with("SharedAccessSignature sr=localhost%2Fdevices%2Flamp&sig="),
        "{tokens:?}"
    );
}

/// The only partition with messages, as `log stat` has it.
fn used_partition(hub: &Hub) -> Value {
    let stat = log(hub, &["stat", "--json"]).expect_success();
    let partitions = json(&stat)["partitions"].as_array().unwrap().clone();
    let mut used = partitions.into_iter().filter(|partition| partition["messages"] != 0);
    let only = used.next().unwrap();
    assert!(used.next().is_none(), "{stat}");
    only
}

fn log(hub: &Hub, args: &[&str]) -> crate::hub::Ended {
    let mut command = Command::new(PROGRAM);
    command.arg("log").args(args).arg(hub.data());
    run(command, b"")
}

/// Turns all bits of one byte of a segment file of the partition; the file's path in the log.
fn damage(hub: &Hub, partition: &Value, segment: usize, position: u64) -> String {
    let folder = format!("p{:04}", partition["partition"].as_u64().unwrap());
    let mut names: Vec<String> = fs::read_dir(hub.data().join("log").join(&folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".seg"))
        .collect();
    names.sort();
    let path = format!("{folder}/{}", names[segment]);
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .open(hub.data().join("log").join(&path))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[!byte[0]], position).unwrap();
    path
}

#[test]
fn the_log_tools_show_what_is_stored_and_where_it_is_damaged() {
    let mut hub = Hub::start(&["--set", "log.segment_bytes=2MiB"]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    let sent: Vec<String> = (0..6500).map(|n| format!("{n} {}", "x".repeat(500))).collect();
    hub.run_with_input(&["send", "dev-1", "--lines"], lines(&sent).as_bytes())
        .expect_success();
    let refused = log(&hub, &["verify"]).expect_failure();
    assert!(refused.contains("a hub is running"), "{refused}");
    assert_eq!(hub.sigterm().code(), Some(0));

    let whole = log(&hub, &["verify"]).expect_success();
    assert!(whole.ends_with("6500 messages: no damage\n"), "{whole}");
    let partition = used_partition(&hub);
    assert_eq!((&partition["first"], &partition["next"]), (&0.into(), &6500.into()));
    assert!(partition["segments"].as_u64() > Some(1), "{partition}");
    let table = log(&hub, &["stat"]).expect_success();
    assert_eq!(table.lines().count(), 1 + 4, "a head and four partitions: {table}");
    assert_eq!(bodies(&log(&hub, &["dump", "--json"]).expect_success()), sent);
    let some = log(&hub, &["dump", "--json", "--from", "1234", "--count", "2"]).expect_success();
    assert_eq!(bodies(&some), sent[1234..1236]);

    // In a sealed segment, inside the first batch.
    let sealed = damage(&hub, &partition, 0, 4096 + 300);
    let found = log(&hub, &["verify"]);
    assert_eq!(found.status.code(), Some(1));
    assert!(
        found
            .stdout
            .contains(&format!("{sealed} at position 4096: sequence numbers 0 to ")),
        "{found:?}"
    );
    let found = json(&log(&hub, &["verify", "--json"]).stdout);
    assert_eq!(found["whole"], false);
    let place = &found["partitions"][partition["partition"].as_u64().unwrap() as usize]["damage"][0];
    assert_eq!(
        (&place["file"], &place["position"]),
        (&sealed.clone().into(), &4096.into())
    );
    // What lies behind is still there.
    let next = place["next"].as_u64().unwrap() as usize;
    assert_eq!(bodies(&log(&hub, &["dump", "--json"]).expect_success()), sent[next..]);

    // The same in the active segment, below what the log has marked as durable. (A second blow to a byte heals it.)
    damage(&hub, &partition, 0, 4096 + 300);
    log(&hub, &["verify"]).expect_success();
    let segments = partition["segments"].as_u64().unwrap() as usize;
    let active = damage(&hub, &partition, segments - 1, 4096 + 300);
    let found = log(&hub, &["verify"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert!(
        found.stdout.contains(&format!("{active} at position 4096: ")),
        "{found:?}"
    );
}

#[test]
fn a_partition_that_cannot_be_replayed_is_closed_and_the_others_serve() {
    let mut hub = Hub::start(&["--set", "log.segment_bytes=1MiB"]);
    hub.run(&["device", "create", "dev-1"]).expect_success();
    let sent: Vec<String> = (0..3000).map(|n| format!("{n} {}", "x".repeat(500))).collect();
    hub.run_with_input(&["send", "dev-1", "--lines"], lines(&sent).as_bytes())
        .expect_success();
    assert_eq!(hub.sigterm().code(), Some(0));
    let partition = used_partition(&hub);
    damage(&hub, &partition, 0, 4096 + 300);
    // Without the store nothing is covered: the duplicate filter must be read from the whole log.
    fs::remove_file(hub.data().join("state.redb")).unwrap();
    hub.restart();

    let (status, body) = hub.get("/readyz");
    let closed = format!("partition {}", partition["partition"]);
    assert_eq!(status, 503);
    assert!(body.contains(&closed), "{body}");
    let refusing = "forebay_log_refusing_partitions{cause=\"poisoned\"} 1";
    assert!(hub.metrics().contains(refusing), "{}", hub.metrics());
    let partition_of = |id: &str| PartitionId::of_hash(DeviceId::new(id).unwrap().hash64(), 4).0;
    let number = partition["partition"].as_u64().unwrap() as u16;
    assert_eq!(partition_of("dev-1"), number);
    let other = (2..)
        .map(|n| format!("dev-{n}"))
        .find(|id| partition_of(id) != number)
        .unwrap();
    for id in ["dev-1", &other] {
        hub.run(&["device", "create", id]).expect_success();
    }
    hub.run(&["send", &other, "hello"]).expect_success();
    let refused = hub.run(&["send", "dev-1", "hello"]).expect_failure();
    assert!(refused.contains("is closed after an I/O error"), "{refused}");
    // What lies behind the damage can still be read.
    let text = number.to_string();
    let tail = [
        "tail",
        "--partition",
        &text,
        "--from",
        "sequence:2999",
        "--count",
        "1",
        "--json",
    ];
    assert_eq!(bodies(&hub.run(&tail).expect_success()), sent[2999..]);
    assert_eq!(
        hub.sigterm().code(),
        Some(0),
        "a closed partition does not hold up a stop"
    );
}

#[test]
fn without_a_hub_commands_say_where_they_looked() {
    let nowhere = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        run(command, b"").expect_failure()
    };
    let error = nowhere(&["device", "list", "--hub", "/nonexistent"]);
    assert!(error.contains("/nonexistent/endpoints.json"), "{error}");
    let error = nowhere(&["log", "verify", "/nonexistent"]);
    assert!(error.contains("/nonexistent is not a hub's data folder"), "{error}");
}
