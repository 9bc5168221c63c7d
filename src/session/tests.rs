//! A hub without doors and its one device, and a shard that answers as told, for tests of what doors share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::hub::entropy::Entropy;
use crate::hub::identity::Proof;
use crate::hub::outbox::QueueSettings;
use crate::hub::throttle::{self, Class, DeviceRates, Rate};
use crate::hub::{
    AuthMethod, Authenticated, DeviceIdentity, DeviceKey, IdentityName, Outboxes, Permissions, Registry, Throttles,
    Twins,
};
use crate::model::time::Clock;
use crate::model::{DeviceId, Epoch, Generation, Message, PartitionId, UtcMillis};
use crate::session::home::{self, HomeSession};
use crate::shard::command::{Command, OpenError, OpenSession, Opened, SessionId};
use crate::shard::inbox::Inbox;
use crate::shard::lines::Lines;
use crate::state::MemoryState;

const PARTITIONS: u16 = 2;

/// Different bytes each time.
#[derive(Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
    }
}

/// A wall clock that the test holds.
pub struct HeldClock(AtomicI64);

impl Clock for HeldClock {
    fn now(&self) -> UtcMillis {
        UtcMillis(self.0.load(Ordering::Relaxed))
    }
}

pub struct Hub {
    pub state: Arc<MemoryState>,
    pub outboxes: Outboxes,
    pub twins: Twins,
    pub lines: Lines,
    pub clock: Arc<HeldClock>,
    pub name: IdentityName,
    pub generation: Generation,
}

impl Hub {
    pub fn new() -> Self {
        let state = MemoryState::new();
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), PARTITIONS).unwrap();
        let clock = Arc::new(HeldClock(AtomicI64::new(1_700_000_000_000)));
        let device = DeviceId::new("d").unwrap();
        let created = registry
            .create_device_blocking(DeviceIdentity::new(device.clone()), clock.now())
            .unwrap();
        let entropy = Arc::new(Counting::default());
        let outboxes = Outboxes::new(state.clone(), entropy, QueueSettings::default(), PARTITIONS);
        let twins = Twins::new(state.clone(), registry);
        let lines = Lines::default();
        let told = lines.clone();
        twins.observe(Box::new(move |changed| told.desired_changed(changed)));
        let ring = lines.clone();
        outboxes.observe(Box::new(move |name| ring.message_waits(name)));
        Self {
            state,
            outboxes,
            twins,
            lines,
            clock,
            name: IdentityName::device(device),
            generation: created.identity.generation_id,
        }
    }

    pub fn enqueue(&self, count: usize) {
        for _ in 0..count {
            let now = self.clock.now();
            let enqueued = self.outboxes.wait(|done| {
                self.outboxes.enqueue(&self.name, &Message::new("x"), now, done);
            });
            enqueued.unwrap();
        }
    }

    /// The classes' rates are these; nobody waits.
    pub fn throttles(&self, rate: impl Fn(Class) -> Rate) -> Arc<Throttles> {
        let config = throttle::Config {
            hub: Class::ALL.map(rate),
            device: DeviceRates {
                messages: Rate::NONE,
                bytes: Rate::NONE,
            },
            wait_max: Duration::ZERO,
            waiters_max: 1,
            daily_messages_max: 0,
        };
        let throttles = Throttles::open(config, self.state.clone(), Instant::now(), Arc::new(()));
        Arc::new(throttles.unwrap())
    }

    /// Both clocks go on, and whoever waits for them.
    pub async fn sleep(&self, time: Duration) {
        self.clock.0.fetch_add(time.as_millis() as i64, Ordering::Relaxed);
        tokio::time::sleep(time).await;
    }
}

pub const SESSION: SessionId = SessionId(7);

/// What the shard is asked, and where it answers.
pub struct Asking {
    pub open: OpenSession,
    pub answer: oneshot::Receiver<Result<Opened, OpenError>>,
}

pub fn asking() -> Asking {
    let (reply, answer) = oneshot::channel();
    let identity = Authenticated {
        identity: IdentityName::device(DeviceId::new("d").unwrap()),
        generation: Generation(3),
        method: AuthMethod::DeviceSas,
        proof: Proof::POLICY,
        permissions: Permissions::DEVICE_CONNECT,
        expires: None,
    };
    let open = OpenSession {
        session: SESSION,
        key: DeviceKey {
            device: identity.identity.device.clone(),
            generation: identity.generation,
        },
        partition: PartitionId(0),
        origin: home::origin(&identity),
        epoch: Epoch(0),
        is_early: false,
        link: Arc::default(),
        reply,
    };
    Asking { open, answer }
}

pub fn popped_open(inbox: &Inbox) -> OpenSession {
    match inbox.pop() {
        Some(Command::Open(open)) => open,
        other => panic!("not an open: {other:?}"),
    }
}

/// Opens a session and lets the shard answer so.
pub async fn opened(inbox: &Arc<Inbox>, answer: Result<Opened, OpenError>) -> Result<HomeSession, OpenError> {
    let Asking { open, answer: receiver } = asking();
    let shard = async {
        popped_open(inbox).reply.send(answer).unwrap();
    };
    let (home, ()) = tokio::join!(home::ask(inbox, open, receiver), shard);
    home
}

pub const OPENED: Opened = Opened {
    epoch: Epoch(4),
    last_sequence: 9,
};
