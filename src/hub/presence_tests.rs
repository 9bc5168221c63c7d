//! Presence against a plain model: sessions open, close and take over, the hub crashes and stops, batches are held back,
//! lost, or written without an answer, devices are deleted and created again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::events::{Event, EventKind, EventSettings, Events, Operation, Recorder};
use crate::hub::registry::IfMatch;
use crate::model::time::Clock;
use crate::state::MemoryState;
use crate::state::memory::Failure;

const WINDOW_MS: i64 = 10_000;
const DEVICES: usize = 3;
/// One partition, so that events have one order.
const PARTITIONS: u16 = 1;
const PARTITION: PartitionId = PartitionId(0);

#[derive(Clone, Debug)]
enum Step {
    Open(usize),
    /// The session's number among those open.
    Close(prop::sample::Index),
    /// A new session, then the end of one before it.
    TakeOver(usize),
    Touch(prop::sample::Index),
    Wait(i64),
    Flush,
    Fail(bool),
    Hold,
    Release,
    Crash,
    Stop,
    Renew(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let device = 0..DEVICES;
    let step = prop_oneof![
        4 => device.clone().prop_map(Step::Open),
        4 => any::<prop::sample::Index>().prop_map(Step::Close),
        2 => device.clone().prop_map(Step::TakeOver),
        1 => any::<prop::sample::Index>().prop_map(Step::Touch),
        4 => prop_oneof![1..50i64, 900..1100i64, WINDOW_MS - 2..WINDOW_MS + 3, Just(70_000)].prop_map(Step::Wait),
        6 => Just(Step::Flush),
        1 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
        1 => device.prop_map(Step::Renew),
    ];
    prop::collection::vec(step, 1..80)
}

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UtcMillis {
        UtcMillis(7)
    }
}

fn name(device: usize) -> IdentityName {
    IdentityName::device(DeviceId::new(&format!("d{device}")).unwrap())
}

/// What a plain hub would know of one life of a device.
#[derive(Clone, Debug)]
struct Life {
    generation: Generation,
    seen: Seen,
    /// When something of it was last recorded.
    recorded: Option<i64>,
    /// The same, or earlier: batches that were held back were decided at some time before.
    recorded_after: Option<i64>,
    is_recorded_connected: bool,
}

struct World {
    state: Arc<MemoryState>,
    registry: Registry,
    events: Events,
    presence: Presence,
    now: i64,
    lives: Vec<Life>,
    sessions: Vec<(usize, Generation, Connection)>,
    held_from: Option<i64>,
    /// After a failure batches are tried again by then.
    calm_from: i64,
    told: usize,
}

impl World {
    fn new() -> Self {
        let state = MemoryState::new();
        let recorder = Recorder::new(&[EventKind::Connection], Arc::new(Fixed));
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), PARTITIONS)
            .unwrap()
            .recording(recorder);
        let settings = EventSettings {
            retention: Duration::from_secs(1 << 40),
            records_max: u64::MAX,
        };
        let now = 1_000_000;
        let mut world = Self {
            events: Events::new(state.clone(), settings, PARTITIONS, "hub.example", UtcMillis(0)),
            presence: open(&state, &registry, now),
            state,
            registry,
            now,
            lives: Vec::new(),
            sessions: Vec::new(),
            held_from: None,
            calm_from: now,
            told: 0,
        };
        for device in 0..DEVICES {
            let life = world.create(device);
            world.lives.push(life);
        }
        world
    }

    fn create(&self, device: usize) -> Life {
        let wanted = DeviceIdentity::new(name(device).device);
        let made = self
            .registry
            .create_device_blocking(wanted, UtcMillis(self.now))
            .unwrap();
        Life {
            generation: made.identity.generation_id,
            seen: Seen::default(),
            recorded: None,
            recorded_after: None,
            is_recorded_connected: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Open(device) => self.open(*device),
            Step::Close(index) if !self.sessions.is_empty() => self.close(index.index(self.sessions.len())),
            Step::TakeOver(device) => {
                let earlier = self.sessions.iter().position(|(of, ..)| of == device);
                self.open(*device);
                if let Some(earlier) = earlier {
                    self.close(earlier);
                }
            }
            Step::Touch(index) if !self.sessions.is_empty() => {
                let (device, generation, connection) = &self.sessions[index.index(self.sessions.len())];
                connection.touch(UtcMillis(self.now));
                let life = &mut self.lives[*device];
                if life.generation == *generation {
                    life.seen.activity = Some(UtcMillis(self.now));
                }
            }
            Step::Close(_) | Step::Touch(_) => {}
            Step::Wait(millis) => self.now += millis,
            Step::Flush => self.flush(),
            Step::Fail(is_written) => self.state.fail_next(match is_written {
                true => Failure::Written,
                false => Failure::Lost,
            }),
            Step::Hold => {
                self.state.hold(2);
                self.held_from.get_or_insert(self.now);
            }
            Step::Release => self.release(),
            Step::Crash => {
                self.state.crash();
                self.held_from = None;
                self.restart();
            }
            Step::Stop => {
                self.release();
                self.now += 1;
                self.presence.close_all(UtcMillis(self.now));
                for life in &mut self.lives {
                    if life.seen.state == ConnectionState::Connected {
                        (life.seen.state, life.seen.since) = (ConnectionState::Disconnected, Some(UtcMillis(self.now)));
                    }
                }
                for _ in 0..10 {
                    self.presence.flush(PARTITION, UtcMillis(self.now), true, |_| {});
                }
                assert_eq!(self.presence.held(PARTITION), 0, "a stop leaves nothing behind");
                self.note(self.now, false);
                let events = self.events().len();
                self.restart();
                assert_eq!(self.events().len(), events, "nothing is left to a start after a stop");
            }
            Step::Renew(device) => {
                self.release();
                let change = self
                    .registry
                    .delete_device_blocking(&name(*device).device, IfMatch::Any);
                // A failing store may have done it all the same.
                if change.is_err() && self.registry.device(&name(*device).device).is_ok() {
                    return;
                }
                let life = &self.lives[*device];
                let after = self.device_events(*device);
                let last = after.last().map(|event| event.operation);
                assert!(
                    !life.is_recorded_connected || last == Some(Operation::Disconnect),
                    "a deletion ends what was recorded"
                );
                self.told = self.events().len();
                self.state.recover();
                self.lives[*device] = self.create(*device);
            }
        }
    }

    fn open(&mut self, device: usize) {
        let now = UtcMillis(self.now);
        let life = &mut self.lives[device];
        let connection = self.presence.opened(PARTITION, &name(device), life.generation, now);
        life.seen.activity = Some(now);
        if life.seen.state == ConnectionState::Disconnected {
            (life.seen.state, life.seen.since) = (ConnectionState::Connected, Some(now));
        }
        self.sessions.push((device, life.generation, connection));
    }

    fn close(&mut self, index: usize) {
        let (device, generation, connection) = self.sessions.remove(index);
        self.presence.closed(&connection, UtcMillis(self.now));
        let is_last = self.sessions.iter().all(|(.., other)| other.generation != generation);
        let life = &mut self.lives[device];
        if is_last && life.generation == generation {
            (life.seen.state, life.seen.since) = (ConnectionState::Disconnected, Some(UtcMillis(self.now)));
        }
    }

    fn flush(&mut self) {
        let has_failed = Arc::new(Mutex::new(false));
        let failed = has_failed.clone();
        self.presence
            .flush(PARTITION, UtcMillis(self.now), false, move |stored| {
                *failed.lock().unwrap() = stored.is_err()
            });
        if *has_failed.lock().unwrap() {
            self.calm_from = self.now + RETRY_AFTER_MS;
        }
        self.note(self.now, true);
        if self.held_from.is_some() || self.now < self.calm_from {
            return;
        }
        for (device, life) in self.lives.iter().enumerate() {
            let is_quiet = life.recorded.is_none_or(|at| at + WINDOW_MS <= self.now);
            let is_connected = life.seen.state == ConnectionState::Connected;
            assert!(
                !is_quiet || life.is_recorded_connected == is_connected,
                "d{device}: a flip after a quiet window is recorded at once: {life:?} at {}",
                self.now
            );
        }
    }

    fn release(&mut self) {
        self.state.release_all();
        let from = self.held_from.take();
        if from.is_some() {
            self.calm_from = self.now + RETRY_AFTER_MS;
        }
        self.note(from.unwrap_or(self.now), true);
    }

    /// Looks at events that are new, decided `after` some time: they alternate and, but for the ends and starts of the
    /// hub, leave a window between them.
    fn note(&mut self, after: i64, is_sampled: bool) {
        let events = self.events();
        for event in &events[self.told..] {
            let device = (0..DEVICES).find(|device| name(*device) == event.identity).unwrap();
            let life = &mut self.lives[device];
            let is_connected = event.operation == Operation::Connect;
            assert_ne!(
                life.is_recorded_connected, is_connected,
                "d{device}: no state is told twice"
            );
            life.is_recorded_connected = is_connected;
            let is_early = life
                .recorded_after
                .is_some_and(|earlier| self.now - earlier < WINDOW_MS);
            assert!(
                !is_sampled || !is_early,
                "d{device}: flips within a window are not told one by one"
            );
            (life.recorded, life.recorded_after) = (Some(self.now), Some(after));
        }
        self.told = events.len();
    }

    fn restart(&mut self) {
        // What was on its way when it crashed may have been written.
        self.note(self.now, false);
        self.sessions.clear();
        self.now += 1;
        let stored: Vec<bool> = self.lives.iter().map(|life| life.is_recorded_connected).collect();
        let before = self.told;
        self.presence = open(&self.state, &self.registry, self.now);
        assert_eq!(
            self.events().len() - before,
            stored.iter().filter(|is_connected| **is_connected).count(),
            "a start disconnects whom the store has as connected, and nobody else"
        );
        self.note(self.now, false);
        self.calm_from = self.now;
        for (device, life) in self.lives.iter_mut().enumerate() {
            // Flips that were not stored are forgotten with the crash; what is shown is what the store knows.
            let seen = self.presence.look(&name(device), life.generation).unwrap();
            assert_eq!(seen.state, ConnectionState::Disconnected);
            if stored[device] {
                assert_eq!(seen.since, Some(UtcMillis(self.now)));
            }
            assert!(seen.activity <= life.seen.activity, "no activity is made up");
            life.seen = seen;
        }
    }

    fn check(&self) {
        for (device, life) in self.lives.iter().enumerate() {
            let seen = self.presence.look(&name(device), life.generation).unwrap();
            assert_eq!(seen, life.seen, "d{device}");
        }
        let connected = self
            .lives
            .iter()
            .filter(|life| life.seen.state == ConnectionState::Connected);
        assert!(self.presence.held(PARTITION) >= connected.count());
    }

    fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let page = self
                .events
                .read(PARTITION, events.last().map_or(0, |event| event.sequence), 1000)
                .unwrap();
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    }

    fn device_events(&self, device: usize) -> Vec<Event> {
        let mut events = self.events();
        events.retain(|event| event.identity == name(device));
        events
    }

    /// Nothing happens any more.
    fn settle(&mut self) {
        self.release();
        for _ in 0..6 {
            self.now += WINDOW_MS + RETRY_AFTER_MS;
            self.flush();
        }
        for (device, life) in self.lives.iter().enumerate() {
            let is_connected = life.seen.state == ConnectionState::Connected;
            assert_eq!(
                life.is_recorded_connected, is_connected,
                "d{device}: the last state is told"
            );
        }
        // Those of earlier lives are kept until their sessions end.
        while !self.sessions.is_empty() {
            self.close(0);
        }
        for _ in 0..3 {
            self.now += WINDOW_MS + RETRY_AFTER_MS;
            self.flush();
        }
        assert_eq!(
            self.presence.held(PARTITION),
            0,
            "nothing of the disconnected stays in memory"
        );
        let bodies: Vec<String> = self.events().into_iter().map(|event| event.body).collect();
        assert!(
            bodies.is_sorted_by(|a, b| a < b),
            "numbers increase as texts: {bodies:?}"
        );
    }
}

fn open(state: &Arc<MemoryState>, registry: &Registry, now: i64) -> Presence {
    let window = Duration::from_millis(WINDOW_MS as u64);
    Presence::open(state.clone(), registry.clone(), PARTITIONS, window, UtcMillis(now)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn presence_is_what_a_plain_model_says_and_each_transition_is_told_once(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.settle();
    }
}

#[test]
fn a_storm_of_connections_is_stored_in_few_batches() {
    let world = World::new();
    let mut wanted = BTreeMap::new();
    for n in 0..3 * FLUSH_MAX {
        let device = DeviceIdentity::new(DeviceId::new(&format!("storm-{n}")).unwrap());
        let made = world
            .registry
            .create_device_blocking(device, UtcMillis(1))
            .unwrap()
            .identity;
        wanted.insert(made.generation_id, IdentityName::device(made.device_id));
    }
    world.state.hold(8);
    for (generation, name) in &wanted {
        world
            .presence
            .opened(PARTITION, name, *generation, UtcMillis(world.now));
    }
    assert_eq!(world.state.release(usize::MAX), 0, "opening writes nothing");
    for _ in 0..4 {
        world.presence.flush(PARTITION, UtcMillis(world.now), false, |_| {});
    }
    assert_eq!(world.state.release(usize::MAX), 3);
    assert_eq!(world.events().len(), wanted.len());
}

#[test]
fn the_last_activity_is_stored_now_and_then() {
    let mut world = World::new();
    world.open(0);
    world.flush();
    world.now += 61_000;
    world.sessions[0].2.touch(UtcMillis(world.now));
    world.flush();
    let touched = world.now;
    world.sessions[0].2.touch(UtcMillis(world.now + 5));
    world.flush();
    world.state.crash();
    world.presence = open(&world.state, &world.registry, world.now + 10);
    let seen = world.presence.look(&name(0), world.lives[0].generation).unwrap();
    assert_eq!(seen.activity, Some(UtcMillis(touched)), "a minute old at most");
    assert_eq!(world.device_events(0).len(), 2, "activity is no event");
}

/// A device whose session just opened, before anything is stored of it.
fn with_a_connected_device() -> World {
    let mut world = World::new();
    world.open(0);
    world
}

#[test]
fn a_deletion_ahead_in_the_queue_leaves_no_presence_behind() {
    let world = with_a_connected_device();
    world.state.hold(8);
    world
        .registry
        .delete_device(&name(0).device, IfMatch::Any, |deleted| drop(deleted.unwrap()));
    world.presence.flush(PARTITION, UtcMillis(world.now), false, |stored| {
        assert_eq!(stored.unwrap(), 1)
    });
    world.state.release_all();
    assert!(world.events().is_empty(), "nothing was told of it before");
    let (_, key) = world.registry.identity_key(&name(0));
    assert_eq!(world.state.get(Table::Presence, &key).unwrap(), None);
}

#[test]
fn a_connection_ahead_of_a_deletion_in_the_queue_is_ended_by_it() {
    let world = with_a_connected_device();
    world.state.hold(8);
    world.presence.flush(PARTITION, UtcMillis(world.now), false, |stored| {
        assert_eq!(stored.unwrap(), 1)
    });
    world
        .registry
        .delete_device(&name(0).device, IfMatch::Any, |deleted| drop(deleted.unwrap()));
    world.state.release_all();
    let told: Vec<Operation> = world.events().iter().map(|event| event.operation).collect();
    assert_eq!(told, [Operation::Connect, Operation::Disconnect]);
}

/// A batch that is decided again goes behind those that were queued meanwhile: a second write of the same identity would
/// overtake the first, and the first would have the last word.
#[test]
fn a_write_that_is_decided_again_is_not_overtaken_by_the_next_state() {
    let mut world = with_a_connected_device();
    let flush = |world: &World| world.presence.flush(PARTITION, UtcMillis(world.now), false, |_| {});
    world.state.hold(8);
    let changed = DeviceIdentity::new(name(0).device);
    let done = |changed: Result<_, _>| drop(changed.unwrap());
    world
        .registry
        .update_device(changed, IfMatch::Any, UtcMillis(world.now), done);
    flush(&world);
    assert_eq!(
        world.state.release(1),
        1,
        "the update, which the connection does not know of"
    );
    world.now += 1;
    world.close(0);
    flush(&world);
    world.state.release(1);
    world.state.release_all();
    world.now += WINDOW_MS;
    flush(&world);
    let told: Vec<Operation> = world.events().iter().map(|event| event.operation).collect();
    assert_eq!(told, [Operation::Connect, Operation::Disconnect]);
    assert_eq!(world.presence.held(PARTITION), 0);
}
