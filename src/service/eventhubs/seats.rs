//! Who reads which partition in which consumer group: at most one reader with an owner level, or five without.
//!
//! ```text
//!   reader with level n      takes the place of all that have a lower or equal level, or none; yields to a higher one
//!   reader without a level   is refused while one with a level reads, and as a sixth
//! ```
//!
//! Levels last as long as their readers: after a restart of the hub any level is as good as another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::model::{ConsumerGroup, PartitionId};
use crate::proto::amqp::{Condition, Error};

// Built-in endpoint section 4.6.
const READERS_MAX: usize = 5;

type Key = (ConsumerGroup, PartitionId);

/// Of all connections.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    taken: HashMap<Key, Vec<Arc<Taken>>>,
}

#[derive(Debug)]
struct Taken {
    number: u64,
    name: String,
    level: Option<i64>,
    lost: Mutex<Option<Error>>,
    news: Notify,
}

/// A reader's place; given up when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    key: Key,
    taken: Arc<Taken>,
}

impl Seats {
    /// Takes a place, if need be another's. The second of the answer: how many lost theirs.
    ///
    /// # Errors
    /// What the reader is to be told.
    pub fn take(
        self: &Arc<Self>,
        group: &ConsumerGroup,
        partition: PartitionId,
        name: &str,
        level: Option<i64>,
    ) -> Result<(Seat, usize), Error> {
        let key = (group.clone(), partition);
        let mut inner = self.lock();
        let readers = inner.taken.entry(key.clone()).or_default();
        let highest = readers
            .iter()
            .filter_map(|reader| Some((reader.level?, &reader.name)))
            .max();
        match (level, highest) {
            (Some(level), Some((held, holder))) if level < held => {
                let text = format!(
                    "Receiver '{holder}' with a higher epoch '{held}' already exists. Receiver '{name}' with epoch {level} \
                     cannot be created. Make sure you are creating receiver with increasing epoch value to ensure \
                     connectivity, or ensure all old epoch receivers are closed or disconnected."
                );
                return Err(Error::new(Condition::STOLEN, text));
            }
            (None, Some((held, _))) => {
                let text = format!(
                    "At least one receiver for the endpoint is created with epoch of '{held}', and so non-epoch receiver \
                     is not allowed. Either reconnect with a higher epoch, or make sure all epoch receivers are closed \
                     or disconnected."
                );
                return Err(Error::new(Condition::STOLEN, text));
            }
            (None, None) if readers.len() >= READERS_MAX => {
                let names: Vec<&str> = readers.iter().map(|reader| reader.name.as_str()).collect();
                let text = format!(
                    "Exceeded the maximum number of allowed receivers per partition in a consumer group which is \
                     {READERS_MAX}. List of connected receivers - {}.",
                    names.join(", ")
                );
                return Err(Error::new(Condition::RESOURCE_LIMIT_EXCEEDED, text));
            }
            (Some(_), _) | (None, None) => {}
        }
        let mut displaced = 0;
        if let Some(level) = level {
            for reader in readers.drain(..) {
                reader.lose(name, level);
                displaced += 1;
            }
        }
        let taken = Arc::new(Taken {
            number: inner.next,
            name: name.to_owned(),
            level,
            lost: Mutex::default(),
            news: Notify::new(),
        });
        inner.next += 1;
        inner.taken.entry(key.clone()).or_default().push(taken.clone());
        let seat = Seat {
            seats: self.clone(),
            key,
            taken,
        };
        Ok((seat, displaced))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn lose(&self, by: &str, level: i64) {
        let held = self.level.map_or_else(|| "none".to_owned(), |held| held.to_string());
        let text = format!(
            "New receiver '{by}' with higher epoch of '{level}' is created hence current receiver '{}' with epoch '{held}' \
             is getting disconnected. If you are recreating the receiver, make sure a higher epoch is used.",
            self.name
        );
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost = Some(Error::new(Condition::STOLEN, text));
        self.news.notify_one();
    }
}

impl Seat {
    /// Completes when another has taken the place.
    pub async fn lost(&self) -> Error {
        loop {
            if let Some(error) = self.loss() {
                return error;
            }
            self.taken.news.notified().await;
        }
    }

    /// What the reader is to be told if another has taken the place.
    pub fn loss(&self) -> Option<Error> {
        self.taken.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.seats.lock();
        if let Some(readers) = inner.taken.get_mut(&self.key) {
            readers.retain(|reader| reader.number != self.taken.number);
            if readers.is_empty() {
                inner.taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Room {
        seats: Arc<Seats>,
        group: ConsumerGroup,
    }

    impl Room {
        fn new() -> Self {
            Self {
                seats: Arc::default(),
                group: ConsumerGroup::new("$Default").unwrap(),
            }
        }

        fn take(&self, name: &str, level: Option<i64>) -> Result<(Seat, usize), Error> {
            self.seats.take(&self.group, PartitionId(0), name, level)
        }
    }

    #[test]
    fn a_higher_or_equal_level_takes_the_place_and_a_lower_one_is_refused() {
        let room = Room::new();
        let (first, _) = room.take("a", Some(0)).unwrap();
        assert_eq!(first.loss(), None);
        let (second, displaced) = room.take("b", Some(0)).unwrap();
        assert_eq!(displaced, 1);
        assert_eq!(first.loss().unwrap().condition, Condition::STOLEN);
        let (third, _) = room.take("c", Some(7)).unwrap();
        assert!(second.loss().is_some());
        let refused = room.take("d", Some(6)).unwrap_err();
        assert_eq!(refused.condition, Condition::STOLEN);
        assert!(refused.description.contains("'7'"), "{}", refused.description);
        // Who lost a place does not give up the one that took it.
        drop(first);
        drop(second);
        assert!(room.take("d", Some(6)).is_err());
        drop(third);
        assert!(room.take("d", Some(6)).is_ok());
    }

    #[test]
    fn readers_without_a_level_are_five_and_yield_to_one_with_it() {
        let room = Room::new();
        let five: Vec<_> = (0..5).map(|n| room.take(&format!("r{n}"), None).unwrap().0).collect();
        let sixth = room.take("r5", None).unwrap_err();
        assert_eq!(sixth.condition, Condition::RESOURCE_LIMIT_EXCEEDED);
        assert!(
            sixth.description.contains("r0, r1, r2, r3, r4"),
            "{}",
            sixth.description
        );
        let (_owner, displaced) = room.take("owner", Some(0)).unwrap();
        assert_eq!(displaced, 5);
        assert!(five.iter().all(|seat| seat.loss().is_some()));
        assert_eq!(room.take("r6", None).unwrap_err().condition, Condition::STOLEN);
    }

    #[test]
    fn a_place_is_of_one_group_and_partition() {
        let room = Room::new();
        let (one, _) = room.take("a", Some(1)).unwrap();
        let other = ConsumerGroup::new("other").unwrap();
        let (_two, displaced) = room.seats.take(&other, PartitionId(0), "b", Some(1)).unwrap();
        let (_three, more) = room.seats.take(&room.group, PartitionId(1), "c", Some(1)).unwrap();
        assert_eq!((displaced, more, one.loss()), (0, 0, None));
        drop(one);
        assert_eq!(room.seats.lock().taken.len(), 2);
    }
}
