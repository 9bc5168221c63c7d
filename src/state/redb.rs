//! The store on disk: one redb file, one writer thread, many batches a durable transaction.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

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

type Key = &'static [u8];
type Value = &'static [u8];
const TABLES: usize = Table::ALL.len();
const _: () = {
    let mut index = 0;
    while index < TABLES {
        assert!(
            Table::ALL[index] as usize == index,
            "tables are kept by their place in ALL"
        );
        index += 1;
    }
};

/// The store in a file. Dropping it commits what is queued, then closes the file.
pub struct RedbState {
    /// What the last commit left: looked at by every reader, replaced before a commit is answered.
    view: Arc<ArcSwap<View>>,
    queue: Option<Sender<Queued>>,
    writer: Option<JoinHandle<()>>,
    // Last: the file is closed when nobody looks at it any more.
    _database: Arc<Database>,
}

/// One state of the store, with the tables that were looked at so far: opening one costs more than a read.
struct View {
    transaction: ReadTransaction,
    tables: [OnceLock<ReadOnlyTable<Key, Value>>; TABLES],
}

impl View {
    fn latest(database: &Database) -> Result<Self, StateError> {
        Ok(Self {
            transaction: database.begin_read().map_err(failed)?,
            tables: [const { OnceLock::new() }; TABLES],
        })
    }

    fn table(&self, table: Table) -> Result<&ReadOnlyTable<Key, Value>, StateError> {
        let slot = &self.tables[table as usize];
        if let Some(open) = slot.get() {
            return Ok(open);
        }
        let open = self.transaction.open_table(definition(table)).map_err(failed)?;
        Ok(slot.get_or_init(|| open))
    }
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
        Self::start(builder.create(path).map_err(failed)?, config)
    }

    fn start(database: Database, config: &RedbConfig) -> Result<Self, StateError> {
        let database = Arc::new(database);
        let transaction = begin(&database)?;
        for table in Table::ALL {
            transaction.open_table(definition(table)).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        let (sender, receiver) = channel::bounded(config.queue_batches_max.max(1));
        let view = Arc::new(ArcSwap::from_pointee(View::latest(&database)?));
        let writer = Writer {
            database: database.clone(),
            view: view.clone(),
            group_batches_max: config.group_batches_max.max(1),
            poisoned: None,
        };
        let thread = std::thread::Builder::new()
            .name("state-writer".into())
            .spawn(move || writer.run(&receiver))
            .map_err(failed)?;
        Ok(Self {
            view,
            queue: Some(sender),
            writer: Some(thread),
            _database: database,
        })
    }
}

impl State for RedbState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let view = self.view.load();
        let value = view.table(table)?.get(key).map_err(failed)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StateError> {
        let Some((start, end)) = scan.bounds() else {
            return Ok(Vec::new());
        };
        // A scan may take long; the view outlives the commits that it passes by.
        let view = self.view.load_full();
        let table = view.table(table)?;
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
    view: Arc<ArcSwap<View>>,
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
            None => self.commit(&group),
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

    /// One durable transaction for the whole group; the answer of each batch, or the failure of all.
    fn commit(&self, group: &[Queued]) -> Result<Vec<Result<(), StateError>>, StateError> {
        let transaction = begin(&self.database)?;
        let mut answers = Vec::with_capacity(group.len());
        let mut open = OpenTables::new(&transaction);
        for queued in group {
            answers.push(batch::apply(&mut open, &queued.batch).map_err(failed)?);
        }
        drop(open);
        transaction.commit().map_err(failed)?;
        // Whoever hears of the commit reads what it wrote.
        self.view.store(Arc::new(View::latest(&self.database)?));
        Ok(answers)
    }
}

fn begin(database: &Database) -> Result<WriteTransaction, StateError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_durability(Durability::Immediate).map_err(failed)?;
    // Without it, opening after a crash reads the whole file.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// A transaction's tables, each opened once.
struct OpenTables<'t> {
    transaction: &'t WriteTransaction,
    tables: [Option<redb::Table<'t, Key, Value>>; TABLES],
}

impl<'t> OpenTables<'t> {
    fn new(transaction: &'t WriteTransaction) -> Self {
        Self {
            transaction,
            tables: [const { None }; TABLES],
        }
    }

    fn table(&mut self, table: Table) -> Result<&mut redb::Table<'t, Key, Value>, redb::Error> {
        let slot = &mut self.tables[table as usize];
        if slot.is_none() {
            *slot = Some(self.transaction.open_table(definition(table))?);
        }
        Ok(slot.as_mut().expect("opened above"))
    }
}

impl Transaction for OpenTables<'_> {
    type Error = redb::Error;

    fn holds(&mut self, table: Table, key: &[u8], expected: &Expected) -> Result<bool, redb::Error> {
        let value = self.table(table)?.get(key)?;
        Ok(match (expected, value) {
            (Expected::Absent, found) => found.is_none(),
            (Expected::Present, found) => found.is_some(),
            (Expected::Value(expected), Some(found)) => found.value() == expected.as_slice(),
            (Expected::Value(_), None) => false,
        })
    }

    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        let value = self.table(table)?.get(key)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), redb::Error> {
        self.table(table)?.insert(key, value)?;
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), redb::Error> {
        self.table(table)?.remove(key)?;
        Ok(())
    }

    fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> Result<(), redb::Error> {
        let table = self.table(table)?;
        match prefix_end(prefix) {
            Some(end) => table.retain_in::<&[u8], _>(prefix..end.as_slice(), |_, _| false)?,
            None => table.retain_in::<&[u8], _>(prefix.., |_, _| false)?,
        }
        Ok(())
    }
}

fn definition(table: Table) -> TableDefinition<'static, Key, Value> {
    TableDefinition::new(table.name())
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> StateError {
    StateError::Failed(Arc::new(error))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::state::blocking;

    fn put(key: &str, value: &str) -> WriteBatch {
        WriteBatch::new().put(Table::Meta, key, value)
    }

    fn commit(state: &RedbState, batch: WriteBatch) -> Result<(), StateError> {
        blocking(|done| state.commit(batch, done)).unwrap()
    }

    /// A file in a folder of its own that goes with it.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("forebay-state-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn open(&self) -> RedbState {
            RedbState::open(&self.0.join("state.redb"), &RedbConfig::default()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_answered_or_queued_is_there_after_reopening() {
        let folder = Folder::new("reopen");
        let state = folder.open();
        commit(&state, put("a", "1")).unwrap();
        let (sender, receiver) = mpsc::channel();
        for n in 0..100 {
            let sender = sender.clone();
            state.commit(
                put(&format!("q{n}"), "x"),
                Box::new(move |result| sender.send(result).unwrap()),
            );
        }
        drop(state);
        drop(sender);
        assert_eq!(receiver.iter().filter(Result::is_ok).count(), 100);
        let state = folder.open();
        assert_eq!(state.get(Table::Meta, b"a").unwrap().as_deref(), Some(&b"1"[..]));
        let scan = Scan {
            prefix: b"q",
            after: None,
            limit: 1000,
        };
        assert_eq!(state.scan(Table::Meta, scan).unwrap().len(), 100);
    }

    #[test]
    fn preconditions_see_the_batches_before_and_bind_only_their_own() {
        let folder = Folder::new("conflict");
        let state = folder.open();
        let (sender, receiver) = mpsc::channel();
        let create = |key: &str, value: &str| put(key, value).expect(Table::Meta, key, Expected::Absent);
        let swap = put("a", "3").expect(Table::Meta, "a", Expected::Value(b"1".to_vec()));
        let missing =
            put("z", "0")
                .expect(Table::Meta, "a", Expected::Present)
                .expect(Table::Meta, "y", Expected::Present);
        for batch in [
            create("a", "1"),
            create("a", "2"),
            create("b", "1"),
            swap.clone(),
            swap,
            missing,
        ] {
            let sender = sender.clone();
            state.commit(batch, Box::new(move |result| sender.send(result).unwrap()));
        }
        drop(sender);
        let conflicts: Vec<_> = receiver
            .iter()
            .map(|answer| match answer {
                Ok(()) => None,
                Err(StateError::Conflict { index }) => Some(index),
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(conflicts, [None, Some(0), None, None, Some(0), Some(1)]);
        assert_eq!(state.get(Table::Meta, b"a").unwrap().as_deref(), Some(&b"3"[..]));
        assert_eq!(state.get(Table::Meta, b"z").unwrap(), None);
    }

    #[test]
    fn scans_and_prefixes_stay_in_their_range() {
        let folder = Folder::new("scan");
        let state = folder.open();
        let keys: [&[u8]; 6] = [&[0], &[1], &[1, 0], &[1, 255], &[2], &[255, 255]];
        let batch = keys
            .iter()
            .fold(WriteBatch::new(), |batch, key| batch.put(Table::Filter, *key, *key));
        commit(&state, batch).unwrap();
        let scan = |prefix: &[u8], after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
            let found = state.scan(Table::Filter, Scan { prefix, after, limit }).unwrap();
            found.into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(scan(&[], None, 10), keys);
        assert_eq!(scan(&[1], None, 10), keys[1..4]);
        assert_eq!(scan(&[1], Some(&[1]), 1), keys[2..3]);
        assert_eq!(scan(&[1], Some(&[0]), 10), keys[1..4]);
        assert_eq!(scan(&[1], Some(&[7]), 10), Vec::<Vec<u8>>::new());
        assert_eq!(scan(&[255], None, 10), keys[5..]);
        commit(&state, WriteBatch::new().delete_prefix(Table::Filter, [1])).unwrap();
        commit(&state, WriteBatch::new().delete_prefix(Table::Filter, [255])).unwrap();
        assert_eq!(scan(&[], None, 10), [keys[0], keys[4]]);
    }

    #[test]
    fn a_full_queue_is_refused_on_the_spot() {
        let folder = Folder::new("busy");
        let config = RedbConfig {
            queue_batches_max: 1,
            ..RedbConfig::default()
        };
        let state = RedbState::open(&folder.0.join("state.redb"), &config).unwrap();
        // The writer stands in an answer until it is let go, so one batch fills the queue.
        let (entered, is_entered) = mpsc::channel();
        let (let_go, is_let_go) = mpsc::channel::<()>();
        state.commit(
            put("a", "1"),
            Box::new(move |result| {
                result.unwrap();
                entered.send(()).unwrap();
                is_let_go.recv().unwrap();
            }),
        );
        is_entered.recv().unwrap();
        let (sender, receiver) = mpsc::channel();
        let queued = sender.clone();
        state.commit(
            put("b", "1"),
            Box::new(move |result| queued.send(("b", result)).unwrap()),
        );
        state.commit(
            put("c", "1"),
            Box::new(move |result| sender.send(("c", result)).unwrap()),
        );
        assert!(matches!(receiver.recv().unwrap(), ("c", Err(StateError::Busy))));
        let_go.send(()).unwrap();
        assert!(matches!(receiver.recv().unwrap(), ("b", Ok(()))));
        assert_eq!(state.get(Table::Meta, b"c").unwrap(), None);
    }

    /// A disk that stops taking writes when told to.
    #[derive(Debug)]
    struct Breaking(InMemoryBackend, Arc<std::sync::atomic::AtomicBool>);

    impl Breaking {
        fn check(&self) -> std::io::Result<()> {
            if self.1.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(std::io::Error::other("broken by the test"));
            }
            Ok(())
        }
    }

    impl StorageBackend for Breaking {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.check()?;
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            self.check()?;
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            self.check()?;
            self.0.write(offset, data)
        }
    }

    #[test]
    fn after_a_failed_commit_nothing_is_acknowledged_any_more() {
        let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let backend = Breaking(InMemoryBackend::new(), Arc::clone(&is_broken));
        let database = Database::builder().create_with_backend(backend).unwrap();
        let state = RedbState::start(database, &RedbConfig::default()).unwrap();
        commit(&state, put("a", "1")).unwrap();
        is_broken.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(matches!(commit(&state, put("b", "1")), Err(StateError::Failed(_))));
        // The disk recovers, what it holds stays unknown.
        is_broken.store(false, std::sync::atomic::Ordering::SeqCst);
        assert!(matches!(commit(&state, put("c", "1")), Err(StateError::Failed(_))));
    }

    /// A disk that can tell what it holds if the power goes now: only what was synced.
    #[derive(Debug, Default, Clone)]
    struct PowerCut(Arc<std::sync::Mutex<(Vec<u8>, Vec<u8>)>>);

    impl PowerCut {
        fn after_power_loss(&self) -> Self {
            let synced = self.0.lock().unwrap().1.clone();
            Self(Arc::new(std::sync::Mutex::new((synced.clone(), synced))))
        }
    }

    impl StorageBackend for PowerCut {
        fn len(&self) -> std::io::Result<u64> {
            Ok(self.0.lock().unwrap().0.len() as u64)
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            let start = offset as usize;
            out.copy_from_slice(&self.0.lock().unwrap().0[start..start + out.len()]);
            Ok(())
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.lock().unwrap().0.resize(len as usize, 0);
            Ok(())
        }
        fn sync_data(&self) -> std::io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            disk.1 = disk.0.clone();
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            let start = offset as usize;
            self.0.lock().unwrap().0[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn what_was_answered_survives_power_loss() {
        let disk = PowerCut::default();
        let start = |disk: &PowerCut| {
            let database = Database::builder().create_with_backend(disk.clone()).unwrap();
            RedbState::start(database, &RedbConfig::default()).unwrap()
        };
        let state = start(&disk);
        for n in 0..5 {
            let key = format!("k{n}");
            commit(&state, put(&key, "1")).unwrap();
            // Nothing was dropped or closed: the power goes right after the answer.
            let found = start(&disk.after_power_loss()).get(Table::Meta, key.as_bytes());
            assert_eq!(found.unwrap().as_deref(), Some(&b"1"[..]), "{key}");
        }
    }
}
