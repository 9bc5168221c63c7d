//! The formats as they were published: bytes in `tests/golden/` must be read for ever, and what is written today must be
//! those bytes. The files were made by another implementation; one that changes is a break of the format, not an update.

#[path = "golden/amqp.rs"]
mod amqp;
#[path = "golden/mqtt.rs"]
mod mqtt;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use forebay::log::{Config, DiskStorage, Log, NewBatch, Start, records};
use forebay::model::{Message, SequenceNumber, SystemKey, UtcMillis, device_hash};
use forebay::wire::batch::{Batch, BatchBuilder, BatchLimits, Payload};
use forebay::wire::control::{
    Ack, Checkpoint, CheckpointStored, Control, Credit, Failed, From, Goodbye, Hello, Renew, Renewed, Request,
    Response, Role, Subscribe, Subscribed, Welcome,
};
use forebay::wire::device::{
    Answer, Command, CommandsOpen, Desired, Invoke, MethodsOpen, Outcome, Ready, Report, Reported, Settle, Settled,
    TwinDocument, TwinGet, TwinOpen,
};
use forebay::wire::frame::{Decoder, FLAG_SKIP, Frame, Kind, header};
use forebay::wire::stamp::{Origin, Stamp, StampTemplate};
use forebay::wire::{hint, plain};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The bytes of a commented hex file.
fn read(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    digits
        .map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: {byte} is no byte")))
        .collect()
}

/// The one frame of a file.
fn frame(name: &str) -> Frame {
    let mut decoder = Decoder::new(1 << 20);
    decoder.feed(read(name).into());
    let frame = decoder.poll_frame().expect("a valid header").expect("a whole frame");
    assert_eq!(decoder.buffered_bytes(), 0, "{name}: bytes behind the frame");
    frame
}

fn check<T: Control + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let name = format!("wire/{name}.hex");
    let frame = frame(&name);
    assert_eq!((frame.kind, frame.flags), (T::KIND, 0), "{name}");
    assert_eq!(
        &T::from_body(&frame.body).expect("a valid body"),
        value,
        "{name} is read"
    );
    assert_eq!(value.to_frame(), read(&name), "{name} is written");
}

#[test]
fn control_frames_of_a_session() {
    let token = "SharedAccessSignature sr=hub.example%2Fdevices%2Fthermostat-7&sig=c2lnbmF0dXJl&se=1766000000";
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        role: Role::Device,
        device_id: "thermostat-7".to_owned(),
        module_id: String::new(),
        token: token.to_owned(),
        epoch: 3,
        agent: "golden/1".to_owned(),
    };
    check("hello", &hello);
    let welcome = Welcome {
        version: 1,
        epoch: 3,
        last_sequence: 41,
        partition: 2,
        partition_count: 4,
        message_bytes_max: 262_144,
        batch_bytes_max: 1_048_576,
        batch_count_max: 4096,
        expires_ms: 1_766_000_300_000,
        durability: "sync".to_owned(),
    };
    check("welcome", &welcome);
    let goodbye = Goodbye {
        code: 1,
        retry_after_ms: 5000,
        reason: "the hub stops".to_owned(),
    };
    check("goodbye", &goodbye);
    let token = "SharedAccessSignature sr=hub".to_owned();
    check("renew", &Renew { token });
    let expires_ms = 1_766_003_600_000;
    check("renewed", &Renewed { expires_ms });
    let sequence = 0x0102_0304_0506_0708;
    check("ack", &Ack { sequence });
}

#[test]
fn control_frames_of_a_service() {
    let subscribe = Subscribe {
        partition: 3,
        group: "$Default".to_owned(),
        from: From::Sequence,
        value: 1000,
        owner_level: 1,
        owner: "reader-of-alerts".to_owned(),
        credit_bytes: 1_048_576,
    };
    check("subscribe", &subscribe);
    let subscribed = Subscribed {
        start: 1000,
        first_retained: 512,
        next: 2048,
    };
    check("subscribed", &subscribed);
    check("credit", &Credit { bytes: 65_536 });
    check("checkpoint", &Checkpoint { next: 1500 });
    check("checkpoint-stored", &CheckpointStored { next: 1500 });
    let failed = Failed {
        code: 404_001,
        reason: "no such device".to_owned(),
        next: 0,
    };
    check("failed", &failed);
    let request = Request {
        operation: "device.create".to_owned(),
        json: r#"{"deviceId":"thermostat-7"}"#.to_owned(),
    };
    check("request", &request);
    let response = Response {
        status: 200,
        code: 0,
        json: "{}".to_owned(),
    };
    check("response", &response);
}

#[test]
fn frames_of_a_devices_further_streams() {
    let lock_token: [u8; 16] = std::array::from_fn(|index| index as u8);
    check("ready", &Ready { window: 4 });
    check("commands-open", &CommandsOpen { window: 8 });
    let mut message = Vec::new();
    forebay::wire::message::encode_body(b"second", &mut message);
    let command = Command {
        lock_token,
        sequence: 7,
        delivery_count: 2,
        enqueued_ms: 1_766_000_000_000,
        expires_ms: 1_766_003_600_000,
        message,
    };
    check("command", &command);
    let outcome = Outcome::Abandon;
    check("settle", &Settle { lock_token, outcome });
    let settled = Settled {
        lock_token,
        code: 412_002,
        reason: "the lock is lost".to_owned(),
    };
    check("settled", &settled);
    check("twin-open", &TwinOpen { desired_seen: 5 });
    let desired = Desired {
        version: 6,
        is_complete: true,
        json: r#"{"period":30,"$version":6}"#.to_owned(),
    };
    check("desired", &desired);
    check("twin-get", &TwinGet { id: 1 });
    let document = TwinDocument {
        id: 1,
        code: 0,
        json: r#"{"desired":{"$version":6},"reported":{"$version":2}}"#.to_owned(),
    };
    check("twin-document", &document);
    let report = Report {
        id: 2,
        if_version: 2,
        json: r#"{"period":30}"#.to_owned(),
    };
    check("report", &report);
    let reported = Reported {
        id: 2,
        code: 0,
        version: 3,
        reason: String::new(),
    };
    check("reported", &reported);
    check("methods-open", &MethodsOpen { window: 4 });
    let invoke = Invoke {
        id: 9,
        name: "reboot".to_owned(),
        payload: r#"{"delay":5}"#.to_owned(),
        timeout_ms: 30_000,
    };
    check("invoke", &invoke);
    let answer = Answer {
        id: 9,
        status: 200,
        payload: "true".to_owned(),
    };
    check("answer", &answer);
}

fn messages() -> [Message; 2] {
    let first = Message::new(r#"{"t":21.5}"#)
        .system(SystemKey::MessageId, "m-1")
        .system(SystemKey::ContentType, "application/json")
        .property("alert", "true")
        .property("room", "küche");
    [first, Message::new("second")]
}

fn checked(body: &Bytes, flags: u16) -> Batch {
    let limits = BatchLimits {
        message_bytes_max: 1000,
        count_max: 10,
    };
    Batch::check(body, flags, &limits).expect("a valid batch")
}

fn assert_is_golden(batch: &Batch) {
    assert_eq!((batch.first_sequence, batch.count, batch.skip), (42, 2, true));
    let payload = Payload::new(&batch.payload, batch.count).expect("a valid payload");
    let read: Vec<_> = payload
        .messages()
        .map(|message| message.expect("valid").to_message())
        .collect();
    assert_eq!(read, messages());
}

#[test]
fn an_append_of_two_messages() {
    let frame = frame("wire/append.hex");
    assert_eq!((frame.kind, frame.flags), (Kind::Append, FLAG_SKIP));
    assert_is_golden(&checked(&frame.body, frame.flags));
    let mut builder = BatchBuilder::default();
    messages().iter().for_each(|message| builder.push(message));
    let mut written = Vec::new();
    builder.finish(42, true, &mut written);
    assert_eq!(written, read("wire/append.hex"));
    builder.push(&messages()[0]);
    builder.push_body(b"second");
    written.clear();
    builder.finish(42, true, &mut written);
    assert_eq!(
        written,
        read("wire/append.hex"),
        "a message that is only a body is the same either way"
    );
}

#[test]
fn a_plain_append_of_the_same_messages() {
    let plain = frame("wire/append-plain.hex");
    assert_eq!((plain.kind, plain.flags), (Kind::AppendPlain, FLAG_SKIP));
    let body = plain::transcode(&plain.body).expect("a valid body");
    assert_is_golden(&checked(&body, plain.flags));
    assert_eq!(body, frame("wire/append.hex").body);
    let mut body = plain.body[..16].to_vec();
    messages().iter().for_each(|message| plain::encode(message, &mut body));
    let written = [&header(Kind::AppendPlain, FLAG_SKIP, body.len())[..], &body].concat();
    assert_eq!(written, read("wire/append-plain.hex"));
}

fn origin() -> Origin {
    Origin {
        device_id: "thermostat-7".to_owned(),
        module_id: String::new(),
        generation: 637_540_164_221_770_949,
        epoch: 3,
        auth_method: r#"{"scope":"device","type":"sas","issuer":"iothub"}"#.to_owned(),
    }
}

#[test]
fn a_stamp() {
    let bytes = read("wire/stamp.hex");
    let stamp = Stamp::read(&bytes).expect("a valid stamp");
    let expected = Stamp {
        first_sequence: 42,
        origin: origin(),
    };
    assert_eq!(stamp, expected);
    assert_eq!(StampTemplate::new(&origin()).with(42), bytes);
}

#[test]
fn a_placement_hint() {
    let bytes = read("wire/hint.hex");
    assert_eq!(hint::decode(&bytes), Some(device_hash("thermostat-7")));
    assert_eq!(
        hint::encode(device_hash("thermostat-7"), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[..],
        bytes
    );
}

/// A log directory that is removed when the test is done.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forebay-golden-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("p0000")).expect("a folder for the test");
        Self(path)
    }

    fn open(&self) -> (Log<DiskStorage>, forebay::log::Appender<DiskStorage>, u64) {
        let config = Config {
            segment_bytes: 1 << 20,
            ..Config::default()
        };
        let opened = Log::open(DiskStorage::new(&self.0), 1, config, UtcMillis(0));
        let (log, mut appenders, recovered) = opened.expect("files of this format open for ever");
        assert_eq!(recovered[0].damage, None);
        let records = recovered[0].records;
        (log, appenders.remove(0), records)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `log/1/` has the files of a log of format 1, without the zeros that fill its segments.
fn past_log(name: &str) -> Directory {
    let directory = Directory::new(name);
    std::fs::copy(folder().join("log/1/format"), directory.0.join("format")).expect("the file is there");
    let mut segment = vec![0; 1 << 20];
    let head = read("log/1/p0000-1-head.hex");
    segment[..head.len()].copy_from_slice(&head);
    let mark = read("log/1/p0000-1-mark.hex");
    segment[512..512 + mark.len()].copy_from_slice(&mark);
    let records = read("log/1/p0000-1-records.hex");
    segment[4096..4096 + records.len()].copy_from_slice(&records);
    std::fs::write(directory.0.join("p0000/0000000000000001.seg"), segment).expect("room for a segment");
    directory
}

type Read = (u64, u32, i64, Vec<u8>, Vec<u8>);

fn read_log(view: &Arc<forebay::log::PartitionView<DiskStorage>>) -> Vec<Read> {
    let mut cursor = view.cursor(Start::Earliest).expect("the start is there");
    let mut all = Vec::new();
    while let Some(chunk) = cursor.read(1 << 20).expect("readable") {
        for record in records(&chunk.bytes) {
            let record = record.expect("well formed");
            assert!(record.is_intact());
            let header = record.header;
            let (stamp, payload) = (record.stamp.to_vec(), record.payload.to_vec());
            all.push((header.first.0, header.count, header.enqueued_time.0, stamp, payload));
        }
    }
    all
}

#[test]
fn a_log_of_format_1_opens_and_goes_on() {
    let directory = past_log("opens");
    let payload = frame("wire/append.hex").body[16..].to_vec();
    let expected = [
        (0, 2, 1_766_000_000_000, read("wire/stamp.hex"), payload.clone()),
        (2, 2, 1_766_000_000_500, read("wire/stamp.hex"), payload),
    ];
    let (log, mut appender, records) = directory.open();
    assert_eq!((records, log.incarnation()), (4, 4));
    assert_eq!(read_log(appender.view()), expected);
    let batch = NewBatch {
        stamp: b"stamp",
        payload: b"payload",
        count: 1,
        enqueued_time: UtcMillis(1_766_000_001_000),
    };
    assert_eq!(appender.append(&batch).expect("room").first, SequenceNumber(4));
    appender.view().sync().expect("a working disk");
    drop((log, appender));
    let (_log, appender, records) = directory.open();
    assert_eq!(records, 5);
    assert_eq!(read_log(appender.view())[..2], expected);
}

/// The same appends write the same bytes today.
#[test]
fn a_log_of_format_1_is_still_written() {
    let directory = Directory::new("writes");
    for _ in 0..2 {
        directory.open();
    }
    let (log, mut appender, _) = directory.open();
    let payload = frame("wire/append.hex").body[16..].to_vec();
    for enqueued_ms in [1_766_000_000_000, 1_766_000_000_500] {
        let batch = NewBatch {
            stamp: &read("wire/stamp.hex"),
            payload: &payload,
            count: 2,
            enqueued_time: UtcMillis(enqueued_ms),
        };
        appender.append(&batch).expect("room");
    }
    appender.view().sync().expect("a working disk");
    drop((log, appender));
    let segment = std::fs::read(directory.0.join("p0000/0000000000000001.seg")).expect("the first segment");
    let records = read("log/1/p0000-1-records.hex");
    assert_eq!(segment[4096..4096 + records.len()], records);
    assert_eq!(
        std::fs::read(directory.0.join("format")).expect("written at the start"),
        std::fs::read(folder().join("log/1/format")).expect("the file is there")
    );
}
