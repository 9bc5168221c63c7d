//! Unit tests, and a model: what the buffer must hold after any pushes, acknowledgements, restarts and crashes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A directory of its own, removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "forebay-buffer-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(directory: Option<&Path>, bytes_max: u64, when_full: WhenFull) -> BufferConfig {
    BufferConfig {
        bytes_max,
        when_full,
        directory: directory.map(Path::to_owned),
        sync: BufferSync::Never,
    }
}

fn open(directory: &Path) -> Buffer {
    Buffer::open(config(Some(directory), 1 << 20, WhenFull::Refuse)).unwrap()
}

fn contents(buffer: &Buffer) -> Vec<(u64, Vec<u8>)> {
    buffer.unacknowledged(0).map(|(n, bytes)| (n, bytes.to_vec())).collect()
}

/// Ends the buffer as a killed process would: nothing is saved, the lock goes.
fn kill(mut buffer: Buffer) {
    buffer.store = None;
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    paths.sort();
    paths
}

/// Runs a test in memory and on disk.
fn both(test: impl Fn(Option<&Path>)) {
    test(None);
    test(Some(&Scratch::new().0));
}

#[test]
fn messages_come_in_order_from_any_number() {
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 1 << 20, WhenFull::Refuse)).unwrap();
        for n in 1..=5000u64 {
            assert_eq!(buffer.push(&[n as u8; 128]).unwrap().sequence, n);
        }
        assert!(buffer.chunks.len() > 1, "the test must cross chunks");
        for from in [0, 1, 2, 454, 455, 456, 457, 2500, 5000] {
            let numbers: Vec<u64> = buffer.unacknowledged(from).map(|(n, _)| n).collect();
            assert_eq!(numbers, (from.max(1)..=5000).collect::<Vec<_>>(), "from {from}");
        }
        assert_eq!(buffer.unacknowledged(5001).count(), 0);
        assert!(buffer.unacknowledged(0).all(|(n, bytes)| bytes == [n as u8; 128]));
    });
}

#[test]
fn acknowledging_is_cumulative_idempotent_and_frees() {
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 1 << 20, WhenFull::Refuse)).unwrap();
        for _ in 0..2000 {
            buffer.push(&[7; 84]).unwrap();
        }
        for (up_to, len) in [(3, 1997), (2, 1997), (3, 1997), (1500, 500), (u64::MAX, 0)] {
            buffer.acknowledge(up_to);
            assert_eq!((buffer.len(), buffer.bytes()), (len, len * 100), "up to {up_to}");
            assert_eq!(buffer.unacknowledged(0).count() as u64, len);
            assert_eq!(buffer.first_sequence(), 2001 - len);
        }
        assert_eq!(buffer.push(b"next").unwrap().sequence, 2001);
        assert_eq!(contents(&buffer), [(2001, b"next".to_vec())]);
    });
}

#[test]
fn acknowledged_files_are_deleted() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    for _ in 0..4000 {
        buffer.push(&[1; 84]).unwrap();
    }
    let before = segments(&scratch.0).len();
    buffer.acknowledge(3000);
    let after = segments(&scratch.0).len();
    assert!(after < before && after <= 2, "{before} then {after}");
}

#[test]
fn a_full_buffer_does_what_its_policy_says() {
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 300, WhenFull::Refuse)).unwrap();
        for _ in 0..3 {
            buffer.push(&[0; 84]).unwrap();
        }
        assert!(matches!(buffer.push(b""), Err(BufferError::Full)));
        assert_eq!(buffer.next_sequence(), 4);
        buffer.acknowledge(1);
        assert_eq!(buffer.push(b"").unwrap().sequence, 4);
    });
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 300, WhenFull::DropOldest)).unwrap();
        for _ in 0..3 {
            buffer.push(&[0; 84]).unwrap();
        }
        let pushed = buffer.push(&[1; 184]).unwrap();
        assert_eq!((pushed.sequence, pushed.dropped), (4, Some(1..=2)));
        assert_eq!(contents(&buffer), [(3, vec![0; 84]), (4, vec![1; 184])]);
        assert_eq!((buffer.dropped_count(), buffer.bytes()), (2, 300));
    });
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 300, WhenFull::DropNewest)).unwrap();
        for _ in 0..3 {
            buffer.push(&[0; 84]).unwrap();
        }
        assert_eq!(buffer.push(&[1; 84]).unwrap().dropped, Some(4..=4));
        buffer.acknowledge(2);
        assert_eq!(buffer.push(&[1; 84]).unwrap().sequence, 5);
        assert_eq!(buffer.unacknowledged(0).map(|(n, _)| n).collect::<Vec<_>>(), [3, 5]);
    });
    both(|directory| {
        let mut buffer = Buffer::open(config(directory, 300, WhenFull::DropOldest)).unwrap();
        assert!(matches!(
            buffer.push(&[0; 285]),
            Err(BufferError::TooLarge {
                bytes: 285,
                bytes_max: 284
            })
        ));
    });
}

#[test]
fn a_clean_close_goes_on_without_a_hole() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    buffer.resume(Stored::default()).unwrap();
    for n in 0..5u8 {
        buffer.push(&[n]).unwrap();
    }
    buffer.acknowledge(2);
    buffer.close().unwrap();
    let mut buffer = open(&scratch.0);
    assert_eq!(buffer.epoch(), Epoch(1));
    assert_eq!(contents(&buffer), [(3, vec![2]), (4, vec![3]), (5, vec![4])]);
    assert_eq!((buffer.len(), buffer.bytes()), (3, 51));
    assert_eq!(buffer.push(b"x").unwrap().sequence, 6);
}

/// Two pushes reached the application's eyes, the file lost both: their numbers must stay used.
#[test]
fn numbers_of_lost_messages_are_not_used_again() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    buffer.push(b"kept").unwrap();
    let length = fs::metadata(&segments(&scratch.0)[0]).unwrap().len();
    buffer.push(b"lost").unwrap();
    buffer.push(b"lost too").unwrap();
    kill(buffer);
    fs::OpenOptions::new()
        .write(true)
        .open(&segments(&scratch.0)[0])
        .unwrap()
        .set_len(length + 3)
        .unwrap();
    let mut buffer = open(&scratch.0);
    assert_eq!(buffer.recovery().cut_bytes, 3);
    assert_eq!(contents(&buffer), [(1, b"kept".to_vec())]);
    assert!(buffer.push(b"new").unwrap().sequence > 3);
    kill(buffer);
    assert_eq!(
        open(&scratch.0).recovery().cut_bytes,
        0,
        "the torn tail was cut for good"
    );
}

#[test]
fn numbers_survive_the_loss_of_every_segment() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    for _ in 0..10 {
        buffer.push(b"x").unwrap();
    }
    kill(buffer);
    for path in segments(&scratch.0) {
        fs::remove_file(path).unwrap();
    }
    assert!(open(&scratch.0).next_sequence() > 10);
}

#[test]
fn a_lost_state_file_keeps_messages_and_skips_far() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    buffer
        .resume(Stored {
            epoch: Epoch(6),
            sequence: 3,
        })
        .unwrap();
    buffer.push(b"kept").unwrap();
    kill(buffer);
    fs::write(scratch.0.join("state"), b"rubbish").unwrap();
    let mut buffer = open(&scratch.0);
    assert!(buffer.recovery().is_state_lost);
    assert_eq!(buffer.epoch(), Epoch(7));
    assert_eq!(contents(&buffer), [(1, b"kept".to_vec())]);
    assert!(buffer.push(b"new").unwrap().sequence > LOST_STATE_SKIP_COUNT);
}

#[test]
fn resume_follows_its_table() {
    // (own epoch, hub's epoch, hub's sequence) -> (epoch after, waiting after, uncertain); three messages wait.
    for (own, hub, sequence, epoch, len, is_uncertain) in [
        (0, 0, 0, 1, 3, false),
        (0, 5, 99, 6, 3, false),
        (5, 5, 0, 5, 3, false),
        (5, 5, 2, 5, 1, false),
        (5, 5, 3, 5, 0, false),
        (5, 5, 4, 6, 3, true),
        (5, 4, 99, 5, 3, false),
        (5, 8, 1, 9, 3, true),
    ] {
        both(|directory| {
            let mut buffer = Buffer::open(config(directory, 1 << 20, WhenFull::Refuse)).unwrap();
            if own > 0 {
                buffer.set_epoch(Epoch(own), Unacknowledged::Keep).unwrap();
            }
            for n in 1..=3u8 {
                buffer.push(&[n]).unwrap();
            }
            let stored = Stored {
                epoch: Epoch(hub),
                sequence,
            };
            let resumed = buffer.resume(stored).unwrap();
            assert_eq!(
                resumed,
                Resumed {
                    epoch: Epoch(epoch),
                    is_uncertain
                },
                "{own} {stored:?}"
            );
            assert_eq!(buffer.len(), len, "{own} {stored:?}");
            let numbers: Vec<u64> = buffer.unacknowledged(0).map(|(n, _)| n).collect();
            assert_eq!(numbers, (4 - len..=3).collect::<Vec<_>>());
        });
    }
    let mut buffer = Buffer::open(config(None, 100, WhenFull::Refuse)).unwrap();
    let stored = Stored {
        epoch: Epoch(u64::MAX),
        sequence: 0,
    };
    assert!(matches!(buffer.resume(stored), Err(BufferError::EpochNotHigher)));
}

#[test]
fn an_epoch_is_durable_at_once_and_never_falls() {
    let scratch = Scratch::new();
    let mut buffer = open(&scratch.0);
    buffer.push(b"old").unwrap();
    buffer.set_epoch(Epoch(4), Unacknowledged::Discard).unwrap();
    assert_eq!((buffer.len(), buffer.dropped_count()), (0, 1));
    assert!(matches!(
        buffer.set_epoch(Epoch(4), Unacknowledged::Keep),
        Err(BufferError::EpochNotHigher)
    ));
    kill(buffer);
    let buffer = open(&scratch.0);
    assert_eq!((buffer.epoch(), buffer.len()), (Epoch(4), 0));
}

#[test]
fn a_directory_has_one_buffer() {
    let scratch = Scratch::new();
    let _buffer = open(&scratch.0);
    let second = Buffer::open(config(Some(&scratch.0), 100, WhenFull::Refuse));
    assert!(matches!(second, Err(BufferError::Locked)));
}

#[test]
fn a_later_version_is_left_alone() {
    let scratch = Scratch::new();
    open(&scratch.0).push(b"x").unwrap();
    let path = scratch.0.join("state");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4] = 2;
    fs::write(&path, bytes).unwrap();
    let later = Buffer::open(config(Some(&scratch.0), 100, WhenFull::Refuse));
    assert!(matches!(later, Err(BufferError::Version(2))));
    assert_eq!(segments(&scratch.0).len(), 1);
}

#[test]
fn memory_stays_bounded_while_the_disk_fills() {
    let scratch = Scratch::new();
    let mut buffer = Buffer::open(config(Some(&scratch.0), 2 << 20, WhenFull::Refuse)).unwrap();
    let resident = |buffer: &Buffer| buffer.chunks.iter().filter(|chunk| chunk.body.get().is_some()).count();
    let mut count = 0;
    while buffer.push(&[3; 1000]).is_ok() {
        count += 1;
        assert!(resident(&buffer) <= RESIDENT_CHUNKS_MAX as usize + 1);
    }
    let mut next = 1;
    while next <= count {
        let sent: Vec<u64> = buffer.unacknowledged(next).take(50).map(|(n, _)| n).collect();
        assert_eq!(sent[0], next);
        next += sent.len() as u64;
        buffer.acknowledge(next - 40);
        assert!(resident(&buffer) <= RESIDENT_CHUNKS_MAX as usize + 1);
    }
}

#[test]
fn syncs_are_due_by_interval() {
    let scratch = Scratch::new();
    let interval = Duration::from_millis(10);
    let mut options = config(Some(&scratch.0), 1000, WhenFull::Refuse);
    options.sync = BufferSync::Every(interval);
    let mut buffer = Buffer::open(options).unwrap();
    let now = Instant::now();
    assert_eq!(buffer.poll_timeout(now), None);
    buffer.push(b"a").unwrap();
    assert_eq!(buffer.poll_timeout(now), Some(now));
    buffer.handle_timeout(now).unwrap();
    assert_eq!(buffer.poll_timeout(now), None);
    buffer.push(b"b").unwrap();
    buffer.handle_timeout(now).unwrap();
    assert_eq!(buffer.poll_timeout(now), Some(now + interval), "not before its time");
    buffer.handle_timeout(now + interval).unwrap();
    assert_eq!(buffer.poll_timeout(now), None);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u16),
    Acknowledge(Index),
    Reopen,
    Crash(Damage),
}

#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(Index),
    Flip(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u16..30_000).prop_map(Step::Push),
        4 => any::<Index>().prop_map(Step::Acknowledge),
        1 => Just(Step::Reopen),
        2 => prop_oneof![
            Just(Damage::None),
            any::<Index>().prop_map(Damage::Cut),
            any::<Index>().prop_map(Damage::Flip)
        ].prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever happens, the buffer holds the pushed messages under their numbers and in order, loses only what was cut
    /// behind the intact prefix of the last file, and never gives a number out twice.
    #[test]
    fn the_buffer_keeps_to_its_model(steps in prop::collection::vec(step(), 1..60)) {
        let scratch = Scratch::new();
        let mut buffer = open(&scratch.0);
        let mut pushed: Vec<(u64, Vec<u8>)> = Vec::new();
        let (mut highest, mut acknowledged) = (0, 0);
        for step in steps {
            match step {
                Step::Push(bytes) => {
                    let message = vec![highest as u8; usize::from(bytes)];
                    let sequence = match buffer.push(&message) {
                        Ok(pushed) => pushed.sequence,
                        Err(BufferError::Full) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    prop_assert!(sequence > highest);
                    highest = sequence;
                    pushed.push((sequence, message));
                }
                Step::Acknowledge(index) => {
                    let Some((up_to, _)) = (!pushed.is_empty()).then(|| index.get(&pushed)) else { continue };
                    acknowledged = acknowledged.max(*up_to);
                    buffer.acknowledge(*up_to);
                }
                Step::Reopen => {
                    buffer.close().unwrap();
                    buffer = open(&scratch.0);
                }
                Step::Crash(damage) => {
                    kill(buffer);
                    let intact_up_to = hurt(&scratch.0, &damage, &pushed);
                    pushed.retain(|(sequence, _)| *sequence <= intact_up_to);
                    buffer = open(&scratch.0);
                    // Acknowledgements may be forgotten; what comes back must be what it was. The hub says it again.
                    for entry in contents(&buffer) {
                        prop_assert!(pushed.contains(&entry));
                    }
                    buffer.acknowledge(acknowledged);
                }
            }
            let expected: Vec<_> = pushed.iter().filter(|(n, _)| *n > acknowledged).cloned().collect();
            prop_assert_eq!(buffer.len(), expected.len() as u64);
            prop_assert_eq!(buffer.bytes(), expected.iter().map(|(_, m)| m.len() as u64 + 16).sum::<u64>());
            prop_assert!(contents(&buffer) == expected);
        }
    }
}

#[derive(Clone, Debug)]
enum PowerStep {
    Push(u16),
    Acknowledge(Index),
    /// The interval of `BufferSync::Every` has passed.
    Due,
    Sync,
    Epoch,
    Cut,
    /// A force fails after this many more, then the power goes.
    Fail(u8),
}

fn power_step() -> impl Strategy<Value = PowerStep> {
    prop_oneof![
        12 => (0u16..30_000).prop_map(PowerStep::Push),
        3 => any::<Index>().prop_map(PowerStep::Acknowledge),
        2 => Just(PowerStep::Due),
        1 => Just(PowerStep::Sync),
        1 => Just(PowerStep::Epoch),
        2 => Just(PowerStep::Cut),
        2 => (0u8..4).prop_map(PowerStep::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The power may go at any moment: what the policy calls safe is there, nothing is there that was not pushed, no
    /// number is given out twice, and the epoch that was sent in is never forgotten.
    #[test]
    fn what_was_forced_survives_power_loss(
        policy in prop_oneof![
            Just(BufferSync::Never),
            Just(BufferSync::Every(Duration::from_secs(1))),
            Just(BufferSync::EachPush)
        ],
        steps in prop::collection::vec(power_step(), 1..60),
    ) {
        let mut scratch = Scratch::new();
        power::begin(&scratch.0);
        let open = |directory: &Path| {
            let mut options = config(Some(directory), 1 << 20, WhenFull::Refuse);
            options.sync = policy;
            Buffer::open(options).unwrap()
        };
        let mut buffer = open(&scratch.0);
        let (mut now, mut epoch) = (Instant::now(), 0);
        let (mut pushed, mut safe_up_to, mut acknowledged): (Vec<(u64, Vec<u8>)>, u64, u64) = Default::default();
        let mut highest = 0;
        for step in steps {
            let mut is_cut = false;
            match step {
                PowerStep::Push(bytes) => match buffer.push(&vec![highest as u8; usize::from(bytes)]) {
                    Ok(Pushed { sequence, .. }) => {
                        prop_assert!(sequence > highest, "{sequence} after {highest}");
                        pushed.push((sequence, vec![highest as u8; usize::from(bytes)]));
                        highest = sequence;
                        if policy == BufferSync::EachPush {
                            safe_up_to = highest;
                        }
                    }
                    Err(BufferError::Full) => {}
                    Err(error) => panic!("{error}"),
                },
                PowerStep::Acknowledge(index) => {
                    if let Some((up_to, _)) = (!pushed.is_empty()).then(|| index.get(&pushed)) {
                        acknowledged = acknowledged.max(*up_to);
                        buffer.acknowledge(*up_to);
                    }
                }
                PowerStep::Due => {
                    now += Duration::from_secs(1);
                    let is_due = buffer.poll_timeout(now).is_some();
                    buffer.handle_timeout(now).unwrap();
                    if is_due {
                        safe_up_to = highest;
                    }
                }
                PowerStep::Sync => {
                    buffer.sync().unwrap();
                    safe_up_to = highest;
                }
                PowerStep::Epoch => {
                    epoch += 1;
                    buffer.set_epoch(Epoch(epoch), Unacknowledged::Keep).unwrap();
                }
                PowerStep::Cut => is_cut = true,
                PowerStep::Fail(after) => {
                    power::fail_after(u32::from(after));
                    // A message that was refused may be there or not; it was not promised. Its number is used up.
                    while let Ok(Pushed { sequence, .. }) = buffer.push(&[7; 100]) {
                        pushed.push((sequence, vec![7; 100]));
                        highest = sequence;
                        if policy == BufferSync::EachPush || buffer.sync().is_ok() {
                            safe_up_to = highest;
                        } else {
                            prop_assert!(matches!(buffer.push(b"x"), Err(BufferError::Poisoned)));
                        }
                    }
                    is_cut = true;
                }
            }
            if is_cut {
                kill(buffer);
                let left = Scratch::new();
                power::cut(&left.0);
                power::begin(&left.0);
                scratch = left;
                buffer = open(&scratch.0);
                prop_assert_eq!(buffer.epoch(), Epoch(epoch));
                let found = contents(&buffer);
                for (sequence, message) in &found {
                    let refused = [7; 100];
                    let wanted = pushed.iter().find(|(n, _)| n == sequence).map_or(&refused[..], |(_, m)| m);
                    prop_assert!(message == wanted, "message {sequence} is another");
                }
                for (sequence, _) in pushed.iter().filter(|(n, _)| *n > acknowledged && *n <= safe_up_to) {
                    prop_assert!(found.iter().any(|(n, _)| n == sequence), "message {sequence} is lost");
                }
                highest = highest.max(found.last().map_or(0, |(n, _)| *n));
                safe_up_to = highest;
                pushed = found;
                buffer.acknowledge(acknowledged);
            }
        }
    }
}

/// Damages the last file and says up to which sequence number the messages must survive.
fn hurt(directory: &Path, damage: &Damage, pushed: &[(u64, Vec<u8>)]) -> u64 {
    let (Some(path), Some(index)) = (
        segments(directory).pop(),
        match damage {
            Damage::None => None,
            Damage::Cut(index) | Damage::Flip(index) => Some(index),
        },
    ) else {
        return u64::MAX;
    };
    let mut bytes = fs::read(&path).unwrap();
    let at = index.index(bytes.len());
    match damage {
        Damage::Cut(_) => bytes.truncate(at),
        Damage::Flip(_) | Damage::None => bytes[at] ^= 0x10,
    }
    fs::write(&path, bytes).unwrap();
    // Walks the layout by the model's lengths, not by the code under test.
    let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let (mut position, mut intact_up_to) = (20, first - 1);
    for (sequence, message) in pushed.iter().filter(|(sequence, _)| *sequence >= first) {
        position += 16 + message.len();
        if position > at {
            break;
        }
        intact_up_to = *sequence;
    }
    intact_up_to
}
