//! What does each layer cost between a device's frame and the log, without sockets and without a disk?
//!
//! - `check`: an Append frame with 64 messages of 128 B or 1 KiB is checked at the door; time per frame.
//! - `encode`: a message with two properties, and one that is only a body of 128 B; time per message.
//! - `filter`: a batch of a device among 1,000 is judged and its position advanced; time per batch.
//! - `authenticate`: a device's SAS token is checked against the registry on disk; time per token.
//! - `hop`: a command through a shard's queue, on one thread and to another thread and back; time per command.
//!
//! Durability level: none, nothing is stored.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay::hub::filter::{DeviceKey, Position};
use forebay::hub::{Authenticator, Authorities, Credential, DeviceIdentity, IdentityName, Policies, Registry, sas};
use forebay::model::{DeviceId, Epoch, Generation, Message, UtcMillis};
use forebay::server::SystemEntropy;
use forebay::shard::budget::Budgets;
use forebay::shard::command::{Command, SessionId};
use forebay::shard::filter::{DuplicateFilter, Verdict, judge};
use forebay::shard::inbox::{Inbox, Waker};
use forebay::state::{RedbConfig, RedbState, State};
use forebay::wire::batch::{Batch, BatchBuilder, BatchLimits};
use forebay::wire::frame::Decoder;
use forebay::wire::message;

const BATCH_COUNT: u32 = 64;

fn frame_body(message_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::default();
    for _ in 0..BATCH_COUNT {
        builder.push_body(&vec![0x5a; message_bytes]);
    }
    let mut frame = Vec::new();
    builder.finish(1, false, &mut frame);
    let mut decoder = Decoder::new(1 << 20);
    decoder.feed(frame.into());
    let frame = decoder.poll_frame().expect("a good frame");
    frame.expect("a whole frame").body
}

fn check(c: &mut Criterion) {
    let limits = BatchLimits {
        message_bytes_max: 256 << 10,
        count_max: 1024,
    };
    let mut group = c.benchmark_group("check");
    for bytes in [128, 1024] {
        let body = frame_body(bytes);
        group.throughput(Throughput::Elements(u64::from(BATCH_COUNT)));
        group.bench_function(format!("64x{bytes}B"), |b| {
            b.iter(|| Batch::check(black_box(&body), 0, &limits).expect("a good batch"));
        });
    }
}

fn encode(c: &mut Criterion) {
    let body = [0x5a; 128];
    let mut described = Message::new(body.to_vec());
    described.properties = vec![
        ("severity".into(), "warning".into()),
        ("line".into(), "assembly-7".into()),
    ];
    let mut group = c.benchmark_group("encode");
    let mut into = Vec::new();
    group.bench_function("body", |b| {
        b.iter(|| {
            into.clear();
            message::encode_body(black_box(&body), &mut into);
        });
    });
    group.bench_function("properties", |b| {
        b.iter(|| {
            into.clear();
            message::encode(black_box(&described), &mut into);
        });
    });
}

fn filter(c: &mut Criterion) {
    let mut filter = DuplicateFilter::default();
    let start = Position {
        epoch: Epoch(1),
        sequence: 0,
    };
    let keys: Vec<DeviceKey> = (0..1000)
        .map(|index| DeviceKey {
            device: DeviceId::new(&format!("device-{index}")).expect("a good id"),
            generation: Generation::default(),
        })
        .collect();
    for key in &keys {
        filter.open(key, start);
    }
    let mut turn = keys.iter().cycle();
    c.bench_function("filter", |b| {
        b.iter(|| {
            let key = turn.next().expect("a cycle has no end");
            let stored = filter.get(key).expect("the session is open");
            let verdict = judge(stored, Epoch(1), stored.sequence + 1, BATCH_COUNT, false);
            assert_eq!(verdict, Verdict::Append { skip: 0 });
            let sequence = stored.sequence + u64::from(BATCH_COUNT);
            filter.advance(key, Position { sequence, ..stored });
        });
    });
}

/// Wakes a sleeping thread, as an arbiter's mailbox would.
struct Unpark(std::thread::Thread);

impl Waker for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

fn hop(c: &mut Criterion) {
    const BUDGET_BYTES: u32 = 1 << 20;
    let command = || Command::Close(SessionId(7));
    let mut group = c.benchmark_group("hop");

    let here = Inbox::new(Budgets::new(BUDGET_BYTES, BUDGET_BYTES, 1));
    here.set_waker(Box::new(Unpark(std::thread::current())));
    group.bench_function("same_thread", |b| {
        b.iter(|| {
            here.push_control(command()).expect("there is room");
            here.going_to_drain();
            black_box(here.pop()).expect("it was pushed");
        });
    });

    // The shard's thread drains and answers; between two commands it sleeps.
    let there = Inbox::new(Budgets::new(BUDGET_BYTES, BUDGET_BYTES, 1));
    let stop = Arc::new(AtomicBool::new(false));
    let (answer, answers) = mpsc::channel();
    let shard = std::thread::spawn({
        let (there, stop) = (there.clone(), stop.clone());
        move || {
            while !stop.load(Ordering::Acquire) {
                std::thread::park();
                there.going_to_drain();
                while there.pop().is_some() {
                    answer.send(()).expect("the bench waits");
                }
            }
        }
    });
    there.set_waker(Box::new(Unpark(shard.thread().clone())));
    for commands in [1, 64] {
        group.throughput(Throughput::Elements(commands));
        group.bench_function(format!("round_trip_of_{commands}"), |b| {
            b.iter(|| {
                for _ in 0..commands {
                    there.push_control(command()).expect("there is room");
                }
                for _ in 0..commands {
                    answers.recv().expect("the shard answers");
                }
            });
        });
    }
    stop.store(true, Ordering::Release);
    shard.thread().unpark();
    shard.join().expect("the shard ends");
}

fn authenticate(c: &mut Criterion) {
    const HOST: &str = "localhost";
    let folder = std::env::temp_dir().join(format!("forebay-bench-auth-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let state: Arc<dyn State> =
        Arc::new(RedbState::open(&folder.join("state.redb"), &RedbConfig::default()).expect("a store"));
    let entropy = Arc::new(SystemEntropy);
    let registry = Registry::open(state.clone(), entropy.clone(), 4).expect("a registry");
    let policies = Policies::open(state.clone(), entropy.clone()).expect("policies");
    let authorities = Authorities::open(state, entropy).expect("authorities");
    let now = UtcMillis(1_766_000_000_000);
    let devices: Vec<DeviceIdentity> = (0..1_000)
        .map(|n| DeviceIdentity::new(DeviceId::new(&format!("dev-{n}")).expect("a good id")))
        .map(|wanted| {
            registry
                .create_device_blocking(wanted, now)
                .expect("it is new")
                .identity
        })
        .collect();
    let tokens: Vec<(IdentityName, String)> = devices
        .into_iter()
        .map(|device| {
            let key = device
                .authentication
                .symmetric_key
                .primary_key
                .expect("the registry makes keys");
            let key = STANDARD.decode(key).expect("base64");
            let resource = format!("{HOST}/devices/{}", device.device_id.as_str());
            let token = sas::generate(&resource, &key, now.0.unsigned_abs() / 1000 + 3600, None);
            (IdentityName::device(device.device_id), token)
        })
        .collect();
    let authenticator = Authenticator::new(registry, policies, authorities, &[HOST.to_owned()]);
    let mut next = tokens.iter().cycle();
    c.bench_function("authenticate", |b| {
        b.iter(|| {
            let (name, token) = next.next().expect("a cycle has no end");
            let credential = Credential::Sas(black_box(token));
            authenticator
                .authenticate(credential, name, HOST, now)
                .expect("a good token")
        });
    });
    drop(authenticator);
    let _ = std::fs::remove_dir_all(&folder);
}

criterion_group!(benches, check, encode, filter, authenticate, hop);
criterion_main!(benches);
