//! Looking at a log that nobody serves: is it whole, how much is in it, what is in it.
//!
//! Reads only, takes no lock and recovers nothing. On a log that is in use, or that was not closed cleanly, the end may
//! look torn; what is above the last mark is therefore told apart from damage.

use std::io;

use super::damage::{Damage, Fault};
use super::format::{self, Format};
use super::header::{HEADER_BLOCK_BYTES, Mark, SegmentHeader};
use super::index::Index;
use super::record::RecordHeader;
use super::segment::{INDEX_FILE_BYTES_MAX, index_file, mark_place};
use super::storage::Storage;
use super::walk::{Durable, Place, Region, Walked, walk};
use super::{partition_dir, segment_file, segment_id};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};

/// Why a log could not be looked at. Damage of records is no error here.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("the file `format` is missing or damaged: not a log, or not one of this version")]
    Format,
    #[error("{file}")]
    Io {
        file: String,
        #[source]
        cause: io::Error,
    },
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub partitions: Vec<PartitionReport>,
}

impl Report {
    pub fn is_whole(&self) -> bool {
        self.partitions.iter().all(|partition| partition.damage.is_empty())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionReport {
    pub partition: PartitionId,
    pub segments: u64,
    pub spare_segments: u64,
    /// Intact batches.
    pub batches: u64,
    /// First retained, and the one after the last.
    pub first: SequenceNumber,
    pub next: SequenceNumber,
    pub first_time: UtcMillis,
    pub last_time: UtcMillis,
    pub bytes: u64,
    /// Everything that is lost, in order.
    pub damage: Vec<Damage>,
    /// Where and why the last segment's records end, if not where nothing was ever written.
    pub torn: Option<Torn>,
    /// Index files that are missing, damaged, or disagree; made again when the log is served.
    pub stale_indexes: Vec<String>,
}

/// Records were begun that are not whole, and never were durable: the next opening cuts them off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub file: String,
    pub position: u64,
    pub sequence: SequenceNumber,
    pub fault: Fault,
}

/// Which records `dump` gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub partition: Option<PartitionId>,
    /// From this sequence number on.
    pub from: Option<SequenceNumber>,
    /// Up to, and without, this one.
    pub until: Option<SequenceNumber>,
    /// Enqueued at this time or later.
    pub time_from: Option<UtcMillis>,
    /// Enqueued before this time.
    pub time_until: Option<UtcMillis>,
}

impl Filter {
    fn takes(&self, header: &RecordHeader) -> bool {
        self.from.is_none_or(|from| header.next() > from)
            && self.until.is_none_or(|until| header.first < until)
            && self.time_from.is_none_or(|from| header.enqueued_time >= from)
            && self.time_until.is_none_or(|until| header.enqueued_time < until)
    }
}

/// One batch as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    pub partition: PartitionId,
    pub file: String,
    pub position: u64,
    pub header: RecordHeader,
    pub stamp: Vec<u8>,
    pub payload: Vec<u8>,
}

/// A segment file as it is found.
struct File {
    path: String,
    id: u64,
    header: Option<SegmentHeader>,
    mark: Option<Mark>,
    bytes: u64,
    is_clear: bool,
}

/// Checks every record of every partition.
///
/// # Errors
/// `InspectError` if the log cannot be read.
pub fn verify<S: Storage>(storage: &S) -> Result<Report, InspectError> {
    let partitions = partitions(storage)?;
    let reports = partitions.map(|partition| verify_partition(storage, partition));
    Ok(Report {
        partitions: reports.collect::<Result<_, _>>()?,
    })
}

/// Size and range of every partition. Reads as much as `verify`, so that the numbers are of intact records only.
///
/// # Errors
/// `InspectError` if the log cannot be read.
pub fn stat<S: Storage>(storage: &S) -> Result<Vec<PartitionReport>, InspectError> {
    Ok(verify(storage)?.partitions)
}

/// The intact records that a filter takes, in order of partition and sequence number. Reads a segment at a time.
///
/// # Errors
/// `InspectError` if the log cannot be read; the iterator gives one for a file that cannot, and ends.
pub fn dump<S: Storage>(
    storage: &S,
    filter: Filter,
) -> Result<impl Iterator<Item = Result<Dumped, InspectError>>, InspectError> {
    let mut segments = Vec::new();
    for partition in partitions(storage)?.filter(|id| filter.partition.is_none_or(|wanted| wanted == *id)) {
        let files: Vec<_> = survey(storage, partition)?
            .into_iter()
            .filter_map(|file| Some((file.header?, file)))
            .collect();
        let ends: Vec<_> = files.iter().skip(1).map(|(header, _)| Some(header.base)).collect();
        let ends = ends.into_iter().chain([None]);
        let segment = files
            .into_iter()
            .zip(ends)
            .map(|((header, file), end)| (header, file, end));
        segments.extend(segment.filter(|(header, _, end)| {
            end.is_none_or(|end| filter.from.is_none_or(|from| end > from))
                && filter.until.is_none_or(|until| header.base < until)
        }));
    }
    let segments = segments.into_iter().flat_map(move |(header, file, end)| {
        let mut dumped = Vec::new();
        let read = read(storage, &file, &header, end, |record, position| {
            if filter.takes(&record.header) {
                dumped.push(Ok(Dumped {
                    partition: header.partition,
                    file: file.path.clone(),
                    position: position as u64,
                    header: record.header,
                    stamp: record.stamp.to_vec(),
                    payload: record.payload.to_vec(),
                }));
            }
        });
        dumped.extend(read.err().map(Err));
        dumped
    });
    Ok(segments)
}

fn partitions<S: Storage>(storage: &S) -> Result<impl Iterator<Item = PartitionId> + use<S>, InspectError> {
    let content = storage
        .read(format::FILE, 0, format::FILE_BYTES_MAX)
        .map_err(|_| InspectError::Format)?;
    let format = Format::decode(&content)
        .filter(|format| format.version == format::VERSION)
        .ok_or(InspectError::Format)?;
    Ok((0..format.partition_count).map(PartitionId))
}

fn survey<S: Storage>(storage: &S, partition: PartitionId) -> Result<Vec<File>, InspectError> {
    let dir = partition_dir(partition);
    let mut files = Vec::new();
    for file in storage.list(&dir).map_err(at(&dir))? {
        let Some(id) = segment_id(&file.name) else { continue };
        let path = segment_file(partition, id);
        let block = storage.read(&path, 0, HEADER_BLOCK_BYTES).map_err(at(&path))?;
        files.push(File {
            id,
            header: SegmentHeader::decode(&block).filter(|header| header.id == id && header.partition == partition),
            mark: Mark::find(&block, id),
            bytes: file.bytes,
            is_clear: block.iter().all(|byte| *byte == 0),
            path,
        });
    }
    files.sort_by_key(|file| file.id);
    Ok(files)
}

fn verify_partition<S: Storage>(storage: &S, partition: PartitionId) -> Result<PartitionReport, InspectError> {
    let files = survey(storage, partition)?;
    let mut report = PartitionReport {
        partition,
        segments: 0,
        spare_segments: files.iter().filter(|file| file.is_clear).count() as u64,
        batches: 0,
        first: SequenceNumber(0),
        next: SequenceNumber(0),
        first_time: UtcMillis(0),
        last_time: UtcMillis(0),
        bytes: 0,
        damage: Vec::new(),
        torn: None,
        stale_indexes: Vec::new(),
    };
    let segments: Vec<_> = files.iter().filter_map(|file| Some((file, file.header?))).collect();
    for (n, (file, header)) in segments.iter().enumerate() {
        if n == 0 {
            (report.first, report.first_time) = (header.base, header.base_time);
        } else if header.previous_id != segments[n - 1].0.id {
            let next = header.base;
            report.note_gap(header.previous_id, next, &files);
        }
        let end = segments.get(n + 1).map(|(_, next)| next.base);
        report.segments += 1;
        report.bytes += file.bytes;
        let walked = read(storage, file, header, end, |_, _| report.batches += 1)?;
        report.note_walk(file, &walked, end);
        if let Some(end) = end
            && !has_index(storage, file, header, end)
        {
            report.stale_indexes.push(index_file(&file.path));
        }
    }
    report.note_headers(&files);
    Ok(report)
}

impl PartitionReport {
    /// A segment that the next one names, and that cannot be read.
    fn note_gap(&mut self, id: u64, next: SequenceNumber, files: &[File]) {
        let is_there = files.iter().any(|file| file.id == id);
        // The segment before could not know where it ends: what is missing begins where its records do end.
        let first = self.damage.pop().map_or(self.next, |damage| damage.first);
        self.damage.push(Damage {
            partition: self.partition,
            file: segment_file(self.partition, id),
            position: 0,
            first,
            next,
            fault: if is_there {
                Fault::SegmentHeader
            } else {
                Fault::SegmentMissing { id }
            },
        });
    }

    fn note_walk(&mut self, file: &File, walked: &Walked, end: Option<SequenceNumber>) {
        let damage = |position: usize, first, next, fault| Damage {
            partition: self.partition,
            file: file.path.clone(),
            position: position as u64,
            first,
            next,
            fault,
        };
        for hole in &walked.holes {
            self.damage
                .push(damage(hole.position, hole.first, hole.resumed.sequence, hole.fault));
        }
        let tail = walked.tail;
        self.next = end.unwrap_or(tail.sequence);
        self.last_time = walked.last_time;
        match (walked.stop, end) {
            (Some(fault), Some(end)) => self.damage.push(damage(tail.position, tail.sequence, end, fault)),
            // Only something that is of this log and of this place was begun here; the rest is free space.
            (Some(fault @ Fault::Record(super::RecordError::Checksum { .. })), None) => {
                self.torn = Some(Torn {
                    file: file.path.clone(),
                    position: tail.position as u64,
                    sequence: tail.sequence,
                    fault,
                });
            }
            _ => {}
        }
    }

    /// Files behind the last segment that were one: a mark outlives no clearing.
    fn note_headers(&mut self, files: &[File]) {
        let destroyed = files.iter().filter(|file| file.header.is_none() && file.mark.is_some());
        for file in destroyed {
            if self.damage.iter().all(|damage| damage.file != file.path) {
                self.damage.push(Damage {
                    partition: self.partition,
                    file: file.path.clone(),
                    position: 0,
                    first: self.next,
                    next: file.mark.map_or(self.next, |mark| mark.sequence),
                    fault: Fault::SegmentHeader,
                });
            }
        }
    }
}

fn has_index<S: Storage>(storage: &S, file: &File, header: &SegmentHeader, end: SequenceNumber) -> bool {
    let content = storage.read(&index_file(&file.path), 0, INDEX_FILE_BYTES_MAX);
    content.is_ok_and(|content| Index::decode(&content, header, end).is_some())
}

fn read<S: Storage>(
    storage: &S,
    file: &File,
    header: &SegmentHeader,
    end: Option<SequenceNumber>,
    visit: impl FnMut(&super::Record<'_>, usize),
) -> Result<Walked, InspectError> {
    let bytes = storage
        .read(&file.path, HEADER_BLOCK_BYTES as u64, file.bytes as usize)
        .map_err(at(&file.path))?;
    let region = Region {
        bytes: &bytes,
        from: HEADER_BLOCK_BYTES,
        end,
    };
    let mark: Option<Place> = file.mark.as_ref().and_then(|mark| mark_place(mark, header));
    let durable = if end.is_some() {
        Durable::All(mark)
    } else {
        Durable::Below(mark)
    };
    Ok(walk(region, header, durable, visit))
}

fn at(file: &str) -> impl FnOnce(io::Error) -> InspectError {
    let file = file.to_owned();
    move |cause| InspectError::Io { file, cause }
}
