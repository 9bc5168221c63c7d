//! The storage of production: one directory of a local file system.
//!
//! The log's speed rests on two habits. A segment file is allocated *and* filled with zeros before it is used, so that a
//! store into its mapping finds its block and a later fdatasync has no metadata to commit. And a file is never
//! truncated, so that a mapping never loses its ground.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use memmap2::MmapMut;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};

use super::hold::hold;
use super::map::DiskMap;
use super::storage::{File, Source, Storage};

/// One write of zeros past the page cache. A sync of the active segment waits behind at most one of them.
const ZEROS_DIRECT_BYTES: usize = 256 << 10;
/// One write of zeros through the page cache. The system keeps pages in units of the writes that brought them, and every
/// later write into a unit costs with its size: an append of 10 KiB took 6.2 us after zeros in steps of 1 MiB and 3.1 us
/// after steps of 128 KiB.
const ZEROS_BUFFERED_BYTES: usize = 128 << 10;
/// Ends the names of files that are not finished; whoever finds one after a crash removes it.
pub(super) const UNFINISHED: &str = ".tmp";

pub struct DiskStorage {
    root: PathBuf,
    lock: Mutex<Option<fs::File>>,
}

impl DiskStorage {
    /// The storage in a directory. Nothing is created or locked before `lock`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            lock: Mutex::new(None),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn sync_parent(&self, path: &str) -> io::Result<()> {
        sync_dir(self.path(path).parent().unwrap_or(&self.root))
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Allocates the file's blocks and writes zeros into all of them.
fn fill(file: &fs::File, path: &Path, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // Where the file system cannot allocate ahead, the zeros below do, only slower.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    // Past the page cache: zeros that nobody will read are not worth a copy and a page each (through it they were a
    // seventh of the hub's CPU time under load). The appender writes whole pages, so it needs none of them read back.
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(path)
        .and_then(|file| write_zeros(&file, bytes, ZEROS_DIRECT_BYTES));
    match direct {
        // Not every file system offers it, nor for every size.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            write_zeros(file, bytes, ZEROS_BUFFERED_BYTES)?;
        }
        direct => direct?,
    }
    // Not fdatasync: the length and the blocks are metadata, and they must be there once and for all.
    file.sync_all()
}

fn write_zeros(file: &fs::File, bytes: u64, step_bytes: usize) -> io::Result<()> {
    // Direct writes must come from a page's beginning.
    let zeros = MmapMut::map_anon(step_bytes)?;
    let mut position = 0;
    while position < bytes {
        let step = (bytes - position).min(step_bytes as u64);
        file.write_all_at(&zeros[..step as usize], position)?;
        position += step;
    }
    Ok(())
}

impl Storage for DiskStorage {
    type Map = DiskMap;

    fn lock(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root)?;
        if let Some(parent) = self.root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path("lock"))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        *hold(&self.lock) = Some(file);
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match fs::create_dir(self.path(path)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_parent(path),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<File>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                files.push(File {
                    name,
                    bytes: metadata.len(),
                });
            }
        }
        Ok(files)
    }

    fn read(&self, path: &str, position: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let file = fs::File::open(self.path(path))?;
        let rest = file.metadata()?.len().saturating_sub(position);
        let mut content = vec![0; bytes.min(usize::try_from(rest).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut content, position)?;
        Ok(content)
    }

    fn write_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let unfinished = self.path(&format!("{path}{UNFINISHED}"));
        let write = || {
            let mut file = fs::File::create(&unfinished)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&unfinished, self.path(path))?;
            self.sync_parent(path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    fn create_segment(&self, path: &str, bytes: u64) -> io::Result<Arc<DiskMap>> {
        let unfinished = self.path(&format!("{path}{UNFINISHED}"));
        let create = || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&unfinished)?;
            fill(&file, &unfinished, bytes)?;
            let map = DiskMap::new(file, 0)?;
            fs::rename(&unfinished, self.path(path))?;
            self.sync_parent(path)?;
            Ok(Arc::new(map))
        };
        create().inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    fn open_segment(&self, path: &str, source: Source) -> io::Result<Arc<DiskMap>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(path))?;
        let bytes = file.metadata()?.len();
        if source == Source::Device {
            // Dirty pages stay in the cache through fadvise, so they go to the device first.
            file.sync_data()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(Arc::new(DiskMap::new(file, bytes as usize)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.sync_parent(to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_parent(path),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let status = rustix::fs::statvfs(&self.root)?;
        Ok(status.f_bavail * status.f_frsize)
    }
}
