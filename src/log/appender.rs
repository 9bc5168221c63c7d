//! The one writer of a partition.
//!
//! An append copies the batch into the mapping of the active segment: no system call, no lock, no allocation. Once in a
//! segment's life it takes a prepared spare, which is a few short locks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::header::HEADER_BLOCK_BYTES;
use super::hold::hold;
use super::index::Index;
use super::record::{ALIGNMENT, HEADER_BYTES, LENGTH_MAX, RecordHeader, padded};
use super::segment::Segment;
use super::storage::{Map, Storage, Writer};
use super::view::{Open, PartitionView};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};

/// A batch to be appended as one record.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// What the hub adds to the whole batch; at most 65,535 bytes.
    pub stamp: &'a [u8],
    /// The batch as its device framed it.
    pub payload: &'a [u8],
    /// Messages in it, at least 1: each gets a sequence number.
    pub count: u32,
    pub enqueued_time: UtcMillis,
}

/// A batch stands in the log, and is not durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub partition: PartitionId,
    pub first: SequenceNumber,
    pub count: u32,
    /// What the record takes in the segment.
    pub record_bytes: u32,
    /// That of the batch, or the last record's if that was later.
    pub enqueued_time: UtcMillis,
    /// The record is the first of a new segment: time to call `prepare`.
    pub rolled: bool,
}

/// Why an append was refused. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Retrying cannot help.
    #[error("record of {bytes} bytes exceeds {bytes_max}")]
    RecordTooLarge { bytes: usize, bytes_max: usize },
    /// The active segment is full and the next one is not prepared. Try again after `PartitionView::prepare`.
    #[error("no segment is prepared{}", if *disk_full { ": the disk is full" } else { "" })]
    NoRoom { disk_full: bool },
    /// What is on disk is unknown until recovery has run.
    #[error("partition {partition} is closed after an I/O error")]
    Poisoned {
        partition: PartitionId,
        #[source]
        cause: Arc<io::Error>,
    },
}

/// Appends to one partition.
pub struct Appender<S: Storage> {
    view: Arc<PartitionView<S>>,
    active: Open<S::Map>,
    writer: <S::Map as Map>::Writer,
    position: usize,
    next: SequenceNumber,
    last_time: UtcMillis,
    indexed_position: usize,
}

impl<S: Storage> Appender<S> {
    pub(super) fn new(view: Arc<PartitionView<S>>, active: Open<S::Map>, position: usize) -> Self {
        let writer = active.map.writer().expect("recovery let go of its writer");
        Self {
            position,
            next: view.written(),
            last_time: UtcMillis(view.last_time.load(Ordering::Relaxed)),
            indexed_position: 0,
            view,
            active,
            writer,
        }
    }

    pub fn view(&self) -> &Arc<PartitionView<S>> {
        &self.view
    }

    /// The sequence number the next batch will begin with.
    pub fn next_sequence(&self) -> SequenceNumber {
        self.next
    }

    /// Writes a batch behind the last. It can be read and acknowledged once a sync has made it durable.
    ///
    /// # Errors
    /// See `AppendError`; nothing was written.
    ///
    /// # Panics
    /// If the batch has no messages.
    pub fn append(&mut self, batch: &NewBatch<'_>) -> Result<Appended, AppendError> {
        assert!(batch.count > 0, "a batch has at least one message");
        if let Some(cause) = self.view.poison() {
            return Err(AppendError::Poisoned {
                partition: self.view.partition,
                cause: Arc::clone(cause),
            });
        }
        let (length, record_bytes) = self.size(batch)?;
        let rolled = self.position + record_bytes > self.active.map.bytes();
        if rolled {
            self.roll()?;
        }
        let header = RecordHeader {
            length,
            crc: 0,
            stamp_bytes: batch.stamp.len() as u16,
            count: batch.count,
            first: self.next,
            incarnation: self.view.incarnation,
            enqueued_time: batch.enqueued_time.max(self.last_time),
        };
        if let Err(error) = self.write(&header, batch) {
            return Err(self.poison(error));
        }
        Ok(Appended {
            partition: self.view.partition,
            first: header.first,
            count: header.count,
            record_bytes: record_bytes as u32,
            enqueued_time: header.enqueued_time,
            rolled,
        })
    }

    fn size(&self, batch: &NewBatch<'_>) -> Result<(u32, usize), AppendError> {
        let room = (self.view.config.segment_bytes as usize).min(LENGTH_MAX as usize) - HEADER_BLOCK_BYTES;
        let bytes = HEADER_BYTES + batch.stamp.len() + batch.payload.len();
        if batch.stamp.len() > usize::from(u16::MAX) {
            return Err(AppendError::RecordTooLarge {
                bytes: batch.stamp.len(),
                bytes_max: usize::from(u16::MAX),
            });
        }
        if bytes > room {
            return Err(AppendError::RecordTooLarge { bytes, bytes_max: room });
        }
        Ok((bytes as u32, padded(bytes)))
    }

    /// What a failed write left behind is unknown: nothing more is appended before the next recovery.
    fn poison(&self, error: std::io::Error) -> AppendError {
        AppendError::Poisoned {
            partition: self.view.partition,
            cause: self.view.poison_with(error),
        }
    }

    fn write(&mut self, header: &RecordHeader, batch: &NewBatch<'_>) -> std::io::Result<()> {
        let start = self.position;
        let end = start + header.padded_bytes();
        let sealed = header.seal(batch.stamp, batch.payload);
        let padding_bytes = end - start - HEADER_BYTES - batch.stamp.len() - batch.payload.len();
        let padding = &[0; ALIGNMENT][..padding_bytes];
        // A process that dies in between leaves a record whose checksum is wrong: a torn tail.
        self.writer
            .write(start, &[&sealed, batch.stamp, batch.payload, padding])?;
        self.writer.commit(end);
        let interval_bytes = self.view.config.index_interval_bytes;
        if start >= self.indexed_position + interval_bytes as usize || self.indexed_position == 0 {
            self.active
                .segment
                .note(|index| index.note(header, start, interval_bytes));
            self.indexed_position = start;
        }
        self.position = end;
        self.next = header.next();
        self.last_time = header.enqueued_time;
        self.view.last_time.store(self.last_time.0, Ordering::Release);
        self.view.written.store(self.next.0, Ordering::Release);
        Ok(())
    }

    fn roll(&mut self) -> Result<(), AppendError> {
        let spare = hold(&self.view.spares).pop_front();
        let Some(spare) = spare else {
            return Err(AppendError::NoRoom {
                disk_full: self.view.is_disk_full.load(Ordering::Acquire),
            });
        };
        let header = self
            .view
            .next_header(spare.id, self.active.segment.header.id, self.next);
        let mut writer = spare.map.writer().expect("nobody else writes to a spare");
        writer
            .write(0, &[&header.encode()])
            .map_err(|error| self.poison(error))?;
        writer.commit(HEADER_BLOCK_BYTES);
        let segment = Segment::active(header, spare.file, &spare.map, Index::default(), 0);
        let active = Open {
            segment: Arc::new(segment),
            map: spare.map,
        };
        self.active.segment.seal(self.next);
        self.view.push_active(active.clone());
        self.active = active;
        self.writer = writer;
        self.position = HEADER_BLOCK_BYTES;
        self.indexed_position = 0;
        Ok(())
    }
}
