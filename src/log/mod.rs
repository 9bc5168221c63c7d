//! The partition log: segment files of checksummed records, memory-mapped, one writer and any number of readers each.
//!
//! ```text
//!   log/format                      what was fixed at creation, and the incarnation
//!   log/p0000/0000000000000001.seg  sealed   [ header block | record | record | ... | rest ]
//!   log/p0000/0000000000000001.idx           sparse index of it, derived
//!   log/p0000/0000000000000002.seg  active   [ header block | record | record | free ]
//!   log/p0000/0000000000000003.seg  spare    [ zeros | zeros, or records of a former life ]
//! ```
//!
//! Knows nothing of devices, protocols, threads, async or clocks. `shard` brings the threads: one appender a partition, one
//! syncer, one for maintenance, readers at will.
//!
//! Invariants:
//!
//! - Sequence numbers of a partition are dense and never given out twice once they were durable.
//! - Nothing below `durable` is lost by a crash; nothing at or above it is shown to a reader.
//! - Enqueued times and incarnations never decrease along a partition.
//! - A byte is written once per life of its file, and a mapped file never shrinks.
//! - After a failed sync a partition takes nothing more until it is opened again.

mod appender;
mod cursor;
mod damage;
mod disk;
mod format;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod header;
mod hold;
mod index;
mod maintain;
mod map;
pub mod record;
mod recovery;
mod segment;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod verify;
mod view;
mod walk;

use std::io;
use std::sync::Arc;
use std::time::Instant;

pub use appender::{AppendError, Appended, Appender, NewBatch};
pub use cursor::{Chunk, Cursor, ReadError, SeekError, Start};
pub use damage::{Damage, Fault};
pub use disk::DiskStorage;
pub use format::Layout;
pub use maintain::{PrepareError, Retained};
pub use record::{Record, RecordError, RecordHeader, records};
pub use recovery::{RecoverError, Recovered};
pub use storage::Storage;
pub use view::{PartitionView, Statistics, SyncError};

use crate::model::{PartitionId, UtcMillis};
use format::Format;
use recovery::Recovery;

/// How a log is laid out and what it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of a segment file; a multiple of 4096, 1 MiB to 1 GiB. Larger ones make fewer files and longer recovery; a
    /// record is at most this large, less 4 KiB.
    pub segment_bytes: u64,
    /// Distance between entries of the sparse index, at least 4 KiB. Larger ones save memory and lengthen seeks.
    pub index_interval_bytes: u32,
    /// Records are removed some time after they have become this old; 0 keeps them.
    pub retention_ms: i64,
    /// Per partition: the oldest segments are removed while the files are larger together; 0 for no limit.
    pub retention_bytes: u64,
    /// Segments made ahead per partition, at least 1. More ride out longer spells of a busy disk.
    pub spare_segments: u32,
}

/// What a partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// As `Config::retention_ms`.
    pub ms: i64,
    /// As `Config::retention_bytes`.
    pub bytes: u64,
}

/// Tests roll through many segments in little memory.
const SEGMENT_BYTES_MIN: u64 = if cfg!(any(test, feature = "testing")) {
    16 << 10
} else {
    1 << 20
};
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const INDEX_INTERVAL_BYTES_MIN: u32 = if cfg!(any(test, feature = "testing")) { 64 } else { 4096 };

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            index_interval_bytes: 64 << 10,
            retention_ms: 24 * 60 * 60 * 1000,
            retention_bytes: 0,
            spare_segments: 1,
        }
    }
}

impl Config {
    /// # Errors
    /// Says which value is out of its range.
    pub fn check(&self) -> Result<(), String> {
        let bytes = self.segment_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(4096) {
            return Err(format!(
                "segment_bytes is {bytes}: must be a multiple of 4096, {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"
            ));
        }
        if self.index_interval_bytes < INDEX_INTERVAL_BYTES_MIN {
            return Err(format!(
                "index_interval_bytes is {}: must be at least {INDEX_INTERVAL_BYTES_MIN}",
                self.index_interval_bytes
            ));
        }
        if self.retention_ms < 0 {
            return Err(format!("retention_ms is {}: must not be negative", self.retention_ms));
        }
        if self.spare_segments == 0 {
            return Err("spare_segments is 0: must be at least 1".to_owned());
        }
        Ok(())
    }
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Config(String),
    #[error("the log is in use by another process")]
    Locked,
    #[error("the log has format version {found}, this program reads {known}")]
    Version { found: u32, known: u32 },
    /// The number of partitions is fixed when a log is created.
    #[error("the log has {found} partitions, the configuration says {wanted}")]
    PartitionCount { found: u16, wanted: u16 },
    /// The file is there and unreadable. It can be written anew by hand, see `format.rs`.
    #[error("the file `format` is damaged")]
    FormatDamaged,
    /// There are records, but the file that says what they are is gone.
    #[error("partition {partition} has records, but the file `format` is missing")]
    FormatMissing { partition: PartitionId },
    #[error("partition {partition}")]
    Partition {
        partition: PartitionId,
        #[source]
        cause: RecoverError,
    },
    #[error("{action}")]
    Io {
        action: &'static str,
        #[source]
        cause: io::Error,
    },
}

/// An opened log with the appender and the report of each partition, in order.
pub type Opened<S> = (Log<S>, Vec<Appender<S>>, Vec<Recovered>);

/// A directory of partitions, held by this process.
pub struct Log<S: Storage> {
    storage: Arc<S>,
    incarnation: u32,
    views: Vec<Arc<PartitionView<S>>>,
}

impl<S: Storage> Log<S> {
    /// Takes the directory, creates the log if there is none, and recovers every partition. The appenders and the
    /// reports are in order of partitions. Everything that can be read afterwards is durable. The directory stays taken
    /// until the log, its appenders, views and cursors are dropped.
    ///
    /// # Errors
    /// `OpenError`. Damaged records are no error here: they are reported in `Recovered::damage` and by reads.
    pub fn open(storage: S, partition_count: u16, config: Config, now: UtcMillis) -> Result<Opened<S>, OpenError> {
        config.check().map_err(OpenError::Config)?;
        if partition_count == 0 {
            return Err(OpenError::Config("partition_count is 0: must be at least 1".to_owned()));
        }
        let (storage, config) = (Arc::new(storage), Arc::new(config));
        lock(&*storage)?;
        let (format, is_new) = read_format(&*storage, partition_count)?;
        let format = Format {
            incarnation: format.incarnation + 1,
            ..format
        };
        if !is_new {
            // Before anything is written under the new number: no two openings share one.
            write_format(&*storage, &format)?;
        }
        let partitions = recover_all(&storage, &config, &format, is_new, now)?;
        if is_new {
            if let Some((_, recovered)) = partitions.iter().find(|(_, recovered)| recovered.records > 0) {
                return Err(OpenError::FormatMissing {
                    partition: recovered.partition,
                });
            }
            write_format(&*storage, &format)?;
        }
        let (appenders, recovered): (Vec<_>, Vec<_>) = partitions.into_iter().unzip();
        let log = Self {
            storage,
            incarnation: format.incarnation,
            views: appenders.iter().map(|appender| Arc::clone(appender.view())).collect(),
        };
        Ok((log, appenders, recovered))
    }

    /// How often the log was opened, this time included.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The partitions' views, in order.
    pub fn views(&self) -> &[Arc<PartitionView<S>>] {
        &self.views
    }

    /// Bytes that the disk can still take.
    ///
    /// # Errors
    /// If the disk does not say.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.storage.free_bytes()
    }
}

fn lock<S: Storage>(storage: &S) -> Result<(), OpenError> {
    storage.lock().map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => OpenError::Io {
            action: "lock the log's directory",
            cause,
        },
    })
}

/// The log's format; a new one with incarnation 0 if there is none.
fn read_format<S: Storage>(storage: &S, partition_count: u16) -> Result<(Format, bool), OpenError> {
    let content = match storage.read(format::FILE, 0, format::FILE_BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let format = Format {
                version: format::VERSION,
                partition_count,
                incarnation: 0,
            };
            return Ok((format, true));
        }
        Err(cause) => {
            return Err(OpenError::Io {
                action: "read the file `format`",
                cause,
            });
        }
    };
    let format = Format::decode(&content).ok_or(OpenError::FormatDamaged)?;
    if format.version != format::VERSION {
        return Err(OpenError::Version {
            found: format.version,
            known: format::VERSION,
        });
    }
    if format.partition_count != partition_count {
        return Err(OpenError::PartitionCount {
            found: format.partition_count,
            wanted: partition_count,
        });
    }
    Ok((format, false))
}

fn write_format<S: Storage>(storage: &S, format: &Format) -> Result<(), OpenError> {
    storage
        .write_file(format::FILE, format.encode().as_bytes())
        .map_err(|cause| OpenError::Io {
            action: "write the file `format`",
            cause,
        })
}

/// Recovers all partitions, several at a time: it is mostly waiting for the disk.
fn recover_all<S: Storage>(
    storage: &Arc<S>,
    config: &Arc<Config>,
    format: &Format,
    is_new: bool,
    now: UtcMillis,
) -> Result<Vec<(Appender<S>, Recovered)>, OpenError> {
    let recover = |partition: PartitionId| {
        // Measured for the report; nothing is decided by it.
        let begin = Instant::now();
        let recovery = Recovery {
            storage,
            config,
            partition,
            incarnation: format.incarnation,
            is_new,
            now,
        };
        let (parts, position, mut recovered) = recovery
            .run()
            .map_err(|cause| OpenError::Partition { partition, cause })?;
        let active = parts.active.clone();
        let appender = Appender::new(Arc::new(PartitionView::new(parts)), active, position);
        recovered.elapsed = begin.elapsed();
        Ok((appender, recovered))
    };
    let ids: Vec<_> = (0..format.partition_count).map(PartitionId).collect();
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(ids.len());
    let recover = &recover;
    std::thread::scope(|scope| {
        let groups: Vec<_> = ids
            .chunks(ids.len().div_ceil(threads))
            .map(|group| scope.spawn(move || group.iter().copied().map(recover).collect::<Result<Vec<_>, _>>()))
            .collect();
        let groups = groups
            .into_iter()
            .map(|group| group.join().expect("recovery does not panic"));
        Ok(groups.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    })
}

fn partition_dir(partition: PartitionId) -> String {
    format!("p{:04}", partition.0)
}

fn segment_file(partition: PartitionId, id: u64) -> String {
    format!("{}/{id:016}.seg", partition_dir(partition))
}

/// The id in a segment file's name, as `segment_file` writes it.
fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    digits.parse().ok().filter(|id| *id > 0)
}
