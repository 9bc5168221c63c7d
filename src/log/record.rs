//! The log record: one batch as it stands on disk and as consumers get it.
//!
//! Little endian. A record begins at a multiple of 8 and is padded with zeros to a multiple of 8.
//!
//! ```text
//!   0  u32  length          header + stamp + payload in bytes, without the padding
//!   4  u32  crc             CRC-32C (iSCSI) of the bytes 8..length
//!   8  u8   magic, format   0xF1: magic 0xF, record format 1
//!   9  u8   flags           0
//!  10  u16  stamp length    in bytes
//!  12  u32  count           sequence numbers in this batch, at least 1
//!  16  u64  first           sequence number of the batch's first message
//!  24  u32  incarnation     which opening of the log wrote it; never decreases within a partition
//!  28  u32  reserved        0
//!  32  i64  enqueued time   UTC milliseconds, never decreases within a partition
//!  40       stamp, then payload, then padding
//! ```
//!
//! Knows nothing of segments and files, so that the far side of a connection can parse what it is sent. Parsing checks
//! bounds and form; `Record::is_intact` checks the bytes. They are apart because a process trusts what it wrote itself.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use crate::model::{SequenceNumber, UtcMillis};

pub const HEADER_BYTES: usize = 40;
pub const ALIGNMENT: usize = 8;
/// Bytes in front of what the CRC covers.
const CRC_FROM: usize = 8;
const MAGIC: u8 = 0xF1;

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGNMENT));

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Header, stamp and payload in bytes, without padding.
    pub length: u32,
    pub crc: u32,
    pub stamp_bytes: u16,
    /// Sequence numbers in this batch, at least 1.
    pub count: u32,
    pub first: SequenceNumber,
    pub incarnation: u32,
    pub enqueued_time: UtcMillis,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes end before the record does.
    Short { bytes: usize, needed: usize },
    /// Not a record, or one of a format this version does not know.
    Magic(u8),
    /// The lengths contradict each other.
    Length { length: u32, stamp_bytes: u16 },
    /// Flags or reserved bytes that no version has given a meaning.
    Reserved,
    /// A batch of no messages, or one that runs past the last sequence number.
    Count { first: SequenceNumber, count: u32 },
    /// The bytes are not those that were written.
    Checksum { expected: u32, actual: u32 },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { bytes, needed } => write!(f, "{bytes} bytes where the record needs {needed}"),
            Self::Magic(byte) => write!(f, "no record of a known format: {byte:#04x} for {MAGIC:#04x}"),
            Self::Length { length, stamp_bytes } => write!(f, "length {length} with a stamp of {stamp_bytes} bytes"),
            Self::Reserved => write!(f, "reserved bytes are set"),
            Self::Count { first, count } => write!(f, "{count} messages from sequence number {first}"),
            Self::Checksum { expected, actual } => write!(f, "checksum {actual:08x} where {expected:08x} is stored"),
        }
    }
}

impl std::error::Error for RecordError {}

impl RecordHeader {
    /// Reads the header at the start of `bytes` and checks its form; the record's other bytes need not be there.
    ///
    /// # Errors
    /// `RecordError`, never `Checksum`.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(RecordError::Short {
                bytes: bytes.len(),
                needed: HEADER_BYTES,
            });
        };
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| header[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| header[at + n]));
        if header[8] != MAGIC {
            return Err(RecordError::Magic(header[8]));
        }
        if header[9] != 0 || u32_at(28) != 0 {
            return Err(RecordError::Reserved);
        }
        let parsed = Self {
            length: u32_at(0),
            crc: u32_at(4),
            stamp_bytes: u16_at(10),
            count: u32_at(12),
            first: SequenceNumber(u64_at(16)),
            incarnation: u32_at(24),
            enqueued_time: UtcMillis(u64_at(32).cast_signed()),
        };
        let length = u64::from(parsed.length);
        if length < (HEADER_BYTES as u64) + u64::from(parsed.stamp_bytes) || length > u64::from(LENGTH_MAX) {
            return Err(RecordError::Length {
                length: parsed.length,
                stamp_bytes: parsed.stamp_bytes,
            });
        }
        if parsed.count == 0 || parsed.first.0.checked_add(u64::from(parsed.count)).is_none() {
            return Err(RecordError::Count {
                first: parsed.first,
                count: parsed.count,
            });
        }
        Ok(parsed)
    }

    /// The sequence number after this record's last.
    pub fn next(&self) -> SequenceNumber {
        self.first.plus(self.count)
    }

    /// Bytes from this record's start to the next one's.
    pub fn padded_bytes(&self) -> usize {
        padded(self.length as usize)
    }

    /// The header of a new record, checksum included: the only place where it is computed on the way in.
    pub(super) fn seal(mut self, stamp: &[u8], payload: &[u8]) -> [u8; HEADER_BYTES] {
        debug_assert_eq!(self.length as usize, HEADER_BYTES + stamp.len() + payload.len());
        let mut bytes = self.encode();
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&bytes[CRC_FROM..]);
        digest.update(stamp);
        digest.update(payload);
        self.crc = digest.finalize() as u32;
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes[8] = MAGIC;
        bytes[10..12].copy_from_slice(&self.stamp_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.enqueued_time.0.to_le_bytes());
        bytes
    }
}

/// No record is longer, whatever a segment could hold: keeps padded lengths far from overflow.
pub(super) const LENGTH_MAX: u32 = 1 << 30;

/// `bytes` rounded up to where the next record begins.
pub(super) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// A record inside somebody else's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub header: RecordHeader,
    /// What the hub adds to the whole batch.
    pub stamp: &'a [u8],
    /// The batch as its device framed it.
    pub payload: &'a [u8],
    /// All of the record, without padding.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    /// `RecordError`, never `Checksum`: see `check`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let header = RecordHeader::parse(bytes)?;
        let Some(record) = bytes.get(..header.length as usize) else {
            return Err(RecordError::Short {
                bytes: bytes.len(),
                needed: header.length as usize,
            });
        };
        let (stamp, payload) = record[HEADER_BYTES..].split_at(usize::from(header.stamp_bytes));
        Ok(Self {
            header,
            stamp,
            payload,
            bytes: record,
        })
    }

    /// Compares the checksum; costs a pass over the record.
    ///
    /// # Errors
    /// `RecordError::Checksum`.
    pub fn check(&self) -> Result<(), RecordError> {
        let actual = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &self.bytes[CRC_FROM..]) as u32;
        if actual == self.header.crc {
            return Ok(());
        }
        Err(RecordError::Checksum {
            expected: self.header.crc,
            actual,
        })
    }

    /// Whether the bytes are those that were written.
    pub fn is_intact(&self) -> bool {
        self.check().is_ok()
    }
}

/// The records that stand back to back in `bytes`. Ends after the first error. Does not check checksums.
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes }
}

#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = Record::parse(self.rest);
        self.rest = match &record {
            // The last record's padding may be cut off by whoever carried the bytes.
            Ok(record) => self.rest.get(record.header.padded_bytes()..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn encode(first: u64, count: u32, stamp: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = RecordHeader {
            length: (HEADER_BYTES + stamp.len() + payload.len()) as u32,
            crc: 0,
            stamp_bytes: stamp.len() as u16,
            count,
            first: SequenceNumber(first),
            incarnation: 3,
            enqueued_time: UtcMillis(1_766_000_000_123),
        };
        let mut bytes = header.seal(stamp, payload).to_vec();
        bytes.extend_from_slice(stamp);
        bytes.extend_from_slice(payload);
        bytes.resize(padded(bytes.len()), 0);
        bytes
    }

    /// The bytes of a commented hex file.
    pub fn golden(text: &str) -> Vec<u8> {
        let digits: String = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default())
            .flat_map(str::chars)
            .filter(char::is_ascii_hexdigit)
            .collect();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits in pairs"))
            .collect()
    }

    #[test]
    fn a_record_keeps_its_golden_bytes() {
        let expected = golden(include_str!("../../tests/golden/log/record-1.hex"));
        assert_eq!(encode(7, 2, b"stamp", b"forebay"), expected);
    }

    #[test]
    fn records_come_back_as_written() {
        let mut bytes = encode(0, 1, b"", b"a");
        bytes.extend(encode(1, 5, b"xyz", &[9; 1000]));
        let all: Vec<_> = records(&bytes).map(|record| record.expect("well formed")).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].stamp, all[0].payload), (&b""[..], &b"a"[..]));
        assert_eq!((all[1].stamp, all[1].payload.len()), (&b"xyz"[..], 1000));
        assert_eq!(all[1].header.next(), SequenceNumber(6));
        assert!(all.iter().all(Record::is_intact));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let bytes = encode(7, 2, b"stamp", b"forebay");
        let length = HEADER_BYTES + 12;
        for bit in 0..length * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let intact = Record::parse(&changed).is_ok_and(|record| record.is_intact());
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = encode(7, 2, b"stamp", b"forebay");
        for cut in 1..HEADER_BYTES + 12 {
            let first = records(&bytes[..cut]).next().expect("an answer");
            assert!(
                matches!(first, Err(RecordError::Short { .. })),
                "cut at {cut}: {first:?}"
            );
        }
        assert!(records(&[]).next().is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |at: usize, with: &[u8], expected: fn(&RecordError) -> bool| {
            let mut bytes = encode(7, 2, b"stamp", b"forebay");
            bytes[at..at + with.len()].copy_from_slice(with);
            let error = Record::parse(&bytes).expect_err("nonsense");
            assert!(expected(&error), "{error}");
        };
        check(8, &[0xF2], |error| matches!(error, RecordError::Magic(0xF2)));
        check(9, &[1], |error| matches!(error, RecordError::Reserved));
        check(28, &[1], |error| matches!(error, RecordError::Reserved));
        check(0, &[39, 0, 0, 0], |error| matches!(error, RecordError::Length { .. }));
        check(10, &[0xff, 0xff], |error| matches!(error, RecordError::Length { .. }));
        check(0, &[0xff; 4], |error| matches!(error, RecordError::Length { .. }));
        check(12, &[0; 4], |error| matches!(error, RecordError::Count { .. }));
        check(16, &[0xff; 8], |error| matches!(error, RecordError::Count { .. }));
        check(0, &[0xff, 0xff, 0, 0], |error| {
            matches!(error, RecordError::Short { .. })
        });
    }
}
