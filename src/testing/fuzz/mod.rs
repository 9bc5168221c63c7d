//! What reads bytes from outside, as functions of bytes: none may panic, and each says what must hold besides.
//!
//! [`TARGETS`] is for any driver: `tests.rs` beside this file replays the inputs saved under `tests/fuzz/<target>/` and
//! then mutates them for a while, on every `cargo test`; a driver that follows coverage can call the same functions.
//!
//! Invariant: a target depends on its input alone, so that a saved input shows its accident again.

mod amqp;
mod engine;
mod http;
mod mqtt;
#[cfg(test)]
mod tests;
mod wire;

pub use engine::{Engine, Rng};

use bytes::Bytes;

use crate::hub::connection_string::ConnectionString;
use crate::hub::query::{Attributes, Datum, Path, QUERY_BYTES_MAX, Query};
use crate::hub::sas::SasToken;
use crate::log::storage::Storage as _;
use crate::log::{Config, Log, NewBatch, OpenError, Start, records};
use crate::model::UtcMillis;
use crate::testing::Disk;

/// One parser with what must hold of it. Panics are findings.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also its folder under `tests/fuzz/`.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    target("intake", wire::intake),
    target("batch", wire::batch),
    target("plain", wire::plain),
    target("control", wire::control),
    target("stamp", wire::stamp),
    target("log-records", log_records),
    target("log-segment", log_segment),
    target("sas-token", sas_token),
    target("connection-string", connection_string),
    target("config", config),
    target("query", query),
    target("amqp-connection", amqp::connection),
    target("amqp-message", amqp::message),
    target("amqp-address", amqp::address),
    target("mqtt-packet", mqtt::packet),
    target("mqtt-topic", mqtt::topic),
    target("websocket-frames", http::frames),
    target("websocket-handshake", http::handshake),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// Records back to back, as a consumer is sent them.
fn log_records(input: &[u8]) {
    let mut bytes = 0;
    for record in records(input).map_while(Result::ok) {
        bytes += record.bytes.len();
        assert_eq!(record.bytes.len(), record.header.length as usize);
        assert!(record.header.count > 0 && record.header.next() > record.header.first);
        let _ = record.is_intact();
    }
    assert!(bytes <= input.len());
}

const SEGMENT: &str = "p0000/0000000000000001.seg";
const HEADER_BLOCK_BYTES: usize = 4096;
const SEGMENT_BYTES: usize = 16 << 10;

/// A segment file as somebody left it: header block and records, the first byte of the input apart. If that is odd,
/// checksums are made right first, since chance would never get behind them.
fn log_segment(input: &[u8]) {
    let Some((&how, content)) = input.split_first() else {
        return;
    };
    let config = Config {
        segment_bytes: SEGMENT_BYTES as u64,
        index_interval_bytes: 64,
        retention_ms: 0,
        retention_bytes: 0,
        spare_segments: 1,
    };
    let open = |disk: &Disk| Log::open(disk.boot(), 1, config.clone(), UtcMillis(0));
    let disk = Disk::default();
    drop(open(&disk).expect("an empty disk"));
    let mut segment = content[..content.len().min(SEGMENT_BYTES)].to_vec();
    segment.resize(SEGMENT_BYTES, 0);
    if how & 1 == 1 {
        make_checksums_right(&mut segment);
    }
    disk.boot().write_file(SEGMENT, &segment).expect("the disk works");
    let (log, mut appenders, recovered) = match open(&disk) {
        Ok(opened) => opened,
        Err(OpenError::Partition { .. }) => return,
        Err(error) => panic!("only the segment is damaged: {error}"),
    };
    let appender = &mut appenders[0];
    let (first, end) = (appender.view().first_retained(), appender.view().durable());
    assert_eq!(end.0 - first.0, recovered[0].records);
    // A fault is an answer too; going on is for the operator.
    let mut next = first;
    if let Ok(mut cursor) = appender.view().cursor(Start::Earliest) {
        while let Ok(Some(chunk)) = cursor.read(1000) {
            for record in records(&chunk.bytes) {
                let record = record.expect("what is served is well formed");
                assert!(record.is_intact(), "what is served is what was written");
                next = next.max(record.header.next());
            }
        }
    }
    assert!(next <= end);
    let batch = NewBatch {
        stamp: b"",
        payload: b"goes on",
        count: 1,
        enqueued_time: UtcMillis(1),
    };
    if let Ok(appended) = appender.append(&batch) {
        assert_eq!(appended.first, end, "numbers go on where the log ends");
    }
    drop((appenders, log));
}

fn make_checksums_right(segment: &mut [u8]) {
    let crc = |bytes: &[u8]| (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes();
    let header = crc(&segment[..60]);
    segment[60..64].copy_from_slice(&header);
    for mark in [512, 1024] {
        if segment[mark..mark + 28].iter().any(|byte| *byte != 0) {
            let sum = crc(&segment[mark..mark + 28]);
            segment[mark + 28..mark + 32].copy_from_slice(&sum);
        }
    }
    let mut at = HEADER_BLOCK_BYTES;
    while let Some(length) = segment
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|length| u32::from_le_bytes(*length))
    {
        let length = length as usize;
        if length < 40 || at + length > segment.len() {
            return;
        }
        let sum = crc(&segment[at + 8..at + length]);
        segment[at + 4..at + 8].copy_from_slice(&sum);
        at += length.next_multiple_of(8);
    }
}

fn sas_token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(token) = SasToken::parse(text) {
        assert!(!token.is_signed_by(b"a key that no input can know"));
        assert!(token.expires() > UtcMillis(0) && token.is_expired(UtcMillis(i64::MAX)));
        let _ = (token.resource().is_hub(), token.resource().covers(&["devices", "d"]));
    }
}

fn connection_string(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(parsed) = ConnectionString::parse(text) {
        let written = parsed.to_string();
        assert_eq!(ConnectionString::parse(&written).as_ref(), Ok(&parsed), "{written}");
    }
}

/// A configuration that is accepted is written and accepted again, unchanged.
fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // The one key that makes the parser read another file.
    if text.contains("_file") {
        return;
    }
    if let Ok(config) = crate::config::parse(text) {
        let written = crate::config::to_toml(&config);
        let again = crate::config::parse(&written).expect("what is written is valid");
        assert_eq!(crate::config::to_toml(&again), written);
    }
}

/// A query that is accepted is written and read back as the same, and can be asked of a hub without devices.
fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Query::parse(text) {
        Ok(query) => {
            let written = query.to_string();
            // With all its parentheses and escapes it may be too long.
            if written.len() <= QUERY_BYTES_MAX {
                assert_eq!(Query::parse(&written).as_ref(), Ok(&query), "{written}");
            }
            if let Some(condition) = &query.condition {
                let _ = condition.truth(&Scant);
            }
        }
        Err(error) => assert!(error.at <= text.len(), "{error}"),
    }
}

/// Has one text, one number, and nothing else.
struct Scant;

impl Attributes for Scant {
    fn value(&self, path: &Path) -> Option<Datum<'_>> {
        match path.0.len() {
            1 => Some(Datum::Text("a".into())),
            2 => Some(Datum::Number(1.0)),
            _ => None,
        }
    }
}

/// An owned copy, for parsers that slice what they are given.
fn owned(input: &[u8]) -> Bytes {
    Bytes::copy_from_slice(input)
}
