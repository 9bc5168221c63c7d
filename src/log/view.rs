//! What the threads of a partition share: how far it is written and durable, its segments, its spares.
//!
//! Order of publication, which everything rests on: the appender commits a record's bytes, then raises `written`; the
//! syncer reads `written`, syncs every file with unsynced bytes, then raises `durable`; a reader reads `durable` and finds
//! all bytes below it. A segment is sealed, and its successor in the chain, before `written` passes the successor's base.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use super::header::{MARK_POSITIONS, Mark, SegmentHeader};
use super::hold::{hold, hold_read, hold_write};
use super::index::Index;
use super::segment::Segment;
use super::storage::{Map, Storage};
use super::{Config, Retention};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};

/// A mark is written after so many bytes have become durable: it costs one small write and a dirty page.
const MARK_INTERVAL_BYTES: usize = 1 << 20;
/// Sealed segments per partition whose index stays in memory (24 KiB each with the default sizes).
const INDEXES_LOADED_MAX: usize = 16;

/// One partition, shared by its appender, the syncer, maintenance and readers.
pub struct PartitionView<S: Storage> {
    pub(super) partition: PartitionId,
    pub(super) incarnation: u32,
    pub(super) storage: Arc<S>,
    pub(super) config: Arc<Config>,
    /// What the configuration said at first.
    retention: Mutex<Retention>,
    pub(super) first_retained: AtomicU64,
    pub(super) written: AtomicU64,
    synced: AtomicU64,
    durable: AtomicU64,
    pub(super) last_time: AtomicI64,
    poison: OnceLock<Arc<io::Error>>,
    /// In order; never empty; the last one is active.
    pub(super) chain: RwLock<VecDeque<Arc<Segment<S::Map>>>>,
    pub(super) spares: Mutex<VecDeque<Spare<S::Map>>>,
    pub(super) is_disk_full: AtomicBool,
    pub(super) maintenance: Mutex<Maintenance>,
    /// Segments that may have unsynced bytes, oldest first.
    dirty: Mutex<Vec<Open<S::Map>>>,
    sync: Mutex<LastMark>,
    loaded: Mutex<VecDeque<Arc<Segment<S::Map>>>>,
}

/// A segment together with its map, which stays open.
pub(super) struct Open<M> {
    pub segment: Arc<Segment<M>>,
    pub map: Arc<M>,
}

impl<M> Clone for Open<M> {
    fn clone(&self) -> Self {
        Self {
            segment: Arc::clone(&self.segment),
            map: Arc::clone(&self.map),
        }
    }
}

/// A prepared file under the name it will have as a segment; its first block is zeros and nothing is committed.
pub(super) struct Spare<M> {
    pub id: u64,
    pub file: String,
    pub map: Arc<M>,
}

/// What only `prepare` and `retain` touch.
pub(super) struct Maintenance {
    pub next_id: u64,
}

#[derive(Default)]
struct LastMark {
    segment_id: u64,
    position: usize,
    slot: usize,
}

/// Everything recovery hands over.
pub(super) struct Parts<S: Storage> {
    pub partition: PartitionId,
    pub incarnation: u32,
    pub storage: Arc<S>,
    pub config: Arc<Config>,
    pub sealed: Vec<Arc<Segment<S::Map>>>,
    pub active: Open<S::Map>,
    pub spares: VecDeque<Spare<S::Map>>,
    pub next_id: u64,
    pub next_sequence: SequenceNumber,
    pub last_time: UtcMillis,
}

/// A sync failed, now or earlier. What is on disk is unknown until the log is opened again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("partition {partition} is closed after a failed sync")]
pub struct SyncError {
    pub partition: PartitionId,
    #[source]
    pub cause: Arc<io::Error>,
}

/// How much a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub segments: u64,
    /// Size of the segment files, spares not counted.
    pub bytes: u64,
    pub spare_segments: u64,
    pub first: SequenceNumber,
    /// No record is older.
    pub first_time: UtcMillis,
    /// The sequence number after the last one written.
    pub next: SequenceNumber,
    /// Enqueued time of the last record written.
    pub last_time: UtcMillis,
}

impl<S: Storage> PartitionView<S> {
    pub(super) fn new(parts: Parts<S>) -> Self {
        let mut chain: VecDeque<_> = parts.sealed.into();
        chain.push_back(Arc::clone(&parts.active.segment));
        let next = parts.next_sequence.0;
        let retention = Retention {
            ms: parts.config.retention_ms,
            bytes: parts.config.retention_bytes,
        };
        Self {
            retention: Mutex::new(retention),
            partition: parts.partition,
            incarnation: parts.incarnation,
            storage: parts.storage,
            config: parts.config,
            first_retained: AtomicU64::new(chain[0].header.base.0),
            written: AtomicU64::new(next),
            synced: AtomicU64::new(next),
            durable: AtomicU64::new(next),
            last_time: AtomicI64::new(parts.last_time.0),
            poison: OnceLock::new(),
            chain: RwLock::new(chain),
            spares: Mutex::new(parts.spares),
            is_disk_full: AtomicBool::new(false),
            maintenance: Mutex::new(Maintenance { next_id: parts.next_id }),
            dirty: Mutex::new(vec![parts.active]),
            sync: Mutex::default(),
            loaded: Mutex::default(),
        }
    }

    /// What is kept now.
    pub fn retention(&self) -> Retention {
        *hold(&self.retention)
    }

    /// Keeps so much from now on; what is too much then goes with the next `retain`.
    pub fn set_retention(&self, retention: Retention) {
        *hold(&self.retention) = retention;
    }

    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The lowest sequence number that can still be read.
    pub fn first_retained(&self) -> SequenceNumber {
        SequenceNumber(self.first_retained.load(Ordering::Acquire))
    }

    /// The sequence number after the last one written.
    pub fn written(&self) -> SequenceNumber {
        SequenceNumber(self.written.load(Ordering::Acquire))
    }

    /// The sequence number after the last one that may be acknowledged and read.
    pub fn durable(&self) -> SequenceNumber {
        SequenceNumber(self.durable.load(Ordering::Acquire))
    }

    /// Below this everything is on the device. Trails `durable` where that is published without a sync.
    pub(super) fn synced(&self) -> SequenceNumber {
        SequenceNumber(self.synced.load(Ordering::Acquire))
    }

    /// Whether something is written and not durable yet.
    pub fn is_dirty(&self) -> bool {
        self.durable() < self.written()
    }

    /// Whether something is written that no sync has covered; also where `durable` is published without one.
    pub fn is_unsynced(&self) -> bool {
        self.synced() < self.written()
    }

    /// Whether a failed sync or write has closed the partition.
    pub fn is_poisoned(&self) -> bool {
        self.poison().is_some()
    }

    /// What closed the partition, if anything did.
    pub fn closed_by(&self) -> Option<String> {
        self.poison().map(ToString::to_string)
    }

    /// The error that closed the partition.
    pub(super) fn poison(&self) -> Option<&Arc<io::Error>> {
        self.poison.get()
    }

    /// Closes the partition to writing because something that stands on its log cannot be had. What is readable stays so.
    pub fn close_after(&self, error: io::Error) {
        self.poison_with(error);
    }

    /// Closes the partition until the next recovery; the first error stays.
    pub(super) fn poison_with(&self, error: io::Error) -> Arc<io::Error> {
        Arc::clone(self.poison.get_or_init(|| Arc::new(error)))
    }

    fn check_poison(&self) -> Result<(), SyncError> {
        match self.poison() {
            None => Ok(()),
            Some(cause) => Err(SyncError {
                partition: self.partition,
                cause: Arc::clone(cause),
            }),
        }
    }

    /// Makes everything written before the call durable, and publishes it. Blocks for the device.
    ///
    /// # Errors
    /// `SyncError` closes the partition for good: the system may have dropped what it could not write, so that a later
    /// sync would succeed without it.
    pub fn sync(&self) -> Result<SequenceNumber, SyncError> {
        let mut mark = hold(&self.sync);
        self.check_poison()?;
        let target = self.written();
        if self.synced() < target
            && let Err(error) = self.sync_files(target, &mut mark)
        {
            let _ = self.poison.set(Arc::new(error));
            self.check_poison()?;
        }
        self.durable.fetch_max(target.0, Ordering::AcqRel);
        Ok(self.durable())
    }

    fn sync_files(&self, target: SequenceNumber, mark: &mut LastMark) -> io::Result<()> {
        // Read after `written`: a segment with bytes below the target is in the list.
        let dirty = hold(&self.dirty).clone();
        for open in &dirty {
            open.map.sync()?;
        }
        self.synced.store(target.0, Ordering::Release);
        hold(&self.dirty).retain(|open| open.segment.end().is_none_or(|end| end > target));
        match dirty.last() {
            Some(active) => self.write_mark(active, target, mark),
            None => Ok(()),
        }
    }

    fn write_mark(&self, active: &Open<S::Map>, synced: SequenceNumber, last: &mut LastMark) -> io::Result<()> {
        let (entry, _) = self.with_index(active, |index| index.by_sequence(synced));
        let Some(entry) = entry else { return Ok(()) };
        let id = active.segment.header.id;
        // A segment's first sync is always marked: it tells recovery that the header and the segment before are durable.
        if id == last.segment_id && entry.position < last.position + MARK_INTERVAL_BYTES {
            return Ok(());
        }
        last.segment_id = id;
        let mark = Mark {
            segment_id: id,
            sequence: entry.sequence,
            position: entry.position as u64,
            incarnation: self.incarnation,
        };
        last.position = entry.position;
        last.slot = (last.slot + 1) % MARK_POSITIONS.len();
        active.map.write_aside(MARK_POSITIONS[last.slot], &mark.encode())
    }

    /// For a stop, when the appender has written its last: syncs and durably marks the very end, so that the next start can
    /// tell damage to any of it from a torn tail.
    ///
    /// # Errors
    /// As `sync`.
    pub fn finish(&self) -> Result<SequenceNumber, SyncError> {
        let end = self.sync()?;
        let mut last = hold(&self.sync);
        let active = hold(&self.dirty).last().cloned();
        let marked = active.map_or(Ok(()), |active| {
            let mark = Mark {
                segment_id: active.segment.header.id,
                sequence: end,
                position: active.map.committed() as u64,
                incarnation: self.incarnation,
            };
            last.segment_id = mark.segment_id;
            last.position = active.map.committed();
            last.slot = (last.slot + 1) % MARK_POSITIONS.len();
            active.map.write_aside(MARK_POSITIONS[last.slot], &mark.encode())?;
            active.map.sync()
        });
        drop(last);
        match marked {
            Ok(()) => Ok(end),
            Err(error) => {
                self.poison_with(error);
                self.check_poison().map(|()| end)
            }
        }
    }

    /// Publishes what is written as durable without a sync: for the durability level that trusts the operating system.
    /// Survives the end of the process, not a loss of power; `prepare` still syncs segments that are full. Does nothing once the partition is closed by an error.
    pub fn publish_unsynced(&self) -> SequenceNumber {
        if self.poison().is_none() {
            self.durable.fetch_max(self.written().0, Ordering::AcqRel);
        }
        self.durable()
    }

    pub fn statistics(&self) -> Statistics {
        let chain = hold_read(&self.chain);
        Statistics {
            segments: chain.len() as u64,
            bytes: chain.iter().map(|segment| segment.bytes).sum(),
            spare_segments: hold(&self.spares).len() as u64,
            first: self.first_retained(),
            first_time: chain[0].header.base_time,
            next: self.written(),
            last_time: UtcMillis(self.last_time.load(Ordering::Acquire)),
        }
    }

    /// Makes a segment the active one. The one before is sealed already.
    pub(super) fn push_active(&self, active: Open<S::Map>) {
        hold(&self.dirty).push(active.clone());
        hold_write(&self.chain).push_back(active.segment);
    }

    /// Looks into a segment's index and keeps the number of loaded ones bounded.
    pub(super) fn with_index<R>(&self, open: &Open<S::Map>, look: impl FnOnce(&Index) -> R) -> (R, bool) {
        let (answer, loaded) =
            open.segment
                .with_index(&*self.storage, &open.map, self.config.index_interval_bytes, look);
        if loaded {
            let mut list = hold(&self.loaded);
            list.push_back(Arc::clone(&open.segment));
            let oldest = (list.len() > INDEXES_LOADED_MAX).then(|| list.pop_front()).flatten();
            drop(list);
            if let Some(oldest) = oldest {
                oldest.forget_index();
            }
        }
        (answer, loaded)
    }

    /// The header of a segment that begins at the end of the log.
    pub(super) fn next_header(&self, id: u64, previous_id: u64, base: SequenceNumber) -> SegmentHeader {
        SegmentHeader {
            partition: self.partition,
            id,
            previous_id,
            base,
            base_time: UtcMillis(self.last_time.load(Ordering::Acquire)),
            synced: self.synced(),
            incarnation: self.incarnation,
        }
    }
}
