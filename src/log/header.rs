//! The first block of a segment file: its header and its marks.
//!
//! Little endian.
//!
//! ```text
//!    0  [u8; 8]  magic "FBYLOGSG"
//!    8  u32      segment format, 1
//!   12  u16      partition
//!   14  u16      0
//!   16  u64      segment id: ordinal of the file in its partition, from 1; also the file's name
//!   24  u64      id of the segment before it, 0 for the first
//!   32  u64      base: sequence number of the first record
//!   40  i64      base time: enqueued time of the record before the first
//!   48  u64      synced: everything below this sequence number was durable when the segment became active
//!   56  u32      incarnation
//!   60  u32      CRC-32C of the bytes 0..60
//!  512           mark, slot 0
//! 1024           mark, slot 1
//! 4096           records
//! ```
//!
//! A mark says that everything below it is durable. It is written from time to time after a sync, so it is a lower
//! bound: bad bytes below a mark are damage, bad bytes above it may be no more than the end of what a crash left.
//!
//! ```text
//!    0  u64  segment id
//!    8  u64  sequence number of the first record that may not be durable
//!   16  u64  its position
//!   24  u32  incarnation that wrote the mark
//!   28  u32  CRC-32C of the bytes 0..28
//! ```

use crc_fast::{CrcAlgorithm, checksum};

use crate::model::{PartitionId, SequenceNumber, UtcMillis};

/// Where records begin.
pub(super) const HEADER_BLOCK_BYTES: usize = 4096;
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"FBYLOGSG";
const FORMAT: u32 = 1;
pub(super) const MARK_BYTES: usize = 32;
/// Two slots written in turn, each in a sector of its own: a torn write leaves the other.
pub(super) const MARK_POSITIONS: [usize; 2] = [512, 1024];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub partition: PartitionId,
    pub id: u64,
    pub previous_id: u64,
    pub base: SequenceNumber,
    pub base_time: UtcMillis,
    pub synced: SequenceNumber,
    pub incarnation: u32,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.partition.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.previous_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.base_time.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.synced.0.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.incarnation.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in a file's first block; `None` if it is not one of format 1. The caller compares partition and id with
    /// the file's name.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let bytes = block.first_chunk::<SEGMENT_HEADER_BYTES>()?;
        let known = &bytes[0..8] == MAGIC && u32_at(bytes, 8) == FORMAT && u32_at(bytes, 60) == crc32c(&bytes[..60]);
        known.then(|| Self {
            partition: PartitionId(u16::from_le_bytes([bytes[12], bytes[13]])),
            id: u64_at(bytes, 16),
            previous_id: u64_at(bytes, 24),
            base: SequenceNumber(u64_at(bytes, 32)),
            base_time: UtcMillis(u64_at(bytes, 40).cast_signed()),
            synced: SequenceNumber(u64_at(bytes, 48)),
            incarnation: u32_at(bytes, 56),
        })
    }
}

/// Everything below is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub segment_id: u64,
    pub sequence: SequenceNumber,
    pub position: u64,
    pub incarnation: u32,
}

impl Mark {
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[0..8].copy_from_slice(&self.segment_id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.incarnation.to_le_bytes());
        let crc = crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<MARK_BYTES>()?;
        (u32_at(bytes, 28) == crc32c(&bytes[..28])).then(|| Self {
            segment_id: u64_at(bytes, 0),
            sequence: SequenceNumber(u64_at(bytes, 8)),
            position: u64_at(bytes, 16),
            incarnation: u32_at(bytes, 24),
        })
    }

    /// The highest mark in a segment's first block.
    pub fn find(block: &[u8], segment_id: u64) -> Option<Self> {
        MARK_POSITIONS
            .iter()
            .filter_map(|&position| Self::decode(block.get(position..)?))
            .filter(|mark| mark.segment_id == segment_id && mark.position >= HEADER_BLOCK_BYTES as u64)
            .max_by_key(|mark| mark.position)
    }
}

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::tests::golden;

    #[test]
    fn a_header_survives_and_a_changed_one_does_not() {
        let header = SegmentHeader {
            partition: PartitionId(3),
            id: 7,
            previous_id: 6,
            base: SequenceNumber(1000),
            base_time: UtcMillis(-5),
            synced: SequenceNumber(900),
            incarnation: 2,
        };
        let bytes = header.encode();
        let mark = Mark {
            segment_id: 7,
            sequence: SequenceNumber(1010),
            position: 8192,
            incarnation: 2,
        };
        let expected = golden(include_str!("../../tests/golden/log/segment-header-1.hex"));
        assert_eq!([&bytes[..], &mark.encode()].concat(), expected);
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&changed), None, "bit {bit}");
        }
        assert_eq!(SegmentHeader::decode(&[0; HEADER_BLOCK_BYTES]), None);
    }

    #[test]
    fn the_highest_intact_mark_of_the_segment_counts() {
        let mark = |segment_id, position| Mark {
            segment_id,
            sequence: SequenceNumber(position / 8),
            position,
            incarnation: 1,
        };
        let mut block = vec![0; HEADER_BLOCK_BYTES];
        assert_eq!(Mark::find(&block, 7), None);
        block[512..544].copy_from_slice(&mark(7, 4096).encode());
        block[1024..1056].copy_from_slice(&mark(7, 8192).encode());
        assert_eq!(Mark::find(&block, 7), Some(mark(7, 8192)));
        assert_eq!(Mark::find(&block, 8), None, "a mark of another segment");
        block[1030] ^= 1;
        assert_eq!(
            Mark::find(&block, 7),
            Some(mark(7, 4096)),
            "the torn one is passed over"
        );
    }
}
