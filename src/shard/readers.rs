//! Where consumers stand: the furthest running reader of each (group, partition), for the lag that metrics show.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::model::{ConsumerGroup, PartitionId, SequenceNumber};

type Key = (ConsumerGroup, PartitionId);

/// Shared by all cursors of all doors; entries go with their readers. Bounded by groups times partitions times streams.
#[derive(Debug, Default)]
pub struct Readers {
    positions: Mutex<HashMap<Key, Vec<Weak<AtomicU64>>>>,
}

/// One running reader.
#[derive(Debug)]
pub struct Reading(Arc<AtomicU64>);

impl Reading {
    /// Everything before `next` was handed to the connection.
    pub fn at(&self, next: SequenceNumber) {
        self.0.store(next.0, Ordering::Relaxed);
    }
}

impl Readers {
    pub fn enter(&self, group: &ConsumerGroup, partition: PartitionId, next: SequenceNumber) -> Reading {
        let position = Arc::new(AtomicU64::new(next.0));
        let mut positions = self
            .positions
            .lock()
            .expect("nothing panics while it holds the readers");
        let readers = positions.entry((group.clone(), partition)).or_default();
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(&position));
        Reading(position)
    }

    /// The furthest position of each group and partition that is being read now.
    pub fn positions(&self) -> Vec<(ConsumerGroup, PartitionId, SequenceNumber)> {
        let mut positions = self
            .positions
            .lock()
            .expect("nothing panics while it holds the readers");
        positions.retain(|_, readers| {
            readers.retain(|reader| reader.strong_count() > 0);
            !readers.is_empty()
        });
        let furthest = |readers: &Vec<Weak<AtomicU64>>| {
            readers
                .iter()
                .filter_map(Weak::upgrade)
                .map(|position| position.load(Ordering::Relaxed))
                .max()
        };
        positions
            .iter()
            .filter_map(|((group, partition), readers)| {
                furthest(readers).map(|next| (group.clone(), *partition, SequenceNumber(next)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_running_reader_counts() {
        let readers = Readers::default();
        let group = ConsumerGroup::new("$Default").unwrap();
        let slow = readers.enter(&group, PartitionId(1), SequenceNumber(5));
        let fast = readers.enter(&group, PartitionId(1), SequenceNumber(5));
        fast.at(SequenceNumber(9));
        assert_eq!(
            readers.positions(),
            [(group.clone(), PartitionId(1), SequenceNumber(9))]
        );
        drop(fast);
        assert_eq!(readers.positions(), [(group, PartitionId(1), SequenceNumber(5))]);
        drop(slow);
        assert_eq!(readers.positions(), []);
    }
}
