//! Accidents of one kind each.

use super::super::header::HEADER_BLOCK_BYTES;
use super::super::record::HEADER_BYTES;
use super::*;

const ACTIVE: &str = "p0000/0000000000000001.seg";

/// What `fill` with this payload size takes per batch.
fn record_bytes(payload: usize) -> usize {
    (HEADER_BYTES + 5 + payload).next_multiple_of(8)
}

fn position(record: usize, payload: usize) -> usize {
    HEADER_BLOCK_BYTES + record * record_bytes(payload)
}

/// Records of an earlier opening stand intact behind a cut tail, and the next one that is appended ends exactly where they
/// begin. They must not come back, although their sequence numbers fit.
#[test]
fn records_behind_a_cut_stay_dead() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 2, 100);
    opened.view.sync().expect("a good disk");
    fill(&mut opened.appender, 3, 100);
    drop(opened);
    disk.kill();
    // The third record, number 2, was torn; 3 and 4 are intact.
    disk.corrupt(ACTIVE, |bytes| bytes[position(2, 100) + HEADER_BYTES] ^= 1);

    let mut opened = open(&disk, small()).expect("a torn tail is ordinary");
    assert_eq!(opened.view.written(), SequenceNumber(2));
    assert_eq!(opened.recovered.damage, None);
    assert_eq!(opened.recovered.bytes_cut, 3 * record_bytes(100) as u64);
    fill(&mut opened.appender, 1, 100);
    opened.view.sync().expect("a good disk");
    drop(opened);
    disk.kill();

    let opened = open(&disk, small()).expect("a good disk");
    assert_eq!(
        opened.view.written(),
        SequenceNumber(3),
        "3 and 4 belong to an earlier opening"
    );
    assert_eq!(read_all(&opened.view).len(), 3);
}

/// The same across a segment: the roll's new segment survived a crash and the end of the one before did not.
#[test]
fn a_segment_behind_a_torn_one_is_taken_back() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    opened.view.prepare().expect("room");
    fill(&mut opened.appender, 2, 3000);
    opened.view.sync().expect("a good disk");
    fill(&mut opened.appender, 4, 3000);
    assert_eq!(opened.view.statistics().segments, 2);
    drop(opened);
    disk.kill();
    disk.corrupt(ACTIVE, |bytes| bytes[position(2, 3000)..].fill(0));

    let mut opened = open(&disk, small()).expect("a torn tail is ordinary");
    assert_eq!(opened.recovered.damage, None);
    assert_eq!(opened.view.written(), SequenceNumber(2));
    assert_eq!(opened.view.statistics().segments, 1);
    assert_eq!(opened.view.statistics().spare_segments, 1, "its file is a spare again");
    fill(&mut opened.appender, 3, 3000);
    opened.view.sync().expect("a good disk");
    let read = read_all(&opened.view);
    drop(opened);
    disk.crash(1);
    let opened = open(&disk, small()).expect("a good disk");
    assert_eq!(read_all(&opened.view), read);
    assert_eq!(read.len(), 5);
}

/// Two rolls without a sync, then a crash that kept the newest segment's header and lost the one before.
#[test]
fn a_gap_behind_what_was_durable_is_a_torn_tail() {
    let disk = Disk::default();
    let config = Config {
        spare_segments: 3,
        ..small()
    };
    let mut opened = open(&disk, config.clone()).expect("an empty disk");
    opened.view.prepare().expect("room");
    fill(&mut opened.appender, 1, 3000);
    opened.view.sync().expect("a good disk");
    fill(&mut opened.appender, 10, 3000);
    assert_eq!(opened.view.statistics().segments, 3);
    drop(opened);
    disk.kill();
    disk.corrupt("p0000/0000000000000002.seg", |bytes| bytes[..512].fill(0));

    let opened = open(&disk, config).expect("a torn tail is ordinary");
    assert_eq!(opened.recovered.damage, None);
    assert_eq!(opened.view.written(), SequenceNumber(4), "the first segment was whole");
    assert_eq!(opened.view.statistics().spare_segments, 3);
}

/// A bad record below the mark was durable once: it is reported, and everything around it stays readable.
#[test]
fn damage_in_the_durable_part_is_reported_and_passed() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 10, 100);
    opened.view.sync().expect("a good disk");
    drop(opened);
    // Opening marks the end it found.
    drop(open(&disk, small()).expect("a good disk"));
    disk.corrupt(ACTIVE, |bytes| bytes[position(4, 100) + HEADER_BYTES + 9] ^= 1);

    let mut opened = open(&disk, small()).expect("damage is no reason not to open");
    let damage = opened.recovered.damage.clone().expect("reported");
    assert_eq!((damage.first, damage.next), (SequenceNumber(4), SequenceNumber(5)));
    assert_eq!(
        (damage.file.as_str(), damage.position),
        (ACTIVE, position(4, 100) as u64)
    );
    assert!(matches!(damage.fault, Fault::Record(RecordError::Checksum { .. })));
    assert_eq!(opened.view.written(), SequenceNumber(10));

    fill(&mut opened.appender, 1, 100);
    opened.view.sync().expect("a good disk");
    let mut cursor = opened.view.cursor(Start::Earliest).expect("there");
    let chunk = cursor.read(1 << 20).expect("readable").expect("records");
    assert_eq!((chunk.records, chunk.next), (4, SequenceNumber(4)));
    for _ in 0..2 {
        let Err(ReadError::Damaged(found)) = cursor.read(1 << 20) else {
            panic!("passed over")
        };
        assert_eq!(*found, damage, "again and again, until the caller asks for more");
    }
    cursor.seek(Start::Sequence(damage.next)).expect("there");
    let chunk = cursor.read(1 << 20).expect("readable").expect("records");
    assert_eq!((chunk.records, chunk.next), (6, SequenceNumber(11)));
}

/// Where the lengths of records lead nowhere, the mark says where the durable part ended.
#[test]
fn a_destroyed_end_keeps_its_sequence_numbers() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 10, 100);
    opened.view.sync().expect("a good disk");
    drop(opened);
    drop(open(&disk, small()).expect("a good disk"));
    disk.corrupt(ACTIVE, |bytes| bytes[position(7, 100)..position(10, 100)].fill(0));

    let mut opened = open(&disk, small()).expect("damage is no reason not to open");
    let damage = opened.recovered.damage.clone().expect("reported");
    assert_eq!((damage.first, damage.next), (SequenceNumber(7), SequenceNumber(10)));
    assert_eq!(
        opened.appender.next_sequence(),
        SequenceNumber(10),
        "7 to 9 are not given out again"
    );
    fill(&mut opened.appender, 1, 100);
    opened.view.sync().expect("a good disk");
    assert_eq!(read_from(&opened.view, sequence(10), 1000).len(), 1);
}

#[test]
fn damage_in_a_sealed_segment_is_found_when_it_is_read() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 200, 100);
    opened.view.sync().expect("a good disk");
    opened.view.prepare().expect("room");
    let segments = opened.view.statistics().segments;
    assert!(segments >= 2);
    drop(opened);
    disk.corrupt(ACTIVE, |bytes| bytes[position(20, 100)] = 0xff);

    let opened = open(&disk, small()).expect("a good disk");
    assert_eq!(
        opened.recovered.damage, None,
        "sealed segments are not read when the log is opened"
    );
    assert_eq!(opened.recovered.segments, segments);
    let mut cursor = opened.view.cursor(Start::Earliest).expect("there");
    let chunk = cursor.read(1 << 20).expect("readable").expect("records");
    assert_eq!(chunk.next, SequenceNumber(20));
    let Err(ReadError::Damaged(damage)) = cursor.read(1 << 20) else {
        panic!("passed over")
    };
    assert_eq!(damage.first, SequenceNumber(20));
    assert!(
        damage.next > damage.first && damage.next < SequenceNumber(25),
        "the index knows a place: {damage}"
    );
    let read = read_from(&opened.view, Start::Sequence(damage.next), 1000);
    assert_eq!(read.len() as u64, 200 - damage.next.0);
    let inside = opened.view.cursor(sequence(20)).expect("not read yet").read(1000);
    assert!(matches!(inside, Err(ReadError::Damaged(_))));
}

#[test]
fn a_sealed_segment_that_ends_early_is_damage() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 6, 3000);
    opened.view.sync().expect("a good disk");
    opened.view.prepare().expect("room");
    drop(opened);
    disk.corrupt(ACTIVE, |bytes| bytes[position(2, 3000)..].fill(0));

    let opened = open(&disk, small()).expect("a good disk");
    assert_eq!(opened.view.written(), SequenceNumber(6), "the next segment was durable");
    let mut cursor = opened.view.cursor(Start::Earliest).expect("there");
    assert_eq!(
        cursor.read(1 << 20).expect("readable").expect("records").next,
        SequenceNumber(2)
    );
    let Err(ReadError::Damaged(damage)) = cursor.read(1 << 20) else {
        panic!("passed over")
    };
    assert_eq!((damage.first, damage.next), (SequenceNumber(2), SequenceNumber(4)));
    assert_eq!(damage.position, position(2, 3000) as u64);
    assert_eq!(read_from(&opened.view, Start::Sequence(damage.next), 1000).len(), 2);
}

#[test]
fn a_missing_segment_is_reported() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 12, 3000);
    opened.view.sync().expect("a good disk");
    opened.view.prepare().expect("room");
    drop(opened);
    disk.boot().remove("p0000/0000000000000002.seg").expect("there");

    let opened = open(&disk, small()).expect("a good disk");
    let damage = opened.recovered.damage.expect("reported");
    assert_eq!(damage.fault, Fault::SegmentMissing { id: 2 });
    assert_eq!((damage.first, damage.next), (SequenceNumber(4), SequenceNumber(8)));
    let mut cursor = opened.view.cursor(sequence(4)).expect("not read yet");
    let Err(ReadError::Damaged(found)) = cursor.read(1000) else {
        panic!("passed over")
    };
    assert_eq!((found.first, found.next), (damage.first, damage.next));
}

#[test]
fn a_destroyed_header_is_refused() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 1, 100);
    opened.view.sync().expect("a good disk");
    drop(opened);
    disk.corrupt(ACTIVE, |bytes| bytes[20] ^= 1);
    let refused = open(&disk, small()).err().expect("refused");
    let OpenError::Partition { cause, .. } = refused else {
        panic!("{refused}")
    };
    assert!(matches!(cause, RecoverError::Header { file } if file == ACTIVE));
}

#[test]
fn a_lost_partition_is_not_begun_again() {
    let disk = Disk::default();
    drop(open(&disk, small()).expect("an empty disk"));
    disk.boot().remove(ACTIVE).expect("there");
    let refused = open(&disk, small()).err().expect("refused");
    let OpenError::Partition { cause, .. } = refused else {
        panic!("{refused}")
    };
    assert!(matches!(cause, RecoverError::NoSegment { .. }));
}

#[test]
fn a_log_without_its_format_file_is_refused() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 1, 100);
    drop(opened);
    disk.boot().remove("format").expect("there");
    assert!(matches!(
        open(&disk, small()).err(),
        Some(OpenError::FormatMissing { .. })
    ));
}

#[test]
fn what_is_fixed_at_creation_is_checked() {
    let disk = Disk::default();
    let opened = open(&disk, small()).expect("an empty disk");
    assert!(matches!(open(&disk, small()).err(), Some(OpenError::Locked)));
    assert_eq!(opened.log.incarnation(), 1);
    drop(opened);
    let answer = Log::open(disk.boot(), 2, small(), UtcMillis(0)).err();
    assert!(
        matches!(answer, Some(OpenError::PartitionCount { found: 1, wanted: 2 })),
        "{answer:?}"
    );
    disk.corrupt("format", |bytes| bytes[0] ^= 1);
    assert!(matches!(open(&disk, small()).err(), Some(OpenError::FormatDamaged)));
}

/// The system marks pages clean after a failed sync, so that a later one succeeds without them.
#[test]
fn a_failed_sync_closes_the_partition_and_loses_only_what_was_not_durable() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 2, 100);
    opened.view.sync().expect("a good disk");
    fill(&mut opened.appender, 2, 100);
    disk.fail_sync_after(0);
    opened.view.sync().expect_err("told to fail");
    assert!(opened.view.sync().is_err(), "although the disk would do it now");
    assert_eq!(opened.view.durable(), SequenceNumber(2));
    assert_eq!(opened.view.publish_unsynced(), SequenceNumber(2));
    assert!(matches!(
        opened.appender.append(&batch(b"x", 1)),
        Err(AppendError::Poisoned { .. })
    ));
    assert_eq!(read_all(&opened.view).len(), 2);
    drop(opened);
    disk.kill();
    let opened = open(&disk, small()).expect("a good disk");
    assert_eq!(
        opened.view.written(),
        SequenceNumber(2),
        "memory showed two more that the device never got"
    );
}

/// Retention died between clearing a file and giving it its new name.
#[test]
fn an_interrupted_recycling_leaves_no_trace() {
    let config = Config {
        retention_bytes: SEGMENT_BYTES,
        ..small()
    };
    for operations in 0..8 {
        let disk = Disk::default();
        let mut opened = open(&disk, config.clone()).expect("an empty disk");
        fill(&mut opened.appender, 8, 3000);
        opened.view.sync().expect("a good disk");
        opened.view.prepare().expect("room");
        disk.power_off_after(operations);
        let _ = opened.view.retain(UtcMillis(0), SequenceNumber(u64::MAX));
        let first = opened.view.first_retained();
        drop(opened);
        disk.crash(operations);
        let opened = open(&disk, config.clone()).expect("nothing was damaged");
        assert_eq!(opened.recovered.damage, None);
        let read = read_all(&opened.view);
        assert_eq!(read.last().map(|read| read.0), Some(7));
        assert!(read[0].0 <= first.0 && read.len() as u64 == 8 - read[0].0);
    }
}

/// After a stop everything was acknowledged: what no longer reads is damage, not a torn tail, down to the last record.
#[test]
fn damage_behind_a_finished_end_is_told_apart_from_a_torn_tail() {
    for finished in [true, false] {
        let disk = Disk::default();
        let mut opened = open(&disk, small()).expect("an empty disk");
        fill(&mut opened.appender, 3, 100);
        opened.view.sync().expect("a good disk");
        if finished {
            assert_eq!(opened.view.finish().expect("a good disk"), SequenceNumber(3));
        }
        drop(opened);
        disk.kill();
        disk.corrupt(ACTIVE, |bytes| bytes[position(2, 100) + HEADER_BYTES] ^= 1);
        let opened = open(&disk, small()).expect("damage is reported, not refused");
        assert_eq!(opened.recovered.damage.is_some(), finished);
        let next = if finished { SequenceNumber(3) } else { SequenceNumber(2) };
        assert_eq!(
            opened.view.written(),
            next,
            "a number that was acknowledged is not given out again"
        );
    }
}
