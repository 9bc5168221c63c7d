//! Sparse index of one segment: where to begin looking for a sequence number or a time.
//!
//! Derived from the records and never the truth: a file that is missing, damaged or of another segment is rebuilt. The
//! file stands beside the segment, `<id>.idx`; it is written after the sealed segment was synced, so an intact one also
//! shows that the segment was complete and durable.
//!
//! ```text
//!   0  [u8; 8]  magic "FBYLOGIX"
//!   8  u32      index format, 1
//!  12  u32      entries
//!  16  u64      segment id
//!  24  u64      base of the segment
//!  32  u64      end: sequence number after the segment's last
//!  40  u32      incarnation of the segment's header
//!  44  u32      CRC-32C of the bytes 0..44 and of the entries
//!  48           entries: u64 sequence number, i64 enqueued time, u64 position
//! ```

use crc_fast::{CrcAlgorithm, Digest};

use super::header::{SegmentHeader, u32_at, u64_at};
use super::record::RecordHeader;
use crate::model::{SequenceNumber, UtcMillis};

const MAGIC: &[u8; 8] = b"FBYLOGIX";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;

/// One record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub sequence: SequenceNumber,
    pub time: UtcMillis,
    pub position: usize,
}

/// Entries in ascending order of sequence number, position and time. The first is the segment's first record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    entries: Vec<Entry>,
}

impl Index {
    /// Notes a record, if it stands far enough behind the last one noted.
    pub fn note(&mut self, header: &RecordHeader, position: usize, interval_bytes: u32) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| position - last.position >= interval_bytes as usize);
        if due {
            self.entries.push(Entry {
                sequence: header.first,
                time: header.enqueued_time,
                position,
            });
        }
    }

    /// The last entry at or before a sequence number.
    pub fn by_sequence(&self, sequence: SequenceNumber) -> Option<Entry> {
        let after = self.entries.partition_point(|entry| entry.sequence <= sequence);
        self.entries.get(after.checked_sub(1)?).copied()
    }

    /// The last entry before a time; the first entry if none is.
    pub fn before_time(&self, time: UtcMillis) -> Option<Entry> {
        let after = self.entries.partition_point(|entry| entry.time < time);
        self.entries.get(after.saturating_sub(1)).copied()
    }

    /// Entries behind a position: places where reading can go on after damage.
    pub fn behind(&self, position: usize) -> &[Entry] {
        let from = self.entries.partition_point(|entry| entry.position <= position);
        &self.entries[from..]
    }

    pub fn encode(&self, header: &SegmentHeader, end: SequenceNumber) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header.id.to_le_bytes());
        bytes.extend_from_slice(&header.base.0.to_le_bytes());
        bytes.extend_from_slice(&end.0.to_le_bytes());
        bytes.extend_from_slice(&header.incarnation.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.sequence.0.to_le_bytes());
            bytes.extend_from_slice(&entry.time.0.to_le_bytes());
            bytes.extend_from_slice(&(entry.position as u64).to_le_bytes());
        }
        let crc = crc_of(&bytes);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The index in a file's content; `None` unless it is intact and belongs to this segment with this end.
    pub fn decode(bytes: &[u8], header: &SegmentHeader, end: SequenceNumber) -> Option<Self> {
        let entries_bytes = bytes.len().checked_sub(HEADER_BYTES)?;
        let fits = &bytes[0..8] == MAGIC
            && u32_at(bytes, 8) == FORMAT
            && u32_at(bytes, 12) as usize * ENTRY_BYTES == entries_bytes
            && u64_at(bytes, 16) == header.id
            && u64_at(bytes, 24) == header.base.0
            && u64_at(bytes, 32) == end.0
            && u32_at(bytes, 40) == header.incarnation
            && u32_at(bytes, 44) == crc_of(bytes);
        if !fits {
            return None;
        }
        let entries = bytes[HEADER_BYTES..].chunks_exact(ENTRY_BYTES).map(|entry| Entry {
            sequence: SequenceNumber(u64_at(entry, 0)),
            time: UtcMillis(u64_at(entry, 8).cast_signed()),
            position: u64_at(entry, 16) as usize,
        });
        Some(Self {
            entries: entries.collect(),
        })
    }
}

/// The checksum of an index file with its own four bytes left out.
fn crc_of(bytes: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..44]);
    digest.update(&bytes[HEADER_BYTES..]);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PartitionId;

    fn record(first: u64) -> RecordHeader {
        RecordHeader {
            length: 40,
            crc: 0,
            stamp_bytes: 0,
            count: 10,
            first: SequenceNumber(first),
            incarnation: 1,
            enqueued_time: UtcMillis(first.cast_signed() * 100),
        }
    }

    fn sample() -> Index {
        let mut index = Index::default();
        for n in 0..100 {
            index.note(&record(1000 + n * 10), 4096 + n as usize * 40, 400);
        }
        index
    }

    #[test]
    fn one_entry_an_interval() {
        let index = sample();
        assert_eq!(index.entries.len(), 10);
        assert_eq!(index.entries[1].position, 4096 + 400);
        assert_eq!(index.behind(4096 + 399)[0].position, 4096 + 400);
        assert_eq!(index.behind(4096 + 400)[0].position, 4096 + 800);
        assert!(index.behind(usize::MAX).is_empty());
    }

    #[test]
    fn lookups_never_land_behind_what_is_sought() {
        let index = sample();
        let by = |n| index.by_sequence(SequenceNumber(n)).map(|entry| entry.sequence.0);
        assert_eq!(by(999), None);
        assert_eq!(by(1000), Some(1000));
        assert_eq!(by(1099), Some(1000));
        assert_eq!(by(1100), Some(1100));
        assert_eq!(by(u64::MAX), Some(1900));
        let before = |t| index.before_time(UtcMillis(t)).map(|entry| entry.sequence.0);
        assert_eq!(before(0), Some(1000));
        assert_eq!(
            before(110_000),
            Some(1000),
            "the record of that time itself may have one of the same time before it"
        );
        assert_eq!(before(110_001), Some(1100));
        assert_eq!(Index::default().before_time(UtcMillis(0)), None);
    }

    #[test]
    fn a_file_counts_only_intact_and_for_its_segment() {
        let header = SegmentHeader {
            partition: PartitionId(0),
            id: 4,
            previous_id: 3,
            base: SequenceNumber(1000),
            base_time: UtcMillis(0),
            synced: SequenceNumber(0),
            incarnation: 1,
        };
        let end = SequenceNumber(2000);
        let bytes = sample().encode(&header, end);
        assert_eq!(Index::decode(&bytes, &header, end), Some(sample()));
        assert_eq!(Index::decode(&bytes, &header, SequenceNumber(1990)), None);
        assert_eq!(Index::decode(&bytes, &SegmentHeader { id: 5, ..header }, end), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert_eq!(Index::decode(&changed, &header, end), None, "byte {at}");
            assert_eq!(Index::decode(&bytes[..at], &header, end), None, "cut at {at}");
        }
    }
}
