//! Reading a partition: a place that moves forward over whole records, never beyond what is durable.
//!
//! A cursor hands out slices of the mapping. It keeps the segment it stands in mapped, also when retention removes the
//! file, and says so when the next record it wants is gone. Damage is an answer too: it names what is lost, and reading
//! goes on only when the caller asks for a sequence number behind it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::damage::{Damage, Fault};
use super::header::HEADER_BLOCK_BYTES;
use super::hold::hold_read;
use super::index::{Entry, Index};
use super::record::RecordHeader;
use super::segment::Segment;
use super::storage::{Map, Storage};
use super::view::{Open, PartitionView};
use super::walk::{Place, Region};
use crate::model::{SequenceNumber, UtcMillis};

/// How far ahead of a cursor a cold segment is asked for.
const READ_AHEAD_BYTES: usize = 4 << 20;

/// Where a cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first record still there.
    Earliest,
    /// Behind the last durable record.
    Latest,
    Sequence(SequenceNumber),
    /// The first record enqueued at or after a time.
    Time(UtcMillis),
}

/// Why a cursor cannot stand where it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SeekError {
    #[error("sequence numbers below {first} are no longer retained")]
    Retained { first: SequenceNumber },
    /// Nothing with this sequence number has been written.
    #[error("sequence number {sequence} is beyond the end of the log at {next}")]
    Beyond {
        sequence: SequenceNumber,
        next: SequenceNumber,
    },
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why a read gave no records.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed what the cursor wanted next. Seek to `first` or later.
    #[error("sequence numbers below {first} are no longer retained")]
    Retained { first: SequenceNumber },
    /// Records are lost. Seek to `Damage::next` to go on behind them.
    #[error(transparent)]
    Damaged(#[from] Box<Damage>),
    #[error("a segment cannot be opened")]
    Io(#[from] io::Error),
}

/// Whole log records, back to back, as `records` reads them.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Not a copy: a slice of the mapping.
    pub bytes: Bytes,
    /// The first record may begin before this: the caller wants nothing below it.
    pub first_wanted: SequenceNumber,
    /// The sequence number after the last record's last.
    pub next: SequenceNumber,
    /// Records in `bytes`, each a batch of one or more messages.
    pub records: u32,
}

/// A reader of one partition.
pub struct Cursor<S: Storage> {
    view: Arc<PartitionView<S>>,
    next: SequenceNumber,
    standing: Option<Standing<S::Map>>,
}

/// The record that holds the next wanted sequence number.
struct Standing<M> {
    open: Open<M>,
    place: Place,
    /// The segment has been asked for up to here.
    ahead_position: usize,
}

impl<S: Storage> PartitionView<S> {
    /// A cursor at a place.
    ///
    /// # Errors
    /// `SeekError`; with `Start::Earliest` and `Start::Latest` there is none.
    pub fn cursor(self: &Arc<Self>, start: Start) -> Result<Cursor<S>, SeekError> {
        let mut cursor = Cursor {
            view: Arc::clone(self),
            next: self.durable(),
            standing: None,
        };
        cursor.seek(start)?;
        Ok(cursor)
    }
}

impl<S: Storage> Cursor<S> {
    /// The next wanted sequence number.
    pub fn position(&self) -> SequenceNumber {
        self.next
    }

    /// Moves the cursor.
    ///
    /// # Errors
    /// `SeekError`; the cursor stays where it was.
    pub fn seek(&mut self, start: Start) -> Result<(), SeekError> {
        let first = self.view.first_retained();
        let next = match start {
            Start::Earliest => first,
            Start::Latest => self.view.durable(),
            Start::Sequence(sequence) if sequence < first => return Err(SeekError::Retained { first }),
            Start::Sequence(sequence) if sequence > self.view.written() => {
                return Err(SeekError::Beyond {
                    sequence,
                    next: self.view.written(),
                });
            }
            Start::Sequence(sequence) => sequence,
            Start::Time(time) => self.view.find_time(time)?,
        };
        if next != self.next {
            self.next = next;
            self.standing = None;
        }
        Ok(())
    }

    /// Whole records from the one that holds the next wanted sequence number: at least one, more while they fit into
    /// `bytes_max`, from one segment. `None`: nothing more is durable yet.
    ///
    /// # Errors
    /// `ReadError`; the cursor stays where it is.
    pub fn read(&mut self, bytes_max: usize) -> Result<Option<Chunk>, ReadError> {
        let durable = self.view.durable();
        if self.next >= durable {
            return Ok(None);
        }
        let first = self.view.first_retained();
        if self.next < first {
            self.standing = None;
            return Err(ReadError::Retained { first });
        }
        let mut standing = match self.standing.take() {
            Some(standing) if standing.open.segment.end().is_none_or(|end| self.next < end) => standing,
            _ => self.view.locate(self.next)?,
        };
        let chunk = self.read_from(&mut standing, durable, bytes_max)?;
        self.next = chunk.next;
        self.standing = Some(standing);
        Ok(Some(chunk))
    }

    fn read_from(
        &self,
        standing: &mut Standing<S::Map>,
        durable: SequenceNumber,
        bytes_max: usize,
    ) -> Result<Chunk, ReadError> {
        let Open { segment, map } = &standing.open;
        let start = standing.place;
        if segment.end().is_some() && start.position + bytes_max > standing.ahead_position {
            standing.ahead_position = start.position + bytes_max + READ_AHEAD_BYTES;
            map.will_need(start.position..standing.ahead_position);
        }
        let window = map.slice(start.position..map.committed());
        let region = region(segment, &window, start.position);
        let mut place = start;
        let mut records = 0;
        let mut has_checked = false;
        while place.sequence < durable && segment.end().is_none_or(|end| place.sequence < end) {
            let is_trusted = segment.is_trusted(place.position);
            match region.record(place, is_trusted) {
                Ok(record) => {
                    let bytes = place.position - start.position + record.header.padded_bytes();
                    if records > 0 && bytes > bytes_max {
                        break;
                    }
                    place = place.after(&record.header);
                    records += 1;
                    has_checked |= !is_trusted;
                }
                Err(_) if records > 0 => break,
                Err(fault) => return Err(self.view.damage(&standing.open, place, fault).into()),
            }
        }
        if has_checked {
            segment.add_checked(start.position, place.position);
        }
        let chunk = Chunk {
            bytes: window.slice(..place.position - start.position),
            first_wanted: self.next,
            next: place.sequence,
            records,
        };
        standing.place = place;
        Ok(chunk)
    }
}

impl<S: Storage> PartitionView<S> {
    /// The place of the record that holds a sequence number, which is retained and durable.
    fn locate(&self, wanted: SequenceNumber) -> Result<Standing<S::Map>, ReadError> {
        let open = self.open(wanted)?;
        let start = Place::start(&open.segment.header);
        if wanted == start.sequence {
            return Ok(Standing::new(open, start));
        }
        let (entry, _) = self.with_index(&open, |index| index.by_sequence(wanted));
        let place = self.advance(&open, entry, |header| header.next() > wanted, wanted)?;
        Ok(Standing::new(open, place))
    }

    /// The sequence number of the first record enqueued at or after a time; what is durable ends the search.
    fn find_time(&self, time: UtcMillis) -> Result<SequenceNumber, ReadError> {
        let (first, durable) = (self.first_retained(), self.durable());
        let base = {
            // The last segment whose predecessor ends before the time: what is sought is in it, or begins the next one.
            let chain = hold_read(&self.chain);
            let after = chain.partition_point(|segment| segment.header.base_time < time);
            chain[after.saturating_sub(1)].header.base
        };
        if base >= durable {
            return Ok(durable);
        }
        let open = self.open(base.max(first))?;
        let (entry, _) = self.with_index(&open, |index| index.before_time(time));
        let limit = open.segment.end().unwrap_or(durable).min(durable);
        let place = self.advance(&open, entry, |header| header.enqueued_time >= time, limit)?;
        Ok(place.sequence.min(durable))
    }

    fn open(&self, wanted: SequenceNumber) -> Result<Open<S::Map>, ReadError> {
        let segment = {
            let chain = hold_read(&self.chain);
            let after = chain.partition_point(|segment| segment.header.base <= wanted);
            after.checked_sub(1).map(|at| Arc::clone(&chain[at]))
        };
        let gone = || ReadError::Retained {
            first: self.first_retained(),
        };
        let segment = segment.ok_or_else(gone)?;
        let map = segment.map(&*self.storage)?.map_err(|_| gone())?;
        Ok(Open { segment, map })
    }

    /// From an index entry on, the first record that `is_sought`, or the place at `limit`. Passes holes that end before it.
    fn advance(
        &self,
        open: &Open<S::Map>,
        entry: Option<Entry>,
        is_sought: impl Fn(&RecordHeader) -> bool,
        limit: SequenceNumber,
    ) -> Result<Place, ReadError> {
        let start = Place::start(&open.segment.header);
        let mut place = entry.map_or(start, |entry| Place {
            position: entry.position,
            sequence: entry.sequence,
            ..start
        });
        let window = open.map.slice(HEADER_BLOCK_BYTES..open.map.committed());
        let region = region(&open.segment, &window, HEADER_BLOCK_BYTES);
        while place.sequence < limit {
            match region.record(place, open.segment.is_trusted(place.position)) {
                Ok(record) if is_sought(&record.header) => return Ok(place),
                Ok(record) => place = place.after(&record.header),
                Err(fault) => {
                    let (damage, resumed) = self.find_damage(open, place, fault);
                    let resumed = resumed.filter(|resumed| resumed.sequence <= limit);
                    place = resumed.ok_or(damage)?;
                }
            }
        }
        Ok(place)
    }

    fn damage(&self, open: &Open<S::Map>, place: Place, fault: Fault) -> Box<Damage> {
        self.find_damage(open, place, fault).0
    }

    /// What is lost from a bad record on, and where reading can go on in the same segment.
    fn find_damage(&self, open: &Open<S::Map>, bad: Place, fault: Fault) -> (Box<Damage>, Option<Place>) {
        let segment = &open.segment;
        let window = open.map.slice(HEADER_BLOCK_BYTES..open.map.committed());
        let (known, _) = self.with_index(open, |index: &Index| {
            let behind = index.behind(bad.position).iter().map(|entry| Place {
                position: entry.position,
                sequence: entry.sequence,
                incarnation: bad.incarnation.min(segment.header.incarnation),
            });
            behind.chain(segment.mark_place()).collect::<Vec<_>>()
        });
        let resumed = region(segment, &window, HEADER_BLOCK_BYTES).resume(bad, known);
        let next = resumed.map(|place| place.sequence);
        let damage = Damage {
            partition: self.partition,
            file: segment.file.clone(),
            position: bad.position as u64,
            first: bad.sequence,
            next: next.or(segment.end()).unwrap_or_else(|| self.written()),
            fault,
        };
        (Box::new(damage), resumed)
    }
}

impl<M: Map> Standing<M> {
    fn new(open: Open<M>, place: Place) -> Self {
        Self {
            open,
            place,
            ahead_position: 0,
        }
    }
}

fn region<'a, M: Map>(segment: &Segment<M>, window: &'a [u8], from: usize) -> Region<'a> {
    Region {
        bytes: window,
        from,
        end: segment.end(),
    }
}
