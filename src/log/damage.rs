//! What is wrong with a log, said exactly: file, position, sequence numbers, reason.

use std::fmt;

use super::record::RecordError;
use crate::model::{PartitionId, SequenceNumber};

/// Records that were stored and cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub partition: PartitionId,
    /// Relative to the log's directory.
    pub file: String,
    /// Where in the file the first unreadable record begins.
    pub position: u64,
    /// The first sequence number that is lost.
    pub first: SequenceNumber,
    /// Where reading can go on; everything from `first` up to here is lost.
    pub next: SequenceNumber,
    pub fault: Fault,
}

/// What was found in place of a good record, segment or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Record(RecordError),
    /// A record, but not the one that belongs there.
    Sequence {
        expected: SequenceNumber,
        found: SequenceNumber,
    },
    /// A record left over from an earlier opening of the log.
    Incarnation {
        at_least: u32,
        found: u32,
    },
    /// A record that runs into the next segment's sequence numbers.
    Overlap {
        end: SequenceNumber,
        next: SequenceNumber,
    },
    /// The segment's header is not readable.
    SegmentHeader,
    /// The segment's file is not there.
    SegmentMissing {
        id: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => error.fmt(f),
            Self::Sequence { expected, found } => write!(f, "sequence number {found} where {expected} belongs"),
            Self::Incarnation { at_least, found } => write!(f, "incarnation {found} after incarnation {at_least}"),
            Self::Overlap { end, next } => write!(f, "record up to {next} in a segment that ends at {end}"),
            Self::SegmentHeader => write!(f, "segment header is unreadable"),
            Self::SegmentMissing { id } => write!(f, "segment {id} is missing"),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "partition {}: {} at position {}: sequence numbers {} to {} are lost: {}",
            self.partition,
            self.file,
            self.position,
            self.first,
            self.next.0.saturating_sub(1),
            self.fault
        )
    }
}

impl std::error::Error for Damage {}
