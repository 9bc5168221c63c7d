//! What `verify` and `dump` say about logs in every state.

use super::super::header::HEADER_BLOCK_BYTES;
use super::super::verify::{Filter, dump, stat, verify};
use super::*;

const FIRST: &str = "p0000/0000000000000001.seg";
const SECOND: &str = "p0000/0000000000000002.seg";

/// 12 batches over three segments, four each; closed.
fn written() -> Disk {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 12, 3000);
    opened.view.sync().expect("a good disk");
    opened.view.prepare().expect("room");
    disk
}

fn position(record: usize) -> usize {
    HEADER_BLOCK_BYTES + record * (40 + 5 + 3000_usize).next_multiple_of(8)
}

#[test]
fn a_whole_log_is_whole_and_untouched() {
    let disk = written();
    let before = disk.operations();
    let report = verify(&disk).expect("a log");
    assert!(report.is_whole(), "{report:?}");
    let partition = &report.partitions[0];
    assert_eq!(
        (partition.segments, partition.spare_segments, partition.batches),
        (3, 1, 12)
    );
    assert_eq!(
        (partition.first, partition.next),
        (SequenceNumber(0), SequenceNumber(12))
    );
    assert_eq!(
        (partition.last_time, partition.bytes),
        (UtcMillis(1000), 3 * SEGMENT_BYTES)
    );
    assert_eq!((&partition.torn, partition.stale_indexes.len()), (&None, 0));
    assert_eq!(stat(&disk).expect("a log"), report.partitions);
    assert_eq!(disk.operations(), before, "nothing was changed or synced");
}

#[test]
fn every_fault_is_named_with_its_place() {
    let check = |path: &str, change: &dyn Fn(&mut [u8]), at: (usize, u64, u64), is_it: fn(&Fault) -> bool| {
        let disk = written();
        disk.corrupt(path, |bytes| change(bytes));
        let report = verify(&disk).expect("a log");
        let damage = &report.partitions[0].damage;
        assert_eq!(damage.len(), 1, "{damage:?}");
        let found = &damage[0];
        assert_eq!((found.file.as_str(), found.position as usize), (path, at.0));
        assert_eq!((found.first.0, found.next.0), (at.1, at.2));
        assert!(is_it(&found.fault), "{found}");
    };
    let checksum: fn(&Fault) -> bool = |fault| matches!(fault, Fault::Record(RecordError::Checksum { .. }));
    check(
        FIRST,
        &|bytes| bytes[position(1) + 100] ^= 1,
        (position(1), 1, 2),
        checksum,
    );
    check(
        SECOND,
        &|bytes| bytes[position(3) + 100] ^= 1,
        (position(3), 7, 8),
        checksum,
    );
    check(
        FIRST,
        &|bytes| bytes[position(2)..].fill(0),
        (position(2), 2, 4),
        |fault| matches!(fault, Fault::Record(RecordError::Magic(0))),
    );
    check(
        SECOND,
        &|bytes| bytes[position(3) + 16] = 1,
        (position(3), 7, 8),
        |fault| {
            matches!(
                fault,
                Fault::Sequence {
                    expected: SequenceNumber(7),
                    ..
                }
            )
        },
    );
    check(SECOND, &|bytes| bytes[3] ^= 1, (0, 4, 8), |fault| {
        *fault == Fault::SegmentHeader
    });
}

#[test]
fn missing_files_are_named() {
    let disk = written();
    disk.boot().remove(SECOND).expect("there");
    disk.boot().remove("p0000/0000000000000001.idx").expect("there");
    let report = verify(&disk).expect("a log");
    let partition = &report.partitions[0];
    assert_eq!(partition.damage.len(), 1, "{:?}", partition.damage);
    let damage = &partition.damage[0];
    assert_eq!(damage.fault, Fault::SegmentMissing { id: 2 });
    assert_eq!((damage.first, damage.next), (SequenceNumber(4), SequenceNumber(8)));
    assert_eq!(partition.stale_indexes, ["p0000/0000000000000001.idx"]);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let disk = written();
    disk.corrupt("p0000/0000000000000003.seg", |bytes| bytes[position(3) + 100] ^= 1);
    let report = verify(&disk).expect("a log");
    assert!(report.is_whole(), "{report:?}");
    let torn = report.partitions[0].torn.as_ref().expect("told");
    assert_eq!(
        (torn.position as usize, torn.sequence),
        (position(3), SequenceNumber(11))
    );
}

#[test]
fn dump_gives_what_the_filter_takes() {
    let disk = written();
    let check = |filter: Filter, expected: std::ops::Range<u64>| {
        let dumped: Vec<_> = dump(&disk, filter)
            .expect("a log")
            .map(|record| record.expect("readable"))
            .collect();
        let sequences: Vec<_> = dumped.iter().map(|record| record.header.first.0).collect();
        assert_eq!(sequences, expected.collect::<Vec<_>>());
        assert!(
            dumped
                .iter()
                .all(|record| record.stamp == b"stamp" && record.payload.len() == 3000)
        );
    };
    check(Filter::default(), 0..12);
    let range = |from, until| Filter {
        from: Some(SequenceNumber(from)),
        until: Some(SequenceNumber(until)),
        ..Filter::default()
    };
    check(range(5, 9), 5..9);
    check(range(4, 8), 4..8);
    let time = |from, until| Filter {
        time_from: Some(UtcMillis(from)),
        time_until: Some(UtcMillis(until)),
        ..Filter::default()
    };
    check(time(1000, 1001), 0..12);
    check(time(1001, 2000), 0..0);
    let other = Filter {
        partition: Some(PartitionId(1)),
        ..Filter::default()
    };
    check(other, 0..0);
    assert!(verify(&Disk::default()).is_err(), "not a log");
}
