//! The same log on a directory of this machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A directory that is removed with its test.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("forebay-log-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open_at(path: &Path, config: Config) -> Result<Opened<DiskStorage>, OpenError> {
    Log::open(DiskStorage::new(path), 2, config, UtcMillis(0))
}

#[test]
fn records_survive_and_partitions_are_apart() {
    let dir = Dir::new();
    let (log, mut appenders, _) = open_at(&dir.log(), small()).expect("an empty directory");
    fill(&mut appenders[0], 300, 100);
    fill(&mut appenders[1], 7, 2000);
    for view in log.views() {
        view.sync().expect("a good disk");
        view.prepare().expect("room");
    }
    let before: Vec<_> = log.views().iter().map(read_all).collect();
    assert_eq!((before[0].len(), before[1].len()), (300, 7));
    drop((log, appenders));
    let (log, appenders, recovered) = open_at(&dir.log(), small()).expect("a good disk");
    let after: Vec<_> = log.views().iter().map(read_all).collect();
    assert_eq!(after, before);
    assert_eq!(appenders[0].next_sequence(), SequenceNumber(300));
    assert_eq!((recovered[0].records, recovered[1].records), (300, 7));
    assert_eq!(log.incarnation(), 2);
    assert!(log.free_bytes().expect("the disk says") > 0);
}

#[test]
fn a_directory_in_use_is_refused_until_the_last_holder_is_gone() {
    let dir = Dir::new();
    let (log, appenders, _) = open_at(&dir.log(), small()).expect("an empty directory");
    assert!(matches!(open_at(&dir.log(), small()).err(), Some(OpenError::Locked)));
    drop((log, appenders));
    open_at(&dir.log(), small()).expect("free again");
}

#[test]
fn slices_outlive_the_file_and_a_held_file_is_not_recycled() {
    let dir = Dir::new();
    let config = Config {
        retention_bytes: SEGMENT_BYTES,
        spare_segments: 1,
        ..small()
    };
    let (log, mut appenders, _) = open_at(&dir.log(), config).expect("an empty directory");
    fill(&mut appenders[0], 13, 3000);
    let view = &log.views()[0];
    view.sync().expect("a good disk");
    let held = view.cursor(Start::Earliest).expect("there").read(1 << 20);
    let held = held.expect("readable").expect("records");
    let copy = held.bytes.to_vec();

    let retained = view
        .retain(UtcMillis(0), SequenceNumber(u64::MAX))
        .expect("a good disk");
    assert_eq!(retained.segments_removed, 3);
    assert!(
        retained.segments_recycled > 0 && retained.segments_recycled < 3,
        "{retained:?}"
    );
    fill(&mut appenders[0], 20, 3000);
    view.sync().expect("a good disk");
    view.retain(UtcMillis(0), SequenceNumber(u64::MAX))
        .expect("a good disk");
    fill(&mut appenders[0], 20, 3000);
    assert_eq!(held.bytes, copy, "what a reader holds never changes");
}

#[test]
fn readers_run_beside_the_appender_and_retention() {
    let dir = Dir::new();
    let config = Config {
        retention_bytes: 4 * SEGMENT_BYTES,
        spare_segments: 2,
        ..small()
    };
    let (log, mut appenders, _) = open_at(&dir.log(), config).expect("an empty directory");
    let mut appender = appenders.remove(0);
    let view = &log.views()[0];
    let total = 4000;
    std::thread::scope(|scope| {
        let reader = |start| {
            let mut cursor = view.cursor(start).expect("there");
            let mut seen = 0;
            while cursor.position() < SequenceNumber(total) {
                match cursor.read(2000) {
                    Ok(None) => std::thread::yield_now(),
                    Ok(Some(chunk)) => {
                        let mut expected = chunk.first_wanted.0;
                        for record in records(&chunk.bytes) {
                            let record = record.expect("well formed");
                            assert!(record.is_intact());
                            assert_eq!(record.payload[..8], expected.to_le_bytes());
                            expected += 1;
                            seen += 1;
                        }
                        assert_eq!(expected, chunk.next.0);
                    }
                    Err(ReadError::Retained { first }) => {
                        let _ = cursor.seek(Start::Sequence(first));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            seen
        };
        let readers = [
            scope.spawn(move || reader(Start::Earliest)),
            scope.spawn(move || reader(Start::Latest)),
        ];
        scope.spawn(|| {
            while view.durable() < SequenceNumber(total) {
                view.sync().expect("a good disk");
                view.prepare().expect("room");
                view.retain(UtcMillis(0), view.durable()).expect("a good disk");
            }
        });
        let mut payload = [7; 200];
        while appender.next_sequence() < SequenceNumber(total) {
            payload[..8].copy_from_slice(&appender.next_sequence().0.to_le_bytes());
            match appender.append(&batch(&payload, 1)) {
                Ok(_) => {}
                Err(AppendError::NoRoom { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        for reader in readers {
            assert!(reader.join().expect("no reader fails") > 0);
        }
    });
    assert!(view.first_retained() > SequenceNumber(0));
}
