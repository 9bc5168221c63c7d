//! What does a PUBLISH of QoS 1 cost to read and to write, and how often is memory allocated for it? Beside the hub's codec:
//! rmqtt-codec and mqtt-protocol-core.
//!
//! - `decode`: 64 messages as they come in one TLS record, MQTT 3.1.1, payloads of 128 B and 1 KiB; time per message.
//! - `encode`: the same messages into a buffer that is used again; time per message.
//! - `allocations`: of one message, printed before the times. The hub's codec has none, or the bench fails.
//!
//! Goal of the hub: at most 40 ns a message to read, and no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forebay_codecs::mqtt::{Packet, Properties, Publish, QoS, Version};
use mqtt_protocol_core::mqtt::packet::v3_1_1 as core;
use rmqtt_codec::v3 as rmqtt;
use tokio_util::codec::{Decoder as _, Encoder as _};

const TOPIC: &str = "devices/bench-0/messages/events/%24.ct=application%2Fjson";
const MESSAGES: u64 = 64;

/// Counts what is asked of the system's allocator.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn publish(payload: &[u8]) -> Publish<'_> {
    Publish {
        is_dup: false,
        qos: QoS::AtLeastOnce,
        is_retain: false,
        topic: TOPIC,
        packet_id: std::num::NonZeroU16::new(7),
        properties: Properties::NONE,
        payload,
    }
}

/// So many of the message, one behind the other.
fn wire(payload: &[u8], messages: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..messages {
        Packet::Publish(publish(payload))
            .encode(Version::V3, &mut bytes)
            .expect("a message");
    }
    bytes
}

/// Takes every message; the sum of what they carry.
fn decode_forebay(bytes: &[u8]) -> usize {
    let (mut at, mut sum) = (0, 0);
    while let Some((Packet::Publish(publish), used)) = Packet::decode(&bytes[at..], Version::V3).expect("a message") {
        sum += black_box(publish.topic).len() + black_box(publish.payload).len();
        at += used;
    }
    sum
}

fn decode_rmqtt(bytes: &mut BytesMut) -> usize {
    let (mut codec, mut sum) = (rmqtt::Codec::default(), 0);
    while let Some((rmqtt::Packet::Publish(publish), _)) = codec.decode(bytes).expect("a message") {
        sum += black_box(&publish.topic).len() + black_box(&publish.payload).len();
    }
    sum
}

/// Its connection cuts packets out and copies each into an `Arc`; that is done here, by the hub's header.
fn decode_core(bytes: &[u8]) -> usize {
    let (mut at, mut sum) = (0, 0);
    while let Some(header) = forebay_codecs::mqtt::Header::read(&bytes[at..]).expect("a header") {
        let body: Arc<[u8]> = bytes[at + header.header_bytes..at + header.packet_bytes()].into();
        let (publish, _) = core::Publish::parse(header.flags, body).expect("a message");
        sum += black_box(publish.topic_name()).len() + black_box(publish.payload()).as_slice().len();
        at += header.packet_bytes();
    }
    sum
}

fn rmqtt_publish(payload: &[u8]) -> rmqtt::Packet {
    rmqtt::Packet::Publish(Box::new(rmqtt_codec::types::Publish {
        dup: false,
        retain: false,
        qos: rmqtt_codec::types::QoS::AtLeastOnce,
        topic: TOPIC.into(),
        packet_id: std::num::NonZeroU16::new(7),
        payload: Bytes::copy_from_slice(payload),
        properties: None,
    }))
}

fn core_publish(payload: &[u8]) -> core::Publish {
    let builder = core::Publish::builder().topic_name(TOPIC).expect("a topic");
    let builder = builder
        .qos(mqtt_protocol_core::mqtt::packet::Qos::AtLeastOnce)
        .packet_id(7);
    builder.payload(payload).build().expect("a message")
}

fn decode(c: &mut Criterion) {
    for bytes in [128, 1024] {
        let one = wire(&vec![0x5a; bytes], MESSAGES);
        let sum = decode_forebay(&one);
        assert_eq!(
            (decode_rmqtt(&mut BytesMut::from(&one[..])), decode_core(&one)),
            (sum, sum)
        );
        let mut group = c.benchmark_group(format!("decode {bytes} B"));
        group.throughput(Throughput::Elements(MESSAGES));
        group.bench_function("forebay", |b| b.iter(|| decode_forebay(black_box(&one))));
        group.bench_function("rmqtt-codec", |b| {
            let fresh = || BytesMut::from(&one[..]);
            b.iter_batched_ref(fresh, decode_rmqtt, BatchSize::SmallInput);
        });
        group.bench_function("mqtt-protocol-core", |b| b.iter(|| decode_core(black_box(&one))));
    }
}

fn encode(c: &mut Criterion) {
    for bytes in [128, 1024] {
        let payload = vec![0x5a; bytes];
        let mut group = c.benchmark_group(format!("encode {bytes} B"));
        group.throughput(Throughput::Elements(1));
        let mut out = Vec::new();
        group.bench_function("forebay", |b| {
            b.iter(|| {
                out.clear();
                Packet::Publish(black_box(publish(&payload))).encode(Version::V3, &mut out)
            });
        });
        let mut out = BytesMut::new();
        group.bench_function("rmqtt-codec", |b| {
            let fresh = || rmqtt_publish(&payload);
            let mut codec = rmqtt::Codec::default();
            let encode = |packet| {
                out.clear();
                codec.encode(packet, &mut out)
            };
            b.iter_batched(fresh, encode, BatchSize::SmallInput);
        });
        let packet = core_publish(&payload);
        group.bench_function("mqtt-protocol-core", |b| {
            b.iter(|| black_box(&packet).to_continuous_buffer())
        });
    }
}

fn allocations(_: &mut Criterion) {
    let count = |what: &str, mut work: Box<dyn FnMut() + '_>| {
        // What is used again is there after the first time.
        work();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..100).for_each(|_| work());
        let each = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / 100.0;
        println!("allocations, {what}: {each} a message");
        each
    };
    let payload = [0x5a; 128];
    let one = wire(&payload, 1);
    let mut out = Vec::new();
    let read = count("decode, forebay", Box::new(|| drop(black_box(decode_forebay(&one)))));
    let written = count(
        "encode, forebay",
        Box::new(|| {
            out.clear();
            Packet::Publish(publish(&payload))
                .encode(Version::V3, &mut out)
                .expect("a message");
        }),
    );
    let mut source: Vec<BytesMut> = (0..101).map(|_| BytesMut::from(&one[..])).collect();
    count(
        "decode, rmqtt-codec",
        Box::new(|| drop(black_box(decode_rmqtt(&mut source.pop().expect("one for each time"))))),
    );
    count(
        "decode, mqtt-protocol-core",
        Box::new(|| drop(black_box(decode_core(&one)))),
    );
    assert_eq!((read, written), (0.0, 0.0), "the hub's codec allocates");
}

criterion_group!(benches, allocations, decode, encode);
criterion_main!(benches);
