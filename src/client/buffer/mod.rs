//! An ordered queue of encoded messages waiting for the hub's acknowledgement, in memory or on a disk.
//!
//! ```text
//!    acknowledged        unacknowledged              reserved on disk
//! 1 --------------- first --------------- next ----------------------- reserved
//!  (files deleted)       acknowledge ->       <- push                          sequence numbers
//! ```
//!
//! Knows nothing of sockets, runtimes, clocks, or what is in a message.
//!
//! **Sequence numbers.** The hub stores a message once by (epoch, sequence), so a number must never stand for two
//! messages. A buffer therefore numbers its messages once for its whole life, from 1 upward, and never renumbers: not
//! after a crash and not in a new epoch. Before a number is given out, the state file durably says that it may have
//! been (`reserved`, in steps of `RESERVE_COUNT`). After an unclean stop numbering goes on at `reserved`: messages that
//! were lost unsynced leave a hole, and what survived keeps its number, so the hub recognises it. A clean close lowers
//! `reserved` to the next number. Dropped messages and failed pushes leave holes too; the hub takes any number above
//! the last it stored.
//!
//! **Epochs.** A new buffer has epoch 0 and must not send before `resume` chose one. `resume` gets what the hub says at
//! connect: the last (epoch, sequence) it stored for the device.
//!
//! | hub's epoch | what happened | what `resume` does |
//! | --- | --- | --- |
//! | same, sequence below next | an ordinary reconnect | acknowledges up to it |
//! | same, sequence at or above next | this directory is an old copy: its numbers are used up | epoch + 1, keeps all |
//! | lower | nothing of this epoch arrived | nothing: all is sent |
//! | higher, own epoch 0 | a new buffer, nothing was ever sent | hub's epoch + 1, keeps all: no duplicates |
//! | higher, own epoch set | another buffer of the same device was used since | hub's epoch + 1, keeps all |
//!
//! Only in the "old copy" and "another buffer" rows can a kept message already be in the log (the hub no longer knows);
//! at least once wins over at most once, and `Resumed::is_uncertain` says so.
//!
//! **Crash.** After `sync` (or with `EachPush`, after `push`) a message survives power loss; a written one survives the
//! end of the process. Opening keeps the intact prefix of every segment file. Acknowledgements become durable with the
//! deletion of a whole file and with `close`; what reappears is sent again under its old number and filtered by the hub.
//!
//! **Memory.** With a directory, entries of sealed segments live on disk and are read back while they are sent: the
//! active segment, `RESIDENT_CHUNKS_MAX` others and what one iterator walks over. Disk: `bytes_max` and one segment.

mod chunk;
mod file;
#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::model::Epoch;
use chunk::{Body, Chunk, ENTRY_HEAD_BYTES};
use file::{Directory, SegmentFile, State};

/// Numbers reserved by one write of the state file: rare enough not to be felt, and u64 has room for 10^13 crashes.
const RESERVE_COUNT: u64 = 1 << 20;
/// Skipped when the state file is lost but entries are not: more than one life can give out (8 years at 1 M/s).
const LOST_STATE_SKIP_COUNT: u64 = 1 << 48;
/// Chunks in memory start small and grow, so that a thousand quiet devices in one process cost little.
const MEMORY_CHUNK_BYTES: usize = 256 * 1024;
const FILE_CHUNK_BYTES_MIN: u64 = 64 * 1024;
const FILE_CHUNK_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Sealed segments kept in memory beside the active one.
const RESIDENT_CHUNKS_MAX: u32 = 4;
/// A chunk's positions are 32 bits; no message of the protocol comes near.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much a buffer holds, where, and how safely.
#[derive(Clone, Debug)]
pub struct BufferConfig {
    /// Quota of unacknowledged messages: encoded bytes and 16 bytes each.
    pub bytes_max: u64,
    pub when_full: WhenFull,
    /// `None`: memory only; the messages end with the process.
    pub directory: Option<PathBuf>,
    pub sync: BufferSync,
}

/// What a push does when the quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// `BufferError::Full`; no number is used.
    Refuse,
    /// Makes room by dropping the oldest messages.
    DropOldest,
    /// Gives the message a number and drops it.
    DropNewest,
}

/// When pushed messages are forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferSync {
    /// Whenever the system likes: safe against the end of the process, not against power loss.
    Never,
    /// By `handle_timeout`, at most this often.
    Every(Duration),
    /// Before `push` returns.
    EachPush,
}

/// Why the buffer could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// Try again after an acknowledgement.
    #[error("the buffer is full")]
    Full,
    /// Retrying cannot help.
    #[error("message of {bytes} bytes exceeds {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: u64 },
    /// Another buffer, perhaps of another process, uses the directory.
    #[error("the buffer directory is in use")]
    Locked,
    /// Written by a later version of this library; left untouched.
    #[error("the buffer directory has format version {0}")]
    Version(u32),
    /// The epoch to set is not above the present one.
    #[error("an epoch must be higher than the one before")]
    EpochNotHigher,
    /// A sync failed earlier: what is on disk is unknown until the buffer is opened again. Sending and acknowledging
    /// go on.
    #[error("the buffer takes no messages after a failed sync")]
    Poisoned,
    /// The message was not taken; a later push may succeed (disk full).
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message was given its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    pub sequence: u64,
    /// Numbers between which messages were dropped to stay within the quota. With `DropNewest` the pushed one.
    pub dropped: Option<RangeInclusive<u64>>,
}

/// The last message the hub stored for the device, as it says at connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub epoch: Epoch,
    pub sequence: u64,
}

/// What a reconnect found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// To be named with every append from now on.
    pub epoch: Epoch,
    /// Kept messages may be in the log already, under an older epoch.
    pub is_uncertain: bool,
}

/// What becomes of unacknowledged messages in a new epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unacknowledged {
    /// Sent again, under their numbers.
    Keep,
    /// Counted as dropped.
    Discard,
}

/// What `open` found and could not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes cut off behind the last intact entry of each segment.
    pub cut_bytes: u64,
    /// Entries were there but no readable state file.
    pub is_state_lost: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Buffer {
    bytes_max: u64,
    when_full: WhenFull,
    sync: BufferSync,
    chunk_bytes: usize,
    store: Option<Store>,
    /// In order; the last one is active while `is_active`.
    chunks: VecDeque<Chunk>,
    is_active: bool,
    /// A freed body, so that memory mode at rest allocates nothing.
    spare: Option<Body>,
    epoch: Epoch,
    /// Everything up to it is acknowledged or dropped.
    acknowledged: u64,
    next_sequence: u64,
    live_count: u64,
    live_bytes: u64,
    dropped_count: u64,
    recovery: Recovery,
}

/// The disk's side of a buffer.
#[derive(Debug)]
struct Store {
    directory: Directory,
    active: Option<SegmentFile>,
    reserved: u64,
    unsynced: bool,
    /// Segments sealed without a sync (`BufferSync::Never`), for an explicit `sync`.
    sealed_unsynced: Vec<u64>,
    /// A segment was created since the directory was synced.
    names_unsynced: bool,
    synced_at: Option<Instant>,
    is_poisoned: bool,
    /// Sealed chunks read back, and the latest of them. Cells: reading happens behind `&self`.
    loaded_count: Cell<u32>,
    loaded_last: Cell<u64>,
    read_error: RefCell<Option<io::Error>>,
    lost_count: Cell<u64>,
}

impl Buffer {
    /// Opens a buffer, with all that survived the last one of its directory.
    ///
    /// # Errors
    /// `Locked` when it is open elsewhere, `Version` when a later version wrote it, `Io`.
    pub fn open(config: BufferConfig) -> Result<Self, BufferError> {
        let mut buffer = Self {
            bytes_max: config.bytes_max,
            when_full: config.when_full,
            sync: config.sync,
            chunk_bytes: MEMORY_CHUNK_BYTES,
            store: None,
            chunks: VecDeque::new(),
            is_active: false,
            spare: None,
            epoch: Epoch(0),
            acknowledged: 0,
            next_sequence: 1,
            live_count: 0,
            live_bytes: 0,
            dropped_count: 0,
            recovery: Recovery::default(),
        };
        if let Some(path) = &config.directory {
            let chunk_bytes = (config.bytes_max / 8).clamp(FILE_CHUNK_BYTES_MIN, FILE_CHUNK_BYTES_MAX);
            buffer.chunk_bytes = chunk_bytes as usize;
            buffer.recover(Directory::open(path)?)?;
        }
        Ok(buffer)
    }

    /// 0 until the first `resume` or `set_epoch`.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Starts a higher epoch, durably. Numbers go on; see the module's head.
    ///
    /// # Errors
    /// `EpochNotHigher`, or `Io` with the epoch unchanged.
    pub fn set_epoch(&mut self, epoch: Epoch, unacknowledged: Unacknowledged) -> Result<(), BufferError> {
        if epoch <= self.epoch {
            return Err(BufferError::EpochNotHigher);
        }
        let acknowledged = match unacknowledged {
            Unacknowledged::Keep => self.acknowledged,
            Unacknowledged::Discard => self.next_sequence - 1,
        };
        // The next segment's head names the new epoch. A poisoned buffer writes no segment, and must still send.
        if self.store.as_ref().is_none_or(|store| !store.is_poisoned) {
            self.seal()?;
        }
        if let Some(store) = &self.store {
            store.directory.write_state(State {
                epoch,
                acknowledged,
                reserved: store.reserved,
            })?;
        }
        self.epoch = epoch;
        self.dropped_count += if acknowledged > self.acknowledged {
            self.live_count
        } else {
            0
        };
        self.acknowledge(acknowledged);
        Ok(())
    }

    /// Settles at connect what is stored and which epoch to send in.
    ///
    /// # Errors
    /// `Io` when a new epoch could not be made durable: do not send.
    pub fn resume(&mut self, stored: Stored) -> Result<Resumed, BufferError> {
        let is_first = self.epoch == Epoch(0);
        let is_same = stored.epoch == self.epoch && !is_first;
        let mut is_uncertain = false;
        if is_same && stored.sequence < self.next_sequence {
            self.acknowledge(stored.sequence);
        } else if is_first || stored.epoch >= self.epoch {
            let epoch = Epoch(stored.epoch.0.checked_add(1).ok_or(BufferError::EpochNotHigher)?);
            self.set_epoch(epoch, Unacknowledged::Keep)?;
            is_uncertain = !is_first && !self.is_empty();
        }
        Ok(Resumed {
            epoch: self.epoch,
            is_uncertain,
        })
    }

    /// Appends a message under the next sequence number.
    ///
    /// # Errors
    /// `Full` (with `WhenFull::Refuse`), `TooLarge`, `Poisoned`, or `Io`: the message was not taken, though its number
    /// may be used up.
    #[inline]
    pub fn push(&mut self, encoded: &[u8]) -> Result<Pushed, BufferError> {
        let bytes = (encoded.len() + ENTRY_HEAD_BYTES) as u64;
        if encoded.len() > MESSAGE_BYTES_MAX || bytes > self.bytes_max {
            return Err(BufferError::TooLarge {
                bytes: encoded.len(),
                bytes_max: (MESSAGE_BYTES_MAX as u64).min(self.bytes_max.saturating_sub(ENTRY_HEAD_BYTES as u64)),
            });
        }
        if self.store.as_ref().is_some_and(|store| store.is_poisoned) {
            return Err(BufferError::Poisoned);
        }
        let mut dropped = None;
        if self.live_bytes + bytes > self.bytes_max {
            match self.when_full {
                WhenFull::Refuse => return Err(BufferError::Full),
                WhenFull::DropOldest => dropped = self.drop_oldest(bytes)?,
                WhenFull::DropNewest => {
                    let sequence = self.number()?;
                    self.dropped_count += 1;
                    return Ok(Pushed {
                        sequence,
                        dropped: Some(sequence..=sequence),
                    });
                }
            }
        }
        let sequence = self.number()?;
        self.append(sequence, encoded)?;
        Ok(Pushed { sequence, dropped })
    }

    /// Frees everything up to and including a sequence number. Cumulative, idempotent.
    pub fn acknowledge(&mut self, up_to: u64) {
        let up_to = up_to.min(self.next_sequence - 1);
        if up_to <= self.acknowledged {
            return;
        }
        self.acknowledged = up_to;
        while let Some(chunk) = self.chunks.front() {
            if chunk.last_sequence <= up_to {
                let is_only = self.chunks.len() == 1;
                if is_only && self.is_active && !self.is_worth_freeing() {
                    // The active file goes on: a file per message would be the cost of a quiet device otherwise.
                    self.forget_live();
                    break;
                }
                self.free_first();
            } else {
                self.shrink_first(up_to);
                break;
            }
        }
        self.evict();
    }

    /// The messages from sequence number `from` on, in order. Restarting costs two binary searches.
    ///
    /// Ends early when a file cannot be read; see `take_read_error`.
    pub fn unacknowledged(&self, from: u64) -> Iter<'_> {
        let from = from.max(self.acknowledged + 1);
        let chunk = self.chunks.partition_point(|chunk| chunk.last_sequence < from);
        let mut iter = Iter {
            buffer: self,
            chunk,
            body: None,
            position: 0,
        };
        if let Some(body) = iter.load() {
            iter.position = body.position(body.index_of(from));
        }
        iter
    }

    /// Messages that wait. May count messages that turn out to be unreadable.
    pub fn len(&self) -> u64 {
        self.live_count
    }

    pub fn is_empty(&self) -> bool {
        self.live_count == 0
    }

    /// What the quota counts.
    pub fn bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The number the next push will get.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// No waiting message is lower. It may be a hole, or `next_sequence` when nothing waits.
    pub fn first_sequence(&self) -> u64 {
        let first = self.acknowledged + 1;
        self.chunks
            .iter()
            .find(|chunk| chunk.live_count > 0)
            .map_or(self.next_sequence, |chunk| first.max(chunk.id))
    }

    /// Messages dropped by the quota or by `Unacknowledged::Discard` since `open`.
    pub fn dropped_count(&self) -> u64 {
        self.dropped_count
    }

    /// Messages that were intact at `open` or push and no longer are when read back.
    pub fn lost_count(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.lost_count.get())
    }

    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Why the last iterator ended early, if it did.
    pub fn take_read_error(&self) -> Option<io::Error> {
        self.store.as_ref()?.read_error.borrow_mut().take()
    }

    /// Forces every pushed message to the disk.
    ///
    /// # Errors
    /// `Io` the first time, `Poisoned` from then on: reopen to find out what is stored.
    pub fn sync(&mut self) -> Result<(), BufferError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        store.sync()
    }

    /// When to call `handle_timeout`: `None` while nothing waits for a sync.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let BufferSync::Every(interval) = self.sync else {
            return None;
        };
        let store = self
            .store
            .as_ref()
            .filter(|store| store.unsynced && !store.is_poisoned)?;
        Some(store.synced_at.map_or(now, |synced_at| synced_at + interval))
    }

    /// Syncs when `BufferSync::Every` is due.
    ///
    /// # Errors
    /// As `sync`.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), BufferError> {
        if self.poll_timeout(now).is_some_and(|due| now >= due) {
            self.sync()?;
            if let Some(store) = &mut self.store {
                store.synced_at = Some(now);
            }
        }
        Ok(())
    }

    /// Syncs and saves the acknowledgements, so that the next `open` goes on without a hole. Dropping does the same
    /// and cannot tell of a failure.
    ///
    /// # Errors
    /// As `sync`; nothing is lost that was safe before.
    pub fn close(mut self) -> Result<(), BufferError> {
        self.save()
    }

    fn save(&mut self) -> Result<(), BufferError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        store.sync()?;
        // Lowered for good: also the drop that follows `close` must write the same.
        store.reserved = self.next_sequence;
        store.directory.write_state(State {
            epoch: self.epoch,
            acknowledged: self.acknowledged,
            reserved: store.reserved,
        })?;
        Ok(())
    }

    fn recover(&mut self, directory: Directory) -> Result<(), BufferError> {
        let saved = directory.read_state()?;
        let bounds = saved.unwrap_or(State {
            epoch: Epoch(0),
            acknowledged: 0,
            reserved: u64::MAX - LOST_STATE_SKIP_COUNT,
        });
        let (mut last, mut epoch) = (0, bounds.epoch);
        let ids = directory.segments()?;
        let had_segments = !ids.is_empty();
        for id in ids {
            let Some((segment_epoch, data)) = directory.read_segment(id)? else {
                directory.remove_segment(id)?;
                self.recovery.cut_bytes += 1;
                continue;
            };
            let data_bytes = data.len();
            let body = Body::recover(data, last.max(id - 1), bounds.reserved);
            if body.bytes() < data_bytes {
                self.recovery.cut_bytes += (data_bytes - body.bytes()) as u64;
                directory.truncate_segment(id, body.bytes())?;
            }
            epoch = epoch.max(if saved.is_none() { segment_epoch } else { Epoch(0) });
            if let Some(index) = body.len().checked_sub(1) {
                last = body.sequence(index);
            }
            if body.len() == 0 || last <= bounds.acknowledged {
                directory.remove_segment(id)?;
                continue;
            }
            let first_live = body.index_of(bounds.acknowledged + 1);
            let mut chunk = Chunk::new(id, Body::default());
            chunk.body.take();
            chunk.last_sequence = last;
            chunk.live_count = (body.len() - first_live) as u64;
            chunk.live_bytes = (body.bytes() - body.position(first_live)) as u64;
            self.live_count += chunk.live_count;
            self.live_bytes += chunk.live_bytes;
            self.chunks.push_back(chunk);
        }
        self.recovery.is_state_lost = saved.is_none() && had_segments;
        self.epoch = epoch;
        self.acknowledged = bounds.acknowledged;
        self.next_sequence = match saved {
            Some(state) => state.reserved,
            None if had_segments => last + LOST_STATE_SKIP_COUNT,
            None => 1,
        };
        self.store = Some(Store {
            directory,
            active: None,
            reserved: self.next_sequence,
            unsynced: false,
            sealed_unsynced: Vec::new(),
            names_unsynced: false,
            synced_at: None,
            is_poisoned: false,
            loaded_count: Cell::new(0),
            loaded_last: Cell::new(0),
            read_error: RefCell::new(None),
            lost_count: Cell::new(0),
        });
        Ok(())
    }

    /// Gives out the next number, reserved on disk before.
    #[inline]
    fn number(&mut self) -> Result<u64, BufferError> {
        if let Some(store) = &mut self.store
            && self.next_sequence >= store.reserved
        {
            let reserved = self.next_sequence + RESERVE_COUNT;
            store.directory.write_state(State {
                epoch: self.epoch,
                acknowledged: self.acknowledged,
                reserved,
            })?;
            store.reserved = reserved;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Ok(sequence)
    }

    #[inline]
    fn append(&mut self, sequence: u64, encoded: &[u8]) -> Result<(), BufferError> {
        let bytes = encoded.len() + ENTRY_HEAD_BYTES;
        let has_room = self.is_active
            && self
                .chunks
                .back()
                .and_then(|chunk| chunk.body.get())
                .is_some_and(|body| body.len() == 0 || body.bytes() + bytes <= self.chunk_bytes);
        if !has_room {
            self.roll(sequence)?;
        }
        let chunk = self.chunks.back_mut().expect("there is an active chunk");
        let body = chunk.body.get_mut().expect("the active chunk is never evicted");
        let position = body.bytes();
        let entry = body.push(sequence, encoded, self.store.is_some());
        if let Some(store) = &mut self.store
            && let Err(error) = store.write(entry, position, self.sync)
        {
            body.pop();
            return Err(error);
        }
        chunk.last_sequence = sequence;
        chunk.live_count += 1;
        chunk.live_bytes += bytes as u64;
        self.live_count += 1;
        self.live_bytes += bytes as u64;
        Ok(())
    }

    #[cold]
    fn roll(&mut self, sequence: u64) -> Result<(), BufferError> {
        self.seal()?;
        if let Some(store) = &mut self.store {
            store.active = Some(store.directory.create_segment(sequence, self.epoch)?);
            store.names_unsynced = true;
        }
        self.chunks
            .push_back(Chunk::new(sequence, self.spare.take().unwrap_or_default()));
        self.is_active = true;
        self.evict();
        Ok(())
    }

    fn seal(&mut self) -> Result<(), BufferError> {
        if let Some(store) = &mut self.store {
            if self.sync != BufferSync::Never {
                store.sync()?;
            } else if let Some(chunk) = self.chunks.back().filter(|_| store.unsynced) {
                store.sealed_unsynced.push(chunk.id);
            }
            if store.active.take().is_some() {
                store.loaded_count.set(store.loaded_count.get() + 1);
            }
        }
        self.is_active = false;
        Ok(())
    }

    /// Makes room for `bytes`; the numbers between which messages went.
    fn drop_oldest(&mut self, bytes: u64) -> Result<Option<RangeInclusive<u64>>, BufferError> {
        let (mut freed, mut first, mut last) = (0, None, 0);
        let needed = (self.live_bytes + bytes).saturating_sub(self.bytes_max);
        let mut iter = self.unacknowledged(0);
        let mut count = 0;
        while freed < needed {
            let Some((sequence, encoded)) = iter.next() else { break };
            freed += (encoded.len() + ENTRY_HEAD_BYTES) as u64;
            first.get_or_insert(sequence);
            last = sequence;
            count += 1;
        }
        if let Some(error) = self.take_read_error() {
            return Err(error.into());
        }
        // Entries lost to damage are still counted; going on to the end frees them as well.
        let last = if freed < needed { self.next_sequence - 1 } else { last };
        self.acknowledge(last);
        self.dropped_count += count;
        Ok(first.map(|first| first..=last))
    }

    fn is_worth_freeing(&self) -> bool {
        let body = self.chunks.back().and_then(|chunk| chunk.body.get());
        self.store.is_none() || body.is_some_and(|body| body.bytes() >= self.chunk_bytes / 2)
    }

    fn forget_live(&mut self) {
        let chunk = self.chunks.front_mut().expect("the caller saw a chunk");
        self.live_count -= std::mem::take(&mut chunk.live_count);
        self.live_bytes -= std::mem::take(&mut chunk.live_bytes);
    }

    fn free_first(&mut self) {
        self.forget_live();
        let chunk = self.chunks.pop_front().expect("the caller saw a chunk");
        if self.chunks.is_empty() {
            self.is_active = false;
        }
        if let Some(store) = &mut self.store {
            if self.chunks.is_empty() && store.active.take().is_some() {
                store.unsynced = false;
            } else if chunk.body.get().is_some() {
                store.loaded_count.set(store.loaded_count.get() - 1);
            }
            // A file that stays is read at the next open, sent again under its old numbers, and filtered by the hub.
            let _ = store.directory.remove_segment(chunk.id);
        } else if let Some(mut body) = chunk.body.into_inner()
            && body.bytes() <= MEMORY_CHUNK_BYTES
        {
            body.clear();
            self.spare = Some(body);
        }
    }

    /// Counts again what waits in the first chunk.
    fn shrink_first(&mut self, up_to: u64) {
        let Some(body) = self.body(0) else {
            // Unreadable now: its messages stay counted until the whole chunk is acknowledged.
            return;
        };
        let first_live = body.index_of(up_to + 1);
        let count = (body.len() - first_live) as u64;
        let bytes = (body.bytes() - body.position(first_live)) as u64;
        let chunk = &mut self.chunks[0];
        self.live_count -= chunk.live_count.saturating_sub(count);
        self.live_bytes -= chunk.live_bytes.saturating_sub(bytes);
        chunk.live_count = chunk.live_count.min(count);
        chunk.live_bytes = chunk.live_bytes.min(bytes);
    }

    /// Lets go of sealed entries that are on disk, but for the chunk that was read last.
    fn evict(&mut self) {
        let Some(store) = &self.store else { return };
        if store.loaded_count.get() <= RESIDENT_CHUNKS_MAX {
            return;
        }
        let sealed_count = self.chunks.len() - usize::from(self.is_active);
        let mut kept_count = 0;
        for chunk in self.chunks.iter_mut().take(sealed_count) {
            if chunk.id == store.loaded_last.get() {
                kept_count += u32::from(chunk.body.get().is_some());
            } else {
                chunk.body.take();
            }
        }
        store.loaded_count.set(kept_count);
    }

    /// A chunk's entries, read back when they are not in memory.
    #[inline]
    fn body(&self, index: usize) -> Option<&Body> {
        let chunk = self.chunks.get(index)?;
        match chunk.body.get() {
            Some(body) => Some(body),
            None => self.store.as_ref()?.load(chunk),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Nobody is left to tell; the next `open` then recovers as after a crash.
        let _ = self.save();
    }
}

impl Store {
    fn write(&mut self, entry: &[u8], position: usize, sync: BufferSync) -> Result<(), BufferError> {
        let file = self.active.as_ref().expect("an active chunk has its file");
        if let Err(error) = file.write(entry, position) {
            // Part of the entry may be in the file; another one must not be laid over it.
            self.is_poisoned = file.truncate(position).is_err();
            return Err(error.into());
        }
        self.unsynced = true;
        if sync == BufferSync::EachPush {
            self.sync()
        } else {
            Ok(())
        }
    }

    fn sync(&mut self) -> Result<(), BufferError> {
        if self.is_poisoned {
            return Err(BufferError::Poisoned);
        }
        if let Err(error) = self.sync_files() {
            self.is_poisoned = true;
            return Err(error.into());
        }
        Ok(())
    }

    fn sync_files(&mut self) -> io::Result<()> {
        for id in std::mem::take(&mut self.sealed_unsynced) {
            self.directory.sync_segment(id)?;
        }
        if let Some(file) = self.active.as_ref().filter(|_| self.unsynced) {
            file.sync()?;
        }
        if self.names_unsynced {
            self.directory.sync()?;
        }
        self.unsynced = false;
        self.names_unsynced = false;
        Ok(())
    }

    #[cold]
    fn load<'a>(&self, chunk: &'a Chunk) -> Option<&'a Body> {
        let body = match self.directory.read_segment(chunk.id) {
            Ok(segment) => segment.map_or_else(Body::default, |(_, data)| Body::recover(data, chunk.id - 1, u64::MAX)),
            Err(BufferError::Io(error)) => {
                *self.read_error.borrow_mut() = Some(error);
                return None;
            }
            Err(error) => {
                *self.read_error.borrow_mut() = Some(io::Error::other(error));
                return None;
            }
        };
        let lost_count = chunk.live_count.saturating_sub(body.len() as u64);
        self.lost_count.set(self.lost_count.get() + lost_count);
        self.loaded_count.set(self.loaded_count.get() + 1);
        self.loaded_last.set(chunk.id);
        Some(chunk.body.get_or_init(|| body))
    }
}

/// The waiting messages with their sequence numbers, in order.
#[derive(Debug)]
pub struct Iter<'a> {
    buffer: &'a Buffer,
    chunk: usize,
    body: Option<&'a Body>,
    position: usize,
}

impl<'a> Iter<'a> {
    fn load(&mut self) -> Option<&'a Body> {
        self.body = self.buffer.body(self.chunk);
        self.body
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (u64, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((sequence, encoded, end)) = self.body?.entry(self.position) {
                self.position = end;
                return Some((sequence, encoded));
            }
            self.chunk += 1;
            self.position = 0;
            self.load()?;
        }
    }
}
