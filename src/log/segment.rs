//! One segment file of a partition as readers see it.
//!
//! Sealed segments are mapped while somebody reads them and unmapped afterwards, so that the number of mappings follows
//! the readers and not the retention. Data this process wrote, or checked in recovery, is trusted; the rest is checked when
//! it is read, and a range remembers what was.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::header::{HEADER_BLOCK_BYTES, Mark, SegmentHeader};
use super::hold::hold;
use super::index::Index;
use super::storage::{Map, Source, Storage};
use super::walk::{Durable, Place, Region, walk};
use crate::model::SequenceNumber;

pub(super) struct Segment<M> {
    pub header: SegmentHeader,
    /// Relative to the log's directory.
    pub file: String,
    pub bytes: u64,
    /// Found when the log was opened.
    pub mark: Option<Mark>,
    /// Whether the index file is on disk, for all this process knows.
    pub has_index_file: AtomicBool,
    /// Positions from here on need no check.
    trusted_from: usize,
    /// Set when the segment is sealed.
    end: OnceLock<SequenceNumber>,
    slot: Mutex<Slot<M>>,
    index: Mutex<IndexState>,
    /// A range of positions that was checked: from in the high half, to in the low half.
    checked: AtomicU64,
}

enum Slot<M> {
    Present(Weak<M>),
    Removed,
}

enum IndexState {
    /// In memory only: the segment is active, or its index file is still to be written.
    Live(Index),
    /// On disk, or to be rebuilt.
    Cold,
    Loaded(Index),
}

/// The segment's file is gone: retention took it.
#[derive(Debug)]
pub(super) struct Removed;

impl<M: Map> Segment<M> {
    /// The segment that is written, with its map and the index of what is in it already.
    pub fn active(header: SegmentHeader, file: String, map: &Arc<M>, index: Index, trusted_from: usize) -> Self {
        Self {
            bytes: map.bytes() as u64,
            slot: Mutex::new(Slot::Present(Arc::downgrade(map))),
            index: Mutex::new(IndexState::Live(index)),
            trusted_from,
            ..Self::sealed(header, file, 0, None, None, false)
        }
    }

    pub fn sealed(
        header: SegmentHeader,
        file: String,
        bytes: u64,
        mark: Option<Mark>,
        end: Option<SequenceNumber>,
        has_index_file: bool,
    ) -> Self {
        Self {
            header,
            file,
            bytes,
            mark,
            has_index_file: AtomicBool::new(has_index_file),
            trusted_from: usize::MAX,
            end: end.map(OnceLock::from).unwrap_or_default(),
            slot: Mutex::new(Slot::Present(Weak::new())),
            index: Mutex::new(IndexState::Cold),
            checked: AtomicU64::new(0),
        }
    }

    pub fn with_mark(mut self, mark: Option<Mark>) -> Self {
        self.mark = mark;
        self
    }

    /// The sequence number after the last; `None` while the segment is active.
    pub fn end(&self) -> Option<SequenceNumber> {
        self.end.get().copied()
    }

    pub fn seal(&self, end: SequenceNumber) {
        self.end.set(end).expect("a segment is sealed once");
    }

    pub fn index_file(&self) -> String {
        index_file(&self.file)
    }

    /// The map, opened if nobody has it open.
    pub fn map<S: Storage<Map = M>>(&self, storage: &S) -> io::Result<Result<Arc<M>, Removed>> {
        let mut slot = hold(&self.slot);
        let Slot::Present(map) = &mut *slot else {
            return Ok(Err(Removed));
        };
        if let Some(map) = map.upgrade() {
            return Ok(Ok(map));
        }
        let opened = storage.open_segment(&self.file, Source::Cache)?;
        *map = Arc::downgrade(&opened);
        Ok(Ok(opened))
    }

    /// Bars the segment from being opened again. `true` if nobody has it open.
    pub fn remove(&self) -> bool {
        let mut slot = hold(&self.slot);
        let was = std::mem::replace(&mut *slot, Slot::Removed);
        matches!(was, Slot::Present(map) if map.strong_count() == 0)
    }

    /// Runs `look` on the index, which is loaded or rebuilt first if need be. The flag tells that it was.
    pub fn with_index<S: Storage<Map = M>, R>(
        &self,
        storage: &S,
        map: &Arc<M>,
        interval_bytes: u32,
        look: impl FnOnce(&Index) -> R,
    ) -> (R, bool) {
        let mut state = hold(&self.index);
        let loaded = matches!(*state, IndexState::Cold);
        if loaded {
            *state = IndexState::Loaded(self.load_index(storage, map, interval_bytes));
        }
        match &*state {
            IndexState::Live(index) | IndexState::Loaded(index) => (look(index), loaded),
            IndexState::Cold => unreachable!("it was loaded above"),
        }
    }

    /// Adds to the index of the active segment.
    pub fn note(&self, note: impl FnOnce(&mut Index)) {
        if let IndexState::Live(index) = &mut *hold(&self.index) {
            note(index);
        }
    }

    /// Frees the index's memory; only for a sealed segment whose index file is written.
    pub fn forget_index(&self) {
        *hold(&self.index) = IndexState::Cold;
    }

    fn load_index<S: Storage<Map = M>>(&self, storage: &S, map: &Arc<M>, interval_bytes: u32) -> Index {
        let end = self.end().unwrap_or_default();
        // Unreadable and missing are the same here: the records are the truth.
        let content = storage.read(&self.index_file(), 0, INDEX_FILE_BYTES_MAX).ok();
        if let Some(index) = content.and_then(|content| Index::decode(&content, &self.header, end)) {
            return index;
        }
        self.has_index_file.store(false, Ordering::Relaxed);
        let mut index = Index::default();
        let bytes = map.slice(HEADER_BLOCK_BYTES..map.committed());
        let region = Region {
            bytes: &bytes,
            from: HEADER_BLOCK_BYTES,
            end: self.end(),
        };
        let durable = Durable::All(self.mark_place());
        let walked = walk(region, &self.header, durable, |record, position| {
            index.note(&record.header, position, interval_bytes);
        });
        if walked.holes.is_empty() {
            self.add_checked(HEADER_BLOCK_BYTES, walked.tail.position);
        }
        index
    }

    /// The place the mark names: a record boundary that was durable.
    pub fn mark_place(&self) -> Option<Place> {
        mark_place(self.mark.as_ref()?, &self.header)
    }

    /// Whether the record at a position is known to be good.
    pub fn is_trusted(&self, position: usize) -> bool {
        let checked = self.checked.load(Ordering::Relaxed);
        let range = (checked >> 32) as usize..(checked & 0xffff_ffff) as usize;
        position >= self.trusted_from || range.contains(&position)
    }

    /// Remembers that all records in a range were checked; both ends are record boundaries. One range is kept: it grows
    /// where ranges touch, else the longer one stays.
    pub fn add_checked(&self, from: usize, to: usize) {
        let _ = self
            .checked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |checked| {
                let (old_from, old_to) = ((checked >> 32) as usize, (checked & 0xffff_ffff) as usize);
                let (from, to) = if from <= old_to && old_from <= to {
                    (from.min(old_from), to.max(old_to))
                } else if to - from > old_to - old_from {
                    (from, to)
                } else {
                    (old_from, old_to)
                };
                Some((from as u64) << 32 | to as u64)
            });
    }
}

/// Bounds what is read as an index, whatever stands under its name.
pub(super) const INDEX_FILE_BYTES_MAX: usize = 16 << 20;

pub(super) fn index_file(segment_file: &str) -> String {
    format!("{}.idx", segment_file.trim_end_matches(".seg"))
}

pub(super) fn mark_place(mark: &Mark, header: &SegmentHeader) -> Option<Place> {
    Some(Place {
        position: usize::try_from(mark.position).ok()?,
        sequence: mark.sequence,
        incarnation: header.incarnation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PartitionId, UtcMillis};
    use crate::testing;

    #[test]
    fn the_checked_range_grows_where_ranges_touch() {
        let header = SegmentHeader {
            partition: PartitionId(0),
            id: 1,
            previous_id: 0,
            base: SequenceNumber(0),
            base_time: UtcMillis(0),
            synced: SequenceNumber(0),
            incarnation: 1,
        };
        let segment: Segment<<testing::Disk as Storage>::Map> =
            Segment::sealed(header, String::new(), 0, None, None, false);
        assert!(!segment.is_trusted(4096));
        segment.add_checked(4096, 8192);
        segment.add_checked(8192, 9000);
        assert!(segment.is_trusted(4096) && segment.is_trusted(8192));
        assert!(!segment.is_trusted(9000));
        segment.add_checked(20_000, 20_100);
        assert!(segment.is_trusted(4096), "the longer range stays");
        segment.add_checked(20_000, 40_000);
        assert!(!segment.is_trusted(4096) && segment.is_trusted(20_000));
    }
}
