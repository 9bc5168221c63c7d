//! What a power cut would leave of the files, for tests: the content that was forced, under the names that were forced.
//!
//! Kept per thread, by inode, because a file is forced by whoever holds it and renamed by whoever knows its name.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

#[derive(Default)]
struct Disk {
    contents: HashMap<u64, Vec<u8>>,
    names: BTreeMap<OsString, u64>,
    /// Forces that still succeed; the one after them fails once.
    forces_left: Option<u32>,
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::default();
}

/// Starts with a disk that works and holds what is in this directory.
pub(super) fn begin(directory: &Path) {
    DISK.with_borrow_mut(|disk| *disk = Disk::default());
    for entry in fs::read_dir(directory).unwrap() {
        force(&File::open(entry.unwrap().path()).unwrap()).unwrap();
    }
    force(&File::open(directory).unwrap()).unwrap();
}

/// The force after `successes` more ones fails, and forces nothing.
pub(super) fn fail_after(successes: u32) {
    DISK.with_borrow_mut(|disk| disk.forces_left = Some(successes));
}

/// Called in place of every force.
pub(super) fn force(file: &File) -> io::Result<()> {
    DISK.with_borrow_mut(|disk| {
        match &mut disk.forces_left {
            Some(0) => {
                disk.forces_left = None;
                return Err(io::Error::other("broken by the test"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            let path = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
            disk.names = BTreeMap::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                disk.names.insert(entry.file_name(), entry.metadata()?.ino());
            }
            return Ok(());
        }
        // The descriptor may be open for writing only.
        let mut content = Vec::new();
        let mut file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
        file.rewind()?;
        file.read_to_end(&mut content)?;
        disk.contents.insert(metadata.ino(), content);
        Ok(())
    })
}

/// Writes what is left to an empty directory.
pub(super) fn cut(into: &Path) {
    DISK.with_borrow(|disk| {
        for (name, inode) in &disk.names {
            let content = disk.contents.get(inode).cloned().unwrap_or_default();
            fs::write(into.join(name), content).unwrap();
        }
    });
}
