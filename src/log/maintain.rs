//! What is done beside the data path: spare segments made ahead, index files written, expired segments removed.
//!
//! All of it blocks for the disk and belongs on a maintenance thread. The two entry points exclude each other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Retention;
use super::header::{HEADER_BLOCK_BYTES, SEGMENT_HEADER_BYTES};
use super::hold::{hold, hold_read, hold_write};
use super::segment::{Segment, index_file};
use super::storage::{Map, Source, Storage, Writer};
use super::view::{Maintenance, Open, PartitionView, Spare};
use crate::model::{SequenceNumber, UtcMillis};

/// Why a spare segment could not be made. The partition goes on with what it has.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Appends get `NoRoom` once the active segment is full; try again when space has been made.
    #[error("the disk is full")]
    DiskFull,
    #[error("a segment cannot be prepared")]
    Io(#[from] io::Error),
}

impl PrepareError {
    pub(super) fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io(error),
        }
    }
}

/// What retention took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    pub segments_removed: u32,
    /// Of these, files that became spares.
    pub segments_recycled: u32,
    /// Size of the files that were unlinked; freed when their last reader is gone.
    pub bytes_freed: u64,
}

impl<S: Storage> PartitionView<S> {
    /// Makes spare segments until there are as many as configured, then writes missing index files. `true` if it made
    /// or wrote anything.
    ///
    /// # Errors
    /// `PrepareError`; what was made before it stays.
    pub fn prepare(&self) -> Result<bool, PrepareError> {
        let mut maintenance = hold(&self.maintenance);
        let mut worked = false;
        while self.spare_count() < self.config.spare_segments as usize {
            let spare = create_spare(self, &mut maintenance).map_err(PrepareError::of);
            let is_full = matches!(spare, Err(PrepareError::DiskFull));
            self.is_disk_full.store(is_full, Ordering::Release);
            self.add_spare(spare?);
            worked = true;
        }
        self.is_disk_full.store(false, Ordering::Release);
        Ok(self.write_indexes().map_err(PrepareError::of)? || worked)
    }

    /// Removes segments that are past the configured age or size, oldest first, as long as all their records are below
    /// `keep_from`. The active segment always stays. Readers keep what they hold and then learn that they fell behind.
    ///
    /// # Errors
    /// The segments up to the failed one are out of the log; a file may remain and is found when the log is opened.
    pub fn retain(&self, now: UtcMillis, keep_from: SequenceNumber) -> Result<Retained, io::Error> {
        let mut maintenance = hold(&self.maintenance);
        let mut retained = Retained::default();
        while let Some(segment) = self.take_expired(now, keep_from) {
            retained.segments_removed += 1;
            let is_free = segment.remove();
            // One more than `prepare` makes: taking over a file is far cheaper than making one.
            let wanted = self.spare_count() <= self.config.spare_segments as usize;
            if is_free && wanted && segment.bytes == self.config.segment_bytes {
                let spare = recycle(self, &mut maintenance, &segment)?;
                self.add_spare(spare);
                self.is_disk_full.store(false, Ordering::Release);
                retained.segments_recycled += 1;
            } else {
                self.storage.remove(&segment.file)?;
                retained.bytes_freed += segment.bytes;
            }
            self.storage.remove(&segment.index_file())?;
        }
        Ok(retained)
    }

    fn spare_count(&self) -> usize {
        hold(&self.spares).len()
    }

    fn add_spare(&self, spare: Spare<S::Map>) {
        hold(&self.spares).push_back(spare);
    }

    /// Takes the oldest segment out of the chain, if it has expired.
    fn take_expired(&self, now: UtcMillis, keep_from: SequenceNumber) -> Option<Arc<Segment<S::Map>>> {
        let keep_from = keep_from.min(self.durable());
        let Retention { ms, bytes } = self.retention();
        let mut chain = hold_write(&self.chain);
        let next = &chain.get(1)?.header;
        // All records of a segment are at most as new as the base time of the next.
        let too_old = ms > 0 && next.base_time.0.saturating_add(ms) <= now.0;
        let too_much = bytes > 0 && chain.iter().map(|segment| segment.bytes).sum::<u64>() > bytes;
        if next.base > keep_from || !(too_old || too_much) {
            return None;
        }
        self.first_retained.store(next.base.0, Ordering::Release);
        chain.pop_front()
    }

    /// Writes the index file of every sealed segment that has none. Such a segment is synced first, because its index
    /// file says to recovery that it was.
    fn write_indexes(&self) -> io::Result<bool> {
        let missing: Vec<_> = {
            let chain = hold_read(&self.chain);
            let sealed = chain.iter().filter(|segment| segment.end().is_some());
            sealed
                .filter(|segment| !segment.has_index_file.load(Ordering::Relaxed))
                .cloned()
                .collect()
        };
        for segment in &missing {
            let end = segment.end().expect("only sealed ones were taken");
            if end > self.synced() && self.sync().is_err() {
                // The partition is closed; the syncer reports it.
                return Ok(false);
            }
            let Ok(map) = segment.map(&*self.storage)? else {
                continue;
            };
            let open = Open {
                segment: Arc::clone(segment),
                map,
            };
            let (content, _) = self.with_index(&open, |index| index.encode(&segment.header, end));
            self.storage.write_file(&segment.index_file(), &content)?;
            segment.has_index_file.store(true, Ordering::Relaxed);
            segment.forget_index();
        }
        Ok(!missing.is_empty())
    }
}

fn create_spare<S: Storage>(
    view: &PartitionView<S>,
    maintenance: &mut Maintenance,
) -> Result<Spare<S::Map>, io::Error> {
    let id = maintenance.next_id;
    let file = super::segment_file(view.partition, id);
    let map = view.storage.create_segment(&file, view.config.segment_bytes)?;
    maintenance.next_id += 1;
    Ok(Spare { id, file, map })
}

/// Turns the file of a removed segment into a spare. Its header goes first: a crash leaves a file that is no segment.
fn recycle<S: Storage>(
    view: &PartitionView<S>,
    maintenance: &mut Maintenance,
    segment: &Segment<S::Map>,
) -> io::Result<Spare<S::Map>> {
    let map = clear_header(&*view.storage, &segment.file)?;
    let id = maintenance.next_id;
    let file = super::segment_file(view.partition, id);
    view.storage.rename(&segment.file, &file)?;
    maintenance.next_id += 1;
    // An index of this name can only be left over from a segment that recovery gave up.
    view.storage.remove(&index_file(&file))?;
    Ok(Spare { id, file, map })
}

/// Opens a file nobody has open, and durably makes its first block zeros; its old records are then nobody's. The marks go
/// before the header, so that a crash in between leaves a segment and never a mark without a header, which is damage.
pub(super) fn clear_header<S: Storage>(storage: &S, file: &str) -> io::Result<Arc<S::Map>> {
    let mut map = storage.open_segment(file, Source::Cache)?;
    Arc::get_mut(&mut map).expect("nobody has it open").set_committed(0);
    let mut writer = map.writer().expect("nobody writes to it");
    writer.write(SEGMENT_HEADER_BYTES, &[&[0; HEADER_BLOCK_BYTES - SEGMENT_HEADER_BYTES]])?;
    map.sync()?;
    writer.write(0, &[&[0; SEGMENT_HEADER_BYTES]])?;
    map.sync()?;
    Ok(map)
}
