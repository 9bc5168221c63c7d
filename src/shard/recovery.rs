//! Rebuilds the duplicate filter's memory at start from what the store does not cover.

use std::sync::Arc;

use super::filter::DuplicateFilter;
use crate::hub::filter::{DeviceKey, PersistedFilter, Position};
use crate::log::{PartitionView, ReadError, SeekError, Start, Storage};
use crate::model::{DeviceId, Epoch, Generation, SequenceNumber};
use crate::state;
use crate::wire::stamp::Stamp;

const READ_BYTES: usize = 4 << 20;

/// Why the filter could not be rebuilt. The partition must stay closed, since it could store messages twice.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Seek(#[from] SeekError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("what is stored of the filter cannot be read")]
    State(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("record {0} carries no valid stamp")]
    Stamp(SequenceNumber),
}

impl ReplayError {
    /// Whether only this partition's log is at fault; otherwise it is the store, which all need.
    pub fn is_of_partition(&self) -> bool {
        match self {
            Self::Seek(_) | Self::Read(_) | Self::Stamp(_) => true,
            Self::State(_) => false,
        }
    }
}

/// Reads the filter of a partition from the store and the log; also up to where the store covers the log.
///
/// # Errors
/// `ReplayError`: the store fails, or damage in the part of the log that the filter needs.
pub fn rebuild<S: Storage>(
    view: &Arc<PartitionView<S>>,
    persisted: &PersistedFilter,
) -> Result<(DuplicateFilter, SequenceNumber), ReplayError> {
    let covered = persisted
        .covered(view.partition())
        .map_err(|error| ReplayError::State(error.into()))?;
    let mut filter = replay(view, covered)?;
    if covered <= view.durable() {
        return Ok((filter, covered));
    }
    // The store's mark lies beyond a log that lost its tail (see `replay`). It must come down before anything is
    // appended: a log that grew past it would hide the new records from the next replay.
    let durable = view.durable();
    let positions = filter.take_snapshot();
    let saved = state::blocking(|done| persisted.save(view.partition(), durable, positions, done));
    match saved {
        Some(Ok(())) => filter.snapshot_saved(),
        Some(Err(error)) => return Err(ReplayError::State(error.into())),
        None => return Err(ReplayError::State("the store is closed".into())),
    }
    Ok((filter, durable))
}

/// Reads the stamps of all records from `covered` on.
///
/// # Errors
/// `ReplayError`: damage in the part of the log that the filter needs.
fn replay<S: Storage>(view: &Arc<PartitionView<S>>, covered: SequenceNumber) -> Result<DuplicateFilter, ReplayError> {
    let mut filter = DuplicateFilter::default();
    // A log that ends before what the store covers lost its tail to a power cut at a level below `sync`: the numbers in
    // between will be given out again, so the store's mark says nothing and all that is retained is read.
    let is_mark_valid = covered <= view.durable();
    let start = if is_mark_valid {
        covered.max(view.first_retained())
    } else {
        view.first_retained()
    };
    if start >= view.durable() {
        return Ok(filter);
    }
    let mut cursor = view.cursor(Start::Sequence(start))?;
    while let Some(chunk) = cursor.read(READ_BYTES)? {
        for record in crate::log::records(&chunk.bytes) {
            let record = record.map_err(|_| ReplayError::Stamp(chunk.first_wanted))?;
            let first = record.header.first;
            let stamp = Stamp::read(record.stamp).map_err(|_| ReplayError::Stamp(first))?;
            let Ok(device) = DeviceId::new(&stamp.origin.device_id) else {
                return Err(ReplayError::Stamp(first));
            };
            if stamp.first_sequence > 0 {
                let key = DeviceKey {
                    device,
                    generation: Generation(stamp.origin.generation),
                };
                let sequence = stamp.first_sequence + u64::from(record.header.count) - 1;
                filter.replay(
                    key,
                    Position {
                        epoch: Epoch(stamp.origin.epoch),
                        sequence,
                    },
                );
            }
        }
    }
    Ok(filter)
}
