//! What does the log cost per batch when its segments are ready and nothing waits for the disk?
//!
//! - `append`: one batch of 64 messages of 160 B (10 KiB) or 1.1 KiB (70 KiB) into a prepared segment; time per batch.
//! - `seek`: a new cursor at a random sequence number of 256 MiB in four segments, and its first read.
//! - `read`: a chunk of 256 KiB, header walk included, no copy; time per chunk.
//!
//! Durability level: none, no sync is measured. Runs in the temporary directory; set `TMPDIR` to choose the disk.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forebay::log::{AppendError, Appender, Config, DiskStorage, Log, NewBatch, PartitionView, Start};
use forebay::model::{SequenceNumber, UtcMillis};

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("forebay-bench-log-{}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(dir: &Dir) -> Appender<DiskStorage> {
    let config = Config {
        retention_bytes: 256 << 20,
        spare_segments: 2,
        ..Config::default()
    };
    let (_, mut appenders, _) =
        Log::open(DiskStorage::new(&dir.0), 1, config, UtcMillis(0)).expect("the directory can be written");
    appenders.remove(0)
}

fn make_room(view: &PartitionView<DiskStorage>) {
    view.sync().expect("a good disk");
    view.retain(UtcMillis(0), view.durable()).expect("a good disk");
    view.prepare().expect("room for a segment");
}

fn append(appender: &mut Appender<DiskStorage>, payload: &[u8]) {
    let batch = NewBatch {
        stamp: &[0; 48],
        payload,
        count: 64,
        enqueued_time: UtcMillis(0),
    };
    while let Err(error) = appender.append(&batch) {
        assert!(matches!(error, AppendError::NoRoom { .. }), "{error}");
        make_room(appender.view());
    }
}

fn log(c: &mut Criterion) {
    let dir = Dir::new();
    let mut appender = open(&dir);
    let view = Arc::clone(appender.view());
    make_room(&view);

    for bytes in [160, 1126] {
        let payload = vec![0x5a; 64 * bytes];
        let mut group = c.benchmark_group("append");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(format!("64x{bytes}B"), |b| {
            b.iter_batched(
                || {
                    // Files are made between the measured appends, as the maintenance thread would.
                    if view.statistics().spare_segments == 0 {
                        make_room(&view);
                    }
                },
                |()| append(&mut appender, black_box(&payload)),
                BatchSize::PerIteration,
            );
        });
    }

    while view.statistics().bytes < 256 << 20 {
        append(&mut appender, &[0x5a; 64 * 160]);
    }
    make_room(&view);
    let (first, durable) = (view.first_retained().0, view.durable().0);
    let mut n = 1_u64;
    c.bench_function("seek", |b| {
        b.iter(|| {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let sequence = SequenceNumber(first + (n >> 16) % (durable - first));
            let mut cursor = view.cursor(Start::Sequence(sequence)).expect("retained");
            black_box(cursor.read(1).expect("readable"))
        });
    });

    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Bytes(256 << 10));
    let mut cursor = view.cursor(Start::Earliest).expect("there");
    group.bench_function("256KiB", |b| {
        b.iter(|| {
            let chunk = cursor.read(256 << 10).expect("readable");
            if chunk.is_none() {
                cursor.seek(Start::Earliest).expect("there");
            }
            black_box(chunk)
        });
    });
}

criterion_group!(benches, log);
criterion_main!(benches);
