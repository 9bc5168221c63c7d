//! Appending, reading and retention on a disk that works.

use super::*;

#[test]
fn nothing_is_read_before_it_is_durable() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    let mut cursor = opened.view.cursor(Start::Latest).expect("there");
    fill(&mut opened.appender, 3, 10);
    assert!(opened.view.is_dirty());
    assert!(cursor.read(1000).expect("readable").is_none());
    opened.view.sync().expect("a good disk");
    assert!(!opened.view.is_dirty());
    let chunk = cursor.read(1000).expect("readable").expect("records");
    assert_eq!((chunk.records, chunk.next), (3, SequenceNumber(3)));
    fill(&mut opened.appender, 1, 10);
    assert!(cursor.read(1000).expect("readable").is_none());
    assert_eq!(opened.view.publish_unsynced(), SequenceNumber(4));
    assert!(cursor.read(1000).expect("readable").is_some());
}

#[test]
fn a_cursor_inside_a_batch_gets_the_whole_batch() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    for _ in 0..5 {
        opened.appender.append(&batch(b"ten", 10)).expect("room");
    }
    opened.view.sync().expect("a good disk");
    let mut cursor = opened.view.cursor(sequence(37)).expect("there");
    let chunk = cursor.read(1).expect("readable").expect("one record at least");
    assert_eq!(
        (chunk.first_wanted, chunk.next, chunk.records),
        (SequenceNumber(37), SequenceNumber(40), 1)
    );
    let first = records(&chunk.bytes).next().expect("a record").expect("well formed");
    assert_eq!(first.header.first, SequenceNumber(30));
}

#[test]
fn every_sequence_number_is_found_in_any_segment() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 500, 100);
    opened.view.sync().expect("a good disk");
    let check = |view: &View| {
        for n in 0..500 {
            let mut cursor = view.cursor(sequence(n)).expect("there");
            let chunk = cursor.read(1).expect("readable").expect("a record");
            let record = records(&chunk.bytes).next().expect("a record").expect("well formed");
            assert_eq!(record.header.first, SequenceNumber(n));
            assert_eq!(record.payload[..8], n.to_le_bytes());
        }
    };
    check(&opened.view);
    opened.view.prepare().expect("room");
    check(&opened.view);
    drop(opened);
    let opened = open(&disk, small()).expect("a good disk");
    check(&opened.view);
    drop(opened);
    // Index files are derived: damaged or gone, they are made again.
    let indexes: Vec<_> = disk.files().into_iter().filter(|file| file.ends_with(".idx")).collect();
    assert!(indexes.len() >= 3, "{indexes:?}");
    disk.corrupt(&indexes[0], |bytes| bytes[60] ^= 1);
    disk.boot().remove(&indexes[1]).expect("there");
    let opened = open(&disk, small()).expect("a good disk");
    check(&opened.view);
    opened.view.prepare().expect("room");
    assert!(disk.files().contains(&indexes[1]), "written again");
    check(&opened.view);
    assert!(matches!(
        opened.view.cursor(sequence(501)).err(),
        Some(SeekError::Beyond { .. })
    ));
}

#[test]
fn times_are_found_and_never_decrease() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    // 100, 100, 110, 110, ...; every seventh comes with a clock that went back.
    let mut times = Vec::new();
    for n in 0..300_i64 {
        let time = 100 + n / 2 * 10 - if n % 7 == 0 { 55 } else { 0 };
        opened.view.prepare().expect("room");
        let new = NewBatch {
            enqueued_time: UtcMillis(time),
            ..batch(&[0; 150], 1)
        };
        times.push(opened.appender.append(&new).expect("room").enqueued_time.0);
    }
    assert!(times.is_sorted());
    opened.view.sync().expect("a good disk");
    assert!(opened.view.statistics().segments > 2);
    let check = |view: &View| {
        for time in (0..1700).step_by(5) {
            let expected = times.partition_point(|t| *t < time) as u64;
            let cursor = view.cursor(Start::Time(UtcMillis(time))).expect("there");
            assert_eq!(cursor.position(), SequenceNumber(expected), "time {time}");
        }
    };
    check(&opened.view);
    drop(opened);
    let mut opened = open(&disk, small()).expect("a good disk");
    check(&opened.view);
    let appended = opened.appender.append(&batch(b"", 1)).expect("room");
    assert!(appended.enqueued_time.0 >= times[299], "also across openings");
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    disk.set_bytes_max(Some(SEGMENT_BYTES + 1000));
    assert!(matches!(opened.view.prepare(), Err(PrepareError::DiskFull)));
    let refused = loop {
        match opened.appender.append(&batch(&[1; 3000], 1)) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::NoRoom { disk_full: true }), "{refused}");
    opened
        .view
        .sync()
        .expect("a full disk still takes what it has allocated");
    assert!(
        !disk.files().iter().any(|file| file.ends_with(".tmp")),
        "{:?}",
        disk.files()
    );
    let before = opened.appender.next_sequence();
    disk.set_bytes_max(None);
    assert!(opened.view.prepare().expect("room"));
    let appended = opened.appender.append(&batch(&[1; 3000], 1)).expect("room");
    assert!(appended.rolled);
    assert_eq!(appended.first, before);
}

#[test]
fn without_a_spare_nothing_is_written() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    while opened.appender.append(&batch(&[1; 3000], 1)).is_ok() {}
    let refused = opened.appender.append(&batch(&[1; 3000], 1));
    assert!(matches!(refused, Err(AppendError::NoRoom { disk_full: false })));
    let next = opened.appender.next_sequence();
    assert_eq!(opened.view.written(), next);
    opened
        .appender
        .append(&batch(b"small", 1))
        .expect("a small one still fits");
}

#[test]
fn a_record_larger_than_a_segment_is_refused() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    opened.view.prepare().expect("room");
    let room = SEGMENT_BYTES as usize - 4096 - 40 - 5;
    opened.appender.append(&batch(&vec![1; room], 1)).expect("it just fits");
    let refused = opened.appender.append(&batch(&vec![1; room + 1], 1));
    assert!(matches!(refused, Err(AppendError::RecordTooLarge { .. })));
    let stamp = vec![0; 65_536];
    let refused = opened.appender.append(&NewBatch {
        stamp: &stamp,
        ..batch(b"", 1)
    });
    assert!(matches!(refused, Err(AppendError::RecordTooLarge { .. })));
}

#[test]
fn retention_keeps_what_it_is_told_and_tells_who_fell_behind() {
    let disk = Disk::default();
    let config = Config {
        retention_ms: 100,
        ..small()
    };
    let mut opened = open(&disk, config).expect("an empty disk");
    fill(&mut opened.appender, 20, 3000);
    opened.view.sync().expect("a good disk");
    let (view, start) = (&opened.view, opened.view.statistics());
    let mut behind = view.cursor(Start::Earliest).expect("there");
    let held = behind.read(1).expect("readable").expect("a record");

    let young = view
        .retain(UtcMillis(1050), SequenceNumber(u64::MAX))
        .expect("a good disk");
    assert_eq!(young, Retained::default());
    let kept = view.retain(UtcMillis(1100), SequenceNumber(9)).expect("a good disk");
    assert_eq!(kept.segments_removed, 2);
    assert_eq!(view.first_retained(), SequenceNumber(8));
    assert!(matches!(
        behind.read(1),
        Err(ReadError::Retained {
            first: SequenceNumber(8)
        })
    ));
    assert!(matches!(
        view.cursor(sequence(7)).err(),
        Some(SeekError::Retained { .. })
    ));
    behind.seek(Start::Earliest).expect("there");
    assert_eq!(
        behind.read(1).expect("readable").expect("a record").next,
        SequenceNumber(9)
    );
    assert!(
        records(&held.bytes)
            .next()
            .expect("a record")
            .expect("well formed")
            .is_intact()
    );

    let rest = view
        .retain(UtcMillis(5000), SequenceNumber(u64::MAX))
        .expect("a good disk");
    assert_eq!(
        u64::from(rest.segments_removed),
        start.segments - 3,
        "the active segment stays"
    );
    assert_eq!(view.statistics().segments, 1);
}

#[test]
fn the_size_limit_removes_the_oldest() {
    let disk = Disk::default();
    let config = Config {
        retention_bytes: 3 * SEGMENT_BYTES,
        ..small()
    };
    let mut opened = open(&disk, config).expect("an empty disk");
    fill(&mut opened.appender, 40, 3000);
    opened.view.sync().expect("a good disk");
    let retained = opened
        .view
        .retain(UtcMillis(0), SequenceNumber(u64::MAX))
        .expect("a good disk");
    assert!(retained.segments_recycled > 0, "{retained:?}");
    assert_eq!(opened.view.statistics().bytes, 3 * SEGMENT_BYTES);
    let before = read_all(&opened.view);
    fill(&mut opened.appender, 8, 3000);
    opened.view.sync().expect("a good disk");
    let after = read_all(&opened.view);
    assert_eq!(after[..before.len()], before);
    drop(opened);
    let opened = open(&disk, small()).expect("recycled files hold old records, and no trouble");
    assert_eq!(read_all(&opened.view), after);
}

#[test]
fn indexes_in_memory_are_bounded() {
    let disk = Disk::default();
    let mut opened = open(&disk, small()).expect("an empty disk");
    fill(&mut opened.appender, 100, 3000);
    opened.view.sync().expect("a good disk");
    drop(opened);
    let opened = open(&disk, small()).expect("a good disk");
    for _ in 0..2 {
        for n in 0..100 {
            let chunk = opened.view.cursor(sequence(n)).expect("there").read(1);
            assert_eq!(chunk.expect("readable").expect("a record").next, SequenceNumber(n + 1));
        }
    }
}
