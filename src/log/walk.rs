//! Going through a segment's bytes record by record, and past damage.
//!
//! What may follow a record is narrow on purpose: the next sequence number, and an incarnation that is not lower. A
//! recycled file is full of intact records of its former life, and behind a cut tail stand intact records of the opening
//! before ("zombies") whose sequence numbers may fit again later; the first have lower sequence numbers than the segment's
//! base, the second a lower incarnation than whatever was appended after the cut.
//!
//! Damage is passed only over boundaries the log itself wrote down: the lengths of records and known places (index, mark).
//! Bytes are never searched for something that looks like a record, because a payload may be made to look like one.

use super::damage::Fault;
use super::header::{HEADER_BLOCK_BYTES, SegmentHeader};
use super::record::{Record, RecordError, RecordHeader};
use crate::model::{SequenceNumber, UtcMillis};

/// What must stand at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub position: usize,
    pub sequence: SequenceNumber,
    /// The lowest incarnation allowed here.
    pub incarnation: u32,
}

impl Place {
    pub fn start(header: &SegmentHeader) -> Self {
        Self {
            position: HEADER_BLOCK_BYTES,
            sequence: header.base,
            incarnation: header.incarnation,
        }
    }

    pub fn after(self, header: &RecordHeader) -> Self {
        Self {
            position: self.position + header.padded_bytes(),
            sequence: header.next(),
            incarnation: header.incarnation,
        }
    }
}

/// A segment's bytes from some position on, addressed by position in the file.
#[derive(Clone, Copy)]
pub(super) struct Region<'a> {
    pub bytes: &'a [u8],
    /// The position of the first of them, not below `HEADER_BLOCK_BYTES`.
    pub from: usize,
    /// The segment's last sequence number + 1, where known.
    pub end: Option<SequenceNumber>,
}

impl<'a> Region<'a> {
    /// The record at a place.
    pub fn record(&self, place: Place, is_trusted: bool) -> Result<Record<'a>, Fault> {
        let rest = place
            .position
            .checked_sub(self.from)
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        let record = Record::parse(rest).map_err(Fault::Record)?;
        let header = &record.header;
        if header.first != place.sequence {
            return Err(Fault::Sequence {
                expected: place.sequence,
                found: header.first,
            });
        }
        if header.incarnation < place.incarnation {
            return Err(Fault::Incarnation {
                at_least: place.incarnation,
                found: header.incarnation,
            });
        }
        if let Some(end) = self.end.filter(|end| header.next() > *end) {
            return Err(Fault::Overlap {
                end,
                next: header.next(),
            });
        }
        if header.padded_bytes() > rest.len() {
            return Err(Fault::Record(RecordError::Short {
                bytes: rest.len(),
                needed: header.padded_bytes(),
            }));
        }
        if !is_trusted {
            record.check().map_err(Fault::Record)?;
        }
        Ok(record)
    }

    /// The next intact record behind a bad one: by the lengths of the records in between, else at a known place.
    pub fn resume(&self, bad: Place, known: impl IntoIterator<Item = Place>) -> Option<Place> {
        let mut place = bad;
        while let Ok(record) = self.record(place, true) {
            place = place.after(&record.header);
            if self.record(place, false).is_ok() {
                return Some(place);
            }
        }
        known
            .into_iter()
            .filter(|known| known.position > bad.position && known.sequence > bad.sequence)
            .find(|known| self.record(*known, false).is_ok())
    }
}

/// Records that are lost between two that are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub position: usize,
    pub first: SequenceNumber,
    pub resumed: Place,
    pub fault: Fault,
}

/// What is known to have been durable: bad bytes there are damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// The whole segment; the place is one where reading can go on.
    All(Option<Place>),
    /// What lies below a place.
    Below(Option<Place>),
}

/// How far a walk got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walked {
    /// Behind the last good record.
    pub tail: Place,
    pub last_time: UtcMillis,
    pub holes: Vec<Hole>,
    /// Why the record at `tail` is none; `None` if the region's end was reached.
    pub stop: Option<Fault>,
}

/// Walks a whole segment and checks every record. Bad records that were durable are holes, and the walk goes on behind
/// them where it can; elsewhere the first bad record is where the walk ends.
pub(super) fn walk(
    region: Region<'_>,
    header: &SegmentHeader,
    durable: Durable,
    mut visit: impl FnMut(&Record<'_>, usize),
) -> Walked {
    let mut walked = Walked {
        tail: Place::start(header),
        last_time: header.base_time,
        holes: Vec::new(),
        stop: None,
    };
    loop {
        let place = walked.tail;
        if region.end.is_some_and(|end| place.sequence >= end) {
            return walked;
        }
        let fault = match region.record(place, false) {
            Ok(record) => {
                visit(&record, place.position);
                walked.last_time = record.header.enqueued_time;
                walked.tail = place.after(&record.header);
                continue;
            }
            Err(fault) => fault,
        };
        let resumed = match durable {
            Durable::All(known) => region.resume(place, known),
            Durable::Below(Some(limit)) if place.position < limit.position => {
                // Where nothing follows the durable part, its end is known all the same.
                region.resume(place, [limit]).or(Some(limit))
            }
            Durable::Below(_) => None,
        };
        let Some(resumed) = resumed else {
            walked.stop = Some(fault);
            return walked;
        };
        walked.holes.push(Hole {
            position: place.position,
            first: place.sequence,
            resumed,
            fault,
        });
        walked.tail = resumed;
    }
}
