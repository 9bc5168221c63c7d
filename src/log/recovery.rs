//! Opening a partition: find its segments, find its end, make sure of it, and only then serve it.
//!
//! Reads the first block of every file and the records of the active segment. A sealed segment is only walked while
//! nothing shows that it was synced after its last record: no index file, no mark in its successor, no later header that
//! says so. That is the segment a crash caught just after a roll.
//!
//! Bad bytes above the last mark are a torn tail: the log ends before them, and the files behind are taken back as spares.
//! Bad bytes below it were durable once: they are reported and kept, and the log goes on behind them.
//!
//! Whatever is kept is synced before it is served. Repeating recovery at any point of it gives the same result.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::damage::{Damage, Fault};
use super::disk::UNFINISHED;
use super::header::{HEADER_BLOCK_BYTES, MARK_POSITIONS, Mark, SegmentHeader};
use super::index::Index;
use super::maintain::clear_header;
use super::segment::{INDEX_FILE_BYTES_MAX, Segment, index_file, mark_place};
use super::storage::{Map, Source, Storage, Writer};
use super::view::{Open, Parts, Spare};
use super::walk::{Durable, Place, Region, Walked, walk};
use super::{partition_dir, segment_file, segment_id};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};

/// What opening a partition found, for metrics and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub partition: PartitionId,
    pub segments: u64,
    /// Sequence numbers from the first retained to the last.
    pub records: u64,
    /// Bytes of records that were read and checked.
    pub tail_bytes_scanned: u64,
    /// Bytes behind the end of the log that look like its continuation, and are not intact.
    pub bytes_cut: u64,
    /// The first damage found. The partition is served without what is lost.
    pub damage: Option<Damage>,
    pub elapsed: Duration,
}

/// Why a partition cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{file}")]
    Io {
        file: String,
        #[source]
        cause: io::Error,
    },
    /// Records behind it were durable. Going on without them could give out sequence numbers a second time.
    #[error("{file}: the segment's header is unreadable")]
    Header { file: String },
    /// Records that were durable are not in the file any more: it was cut, or written by something else.
    #[error("{file}: the segment's mark names a place that the file does not have")]
    Mark { file: String },
    /// The directory belongs to a log and has no segment; going on would begin again at 0.
    #[error("{dir}: no segment is left")]
    NoSegment { dir: String },
}

/// A segment file that is part of the log.
struct Found {
    header: SegmentHeader,
    mark: Option<Mark>,
    file: String,
    bytes: u64,
    has_index_file: bool,
}

/// What a partition's directory holds.
#[derive(Default)]
struct Survey {
    /// In order of their ids.
    found: Vec<Found>,
    spares: Vec<SpareFile>,
    next_id: u64,
}

struct SpareFile {
    id: u64,
    file: String,
    bytes: u64,
    /// Its first block is zeros, as it is left by those who make spares.
    is_clear: bool,
}

/// A walked segment.
struct Read<M> {
    map: Arc<M>,
    walked: Walked,
    index: Index,
}

/// Opens one partition.
pub(super) struct Recovery<'a, S: Storage> {
    pub storage: &'a Arc<S>,
    pub config: &'a Arc<Config>,
    pub partition: PartitionId,
    pub incarnation: u32,
    /// The log is being created: a partition without a segment gets its first.
    pub is_new: bool,
    /// No record of a log is older than its creation.
    pub now: UtcMillis,
}

impl<S: Storage> Recovery<'_, S> {
    /// Opens the partition; also the position at which appending goes on.
    pub fn run(&self) -> Result<(Parts<S>, usize, Recovered), RecoverError> {
        let mut survey = self.survey()?;
        if survey.found.is_empty() {
            self.create_first(&mut survey)?;
        }
        let mut recovered = Recovered {
            partition: self.partition,
            segments: 0,
            records: 0,
            tail_bytes_scanned: 0,
            bytes_cut: 0,
            damage: None,
            elapsed: Duration::ZERO,
        };
        let tail = self.find_tail(&mut survey, &mut recovered)?;
        // Only now: a gap behind what was durable is part of the torn tail.
        if let Some(gap) = self.find_gap(&survey)? {
            recovered.damage.get_or_insert(gap);
        }
        let spares = self.take_spares(&mut survey)?;
        let first = survey.found[0].header.base;
        recovered.segments = survey.found.len() as u64;
        recovered.records = tail.walked.tail.sequence.0 - first.0;
        let position = tail.walked.tail.position;
        Ok((self.assemble(survey, tail, spares)?, position, recovered))
    }

    fn survey(&self) -> Result<Survey, RecoverError> {
        let dir = partition_dir(self.partition);
        self.storage.create_dir(&dir).map_err(at(&dir))?;
        let mut files = self.storage.list(&dir).map_err(at(&dir))?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let has = |name: &str| files.iter().any(|file| file.name == name);
        let mut survey = Survey::default();
        for file in &files {
            let path = format!("{dir}/{}", file.name);
            let is_orphan = file
                .name
                .strip_suffix(".idx")
                .is_some_and(|id| !has(&format!("{id}.seg")));
            if is_orphan || file.name.ends_with(UNFINISHED) {
                self.remove(&path)?;
            }
            let Some(id) = segment_id(&file.name) else { continue };
            let block = self.storage.read(&path, 0, HEADER_BLOCK_BYTES).map_err(at(&path))?;
            let header =
                SegmentHeader::decode(&block).filter(|header| header.id == id && header.partition == self.partition);
            let mark = Mark::find(&block, id);
            if let (Some(header), Some(mark)) = (&header, &mark)
                && (mark.position > file.bytes || mark.sequence < header.base)
            {
                return Err(RecoverError::Mark { file: path });
            }
            survey.next_id = id + 1;
            match header {
                Some(header) => survey.found.push(Found {
                    header,
                    mark,
                    file: path,
                    bytes: file.bytes,
                    has_index_file: has(&index_file(&file.name)),
                }),
                None => survey.spares.push(SpareFile {
                    id,
                    file: path,
                    bytes: file.bytes,
                    is_clear: block.iter().all(|byte| *byte == 0),
                }),
            }
            // A mark is written after a sync that covered the header, so the header was destroyed later.
            if header.is_none() && mark.is_some() {
                return Err(RecoverError::Header {
                    file: format!("{dir}/{}", file.name),
                });
            }
        }
        survey.next_id = survey.next_id.max(1);
        Ok(survey)
    }

    fn create_first(&self, survey: &mut Survey) -> Result<(), RecoverError> {
        if !self.is_new {
            return Err(RecoverError::NoSegment {
                dir: partition_dir(self.partition),
            });
        }
        let header = SegmentHeader {
            partition: self.partition,
            id: survey.next_id,
            previous_id: 0,
            base: SequenceNumber(0),
            base_time: self.now,
            synced: SequenceNumber(0),
            incarnation: self.incarnation,
        };
        let file = segment_file(self.partition, header.id);
        let map = self
            .storage
            .create_segment(&file, self.config.segment_bytes)
            .map_err(at(&file))?;
        let mut writer = map.writer().expect("the map is new");
        writer.write(0, &[&header.encode()]).map_err(at(&file))?;
        drop(writer);
        map.sync().map_err(at(&file))?;
        survey.next_id += 1;
        survey.found.push(Found {
            header,
            mark: None,
            file,
            bytes: self.config.segment_bytes,
            has_index_file: false,
        });
        Ok(())
    }

    /// A segment in the middle whose file is gone or whose header is unreadable.
    fn find_gap(&self, survey: &Survey) -> Result<Option<Damage>, RecoverError> {
        let gap = survey
            .found
            .windows(2)
            .find(|pair| pair[1].header.previous_id != pair[0].header.id);
        let Some([before, after]) = gap else { return Ok(None) };
        let id = after.header.previous_id;
        let is_there = survey.spares.iter().any(|spare| spare.id == id);
        let read = self.read(before, Some(after.header.base), Source::Cache)?;
        Ok(Some(Damage {
            partition: self.partition,
            file: segment_file(self.partition, id),
            position: 0,
            first: read.walked.tail.sequence,
            next: after.header.base,
            fault: if is_there {
                Fault::SegmentHeader
            } else {
                Fault::SegmentMissing { id }
            },
        }))
    }

    /// Finds the segment that is to be active and reads it; segments behind the end of the log become spares.
    fn find_tail(&self, survey: &mut Survey, recovered: &mut Recovered) -> Result<Read<S::Map>, RecoverError> {
        let mut at_segment = survey.found.len() - 1;
        while at_segment > 0 && !self.is_known_complete(&survey.found, at_segment - 1) {
            at_segment -= 1;
        }
        loop {
            let found = &survey.found[at_segment];
            let end = survey.found.get(at_segment + 1).map(|next| next.header.base);
            let read = self.read(found, end, Source::Device)?;
            recovered.tail_bytes_scanned += (read.walked.tail.position - HEADER_BLOCK_BYTES) as u64;
            if let Some(hole) = read.walked.holes.first() {
                recovered.damage.get_or_insert_with(|| Damage {
                    partition: self.partition,
                    file: found.file.clone(),
                    position: hole.position as u64,
                    first: hole.first,
                    next: hole.resumed.sequence,
                    fault: hole.fault,
                });
            }
            if end.is_some() && read.walked.stop.is_none() {
                read.map.sync().map_err(at(&found.file))?;
                at_segment += 1;
                continue;
            }
            recovered.bytes_cut = bytes_beyond(&read);
            self.give_up(survey, at_segment + 1)?;
            return Ok(read);
        }
    }

    /// Whether something shows that a sealed segment was synced after its last record.
    fn is_known_complete(&self, found: &[Found], at_segment: usize) -> bool {
        let (segment, next) = (&found[at_segment], &found[at_segment + 1]);
        let end = next.header.base;
        let later = &found[at_segment + 2..];
        next.mark.is_some() || later.iter().any(|later| later.header.synced >= end) || self.has_index(segment, end)
    }

    fn has_index(&self, segment: &Found, end: SequenceNumber) -> bool {
        let content = self.storage.read(&index_file(&segment.file), 0, INDEX_FILE_BYTES_MAX);
        content.is_ok_and(|content| Index::decode(&content, &segment.header, end).is_some())
    }

    fn read(&self, found: &Found, end: Option<SequenceNumber>, source: Source) -> Result<Read<S::Map>, RecoverError> {
        let map = self
            .storage
            .open_segment(&found.file, source)
            .map_err(at(&found.file))?;
        let mut index = Index::default();
        let bytes = map.slice(HEADER_BLOCK_BYTES..map.committed());
        let region = Region {
            bytes: &bytes,
            from: HEADER_BLOCK_BYTES,
            end,
        };
        let durable = Durable::Below(found.mark.as_ref().and_then(|mark| mark_place(mark, &found.header)));
        let walked = walk(region, &found.header, durable, |record, position| {
            index.note(&record.header, position, self.config.index_interval_bytes);
        });
        drop(bytes);
        Ok(Read { map, walked, index })
    }

    /// Takes segments out of the log, the last first: at every moment the rest is a log without a gap.
    fn give_up(&self, survey: &mut Survey, from: usize) -> Result<(), RecoverError> {
        while survey.found.len() > from {
            let found = survey.found.pop().expect("longer than `from`");
            clear_header(&**self.storage, &found.file).map_err(at(&found.file))?;
            self.remove(&index_file(&found.file))?;
            survey.spares.push(SpareFile {
                id: found.header.id,
                file: found.file,
                bytes: found.bytes,
                is_clear: true,
            });
        }
        Ok(())
    }

    /// The spares behind the active segment. Those before it are what an interrupted recycling left, and go; unless they
    /// hold something: then they are the remains of a damaged segment, and stay for a person to look at.
    fn take_spares(&self, survey: &mut Survey) -> Result<VecDeque<Spare<S::Map>>, RecoverError> {
        let active_id = survey.found.last().map_or(0, |found| found.header.id);
        survey.spares.sort_by_key(|spare| spare.id);
        let mut spares = VecDeque::new();
        for SpareFile {
            id,
            file,
            bytes,
            is_clear,
        } in survey.spares.drain(..)
        {
            if id < active_id && !is_clear {
                continue;
            }
            if id < active_id || bytes != self.config.segment_bytes {
                self.remove(&file)?;
                continue;
            }
            let map = if is_clear {
                let mut map = self.storage.open_segment(&file, Source::Cache).map_err(at(&file))?;
                Arc::get_mut(&mut map).expect("just opened").set_committed(0);
                map
            } else {
                clear_header(&**self.storage, &file).map_err(at(&file))?
            };
            map.will_need(0..map.bytes());
            spares.push_back(Spare { id, file, map });
        }
        Ok(spares)
    }

    fn assemble(
        &self,
        mut survey: Survey,
        tail: Read<S::Map>,
        spares: VecDeque<Spare<S::Map>>,
    ) -> Result<Parts<S>, RecoverError> {
        let active = survey.found.pop().expect("there is an active segment");
        let Read { mut map, walked, index } = tail;
        let end = walked.tail;
        let mark = Mark {
            segment_id: active.header.id,
            sequence: end.sequence,
            position: end.position as u64,
            incarnation: self.incarnation,
        };
        Arc::get_mut(&mut map).expect("just opened").set_committed(end.position);
        map.sync().map_err(at(&active.file))?;
        map.write_aside(MARK_POSITIONS[0], &mark.encode())
            .map_err(at(&active.file))?;
        map.sync().map_err(at(&active.file))?;
        map.will_need(end.position..map.bytes());
        let ends: Vec<_> = survey.found.iter().skip(1).map(|next| next.header.base).collect();
        let ends = ends.into_iter().chain([active.header.base]);
        let sealed = survey.found.into_iter().zip(ends).map(|(found, end)| {
            let Found {
                header,
                mark,
                file,
                bytes,
                has_index_file,
            } = found;
            Arc::new(Segment::sealed(header, file, bytes, mark, Some(end), has_index_file))
        });
        let trusted_from = walked.holes.last().map_or(0, |hole| hole.resumed.position);
        let segment = Segment::active(active.header, active.file, &map, index, trusted_from).with_mark(Some(mark));
        Ok(Parts {
            partition: self.partition,
            incarnation: self.incarnation,
            storage: Arc::clone(self.storage),
            config: Arc::clone(self.config),
            sealed: sealed.collect(),
            active: Open {
                segment: Arc::new(segment),
                map,
            },
            spares,
            next_id: survey.next_id,
            next_sequence: end.sequence,
            last_time: walked.last_time,
        })
    }

    fn remove(&self, file: &str) -> Result<(), RecoverError> {
        self.storage.remove(file).map_err(at(file))
    }
}

/// How far the lengths of records lead on behind the end of the log.
fn bytes_beyond<M: Map>(read: &Read<M>) -> u64 {
    let tail = read.walked.tail;
    let bytes = read.map.slice(tail.position..read.map.committed());
    let region = Region {
        bytes: &bytes,
        from: tail.position,
        end: None,
    };
    let mut place: Place = tail;
    while let Ok(record) = region.record(place, true) {
        place = place.after(&record.header);
    }
    (place.position - tail.position) as u64
}

fn at(file: &str) -> impl FnOnce(io::Error) -> RecoverError {
    let file = file.to_owned();
    move |cause| RecoverError::Io { file, cause }
}
