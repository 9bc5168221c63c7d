//! Replays saved inputs and then changes them, one second a target; `FOREBAY_FUZZ_SECONDS=600` for longer, and
//! `FOREBAY_FUZZ_SEED` to go where an earlier run went. An input that panics is written to `tests/fuzz/<target>/`, and
//! from then on replayed.

use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Engine, TARGETS, Target};
use crate::proto::amqp::frame::{self, FrameKind};
use crate::proto::amqp::message::{Id, MessageWriter, Properties};
use crate::proto::amqp::performative::{
    Begin, Detach, Disposition, Flow, Open, Performative, ReceiverSettles, SaslInit, SenderSettles, Terminus, Transfer,
};
use crate::proto::amqp::value::Writer;
use crate::proto::amqp::{Attach, DeliveryState, Role};
use crate::proto::mqtt::{self, Packet, Property, PropertyBuf, QoS, Version};

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz")
        .join(target.name)
}

/// Saved inputs, in order of their names.
fn saved(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> = std::fs::read_dir(folder(target))
        .map(|entries| entries.map(|entry| entry.expect("a readable folder").path()).collect())
        .unwrap_or_default();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("a readable file");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// The bytes of a golden file.
fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = std::fs::read_to_string(path).expect("a golden file");
    let digits = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
}

fn wire(name: &str) -> Vec<u8> {
    golden(&format!("wire/{name}.hex"))
}

/// A message with every section that is looked at.
fn sections(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.annotations(1, |map| {
        map.symbol("dt-subject");
        map.string("part");
    });
    writer.properties(&Properties {
        message_id: Some(Id::Text("m")),
        user_id: Some(b"u"),
        content_type: Some("text/plain"),
        absolute_expiry_time: Some(1_766_000_000_123),
        ..Properties::default()
    });
    writer.application_properties(2, |map| {
        map.string("a");
        map.string("b");
        map.string("iothub-creation-time-utc");
        map.string("2021-04-21T11:30:16Z");
    });
    writer.data(body);
    bytes
}

/// Conversations of one session: a link each way, messages, outcomes, the end; with SASL and without.
/// One of each kind, of both versions.
fn mqtt_packets() -> Vec<Vec<u8>> {
    let id = NonZeroU16::MIN;
    let mut properties = PropertyBuf::default();
    for property in [Property::User("a", "b"), Property::ReasonString("why")] {
        properties.push(property);
    }
    let mut of_message = PropertyBuf::default();
    for property in [
        Property::ContentType("text/plain"),
        Property::CorrelationData(b"c"),
        Property::MessageExpiry(60),
        Property::User("a", "b"),
    ] {
        of_message.push(property);
    }
    let mut seeds = Vec::new();
    for version in [Version::V3, Version::V5] {
        let only = |properties: &'static PropertyBuf| match version {
            Version::V3 => mqtt::Properties::NONE,
            Version::V5 => properties.as_properties(),
        };
        // Seeds live as long as the test.
        let properties = only(Box::leak(Box::new(properties.clone())));
        let of_message = only(Box::leak(Box::new(of_message.clone())));
        let ack = mqtt::Ack {
            packet_id: id,
            reason: mqtt::Reason::SUCCESS,
            properties,
        };
        let packets = [
            Packet::Connect(mqtt::Connect {
                version,
                is_clean: false,
                keep_alive: 60,
                client_id: "d",
                will: Some(mqtt::Will {
                    qos: QoS::AtLeastOnce,
                    is_retain: true,
                    topic: "devices/d/messages/events/",
                    payload: b"gone",
                    properties: of_message,
                }),
                user_name: Some("hub/d/?api-version=2021-04-12"),
                password: Some(b"SharedAccessSignature sr=x"),
                properties: mqtt::Properties::NONE,
            }),
            Packet::ConnAck(mqtt::ConnAck {
                is_session_present: true,
                code: 0,
                properties,
            }),
            Packet::Publish(mqtt::Publish {
                is_dup: true,
                qos: QoS::AtLeastOnce,
                is_retain: false,
                topic: "devices/d/messages/events/a=1",
                packet_id: Some(id),
                properties: of_message,
                payload: b"{}",
            }),
            Packet::PubAck(ack),
            Packet::PubRel(ack),
            Packet::SubAck(mqtt::SubAck {
                packet_id: id,
                properties,
                codes: &[0, 1, 0x80],
            }),
            Packet::UnsubAck(mqtt::UnsubAck {
                packet_id: id,
                properties,
                codes: if version == Version::V5 { &[0] } else { &[] },
            }),
            Packet::PingReq,
            Packet::Disconnect(mqtt::Disconnect {
                reason: mqtt::Reason::SUCCESS,
                properties,
            }),
        ];
        let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut seed = Vec::new();
            write(&mut seed);
            seeds.push(seed);
        };
        for packet in &packets {
            add(&|seed| packet.encode(version, seed).unwrap());
        }
        let none = mqtt::Properties::NONE;
        let filters = [mqtt::Filter::new("$iothub/twin/res/#", QoS::AtMostOnce)];
        add(&|seed| Packet::encode_subscribe(id, &none, &filters, version, seed).unwrap());
        add(&|seed| Packet::encode_unsubscribe(id, &none, &["a/#"], version, seed).unwrap());
    }
    seeds
}

fn amqp_connections() -> Vec<Vec<u8>> {
    let attach = |handle, role| {
        Performative::Attach(Box::new(Attach {
            name: format!("link-{handle}"),
            handle,
            role,
            sender_settles: SenderSettles::Mixed,
            receiver_settles: ReceiverSettles::Second,
            source: Some(Terminus::new("here")),
            target: Some(Terminus::new("there")),
            initial_delivery_count: Some(0),
            max_message_size: None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: None,
        }))
    };
    let transfer = |id, more| {
        Performative::Transfer(Transfer {
            handle: 0,
            delivery_id: Some(id),
            delivery_tag: Some(Bytes::from_static(b"t")),
            message_format: Some(0),
            more,
            ..Transfer::default()
        })
    };
    let message = sections(b"body");
    let (head, tail) = message.split_at(message.len() / 2);
    let frames: [(Performative, &[u8]); 12] = [
        (
            Performative::Open(Open {
                container_id: "peer".into(),
                max_frame_size: 512,
                channel_max: 2,
                ..Open::default()
            }),
            b"",
        ),
        (
            Performative::Begin(Begin {
                remote_channel: None,
                next_outgoing_id: 0,
                incoming_window: 5,
                outgoing_window: 5,
                handle_max: 3,
            }),
            b"",
        ),
        (attach(0, Role::Sender), b""),
        (attach(2, Role::Receiver), b""),
        (transfer(0, false), &message),
        (transfer(1, true), head),
        (transfer(1, false), tail),
        (
            Performative::Flow(Flow {
                next_incoming_id: Some(0),
                incoming_window: 5,
                handle: Some(2),
                delivery_count: Some(0),
                link_credit: Some(2),
                drain: true,
                ..Flow::default()
            }),
            b"",
        ),
        (
            Performative::Disposition(Disposition {
                role: Role::Receiver,
                first: 0,
                last: 9,
                settled: false,
                state: Some(DeliveryState::Accepted),
            }),
            b"",
        ),
        (
            Performative::Detach(Detach {
                handle: 0,
                closed: true,
                error: None,
            }),
            b"",
        ),
        (Performative::End(None), b""),
        (Performative::Close(None), b""),
    ];
    let mut plain = frame::AMQP_HEADER.to_vec();
    for (performative, payload) in frames {
        frame::put(&mut plain, FrameKind::Amqp, 0, |body| {
            performative.write(body);
            body.extend_from_slice(payload);
        });
    }
    let mut sasl = frame::SASL_HEADER.to_vec();
    frame::put(&mut sasl, FrameKind::Sasl, 0, |body| {
        let init = SaslInit {
            mechanism: "ANONYMOUS".into(),
            response: None,
        };
        init.write(body);
    });
    sasl.extend_from_slice(&plain);
    vec![plain, sasl]
}

/// Whole, valid inputs.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    const HEADER_BYTES: usize = crate::wire::frame::HEADER_BYTES;
    let text = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    match target.name {
        "intake" => {
            let frames = [wire("append"), wire("append-plain"), wire("renew"), wire("goodbye")];
            // Twice the same and two that follow each other, so that frames are joined.
            let mut following = wire("append");
            following[6] = 0;
            let mut joined = following.clone();
            following[HEADER_BYTES] += 2;
            joined.extend_from_slice(&following);
            [&frames[..], &[frames.concat(), joined]].concat()
        }
        "batch" => vec![[&[1, 0][..], &wire("append")[HEADER_BYTES..]].concat()],
        "plain" => vec![wire("append-plain")[HEADER_BYTES..].to_vec()],
        "control" => {
            let names = [
                "hello",
                "welcome",
                "goodbye",
                "renew",
                "renewed",
                "ack",
                "subscribe",
                "subscribed",
                "credit",
                "checkpoint",
                "checkpoint-stored",
                "failed",
                "request",
                "response",
                "ready",
                "commands-open",
                "command",
                "settle",
                "settled",
                "twin-open",
                "desired",
                "twin-get",
                "twin-document",
                "report",
                "reported",
                "methods-open",
                "invoke",
                "answer",
            ];
            let frames = (0u8..).zip(names);
            frames
                .map(|(which, name)| [&[which][..], &wire(name)[HEADER_BYTES..]].concat())
                .collect()
        }
        "stamp" => vec![wire("stamp")],
        "log-records" => vec![golden("log/1/p0000-1-records.hex"), golden("log/record-1.hex")],
        "log-segment" => {
            let mut segment = golden("log/1/p0000-1-head.hex");
            segment.resize(512, 0);
            segment.extend_from_slice(&golden("log/1/p0000-1-mark.hex"));
            segment.resize(4096, 0);
            segment.extend_from_slice(&golden("log/1/p0000-1-records.hex"));
            [0u8, 1].map(|how| [&[how][..], &segment].concat()).to_vec()
        }
        "amqp-connection" => amqp_connections(),
        "amqp-message" => {
            let member = sections(b"one");
            let mut batch = Vec::new();
            let mut writer = MessageWriter::new(&mut batch);
            (0..3).for_each(|_| writer.data(&member));
            vec![[&[0][..], &member].concat(), [&[1][..], &batch].concat()]
        }
        "mqtt-packet" => mqtt_packets(),
        "mqtt-topic" => text(&[
            "devices/d/messages/events/%24.mid=m%201&a&b=&c=x=y",
            "devices/d/modules/m/messages/events/?$.ct=application%2Fjson&level=high/",
            "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=7",
            "$iothub/methods/res/200/?$rid=1f",
            "$iothub/methods/POST/a%20b/#",
            "devices/d/messages/devicebound/#",
            "hub.example/d/m/?api-version=2021-04-12&DeviceClientType=a%2F1&model-id=dtmi%3Ax%3B1",
        ]),
        "amqp-address" => {
            let mut filter = Vec::new();
            Writer(&mut filter).map(1, |map| {
                map.symbol("apache.org:selector-filter:string");
                map.raw(&[0]);
                map.ulong(0x0000_468C_0000_0004);
                map.string("amqp.annotation.x-opt-offset > '12'");
            });
            let texts = text(&[
                "amqps://h:5671/devices/d%2B1/modules/m/messages/deviceBound",
                "forebay/ConsumerGroups/$Default/Partitions/3",
                "messages/serviceBound/feedback",
            ]);
            [texts, vec![filter]].concat()
        }
        "sas-token" => text(&[
            "SharedAccessSignature sr=hub.example%2Fdevices%2Fthermostat-7&sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&se=1766000000",
            "SharedAccessSignature sr=hub.example&sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&se=9999999999&skn=service",
        ]),
        "connection-string" => text(&[
            "HostName=h.example;DeviceId=d=1;ModuleId=m;SharedAccessKey=AAEC=",
            "HostName=h.example;DeviceId=d;SharedAccessSignature=SharedAccessSignature sr=x&sig=y&se=1",
            "HostName=h.example;GatewayHostName=gw;DeviceId=d;x509=true",
            "Endpoint=sb://h.example/;SharedAccessKeyName=service;SharedAccessKey=AA==;EntityPath=events",
        ]),
        "config" => {
            let short = "[identity]\nhost_names = [\"a.example\"]\npartition_count = 8\n[process]\n\
                         durability = { interval = \"10ms\" }\nsync_gap = \"1s\"\n[log]\nsegment_bytes = \"64MiB\"\n";
            let whole = crate::config::default_toml();
            text(&[
                short,
                &whole
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .collect::<Vec<_>>()
                    .join("\n"),
            ])
        }
        "query" => text(&[
            "SELECT * FROM devices WHERE deviceId IN ['a', \"b\"] AND NOT (tags.x <> 0x1F OR tags.[[y z]] NIN [-1, 2.5e3, null])",
            "SELECT TOP 5 COUNT() AS n, AVG(properties.reported.t), tags.a FROM devices.modules GROUP BY tags.a, tags.b",
            "select deviceId, status as s from devices.jobs where /* why */ is_defined(a.b) and a + 1 * -b.c % 2 < .5 ?? 'x' || '\\u0041\\''",
        ]),
        // A masked message in two fragments with a ping between, one of 200 bytes, a pong, a close with its reason.
        "websocket-frames" => {
            const MASK: &[u8] = &[0, 0, 0, 0];
            let parts = [
                &[0x02, 0x83][..],
                MASK,
                b"one",
                &[0x89, 0x81],
                MASK,
                b"p",
                &[0x80, 0x83],
                MASK,
                b"two",
                &[0x82, 0xfe, 0, 200],
                MASK,
                &[7; 200],
                &[0x8a, 0x80],
                MASK,
                &[0x88, 0x85],
                MASK,
                &[3, 0xe8],
                b"bye",
            ];
            let long = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 3][..], &[1, 2, 3, 4], b"abc"];
            vec![parts.concat(), long.concat()]
        }
        "websocket-handshake" => text(&["mqtt, AMQPWSB10,amqp", "dGhlIHNhbXBsZSBub25jZQ=="]),
        name => panic!("{name} has no seeds"),
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn fuzz(target: &Target, budget: Duration, seed: u64) -> u64 {
    let mut corpus = seeds(target);
    for (path, input) in saved(target) {
        let replayed = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        assert!(replayed.is_ok(), "saved input {} panics", path.display());
        corpus.push(input);
    }
    for input in &corpus {
        (target.run)(input);
    }
    let mut engine = Engine::new(seed, corpus);
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < budget {
        let input = engine.next_input();
        runs += 1;
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let name = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &input);
            let path = folder(target).join(format!("{name:08x}"));
            std::fs::create_dir_all(folder(target)).expect("a writable folder");
            std::fs::write(&path, &input).expect("a writable folder");
            panic!(
                "{} panics; seed {seed}, run {runs}, saved as {}",
                target.name,
                path.display()
            );
        }
    }
    runs
}

fn fuzz_named(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let budget = Duration::from_secs(number("FOREBAY_FUZZ_SECONDS", 1));
    let runs = fuzz(target, budget, number("FOREBAY_FUZZ_SEED", 1));
    println!("{name}: {runs} inputs");
}

macro_rules! targets {
    ($($test:ident = $name:literal;)*) => {
        $(#[test]
        fn $test() {
            fuzz_named($name);
        })*

        #[test]
        fn every_target_is_run() {
            assert!(TARGETS.iter().map(|target| target.name).eq([$($name),*]));
        }
    };
}

targets! {
    intake = "intake";
    batch = "batch";
    plain = "plain";
    control = "control";
    stamp = "stamp";
    log_records = "log-records";
    log_segment = "log-segment";
    sas_token = "sas-token";
    connection_string = "connection-string";
    config = "config";
    query = "query";
    amqp_connection = "amqp-connection";
    amqp_message = "amqp-message";
    amqp_address = "amqp-address";
    mqtt_packet = "mqtt-packet";
    mqtt_topic = "mqtt-topic";
    websocket_frames = "websocket-frames";
    websocket_handshake = "websocket-handshake";
}

#[test]
fn a_target_that_panics_is_found_and_a_seed_repeats_a_run() {
    let inputs = |seed| {
        let mut engine = Engine::new(seed, vec![b"an input of some length".to_vec(), b"another".to_vec()]);
        std::iter::repeat_with(|| engine.next_input())
            .take(500)
            .collect::<Vec<_>>()
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
    // A length field one too large: what a parser without a check would read past.
    let reads_past = |input: &[u8]| input.first().is_some_and(|&length| usize::from(length) >= input.len());
    assert!(inputs(7).iter().any(|input| reads_past(input)));
}
