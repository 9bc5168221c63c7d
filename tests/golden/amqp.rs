//! AMQP as other encoders write it: `amqp/<what>.<encoder>.hex`, by rhea (JavaScript), the Event Hubs SDK's own encoder
//! (`pyamqp`, Python) and uamqp (C). What they say must be read, in whichever of the standard's forms.
//!
//! `rhea-full` vectors have every field that the hub writes, in the forms that it writes: there it must give these bytes.

use bytes::{Bytes, BytesMut};
use forebay::proto::amqp::error::{Condition, Error, Info};
use forebay::proto::amqp::frame::{self, Frame, FrameKind, SASL_HEADER};
use forebay::proto::amqp::message::{BATCH_FORMAT, Body, Id, Message, MessageWriter, Properties};
use forebay::proto::amqp::performative::{
    Attach, Begin, DeliveryState, Detach, Disposition, Flow, Open, Performative, ReceiverSettles, Role, SaslFrame,
    SaslInit, SenderSettles, Terminus, Transfer,
};
use forebay::proto::amqp::selector::{Position, Selector};
use forebay::proto::amqp::value::{Compound, Reader, Value, Writer};
use forebay::proto::amqp::{Connection, Event, Limits};

/// Those that take part in most vectors.
const BOTH: &[&str] = &["rhea", "pyamqp"];
const ALL: &[&str] = &["rhea", "pyamqp", "rhea-full"];
const UUID: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];

fn vector(what: &str, encoder: &str) -> (String, Vec<u8>) {
    let name = format!("amqp/{what}.{encoder}.hex");
    let bytes = super::read(&name);
    (name, bytes)
}

/// What the hub makes of a value that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    /// The same bytes.
    Same,
    /// Another form of the same value.
    Otherwise,
    Never,
}

use Written::{Never, Otherwise, Same};

fn write(value: &Value<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer(&mut bytes);
    match value {
        Value::Null => writer.null(),
        Value::Bool(value) => writer.boolean(*value),
        Value::Ubyte(value) => writer.ubyte(*value),
        Value::Ushort(value) => writer.ushort(*value),
        Value::Uint(value) => writer.uint(*value),
        Value::Ulong(value) => writer.ulong(*value),
        Value::Int(value) => writer.int(*value),
        Value::Long(value) => writer.long(*value),
        Value::Double(value) => writer.double(*value),
        Value::Timestamp(value) => writer.timestamp(*value),
        Value::Uuid(value) => writer.uuid(value),
        Value::Binary(value) => writer.binary(value),
        Value::String(value) => writer.string(value),
        Value::Symbol(value) => writer.symbol(value),
        other => panic!("{other:?} is not written"),
    }
    bytes
}

/// A file of values, one behind the other.
fn check_values(what: &str, encoders: &[&str], expected: &[(Value<'_>, Written)]) {
    for encoder in encoders {
        let (name, bytes) = vector(what, encoder);
        let mut reader = Reader::new(&bytes);
        for (value, written) in expected {
            let mut whole = reader.clone();
            let read = reader
                .value()
                .unwrap_or_else(|error| panic!("{name}: {value:?}: {error}"));
            assert_eq!(&read, value, "{name}");
            // Numbers may be equal and differ in their sign: zeros.
            assert_eq!(format!("{read:?}"), format!("{value:?}"), "{name}");
            let raw = whole.raw().expect("it was read");
            assert_eq!(whole.rest(), reader.rest(), "{name}: {value:?} ends in one place");
            match written {
                Same => assert_eq!(write(value), raw, "{name}: {value:?}"),
                Otherwise => {
                    let other = write(value);
                    assert_ne!(other, raw, "{name}: {value:?} is a canonical form");
                    assert_eq!(Reader::new(&other).value().as_ref(), Ok(value), "{name}");
                }
                Never => {}
            }
        }
        assert!(reader.is_empty(), "{name}: {} bytes more", reader.rest().len());
    }
}

#[test]
fn values_of_fixed_width() {
    let expected = [
        (Value::Null, Same),
        (Value::Bool(true), Same),
        (Value::Bool(false), Same),
        (Value::Bool(true), Otherwise),
        (Value::Bool(false), Otherwise),
        (Value::Ubyte(0), Same),
        (Value::Ubyte(255), Same),
        (Value::Byte(-128), Never),
        (Value::Byte(127), Never),
        (Value::Ushort(0), Same),
        (Value::Ushort(65535), Same),
        (Value::Short(-32768), Never),
        (Value::Short(32767), Never),
        (Value::Uint(0), Same),
        (Value::Uint(1), Same),
        (Value::Uint(255), Same),
        (Value::Uint(256), Same),
        (Value::Uint(u32::MAX), Same),
        (Value::Ulong(0), Same),
        (Value::Ulong(1), Same),
        (Value::Ulong(255), Same),
        (Value::Ulong(256), Same),
        (Value::Ulong(u64::MAX), Same),
        (Value::Int(0), Otherwise),
        (Value::Int(-128), Otherwise),
        (Value::Int(127), Otherwise),
        (Value::Int(-129), Same),
        (Value::Int(128), Same),
        (Value::Int(i32::MIN), Same),
        (Value::Int(i32::MAX), Same),
        (Value::Long(0), Otherwise),
        (Value::Long(-128), Otherwise),
        (Value::Long(127), Otherwise),
        (Value::Long(-129), Same),
        (Value::Long(128), Same),
        (Value::Long(i64::MIN), Same),
        (Value::Long(i64::MAX), Same),
        (Value::Uint(1), Otherwise),
        (Value::Ulong(1), Otherwise),
        (Value::Int(-1), Same),
        (Value::Long(-1), Same),
        (Value::Float(1.5), Never),
        (Value::Float(-0.0), Never),
        (Value::Float(f32::INFINITY), Never),
        (Value::Double(0.1), Same),
        (Value::Double(-1e300), Same),
        (Value::Double(f64::NEG_INFINITY), Same),
        (Value::Timestamp(0), Same),
        (Value::Timestamp(-1), Same),
        (Value::Timestamp(1_766_000_000_123), Same),
        (Value::Uuid(UUID), Same),
    ];
    check_values("scalars", BOTH, &expected);
    let chars = [(Value::Char(0x61), Never), (Value::Char(0x1_f600), Never)];
    check_values("char", &["rhea"], &chars);
    let decimals = [
        (Value::Decimal(&[1, 2, 3, 4]), Never),
        (Value::Decimal(&[1, 2, 3, 4, 5, 6, 7, 8]), Never),
        (Value::Decimal(&UUID), Never),
    ];
    check_values("decimals", &["rhea"], &decimals);
    // 1,234,567,890 times 10 to the power of -3, with the bias of 6176 (IEEE 754, decimal128).
    let decimal = (1_234_567_890_u128 | (6176 - 3) << 113).to_be_bytes();
    check_values("decimal128", &["pyamqp"], &[(Value::Decimal(&decimal), Never)]);
}

#[test]
fn values_of_variable_width() {
    let (a, s) = ("a".repeat(256), "s".repeat(256));
    let expected = [
        (Value::Binary(&[]), Same),
        (Value::Binary(&[0, 0xff]), Same),
        (Value::Binary(&[7; 255]), Same),
        (Value::Binary(&[7; 256]), Same),
        (Value::Binary(&[]), Otherwise),
        (Value::Binary(&[0, 0xff]), Otherwise),
        (Value::String(""), Same),
        (Value::String("tür €"), Same),
        (Value::String(&a[1..]), Same),
        (Value::String(&a), Same),
        (Value::String(""), Otherwise),
        (Value::String("tür €"), Otherwise),
        (Value::Symbol(""), Same),
        (Value::Symbol("a:b"), Same),
        (Value::Symbol(&s[1..]), Same),
        (Value::Symbol(&s), Same),
        (Value::Symbol(""), Otherwise),
        (Value::Symbol("a:b"), Otherwise),
    ];
    check_values("texts", BOTH, &expected);
}

/// A value with all that is inside it.
fn show(value: &Value<'_>) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::List(list) => format!("[{}]", joined(values(list).iter().map(show).collect())),
        Value::Map(map) => format!("{{{}}}", pairs(map).join(", ")),
        Value::Array(array) => {
            let inside: Vec<_> = array.values().map(|value| show(&value.expect("a value"))).collect();
            assert_eq!(inside.len(), array.count as usize);
            format!("<{}>", joined(inside))
        }
        Value::Described(described) => format!(
            "{} @ {}",
            show(&described.descriptor().expect("a descriptor")),
            show(&described.value().expect("a value"))
        ),
        scalar => format!("{scalar:?}"),
    }
}

fn values<'a>(compound: &Compound<'a>) -> Vec<Value<'a>> {
    let values: Vec<_> = compound.values().map(|value| value.expect("a value")).collect();
    assert_eq!(values.len(), compound.count as usize);
    values
}

fn pairs(map: &Compound<'_>) -> Vec<String> {
    let pairs = map.pairs().map(|pair| pair.expect("a pair"));
    pairs
        .map(|(key, value)| format!("{} = {}", show(&key), show(&value)))
        .collect()
}

#[test]
fn values_with_values_inside() {
    let list = r#"[Uint(1), String("two"), [Bool(true)]]"#;
    let map = r#"{Symbol("a") = Uint(7), String("b") = <Symbol("x"), Symbol("yz")>}"#;
    let array = r#"<Symbol("x"), Symbol("yz")>"#;
    let expected = [
        "[]",
        list,
        list,
        "[]",
        map,
        map,
        "{}",
        array,
        array,
        "<Uint(1), Uint(4294967295)>",
        "Ulong(36) @ []",
        // 0x0000468c_00000004: the selector filter, as a number.
        r#"Ulong(77567109365764) @ String("s")"#,
        r#"Symbol("apache.org:selector-filter:string") @ String("s")"#,
    ];
    for encoder in BOTH {
        let (name, bytes) = vector("compounds", encoder);
        let mut reader = Reader::new(&bytes);
        let mut raws = Vec::new();
        for expected in expected {
            raws.push(reader.clone().raw().expect("a value"));
            let value = reader
                .value()
                .unwrap_or_else(|error| panic!("{name}: {expected}: {error}"));
            assert_eq!(show(&value), expected, "{name}");
        }
        assert!(reader.is_empty(), "{name}");
        let written = |write: &dyn Fn(&mut Writer<'_>)| {
            let mut bytes = Vec::new();
            write(&mut Writer(&mut bytes));
            bytes
        };
        assert_eq!(written(&|writer| writer.list(0, |_| ())), raws[3], "{name}");
        assert_eq!(written(&|writer| writer.symbols(&["x", "yz"])), raws[8], "{name}");
        let mine = written(&|writer| {
            writer.map(2, |map| {
                map.symbol("a");
                map.uint(7);
                map.string("b");
                map.raw(raws[7]);
            });
        });
        assert_eq!(mine, raws[5], "{name}");
    }
}

/// The one frame of a file.
fn take(name: &str, bytes: &[u8]) -> Frame {
    let mut input = BytesMut::from(bytes);
    let frame = frame::take(&mut input, 4096)
        .expect("a valid header")
        .expect("a whole frame");
    assert!(input.is_empty(), "{name}: bytes behind the frame");
    frame
}

fn read<'a>(name: &str, channel: u16, frame: &'a Frame) -> (Performative, &'a [u8]) {
    assert_eq!((frame.kind, frame.channel), (FrameKind::Amqp, channel), "{name}");
    Performative::read(&frame.body).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn frame_of(channel: u16, performative: &Performative, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::put(&mut bytes, FrameKind::Amqp, channel, |body| {
        performative.write(body);
        body.extend(payload);
    });
    bytes
}

/// Every encoder's frame says `expected`, and so does ours.
fn check(what: &str, encoders: &[&str], channel: u16, expected: &Performative, payload: &[u8]) {
    for encoder in encoders {
        let (name, bytes) = vector(what, encoder);
        let frame = take(&name, &bytes);
        assert_eq!(read(&name, channel, &frame), (expected.clone(), payload), "{name}");
    }
    let mine = take(what, &frame_of(channel, expected, payload));
    assert_eq!(
        read(what, channel, &mine),
        (expected.clone(), payload),
        "{what} is written"
    );
}

fn check_written(what: &str, channel: u16, performative: &Performative, payload: &[u8]) {
    let (name, bytes) = vector(what, "rhea-full");
    assert_eq!(frame_of(channel, performative, payload), bytes, "{name}");
}

/// Read from every encoder, and written as the full vector stands.
fn check_all(what: &str, channel: u16, performative: &Performative, payload: &[u8]) {
    check(what, ALL, channel, performative, payload);
    check_written(what, channel, performative, payload);
}

#[test]
fn connections_and_sessions_begin() {
    let open = Open {
        container_id: "reader-1".to_owned(),
        hostname: Some("hub.example".to_owned()),
        max_frame_size: 65_536,
        channel_max: 255,
        idle_timeout_ms: Some(240_000),
    };
    check_all("open", 0, &Performative::Open(open), b"");
    // AMQP 1.0 s2.7.1: the defaults.
    let open = Open {
        container_id: "reader-1".to_owned(),
        hostname: None,
        max_frame_size: u32::MAX,
        channel_max: u16::MAX,
        idle_timeout_ms: None,
    };
    check("open-least", BOTH, 0, &Performative::Open(open), b"");
    let begin = Begin {
        remote_channel: Some(7),
        next_outgoing_id: 1,
        incoming_window: 5000,
        outgoing_window: u32::MAX,
        handle_max: 255,
    };
    check_all("begin", 3, &Performative::Begin(begin), b"");
    let begin = Begin {
        remote_channel: None,
        handle_max: u32::MAX,
        ..begin
    };
    check("begin-least", BOTH, u16::MAX, &Performative::Begin(begin), b"");
    for encoder in BOTH {
        let (name, bytes) = vector("heartbeat", encoder);
        let frame = take(&name, &bytes);
        assert_eq!(
            (frame.kind, frame.channel, frame.body),
            (FrameKind::Amqp, 0, Bytes::new())
        );
    }
}

fn read_attach(name: &str, channel: u16, bytes: &[u8]) -> Attach {
    match read(name, channel, &take(name, bytes)) {
        (Performative::Attach(attach), b"") => *attach,
        other => panic!("{name}: {other:?}"),
    }
}

/// What is kept as it came: encoders differ in it.
fn take_raw(attach: &mut Attach) -> (Option<Bytes>, Option<Bytes>) {
    let filter = attach.source.as_mut().and_then(|source| source.filter.take());
    (filter, attach.properties.take())
}

#[test]
fn a_receiver_of_events_attaches() {
    let partition = "amqps://hub.example:5671/forebay/ConsumerGroups/$Default/Partitions/0";
    let expected = Attach {
        name: "receiver-0".to_owned(),
        handle: 1,
        role: Role::Receiver,
        sender_settles: SenderSettles::Unsettled,
        receiver_settles: ReceiverSettles::First,
        source: Some(Terminus::new(partition)),
        target: Some(Terminus::new("client")),
        initial_delivery_count: None,
        max_message_size: Some(1_048_576),
        offered_capabilities: Vec::new(),
        desired_capabilities: vec!["com.microsoft:enable-receiver-runtime-metric".to_owned()],
        properties: None,
    };
    for encoder in ALL {
        let (name, bytes) = vector("attach-receiver", encoder);
        let mut attach = read_attach(&name, 1, &bytes);
        assert_eq!(attach.address(), Some(partition), "{name}");
        assert_eq!(attach.property("com.microsoft:epoch"), Some(Value::Long(3)), "{name}");
        assert_eq!(attach.property("com.microsoft:timeout"), Some(Value::Long(60_000)));
        let mine = frame_of(1, &Performative::Attach(Box::new(attach.clone())), b"");
        if *encoder == "rhea-full" {
            assert_eq!(mine, bytes, "{name}");
        }
        assert_eq!(read_attach(&name, 1, &mine), attach, "{name}");
        let (filter, _) = take_raw(&mut attach);
        assert_eq!(attach, expected, "{name}");
        let latest = Selector {
            position: Position::Latest,
            is_inclusive: false,
        };
        assert_eq!(Selector::read(filter.as_deref()), Ok(latest), "{name}");
    }
}

#[test]
fn a_sender_attaches() {
    let expected = Attach {
        name: "sender-0".to_owned(),
        handle: u32::MAX,
        role: Role::Sender,
        sender_settles: SenderSettles::Settled,
        receiver_settles: ReceiverSettles::Second,
        source: Some(Terminus::new("client")),
        target: Some(Terminus::new("/devices/thermostat-7/messages/events")),
        initial_delivery_count: Some(4),
        max_message_size: Some(u64::MAX),
        offered_capabilities: vec!["a".to_owned()],
        desired_capabilities: vec!["b".to_owned(), "c".to_owned()],
        properties: None,
    };
    for encoder in BOTH {
        let (name, bytes) = vector("attach-sender", encoder);
        let mut attach = read_attach(&name, 0, &bytes);
        assert_eq!(
            attach.address(),
            Some("/devices/thermostat-7/messages/events"),
            "{name}"
        );
        assert_eq!(
            attach.property("com.microsoft:client-version"),
            Some(Value::String("golden/1")),
            "{name}"
        );
        let mine = frame_of(0, &Performative::Attach(Box::new(attach.clone())), b"");
        assert_eq!(read_attach(&name, 0, &mine), attach, "{name}");
        let (filter, _) = take_raw(&mut attach);
        assert_eq!(attach, expected, "{name}");
        let everything = Selector {
            position: Position::Earliest,
            is_inclusive: true,
        };
        assert_eq!(Selector::read(filter.as_deref()), Ok(everything), "{name}");
    }
}

#[test]
fn credit_flows() {
    let session = Flow {
        next_incoming_id: Some(5),
        incoming_window: 5000,
        next_outgoing_id: 9,
        outgoing_window: 2048,
        echo: true,
        ..Flow::default()
    };
    check_all("flow-session", 0, &Performative::Flow(session), b"");
    let link = Flow {
        handle: Some(1),
        delivery_count: Some(12),
        link_credit: Some(300),
        available: Some(2),
        drain: true,
        echo: false,
        ..session
    };
    check_all("flow-link", 0, &Performative::Flow(link), b"");
}

#[test]
fn deliveries_are_transferred() {
    let first = Transfer {
        handle: 2,
        delivery_id: Some(7),
        delivery_tag: Some(Bytes::from_static(&[0, 0, 0, 7])),
        message_format: Some(BATCH_FORMAT),
        settled: Some(false),
        more: true,
        aborted: false,
    };
    check_all("transfer-first", 0, &Performative::Transfer(first), b"first part, ");
    let last = Transfer {
        handle: 2,
        ..Transfer::default()
    };
    check_all("transfer-last", 0, &Performative::Transfer(last), b"last part");
    let aborted = Transfer {
        handle: 2,
        delivery_id: Some(8),
        settled: Some(true),
        aborted: true,
        ..Transfer::default()
    };
    check_all("transfer-aborted", 0, &Performative::Transfer(aborted), b"");
}

#[test]
fn deliveries_are_settled() {
    let of = |state| {
        Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: 3,
            last: 300,
            settled: true,
            state: Some(state),
        })
    };
    let modified = DeliveryState::Modified {
        failed: true,
        undeliverable: true,
    };
    check_all("disposition-accepted", 0, &of(DeliveryState::Accepted), b"");
    check_all("disposition-released", 0, &of(DeliveryState::Released), b"");
    check_all("disposition-modified", 0, &of(modified), b"");
    check("disposition-received", BOTH, 0, &of(DeliveryState::Received), b"");
    let error = Error::new(Condition::NOT_FOUND, "no such device");
    let rejected = DeliveryState::Rejected(Some(error.clone()));
    check("disposition-rejected", ALL, 0, &of(rejected), b"");
    let rejected = DeliveryState::Rejected(Some(error.with("status", Info::Int(404))));
    check_written("disposition-rejected", 0, &of(rejected), b"");
    let least = Disposition {
        role: Role::Sender,
        first: 3,
        // AMQP 1.0 s2.7.6: the same as the first.
        last: 3,
        settled: false,
        state: None,
    };
    check("disposition-least", BOTH, 0, &Performative::Disposition(least), b"");
}

#[test]
fn links_sessions_and_connections_end() {
    let error = Error::new(Condition::STOLEN, "a reader with a higher epoch");
    let detach = |error| {
        Performative::Detach(Detach {
            handle: 1,
            closed: true,
            error: Some(error),
        })
    };
    check("detach-error", ALL, 0, &detach(error.clone()), b"");
    let error = error.with("com.microsoft:tracking", Info::Text("t-1".to_owned()));
    check_written("detach-error", 0, &detach(error), b"");
    let least = Detach {
        handle: 1,
        closed: false,
        error: None,
    };
    check_all("detach-least", 0, &Performative::Detach(least), b"");
    check_all("end", 0, &Performative::End(None), b"");
    let error = Error::new(Condition::WINDOW_VIOLATION, "too many");
    check_all("end-error", 0, &Performative::End(Some(error)), b"");
    check_all("close", 0, &Performative::Close(None), b"");
    let error = Error::new(Condition::new("com.example:tired"), "");
    assert_eq!(error.condition.label(), "other");
    check("close-error", BOTH, 0, &Performative::Close(Some(error)), b"");
}

const MECHANISMS: &[&str] = &["MSSBCBS", "PLAIN", "EXTERNAL"];

fn sasl_body(what: &str, encoder: &str) -> Bytes {
    let (name, bytes) = vector(what, encoder);
    let frame = take(&name, &bytes);
    assert_eq!(frame.kind, FrameKind::Sasl, "{name}");
    frame.body
}

#[test]
fn sasl_of_a_client() {
    let plain = SaslInit {
        mechanism: "PLAIN".to_owned(),
        response: Some(Bytes::from_static(
            b"\0thermostat-7@sas.hub\0SharedAccessSignature sr=hub",
        )),
    };
    let mssbcbs = SaslInit {
        mechanism: "MSSBCBS".to_owned(),
        response: None,
    };
    for (what, init) in [("sasl-init-plain", plain), ("sasl-init-mssbcbs", mssbcbs)] {
        for encoder in ALL {
            assert_eq!(
                SaslInit::read(&sasl_body(what, encoder)).as_ref(),
                Ok(&init),
                "{what}.{encoder}"
            );
        }
        let mut bytes = Vec::new();
        frame::put(&mut bytes, FrameKind::Sasl, 0, |body| init.write(body));
        assert_eq!(bytes, vector(what, "rhea-full").1, "{what} is written");
    }
}

#[test]
fn sasl_of_a_server() {
    for encoder in ALL {
        let offered = MECHANISMS.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(
            SaslFrame::read(&sasl_body("sasl-mechanisms", encoder)),
            Ok(SaslFrame::Mechanisms(offered)),
            "{encoder}"
        );
        for (what, is_ok) in [("sasl-outcome-ok", true), ("sasl-outcome-auth", false)] {
            let outcome = SaslFrame::read(&sasl_body(what, encoder));
            assert_eq!(outcome, Ok(SaslFrame::Outcome { is_ok }), "{what}.{encoder}");
        }
    }
    let one = SaslFrame::read(&sasl_body("sasl-mechanisms-one", "rhea"));
    assert_eq!(one, Ok(SaslFrame::Mechanisms(vec!["PLAIN".to_owned()])));
}

/// The server's SASL frames are written by a connection.
#[test]
fn a_connection_answers_sasl() {
    for (what, is_ok) in [("sasl-outcome-ok", true), ("sasl-outcome-auth", false)] {
        let mut connection = Connection::new(Limits {
            container_id: "hub".to_owned(),
            mechanisms: MECHANISMS,
            frame_bytes_max: 65_536,
            sessions_max: 1,
            links_max: 1,
            session_window: 1,
            message_bytes_max: 1000,
            assembling_bytes_max: 1000,
            idle_timeout_ms: 60_000,
        });
        connection.input().extend_from_slice(&SASL_HEADER);
        connection
            .input()
            .extend_from_slice(&vector("sasl-init-plain", "pyamqp").1);
        let Some(Event::Sasl(init)) = connection.poll_event() else {
            panic!("a client's SASL frame was put in");
        };
        assert_eq!(init.mechanism, "PLAIN");
        connection.sasl_outcome(is_ok);
        let mechanisms = vector("sasl-mechanisms", "rhea-full").1;
        let outcome = vector(what, "rhea-full").1;
        assert_eq!(
            connection.output()[..],
            [&SASL_HEADER[..], &mechanisms, &outcome].concat()
        );
    }
}

const TO: &str = "/devices/thermostat-7/messages/devicebound";
const MESSAGE_ID: Id<'_> = Id::Raw(&[0xa1, 3, b'm', b'-', b'1']);
const CORRELATION_ID: Id<'_> = Id::Raw(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);

fn properties() -> Properties<'static> {
    Properties {
        message_id: Some(MESSAGE_ID),
        user_id: Some(b"service"),
        to: Some(TO),
        subject: Some("subject"),
        reply_to: Some("answers"),
        correlation_id: Some(CORRELATION_ID),
        content_type: Some("application/json"),
        content_encoding: Some("utf-8"),
        absolute_expiry_time: Some(1_766_000_600_123),
        creation_time: Some(1_766_000_000_123),
    }
}

#[test]
fn messages_of_data() {
    let annotations = [
        r#"Symbol("x-opt-sequence-number") = Long(41)"#,
        r#"Symbol("x-opt-offset") = String("4096")"#,
        r#"Symbol("x-opt-enqueued-time") = Timestamp(1766000000456)"#,
    ];
    let application_properties = [
        r#"String("alert") = String("true")"#,
        r#"String("room") = String("küche")"#,
        r#"String("level") = Uint(300)"#,
    ];
    for encoder in ALL {
        let (name, bytes) = vector("message-data", encoder);
        let message = Message::read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(pairs(&message.annotations.expect("there")), annotations, "{name}");
        assert_eq!(message.properties, properties(), "{name}");
        let read = message.application_properties.expect("there");
        assert_eq!(pairs(&read), application_properties, "{name}");
        assert_eq!(message.application_property("level"), Some(Value::Uint(300)), "{name}");
        assert_eq!(message.body, Body::Data(vec![b"one", b""]), "{name}");
    }
    assert_eq!(MESSAGE_ID.to_text().as_deref(), Some("m-1"));
    assert_eq!(CORRELATION_ID.to_text().as_deref(), Some("18446744073709551615"));
    // The C library leaves out what is not set, so its list of properties is a short one.
    let (name, bytes) = vector("message-data", "uamqp");
    let message = Message::read(&bytes).expect("a message");
    assert_eq!(pairs(&message.annotations.expect("there")), annotations[..1], "{name}");
    let expected = Properties {
        message_id: Some(MESSAGE_ID),
        user_id: Some(b"service"),
        to: Some(TO),
        correlation_id: Some(CORRELATION_ID),
        ..Properties::default()
    };
    assert_eq!(message.properties, expected, "{name}");
    let read = message.application_properties.expect("there");
    assert_eq!(
        pairs(&read),
        [application_properties[0], application_properties[2]],
        "{name}"
    );
    assert_eq!(message.body, Body::Data(vec![b"one", b""]), "{name}");
}

#[test]
fn a_message_of_data_is_written() {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.delivery_annotations(1, |map| {
        map.symbol("last_enqueued_sequence_number");
        map.long(40);
    });
    writer.annotations(3, |map| {
        map.symbol("x-opt-sequence-number");
        map.long(41);
        map.symbol("x-opt-offset");
        map.string("4096");
        map.symbol("x-opt-enqueued-time");
        map.timestamp(1_766_000_000_456);
    });
    writer.properties(&Properties {
        message_id: Some(Id::Text("m-1")),
        ..properties()
    });
    writer.application_properties(3, |map| {
        for (key, value) in [("alert", "true"), ("room", "küche")] {
            map.string(key);
            map.string(value);
        }
        map.string("level");
        map.uint(300);
    });
    writer.data(b"one");
    writer.data(b"");
    // rhea writes a header also where nothing is set in it; the hub writes none.
    const EMPTY_HEADER: [u8; 4] = [0x00, 0x53, 0x70, 0x45];
    let (name, vector) = vector("message-data", "rhea-full");
    assert_eq!([&EMPTY_HEADER[..], &bytes].concat(), vector, "{name}");
}

#[test]
fn messages_of_values() {
    for encoder in BOTH {
        let (name, bytes) = vector("message-value", encoder);
        let message = Message::read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let uuid = message.properties.message_id.expect("there");
        assert_eq!(
            uuid.to_text().as_deref(),
            Some("00112233-4455-6677-8899-aabbccddeeff"),
            "{name}"
        );
        let binary = Id::Raw(&[0xa0, 3, b'c', b'-', 0xff]);
        let expected = Properties {
            message_id: Some(uuid),
            correlation_id: Some(binary),
            ..Properties::default()
        };
        assert_eq!(message.properties, expected, "{name}");
        assert_eq!(binary.to_text(), None, "it is not UTF-8");
        assert_eq!((message.annotations, message.application_properties), (None, None));
        let Body::Value(value) = message.body else {
            panic!("{name}: {:?}", message.body);
        };
        assert_eq!(show(&value), r#"{String("a") = [Uint(1), String("two")]}"#, "{name}");
        let mut mine = Vec::new();
        let mut writer = MessageWriter::new(&mut mine);
        writer.properties(&message.properties);
        writer.value(|writer| {
            writer.map(1, |map| {
                map.string("a");
                map.list(2, |list| {
                    list.uint(1);
                    list.string("two");
                });
            });
        });
        let mine = Message::read(&mine).expect("a message");
        assert_eq!(mine.properties, expected, "{name}");
        assert!(
            matches!(mine.body, Body::Value(mine) if show(&mine) == show(&value)),
            "{name}"
        );
        let (name, bytes) = vector("message-sequence", encoder);
        let message = Message::read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(message.body, Body::Sequence, "{name}");
    }
}

/// A vector that no test names is checked by nobody.
#[test]
fn every_vector_has_a_test() {
    let source = include_str!("amqp.rs");
    for entry in std::fs::read_dir(super::folder().join("amqp")).expect("the folder is there") {
        let name = entry
            .expect("readable")
            .file_name()
            .into_string()
            .expect("a plain name");
        let Some(stem) = name.strip_suffix(".hex") else {
            continue;
        };
        let (what, encoder) = stem.split_once('.').expect("what and by whom");
        assert!(source.contains(&format!("\"{what}\"")), "{name}");
        assert!(["rhea", "rhea-full", "pyamqp", "uamqp"].contains(&encoder), "{name}");
    }
}
