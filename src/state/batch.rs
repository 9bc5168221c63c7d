//! A set of writes that take effect together, and how any store applies it.

use std::ops::Bound;

use super::{StateError, Table};

/// What must be true of a key for its batch to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Absent,
    Present,
    Value(Vec<u8>),
}

impl Expected {
    /// The precondition that nobody changed a key since it was read.
    pub fn unchanged(read: Option<&[u8]>) -> Self {
        read.map_or(Self::Absent, |value| Self::Value(value.to_vec()))
    }
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    DeletePrefix(Table, Vec<u8>),
    Append(Table, Vec<u8>, Vec<u8>),
}

/// Preconditions and writes, applied in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    expected: Vec<(Table, Vec<u8>, Expected)>,
    writes: Vec<Write>,
}

impl WriteBatch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a precondition; `Conflict` counts them from 0.
    #[must_use]
    pub fn expect(mut self, table: Table, key: impl Into<Vec<u8>>, expected: Expected) -> Self {
        self.expected.push((table, key.into(), expected));
        self
    }

    #[must_use]
    pub fn put(mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Put(table, key.into(), value.into()));
        self
    }

    /// Removes a key; one that is not there is no error.
    #[must_use]
    pub fn delete(mut self, table: Table, key: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Delete(table, key.into()));
        self
    }

    /// Removes every key that starts so.
    #[must_use]
    pub fn delete_prefix(mut self, table: Table, prefix: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::DeletePrefix(table, prefix.into()));
        self
    }

    /// Adds an entry behind all that were ever appended under this prefix: its key is the prefix and the next number as
    /// eight big-endian bytes. Numbers start at 1, are dense in the order in which batches take effect, and are not given
    /// out again when entries are deleted: the last one stands under the prefix itself.
    #[must_use]
    pub fn append(mut self, table: Table, prefix: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Append(table, prefix.into(), value.into()));
        self
    }

    /// Whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of keys and values, for bounding a group.
    pub(super) fn bytes(&self) -> usize {
        self.writes
            .iter()
            .map(|write| match write {
                Write::Put(_, key, value) | Write::Append(_, key, value) => key.len() + value.len(),
                Write::Delete(_, key) | Write::DeletePrefix(_, key) => key.len(),
            })
            .sum()
    }
}

/// The open transaction of a store.
pub(super) trait Transaction {
    type Error;
    fn holds(&mut self, table: Table, key: &[u8], expected: &Expected) -> Result<bool, Self::Error>;
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), Self::Error>;
    fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> Result<(), Self::Error>;
}

/// Applies a batch if its preconditions hold. The outer error means the transaction must be given up, the inner one
/// that this batch wrote nothing and the transaction goes on.
pub(super) fn apply<T: Transaction>(
    transaction: &mut T,
    batch: &WriteBatch,
) -> Result<Result<(), StateError>, T::Error> {
    for (index, (table, key, expected)) in batch.expected.iter().enumerate() {
        if !transaction.holds(*table, key, expected)? {
            return Ok(Err(StateError::Conflict { index }));
        }
    }
    for write in &batch.writes {
        match write {
            Write::Put(table, key, value) => transaction.put(*table, key, value)?,
            Write::Delete(table, key) => transaction.delete(*table, key)?,
            Write::DeletePrefix(table, prefix) => transaction.delete_prefix(*table, prefix)?,
            Write::Append(table, prefix, value) => {
                let last = transaction.get(*table, prefix)?;
                let number = (appended(last.as_deref()) + 1).to_be_bytes();
                transaction.put(*table, &[prefix, &number[..]].concat(), value)?;
                transaction.put(*table, prefix, &number)?;
            }
        }
    }
    Ok(Ok(()))
}

/// The last number given out by [`WriteBatch::append`], from what stands under its prefix; 0 before the first.
///
/// # Panics
/// When something else was put there: the prefix belongs to `append` alone.
pub fn appended(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |bytes| {
        u64::from_be_bytes(
            bytes
                .try_into()
                .expect("only append writes the number under its prefix"),
        )
    })
}

/// From where to where an ordered map is walked.
pub(super) type KeyBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The smallest key greater than every key with this prefix; `None` if there is none.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX)? + 1;
    let mut end = prefix[..kept].to_vec();
    end[kept - 1] += 1;
    Some(end)
}

impl super::Scan<'_> {
    /// The range of keys visited, for `range` of an ordered map. `None` if it is empty.
    pub(super) fn bounds(&self) -> Option<KeyBounds> {
        let end = prefix_end(self.prefix);
        let start = match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after.to_vec()),
            _ => Bound::Included(self.prefix.to_vec()),
        };
        // Ordered maps panic when a range starts behind its end.
        if let (Bound::Excluded(start), Some(end)) = (&start, &end)
            && start >= end
        {
            return None;
        }
        Some((start, end.map_or(Bound::Unbounded, Bound::Excluded)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{MemoryState, State};

    #[test]
    fn appended_entries_are_dense_in_commit_order_and_never_renumbered() {
        let state: Arc<dyn State> = MemoryState::new();
        let append = |prefix: &str, value: &str| WriteBatch::new().append(Table::Events, prefix, value);
        let key = |number: u64| [b"p", &number.to_be_bytes()[..]].concat();
        state.commit_blocking(append("p", "one")).unwrap();
        let refused = append("p", "lost").expect(Table::Events, "no such key", Expected::Present);
        assert!(state.commit_blocking(refused).is_err());
        state
            .commit_blocking(append("p", "two").append(Table::Events, "p", "three"))
            .unwrap();
        state.commit_blocking(append("q", "other")).unwrap();
        let get = |number| state.get(Table::Events, &key(number)).unwrap();
        assert_eq!(get(1).as_deref(), Some(&b"one"[..]));
        assert_eq!(get(2).as_deref(), Some(&b"two"[..]));
        assert_eq!(get(3).as_deref(), Some(&b"three"[..]));
        let mut all = WriteBatch::new();
        for number in 1..=3 {
            all = all.delete(Table::Events, key(number));
        }
        state.commit_blocking(all).unwrap();
        state.commit_blocking(append("p", "four")).unwrap();
        assert_eq!(get(4).as_deref(), Some(&b"four"[..]));
        assert_eq!(appended(state.get(Table::Events, b"p").unwrap().as_deref()), 4);
    }

    #[test]
    fn prefix_end_carries_over_full_bytes() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255]), None);
        assert_eq!(prefix_end(&[]), None);
    }
}
