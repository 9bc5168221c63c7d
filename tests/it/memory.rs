//! What a hub holds in memory, against the formula that the README publishes and `config::memory` computes.

use std::time::{Duration, Instant};

use forebay::config::memory::{Memory, Term, Usage};
use forebay::config::{Config, Sources, load};
use forebay::model::Message;
use forebay::proto::mqtt::Version;
use forebay::wire::control::{Control as _, Welcome};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::task::JoinSet;

use crate::amqp_peer::{AmqpPeer, Asked};
use crate::amqp_services::{READER, events_token};
use crate::hub::Hub;
use crate::mqtt_peer::{Hello, MqttPeer};
use crate::peers::{Peer, Site, device_token, sample, service_hello, service_token, subscribe, until, within};

const MIB: f64 = 1_048_576.0;
/// Memory is read when what the handshakes needed has been given back.
const SETTLE: Duration = Duration::from_millis(1500);

/// A line of `/proc/PID/status`, in bytes.
fn status(hub: &Hub, key: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", hub.pid())).expect("the hub lives");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    // A process that has ended has no memory, and its entry is still there.
    let line = line.expect("the hub lives: else it asked for more than it was given");
    let kib: f64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    kib * 1024.0
}

/// Memory that the hub alone can give back.
fn anonymous(hub: &Hub) -> f64 {
    status(hub, "RssAnon:")
}

fn config(settings: &[&str]) -> Config {
    let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
    load(&Sources::of_process(None, settings)).unwrap()
}

fn term(config: &Config, what: &str) -> Term {
    let memory = Memory::of(config, &Usage::default());
    let found = memory.terms.into_iter().find(|term| term.what == what);
    found.unwrap_or_else(|| panic!("the formula has no {what}"))
}

fn args<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|&setting| ["--set", setting]).collect()
}

async fn devices(site: &Site, names: impl Iterator<Item = String>) -> Vec<(String, String)> {
    let mut made = Vec::new();
    for name in names {
        let key = site.create_device(&name).await;
        made.push((name, key));
    }
    made
}

/// A hub with sessions that rest, and one that was there before: what the first of its kind costs once is not a session's.
async fn rest<S>(what: &str, connect: impl AsyncFn(&Hub, &Site, &str, &str) -> S) {
    const SESSIONS: usize = 200;
    // What a debug build, whose tasks are larger, and an allocator that keeps freed pages hold on top.
    const SLACK: f64 = 4.0 * MIB;
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let made = devices(&site, (0..=SESSIONS).map(|n| format!("resting-{n}"))).await;
    let (first, others) = made.split_first().unwrap();
    let mut sessions = vec![connect(&hub, &site, &first.0, &first.1).await];
    tokio::time::sleep(SETTLE).await;
    let before = anonymous(&hub);
    for (name, key) in others {
        sessions.push(connect(&hub, &site, name, key).await);
    }
    tokio::time::sleep(SETTLE).await;
    let grown = anonymous(&hub) - before;
    let each = term(&Config::default(), what).quiet as f64;
    println!(
        "{what}: {:.1} KiB each, {:.1} KiB by the formula",
        grown / SESSIONS as f64 / 1024.0,
        each / 1024.0
    );
    assert!(grown > SESSIONS as f64 * each / 4.0, "{what}: nothing was measured");
    assert!(
        grown <= SESSIONS as f64 * each + SLACK,
        "{SESSIONS} {what} hold {:.1} MiB",
        grown / MIB
    );
}

#[tokio::test]
async fn a_quic_session_that_rests_holds_what_the_formula_says() {
    rest("QUIC sessions", async |_, site, name, key| {
        Peer::device(site, name, &device_token(name, key, 3600)).await
    })
    .await;
}

#[tokio::test]
async fn an_mqtt_connection_that_rests_holds_what_the_formula_says() {
    rest("MQTT connections", async |hub, _, name, key| mqtt(hub, name, key).await).await;
}

#[tokio::test]
async fn an_amqp_connection_that_rests_holds_what_the_formula_says() {
    rest("AMQP connections", async |hub, _, _, _| {
        AmqpPeer::with_token(hub, &events_token(hub, "forebay", 3600)).await
    })
    .await;
}

async fn mqtt(hub: &Hub, name: &str, key: &str) -> MqttPeer {
    let token = device_token(name, key, 3600);
    let user_name = format!("localhost/{name}/?api-version=2021-04-12");
    let hello = Hello {
        client_id: name,
        user_name: &user_name,
        ..Hello::lamp(Version::V3, &token)
    };
    MqttPeer::connect(hub, hello).await.0
}

/// Devices send many times what the hub may take from them, over QUIC and MQTT, while consumers over QUIC and AMQP are
/// there and read nothing. The kernel refuses the hub memory beyond what the formula allows: a queue without its bound
/// ends it.
///
/// RLIMIT_DATA, which counts a process's private writable pages and not the log's: it needs no rights and no cgroup.
#[tokio::test]
async fn a_spike_stays_within_the_memory_it_is_given() {
    const QUIC: usize = 24;
    const MQTT: usize = 16;
    const MESSAGE_BYTES: usize = 4096;
    /// Of each device over QUIC, many times its windows.
    const SENT_BYTES: usize = 8 << 20;
    const SPIKE: Duration = Duration::from_secs(8);
    /// Threads that start late reserve their stacks; the store's cache fills; the allocator keeps pages.
    const SLACK: f64 = 32.0 * MIB;
    let settings = [
        // Slower than any device sends, whatever the disk does.
        "throttles.device_bytes_per_second=131072",
        "throttles.device_bytes_burst=262144",
        "shard.inflight_bytes_max=4MiB",
        "quic.consumer_window_bytes=256KiB",
        "quic.batch_bytes_max=256KiB",
        "mqtt.window_bytes=64KiB",
    ];
    let hub = Hub::start(&args(&settings));
    let site = Site::of(&hub);
    let config = config(&settings);
    let over_quic = devices(&site, (0..QUIC).map(|n| format!("flooding-{n}"))).await;
    let over_mqtt = devices(&site, (0..MQTT).map(|n| format!("flooding-mqtt-{n}"))).await;
    let mut senders = Vec::new();
    for (name, key) in &over_quic {
        let device = site.device(name, key);
        within(device.connected()).await.unwrap();
        senders.push(device);
    }
    let mut publishers = Vec::new();
    for (name, key) in &over_mqtt {
        publishers.push((mqtt(&hub, name, key).await, format!("devices/{name}/messages/events/")));
    }
    let mut consumers = Vec::new();
    for partition in 0..4 {
        let mut peer = Peer::connect(&site).await;
        peer.say(&service_hello(&service_token(&site.owner))).await;
        let _: Welcome = peer.hear().await;
        let (mut send, recv) = peer.connection.open_bi().await.unwrap();
        send.write_all(&subscribe(partition, "$Default", u64::MAX).to_frame())
            .await
            .unwrap();
        consumers.push((peer, send, recv));
    }
    let mut reader = AmqpPeer::with_token(&hub, &events_token(&hub, "forebay", 3600)).await;
    reader.attach(0, Asked::receiver(READER)).await.unwrap();
    reader.grant(0, 0, 1_000_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let busy = |what, count: usize| term(&config, what).busy as f64 * count as f64;
    let pool = |what| term(&config, what).busy as f64;
    let shards = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let allowed = busy("QUIC sessions", QUIC)
        + busy("MQTT connections", MQTT)
        + busy("AMQP connections", 1)
        + shards * pool("batches on their way")
        + consumers.len() as f64 * pool("native consumers");
    let (base, reserved) = (anonymous(&hub), status(&hub, "VmData:"));
    let flood = (QUIC * SENT_BYTES) as f64;
    assert!(
        flood > 2.0 * (allowed + SLACK),
        "the flood would fit: {flood} of {allowed}"
    );
    let limit = (reserved + allowed + SLACK) as u64;
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    prlimit(Pid::from_raw(hub.pid() as i32), Resource::Data, limit).unwrap();

    let body = vec![b'x'; MESSAGE_BYTES];
    let mut flooding = JoinSet::new();
    for (mut peer, topic) in publishers {
        let body = body.clone();
        flooding.spawn(async move {
            let mut id = 0;
            // Acknowledgements are left unread, so that it waits for nothing but the hub's reading.
            let flood = async {
                loop {
                    id = id % 60_000 + 1;
                    peer.publish(id, &topic, &body).await;
                }
            };
            let _ = tokio::time::timeout(SPIKE, flood).await;
            peer
        });
    }
    let begun = Instant::now();
    let mut peak = base;
    let mut sent = [0; QUIC];
    while begun.elapsed() < SPIKE {
        for (device, sent) in senders.iter().zip(&mut sent) {
            while *sent < SENT_BYTES / MESSAGE_BYTES && device.try_send(&Message::new(body.clone())).is_ok() {
                *sent += 1;
            }
        }
        peak = peak.max(anonymous(&hub));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let publishers = within(flooding.join_all()).await;
    println!(
        "a flood of {:.0} MiB: the hub grew {:.1} MiB and reserved {:.1} MiB, the formula says {:.1} MiB",
        flood / MIB,
        (peak - base) / MIB,
        (status(&hub, "VmData:") - reserved) / MIB,
        allowed / MIB
    );
    assert!(
        peak - base <= allowed + SLACK,
        "the hub grew {:.1} MiB",
        (peak - base) / MIB
    );
    let delayed = sample(&hub, "forebay_throttled_total{limit=\"device\",outcome=\"delayed\"}");
    assert!(delayed > 0.0, "nobody was held back");
    assert!(
        senders.iter().all(|device| device.connects() == 1),
        "nobody was cut off"
    );

    // What was acknowledged can be read; the flood's rest stays with its devices.
    let acknowledged: Vec<u64> = senders.iter().map(|device| device.last_acknowledged().0).collect();
    drop((senders, publishers, consumers, reader));
    until("the devices are gone", || {
        (sample(&hub, "forebay_sessions{kind=\"device\"}") == 0.0).then_some(())
    })
    .await;
    let stored = site.read_by_device().await;
    for ((name, _), acknowledged) in over_quic.iter().zip(acknowledged) {
        assert!(acknowledged > 0, "{name} got nothing through");
        let stored = stored.get(name).map_or(0, Vec::len) as u64;
        assert!(
            stored >= acknowledged,
            "{name}: {acknowledged} acknowledged, {stored} stored"
        );
    }
}
