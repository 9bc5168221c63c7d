//! Segment files in memory. The only file of the crate with `unsafe` code; everything it offers is safe.
//!
//! Invariants:
//!
//! 1. `raw` maps `raw.len()` readable bytes until the `DiskMap` is dropped; a `Bytes` slice owns an `Arc` of the `DiskMap`,
//!    so it never outlives the mapping.
//! 2. Bytes below `committed` are not written any more. Slices lie below it.
//! 3. Bytes at or above `committed` are written by the one `DiskWriter` only (`has_writer` hands it out once), and read by
//!    nobody before `commit` publishes them with `Release`, which `slice` pairs with `Acquire`.
//! 4. `committed` goes back only in `set_committed`, whose `&mut self` shows that there is neither slice nor writer.
//! 5. The file keeps its length and its blocks while mapped (nothing truncates a segment; every block is allocated and
//!    written before it is mapped for writing), so that an access cannot fault. The directory lock keeps other processes away.
//! 6. Nothing is written through the mapping: readers' slices and the writer's `pwritev` meet in the page cache. Measured
//!    on ext4 (64 KiB folios, a sync every 10 batches of 10 KiB, per batch): a store into the mapping costs 4.8 us and its
//!    share of the sync 5.1 us, for a page fault per page after every sync and the write-protection before it; `pwritev`
//!    costs 3.7 us and 2.5 us, and a failed write is an error instead of a signal.
//! 7. `write_aside` changes bytes below `committed`. It is confined to the first 4 KiB, of which there are no slices.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::header::HEADER_BLOCK_BYTES;
use super::storage::{Map, Writer};

/// Parts of one write: header, stamp, payload, padding, and the rest of the last page.
const PARTS_MAX: usize = 5;
/// What the page cache keeps as a unit, at most. A larger page only costs a read.
const PAGE_BYTES: usize = 4096;
/// `write_aside` stays below this position, slices above it.
const ASIDE_BYTES: usize = HEADER_BLOCK_BYTES;

/// A mapped segment file of a real disk.
pub struct DiskMap {
    raw: MmapRaw,
    committed: AtomicUsize,
    has_writer: AtomicBool,
    file: File,
}

impl DiskMap {
    /// Maps a file opened for reading and writing, whose blocks are all allocated.
    pub(super) fn new(file: File, committed: usize) -> io::Result<Self> {
        let raw = MmapOptions::new().map_raw_read_only(&file)?;
        assert!(committed <= raw.len());
        Ok(Self {
            raw,
            committed: AtomicUsize::new(committed),
            has_writer: AtomicBool::new(false),
            file,
        })
    }
}

struct Slice {
    map: Arc<DiskMap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `slice` checked that the range lies below `committed`, so it is inside the mapping and frozen (1, 2, 5);
        // `committed` cannot go back while `self` holds the map (4).
        unsafe { std::slice::from_raw_parts(self.map.raw.as_ptr().add(self.range.start), self.range.len()) }
    }
}

impl Map for DiskMap {
    type Writer = DiskWriter;

    fn bytes(&self) -> usize {
        self.raw.len()
    }

    fn committed(&self) -> usize {
        self.committed.load(Ordering::Acquire)
    }

    fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(ASIDE_BYTES <= range.start && range.start <= range.end && range.end <= self.committed());
        Bytes::from_owner(Slice {
            map: Arc::clone(self),
            range,
        })
    }

    fn writer(self: &Arc<Self>) -> Option<DiskWriter> {
        // `Acquire` pairs with the `Release` in `drop`: a writer on another thread sees what the last one wrote.
        let taken = self
            .has_writer
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.ok().map(|_| DiskWriter { map: Arc::clone(self) })
    }

    fn set_committed(&mut self, bytes: usize) {
        assert!(bytes <= self.raw.len());
        *self.committed.get_mut() = bytes;
    }

    fn write_aside(&self, position: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(position + bytes.len() <= ASIDE_BYTES.min(self.raw.len()));
        self.file.write_all_at(bytes, position as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn will_need(&self, range: Range<usize>) {
        let end = range.end.min(self.raw.len());
        if range.start < end {
            let _ = self.raw.advise_range(Advice::WillNeed, range.start, end - range.start);
        }
    }
}

pub struct DiskWriter {
    map: Arc<DiskMap>,
}

impl Writer for DiskWriter {
    fn write(&mut self, position: usize, parts: &[&[u8]]) -> io::Result<()> {
        let map = &self.map;
        let mut bytes: usize = parts.iter().map(|part| part.len()).sum();
        assert!(position >= map.committed.load(Ordering::Relaxed));
        assert!(position <= map.raw.len() && bytes <= map.raw.len() - position);
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let mut slices = &mut slices[..=parts.len()];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        // The last page is written to its end: the page cache would have to read the rest of it from the device.
        let end = position + bytes;
        let rest_bytes = (end.next_multiple_of(PAGE_BYTES).min(map.raw.len())) - end;
        slices[parts.len()] = IoSlice::new(&[0; PAGE_BYTES][..rest_bytes]);
        bytes += rest_bytes;
        let mut position = position as u64;
        while bytes > 0 {
            let written = match rustix::io::pwritev(&map.file, slices, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(rustix::io::Errno::INTR) => continue,
                written => written?,
            };
            position += written as u64;
            bytes -= written;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    fn commit(&mut self, position: usize) {
        assert!(position >= self.map.committed.load(Ordering::Relaxed) && position <= self.map.raw.len());
        self.map.committed.store(position, Ordering::Release);
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        self.map.has_writer.store(false, Ordering::Release);
    }
}
