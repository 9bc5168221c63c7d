//! A store for tests: in memory, with commits that can be held back, lost or made to fail.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::{self, Expected, Transaction, WriteBatch, prefix_end};
use super::{Done, Entry, Scan, State, StateError, Table};

/// The store. Without further ado each batch is durable at once and answered on the caller's thread.
#[derive(Default)]
pub struct MemoryState(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
    held: VecDeque<(WriteBatch, Done)>,
    is_holding: bool,
    held_max: Option<usize>,
    failures: VecDeque<Failure>,
}

/// What becomes of a batch whose commit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is lost.
    Lost,
    /// It is durable all the same: the caller may not conclude anything from the error.
    Written,
}

impl MemoryState {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on batches wait for `release`; at most `held_max` of them, then `Busy`.
    pub fn hold(&self, held_max: usize) {
        let mut inner = self.lock();
        inner.is_holding = true;
        inner.held_max = Some(held_max);
    }

    /// Commits the batches that wait, oldest first, at most `count`. Says how many there were.
    pub fn release(&self, count: usize) -> usize {
        for done in 0..count {
            let Some((batch, answer)) = self.lock().held.pop_front() else {
                return done;
            };
            self.commit_now(&batch, answer);
        }
        count
    }

    /// Ends `hold`, committing what waits.
    pub fn release_all(&self) {
        self.lock().is_holding = false;
        self.release(usize::MAX);
    }

    /// The process dies: what was not committed is gone and nobody is told. The store reads as after a restart.
    pub fn crash(&self) {
        let held = {
            let mut inner = self.lock();
            inner.is_holding = false;
            inner.failures.clear();
            std::mem::take(&mut inner.held)
        };
        drop(held);
    }

    /// The next commit fails in this way; repeatable, one commit each.
    pub fn fail_next(&self, failure: Failure) {
        self.lock().failures.push_back(failure);
    }

    /// Takes back what `fail_next` asked for.
    pub fn recover(&self) {
        self.lock().failures.clear();
    }

    fn commit_now(&self, batch: &WriteBatch, done: Done) {
        let answer = {
            let mut inner = self.lock();
            match inner.failures.pop_front() {
                Some(Failure::Lost) => Err(failed()),
                Some(Failure::Written) => apply(&mut inner, batch).and(Err(failed())),
                None => apply(&mut inner, batch),
            }
        };
        // Outside the lock: a callback may read and commit again.
        done(answer);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State for MemoryState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.lock().tables.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StateError> {
        let inner = self.lock();
        let (Some(rows), Some(bounds)) = (inner.tables.get(&table), scan.bounds()) else {
            return Ok(Vec::new());
        };
        let entries = rows.range::<Vec<u8>, _>(bounds).take(scan.limit);
        Ok(entries.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, batch: WriteBatch, done: Done) {
        let mut inner = self.lock();
        if !inner.is_holding {
            drop(inner);
            self.commit_now(&batch, done);
        } else if inner.held_max.is_some_and(|max| inner.held.len() >= max) {
            drop(inner);
            done(Err(StateError::Busy));
        } else {
            inner.held.push_back((batch, done));
        }
    }
}

fn apply(inner: &mut Inner, batch: &WriteBatch) -> Result<(), StateError> {
    match batch::apply(inner, batch) {
        Ok(answer) => answer,
    }
}

fn failed() -> StateError {
    StateError::Failed(Arc::new(std::io::Error::other("injected by the test")))
}

impl Transaction for Inner {
    type Error = Infallible;

    fn holds(&mut self, table: Table, key: &[u8], expected: &Expected) -> Result<bool, Infallible> {
        let found = self.tables.get(&table).and_then(|rows| rows.get(key));
        Ok(match expected {
            Expected::Absent => found.is_none(),
            Expected::Present => found.is_some(),
            Expected::Value(value) => found == Some(value),
        })
    }

    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.tables.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        self.tables
            .entry(table)
            .or_default()
            .insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), Infallible> {
        self.tables.entry(table).or_default().remove(key);
        Ok(())
    }

    fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> Result<(), Infallible> {
        let end = prefix_end(prefix);
        self.tables
            .entry(table)
            .or_default()
            .retain(|key, _| key.as_slice() < prefix || end.as_ref().is_some_and(|end| key >= end));
        Ok(())
    }
}
