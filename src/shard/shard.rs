//! The plain logic of a shard: its partitions' appends, duplicate filter, acknowledgements and sessions, in one thread.
//!
//! ```text
//!  Append ──> filter ──> log (written) ──> pending ──durable──> link.acknowledge ──> the door writes one Ack
//!               │            │ no room
//!               │            └──> stalled (keeps its budget: doors stop reading) ──room──> log
//!               └── duplicate: pending behind what is written
//!  Post ─────────────────> log ──> pending ──durable──> its door's answer
//! ```
//!
//! Invariants: an acknowledgement never precedes durability at the hub's level; a device's batches are appended in the
//! order they were pushed; what a session may still send after its end is dropped unacknowledged.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Durability;
use super::command::{Append, Command, OpenError, OpenSession, Opened, Post, PostError, Revoke, SessionId};
use super::filter::{DuplicateFilter, Verdict, judge};
use super::inbox::Inbox;
use super::link::SessionLink;
use super::observer::{Acknowledged, Appended, Observer};
use super::router::Partition;
use crate::hub::IdentityName;
use crate::hub::filter::{DeviceKey, PersistedFilter, Position};
use crate::hub::identity::Proof;
use crate::hub::presence::{Connection, Presence};
use crate::log::{AppendError, Appender, NewBatch, Storage};
use crate::model::{Epoch, ModuleId, PartitionId, SequenceNumber, UtcMillis};
use crate::wire::close::CloseCode;
use crate::wire::stamp::StampTemplate;

/// The moment a shard acts at: handed in by its actor, or by a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub utc: UtcMillis,
    pub instant: Instant,
}

/// A snapshot of a partition's duplicate filter that may be stored now.
#[derive(Debug)]
pub struct Snapshot {
    pub partition: PartitionId,
    /// Every record before this is reflected in `positions` or in an earlier snapshot, and durable.
    pub covered: SequenceNumber,
    pub positions: Vec<(DeviceKey, Position)>,
}

struct Session {
    key: DeviceKey,
    slot: usize,
    epoch: Epoch,
    stamp: StampTemplate,
    link: Arc<SessionLink>,
    connection: Option<Connection>,
}

/// Waits for the log to be durable up to `end`.
struct Pending {
    end: SequenceNumber,
    then: Then,
}

enum Then {
    Acknowledge {
        link: Arc<SessionLink>,
        sequence: u64,
        messages: u32,
        received: Instant,
        appended: Instant,
    },
    Answer {
        reply: oneshot::Sender<Result<Opened, OpenError>>,
        opened: Opened,
    },
    Posted {
        reply: oneshot::Sender<Result<(), PostError>>,
        messages: u32,
        received: Instant,
        appended: Instant,
    },
}

/// What waits for room in the log, in the order it came.
enum Stalled {
    Append(Append),
    Post(Box<Post>),
}

enum SnapshotState {
    Idle,
    /// Taken; the log is not durable up to it yet.
    Taken(Snapshot),
    Saving(SequenceNumber),
}

struct Owned<S: Storage> {
    id: PartitionId,
    appender: Appender<S>,
    shared: Arc<Partition<S>>,
    filter: DuplicateFilter,
    pending: VecDeque<Pending>,
    stalled: VecDeque<Stalled>,
    snapshot: SnapshotState,
    /// Records appended since the last snapshot was taken.
    unsaved_records: u64,
    is_written: bool,
    is_poisoned: bool,
}

/// A snapshot is taken at a roll, and after this many records at the latest, so that a restart replays little.
const SNAPSHOT_RECORDS: u64 = 200_000;

/// See the module. Driven by `ShardActor`, or by a test.
pub struct Shard<S: Storage, O: Observer> {
    owned: Vec<Owned<S>>,
    slots: HashMap<PartitionId, usize>,
    sessions: HashMap<SessionId, Session, foldhash::fast::RandomState>,
    identities: HashMap<DeviceKey, SessionId>,
    persisted: PersistedFilter,
    inbox: Arc<Inbox>,
    durability: Durability,
    /// Only measures how long an append took.
    monotonic: fn() -> Instant,
    observer: O,
    /// Told who is connected.
    presence: Option<Presence>,
    /// Of the last command or progress.
    now: UtcMillis,
    is_stopping: bool,
    /// Sessions that a stop has not told to go.
    staying: Vec<SessionId>,
}

impl<S: Storage, O: Observer> Shard<S, O> {
    pub fn new(
        inbox: Arc<Inbox>,
        persisted: PersistedFilter,
        durability: Durability,
        monotonic: fn() -> Instant,
        observer: O,
    ) -> Self {
        Self {
            owned: Vec::new(),
            slots: HashMap::new(),
            sessions: HashMap::default(),
            identities: HashMap::new(),
            persisted,
            inbox,
            durability,
            monotonic,
            observer,
            presence: None,
            now: UtcMillis::default(),
            is_stopping: false,
            staying: Vec::new(),
        }
    }

    /// From now on sessions that open and close are told.
    pub fn set_presence(&mut self, presence: Presence) {
        self.presence = Some(presence);
    }

    /// Gives the shard a partition, with the duplicate filter rebuilt for what the store does not cover; one whose view
    /// is closed already refuses all.
    pub fn adopt(&mut self, appender: Appender<S>, shared: Arc<Partition<S>>, filter: DuplicateFilter) {
        let id = appender.view().partition();
        let is_poisoned = appender.view().is_poisoned();
        self.slots.insert(id, self.owned.len());
        self.owned.push(Owned {
            id,
            appender,
            shared,
            filter,
            pending: VecDeque::new(),
            stalled: VecDeque::new(),
            snapshot: SnapshotState::Idle,
            unsaved_records: 0,
            is_written: false,
            is_poisoned,
        });
    }

    /// Takes up what waits in the inbox, at most `commands_max`; whether more waits.
    pub fn drain(&mut self, commands_max: usize, now: Now) -> bool {
        let inbox = self.inbox.clone();
        for _ in 0..commands_max {
            match inbox.pop() {
                Some(command) => self.handle(command, now),
                None => return false,
            }
        }
        inbox.depth() > 0
    }

    pub fn handle(&mut self, command: Command, now: Now) {
        self.now = now.utc;
        match command {
            Command::Append(append) => self.handle_append(append, now),
            Command::Post(post) => self.handle_post(post, now),
            Command::Open(open) => self.handle_open(open),
            Command::Close(session) => self.remove(session),
            Command::Revoke(revoke) => self.handle_revoke(&revoke),
            Command::FilterSaved { partition, saved } => self.handle_filter_saved(partition, saved),
        }
    }

    /// The partitions written since the last call, for the syncer.
    pub fn take_written(&mut self) -> bool {
        let mut written = false;
        for owned in &mut self.owned {
            if std::mem::take(&mut owned.is_written) {
                written = true;
                match self.durability {
                    Durability::Sync => {}
                    Durability::Interval(_) | Durability::Os => {
                        owned.shared.view.publish_unsynced();
                    }
                }
            }
        }
        written
    }

    /// Acknowledges what became durable, retries what waited for room; call after every wake-up.
    pub fn handle_progress(&mut self, now: Now) {
        self.now = now.utc;
        for slot in 0..self.owned.len() {
            if !self.owned[slot].stalled.is_empty() {
                self.retry_stalled(slot, now);
            }
            self.acknowledge(slot, now);
            if !self.owned[slot].is_poisoned && self.owned[slot].shared.view.is_poisoned() {
                self.poison(slot);
            }
        }
    }

    /// A snapshot whose records are all durable, to be handed to the store; the answer comes back as `FilterSaved`.
    pub fn poll_snapshot(&mut self) -> Option<Snapshot> {
        for owned in &mut self.owned {
            if let SnapshotState::Taken(snapshot) = &owned.snapshot
                && owned.shared.view.durable() >= snapshot.covered
            {
                let saving = SnapshotState::Saving(snapshot.covered);
                let SnapshotState::Taken(snapshot) = std::mem::replace(&mut owned.snapshot, saving) else {
                    unreachable!("matched one line above");
                };
                return Some(snapshot);
            }
        }
        None
    }

    /// Takes snapshots of all partitions that changed, for a drain; they come out of `poll_snapshot`.
    pub fn take_snapshots(&mut self) {
        for owned in &mut self.owned {
            if owned.unsaved_records > 0 && !owned.is_poisoned {
                owned.take_snapshot();
            }
        }
    }

    /// No further sessions; the running ones go on until they are dismissed.
    pub fn stop(&mut self) {
        self.is_stopping = true;
        self.staying = self.sessions.keys().copied().collect();
    }

    /// Tells so many of the sessions that a stop found to go; how many were told, fewer only if there are no more.
    pub fn dismiss(&mut self, count: usize, reason: &str) -> usize {
        let mut told = 0;
        while told < count
            && let Some(staying) = self.staying.pop()
        {
            // Some have gone by themselves.
            if let Some(session) = self.sessions.get(&staying) {
                session.link.end_with(CloseCode::Draining, reason);
                told += 1;
            }
        }
        told
    }

    /// Sessions that are still open.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Whether every append was acknowledged and every snapshot stored.
    pub fn is_idle(&self) -> bool {
        self.owned.iter().all(|owned| {
            owned.pending.is_empty() && owned.stalled.is_empty() && matches!(owned.snapshot, SnapshotState::Idle)
        })
    }

    fn handle_open(&mut self, open: OpenSession) {
        let answer = self.open(&open);
        match answer {
            Ok(opened) => {
                let owned = &mut self.owned[self.slots[&open.partition]];
                // What the answer covers may be dropped by the device: it must be durable first.
                let end = owned.appender.next_sequence();
                owned.pending.push_back(Pending {
                    end,
                    then: Then::Answer {
                        reply: open.reply,
                        opened,
                    },
                });
            }
            // The door may have given up; then nobody waits for the answer.
            Err(error) => drop(open.reply.send(Err(error))),
        }
    }

    fn open(&mut self, open: &OpenSession) -> Result<Opened, OpenError> {
        if self.is_stopping {
            return Err(OpenError::Stopping);
        }
        let slot = *self
            .slots
            .get(&open.partition)
            .expect("the router sends a partition's commands to its owner");
        if self.owned[slot].is_poisoned {
            return Err(OpenError::Poisoned(open.partition.to_string()));
        }
        let position = match self.owned[slot].filter.get(&open.key) {
            Some(position) => position,
            None => self
                .persisted
                .load(open.partition, &open.key)
                .map_err(|error| OpenError::State(error.to_string()))?
                .unwrap_or_default(),
        };
        let is_new_epoch = open.epoch == Epoch(0);
        if open.is_early && (is_new_epoch || self.identities.contains_key(&open.key)) {
            return Err(OpenError::EarlyData);
        }
        let epoch = if is_new_epoch {
            // Devices choose epochs too; after the highest there is none that could be given out.
            position.epoch.0.checked_add(1).map(Epoch)
        } else {
            Some(open.epoch).filter(|epoch| *epoch >= position.epoch)
        };
        let Some(epoch) = epoch else {
            return Err(OpenError::StaleEpoch {
                asked: open.epoch.0,
                current: position.epoch.0,
            });
        };
        // Before the earlier session ends: a take-over is no disconnection.
        let connection = self.connected(open);
        if let Some(earlier) = self.identities.get(&open.key).copied() {
            self.end(earlier, CloseCode::TakenOver, "the same identity connected again", 0);
        }
        self.owned[slot].filter.open(&open.key, position);
        let mut origin = open.origin.clone();
        origin.epoch = epoch.0;
        self.identities.insert(open.key.clone(), open.session);
        self.sessions.insert(
            open.session,
            Session {
                key: open.key.clone(),
                slot,
                epoch,
                stamp: StampTemplate::new(&origin),
                link: open.link.clone(),
                connection,
            },
        );
        let last_sequence = if epoch == position.epoch { position.sequence } else { 0 };
        Ok(Opened { epoch, last_sequence })
    }

    fn connected(&self, open: &OpenSession) -> Option<Connection> {
        let name = IdentityName {
            device: open.key.device.clone(),
            module: ModuleId::new(&open.origin.module_id).ok(),
        };
        let presence = self.presence.as_ref()?;
        Some(presence.opened(open.partition, &name, open.key.generation, self.now))
    }

    fn handle_append(&mut self, append: Append, now: Now) {
        let Some(session) = self.sessions.get(&append.session) else {
            // Ended or taken over meanwhile: the device will resend what was not acknowledged.
            self.inbox.release(append.reserved);
            return;
        };
        if let Some(connection) = &session.connection {
            connection.touch(now.utc);
        }
        let slot = session.slot;
        if self.owned[slot].stalled.is_empty() {
            if let Err(append) = self.append(append, now) {
                self.owned[slot].stalled.push_back(Stalled::Append(append));
            }
        } else {
            // Later batches wait behind the first: order within a partition.
            self.owned[slot].stalled.push_back(Stalled::Append(append));
        }
    }

    fn handle_post(&mut self, post: Box<Post>, now: Now) {
        let slot = *self
            .slots
            .get(&post.partition)
            .expect("the router sends a partition's commands to its owner");
        if self.is_stopping {
            self.inbox.release(post.reserved);
            drop(post.reply.send(Err(PostError::Stopping)));
        } else if self.owned[slot].stalled.is_empty() {
            if let Err(post) = self.post(slot, post, now) {
                self.owned[slot].stalled.push_back(Stalled::Post(post));
            }
        } else {
            self.owned[slot].stalled.push_back(Stalled::Post(post));
        }
    }

    /// Gives the post back when the log has no room.
    fn post(&mut self, slot: usize, post: Box<Post>, now: Now) -> Result<(), Box<Post>> {
        if post.reply.is_closed() {
            // Its door gave up while it waited for room; the client was told to come back.
            self.inbox.release(post.reserved);
            return Ok(());
        }
        let owned = &mut self.owned[slot];
        let started = (self.monotonic)();
        let appended = owned.appender.append(&NewBatch {
            stamp: StampTemplate::new(&post.origin).with(0),
            payload: &post.messages.payload,
            count: post.messages.count,
            enqueued_time: now.utc,
        });
        let error = match appended {
            Ok(appended) => {
                let finished = (self.monotonic)();
                owned.pending.push_back(Pending {
                    end: appended.first.plus(appended.count),
                    then: Then::Posted {
                        reply: post.reply,
                        messages: post.messages.count,
                        received: post.received,
                        appended: finished,
                    },
                });
                owned.is_written = true;
                owned.unsaved_records += u64::from(post.messages.count);
                if appended.rolled || owned.unsaved_records >= SNAPSHOT_RECORDS {
                    owned.take_snapshot();
                }
                self.observer.appended(Appended {
                    partition: owned.id,
                    messages: post.messages.count,
                    record_bytes: appended.record_bytes,
                    door: post.submitted.saturating_duration_since(post.received),
                    queue: started.saturating_duration_since(post.submitted),
                    append: finished.saturating_duration_since(started),
                });
                self.inbox.release(post.reserved);
                return Ok(());
            }
            Err(AppendError::NoRoom { disk_full }) => {
                self.observer.stalled(owned.id, true, disk_full);
                return Err(post);
            }
            Err(error @ AppendError::RecordTooLarge { .. }) => PostError::TooLarge(error.to_string()),
            Err(AppendError::Poisoned { .. }) => PostError::Poisoned,
        };
        self.inbox.release(post.reserved);
        drop(post.reply.send(Err(error)));
        Ok(())
    }

    fn retry_stalled(&mut self, slot: usize, now: Now) {
        while let Some(stalled) = self.owned[slot].stalled.pop_front() {
            let tried = match stalled {
                Stalled::Append(append) => self.append(append, now).map_err(Stalled::Append),
                Stalled::Post(post) => self.post(slot, post, now).map_err(Stalled::Post),
            };
            if let Err(stalled) = tried {
                self.owned[slot].stalled.push_front(stalled);
                return;
            }
        }
        self.observer.stalled(self.owned[slot].id, false, false);
    }

    /// Gives the batch back when the log has no room.
    fn append(&mut self, append: Append, now: Now) -> Result<(), Append> {
        let Some(session) = self.sessions.get_mut(&append.session) else {
            self.inbox.release(append.reserved);
            return Ok(());
        };
        let owned = &mut self.owned[session.slot];
        let batch = &append.batch;
        let stored = owned
            .filter
            .get(&session.key)
            .expect("the filter keeps the devices of open sessions");
        let pending = |end, messages, appended| Pending {
            end,
            then: Then::Acknowledge {
                link: session.link.clone(),
                sequence: batch.last_sequence(),
                messages,
                received: append.received,
                appended,
            },
        };
        let skip = match judge(stored, session.epoch, batch.first_sequence, batch.count, batch.skip) {
            Verdict::Append { skip } => skip,
            Verdict::Duplicate => {
                self.observer.duplicates(batch.count);
                let pending = pending(owned.appender.next_sequence(), batch.count, now.instant);
                owned.pending.push_back(pending);
                self.inbox.release(append.reserved);
                return Ok(());
            }
            Verdict::Gap { expected } => {
                let reason = format!("sequence {} where {expected} was expected", batch.first_sequence);
                self.refuse(append, CloseCode::SequenceGap, &reason);
                return Ok(());
            }
            Verdict::Stale => {
                self.refuse(
                    append,
                    CloseCode::StaleEpoch,
                    "a newer epoch of this device has been seen",
                );
                return Ok(());
            }
        };
        let rest;
        let new = if skip == 0 {
            batch
        } else {
            rest = batch.without_first(skip);
            &rest
        };
        let started = (self.monotonic)();
        let appended = owned.appender.append(&NewBatch {
            stamp: session.stamp.with(new.first_sequence),
            payload: &new.payload,
            count: new.count,
            enqueued_time: now.utc,
        });
        match appended {
            Ok(appended) => {
                let finished = (self.monotonic)();
                let pending = pending(appended.first.plus(appended.count), batch.count, finished);
                owned.pending.push_back(pending);
                owned.is_written = true;
                owned.unsaved_records += u64::from(new.count);
                let position = Position {
                    epoch: session.epoch,
                    sequence: batch.last_sequence(),
                };
                owned.filter.advance(&session.key, position);
                if appended.rolled || owned.unsaved_records >= SNAPSHOT_RECORDS {
                    owned.take_snapshot();
                }
                if skip > 0 {
                    self.observer.duplicates(skip);
                }
                self.observer.appended(Appended {
                    partition: owned.id,
                    messages: new.count,
                    record_bytes: appended.record_bytes,
                    door: append.submitted.saturating_duration_since(append.received),
                    queue: started.saturating_duration_since(append.submitted),
                    append: finished.saturating_duration_since(started),
                });
                self.inbox.release(append.reserved);
                Ok(())
            }
            Err(AppendError::NoRoom { disk_full }) => {
                self.observer.stalled(owned.id, true, disk_full);
                Err(append)
            }
            Err(error @ AppendError::RecordTooLarge { .. }) => {
                self.refuse(append, CloseCode::FrameTooLarge, &error.to_string());
                Ok(())
            }
            Err(error @ AppendError::Poisoned { .. }) => {
                self.refuse(append, CloseCode::Internal, &error.to_string());
                Ok(())
            }
        }
    }

    /// Ends the session because of this batch; nothing of it is stored.
    fn refuse(&mut self, append: Append, code: CloseCode, reason: &str) {
        self.inbox.release(append.reserved);
        self.end(append.session, code, reason, append.batch.count);
    }

    fn acknowledge(&mut self, slot: usize, now: Now) {
        let owned = &mut self.owned[slot];
        let durable = owned.shared.view.durable();
        let mut moved = false;
        while owned.pending.front().is_some_and(|pending| pending.end <= durable) {
            moved = true;
            match owned.pending.pop_front().expect("looked at above").then {
                Then::Acknowledge {
                    link,
                    sequence,
                    messages,
                    received,
                    appended,
                } => {
                    link.acknowledge(sequence);
                    self.observer.acknowledged(Acknowledged {
                        messages,
                        sync: now.instant.saturating_duration_since(appended),
                        total: now.instant.saturating_duration_since(received),
                    });
                }
                Then::Answer { reply, opened } => drop(reply.send(Ok(opened))),
                Then::Posted {
                    reply,
                    messages,
                    received,
                    appended,
                } => {
                    // Its client may have gone; the messages are stored all the same.
                    drop(reply.send(Ok(())));
                    self.observer.acknowledged(Acknowledged {
                        messages,
                        sync: now.instant.saturating_duration_since(appended),
                        total: now.instant.saturating_duration_since(received),
                    });
                }
            }
        }
        if moved {
            owned.shared.tail_moved();
        }
    }

    /// A failed write or sync: what is on disk is unknown until recovery, so nothing more is promised.
    fn poison(&mut self, slot: usize) {
        let owned = &mut self.owned[slot];
        owned.is_poisoned = true;
        for pending in owned.pending.drain(..) {
            match pending.then {
                Then::Answer { reply, .. } => drop(reply.send(Err(OpenError::Poisoned(owned.id.to_string())))),
                Then::Posted { reply, .. } => drop(reply.send(Err(PostError::Poisoned))),
                Then::Acknowledge { .. } => {}
            }
        }
        for stalled in owned.stalled.drain(..) {
            match stalled {
                Stalled::Append(append) => self.inbox.release(append.reserved),
                Stalled::Post(post) => {
                    self.inbox.release(post.reserved);
                    drop(post.reply.send(Err(PostError::Poisoned)));
                }
            }
        }
        // Its records will not become durable any more; waiting for them would hold up a stop.
        if let SnapshotState::Taken(_) = owned.snapshot {
            owned.snapshot = SnapshotState::Idle;
        }
        let sessions: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.slot == slot)
            .map(|(id, _)| *id)
            .collect();
        for session in sessions {
            self.end(
                session,
                CloseCode::Internal,
                "the partition is closed after an I/O error",
                0,
            );
        }
    }

    fn handle_revoke(&mut self, revoke: &Revoke) {
        let sessions: Vec<SessionId> = self
            .identities
            .iter()
            .filter(|(key, _)| key.device.as_str() == revoke.device_id)
            .filter(|(key, _)| revoke.generation.is_none_or(|generation| key.generation == generation))
            .map(|(_, session)| *session)
            .filter(|session| !self.is_kept(*session, revoke))
            .collect();
        for session in sessions {
            self.end(session, revoke.code, &revoke.reason, 0);
        }
    }

    fn is_kept(&self, session: SessionId, revoke: &Revoke) -> bool {
        let proof = self.sessions.get(&session).and_then(|session| session.link.proof());
        match (&revoke.kept, proof) {
            (Some(kept), Some(proof)) => proof == Proof::POLICY || kept.contains(&proof),
            (Some(_), None) | (None, _) => false,
        }
    }

    fn handle_filter_saved(&mut self, partition: PartitionId, saved: bool) {
        let owned = &mut self.owned[self.slots[&partition]];
        let SnapshotState::Saving(covered) = std::mem::replace(&mut owned.snapshot, SnapshotState::Idle) else {
            unreachable!("a snapshot is answered once, while it is being saved");
        };
        if saved {
            owned.filter.snapshot_saved();
            owned.shared.set_filter_covered(covered);
        } else {
            owned.filter.snapshot_failed();
            owned.unsaved_records += 1;
        }
    }

    fn end(&mut self, session: SessionId, code: CloseCode, reason: &str, refused_messages: u32) {
        if let Some(ended) = self.sessions.get(&session) {
            ended.link.end_with(code, reason);
            self.observer.ended(code, refused_messages);
            self.remove(session);
        }
    }

    fn remove(&mut self, session: SessionId) {
        if let Some(removed) = self.sessions.remove(&session) {
            if let (Some(presence), Some(connection)) = (&self.presence, &removed.connection) {
                presence.closed(connection, self.now);
            }
            self.owned[removed.slot].filter.close(&removed.key);
            if self.identities.get(&removed.key) == Some(&session) {
                self.identities.remove(&removed.key);
            }
        }
    }
}

impl<S: Storage> Owned<S> {
    fn take_snapshot(&mut self) {
        // One at a time; the next trigger takes what gathered meanwhile.
        if let SnapshotState::Idle = self.snapshot {
            self.unsaved_records = 0;
            self.snapshot = SnapshotState::Taken(Snapshot {
                partition: self.id,
                covered: self.appender.next_sequence(),
                positions: self.filter.take_snapshot(),
            });
        }
    }
}
