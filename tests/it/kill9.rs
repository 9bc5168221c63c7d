//! kill -9 of the hub under load, and of a device beside it: nothing acknowledged is lost, nothing is stored twice.
//!
//! `cargo test` kills a hub at a few random moments. The long run:
//!
//! ```text
//! FOREBAY_KILL9_POINTS=200 cargo test --release --test it kill9 -- --nocapture
//! ```
//!
//! A failure prints its seed; `FOREBAY_SEED=n` draws the same bursts and moments again (what the processes were doing at
//! those moments still varies).

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forebay::client::credential::Credential;
use forebay::client::device::{Device, Receipt};
use forebay::model::Message;

use crate::hub::{Hub, PATIENCE};
use crate::peers::{Chance, Site, until, within};

const DEVICES: u64 = 5;
/// Messages that a device has under way at most: bounds what a long run writes.
const WAITING_MAX: u64 = 400;
/// After so many kills the hub stays until every device was acknowledged.
const CALM_EVERY: u32 = 8;

/// A message says who sent it and its number among that sender's; the rest of it follows from these, so that a message
/// made of two, or cut, is seen.
fn body(sender: &str, number: u64) -> Vec<u8> {
    let mut chance = Chance::new(number ^ sender.bytes().map(u64::from).sum::<u64>() << 32);
    let padding = match chance.within(0..=99) {
        // A few that span pages, most as small as telemetry is.
        0..5 => chance.within(0..=20_000),
        _ => chance.within(0..=200),
    };
    let mut body = format!("{sender} {number} ").into_bytes();
    body.extend((0..padding).map(|_| chance.next() as u8));
    body
}

fn check_bodies(sender: &str, first: u64, bodies: &[Vec<u8>]) {
    for (number, stored) in (first..).zip(bodies) {
        if *stored != body(sender, number) {
            let start = String::from_utf8_lossy(&stored[..stored.len().min(40)]).into_owned();
            panic!("message {number} of {sender} is due, {start:?} is stored");
        }
    }
}

/// One device under load.
struct Loaded {
    name: String,
    key: String,
    /// Messages whose acknowledgement the device has, in number.
    acknowledged: AtomicU64,
}

impl Loaded {
    /// Sends bursts until told to stop, then waits until all is acknowledged; how many messages.
    async fn run(self: Arc<Self>, site: Site, mut chance: Chance, stop: Arc<AtomicBool>) -> u64 {
        let device = site.device(&self.name, &self.key);
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..chance.within(1..=60) {
                sent += 1;
                let message = Message::new(body(&self.name, sent));
                assert_eq!(within(device.send(&message)).await.unwrap(), Receipt(sent));
            }
            let wanted = sent.saturating_sub(chance.within(0..=WAITING_MAX));
            match tokio::time::timeout(PATIENCE, device.acknowledged(Receipt(wanted))).await {
                Ok(acknowledged) => acknowledged.unwrap(),
                Err(_) => panic!(
                    "{}: {wanted} is not acknowledged, {:?} is; the link is {:?}, connection {}",
                    self.name,
                    device.last_acknowledged(),
                    device.link(),
                    device.connects()
                ),
            }
            self.acknowledged.store(device.last_acknowledged().0, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_micros(chance.within(0..=8_000))).await;
        }
        within(device.acknowledged(Receipt(sent))).await.unwrap();
        self.acknowledged.store(sent, Ordering::Relaxed);
        assert!(!device.may_have_duplicates());
        device.close().await;
        sent
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// How many points a run has; the long run names its own number.
pub fn points(quick: u32) -> u32 {
    match std::env::var("FOREBAY_KILL9_POINTS") {
        Ok(points) => points.parse().expect("FOREBAY_KILL9_POINTS is a number"),
        Err(_) => quick,
    }
}

fn milliseconds(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let [first, .., last] = &times[..] else {
        return format!("{times:?}");
    };
    let median = &times[times.len() / 2];
    format!(
        "min {:.0} ms, median {:.0} ms, max {:.0} ms",
        ms(first),
        ms(median),
        ms(last)
    )
}

#[test]
fn a_killed_hub_loses_nothing_acknowledged_and_stores_nothing_twice() {
    kill_under_load("sync", points(8));
}

/// The levels differ in what a power cut takes; the end of the process takes nothing from any of them.
#[test]
fn whatever_the_durability_the_end_of_the_process_loses_nothing_acknowledged() {
    for durability in ["interval=50ms", "os"] {
        kill_under_load(durability, points(3));
    }
}

fn kill_under_load(durability: &str, points: u32) {
    let seed = Chance::seed();
    println!("kill9: {durability}, {points} points, seed {seed}");
    let mut chance = Chance::new(seed);
    // Small segments: kills fall into rolls, recycling and snapshots of the duplicate filter too.
    let mut hub = Hub::start(&["--set", "log.segment_bytes=1MiB", "--durability", durability]);
    let site = Site::of(&hub);
    let runtime = runtime();
    let devices: Vec<Arc<Loaded>> = (0..DEVICES)
        .map(|n| {
            let name = format!("loaded-{n}");
            let key = runtime.block_on(site.create_device(&name));
            let acknowledged = AtomicU64::new(0);
            Arc::new(Loaded {
                name,
                key,
                acknowledged,
            })
        })
        .collect();
    let counts = || -> Vec<u64> { devices.iter().map(|d| d.acknowledged.load(Ordering::Relaxed)).collect() };
    let total = || -> u64 { counts().iter().sum() };

    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (devices, site, stop) = (devices.clone(), site.clone(), stop.clone());
        let seeds: Vec<u64> = devices.iter().map(|_| chance.next()).collect();
        // Its own thread: devices go on while the hub is away.
        thread::spawn(move || {
            self::runtime().block_on(async move {
                let running: Vec<_> = devices
                    .iter()
                    .zip(seeds)
                    .map(|(device, seed)| {
                        tokio::spawn(device.clone().run(site.clone(), Chance::new(seed), stop.clone()))
                    })
                    .collect();
                let mut sent = Vec::new();
                for device in running {
                    sent.push(device.await.unwrap());
                }
                sent
            })
        })
    };

    let mut restarts = Vec::new();
    let mut first_acknowledgements = Vec::new();
    for point in 1..=points {
        // Mostly under load, now and then while devices resume, or while nothing was said yet.
        thread::sleep(Duration::from_millis(chance.within(0..=150)));
        hub.kill9();
        let before = total();
        let killed = Instant::now();
        hub.restart();
        restarts.push(killed.elapsed());
        if point % CALM_EVERY == 0 {
            // However unlucky a device was with the kills: beside a hub that stays, each one gets on.
            let before: Vec<u64> = counts();
            let deadline = Instant::now() + PATIENCE;
            while counts().iter().zip(&before).any(|(now, before)| now == before) && !load.is_finished() {
                assert!(
                    Instant::now() < deadline,
                    "{:?} acknowledged, {before:?} at the restart",
                    counts()
                );
                thread::sleep(Duration::from_millis(1));
            }
        } else if chance.within(0..=3) > 0 {
            let deadline = Instant::now() + PATIENCE;
            while total() == before && !load.is_finished() {
                assert!(Instant::now() < deadline, "no device is acknowledged after a restart");
                thread::sleep(Duration::from_millis(1));
            }
            first_acknowledgements.push(killed.elapsed());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = load.join().expect("the load ends well");

    let stored = runtime.block_on(site.read_by_device());
    assert_eq!(stored.len(), devices.len());
    for (device, sent) in devices.iter().zip(&sent) {
        let bodies = &stored[&device.name];
        check_bodies(&device.name, 1, bodies);
        assert_eq!(bodies.len() as u64, *sent, "messages of {}", device.name);
    }
    println!(
        "kill9: {durability}: {} messages; restart: {}; until an acknowledgement: {}",
        sent.iter().sum::<u64>(),
        milliseconds(restarts),
        milliseconds(first_acknowledgements)
    );
    // A log that came through all this is also sound as it stands on disk.
    assert_eq!(hub.sigterm().code(), Some(0));
    let log = hub.data().join("log");
    let verified = crate::hub::run(
        {
            let mut verify = Command::new(crate::hub::PROGRAM);
            verify.args(["log", "verify"]).arg(log);
            verify
        },
        b"",
    );
    verified.expect_success();
}

/// What the device's process is told; see `a_device_process`.
const CHILD: &str = "FOREBAY_TEST_BUFFERED_DEVICE";

/// Not a test of its own: the process that `a_killed_device_loses_nothing_its_buffer_took` starts and kills. It sends
/// until it is killed, and writes the number of each message that its buffer has taken.
#[test]
#[ignore = "started by another test, as a process of its own"]
fn a_device_process() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let text = |name: &str| told[name].as_str().unwrap();
    runtime().block_on(async {
        let device = buffered_device(&Told {
            port: told["port"].as_u64().unwrap() as u16,
            ca_file: text("ca_file").into(),
            key: text("key").to_owned(),
            directory: text("directory").into(),
        });
        for number in 1.. {
            let message = Message::new(body(text("sender"), number));
            within(device.send(&message)).await.unwrap();
            println!("taken {number}");
            if number % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
}

struct Told {
    port: u16,
    ca_file: std::path::PathBuf,
    key: String,
    directory: std::path::PathBuf,
}

fn buffered_device(told: &Told) -> Device {
    let site = Site::reach(told.port, &told.ca_file);
    let mut options = site.options("buffered", Credential::Key(told.key.clone()));
    options.buffer.directory = Some(told.directory.clone());
    Device::start(site.endpoint(), options).unwrap()
}

#[test]
fn a_killed_device_loses_nothing_its_buffer_took() {
    let points = points(4).min(40);
    let seed = Chance::seed();
    println!("kill9 of a device: {points} points, seed {seed}");
    let mut chance = Chance::new(seed);
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let runtime = runtime();
    let told = Told {
        port: hub.endpoints().quic_port,
        ca_file: hub.endpoints().ca_file.clone(),
        key: runtime.block_on(site.create_device("buffered")),
        directory: hub.data().join("../buffer"),
    };

    let mut taken = Vec::new();
    for life in 0..points {
        let document = serde_json::json!({
            "port": told.port,
            "ca_file": told.ca_file,
            "key": told.key,
            "directory": told.directory,
            "sender": format!("life-{life}"),
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill9::a_device_process", "--ignored", "--nocapture"])
            .env(CHILD, document.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = thread::spawn(move || {
            let numbers = lines.map_while(Result::ok);
            numbers
                .filter_map(|line| line.strip_prefix("taken ")?.parse().ok())
                .last()
                .unwrap_or(0)
        });
        thread::sleep(Duration::from_millis(chance.within(50..=400)));
        // Sometimes both sides go.
        let is_hub_killed = chance.within(0..=1) == 0;
        if is_hub_killed {
            hub.kill9();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let last: u64 = reader.join().unwrap();
        taken.push(last);
        if is_hub_killed {
            hub.restart();
        }
    }
    assert!(
        taken.iter().sum::<u64>() > 0,
        "no life lasted long enough to send: {taken:?}"
    );

    let bodies = runtime.block_on(async {
        let device = buffered_device(&told);
        until("the buffer empties", || (device.waiting() == 0).then_some(())).await;
        assert!(!device.may_have_duplicates());
        device.close().await;
        site.read_by_device().await.remove("buffered").unwrap()
    });
    // Life after life, each from its first message to at least the last it was told is taken.
    let mut rest = &bodies[..];
    for (life, taken) in taken.iter().enumerate() {
        let sender = format!("life-{life}");
        let own = format!("{sender} ").into_bytes();
        let count = rest.iter().take_while(|body| body.starts_with(&own)).count();
        check_bodies(&sender, 1, &rest[..count]);
        assert!(
            count as u64 >= *taken,
            "{sender} was told of {taken} messages, {count} are stored"
        );
        rest = &rest[count..];
    }
    assert!(rest.is_empty(), "{} messages are out of place", rest.len());
}
