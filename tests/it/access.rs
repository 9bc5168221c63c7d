//! Who may do what, as an operator arranges it while the hub runs: policies and the rotation of their keys, authorities
//! that vouch for devices, modules, consumer groups.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay::client::ClientError;
use forebay::client::credential::PolicyKey;
use forebay::client::tls::Identity;
use forebay::hub::connection_string::ConnectionString;
use serde_json::{Value, json};

use crate::http::{Door, versioned};
use crate::hub::{Ended, Hub, PROGRAM, run, until, wait};
use crate::peers::{Site, within};
use crate::sessions::{authority, certificate, leaf};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a client subcommand as a program elsewhere would: with a connection string and the CA, and nothing else.
fn remote(hub: &Hub, connection_string: &str, args: &[&str]) -> Ended {
    let mut command = Command::new(PROGRAM);
    command.args(args).args(["--connection-string", connection_string]);
    command.arg("--ca").arg(&hub.endpoints().ca_file);
    command.arg(format!("--port={}", hub.endpoints().quic_port));
    run(command, b"")
}

/// The connection strings of a policy, with its primary and its secondary key.
fn strings(hub: &Hub, policy: &str) -> [String; 2] {
    let shown = json_of(&hub.run(&["policy", "show", policy, "--json"]).expect_success());
    let text = |key: &str| ConnectionString::for_policy("localhost", policy, shown[key].as_str().unwrap()).to_string();
    [text("primaryKey"), text("secondaryKey")]
}

#[test]
fn a_policy_gives_rights_until_it_is_deleted() {
    let hub = Hub::start(&[]);
    let listed = hub.run(&["policy", "list"]).expect_success();
    let names: Vec<_> = listed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(
        names,
        ["iothubowner", "service", "device", "registryRead", "registryReadWrite"]
    );
    let made = hub.run(&["policy", "create", "report", "--rights", "RegistryRead"]);
    let made = made.expect_success();
    let made = made.trim();
    assert!(
        made.starts_with("HostName=localhost;SharedAccessKeyName=report;SharedAccessKey="),
        "{made}"
    );
    let again = hub.run(&["policy", "create", "report", "--rights", "RegistryRead"]);
    assert!(again.expect_failure().contains("GenericConflict (409000)"));

    remote(&hub, made, &["device", "list"]).expect_success();
    let create = |id: &str| remote(&hub, made, &["device", "create", id]);
    let refused = create("d").expect_failure();
    assert!(refused.contains("IotHubUnauthorizedAccess (401002)"), "{refused}");
    let updated = hub.run(&["policy", "update", "report", "--rights", "RegistryWrite"]);
    assert_eq!(updated.expect_success(), "report: RegistryWrite\n");
    create("d").expect_success();
    // To give rights needs all of them: not even the right to write the registry is enough.
    for command in [&["policy", "list"][..], &["authority", "list"]] {
        let refused = remote(&hub, &strings(&hub, "registryReadWrite")[0], command).expect_failure();
        assert!(refused.contains("401002"), "{refused}");
    }
    hub.run(&["policy", "delete", "report"]).expect_success();
    let refused = create("e").expect_failure();
    assert!(refused.contains("unauthorized"), "{refused}");
    let stays = hub.run(&["policy", "delete", "iothubowner"]).expect_failure();
    assert!(stays.contains("ArgumentInvalid (400004)"), "{stays}");
    let gone = hub.run(&["policy", "show", "report"]).expect_failure();
    assert!(gone.contains("404000"), "{gone}");
}

#[tokio::test]
async fn keys_are_rotated_without_a_moment_in_which_none_works() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key_of = |text: &str| PolicyKey {
        policy: "registryRead".to_owned(),
        key: ConnectionString::parse(text).unwrap().shared_access_key.unwrap(),
    };
    let [first, second] = strings(&hub, "registryRead");
    let ask = |text: &str| remote(&hub, text, &["device", "list"]);
    // What runs with the old key goes on while keys change: it is checked again when its token is renewed.
    let running = site.service_of(key_of(&first)).await;
    ask(&first).expect_success();
    ask(&second).expect_success();
    hub.run(&["policy", "rotate", "registryRead", "--key", "secondary"])
        .expect_success();
    let [same, renewed] = strings(&hub, "registryRead");
    assert_eq!(same, first);
    ask(&second).expect_failure();
    ask(&first).expect_success();
    ask(&renewed).expect_success();
    hub.run(&["policy", "rotate", "registryRead", "--key", "primary"])
        .expect_success();
    ask(&first).expect_failure();
    ask(&renewed).expect_success();
    within(running.request("device.list", &json!({}))).await.unwrap();
    running.close();

    // The owner's own: the file that commands read follows.
    let before = hub.endpoints().iothub_connection_string.clone();
    hub.run(&["policy", "rotate", "iothubowner", "--key", "primary"])
        .expect_success();
    ask(&before).expect_failure();
    hub.run(&["device", "list"]).expect_success();
    hub.kill9();
    hub.restart();
    hub.run(&["device", "list"]).expect_success();
    assert!(
        remote(&hub, &before, &["device", "list"])
            .expect_failure()
            .contains("unauthorized")
    );
}

/// Devices keep their sessions while the key they do not use is replaced.
#[test]
fn a_devices_keys_are_rotated() {
    let hub = Hub::start(&[]);
    let first = hub.run(&["device", "create", "d"]).expect_success();
    let rotated = hub.run(&["device", "rotate", "d", "--key", "primary"]).expect_success();
    assert_ne!(first, rotated);
    assert!(
        remote(&hub, first.trim(), &["send", "old"])
            .expect_failure()
            .contains("unauthorized")
    );
    remote(&hub, rotated.trim(), &["send", "new"]).expect_success();
    let keys = json_of(
        &hub.run(&["device", "rotate", "d", "--key", "both", "--json"])
            .expect_success(),
    );
    assert_ne!(keys["primaryKey"], keys["secondaryKey"]);
    let unknown = hub
        .run(&["device", "rotate", "nobody", "--key", "both"])
        .expect_failure();
    assert!(unknown.contains("DeviceNotFound (404001)"), "{unknown}");
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Certificate and key as files.
fn files(folder: &Path, name: &str, identity: &Identity) -> [PathBuf; 2] {
    let [certificate, key] = ["pem", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
    fs::write(&certificate, pem("CERTIFICATE", leaf(identity))).unwrap();
    fs::write(&key, pem("PRIVATE KEY", identity.key.secret_der())).unwrap();
    [certificate, key]
}

fn with_files<'a>(args: &[&'a str], [certificate, key]: &'a [PathBuf; 2]) -> Vec<&'a str> {
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    [args, &["--certificate", certificate, "--certificate-key", key]].concat()
}

#[test]
fn a_device_is_let_in_by_a_certificate_once_its_authority_is_proved() {
    let hub = Hub::start(&[]);
    let folder = hub.data();
    let root = authority("root");
    let root_file = folder.join("root.pem");
    fs::write(&root_file, pem("CERTIFICATE", root.der())).unwrap();
    let root_file = root_file.to_str().unwrap();
    let made = hub
        .run(&["device", "create", "by-authority", "--authority"])
        .expect_success();
    assert_eq!(made, "HostName=localhost;DeviceId=by-authority;x509=true\n");
    let own = files(&folder, "by-authority", &certificate("by-authority", Some(&root)));
    let send = |file: &[PathBuf; 2]| hub.run(&with_files(&["send", "by-authority", "signed"], file));
    assert!(send(&own).expect_failure().contains("unauthorized"));

    let added = hub.run(&["authority", "create", "root", root_file]).expect_success();
    assert!(added.starts_with("root ") && added.contains("unverified"), "{added}");
    assert!(
        send(&own).expect_failure().contains("unauthorized"),
        "nobody has proved it"
    );
    let challenge = hub.run(&["authority", "challenge", "root"]).expect_success();
    let prove = |name: &str, identity: &Identity| {
        let [proof, _] = files(&folder, name, identity);
        hub.run(&["authority", "prove", "root", proof.to_str().unwrap()])
    };
    let wrong = prove("wrong", &certificate("another name", Some(&root))).expect_failure();
    assert!(wrong.contains("ArgumentInvalid (400004)"), "{wrong}");
    let proved = prove("right", &certificate(challenge.trim(), Some(&root))).expect_success();
    assert!(
        proved.contains("verified") && !proved.contains("unverified"),
        "{proved}"
    );
    send(&own).expect_success();
    let other = files(&folder, "other", &certificate("other", Some(&root)));
    assert!(send(&other).expect_failure().contains("unauthorized"));
    // By what the device itself has: its connection string, its certificate.
    let listen = with_files(&["listen", "by-authority", "--count", "1"], &own);
    let mut command = Command::new(PROGRAM);
    command.args(listen).args(["--connection-string", made.trim()]);
    command.arg("--ca").arg(&hub.endpoints().ca_file);
    command.arg(format!("--port={}", hub.endpoints().quic_port));
    assert_eq!(
        json_of(&run(command, b"").expect_success()),
        json!({ "desired": { "$version": 1 } })
    );
    let without = hub.run(&["send", "by-authority", "unsigned"]).expect_failure();
    assert!(without.contains("--certificate"), "{without}");

    hub.run(&["module", "create", "by-authority/m", "--authority"])
        .expect_success();
    let module = files(&folder, "module", &certificate("by-authority/m", Some(&root)));
    hub.run(&with_files(&["send", "by-authority/m", "signed"], &module))
        .expect_success();

    let listed = json_of(&hub.run(&["authority", "list", "--json"]).expect_success());
    assert_eq!((&listed["name"], &listed["isVerified"]), (&json!("root"), &json!(true)));
    hub.run(&["authority", "delete", "root"]).expect_success();
    assert!(send(&own).expect_failure().contains("unauthorized"));
    hub.run(&["authority", "create", "root", root_file, "--verified"])
        .expect_success();
    send(&own).expect_success();

    let alone = certificate("whatever", None);
    let thumbprint = forebay::hub::x509::thumbprint(leaf(&alone));
    hub.run(&["device", "create", "by-thumbprint", "--thumbprint", &thumbprint])
        .expect_success();
    let alone = files(&folder, "alone", &alone);
    hub.run(&with_files(&["send", "by-thumbprint", "signed"], &alone))
        .expect_success();
    let mixed = [alone[0].clone(), own[1].clone()];
    let mixed = hub
        .run(&with_files(&["send", "by-thumbprint", "x"], &mixed))
        .expect_failure();
    assert!(!mixed.is_empty());
    let missing = [folder.join("none.pem"), own[1].clone()];
    let missing = hub
        .run(&with_files(&["send", "by-thumbprint", "x"], &missing))
        .expect_failure();
    assert!(missing.contains("none.pem"), "{missing}");
}

#[test]
fn a_module_sends_listens_and_is_sent_to_like_a_device() {
    let hub = Hub::start(&[]);
    hub.run(&["device", "create", "d"]).expect_success();
    let made = hub.run(&["module", "create", "d/camera"]).expect_success();
    assert!(
        made.starts_with("HostName=localhost;DeviceId=d;ModuleId=camera;SharedAccessKey="),
        "{made}"
    );
    hub.run(&["module", "create", "d/camera"]).expect_failure();
    assert_eq!(hub.run(&["module", "list", "d"]).expect_success(), "d/camera\n");
    // By the registry's key, and by its own connection string.
    hub.run(&["send", "d/camera", "by-name"]).expect_success();
    remote(&hub, made.trim(), &["send", "by-string"]).expect_success();
    let other = remote(&hub, made.trim(), &["send", "d", "x"]).expect_failure();
    assert!(other.contains("is of d/camera, not of d"), "{other}");
    let read = hub
        .run(&["tail", "--from", "earliest", "--count", "2", "--json"])
        .expect_success();
    for line in read.lines() {
        let line = json_of(line);
        assert_eq!((&line["deviceId"], &line["moduleId"]), (&json!("d"), &json!("camera")));
    }
    hub.run(&["c2d", "send", "d/camera", "look"]).expect_success();
    hub.run(&["c2d", "send", "d", "elsewhere"]).expect_success();
    let heard = hub.run(&["listen", "d/camera", "--count", "2"]).expect_success();
    assert!(heard.contains("\"look\"") && !heard.contains("elsewhere"), "{heard}");
    assert_eq!(hub.run(&["c2d", "purge", "d"]).expect_success(), "1 removed\n");

    let token = hub.run(&["token", "d/camera"]).expect_success();
    let path = versioned("/devices/d/modules/camera/messages/events");
    let door = Door::of(&hub);
    let posted = door.ask("POST", &path, &[("Authorization", token.trim())], b"by-token");
    assert_eq!(posted.status, 204, "{posted:?}");
    let rotated = hub
        .run(&["device", "rotate", "d/camera", "--key", "both"])
        .expect_success();
    assert_ne!(rotated, made);
    let shown = hub.run(&["module", "show", "d/camera"]).expect_success();
    assert!(shown.contains(rotated.trim()), "{shown}");
    hub.run(&["module", "delete", "d/camera"]).expect_success();
    let gone = hub.run(&["send", "d/camera", "x"]).expect_failure();
    assert!(gone.contains("ModuleNotFound (404010)"), "{gone}");
}

#[test]
fn consumer_groups_are_made_and_deleted() {
    let hub = Hub::start(&[]);
    assert_eq!(hub.run(&["group", "list"]).expect_success(), "$Default\ncg2\n");
    hub.run(&["group", "create", "cg3"]).expect_success();
    let again = hub.run(&["group", "create", "cg3"]).expect_failure();
    assert!(again.contains("409000"), "{again}");
    let bad = hub.run(&["group", "create", "a/b"]).expect_failure();
    assert!(bad.contains("400004"), "{bad}");
    assert_eq!(hub.run(&["group", "list"]).expect_success(), "$Default\ncg2\ncg3\n");
    hub.run(&["group", "delete", "cg3"]).expect_success();
    let gone = hub.run(&["group", "delete", "cg3"]).expect_failure();
    assert!(gone.contains("GroupNotFound (404302)"), "{gone}");
    hub.run(&["group", "delete", "$Default"]).expect_failure();
}

/// Every way in which these operations refuse.
#[tokio::test]
async fn what_cannot_be_arranged_is_refused_by_name() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    site.create_device("d").await;
    let service = site.service().await;
    let create = async |number: usize| {
        let wanted = json!({ "keyName": format!("p{number}"), "rights": "RegistryRead" });
        within(service.request("policy.create", &wanted)).await
    };
    // IoT Hub, shared access policies: 16 in all.
    for number in 0..11 {
        create(number).await.unwrap();
    }
    let root = STANDARD.encode(authority("root").der());
    let end_entity = STANDARD.encode(leaf(&certificate("x", None)));
    let table = [
        ("policy.get", json!({ "keyName": "nobody" }), 404_000),
        ("policy.get", json!({ "keyName": "a b" }), 400_004),
        ("policy.get", json!({}), 400_004),
        (
            "policy.create",
            json!({ "keyName": "p11", "rights": "RegistryRead" }),
            413_000,
        ),
        (
            "policy.create",
            json!({ "keyName": "p0", "rights": "RegistryRead" }),
            409_000,
        ),
        ("policy.create", json!({ "keyName": "q", "rights": "" }), 400_004),
        (
            "policy.create",
            json!({ "keyName": "q", "rights": "Everything" }),
            400_004,
        ),
        (
            "policy.create",
            json!({ "keyName": "q", "rights": "RegistryRead", "primaryKey": "AAAA" }),
            400_004,
        ),
        (
            "policy.update",
            json!({ "keyName": "iothubowner", "rights": "RegistryRead" }),
            400_004,
        ),
        ("policy.delete", json!({ "keyName": "nobody" }), 404_000),
        (
            "policy.regenerate",
            json!({ "keyName": "p0", "policyKey": "both" }),
            400_035,
        ),
        (
            "policy.regenerate",
            json!({ "keyName": "nobody", "policyKey": "primaryKey" }),
            404_000,
        ),
        (
            "authority.create",
            json!({ "name": "a", "certificate": "not base64" }),
            400_004,
        ),
        (
            "authority.create",
            json!({ "name": "a", "certificate": end_entity }),
            400_004,
        ),
        ("authority.create", json!({ "name": "", "certificate": root }), 400_004),
        ("authority.challenge", json!({ "name": "nobody" }), 404_008),
        (
            "authority.prove",
            json!({ "name": "nobody", "certificate": root }),
            404_008,
        ),
        ("authority.delete", json!({ "name": "nobody" }), 404_008),
        ("module.create", json!({ "deviceId": "d" }), 400_004),
        (
            "module.create",
            json!({ "deviceId": "nobody", "moduleId": "m" }),
            404_001,
        ),
        ("module.get", json!({ "deviceId": "d", "moduleId": "m" }), 404_010),
        ("module.list", json!({ "deviceId": "nobody" }), 404_001),
        ("module.delete", json!({ "deviceId": "d", "moduleId": "m" }), 404_010),
        (
            "device.regenerate",
            json!({ "deviceId": "d", "policyKey": "third" }),
            400_035,
        ),
        (
            "device.regenerate",
            json!({ "deviceId": "nobody", "policyKey": "both" }),
            404_001,
        ),
        ("group.create", json!({ "name": "a/b" }), 400_004),
        ("group.delete", json!({ "name": "$Default" }), 400_004),
    ];
    for (operation, document, expected) in table {
        match within(service.request(operation, &document)).await {
            Err(ClientError::Refused { code, reason, .. }) => {
                assert_eq!(code, expected, "{operation} {document}: {reason}");
            }
            other => panic!("{operation} {document}: {other:?}"),
        }
    }
}

/// Commands that follow something outlive a restart of the hub, as `tail` does.
#[test]
fn following_goes_on_over_a_crash_of_the_hub() {
    let mut hub = Hub::start(&[]);
    hub.run(&["device", "create", "lamp"]).expect_success();
    let follow = |args: &[&str]| {
        let mut command = hub.command(args);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut events = follow(&["events", "tail", "--earliest", "--count", "2"]);
    let mut feedback = follow(&["feedback", "tail", "--count", "1"]);
    let mut shown = BufReader::new(events.stdout.take().unwrap()).lines();
    assert!(shown.next().unwrap().unwrap().contains("createDeviceIdentity"));
    until("a service waits for feedback", || {
        (hub.metric("forebay_sessions") >= 2.0).then_some(())
    });
    hub.kill9();
    hub.restart();
    hub.run(&["device", "delete", "lamp"]).expect_success();
    assert!(shown.next().unwrap().unwrap().contains("deleteDeviceIdentity"));
    hub.run(&["device", "create", "lamp"]).expect_success();
    let command = ["c2d", "send", "lamp", "x", "--message-id", "m-1", "--ack", "full"];
    hub.run(&command).expect_success();
    hub.run(&["c2d", "purge", "lamp"]).expect_success();
    assert!(wait(&mut events).success());
    let mut told = String::new();
    std::io::Read::read_to_string(&mut feedback.stdout.take().unwrap(), &mut told).unwrap();
    assert!(told.contains("lamp Purged m-1"), "{told}");
    assert!(wait(&mut feedback).success());
}
