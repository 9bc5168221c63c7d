//! What the log needs from a disk, so that tests can put a disk of their own under it.
//!
//! Paths are relative to the log's directory, with `/` between directory and file. A call that returned `Ok` from a
//! method called durable survives power loss; everything else may be lost or, for bytes written through a map, be kept in
//! part.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// A directory of segment files and a few small ones.
pub trait Storage: Send + Sync + 'static {
    type Map: Map;

    /// Takes the directory for this process until the storage is dropped; creates it if missing.
    ///
    /// # Errors
    /// `io::ErrorKind::WouldBlock` while somebody else holds it.
    fn lock(&self) -> io::Result<()>;

    /// Creates a directory unless it exists. Durable.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// The files in a directory, in no order.
    fn list(&self, path: &str) -> io::Result<Vec<File>>;

    /// Up to `bytes` bytes from a position on; fewer where the file ends.
    fn read(&self, path: &str, position: u64, bytes: usize) -> io::Result<Vec<u8>>;

    /// Replaces a small file as a whole: afterwards, and after a crash, it has the old content or the new. Durable.
    fn write_file(&self, path: &str, content: &[u8]) -> io::Result<()>;

    /// Makes a file of zeros whose every block is allocated and written, and maps it. Durable, name included; nothing
    /// is left behind on an error.
    ///
    /// # Errors
    /// `io::ErrorKind::StorageFull` if the disk is full.
    fn create_segment(&self, path: &str, bytes: u64) -> io::Result<Arc<Self::Map>>;

    /// Maps an existing file; all its bytes are committed.
    fn open_segment(&self, path: &str, source: Source) -> io::Result<Arc<Self::Map>>;

    /// Durable.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; mappings and slices of it stay valid. A missing file is no error. Durable.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Bytes that can still be allocated.
    fn free_bytes(&self) -> io::Result<u64>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub bytes: u64,
}

/// Where the content of an opened segment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Whatever the system has in memory.
    Cache,
    /// The device: after a failed sync, memory may hold bytes that the device never got.
    Device,
}

/// A segment file in memory.
///
/// Bytes below `committed` are frozen, and only they can be read; bytes above it belong to the one writer.
pub trait Map: Send + Sync + 'static {
    type Writer: Writer;

    /// Size of the file. Never 0.
    fn bytes(&self) -> usize;

    fn committed(&self) -> usize;

    /// Committed bytes; not a copy where the disk allows it. The slice stays valid for as long as it is held.
    ///
    /// # Panics
    /// If the range reaches beyond `committed`, or into the header block.
    fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes;

    /// The writer; `None` while there is one.
    fn writer(self: &Arc<Self>) -> Option<Self::Writer>;

    /// Moves the commit mark, also back; possible only while nobody else holds the map, a slice of it, or its writer.
    fn set_committed(&mut self, bytes: usize);

    /// Writes a few bytes of the header block past the mapping. Not durable before the next `sync`.
    fn write_aside(&self, position: usize, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;

    /// Asks for a range to be brought into memory; a hint, returns at once.
    fn will_need(&self, range: Range<usize>);
}

/// The one writer of a map.
pub trait Writer: Send + 'static {
    /// Copies the parts, one behind the other, to a position at or above the commit mark.
    ///
    /// # Errors
    /// The system's; how much was copied is unknown.
    ///
    /// # Panics
    /// If the range begins below the commit mark or ends beyond the map.
    fn write(&mut self, position: usize, parts: &[&[u8]]) -> io::Result<()>;

    /// Freezes everything below `position` and shows it to readers.
    fn commit(&mut self, position: usize);
}
