//! A shard with its disk, its store and its devices in one thread, against what was promised to the devices.
//!
//! ```text
//!   devices (resend, overlap, skip, take over, lose buffers) ──> Inbox ──> Shard ──> log on `testing::Disk`
//!      ^ Opened, acknowledged, end                                          └─snapshots──> `MemoryState`
//!      └── compared at each step with the history: every record that was ever seen durable
//! ```
//!
//! Nothing runs by itself: each step of a case is a door's push, a drain, a sync, a commit, a fault or a restart.

mod scripted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::Durability;
use super::command::{Append, Command, OpenError, OpenSession, Opened, Revoke, SessionId};
use super::inbox::Inbox;
use super::link::SessionLink;
use super::recovery;
use super::router::Partition;
use super::shard::{Now, Shard};
use crate::hub::filter::{DeviceKey, PersistedFilter};
use crate::log::{Config, Log, Start, records};
use crate::model::{DeviceId, Epoch, Generation, PartitionId, SequenceNumber, UtcMillis};
use crate::state::MemoryState;
use crate::state::memory::Failure;
use crate::testing::Disk;
use crate::wire::batch::{Batch, BatchBuilder, Payload};
use crate::wire::close::CloseCode;
use crate::wire::stamp::{Origin, Stamp};

const PARTITIONS: u16 = 2;
const DEVICES: usize = 4;
const SEGMENT_BYTES: u64 = 16 << 10;
const BUDGET_BYTES: u32 = 64 << 10;

fn log_config() -> Config {
    Config {
        segment_bytes: SEGMENT_BYTES,
        index_interval_bytes: 256,
        retention_ms: 0,
        retention_bytes: 3 * SEGMENT_BYTES,
        spare_segments: 1,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Opens a session, also while one is open.
    Connect {
        device: usize,
        how: Connect,
    },
    /// The next messages.
    Send {
        device: usize,
        count: u32,
        bytes: usize,
    },
    /// Messages that were sent in this session, and perhaps some that were not.
    Repeat {
        device: usize,
        back: u64,
        count: u32,
    },
    /// Leaves messages out without saying so.
    Gap {
        device: usize,
    },
    /// Gives up on messages and says so.
    Skip {
        device: usize,
        over: u64,
    },
    Close {
        device: usize,
    },
    /// Closes, opens, and lets the shard know; what was stored may still be on its way.
    Reconnect {
        device: usize,
        how: Connect,
    },
    /// A quiet moment: everything is taken up, made durable and answered.
    Tick,
    Revoke {
        device: usize,
    },
    Drain {
        commands_max: usize,
    },
    Progress,
    Sync {
        partition: u16,
    },
    Prepare {
        partition: u16,
    },
    Retain {
        partition: u16,
    },
    TakeSnapshots,
    /// Commits to the store wait from now on.
    HoldStore,
    ReleaseStore {
        count: usize,
    },
    FailStore {
        written: bool,
    },
    FailSync,
    DiskFull,
    DiskFree,
    ClockStep {
        ms: i64,
    },
    PowerOffAfter {
        operations: u64,
    },
    Crash {
        seed: u64,
    },
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connect {
    /// Goes on with what the hub says is stored.
    Resume,
    /// Resends everything that was not acknowledged to it, whatever the hub says.
    ResendUnacknowledged,
    /// Starts anew with an empty buffer.
    LostBuffer,
    /// As a resumption in TLS early data.
    Early,
    /// With an epoch before its own.
    OldEpoch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        4 => Just(Connect::Resume),
        4 => Just(Connect::ResendUnacknowledged),
        2 => Just(Connect::LostBuffer),
        1 => Just(Connect::Early),
        1 => Just(Connect::OldEpoch),
    ];
    let device = 0..DEVICES;
    let step = prop_oneof![
        6 => (device.clone(), how.clone()).prop_map(|(device, how)| Step::Connect { device, how }),
        8 => (device.clone(), how).prop_map(|(device, how)| Step::Reconnect { device, how }),
        6 => Just(Step::Tick),
        30 => (device.clone(), 1u32..6, 0usize..1500).prop_map(|(device, count, bytes)| Step::Send { device, count, bytes }),
        8 => (device.clone(), 1u64..12, 1u32..12).prop_map(|(device, back, count)| Step::Repeat { device, back, count }),
        1 => device.clone().prop_map(|device| Step::Gap { device }),
        2 => (device.clone(), 1u64..4).prop_map(|(device, over)| Step::Skip { device, over }),
        2 => device.clone().prop_map(|device| Step::Close { device }),
        1 => device.prop_map(|device| Step::Revoke { device }),
        20 => (1usize..20).prop_map(|commands_max| Step::Drain { commands_max }),
        16 => Just(Step::Progress),
        12 => (0..PARTITIONS).prop_map(|partition| Step::Sync { partition }),
        4 => (0..PARTITIONS).prop_map(|partition| Step::Prepare { partition }),
        2 => (0..PARTITIONS).prop_map(|partition| Step::Retain { partition }),
        6 => Just(Step::TakeSnapshots),
        4 => Just(Step::HoldStore),
        4 => (1usize..4).prop_map(|count| Step::ReleaseStore { count }),
        1 => any::<bool>().prop_map(|written| Step::FailStore { written }),
        1 => Just(Step::FailSync),
        1 => Just(Step::DiskFull),
        2 => Just(Step::DiskFree),
        1 => (-5000i64..5000).prop_map(|ms| Step::ClockStep { ms }),
        1 => (0u64..12).prop_map(|operations| Step::PowerOffAfter { operations }),
        2 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        2 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..160)
}

/// A running hub: what a restart loses.
struct Process {
    shard: Shard<Disk, ()>,
    inbox: Arc<Inbox>,
    partitions: Vec<Arc<Partition<Disk>>>,
    persisted: PersistedFilter,
    sessions: Vec<Session>,
    _log: Log<Disk>,
}

/// A session as its device sees it.
struct Session {
    device: usize,
    id: SessionId,
    how: Connect,
    asked: Epoch,
    link: Arc<SessionLink>,
    reply: Option<oneshot::Receiver<Result<Opened, OpenError>>>,
    opened: Option<Opened>,
    /// The next message it sends; 0 until it is opened.
    next: u64,
    /// The log lost messages that were acknowledged: the next batch says that the gap is meant.
    has_to_skip: bool,
    /// The last message of its batches.
    sent: u64,
    acknowledged: u64,
    /// What it did wrong, so that its end is right.
    fault: Option<CloseCode>,
    is_closed: bool,
}

/// What outlives sessions and hubs.
struct Device {
    key: DeviceKey,
    partition: PartitionId,
    /// One life of its send buffer.
    life: u64,
    /// `None` until the hub has given one for this life.
    epoch: Option<Epoch>,
    /// Up to here the hub promised to have everything of this life.
    promised: u64,
}

/// A record seen durable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    first: u64,
    count: u32,
    device: usize,
    epoch: u64,
    first_sequence: u64,
    bodies: Vec<Vec<u8>>,
    enqueued_time: UtcMillis,
}

impl Seen {
    fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

struct World {
    disk: Disk,
    state: Arc<MemoryState>,
    durability: Durability,
    process: Option<Process>,
    devices: Vec<Device>,
    /// Per partition, every record that was ever durable.
    history: Vec<Vec<Seen>>,
    /// By device and epoch: what its owner gave up.
    given_up: BTreeSet<(usize, u64, u64)>,
    next_session: u64,
    started: Instant,
    elapsed: Duration,
    utc: i64,
}

fn body(device: usize, life: u64, sequence: u64, bytes: usize) -> Vec<u8> {
    let mut body = format!("{device}/{life}/{sequence}#").into_bytes();
    body.resize(body.len() + bytes, b'.');
    body
}

impl World {
    fn new(durability: Durability) -> Self {
        let devices = (0..DEVICES).map(|n| Device {
            key: DeviceKey {
                device: DeviceId::new(&format!("device-{n}")).expect("a valid id"),
                generation: Generation(7),
            },
            partition: PartitionId(n as u16 % PARTITIONS),
            life: 1,
            epoch: None,
            promised: 0,
        });
        let mut world = Self {
            disk: Disk::default(),
            state: MemoryState::new(),
            durability,
            process: None,
            devices: devices.collect(),
            history: vec![Vec::new(); usize::from(PARTITIONS)],
            given_up: BTreeSet::new(),
            next_session: 1,
            started: Instant::now(),
            elapsed: Duration::ZERO,
            utc: 1_000_000,
        };
        world.start(0);
        world
    }

    fn now(&self) -> Now {
        Now {
            utc: UtcMillis(self.utc),
            instant: self.started + self.elapsed,
        }
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a hub runs between steps")
    }

    /// Starts a hub; some bits of the seed cut the power while it starts.
    fn start(&mut self, seed: u64) {
        self.disk.set_bytes_max(None);
        for attempt in 0.. {
            let booted = self.disk.boot();
            if attempt < 2 && seed & (4 << attempt) != 0 {
                self.disk.power_off_after(seed % 23);
            }
            match Log::open(booted, PARTITIONS, log_config(), UtcMillis(self.utc)) {
                Ok((log, appenders, recovered)) => {
                    assert!(
                        recovered.iter().all(|recovered| recovered.damage.is_none()),
                        "a crash is no damage"
                    );
                    self.disk.boot();
                    let persisted = PersistedFilter::new(self.state.clone());
                    let inbox = Inbox::new(BUDGET_BYTES);
                    let mut shard = Shard::new(inbox.clone(), persisted.clone(), self.durability, Instant::now, ());
                    let mut partitions = Vec::new();
                    for appender in appenders {
                        let view = appender.view().clone();
                        let (filter, covered) = recovery::rebuild(&view, &persisted).expect("an undamaged log");
                        let partition = Arc::new(Partition::new(view, covered));
                        partitions.push(partition.clone());
                        shard.adopt(appender, partition, filter);
                    }
                    self.process = Some(Process {
                        shard,
                        inbox,
                        partitions,
                        persisted,
                        sessions: Vec::new(),
                        _log: log,
                    });
                    return;
                }
                Err(error) => assert!(attempt < 2, "{error:?}"),
            }
            self.disk.crash(seed + attempt);
        }
    }

    /// Ends the hub without a word, and starts it again on what is left.
    fn restart(&mut self, power_loss: Option<u64>, seed: u64) {
        let process = self.process.take().expect("a hub runs between steps");
        // What a failed sync did not write is not read back, as if the power had failed.
        let has_failed = process.partitions.iter().any(|partition| partition.view.is_poisoned());
        drop(process);
        match power_loss {
            Some(seed) => self.disk.crash(seed),
            None => self.disk.kill(),
        }
        self.state.crash();
        self.start(seed);
        for partition in 0..PARTITIONS {
            let may_lose = (power_loss.is_some() || has_failed) && self.durability != Durability::Sync;
            self.check_after_restart(partition, may_lose);
        }
    }

    fn step(&mut self, step: &Step) {
        self.elapsed += Duration::from_millis(3);
        self.utc += 3;
        match *step {
            Step::Connect { device, how } => self.connect(device, how),
            Step::Send { device, count, bytes } => self.send(device, 0, count, bytes, false),
            Step::Repeat { device, back, count } => self.send(device, back, count, 40, false),
            Step::Gap { device } => self.gap(device),
            Step::Skip { device, over } => self.skip(device, over),
            Step::Close { device } => {
                if let Some(session) = self.session(device) {
                    session.is_closed = true;
                    let id = session.id;
                    self.process().inbox.push_control(Command::Close(id)).expect("room");
                }
            }
            Step::Reconnect { device, how } => {
                self.step(&Step::Close { device });
                self.step(&Step::Connect { device, how });
                self.step(&Step::Drain { commands_max: 100 });
                self.step(&Step::Progress);
            }
            Step::Tick => {
                self.step(&Step::Drain { commands_max: 100 });
                for partition in 0..PARTITIONS {
                    self.step(&Step::Sync { partition });
                }
                self.step(&Step::Progress);
            }
            Step::Revoke { device } => {
                let device_id = self.devices[device].key.device.to_string();
                for session in self
                    .process()
                    .sessions
                    .iter_mut()
                    .filter(|session| session.device == device)
                {
                    session.fault.get_or_insert(CloseCode::DeviceDisabled);
                }
                let revoke = Revoke {
                    device_id,
                    code: CloseCode::DeviceDisabled,
                    reason: "disabled".to_owned(),
                };
                self.process()
                    .inbox
                    .push_control(Command::Revoke(revoke))
                    .expect("room");
            }
            Step::Drain { commands_max } => {
                let now = self.now();
                self.process().shard.drain(commands_max, now);
            }
            Step::Progress => self.progress(),
            Step::Sync { partition } => self.sync(partition),
            Step::Prepare { partition } => drop(self.view(partition).prepare()),
            Step::Retain { partition } => {
                let covered = self.process().partitions[usize::from(partition)].filter_covered();
                let now = UtcMillis(self.utc);
                drop(self.view(partition).retain(now, covered));
            }
            Step::TakeSnapshots => self.process().shard.take_snapshots(),
            Step::HoldStore => self.state.hold(8),
            Step::ReleaseStore { count } => drop(self.state.release(count)),
            Step::FailStore { written } => {
                self.state
                    .fail_next(if written { Failure::Written } else { Failure::Lost });
            }
            Step::FailSync => self.disk.fail_sync_after(0),
            Step::DiskFull => self.disk.set_bytes_max(Some(0)),
            Step::DiskFree => self.disk.set_bytes_max(None),
            Step::ClockStep { ms } => self.utc += ms,
            Step::PowerOffAfter { operations } => self.disk.power_off_after(operations),
            Step::Crash { seed } => self.restart(Some(seed), seed.rotate_left(17)),
            Step::Kill => self.restart(None, 0),
        }
        self.check();
    }

    fn view(&mut self, partition: u16) -> Arc<crate::log::PartitionView<Disk>> {
        self.process().partitions[usize::from(partition)].view.clone()
    }

    fn sync(&mut self, partition: u16) {
        let view = self.view(partition);
        let before = view.durable();
        if view.sync().is_err() {
            assert!(view.is_poisoned());
            assert_eq!(view.durable(), before, "a failed sync makes nothing durable");
            self.progress();
        }
    }

    /// What the actor does after each wake-up.
    fn progress(&mut self) {
        let now = self.now();
        let process = self.process();
        process.shard.take_written();
        process.shard.handle_progress(now);
        process.shard.take_written();
        while let Some(snapshot) = process.shard.poll_snapshot() {
            let (inbox, partition) = (process.inbox.clone(), snapshot.partition);
            let durable = process.partitions[usize::from(partition.0)].view.durable();
            assert!(
                snapshot.covered <= durable,
                "a snapshot never speaks of what may still be lost"
            );
            process
                .persisted
                .save(partition, snapshot.covered, snapshot.positions, move |result| {
                    let saved = result.is_ok();
                    inbox
                        .push_control(Command::FilterSaved { partition, saved })
                        .expect("room");
                });
        }
        let process = self.process.as_ref().expect("a hub runs between steps");
        for session in &process.sessions {
            let partition = usize::from(self.devices[session.device].partition.0);
            let is_poisoned = process.partitions[partition].view.is_poisoned();
            if is_poisoned && session.opened.is_some() && !session.is_closed {
                assert!(session.link.end().is_some(), "a partition that failed has no sessions");
            }
        }
    }

    /// The session that its device takes for the running one.
    fn session(&mut self, device: usize) -> Option<&mut Session> {
        let last = self
            .process()
            .sessions
            .iter_mut()
            .rfind(|session| session.device == device)?;
        (!last.is_closed && last.link.end().is_none()).then_some(last)
    }

    fn connect(&mut self, device: usize, how: Connect) {
        let owner = &mut self.devices[device];
        if how == Connect::LostBuffer {
            owner.life += 1;
            owner.epoch = None;
            owner.promised = 0;
        }
        let asked = match how {
            Connect::OldEpoch => match owner.epoch {
                Some(epoch) if epoch.0 > 1 => Epoch(epoch.0 - 1),
                Some(_) | None => return,
            },
            Connect::Resume | Connect::ResendUnacknowledged | Connect::LostBuffer | Connect::Early => {
                owner.epoch.unwrap_or_default()
            }
        };
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let link = Arc::new(SessionLink::default());
        let (reply, answer) = oneshot::channel();
        let open = OpenSession {
            session: id,
            key: owner.key.clone(),
            partition: owner.partition,
            origin: Origin {
                device_id: owner.key.device.to_string(),
                module_id: String::new(),
                generation: owner.key.generation.0,
                epoch: 0,
                auth_method: String::new(),
            },
            epoch: asked,
            is_early: how == Connect::Early,
            link: link.clone(),
            reply,
        };
        let process = self.process();
        process.inbox.push_control(Command::Open(open)).expect("room");
        process.sessions.push(Session {
            device,
            id,
            how,
            asked,
            link,
            reply: Some(answer),
            opened: None,
            next: 0,
            has_to_skip: false,
            sent: 0,
            acknowledged: 0,
            fault: None,
            is_closed: false,
        });
    }

    /// Sends `count` messages, the first of them `back` before the next one.
    fn send(&mut self, device: usize, back: u64, count: u32, bytes: usize, skip: bool) {
        let life = self.devices[device].life;
        let Some(session) = self.session(device) else { return };
        if session.opened.is_none() || session.fault.is_some() || session.how == Connect::OldEpoch {
            return;
        }
        let first = session.next.saturating_sub(back).max(1);
        let next = session.next.max(first + u64::from(count));
        let skip = skip || session.has_to_skip;
        if self.push(device, life, first, count, bytes, skip) {
            let session = self.session(device).expect("found above");
            session.has_to_skip &= session.next == next;
            session.next = next;
            session.sent = session.sent.max(first + u64::from(count) - 1);
        }
    }

    fn gap(&mut self, device: usize) {
        let life = self.devices[device].life;
        let Some(session) = self.session(device) else { return };
        if session.opened.is_none() || session.fault.is_some() || session.has_to_skip {
            return;
        }
        let first = session.next + 2;
        if self.push(device, life, first, 1, 0, false) {
            // A message behind what is stored is none; whether it is one depends on what an earlier session sent.
            self.session(device).expect("found above").fault = Some(CloseCode::SequenceGap);
        }
    }

    fn skip(&mut self, device: usize, over: u64) {
        let Some(session) = self.session(device) else { return };
        let Some(opened) = session.opened else { return };
        if session.fault.is_some() || session.how == Connect::OldEpoch {
            return;
        }
        let given_up = session.next..session.next + over;
        session.next += over;
        self.given_up
            .extend(given_up.map(|sequence| (device, opened.epoch.0, sequence)));
        // The gap is only known to the hub once the next batch says so.
        self.session(device).expect("found above").has_to_skip = true;
        self.send(device, 0, 1, 10, true);
    }

    /// Whether the budget let it through.
    fn push(&mut self, device: usize, life: u64, first: u64, count: u32, bytes: usize, skip: bool) -> bool {
        let mut builder = BatchBuilder::default();
        for sequence in first..first + u64::from(count) {
            builder.push_body(&body(device, life, sequence, bytes));
        }
        let payload = builder.finish_payload();
        let now = self.now();
        let session = self.session(device).expect("the caller looked").id;
        let process = self.process();
        let budget_bytes = process.inbox.price(payload.len());
        if !process.inbox.try_reserve(budget_bytes) {
            return false;
        }
        process.inbox.push_append(Append {
            session,
            batch: Batch {
                first_sequence: first,
                count,
                skip,
                payload,
            },
            budget_bytes,
            received: now.instant,
            submitted: now.instant,
        });
        true
    }

    /// Everything that became durable enters the history; everything that was said to a device is compared with it.
    fn check(&mut self) {
        for partition in 0..PARTITIONS {
            let next = self.history[usize::from(partition)].last().map_or(0, Seen::next);
            for seen in self.read(partition, next) {
                self.check_next(partition, &seen);
                self.history[usize::from(partition)].push(seen);
            }
        }
        let mut sessions = std::mem::take(&mut self.process().sessions);
        for session in &mut sessions {
            self.check_answer(session);
            self.check_acknowledged(session);
            self.check_end(session);
        }
        self.process().sessions = sessions;
    }

    fn read(&mut self, partition: u16, from: u64) -> Vec<Seen> {
        let view = self.view(partition);
        if view.durable().0 <= from {
            return Vec::new();
        }
        let mut cursor = view.cursor(Start::Sequence(SequenceNumber(from))).expect("retained");
        let mut all = Vec::new();
        while let Some(chunk) = cursor.read(2000).expect("readable") {
            for record in records(&chunk.bytes) {
                let record = record.expect("well formed");
                assert!(record.is_intact());
                let stamp = Stamp::read(record.stamp).expect("a stamp");
                let payload = Payload::new(record.payload, record.header.count).expect("a batch");
                let device = stamp.origin.device_id.strip_prefix("device-").expect("one of ours");
                all.push(Seen {
                    first: record.header.first.0,
                    count: record.header.count,
                    device: device.parse().expect("one of ours"),
                    epoch: stamp.origin.epoch,
                    first_sequence: stamp.first_sequence,
                    bodies: payload
                        .messages()
                        .map(|message| message.expect("valid").body().to_vec())
                        .collect(),
                    enqueued_time: record.header.enqueued_time,
                });
            }
        }
        all
    }

    /// The order of a partition and of each device in it, and that nothing comes twice.
    fn check_next(&self, partition: u16, seen: &Seen) {
        let history = &self.history[usize::from(partition)];
        assert_eq!(
            seen.first,
            history.last().map_or(0, Seen::next),
            "sequence numbers are dense"
        );
        assert!(
            history
                .last()
                .is_none_or(|last| last.enqueued_time <= seen.enqueued_time),
            "time goes on"
        );
        assert_eq!(seen.bodies.len(), seen.count as usize);
        assert_eq!(self.devices[seen.device].partition.0, partition);
        let before = history.iter().rfind(|earlier| earlier.device == seen.device);
        let (epoch, last) = before.map_or((0, 0), |before| {
            (before.epoch, before.first_sequence + u64::from(before.count) - 1)
        });
        assert!(
            seen.epoch >= epoch,
            "an older epoch was stored: {seen:?} after {before:?}"
        );
        let last = if seen.epoch == epoch { last } else { 0 };
        assert!(seen.first_sequence > last, "stored twice: {seen:?} after {before:?}");
        for missing in last + 1..seen.first_sequence {
            let key = (seen.device, seen.epoch, missing);
            assert!(self.given_up.contains(&key), "{missing} is missing before {seen:?}");
        }
        let text = |body: &[u8]| {
            let end = body.iter().position(|byte| *byte == b'#').expect("our body");
            let text = std::str::from_utf8(&body[..end]).expect("our body").to_owned();
            text.split('/')
                .map(|part| part.parse::<u64>().expect("our body"))
                .collect::<Vec<_>>()
        };
        let life = text(&seen.bodies[0])[1];
        for (sequence, body) in (seen.first_sequence..).zip(&seen.bodies) {
            assert_eq!(
                text(body),
                [seen.device as u64, life, sequence],
                "the device's bytes, unchanged"
            );
        }
        if let Some(before) = before.filter(|before| before.epoch == seen.epoch) {
            assert_eq!(text(&before.bodies[0])[1], life, "an epoch holds one life of a buffer");
        }
    }

    fn check_after_restart(&mut self, partition: u16, may_lose: bool) {
        let view = self.view(partition);
        let (first, end) = (view.first_retained().0, view.durable().0);
        let read = self.read(partition, first);
        let index = usize::from(partition);
        let known = self.history[index].last().map_or(0, Seen::next);
        if end < known {
            assert!(may_lose, "{end} of {known} durable records are left");
            self.history[index].retain(|seen| seen.first < end);
            // What is lost was promised at a level that does not survive a power cut.
            let stored = self.stored();
            for (n, device) in self
                .devices
                .iter_mut()
                .enumerate()
                .filter(|(_, device)| device.partition.0 == partition)
            {
                let last = device
                    .epoch
                    .and_then(|epoch| stored.get(&(n, epoch.0)).and_then(BTreeSet::last));
                let last = last.copied().unwrap_or(0);
                let epoch = device.epoch.unwrap_or_default().0;
                self.given_up
                    .extend((last + 1..=device.promised).map(|sequence| (n, epoch, sequence)));
            }
        }
        let kept = self.history[index].iter().filter(|seen| seen.first >= first);
        assert!(
            read.iter().zip(kept.clone()).all(|(read, kept)| read == kept),
            "the history is rewritten"
        );
        assert!(read.len() >= kept.count());
    }

    /// The sequences in the history, by device and epoch.
    fn stored(&self) -> BTreeMap<(usize, u64), BTreeSet<u64>> {
        let mut stored: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        for seen in self.history.iter().flatten() {
            let sequences = seen.first_sequence..seen.first_sequence + u64::from(seen.count);
            stored.entry((seen.device, seen.epoch)).or_default().extend(sequences);
        }
        stored
    }

    fn assert_stored(&self, device: usize, epoch: Epoch, up_to: u64, why: &str) {
        let stored = self.stored();
        let sequences = stored.get(&(device, epoch.0));
        for sequence in 1..=up_to {
            let is_there = sequences.is_some_and(|sequences| sequences.contains(&sequence));
            assert!(
                is_there || self.given_up.contains(&(device, epoch.0, sequence)),
                "{why}: message {sequence} of device {device}, epoch {} is not durable",
                epoch.0
            );
        }
    }

    fn check_answer(&mut self, session: &mut Session) {
        let Some(reply) = &mut session.reply else { return };
        let Ok(answer) = reply.try_recv() else { return };
        session.reply = None;
        let partition = usize::from(self.devices[session.device].partition.0);
        let opened = match answer {
            Ok(opened) => opened,
            Err(OpenError::EarlyData) => return assert_eq!(session.how, Connect::Early),
            Err(OpenError::StaleEpoch { asked, current }) => {
                assert!(asked == session.asked.0 && asked < current);
                // A device that lost its buffer twice may ask for what was given to its earlier life.
                return session.is_closed = true;
            }
            Err(OpenError::Poisoned(_)) => {
                session.is_closed = true;
                return assert!(self.process().partitions[partition].view.is_poisoned());
            }
            Err(error @ (OpenError::State(_) | OpenError::Stopping)) => panic!("{error}"),
        };
        self.assert_stored(
            session.device,
            opened.epoch,
            opened.last_sequence,
            "an opened session promises",
        );
        if session.how == Connect::OldEpoch {
            let stored = self.stored();
            let is_newer_stored = stored
                .keys()
                .any(|(device, epoch)| *device == session.device && *epoch > opened.epoch.0);
            assert!(
                !is_newer_stored,
                "epoch {} was opened after a newer one",
                opened.epoch.0
            );
            session.opened = Some(opened);
            return;
        }
        let device = &mut self.devices[session.device];
        match device.epoch {
            Some(epoch) if session.asked == epoch => assert_eq!(opened.epoch, epoch),
            // The answer to a hello of an earlier life or of a session that was taken over.
            Some(_) => return session.is_closed = true,
            None if session.asked == Epoch(0) => {
                assert_eq!(opened.last_sequence, 0, "a new epoch is empty");
                device.epoch = Some(opened.epoch);
            }
            None => return session.is_closed = true,
        }
        let acknowledged = device.promised;
        if self.durability == Durability::Sync {
            assert!(
                opened.last_sequence >= acknowledged,
                "what was acknowledged is forgotten"
            );
        }
        device.promised = device.promised.max(opened.last_sequence);
        session.next = match session.how {
            Connect::ResendUnacknowledged => acknowledged + 1,
            Connect::Resume | Connect::LostBuffer | Connect::Early | Connect::OldEpoch => device.promised + 1,
        };
        session.has_to_skip = session.next > opened.last_sequence + 1;
        session.opened = Some(opened);
    }

    fn check_acknowledged(&mut self, session: &mut Session) {
        let acknowledged = session.link.acknowledged();
        if acknowledged <= session.acknowledged {
            return assert_eq!(acknowledged, session.acknowledged, "acknowledgements only grow");
        }
        let opened = session.opened.expect("only what was sent is acknowledged");
        self.assert_stored(session.device, opened.epoch, acknowledged, "acknowledged");
        session.acknowledged = acknowledged;
        let device = &mut self.devices[session.device];
        if device.epoch == Some(opened.epoch) {
            device.promised = device.promised.max(acknowledged);
        }
    }

    fn check_end(&mut self, session: &Session) {
        let Some(end) = session.link.end() else { return };
        let partition = usize::from(self.devices[session.device].partition.0);
        match end.code {
            CloseCode::TakenOver => {
                let later = self.next_session;
                assert!(
                    session.id.0 + 1 < later,
                    "a session takes over only from an earlier one"
                );
            }
            CloseCode::Internal => assert!(self.process().partitions[partition].view.is_poisoned(), "{end:?}"),
            CloseCode::Draining => {}
            code => assert_eq!(Some(code), session.fault, "{end:?}"),
        }
    }

    /// Lets everything come to rest without further faults.
    fn settle(&mut self) {
        // Takes back what faults are still to come.
        self.disk.boot();
        self.disk.set_bytes_max(None);
        self.state.release_all();
        for _ in 0..100 {
            self.step(&Step::Drain { commands_max: 1000 });
            self.step(&Step::Progress);
            for partition in 0..PARTITIONS {
                self.step(&Step::Prepare { partition });
                self.step(&Step::Sync { partition });
            }
            self.step(&Step::Progress);
            if self.process().shard.is_idle() && self.process().inbox.depth() == 0 {
                break;
            }
        }
    }

    fn check_rest(&mut self) {
        let process = self.process.as_ref().expect("a hub runs between steps");
        assert_eq!(process.inbox.inflight_bytes(), 0, "the whole budget is back");
        for session in &process.sessions {
            let partition = usize::from(self.devices[session.device].partition.0);
            let is_running = session.link.end().is_none() && !session.is_closed && session.fault.is_none();
            if is_running && !process.partitions[partition].view.is_poisoned() {
                assert_eq!(session.acknowledged, session.sent, "a running session gets its answer");
            }
        }
        assert!(process.shard.is_idle(), "nothing is pending");
    }
}

fn run(durability: Durability, steps: &[Step], seed: u64) {
    let mut world = World::new(durability);
    for device in 0..DEVICES {
        let how = Connect::Resume;
        world.step(&Step::Connect { device, how });
    }
    world.step(&Step::Tick);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.check_rest();
    world.process().shard.stop("the end of the test");
    world.process().shard.take_snapshots();
    world.settle();
    assert!(world.process().shard.is_idle(), "a stop comes to an end");
    world.step(&Step::Crash { seed });
    for device in 0..DEVICES {
        world.step(&Step::Connect {
            device,
            how: Connect::Resume,
        });
    }
    world.settle();
    world.check_rest();
    assert!(
        world.process().sessions.iter().all(|session| session.reply.is_none()),
        "everybody got an answer"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn devices_keep_what_they_were_promised(steps in steps(), seed in any::<u64>()) {
        run(Durability::Sync, &steps, seed);
    }

    /// Acknowledged messages may be lost to a power cut at this level; nothing is stored twice or out of order all the
    /// same, and the end of the process loses nothing.
    #[test]
    fn without_sync_only_a_power_cut_loses(steps in steps(), seed in any::<u64>()) {
        run(Durability::Interval(Duration::from_millis(10)), &steps, seed);
    }
}
