//! Who is connected: which identities have sessions, since when, and when they last did something.
//!
//! ```text
//!   home shard: opened, touched, closed ──> seen (memory) ──> flush: many in one batch ──> stored, with the event
//!                                             │  at once after a quiet window, else when the window ends
//!                                             └── live answers
//! ```
//!
//! It deliberately does not know sessions or protocols: a door's home shard says that one opened and closed. HTTPS has none.
//!
//! Invariants:
//! - What is recorded of an identity alternates between connected and disconnected, starting with connected, and ends as
//!   things are: the last flip is recorded when its window ends. Flips that cancel out within a window leave no record.
//! - A record and the stored state change in one batch, for one life of the identity.
//! - After a start nobody is connected: whoever was when the hub crashed is recorded as disconnected, once.
//! - Memory holds connected identities and what is not stored yet. Nothing here waits for the disk.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decide::{decide, decode, encode};
use super::identity::{ConnectionState, DeviceIdentity, IdentityName, Life, ModuleIdentity};
use super::json;
use super::outbox::{OutboxError, Outboxes};
use super::registry::Registry;
use crate::model::{DeviceId, Generation, ModuleId, PartitionId, UtcMillis};
use crate::state::{Expected, Scan, State, StateError, Table, WriteBatch};

/// Identities of one batch: a storm of connections is a few batches, none of which holds up the store for long.
pub const FLUSH_MAX: usize = 256;
/// The same at a start, when nobody else waits for the store.
const OPEN_MAX: usize = 2048;
/// How old the stored time of the last activity may be while the identity is active.
const ACTIVITY_EVERY: Duration = Duration::from_secs(60);
/// A batch that failed is tried again after this.
const RETRY_AFTER_MS: i64 = 1000;

/// What is stored of an identity that was ever connected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stored {
    connected: bool,
    #[serde(with = "json::millis")]
    since: Option<UtcMillis>,
    #[serde(with = "json::millis")]
    activity: Option<UtcMillis>,
    /// When `connected` last changed here: the start of the window.
    #[serde(with = "json::millis")]
    recorded: Option<UtcMillis>,
}

/// Whether a stored record says that the identity is connected.
pub(super) fn is_connected(raw: Option<&[u8]>) -> Result<bool, StateError> {
    Ok(raw
        .map(decode::<Stored>)
        .transpose()?
        .is_some_and(|stored| stored.connected))
}

/// What is known of an identity now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub state: ConnectionState,
    /// When it last connected or disconnected; `None` if it never was connected.
    pub since: Option<UtcMillis>,
    pub activity: Option<UtcMillis>,
}

/// Presence of all identities. Cloning shares it.
#[derive(Clone)]
pub struct Presence {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<dyn State>,
    registry: Registry,
    window_ms: i64,
    lanes: Box<[Mutex<Lane>]>,
}

/// The identities of one partition.
#[derive(Default)]
struct Lane {
    seen: HashMap<Generation, Entry>,
    /// When something of an identity is to be stored.
    due: BTreeSet<(UtcMillis, Generation)>,
    refreshed: UtcMillis,
}

struct Entry {
    name: IdentityName,
    sessions: u32,
    since: UtcMillis,
    activity: Arc<AtomicI64>,
    stored_activity: i64,
    due: Option<UtcMillis>,
    is_writing: bool,
}

/// A session that is open. Held by whoever knows its end; touching it costs one store to memory.
#[derive(Debug)]
pub struct Connection {
    partition: PartitionId,
    generation: Generation,
    activity: Arc<AtomicI64>,
}

impl Connection {
    pub fn touch(&self, now: UtcMillis) {
        self.activity.store(now.0, Ordering::Relaxed);
    }
}

/// A state of an identity on its way to the store.
struct Item {
    name: IdentityName,
    generation: Generation,
    connected: bool,
    since: UtcMillis,
    activity: UtcMillis,
}

enum Outcome {
    Stored,
    /// The window has not ended.
    Later(UtcMillis),
    /// This life of the identity is over.
    Gone,
}

impl Presence {
    /// Disconnects, and records so, whoever was connected when the store was last written. Blocks; for the start.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        state: Arc<dyn State>,
        registry: Registry,
        partition_count: u16,
        window: Duration,
        now: UtcMillis,
    ) -> Result<Self, StateError> {
        for partition in (0..partition_count).map(PartitionId) {
            disconnect_all(&*state, &registry, partition, now)?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                state,
                registry,
                window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
                lanes: (0..partition_count).map(|_| Mutex::default()).collect(),
            }),
        })
    }

    /// A session of an identity opened on its home shard.
    pub fn opened(
        &self,
        partition: PartitionId,
        name: &IdentityName,
        generation: Generation,
        now: UtcMillis,
    ) -> Connection {
        let mut lane = self.shared.lane(partition);
        let entry = lane.seen.entry(generation).or_insert_with(|| Entry {
            name: name.clone(),
            sessions: 0,
            since: now,
            activity: Arc::new(AtomicI64::new(now.0)),
            stored_activity: i64::MIN,
            due: None,
            is_writing: false,
        });
        entry.activity.store(now.0, Ordering::Relaxed);
        entry.sessions += 1;
        let activity = Arc::clone(&entry.activity);
        if entry.sessions == 1 {
            entry.since = now;
            lane.schedule(generation, now);
        }
        Connection {
            partition,
            generation,
            activity,
        }
    }

    /// The session closed. With the last one the identity is disconnected.
    pub fn closed(&self, connection: &Connection, now: UtcMillis) {
        let mut lane = self.shared.lane(connection.partition);
        // Nothing is left of it after `close_all`.
        let Some(entry) = lane.seen.get_mut(&connection.generation) else {
            return;
        };
        entry.sessions = entry.sessions.saturating_sub(1);
        if entry.sessions == 0 {
            entry.since = now;
            lane.schedule(connection.generation, now);
        }
    }

    /// The hub stops: everybody is disconnected, whatever sessions still say. Then `flush` with `is_final`.
    pub fn close_all(&self, now: UtcMillis) {
        for lane in &self.shared.lanes {
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let connected: Vec<Generation> = lane
                .seen
                .iter_mut()
                .filter(|(_, entry)| entry.sessions > 0)
                .map(|(generation, entry)| {
                    (entry.sessions, entry.since) = (0, now);
                    *generation
                })
                .collect();
            for generation in connected {
                lane.schedule(generation, now);
            }
        }
    }

    /// What memory or store know of an identity.
    ///
    /// # Errors
    /// The store's.
    pub fn look(&self, name: &IdentityName, generation: Generation) -> Result<Seen, StateError> {
        if let Some(entry) = self
            .shared
            .lane(self.shared.registry.partition(&name.device))
            .seen
            .get(&generation)
        {
            return Ok(Seen {
                state: match entry.sessions {
                    0 => ConnectionState::Disconnected,
                    _ => ConnectionState::Connected,
                },
                since: Some(entry.since),
                activity: Some(UtcMillis(entry.activity.load(Ordering::Relaxed))),
            });
        }
        let (_, key) = self.shared.registry.identity_key(name);
        let stored: Stored = match self.shared.state.get(Table::Presence, &key)? {
            Some(raw) => decode(&raw)?,
            None => Stored::default(),
        };
        // Whoever is not in memory has no session: since the start that is what connected means.
        Ok(Seen {
            state: ConnectionState::Disconnected,
            since: stored.since,
            activity: stored.activity,
        })
    }

    /// Identities of a partition that are in memory.
    pub fn held(&self, partition: PartitionId) -> usize {
        self.shared.lane(partition).seen.len()
    }

    /// Stores what is due, at most `FLUSH_MAX` identities, and answers how many were looked at: again at once if it is
    /// that many. A final one does not wait for windows.
    pub fn flush(
        &self,
        partition: PartitionId,
        now: UtcMillis,
        is_final: bool,
        done: impl FnOnce(Result<usize, StateError>) + Send + 'static,
    ) {
        let items = self.shared.lane(partition).take(now, is_final);
        if items.is_empty() {
            return done(Ok(0));
        }
        let items: Arc<[Item]> = items.into();
        let (shared, wanted) = (Arc::clone(&self.shared), Arc::clone(&items));
        let attempt = move |state: &dyn State| {
            let mut batch = WriteBatch::new();
            let mut draft = shared.registry.recorder().draft(partition);
            let mut outcomes = Vec::with_capacity(wanted.len());
            for item in &*wanted {
                let (table, key) = shared.registry.identity_key(&item.name);
                let identity = state.get(table, &key)?;
                let life = identity.as_deref().map(decode::<Life>).transpose()?;
                let Some((identity, _)) = identity.zip(life.filter(|life| life.generation_id == item.generation))
                else {
                    outcomes.push(Outcome::Gone);
                    continue;
                };
                let raw = state.get(Table::Presence, &key)?;
                let stored: Stored = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
                let is_flip = stored.connected != item.connected;
                if let Some(until) = stored.recorded.and_then(|from| shared.window_end(from, now))
                    && is_flip
                    && !is_final
                {
                    outcomes.push(Outcome::Later(until));
                    continue;
                }
                outcomes.push(Outcome::Stored);
                let next = Stored {
                    connected: item.connected,
                    since: Some(item.since),
                    activity: Some(item.activity),
                    recorded: if is_flip { Some(now) } else { stored.recorded },
                };
                if next == stored {
                    continue;
                }
                if is_flip {
                    draft.connection(item.connected, &item.name, Some(item.since));
                }
                batch = batch
                    // The whole record, not only that there is one: it may be that of a later life.
                    .expect(table, key.clone(), Expected::Value(identity))
                    .expect(Table::Presence, key.clone(), Expected::unchanged(raw.as_deref()))
                    .put(Table::Presence, key, encode(&next));
            }
            let (batch, tally) = draft.add_to(batch);
            Ok((batch, (tally, outcomes)))
        };
        let shared = Arc::clone(&self.shared);
        let answer = move |decided: Result<Vec<Outcome>, StateError>| {
            let mut lane = shared.lane(partition);
            let answer = match decided {
                Ok(outcomes) => {
                    for (item, outcome) in items.iter().zip(outcomes) {
                        lane.settle(item, outcome);
                    }
                    Ok(items.len())
                }
                Err(error) => {
                    for item in &*items {
                        lane.settle(item, Outcome::Later(UtcMillis(now.0.saturating_add(RETRY_AFTER_MS))));
                    }
                    Err(error)
                }
            };
            drop(lane);
            done(answer);
        };
        let answer = self.shared.registry.recorder().counted(Box::new(answer));
        decide(&self.shared.state, Box::new(attempt), answer);
    }
}

impl Shared {
    fn lane(&self, partition: PartitionId) -> MutexGuard<'_, Lane> {
        let lane = &self.lanes[usize::from(partition.0)];
        lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the window ends that began at `from`, unless it is over. One that a clock that went back left in the future is.
    // IoT Hub, events section 3: state is sampled; flips inside a window collapse to the last state.
    fn window_end(&self, from: UtcMillis, now: UtcMillis) -> Option<UtcMillis> {
        let end = UtcMillis(from.0.saturating_add(self.window_ms));
        (from <= now && now < end).then_some(end)
    }
}

impl Lane {
    fn schedule(&mut self, generation: Generation, at: UtcMillis) {
        if let Some(entry) = self.seen.get_mut(&generation) {
            if let Some(earlier) = entry.due.replace(at) {
                self.due.remove(&(earlier, generation));
            }
            self.due.insert((at, generation));
        }
    }

    /// What is due by now, or all that waits; one write of an identity at a time.
    fn take(&mut self, now: UtcMillis, is_final: bool) -> Vec<Item> {
        self.refresh(now);
        let mut items = Vec::new();
        while items.len() < FLUSH_MAX {
            let Some(&(at, generation)) = self.due.first() else {
                break;
            };
            if at > now && !is_final {
                break;
            }
            self.due.pop_first();
            let entry = self.seen.get_mut(&generation).expect("only entries are due");
            entry.due = None;
            // `settle` finds that it has changed meanwhile.
            if entry.is_writing {
                continue;
            }
            entry.is_writing = true;
            items.push(Item {
                name: entry.name.clone(),
                generation,
                connected: entry.sessions > 0,
                since: entry.since,
                activity: UtcMillis(entry.activity.load(Ordering::Relaxed)),
            });
        }
        items
    }

    /// Now and then, the last activity of those who were active is stored too.
    fn refresh(&mut self, now: UtcMillis) {
        let every = ACTIVITY_EVERY.as_millis() as i64;
        if (self.refreshed.0..self.refreshed.0.saturating_add(every)).contains(&now.0) {
            return;
        }
        self.refreshed = now;
        for (generation, entry) in &mut self.seen {
            let is_newer = entry.activity.load(Ordering::Relaxed) > entry.stored_activity;
            if is_newer && entry.due.is_none() && !entry.is_writing {
                entry.due = Some(now);
                self.due.insert((now, *generation));
            }
        }
    }

    fn settle(&mut self, item: &Item, outcome: Outcome) {
        let Some(entry) = self.seen.get_mut(&item.generation) else {
            return;
        };
        entry.is_writing = false;
        let is_changed = (entry.sessions > 0, entry.since) != (item.connected, item.since);
        match outcome {
            // A session of a deleted identity is being ended; its end comes here again.
            Outcome::Gone if entry.sessions > 0 => {}
            Outcome::Gone => self.remove(item.generation),
            Outcome::Later(until) => {
                if entry.due.is_none() {
                    self.schedule(item.generation, until);
                }
            }
            Outcome::Stored => {
                entry.stored_activity = item.activity.0;
                if is_changed {
                    self.schedule(item.generation, item.since);
                } else if !item.connected {
                    self.remove(item.generation);
                }
            }
        }
    }

    fn remove(&mut self, generation: Generation) {
        if let Some(at) = self.seen.remove(&generation).and_then(|entry| entry.due) {
            self.due.remove(&(at, generation));
        }
    }
}

/// Stores, page by page, that nobody of a partition is connected.
fn disconnect_all(
    state: &dyn State,
    registry: &Registry,
    partition: PartitionId,
    now: UtcMillis,
) -> Result<(), StateError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let scan = Scan {
            prefix: &partition.0.to_be_bytes(),
            after: after.as_deref(),
            limit: OPEN_MAX,
        };
        let page = state.scan(Table::Presence, scan)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        let mut batch = WriteBatch::new();
        let mut draft = registry.recorder().draft(partition);
        for (key, raw) in page {
            let mut stored: Stored = decode(&raw)?;
            if !stored.connected {
                continue;
            }
            (stored.connected, stored.since, stored.recorded) = (false, Some(now), Some(now));
            if let Some(name) = name_of(&key) {
                draft.connection(false, &name, Some(now));
            }
            batch = batch.put(Table::Presence, key, encode(&stored));
        }
        let (batch, tally) = draft.add_to(batch);
        if !batch.is_empty() {
            state.commit_blocking(batch)?;
            registry.recorder().count(tally);
        }
    }
}

/// Whose a key is: partition, device id; or partition, device id, 0, module id.
fn name_of(key: &[u8]) -> Option<IdentityName> {
    let text = std::str::from_utf8(key.get(2..)?).ok()?;
    let (device, module) = match text.split_once('\0') {
        Some((device, module)) => (device, Some(ModuleId::new(module).ok()?)),
        None => (text, None),
    };
    let device = DeviceId::new(device).ok()?;
    Some(IdentityName { device, module })
}

/// What an identity shows besides what is stored of it: its connection, and how many messages wait for it.
#[derive(Clone)]
pub struct Live {
    pub presence: Presence,
    pub outboxes: Outboxes,
}

impl Live {
    /// # Errors
    /// The store's.
    pub fn device(&self, mut device: DeviceIdentity, now: UtcMillis) -> Result<DeviceIdentity, OutboxError> {
        let name = IdentityName::device(device.device_id.clone());
        let (seen, count) = self.look(&name, device.generation_id, now)?;
        device.connection_state = seen.state;
        device.connection_state_updated_time = seen.since;
        device.last_activity_time = seen.activity;
        device.cloud_to_device_message_count = count;
        Ok(device)
    }

    /// # Errors
    /// The store's.
    pub fn module(&self, mut module: ModuleIdentity, now: UtcMillis) -> Result<ModuleIdentity, OutboxError> {
        let name = IdentityName::module(module.device_id.clone(), module.module_id.clone());
        let (seen, count) = self.look(&name, module.generation_id, now)?;
        module.connection_state = seen.state;
        module.connection_state_updated_time = seen.since;
        module.last_activity_time = seen.activity;
        module.cloud_to_device_message_count = count;
        Ok(module)
    }

    fn look(&self, name: &IdentityName, generation: Generation, now: UtcMillis) -> Result<(Seen, u32), OutboxError> {
        let seen = self.presence.look(name, generation)?;
        let depth = self.outboxes.depth(name, now)?;
        Ok((seen, u32::try_from(depth).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
