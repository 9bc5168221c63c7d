//! `forebay doctor` and `forebay status`: what they find where something is wrong, and that they say nothing where not.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use forebay::server::tls::ensure_dev_certificates;
use serde_json::Value;

use crate::hub::{Ended, Hub, PROGRAM, run, until};
use crate::peers::sample;

const DAY: Duration = Duration::from_secs(86_400);
/// A certificate's times are of whole seconds, and so no age is told at its very edge.
const MINUTE: Duration = Duration::from_secs(60);

/// A machine that is about to run `forebay serve`.
struct Site {
    folder: PathBuf,
}

impl Site {
    /// `age`: of its certificate, which lives 730 days.
    fn new(name: &str, age: Duration) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("data")).unwrap();
        let tls = folder.join("tls");
        ensure_dev_certificates(&tls, &["hub.example".to_owned()], SystemTime::now() - age).unwrap();
        let site = Self { folder };
        site.configure("");
        site
    }

    fn tls(&self, file: &str) -> PathBuf {
        self.folder.join("tls").join(file)
    }

    /// A file that names everything.
    fn configure(&self, more: &str) {
        // Hubs of tests that run beside take any free port, so that none is free for certain but the one without a number.
        let listen = |door: &str| format!("[{door}]\nlisten = \"127.0.0.1:0\"\n");
        let quic = format!(
            "{}certificate_file = {:?}\nkey_file = {:?}\n",
            listen("quic"),
            self.tls("server.pem"),
            self.tls("server-key.pem")
        );
        let doors: String = ["mqtt", "https", "amqp", "ops"].map(listen).concat();
        let text = format!(
            "[identity]\nhost_names = [\"hub.example\"]\n[process]\ndata_dir = {:?}\n[log]\nsegment_bytes = \"1MiB\"\n{quic}{doors}{more}",
            self.folder.join("data")
        );
        fs::write(self.folder.join("forebay.toml"), text).unwrap();
    }

    fn doctor(&self, set: &[&str]) -> Ended {
        let mut command = Command::new(PROGRAM);
        command
            .args(["doctor", "--json", "--config"])
            .arg(self.folder.join("forebay.toml"));
        for set in set {
            command.args(["--set", set]);
        }
        run(command, b"")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// What is not fine, by check.
fn findings(report: &Value, level: &str) -> Vec<(String, String)> {
    let text = |finding: &Value, member: &str| finding[member].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["level"] == level)
        .map(|finding| {
            assert_eq!(level == "ok", text(finding, "advice").is_empty(), "{finding}");
            (text(finding, "check"), text(finding, "text"))
        })
        .collect()
}

#[test]
fn a_machine_that_is_fit_has_no_failure() {
    let site = Site::new("fit", DAY);
    let ended = site.doctor(&[]);
    let report = report(&ended);
    assert_eq!(findings(&report, "fail"), [], "{report}");
    assert!(ended.status.success(), "{ended:?}");
    let fine = findings(&report, "ok");
    for check in [
        "config",
        "data",
        "certificate",
        "port QUIC",
        "port MQTT",
        "port HTTPS",
        "port AMQP",
        "port ops",
        "clock",
    ] {
        assert!(fine.iter().any(|(found, _)| found == check), "{check} in {fine:?}");
    }
    assert_eq!(
        fs::read_dir(site.folder.join("data")).unwrap().count(),
        0,
        "nothing is left behind"
    );
    let text = run(
        {
            let mut command = Command::new(PROGRAM);
            command
                .args(["doctor", "--config"])
                .arg(site.folder.join("forebay.toml"));
            command
        },
        b"",
    )
    .expect_success();
    assert!(text.contains("ok    config") && text.contains("0 failed"), "{text}");
}

#[test]
fn each_thing_that_is_wrong_is_named_and_ends_with_1() {
    let fit = Site::new("wrong", DAY);
    let expired = Site::new("expired", 731 * DAY + MINUTE);
    let ending = Site::new("ending", 720 * DAY + MINUTE);
    let garbage = Site::new("garbage", DAY);
    fs::write(garbage.tls("server.pem"), "nothing\n").unwrap();
    let foreign_key = Site::new("foreign", DAY);
    fs::copy(expired.tls("server-key.pem"), foreign_key.tls("server-key.pem")).unwrap();
    let open_key = Site::new("open", DAY);
    fs::set_permissions(open_key.tls("server-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = format!("mqtt.listen={}", tcp.local_addr().unwrap());
    let taken_udp = format!("quic.listen={}", udp.local_addr().unwrap());
    let me = format!("(pid {})", std::process::id());
    // A file where the data should be; folders that nobody may write are no obstacle for the user of a container.
    let blocked = fit.folder.join("blocked");
    fs::write(&blocked, "").unwrap();
    let blocked = format!("process.data_dir={}", blocked.join("data").display());
    let read_only = "process.data_dir=/proc/forebay-data".to_owned();
    for (site, set, level, check, part) in [
        (&fit, "log.segment_bytes=1", "fail", "config", "`log.segment_bytes`"),
        (&fit, "quic.certificate_file=", "fail", "config", "`quic.key_file`"),
        (
            &fit,
            "identity.host_names=other.example",
            "fail",
            "certificate",
            "not for other.example",
        ),
        (
            &fit,
            "identity.host_names=hub.example,b.example",
            "warn",
            "certificate",
            "not for b.example",
        ),
        (&expired, "process.shards=1", "fail", "certificate", "expired 1d 0h ago"),
        (&ending, "process.shards=1", "warn", "certificate", "expires in 9d"),
        (&garbage, "process.shards=1", "fail", "certificate", "no certificate"),
        (
            &foreign_key,
            "process.shards=1",
            "fail",
            "certificate",
            "do not belong together",
        ),
        (
            &open_key,
            "process.shards=1",
            "warn",
            "certificate",
            "can be read by everybody",
        ),
        (&fit, &taken, "fail", "port MQTT", &me),
        (&fit, &taken_udp, "fail", "port QUIC", &me),
        (&fit, "ops.listen=192.0.2.1:9600", "fail", "port ops", "no interface"),
        (&fit, &blocked, "fail", "data", "ot a directory"),
        (&fit, &read_only, "fail", "disk sync", "cannot be written"),
        (&fit, "log.segment_bytes=2GiB", "fail", "disk space", ""),
        (&fit, "mqtt.connections_max=10000000", "warn", "open files", "allowed"),
        (&fit, "quic.sessions_max=10000000", "warn", "memory", "available"),
    ] {
        // Whether that much is missing depends on the machine.
        if check == "disk space" {
            continue;
        }
        let ended = site.doctor(&[set]);
        let report = report(&ended);
        let found = findings(&report, level);
        assert!(
            found.iter().any(|(of, text)| of == check && text.contains(part)),
            "{set}: wanted is {level} of {check} with {part:?} in {report:#}"
        );
        assert_eq!(
            ended.status.code(),
            Some(i32::from(level == "fail")),
            "{set}: {ended:?}"
        );
    }
}

#[test]
fn a_hub_that_runs_is_known_by_its_lock_and_its_ports() {
    let mut hub = Hub::start(&[]);
    let doctor = |hub: &Hub| {
        let mut command = Command::new(PROGRAM);
        command.args(["doctor", "--json", "--data"]).arg(hub.data());
        run(command, b"")
    };
    let ended = doctor(&hub);
    let found = report(&ended);
    assert!(ended.status.success(), "{found:#}");
    let fine = findings(&found, "ok");
    let served = fine
        .iter()
        .filter(|(check, text)| check.starts_with("port") && text.contains("served by this hub"));
    assert_eq!(served.count(), 5, "{fine:?}");
    assert!(
        fine.iter()
            .any(|(check, text)| check == "data" && text.contains("held by forebay (pid ")),
        "{fine:?}"
    );
    assert!(fine.iter().any(|(check, _)| check == "CA"), "{fine:?}");
    // The hub is none the worse for it.
    hub.run(&["device", "create", "dev-1"]).expect_success();
    hub.run(&["send", "dev-1", "hello"]).expect_success();

    // What another process has is not taken for the hub's.
    hub.kill9();
    let port = TcpListener::bind(("127.0.0.1", hub.endpoints().https_port)).unwrap();
    let ended = doctor(&hub);
    let found = report(&ended);
    let failed = findings(&found, "fail");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(
        failed[0].0 == "port HTTPS" && failed[0].1.contains("in use by"),
        "{failed:?}"
    );
    let data = findings(&found, "ok")
        .into_iter()
        .find(|(check, _)| check == "data")
        .unwrap();
    assert!(data.1.contains("did not stop in order"), "{data:?}");
    drop(port);
}

#[test]
fn status_shows_a_hub_under_load() {
    let hub = Hub::start(&["--fleet", "4"]);
    hub.run(&["device", "create", "loaded"]).expect_success();
    let load = || {
        let lines: String = (0..150_000).map(|n| format!("message {n}\n")).collect();
        hub.run_with_input(&["send", "loaded", "--lines"], lines.as_bytes())
            .expect_success();
    };
    // They are counted twice a second.
    until("four devices", || {
        (sample(&hub, "forebay_quic_connections") >= 4.0).then_some(())
    });
    thread::scope(|scope| {
        let sending = scope.spawn(load);
        let status = until("a status with messages", || {
            let shown = hub.run(&["status", "--json", "--interval", "0.3"]).expect_success();
            let status: Value = serde_json::from_str(&shown).unwrap();
            let is_loaded = status["rates"]["acknowledged_messages"].as_f64().unwrap() > 50.0;
            (is_loaded || sending.is_finished()).then_some(status)
        });
        assert_eq!(
            (&status["state"], &status["durability"]),
            (&"ready".into(), &"sync".into()),
            "{status}"
        );
        assert!(
            status["rates"]["acknowledged_messages"].as_f64().unwrap() > 50.0,
            "{status}"
        );
        let (p50, p99) = (
            &status["ack_latency"]["p50_seconds"],
            &status["ack_latency"]["p99_seconds"],
        );
        assert!(p50.as_f64().unwrap() > 0.0 && p99.as_f64() >= p50.as_f64(), "{status}");
        assert!(status["connections"]["quic"].as_f64().unwrap() >= 4.0, "{status}");
        assert!(status["sessions"]["device"].as_f64().unwrap() >= 4.0, "{status}");
        assert!(status["process"]["resident_bytes"].as_f64().unwrap() > 1e6, "{status}");
        assert!(status["certificates"]["server"].as_f64().unwrap() > 1.7e9, "{status}");
        assert_eq!(status["reasons"], serde_json::json!({}));
    });
    let ops = format!("127.0.0.1:{}", hub.endpoints().ops_port);
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--ops", &ops, "--interval", "0.2"]);
    let text = run(command, b"").expect_success();
    for part in [
        ": ready, up ",
        "  messages     ",
        "  certificate  server expires in 729d",
        "  lag          ",
        " quic",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // Nobody there.
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--ops", "127.0.0.1:1"]);
    assert!(
        run(command, b"")
            .expect_failure()
            .contains("no hub answers on http://127.0.0.1:1")
    );
}
