//! The store on disk: one redb file, one writer thread, many batches a durable transaction.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::batch::{self, Expected, Transaction, WriteBatch, prefix_end};
use super::{Done, Entry, Scan, State, StateError, Table};

/// What an operator may choose about the store.
#[derive(Clone, Debug)]
pub struct RedbConfig {
    /// Memory for pages, in bytes. Default 64 MiB; more saves reads of large registries.
    pub cache_bytes: usize,
    /// Batches that may wait. Default 1024, minimum 1; more costs their memory and hides a slow disk longer.
    pub queue_batches_max: usize,
    /// Batches in one durable transaction. Default 256, minimum 1; more makes a busy disk cheaper and the first wait
    /// longer.
    pub group_batches_max: usize,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            queue_batches_max: 1024,
            group_batches_max: 256,
        }
    }
}

/// Bytes after which a transaction takes no further batch: bounds what one commit holds in memory.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// The store in a file. Dropping it commits what is queued, then closes the file.
pub struct RedbState {
    database: Arc<Database>,
    queue: Option<Sender<Queued>>,
    writer: Option<JoinHandle<()>>,
}

struct Queued {
    batch: WriteBatch,
    done: Done,
}

impl RedbState {
    /// Opens the file, or creates it, and starts the writer thread.
    ///
    /// # Errors
    /// `Failed` when the file cannot be opened, is no store, or is open elsewhere.
    pub fn open(path: &Path, config: &RedbConfig) -> Result<Self, StateError> {
        let mut builder = Database::builder();
        builder.set_cache_size(config.cache_bytes);
        let database = Arc::new(builder.create(path).map_err(failed)?);
        let transaction = begin(&database)?;
        for table in Table::ALL {
            transaction.open_table(definition(table)).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        let (sender, receiver) = channel::bounded(config.queue_batches_max.max(1));
        let writer = Writer {
            database: Arc::clone(&database),
            group_batches_max: config.group_batches_max.max(1),
            poisoned: None,
        };
        let thread = std::thread::Builder::new()
            .name("state-writer".into())
            .spawn(move || writer.run(&receiver))
            .map_err(failed)?;
        Ok(Self {
            database,
            queue: Some(sender),
            writer: Some(thread),
        })
    }
}

impl State for RedbState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(definition(table)).map_err(failed)?;
        let value = table.get(key).map_err(failed)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StateError> {
        let Some((start, end)) = scan.bounds() else {
            return Ok(Vec::new());
        };
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(definition(table)).map_err(failed)?;
        let range = (
            start.as_ref().map(|key| key.as_slice()),
            end.as_ref().map(|key| key.as_slice()),
        );
        let entries = table.range::<&[u8]>(range).map_err(failed)?.take(scan.limit);
        entries
            .map(|entry| {
                let (key, value) = entry.map_err(failed)?;
                Ok((key.value().to_vec(), value.value().to_vec()))
            })
            .collect()
    }

    fn commit(&self, batch: WriteBatch, done: Done) {
        let queue = self.queue.as_ref().expect("the queue is taken only by drop");
        match queue.try_send(Queued { batch, done }) {
            Ok(()) => {}
            Err(TrySendError::Full(queued)) => (queued.done)(Err(StateError::Busy)),
            Err(TrySendError::Disconnected(queued)) => (queued.done)(Err(StateError::Closed)),
        }
    }
}

impl Drop for RedbState {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != std::thread::current().id()
        {
            // A writer that panicked has told so itself; closing goes on.
            let _ = writer.join();
        }
    }
}

struct Writer {
    database: Arc<Database>,
    group_batches_max: usize,
    /// Set by the first failure, answered to every batch from then on.
    poisoned: Option<StateError>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Queued>) {
        // Ends when the store is dropped: what is queued by then is still taken.
        while let Ok(first) = queue.recv() {
            let mut bytes = first.batch.bytes();
            let mut group = vec![first];
            while group.len() < self.group_batches_max && bytes < GROUP_BYTES_MAX {
                let Ok(next) = queue.try_recv() else { break };
                bytes += next.batch.bytes();
                group.push(next);
            }
            self.write(group);
        }
    }

    fn write(&mut self, group: Vec<Queued>) {
        let outcome = match &self.poisoned {
            Some(error) => Err(error.clone()),
            None => write_group(&self.database, &group),
        };
        match outcome {
            Ok(answers) => {
                for (queued, answer) in group.into_iter().zip(answers) {
                    (queued.done)(answer);
                }
            }
            Err(error) => {
                self.poisoned = Some(error.clone());
                for queued in group {
                    (queued.done)(Err(error.clone()));
                }
            }
        }
    }
}

/// One durable transaction for the whole group; the answer of each batch, or the failure of all.
fn write_group(database: &Database, group: &[Queued]) -> Result<Vec<Result<(), StateError>>, StateError> {
    let mut transaction = RedbTransaction(begin(database)?);
    let mut answers = Vec::with_capacity(group.len());
    for queued in group {
        answers.push(batch::apply(&mut transaction, &queued.batch).map_err(failed)?);
    }
    transaction.0.commit().map_err(failed)?;
    Ok(answers)
}

fn begin(database: &Database) -> Result<WriteTransaction, StateError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_durability(Durability::Immediate).map_err(failed)?;
    // Without it, opening after a crash reads the whole file.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

struct RedbTransaction(WriteTransaction);

impl Transaction for RedbTransaction {
    type Error = redb::Error;

    fn holds(&mut self, table: Table, key: &[u8], expected: &Expected) -> Result<bool, redb::Error> {
        let table = self.0.open_table(definition(table))?;
        let value = table.get(key)?;
        Ok(match (expected, value) {
            (Expected::Absent, found) => found.is_none(),
            (Expected::Present, found) => found.is_some(),
            (Expected::Value(expected), Some(found)) => found.value() == expected.as_slice(),
            (Expected::Value(_), None) => false,
        })
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), redb::Error> {
        self.0.open_table(definition(table))?.insert(key, value)?;
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), redb::Error> {
        self.0.open_table(definition(table))?.remove(key)?;
        Ok(())
    }

    fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> Result<(), redb::Error> {
        let mut table = self.0.open_table(definition(table))?;
        match prefix_end(prefix) {
            Some(end) => table.retain_in::<&[u8], _>(prefix..end.as_slice(), |_, _| false)?,
            None => table.retain_in::<&[u8], _>(prefix.., |_, _| false)?,
        }
        Ok(())
    }
}

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> StateError {
    StateError::Failed(Arc::new(error))
}
