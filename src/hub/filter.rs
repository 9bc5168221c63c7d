//! The persisted part of the duplicate filter: how far each device's appends are stored, as of a place in the log.
//!
//! Positions are saved together with `covered`, the sequence number up to which the log is contained in them. After a
//! restart the log from `covered` on is read again on top. What is in memory belongs to the shard.

use std::sync::Arc;

use crate::model::{DeviceId, Epoch, Generation, PartitionId, SequenceNumber};
use crate::state::{State, StateError, Table, WriteBatch};

/// One life of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceKey {
    pub device: DeviceId,
    pub generation: Generation,
}

/// The last append stored of a device: its own epoch and sequence, not the partition's sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub epoch: Epoch,
    pub sequence: u64,
}

/// Reads and saves positions. Cloning shares it.
#[derive(Clone)]
pub struct PersistedFilter {
    state: Arc<dyn State>,
}

impl PersistedFilter {
    pub fn new(state: Arc<dyn State>) -> Self {
        Self { state }
    }

    /// The position of a device as of `covered`; `None` if nothing of it was covered then.
    ///
    /// # Errors
    /// The store's.
    pub fn load(&self, partition: PartitionId, key: &DeviceKey) -> Result<Option<Position>, StateError> {
        let bytes = self.state.get(Table::Filter, &position_key(partition, key))?;
        bytes.map(|bytes| decode_position(&bytes)).transpose()
    }

    /// The sequence number up to which, exclusively, the log is contained in the positions. 0 if never saved.
    ///
    /// # Errors
    /// The store's.
    pub fn covered(&self, partition: PartitionId) -> Result<SequenceNumber, StateError> {
        let Some(bytes) = self.state.get(Table::Filter, &partition.0.to_be_bytes())? else {
            return Ok(SequenceNumber::default());
        };
        let bytes = <[u8; 8]>::try_from(bytes.as_slice()).map_err(|_| damaged())?;
        Ok(SequenceNumber(u64::from_be_bytes(bytes)))
    }

    /// Saves positions and `covered` in one batch. The one owner of the partition calls it, with what the log already
    /// holds durably.
    pub fn save(
        &self,
        partition: PartitionId,
        covered: SequenceNumber,
        positions: Vec<(DeviceKey, Position)>,
        done: impl FnOnce(Result<(), StateError>) + Send + 'static,
    ) {
        let mut batch = WriteBatch::new().put(Table::Filter, partition.0.to_be_bytes(), covered.0.to_be_bytes());
        for (key, position) in &positions {
            batch = batch.put(Table::Filter, position_key(partition, key), encode_position(*position));
        }
        self.state.commit(batch, Box::new(done));
    }
}

/// Under which a device's positions of every generation stand. The registry deletes them with the device.
pub(super) fn positions_prefix(partition: PartitionId, device: &DeviceId) -> Vec<u8> {
    let mut key = partition.0.to_be_bytes().to_vec();
    key.extend_from_slice(device.as_str().as_bytes());
    key.push(0);
    key
}

fn position_key(partition: PartitionId, key: &DeviceKey) -> Vec<u8> {
    let mut bytes = positions_prefix(partition, &key.device);
    bytes.extend_from_slice(&key.generation.0.to_be_bytes());
    bytes
}

fn encode_position(position: Position) -> Vec<u8> {
    [position.epoch.0.to_be_bytes(), position.sequence.to_be_bytes()].concat()
}

fn decode_position(bytes: &[u8]) -> Result<Position, StateError> {
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| damaged())?;
    let number = u128::from_be_bytes(bytes);
    Ok(Position {
        epoch: Epoch((number >> 64) as u64),
        sequence: number as u64,
    })
}

fn damaged() -> StateError {
    StateError::Failed(Arc::new(std::io::Error::from(std::io::ErrorKind::InvalidData)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MemoryState;
    use crate::state::memory::Failure;

    fn key(id: &str, generation: u64) -> DeviceKey {
        DeviceKey {
            device: DeviceId::new(id).unwrap(),
            generation: Generation(generation),
        }
    }

    fn position(epoch: u64, sequence: u64) -> Position {
        Position {
            epoch: Epoch(epoch),
            sequence,
        }
    }

    #[test]
    fn positions_and_covered_move_together() {
        let state = MemoryState::new();
        let filter = PersistedFilter::new(state.clone());
        let partition = PartitionId(3);
        assert_eq!(filter.covered(partition).unwrap(), SequenceNumber(0));
        let first = vec![
            (key("a", 1), position(7, 9)),
            (key("b", 1), position(u64::MAX, u64::MAX)),
        ];
        filter.save(partition, SequenceNumber(100), first, |saved| saved.unwrap());
        assert_eq!(filter.covered(partition).unwrap(), SequenceNumber(100));
        assert_eq!(filter.load(partition, &key("a", 1)).unwrap(), Some(position(7, 9)));
        assert_eq!(
            filter.load(partition, &key("b", 1)).unwrap(),
            Some(position(u64::MAX, u64::MAX))
        );
        assert_eq!(filter.load(partition, &key("a", 2)).unwrap(), None, "another life");
        assert_eq!(filter.load(PartitionId(4), &key("a", 1)).unwrap(), None);
        assert_eq!(filter.covered(PartitionId(4)).unwrap(), SequenceNumber(0));

        state.fail_next(Failure::Lost);
        let second = vec![(key("a", 1), position(7, 20))];
        filter.save(partition, SequenceNumber(200), second, |saved| assert!(saved.is_err()));
        assert_eq!(filter.covered(partition).unwrap(), SequenceNumber(100));
        assert_eq!(filter.load(partition, &key("a", 1)).unwrap(), Some(position(7, 9)));
    }
}
