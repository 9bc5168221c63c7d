//! The hub, its devices and the steps they take.

use super::*;

/// A running hub: what a restart loses.
pub(super) struct Process {
    pub(super) shard: Shard<Disk, ()>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) partitions: Vec<Arc<Partition<Disk>>>,
    pub(super) persisted: PersistedFilter,
    pub(super) sessions: Vec<Session>,
    pub(super) _log: Log<Disk>,
}

/// A session as its device sees it.
pub(super) struct Session {
    pub(super) device: usize,
    pub(super) id: SessionId,
    pub(super) how: Connect,
    pub(super) asked: Epoch,
    pub(super) link: Arc<SessionLink>,
    pub(super) reply: Option<oneshot::Receiver<Result<Opened, OpenError>>>,
    pub(super) opened: Option<Opened>,
    /// The next message it sends; 0 until it is opened.
    pub(super) next: u64,
    /// The log lost messages that were acknowledged: the next batch says that the gap is meant.
    pub(super) has_to_skip: bool,
    /// The last message of its batches.
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    /// What was done that ends it.
    pub(super) faults: Vec<CloseCode>,
    pub(super) is_closed: bool,
}

/// What outlives sessions and hubs.
pub(super) struct Device {
    pub(super) key: DeviceKey,
    pub(super) partition: PartitionId,
    /// One life of its send buffer.
    pub(super) life: u64,
    /// `None` until the hub has given one for this life.
    pub(super) epoch: Option<Epoch>,
    /// Up to here the hub promised to have everything of this life.
    pub(super) promised: u64,
}

/// A record seen durable.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) device: usize,
    pub(super) epoch: u64,
    pub(super) first_sequence: u64,
    pub(super) bodies: Vec<Vec<u8>>,
    pub(super) enqueued_time: UtcMillis,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            first,
            count,
            device,
            epoch,
            first_sequence,
            ..
        } = self;
        write!(
            f,
            "record {first}+{count}: device {device}, epoch {epoch}, from {first_sequence}"
        )
    }
}

impl Seen {
    pub(super) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

pub(super) struct World {
    pub(super) disk: Disk,
    pub(super) state: Arc<MemoryState>,
    pub(super) durability: Durability,
    pub(super) process: Option<Process>,
    pub(super) devices: Vec<Device>,
    /// Per partition, every record that was ever durable.
    pub(super) history: Vec<Vec<Seen>>,
    /// By device and epoch: what its owner gave up.
    pub(super) given_up: BTreeSet<(usize, u64, u64)>,
    pub(super) next_session: u64,
    pub(super) started: Instant,
    pub(super) elapsed: Duration,
    pub(super) utc: i64,
}

pub(super) fn body(device: usize, life: u64, sequence: u64, bytes: usize) -> Vec<u8> {
    let mut body = format!("{device}/{life}/{sequence}#").into_bytes();
    body.resize(body.len() + bytes, b'.');
    body
}

impl World {
    pub(super) fn new(durability: Durability) -> Self {
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

    pub(super) fn now(&self) -> Now {
        Now {
            utc: UtcMillis(self.utc),
            instant: self.started + self.elapsed,
        }
    }

    pub(super) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a hub runs between steps")
    }

    /// Starts a hub; some bits of the seed cut the power while it starts.
    pub(super) fn start(&mut self, seed: u64) {
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
                    let inbox = Inbox::new(Budgets::new(BUDGET_BYTES, BUDGET_BYTES, PARTITIONS));
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
    pub(super) fn restart(&mut self, power_loss: Option<u64>, seed: u64) {
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

    pub(super) fn step(&mut self, step: &Step) {
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
                    session.faults.push(CloseCode::DeviceDisabled);
                }
                let revoke = Revoke {
                    device_id,
                    generation: None,
                    kept: None,
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
            Step::MoveClock { ms } => self.utc += ms,
            Step::PowerOffAfter { operations } => self.disk.power_off_after(operations),
            Step::Crash { seed } => self.restart(Some(seed), seed.rotate_left(17)),
            Step::Kill => self.restart(None, 0),
        }
        self.check();
    }

    pub(super) fn view(&mut self, partition: u16) -> Arc<crate::log::PartitionView<Disk>> {
        self.process().partitions[usize::from(partition)].view.clone()
    }

    pub(super) fn sync(&mut self, partition: u16) {
        let view = self.view(partition);
        let before = view.durable();
        if view.sync().is_err() {
            assert!(view.is_poisoned());
            assert_eq!(view.durable(), before, "a failed sync makes nothing durable");
            self.progress();
        }
    }

    /// What the actor does after each wake-up.
    pub(super) fn progress(&mut self) {
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
    pub(super) fn session(&mut self, device: usize) -> Option<&mut Session> {
        let last = self
            .process()
            .sessions
            .iter_mut()
            .rfind(|session| session.device == device)?;
        (!last.is_closed && last.link.end().is_none()).then_some(last)
    }

    pub(super) fn connect(&mut self, device: usize, how: Connect) {
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
            faults: Vec::new(),
            is_closed: false,
        });
    }

    /// Sends `count` messages, the first of them `back` before the next one.
    pub(super) fn send(&mut self, device: usize, back: u64, count: u32, bytes: usize, skip: bool) {
        let life = self.devices[device].life;
        let Some(session) = self.session(device) else { return };
        if session.opened.is_none() || !session.faults.is_empty() || session.how == Connect::OldEpoch {
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

    pub(super) fn gap(&mut self, device: usize) {
        let life = self.devices[device].life;
        let Some(session) = self.session(device) else { return };
        // Under an older epoch it may be the next message of another life of the buffer, and no gap.
        let is_old = session.how == Connect::OldEpoch;
        if session.opened.is_none() || !session.faults.is_empty() || session.has_to_skip || is_old {
            return;
        }
        let first = session.next + 2;
        if self.push(device, life, first, 1, 0, false) {
            // A message behind what is stored is none; whether it is one depends on what an earlier session sent.
            self.session(device)
                .expect("found above")
                .faults
                .push(CloseCode::SequenceGap);
        }
    }

    pub(super) fn skip(&mut self, device: usize, over: u64) {
        let Some(session) = self.session(device) else { return };
        let Some(opened) = session.opened else { return };
        if !session.faults.is_empty() || session.how == Connect::OldEpoch {
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
    pub(super) fn push(&mut self, device: usize, life: u64, first: u64, count: u32, bytes: usize, skip: bool) -> bool {
        let mut builder = BatchBuilder::default();
        for sequence in first..first + u64::from(count) {
            builder.push_body(&body(device, life, sequence, bytes));
        }
        let payload = builder.finish_payload();
        let now = self.now();
        let session = self.session(device).expect("the caller looked").id;
        let partition = self.devices[device].partition;
        let process = self.process();
        let price = process.inbox.budgets.price(payload.len());
        let Ok(reserved) = process.inbox.budgets.try_reserve(partition, price) else {
            return false;
        };
        process.inbox.push_append(Append {
            session,
            batch: Batch {
                first_sequence: first,
                count,
                skip,
                payload,
            },
            reserved,
            received: now.instant,
            submitted: now.instant,
        });
        true
    }

    /// Lets everything come to rest without further faults.
    pub(super) fn settle(&mut self) {
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
}
