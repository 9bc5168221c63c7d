//! The directory of a disk-backed buffer: segment files, the state file, the lock.
//!
//! ```text
//! lock                    held as long as the buffer is open
//! state                   | magic u32 | version u32 | epoch u64 | acknowledged u64 | reserved u64 | crc u32 |
//! 00000000000000000001.seg  | magic u32 | version u32 | epoch u64 | crc u32 | entries ...
//! ```
//!
//! The state file is replaced as a whole and is on the disk when `write_state` returns, whatever the sync policy.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::BufferError;
use super::chunk::{checksum, fixed};
use crate::model::Epoch;

const STATE_MAGIC: u32 = u32::from_le_bytes(*b"FBST");
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"FBSG");
const VERSION: u32 = 1;
const STATE_BYTES: usize = 36;
const SEGMENT_HEAD_BYTES: usize = 20;

/// What must survive whatever happens to the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) epoch: Epoch,
    pub(super) acknowledged: u64,
    /// No sequence number at or above it was ever given out.
    pub(super) reserved: u64,
}

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    // Released by the system when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, BufferError> {
        fs::create_dir_all(path)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BufferError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// `None` when there is no state file or it is damaged.
    pub(super) fn read_state(&self) -> Result<Option<State>, BufferError> {
        let bytes = match fs::read(self.path.join("state")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !is_intact(&bytes, STATE_BYTES, STATE_MAGIC)? {
            return Ok(None);
        }
        Ok(Some(State {
            epoch: Epoch(u64::from_le_bytes(fixed(&bytes[8..16]))),
            acknowledged: u64::from_le_bytes(fixed(&bytes[16..24])),
            reserved: u64::from_le_bytes(fixed(&bytes[24..32])),
        }))
    }

    pub(super) fn write_state(&self, state: State) -> io::Result<()> {
        let mut bytes = head(STATE_MAGIC, state.epoch);
        bytes.extend_from_slice(&state.acknowledged.to_le_bytes());
        bytes.extend_from_slice(&state.reserved.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        let new = self.path.join("state.new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        force(&file)?;
        fs::rename(&new, self.path.join("state"))?;
        self.sync()
    }

    /// Makes created, renamed and removed names durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        force(&File::open(&self.path)?)
    }

    /// Segment ids in order.
    pub(super) fn segments(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
            // 0 is no sequence number, so such a file is none of ours.
            ids.extend(id.filter(|&id: &u64| id > 0));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn create_segment(&self, id: u64, epoch: Epoch) -> io::Result<SegmentFile> {
        let mut bytes = head(SEGMENT_MAGIC, epoch);
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        let file = File::create(self.segment_path(id))?;
        file.write_all_at(&bytes, 0)?;
        Ok(SegmentFile { file })
    }

    /// The epoch in a segment's head and the bytes behind the head; `None` when the head itself is torn.
    pub(super) fn read_segment(&self, id: u64) -> Result<Option<(Epoch, Vec<u8>)>, BufferError> {
        let mut bytes = fs::read(self.segment_path(id))?;
        if !is_intact(&bytes, SEGMENT_HEAD_BYTES, SEGMENT_MAGIC)? {
            return Ok(None);
        }
        let epoch = Epoch(u64::from_le_bytes(fixed(&bytes[8..16])));
        bytes.drain(..SEGMENT_HEAD_BYTES);
        Ok(Some((epoch, bytes)))
    }

    /// Cuts a segment behind `entries_bytes` bytes of entries.
    pub(super) fn truncate_segment(&self, id: u64, entries_bytes: usize) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.segment_path(id))?;
        SegmentFile { file }.truncate(entries_bytes)
    }

    /// Syncs a sealed segment; one that was acknowledged and removed meanwhile needs none.
    pub(super) fn sync_segment(&self, id: u64) -> io::Result<()> {
        match File::open(self.segment_path(id)) {
            Ok(file) => force(&file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn remove_segment(&self, id: u64) -> io::Result<()> {
        fs::remove_file(self.segment_path(id))
    }

    fn segment_path(&self, id: u64) -> PathBuf {
        self.path.join(format!("{id:020}.seg"))
    }
}

/// The segment file that is written.
#[derive(Debug)]
pub(super) struct SegmentFile {
    file: File,
}

impl SegmentFile {
    pub(super) fn write(&self, entry: &[u8], position: usize) -> io::Result<()> {
        self.file.write_all_at(entry, (SEGMENT_HEAD_BYTES + position) as u64)
    }

    pub(super) fn truncate(&self, entries_bytes: usize) -> io::Result<()> {
        self.file.set_len((SEGMENT_HEAD_BYTES + entries_bytes) as u64)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        force(&self.file)
    }
}

/// The only way to the disk: content, and a size that changed.
fn force(file: &File) -> io::Result<()> {
    #[cfg(test)]
    super::power::force(file)?;
    #[cfg(not(test))]
    file.sync_data()?;
    Ok(())
}

fn head(magic: u32, epoch: Epoch) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STATE_BYTES);
    bytes.extend_from_slice(&magic.to_le_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&epoch.0.to_le_bytes());
    bytes
}

/// Whether the first `len` bytes end in the checksum of the others. A file of a later version is an error, not damage:
/// it must not be cut.
fn is_intact(bytes: &[u8], len: usize, magic: u32) -> Result<bool, BufferError> {
    let Some(bytes) = bytes.get(..len) else {
        return Ok(false);
    };
    let (front, crc) = bytes.split_at(len - 4);
    let (read_magic, version) = (&front[..4], u32::from_le_bytes(fixed(&front[4..8])));
    if read_magic == magic.to_le_bytes().as_slice() && version > VERSION && version < 0x100 {
        return Err(BufferError::Version(version));
    }
    Ok(read_magic == magic.to_le_bytes().as_slice() && version == VERSION && checksum(front).to_le_bytes() == *crc)
}
