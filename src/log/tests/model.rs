//! The log against a vector: whatever happens to the disk, what was reported durable is there, once, in order, dense, and
//! nothing else is.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        bytes: usize,
        count: u32,
    },
    Sync,
    Prepare,
    Retain {
        keep: u64,
    },
    Read {
        from: u64,
        bytes_max: usize,
    },
    /// Cuts the power so many disk operations later.
    PowerOffAfter(u64),
    Crash(u64),
    Kill,
    FailSync,
    DiskFull,
    DiskFree,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        30 => (0usize..3000, 1u32..5).prop_map(|(bytes, count)| Step::Append { bytes, count }),
        8 => Just(Step::Sync),
        8 => Just(Step::Prepare),
        2 => any::<u64>().prop_map(|keep| Step::Retain { keep }),
        4 => (any::<u64>(), 1usize..20_000).prop_map(|(from, bytes_max)| Step::Read { from, bytes_max }),
        2 => (0u64..12).prop_map(Step::PowerOffAfter),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Kill),
        1 => Just(Step::FailSync),
        1 => Just(Step::DiskFull),
        2 => Just(Step::DiskFree),
    ];
    prop::collection::vec(step, 1..120)
}

struct Harness {
    disk: Disk,
    opened: Option<Served>,
    /// Every batch appended in this line of history, in order.
    appended: Vec<Read>,
    /// Reported durable.
    durable: u64,
    seed: u64,
}

impl Harness {
    fn new(seed: u64) -> Self {
        let disk = Disk::default();
        let opened = open(&disk, config()).expect("an empty disk");
        Self {
            disk,
            opened: Some(opened),
            appended: Vec::new(),
            durable: 0,
            seed,
        }
    }

    fn opened(&mut self) -> &mut Served {
        self.opened.as_mut().expect("always open between steps")
    }

    fn next(&self) -> u64 {
        self.appended
            .last()
            .map_or(0, |(first, count, ..)| first + u64::from(*count))
    }

    /// `true` if the process has to end: the power is off or the partition is closed.
    fn apply(&mut self, step: &Step) -> bool {
        match step {
            Step::Append { bytes, count } => self.append(*bytes, *count),
            Step::Sync => match self.opened().view.sync() {
                Ok(durable) => {
                    assert_eq!(durable.0, self.next());
                    self.durable = durable.0;
                    false
                }
                Err(_) => {
                    let opened = self.opened();
                    assert!(opened.view.sync().is_err(), "a failed sync is final");
                    assert!(matches!(
                        opened.appender.append(&batch(b"x", 1)),
                        Err(AppendError::Poisoned { .. })
                    ));
                    self.check_readable();
                    true
                }
            },
            Step::Prepare => {
                let answer = self.opened().view.prepare();
                // Making an index file may sync.
                self.durable = self.opened().view.durable().0;
                matches!(answer, Err(PrepareError::Io(_)))
            }
            Step::Retain { keep } => {
                let keep = keep % (self.durable + 1);
                let now = UtcMillis(1_000_000);
                let view = &self.opened().view;
                let before = view.first_retained().0;
                let answer = view.retain(now, SequenceNumber(keep));
                assert!(view.first_retained().0 <= keep.max(before));
                answer.is_err()
            }
            Step::Read { from, bytes_max } => {
                let view = Arc::clone(&self.opened().view);
                let from = view.first_retained().0 + from % (view.durable().0 - view.first_retained().0 + 1);
                self.check_read(&view, from, *bytes_max);
                false
            }
            Step::PowerOffAfter(operations) => {
                self.disk.power_off_after(*operations);
                false
            }
            Step::Crash(_) | Step::Kill => true,
            Step::FailSync => {
                self.disk.fail_sync_after(0);
                false
            }
            Step::DiskFull => {
                self.disk.set_bytes_max(Some(0));
                false
            }
            Step::DiskFree => {
                self.disk.set_bytes_max(None);
                false
            }
        }
    }

    fn append(&mut self, bytes: usize, count: u32) -> bool {
        let first = self.next();
        let stamp = first.to_be_bytes().to_vec();
        let payload: Vec<u8> = (0..bytes).map(|n| (n as u64 ^ first ^ self.seed) as u8).collect();
        let new = NewBatch {
            stamp: &stamp,
            payload: &payload,
            count,
            enqueued_time: UtcMillis(1000 + first.cast_signed()),
        };
        match self.opened().appender.append(&new) {
            Ok(appended) => {
                assert_eq!((appended.first.0, appended.count), (first, count));
                self.appended.push((first, count, stamp, payload));
                false
            }
            Err(AppendError::NoRoom { .. }) => {
                assert_eq!(self.opened().appender.next_sequence().0, first);
                false
            }
            Err(AppendError::Poisoned { .. }) => true,
            Err(AppendError::RecordTooLarge { .. }) => unreachable!("no batch is larger than a segment"),
        }
    }

    /// Ends the process, with or without loss of power, and opens the log again; opening may be cut short as well.
    fn restart(&mut self, step: &Step) {
        self.opened = None;
        match step {
            Step::Kill => self.disk.kill(),
            Step::Crash(seed) => self.disk.crash(*seed),
            // What the failed sync did not write is what matters here.
            _ if self.seed.is_multiple_of(2) => self.disk.kill(),
            _ => self.disk.crash(self.seed),
        }
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.disk.set_bytes_max(None);
        for attempt in 0.. {
            let booted = self.disk.boot();
            if attempt < 2 && self.seed & (4 << attempt) != 0 {
                self.disk.power_off_after(self.seed % 17);
            }
            match Log::open(booted, 1, config(), UtcMillis(0)) {
                Ok((log, mut appenders, mut recovered)) => {
                    let appender = appenders.remove(0);
                    self.opened = Some(Served {
                        view: Arc::clone(appender.view()),
                        appender,
                        recovered: recovered.remove(0),
                        log,
                    });
                    break;
                }
                Err(error) => assert!(attempt < 2, "{error:?}"),
            }
            self.disk.crash(self.seed + attempt);
        }
        self.disk.boot();
        self.check_recovered();
    }

    fn check_recovered(&mut self) {
        let opened = self.opened.as_ref().expect("just opened");
        assert_eq!(opened.recovered.damage, None, "a crash is no damage");
        let (written, durable) = (opened.view.written().0, opened.view.durable().0);
        assert_eq!(written, durable);
        assert!(
            written >= self.durable,
            "{written} of {} durable ones are left",
            self.durable
        );
        self.appended.retain(|(first, ..)| *first < written);
        assert_eq!(self.next(), written, "the log ends where a batch ends");
        self.durable = written;
        self.check_readable();
    }

    fn check_readable(&mut self) {
        let view = Arc::clone(&self.opened().view);
        self.check_read(&view, view.first_retained().0, 700);
    }

    fn check_read(&self, view: &View, from: u64, bytes_max: usize) {
        let read = read_from(view, sequence(from), bytes_max);
        let durable = view.durable().0;
        let expected = self
            .appended
            .iter()
            .filter(|(first, count, ..)| first + u64::from(*count) > from && *first < durable);
        assert!(read.iter().eq(expected), "from {from} to {durable}");
    }
}

fn config() -> Config {
    Config {
        retention_bytes: 2 * SEGMENT_BYTES,
        ..small()
    }
}

proptest! {
    /// In steps of any kind, and a last restart.
    #[test]
    fn what_was_durable_is_there_once_in_order_and_nothing_else_is(steps in steps(), seed in any::<u64>()) {
        let mut harness = Harness::new(seed);
        for step in steps.iter().chain([&Step::Crash(seed)]) {
            if harness.apply(step) {
                harness.restart(step);
            }
        }
    }
}
