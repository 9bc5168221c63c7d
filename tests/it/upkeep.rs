//! What an operator does to a hub that runs: new certificates, a changed configuration; and what its log lines cost.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use forebay::client::tls::{ALPN, ClientTls, client_config, read_certificates};
use forebay::model::Message;
use forebay::proto::mqtt::Version;
use forebay::server::certificate::Leaf;
use forebay::server::tls::{DevFiles, ensure_dev_certificates};
use rustls::{ClientConnection, StreamOwned};

use crate::http::{Door, device_token};
use crate::hub::{Hub, until};
use crate::mqtt_peer::{Hello, MqttPeer, Said};
use crate::peers::{HOST, Site, sample, within};

const DAY: Duration = Duration::from_secs(86_400);
const LOADED: &str = "forebay_certificate_reloads_total{outcome=\"loaded\"}";
const REFUSED: &str = "forebay_certificate_reloads_total{outcome=\"refused\"}";
const EXPIRY: &str = "forebay_certificate_expiry_timestamp_seconds{certificate=\"server\"}";

fn files(hub: &Hub) -> DevFiles {
    DevFiles::in_directory(&hub.data())
}

/// A certificate by the hub's CA, made this long ago, in a folder beside the hub's data. One lives 730 days.
fn issued(hub: &Hub, name: &str, ago: Duration) -> DevFiles {
    let folder = hub.data().join("../issued").join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in ["ca.pem", "ca-key.pem"] {
        fs::copy(hub.data().join(file), folder.join(file)).unwrap();
    }
    ensure_dev_certificates(&folder, &[HOST.to_owned()], SystemTime::now() - ago).unwrap()
}

fn put(from: &Path, to: &Path) {
    let new = to.with_extension("put");
    fs::copy(from, &new).unwrap();
    fs::rename(new, to).unwrap();
}

/// The certificate that a port of TCP shows to a client that was never there.
fn shown_by_tcp(hub: &Hub, port: u16) -> Vec<u8> {
    let tls = ClientTls::from_ca_file(&hub.endpoints().ca_file).unwrap();
    let mut config = client_config(tls).unwrap();
    Arc::make_mut(&mut config).alpn_protocols.clear();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(config, HOST.try_into().unwrap()).unwrap(), stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

async fn shown_by_quic(hub: &Hub) -> Vec<u8> {
    let tls = client_config(ClientTls::from_ca_file(&hub.endpoints().ca_file).unwrap()).unwrap();
    assert_eq!(tls.alpn_protocols, [ALPN]);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut client = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, hub.endpoints().quic_port));
    let connection = within(client.connect(address, HOST).unwrap()).await.unwrap();
    let chain = connection.peer_identity().unwrap();
    let chain = chain
        .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
        .unwrap();
    chain[0].to_vec()
}

/// What every door shows, which is the same.
async fn shown(hub: &Hub) -> Vec<u8> {
    let endpoints = hub.endpoints();
    let by_quic = shown_by_quic(hub).await;
    for port in [endpoints.https_port, endpoints.mqtt_port, endpoints.amqps_port] {
        assert_eq!(shown_by_tcp(hub, port), by_quic, "port {port}");
    }
    by_quic
}

fn leaf(files: &DevFiles) -> Vec<u8> {
    read_certificates("certificate", &files.server_certificate).unwrap()[0].to_vec()
}

fn wait_for(hub: &Hub, name: &str, value: f64) {
    until(name, || (sample(hub, name) == value).then_some(()));
}

#[tokio::test]
async fn every_door_serves_a_new_certificate_and_open_sessions_go_on() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let first = leaf(&files(&hub));
    assert_eq!(shown(&hub).await, first);
    assert_eq!(
        sample(&hub, EXPIRY),
        Leaf::read("certificate", &files(&hub).server_certificate)
            .unwrap()
            .not_after as f64
    );
    assert!(sample(&hub, "forebay_certificate_expiry_timestamp_seconds{certificate=\"ca\"}") > sample(&hub, EXPIRY));

    let native = site.device("native", &site.create_device("native").await);
    let token = device_token("lamp", &site.create_device("lamp").await);
    let (mut lamp, _) = MqttPeer::connect(&hub, Hello::lamp(Version::V3, &token)).await;
    let receipt = within(native.send(&Message::new("before"))).await.unwrap();
    within(native.acknowledged(receipt)).await.unwrap();

    // Seen by itself; the key comes a moment after the certificate.
    let new = issued(&hub, "second", DAY);
    put(&new.server_certificate, &files(&hub).server_certificate);
    put(&new.server_key, &files(&hub).server_key);
    wait_for(&hub, LOADED, 1.0);
    assert_eq!(shown(&hub).await, leaf(&new));
    assert_ne!(first, leaf(&new));
    assert_eq!(
        sample(&hub, EXPIRY),
        Leaf::read("certificate", &new.server_certificate).unwrap().not_after as f64
    );

    // Sessions that were open are, and on the connection they were.
    lamp.publish(1, "devices/lamp/messages/events/", b"after").await;
    assert_eq!(lamp.hear().await, Said::PubAck(1, 0));
    let receipt = within(native.send(&Message::new("after"))).await.unwrap();
    within(native.acknowledged(receipt)).await.unwrap();
    assert_eq!(native.connects(), 1);

    // Seen at once when the hub is told.
    let third = issued(&hub, "third", DAY);
    put(&third.server_key, &files(&hub).server_key);
    put(&third.server_certificate, &files(&hub).server_certificate);
    hub.sighup();
    wait_for(&hub, LOADED, 2.0);
    assert_eq!(shown(&hub).await, leaf(&third));
    assert_eq!(sample(&hub, REFUSED), 0.0, "{}", hub.output());
}

#[tokio::test]
async fn a_certificate_that_is_no_good_is_refused_and_the_old_one_stays() {
    let hub = Hub::serve("");
    let files = files(&hub);
    let first = leaf(&files);
    let expiry = sample(&hub, EXPIRY);
    let old = issued(&hub, "old", 731 * DAY);
    let early = issued(&hub, "early", Duration::ZERO);
    let garbage = hub.data().join("garbage.pem");
    fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let empty = hub.data().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let (certificate, key) = (&files.server_certificate, &files.server_key);
    let cases: [(&str, &dyn Fn(), &str); 5] = [
        (
            "of another key",
            &|| put(&early.server_key, key),
            "do not belong together",
        ),
        (
            "expired",
            &|| {
                put(&old.server_certificate, certificate);
                put(&old.server_key, key)
            },
            "expired at",
        ),
        ("garbage", &|| put(&garbage, certificate), "server.pem"),
        ("empty", &|| put(&empty, certificate), "has no certificate"),
        ("gone", &|| fs::remove_file(certificate).unwrap(), "cannot be read"),
    ];
    for (number, (name, spoil, reason)) in cases.iter().enumerate() {
        spoil();
        // The first is found by looking, without being told.
        if number > 0 {
            hub.sighup();
        }
        wait_for(&hub, REFUSED, number as f64 + 1.0);
        assert_eq!(shown(&hub).await, first, "{name}");
        assert_eq!(sample(&hub, EXPIRY), expiry, "{name}");
        let output = hub.output();
        let line = output.lines().rfind(|line| line.contains("is refused")).unwrap();
        assert!(line.contains("is refused") && line.contains(reason), "{name}: {line}");
    }
    // What was refused is tried again when it is good.
    put(&early.server_key, key);
    put(&early.server_certificate, certificate);
    wait_for(&hub, LOADED, 1.0);
    assert_eq!(shown(&hub).await, leaf(&early));
}

#[test]
fn a_development_hub_renews_what_expires_soon_under_the_same_authority() {
    let mut hub = Hub::start(&[]);
    let ca = fs::read(&files(&hub).ca_certificate).unwrap();
    hub.sigterm();
    let old = issued(&hub, "old", 720 * DAY);
    put(&old.server_certificate, &files(&hub).server_certificate);
    put(&old.server_key, &files(&hub).server_key);
    hub.restart();
    let in_a_year = SystemTime::now() + 365 * DAY;
    let in_a_year = in_a_year.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(sample(&hub, EXPIRY) > in_a_year);
    assert_ne!(shown_by_tcp(&hub, hub.endpoints().https_port), leaf(&old));
    assert_eq!(fs::read(&files(&hub).ca_certificate).unwrap(), ca);
}

/// Whoever knocks at a port may cause lines, and must not fill a disk with them.
#[test]
fn a_flood_of_log_lines_is_cut_and_told() {
    let hub = Hub::start(&[
        "--set",
        "ops.log=info,forebay=debug",
        "--set",
        "ops.log_lines_per_second=3",
    ]);
    let door = Door::of(&hub);
    let begun = Instant::now();
    let refused = 200;
    for _ in 0..refused {
        assert_eq!(door.ask("GET", "/nothing/here", &[], b"").status, 404);
    }
    let seconds = begun.elapsed().as_secs() + 2;
    let written = || {
        let output = hub.output();
        let lines = output.lines().filter(|line| line.contains("there is no such path"));
        lines.count() as u64
    };
    assert!(written() <= 3 * seconds, "{} lines in {seconds} s", written());
    // Every line is either there or told as left out, with its place.
    let told = || -> u64 {
        let output = hub.output();
        let lines = output.lines().filter(|line| line.contains("lines were left out"));
        let of_place = lines.filter(|line| line.contains("src/http/serve.rs:"));
        let count = |line: &str| line.split("lines=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        of_place.filter_map(count).sum()
    };
    until("what was left out is told", || {
        (written() + told() == refused).then_some(())
    });
    assert!(sample(&hub, "forebay_log_lines_suppressed_total") >= told() as f64);
}

fn config_outcome(hub: &Hub, outcome: &str) -> f64 {
    sample(hub, &format!("forebay_config_reloads_total{{outcome=\"{outcome}\"}}"))
}

fn reload(hub: &Hub, config: &str, outcome: &str) {
    let before = config_outcome(hub, outcome);
    fs::write(hub.config_file(), config).unwrap();
    hub.sighup();
    until(outcome, || (config_outcome(hub, outcome) == before + 1.0).then_some(()));
}

/// Waits for a line with this message that has this text in a field; it may come a moment after its count.
fn until_said(hub: &Hub, message: &str, field: &str, text: &str) -> String {
    until(&format!("{message}: {text}"), || {
        let output = hub.output();
        let mut lines = output
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find_map(|line| {
            let of = |name: &str| line["fields"][name].as_str().unwrap_or_default().to_owned();
            (of("message").contains(message) && of(field).contains(text)).then(|| of(field))
        })
    })
}

#[test]
fn a_changed_configuration_is_put_in_force_without_a_restart() {
    let hub = Hub::serve("[ops]\nlog = \"info\"\n");
    let door = Door::of(&hub);
    let query = || {
        let path = crate::http::versioned("/devices/query");
        door.own(
            "POST",
            &path,
            &[],
            &serde_json::json!({ "query": "SELECT * FROM devices" }),
        )
        .status
    };
    assert_eq!([query(), query(), query()], [200; 3]);

    // Throttles and log lines at once; a port waits, and is named.
    let config = "[throttles]\nqueries_per_second = 1\nqueries_burst = 1\nwait_max = \"0ms\"\n\
        [ops]\nlog = \"debug\"\n[mqtt]\nstall_timeout = \"61s\"\n[log]\nretention = \"2h\"\n";
    reload(&hub, config, "restart_needed");
    assert_eq!(until_said(&hub, "need a restart", "keys", "mqtt"), "mqtt.stall_timeout");
    let applied = until_said(&hub, "was read anew", "applied", "throttles");
    for key in [
        "throttles.queries_per_second",
        "throttles.wait_max",
        "log.retention",
        "ops.log",
    ] {
        assert!(applied.contains(key), "{key} in {applied}");
    }
    let answers: Vec<u16> = (0..5).map(|_| query()).collect();
    assert!(answers.contains(&429), "{answers:?}");
    until("debug lines", || hub.output().contains("\"DEBUG\"").then_some(()));

    // What is wrong is refused as a whole.
    for (wrong, reason) in [
        (
            "[throttles]\nqueries_per_second = 0\n[log]\nretention = \"1s\"\n",
            "`log.retention`",
        ),
        ("[throttles]\nquerys_per_second = 0\n", "throttles.querys_per_second"),
        ("[throttles", "not valid TOML"),
        (
            "[https]\nbody_bytes_max = \"16MiB\"\n[log]\nsegment_bytes = \"8MiB\"\n",
            "`https.body_bytes_max` = 16MiB",
        ),
    ] {
        reload(&hub, wrong, "refused");
        until_said(&hub, "the configuration is refused", "error", reason);
    }
    let answers: Vec<u16> = (0..5).map(|_| query()).collect();
    assert!(answers.contains(&429), "the one in force stays: {answers:?}");

    // Identity is never changed under way.
    reload(
        &hub,
        "[identity]\npartition_count = 8\nhost_names = [\"other.example\"]\n",
        "restart_needed",
    );
    let waiting = until_said(&hub, "need a restart", "keys", "identity");
    assert_eq!(waiting, "identity.host_names, identity.partition_count");
    assert_eq!(
        [query(), query(), query()],
        [200; 3],
        "the throttle is gone with its line"
    );
    let same = "[identity]\npartition_count = 4\n";
    reload(&hub, same, "applied");
    assert_eq!(
        sample(&hub, LOADED) + sample(&hub, REFUSED),
        0.0,
        "the certificate is the same"
    );
}
