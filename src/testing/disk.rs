//! A disk in memory that fails on command.
//!
//! `Disk` is a handle: clones see the same disk. A *process* that uses it holds a `Disk::boot` handle, which owns the
//! directory lock until it is dropped; maps of an earlier boot no longer reach the disk.
//!
//! What a crash leaves is the harshest reading of what a device promises: of bytes written and not synced, each 512-byte
//! sector is kept or lost by itself, in any order. Changes of names are durable when the call returns, as `Storage` has it;
//! a call that ends in the middle leaves an unfinished file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::log::storage::{File, Map, Source, Storage, Writer};

const SECTOR_BYTES: usize = 512;

/// A handle to a simulated disk.
#[derive(Clone, Default)]
pub struct Disk {
    shared: Arc<Mutex<State>>,
    /// Held by the handle of a booted process.
    boot: Option<Arc<Boot>>,
}

struct Boot {
    shared: Arc<Mutex<State>>,
    number: u64,
}

impl Drop for Boot {
    fn drop(&mut self) {
        let mut state = state(&self.shared);
        if state.locked_by == Some(self.number) {
            state.locked_by = None;
        }
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Arc<Mutex<Inode>>>,
    boots: u64,
    locked_by: Option<u64>,
    /// Operations still allowed before the power goes.
    operations_left: Option<u64>,
    operations: u64,
    /// Syncs still allowed before one fails.
    syncs_left: Option<u64>,
    bytes_max: Option<u64>,
    is_off: bool,
}

/// A file's bytes as the system sees them and as the device has them.
struct Inode {
    cache: Vec<u8>,
    device: Vec<u8>,
    is_dirty: Vec<bool>,
}

impl Inode {
    fn new(content: Vec<u8>) -> Self {
        Self {
            device: content.clone(),
            is_dirty: vec![false; content.len().div_ceil(SECTOR_BYTES)],
            cache: content,
        }
    }

    fn write(&mut self, position: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.cache[position..position + bytes.len()].copy_from_slice(bytes);
        let sectors = position / SECTOR_BYTES..(position + bytes.len()).div_ceil(SECTOR_BYTES);
        self.is_dirty[sectors].fill(true);
    }

    /// Brings the chosen dirty sectors to the device; all are clean afterwards.
    fn flush(&mut self, mut choose: impl FnMut() -> bool) {
        for sector in 0..self.is_dirty.len() {
            if std::mem::take(&mut self.is_dirty[sector]) && choose() {
                let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(self.cache.len());
                self.device[range.clone()].copy_from_slice(&self.cache[range]);
            }
        }
    }
}

/// SplitMix64: enough chance for a disk, and the same on every machine.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn state(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().expect("nobody panics while holding it")
}

fn power_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

impl Disk {
    /// The disk for one process: what is opened through this handle works until the next crash.
    pub fn boot(&self) -> Self {
        let mut state = state(&self.shared);
        state.boots += 1;
        state.is_off = false;
        state.operations_left = None;
        state.syncs_left = None;
        let boot = Boot {
            shared: Arc::clone(&self.shared),
            number: state.boots,
        };
        Self {
            shared: Arc::clone(&self.shared),
            boot: Some(Arc::new(boot)),
        }
    }

    /// Cuts the power before the operation after the next `operations`: it and all later ones fail. Operations are calls
    /// that change the disk or sync it.
    pub fn power_off_after(&self, operations: u64) {
        state(&self.shared).operations_left = Some(operations);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        state(&self.shared).operations
    }

    /// Lets `syncs` more syncs of segment files succeed and the next one fail. What the failed one should have written
    /// stays in memory, marked as written, and is never tried again: as Linux does it.
    pub fn fail_sync_after(&self, syncs: u64) {
        state(&self.shared).syncs_left = Some(syncs);
    }

    /// The disk takes so many bytes of files in all; `None` for no limit.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        state(&self.shared).bytes_max = bytes_max;
    }

    /// Loses the power and comes back: of every unsynced sector chance decides whether it reached the device.
    pub fn crash(&self, seed: u64) {
        let mut chance = Chance(seed);
        // One crash keeps nearly all, another nearly nothing, and most something between.
        let kept_of_8 = chance.next() % 9;
        self.restart(|inode| {
            inode.flush(|| chance.next() % 8 < kept_of_8);
            inode.cache = inode.device.clone();
        });
    }

    /// Ends the process without losing the power: the system keeps what was written.
    pub fn kill(&self) {
        self.restart(|_| {});
    }

    fn restart(&self, mut settle: impl FnMut(&mut Inode)) {
        let mut state = state(&self.shared);
        state.locked_by = None;
        state.is_off = false;
        state.operations_left = None;
        state.syncs_left = None;
        // Maps of before keep the old inodes, and with them no way to the disk.
        for file in state.files.values_mut() {
            let mut old = file.lock().expect("nobody panics while holding it");
            settle(&mut old);
            let new = Inode {
                cache: old.cache.clone(),
                device: old.device.clone(),
                is_dirty: old.is_dirty.clone(),
            };
            drop(old);
            *file = Arc::new(Mutex::new(new));
        }
    }

    /// The names of all files, in order.
    pub fn files(&self) -> Vec<String> {
        state(&self.shared).files.keys().cloned().collect()
    }

    /// Changes a file's bytes behind everybody's back, as a failing device would.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn corrupt(&self, path: &str, change: impl FnOnce(&mut [u8])) {
        let state = state(&self.shared);
        let file = state.files.get(path).expect("the file exists");
        let mut inode = file.lock().expect("nobody panics while holding it");
        change(&mut inode.cache);
        inode.device = inode.cache.clone();
    }

    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = state(&self.shared);
        state.operate()?;
        Ok(state)
    }
}

impl State {
    fn operate(&mut self) -> io::Result<()> {
        if self.operations_left == Some(0) {
            self.is_off = true;
        }
        if self.is_off {
            return Err(power_off());
        }
        self.operations += 1;
        self.operations_left = self.operations_left.map(|left| left - 1);
        Ok(())
    }

    fn check_room(&self, path: &str, bytes: u64) -> io::Result<()> {
        let used: u64 = self
            .files
            .iter()
            .filter(|(name, _)| *name != path)
            .map(|(_, file)| file.lock().expect("nobody panics while holding it").cache.len() as u64)
            .sum();
        match self.bytes_max {
            Some(bytes_max) if used + bytes > bytes_max => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn file(&self, path: &str) -> io::Result<&Arc<Mutex<Inode>>> {
        self.files.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Disk {
    type Map = DiskMap;

    fn lock(&self) -> io::Result<()> {
        let boot = self.boot.as_ref().expect("only a booted process locks");
        let mut state = self.operate()?;
        if state.locked_by.is_some_and(|holder| holder != boot.number) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked_by = Some(boot.number);
        Ok(())
    }

    fn create_dir(&self, _path: &str) -> io::Result<()> {
        self.operate().map(|_| ())
    }

    fn list(&self, path: &str) -> io::Result<Vec<File>> {
        let prefix = format!("{path}/");
        let files = state(&self.shared);
        let inside = files.files.iter().filter_map(|(name, file)| {
            Some(File {
                name: name.strip_prefix(&prefix)?.to_owned(),
                bytes: file.lock().expect("nobody panics while holding it").cache.len() as u64,
            })
        });
        Ok(inside.collect())
    }

    fn read(&self, path: &str, position: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let state = state(&self.shared);
        let inode = state.file(path)?.lock().expect("nobody panics while holding it");
        let rest = inode.cache.get(position as usize..).unwrap_or_default();
        Ok(rest[..bytes.min(rest.len())].to_vec())
    }

    fn write_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let unfinished = format!("{path}.tmp");
        let mut state = self.operate()?;
        state.check_room(path, content.len() as u64)?;
        // Power lost between here and the rename leaves the unfinished file.
        state
            .files
            .insert(unfinished.clone(), Arc::new(Mutex::new(Inode::new(content.to_vec()))));
        state.operate()?;
        let file = state.files.remove(&unfinished).expect("just inserted");
        state.files.insert(path.to_owned(), file);
        Ok(())
    }

    fn create_segment(&self, path: &str, bytes: u64) -> io::Result<Arc<DiskMap>> {
        self.write_file(path, &vec![0; bytes as usize])?;
        let map = self.open_segment(path, Source::Cache)?;
        map.committed.store(0, Ordering::Release);
        Ok(map)
    }

    fn open_segment(&self, path: &str, source: Source) -> io::Result<Arc<DiskMap>> {
        let state = state(&self.shared);
        let inode = Arc::clone(state.file(path)?);
        let bytes = {
            let mut inode = inode.lock().expect("nobody panics while holding it");
            if source == Source::Device {
                inode.flush(|| true);
                inode.cache = inode.device.clone();
            }
            inode.cache.len()
        };
        Ok(Arc::new(DiskMap {
            shared: Arc::clone(&self.shared),
            inode,
            bytes,
            committed: AtomicUsize::new(bytes),
            has_writer: AtomicBool::new(false),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.operate()?.files.remove(path);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = state(&self.shared);
        let used: usize = state
            .files
            .values()
            .map(|file| file.lock().expect("nobody panics while holding it").cache.len())
            .sum();
        Ok(state
            .bytes_max
            .map_or(u64::MAX, |bytes_max| bytes_max.saturating_sub(used as u64)))
    }
}

/// A file of a simulated disk. Slices are copies.
pub struct DiskMap {
    shared: Arc<Mutex<State>>,
    inode: Arc<Mutex<Inode>>,
    bytes: usize,
    committed: AtomicUsize,
    has_writer: AtomicBool,
}

impl DiskMap {
    fn inode(&self) -> MutexGuard<'_, Inode> {
        self.inode.lock().expect("nobody panics while holding it")
    }
}

impl Map for DiskMap {
    type Writer = DiskWriter;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn committed(&self) -> usize {
        self.committed.load(Ordering::Acquire)
    }

    fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(4096 <= range.start && range.start <= range.end && range.end <= self.committed());
        Bytes::copy_from_slice(&self.inode().cache[range])
    }

    fn writer(self: &Arc<Self>) -> Option<DiskWriter> {
        let was_taken = self.has_writer.swap(true, Ordering::AcqRel);
        (!was_taken).then(|| DiskWriter { map: Arc::clone(self) })
    }

    fn set_committed(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes);
        *self.committed.get_mut() = bytes;
    }

    fn write_aside(&self, position: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(position + bytes.len() <= 4096);
        state(&self.shared).operate()?;
        self.inode().write(position, bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = state(&self.shared);
        state.operate()?;
        if state.syncs_left == Some(0) {
            self.inode().is_dirty.fill(false);
            return Err(io::Error::other("the simulated sync failed"));
        }
        state.syncs_left = state.syncs_left.map(|left| left - 1);
        self.inode().flush(|| true);
        Ok(())
    }

    fn will_need(&self, _range: Range<usize>) {}
}

/// Writes to a file of a simulated disk.
pub struct DiskWriter {
    map: Arc<DiskMap>,
}

impl Writer for DiskWriter {
    fn write(&mut self, position: usize, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.concat();
        assert!(position >= self.map.committed());
        assert!(position + bytes.len() <= self.map.bytes);
        self.map.inode().write(position, &bytes);
        Ok(())
    }

    fn commit(&mut self, position: usize) {
        assert!(position >= self.map.committed() && position <= self.map.bytes);
        self.map.committed.store(position, Ordering::Release);
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        self.map.has_writer.store(false, Ordering::Release);
    }
}
