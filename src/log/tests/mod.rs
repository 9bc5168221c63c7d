//! The log as a whole: on a simulated disk that crashes, and on a real one.

mod model;
mod real_disk;
mod recovery;
mod serving;
mod verifying;

use std::sync::Arc;

use super::*;
use crate::model::SequenceNumber;
use crate::testing;

type Disk = testing::Disk;
type View = Arc<PartitionView<Disk>>;

const SEGMENT_BYTES: u64 = 16 << 10;

fn small() -> Config {
    Config {
        segment_bytes: SEGMENT_BYTES,
        index_interval_bytes: 256,
        retention_ms: 0,
        retention_bytes: 0,
        spare_segments: 1,
    }
}

/// One partition of a log that was just opened.
struct Served {
    appender: Appender<Disk>,
    view: View,
    recovered: Recovered,
    log: Log<Disk>,
}

fn open(disk: &Disk, config: Config) -> Result<Served, OpenError> {
    let (log, mut appenders, mut recovered) = Log::open(disk.boot(), 1, config, UtcMillis(0))?;
    let appender = appenders.remove(0);
    Ok(Served {
        view: Arc::clone(appender.view()),
        appender,
        recovered: recovered.remove(0),
        log,
    })
}

fn batch(payload: &[u8], count: u32) -> NewBatch<'_> {
    NewBatch {
        stamp: b"stamp",
        payload,
        count,
        enqueued_time: UtcMillis(1000),
    }
}

/// Everything that can be read from a place on: first sequence number, count, stamp, payload.
type Read = (u64, u32, Vec<u8>, Vec<u8>);

fn read_from<S: Storage>(view: &Arc<PartitionView<S>>, start: Start, bytes_max: usize) -> Vec<Read> {
    let mut cursor = view.cursor(start).expect("the place is there");
    let mut all = Vec::new();
    while let Some(chunk) = cursor.read(bytes_max).expect("readable") {
        let before = all.len();
        for record in records(&chunk.bytes) {
            let record = record.expect("well formed");
            assert!(record.is_intact());
            let header = record.header;
            all.push((
                header.first.0,
                header.count,
                record.stamp.to_vec(),
                record.payload.to_vec(),
            ));
        }
        assert_eq!(all.len() - before, chunk.records as usize);
        assert_eq!(cursor.position(), chunk.next);
    }
    all
}

fn read_all<S: Storage>(view: &Arc<PartitionView<S>>) -> Vec<Read> {
    read_from(view, Start::Earliest, 1000)
}

/// Appends batches of one message with payloads of `bytes` bytes that tell their sequence number, with spares as needed.
fn fill<S: Storage>(appender: &mut Appender<S>, batches: u64, bytes: usize) {
    for _ in 0..batches {
        let mut payload = appender.next_sequence().0.to_le_bytes().to_vec();
        payload.resize(bytes.max(8), 7);
        if let Err(error) = appender.append(&batch(&payload, 1)) {
            assert!(matches!(error, AppendError::NoRoom { .. }), "{error}");
            appender.view().prepare().expect("there is room for a spare");
            appender.append(&batch(&payload, 1)).expect("there is a spare now");
        }
    }
}

fn sequence(n: u64) -> Start {
    Start::Sequence(SequenceNumber(n))
}

#[test]
fn parts_go_to_the_threads_they_are_for() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_send::<Appender<DiskStorage>>();
    is_send::<Cursor<DiskStorage>>();
    is_send::<Chunk>();
    is_shared::<PartitionView<DiskStorage>>();
    is_shared::<Log<DiskStorage>>();
}
