//! Reads and changes stored twins; writes of one twin go through its lane, one group after the other.
//!
//! Deciding on what is durable and trying again would be enough for twins to be right, but not for order: a patch that
//! lost a race would come after one that the device sent later. And it would commit one patch for each sync.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::document::{Members, Twin, TwinUpdate, without_reserved};
use super::limits::{InvalidTwin, Measure, SectionName, check_patch};
use crate::hub::code::ErrorCode;
use crate::hub::decide::{decide, decode, encode};
use crate::hub::events::Operation;
use crate::hub::identity::{IdentityName, Life};
use crate::hub::registry::{IfMatch, Registry};
use crate::model::{Generation, UtcMillis};
use crate::state::{Expected, State, StateError, Table, WriteBatch, blocking};

/// Writes that wait for those of the same twin before them. A device that sends faster than that is told to slow down.
const WAITING_PER_TWIN_MAX: usize = 64;
/// Memory of all writes that wait, so that many twins at once do not multiply the bound above.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a parsed value takes in memory beside its text.
const VALUE_BYTES: usize = 64;
/// What a waiting write takes beside its patch.
const WRITE_BYTES: usize = 256;

/// Why a twin was not read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TwinError {
    /// Also when the device was deleted and created again since its session began.
    #[error("no such device")]
    DeviceNotFound,
    #[error("no such module")]
    ModuleNotFound,
    /// Read again, then decide again.
    #[error("the twin has another etag")]
    PreconditionFailed,
    /// Read again, then decide again.
    #[error("the reported properties have version {version}")]
    OtherVersion { version: u64 },
    #[error(transparent)]
    Invalid(#[from] InvalidTwin),
    /// `Busy` means try again; after `Failed` the outcome is unknown.
    #[error(transparent)]
    State(#[from] StateError),
}

impl TwinError {
    fn not_found(name: &IdentityName) -> Self {
        match name.module {
            None => Self::DeviceNotFound,
            Some(_) => Self::ModuleNotFound,
        }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DeviceNotFound => ErrorCode::DEVICE_NOT_FOUND,
            Self::ModuleNotFound => ErrorCode::MODULE_NOT_FOUND,
            Self::PreconditionFailed | Self::OtherVersion { .. } => ErrorCode::PRECONDITION_FAILED,
            Self::Invalid(invalid) => invalid.code(),
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// What was asked for, reserved members taken out.
#[derive(Clone, Debug, PartialEq)]
pub enum TwinChange {
    Patched(TwinUpdate),
    Replaced(TwinUpdate),
    Reported(Members),
}

/// A change that took effect and is durable.
#[derive(Clone, Debug, PartialEq)]
pub struct TwinChanged {
    pub identity: IdentityName,
    pub generation: Generation,
    pub change: Arc<TwinChange>,
    pub at: UtcMillis,
    /// The twin as this change left it.
    pub twin: Arc<Twin>,
}

impl TwinChanged {
    pub fn changes_desired(&self) -> bool {
        match &*self.change {
            TwinChange::Patched(update) | TwinChange::Replaced(update) => update.desired.is_some(),
            TwinChange::Reported(_) => false,
        }
    }

    /// What a device that observes its desired properties is told, `$version` included; `None` if they did not change.
    /// In the order of versions if sent in the order of answers.
    pub fn desired_notification(&self) -> Option<Members> {
        let section = &self.twin.desired;
        match &*self.change {
            // IoT Hub, twins: the patch as sent, nulls included.
            TwinChange::Patched(update) => {
                let mut told = update.desired.clone()?;
                told.insert("$version".into(), section.version.into());
                Some(told)
            }
            // IoT Hub, twins: the complete new section.
            TwinChange::Replaced(update) => update.desired.as_ref().map(|_| section.told()),
            TwinChange::Reported(_) => None,
        }
    }
}

/// The twins of all devices and modules. Cloning shares them. Two that do not share over one store lose nothing either,
/// but order holds only within each.
#[derive(Clone)]
pub struct Twins {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<dyn State>,
    registry: Registry,
    lanes: Mutex<Lanes>,
    observer: OnceLock<Observer>,
}

/// Told of every change once it is durable, for each twin in the order of its versions and before the change is answered;
/// on the store's writer thread, so it must be short and must not block.
pub type Observer = Box<dyn Fn(&TwinChanged) + Send + Sync>;

type Done = Box<dyn FnOnce(Result<TwinChanged, TwinError>) + Send>;

struct Write {
    change: Arc<TwinChange>,
    condition: Condition,
    now: UtcMillis,
    bytes: usize,
    done: Done,
}

/// What must be true of the twin for a write to take effect.
enum Condition {
    Etag(IfMatch),
    /// The writer is this life of the identity, and knows this version of the reported properties.
    Device {
        generation: Generation,
        reported: Option<u64>,
    },
}

impl Twins {
    pub fn new(state: Arc<dyn State>, registry: Registry) -> Self {
        let lanes = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                state,
                registry,
                lanes,
                observer: OnceLock::new(),
            }),
        }
    }

    /// Sets who hears of changes; once, before the first.
    pub fn observe(&self, observer: Observer) {
        assert!(self.shared.observer.set(observer).is_ok(), "there is one observer");
    }

    /// The durable twin of an identity.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`, or the store's.
    pub fn get(&self, name: &IdentityName) -> Result<Twin, TwinError> {
        let (table, key) = self.shared.registry.identity_key(name);
        let state = &self.shared.state;
        // A deletion between the two reads would let a twin of a later life be seen: one that is there as well.
        state.get(table, &key)?.ok_or_else(|| TwinError::not_found(name))?;
        Ok(match state.get(Table::Twins, &key)? {
            Some(bytes) => decode(&bytes)?,
            None => Twin::fresh(),
        })
    }

    /// A service's partial update of tags and desired properties.
    pub fn patch(
        &self,
        name: IdentityName,
        update: TwinUpdate,
        if_match: IfMatch,
        now: UtcMillis,
        done: impl FnOnce(Result<TwinChanged, TwinError>) + Send + 'static,
    ) {
        let change = TwinChange::Patched(update.without_reserved());
        self.write(name, change, Condition::Etag(if_match), now, Box::new(done));
    }

    /// A service's replacement of tags and desired properties, of each that is given.
    pub fn replace(
        &self,
        name: IdentityName,
        update: TwinUpdate,
        if_match: IfMatch,
        now: UtcMillis,
        done: impl FnOnce(Result<TwinChanged, TwinError>) + Send + 'static,
    ) {
        let change = TwinChange::Replaced(update.without_reserved());
        self.write(name, change, Condition::Etag(if_match), now, Box::new(done));
    }

    /// A device's or module's update of its reported properties, on a session of this `generation`; with `version`
    /// only if they still have it.
    pub fn patch_reported(
        &self,
        name: IdentityName,
        generation: Generation,
        patch: Members,
        version: Option<u64>,
        now: UtcMillis,
        done: impl FnOnce(Result<TwinChanged, TwinError>) + Send + 'static,
    ) {
        let change = TwinChange::Reported(without_reserved(patch));
        let condition = Condition::Device {
            generation,
            reported: version,
        };
        self.write(name, change, condition, now, Box::new(done));
    }

    /// `patch`, waiting for the answer. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn patch_blocking(
        &self,
        name: IdentityName,
        update: TwinUpdate,
        if_match: IfMatch,
        now: UtcMillis,
    ) -> Result<TwinChanged, TwinError> {
        wait(|done| self.patch(name, update, if_match, now, done))
    }

    /// `replace`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn replace_blocking(
        &self,
        name: IdentityName,
        update: TwinUpdate,
        if_match: IfMatch,
        now: UtcMillis,
    ) -> Result<TwinChanged, TwinError> {
        wait(|done| self.replace(name, update, if_match, now, done))
    }

    /// `patch_reported`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn patch_reported_blocking(
        &self,
        name: IdentityName,
        generation: Generation,
        patch: Members,
        version: Option<u64>,
        now: UtcMillis,
    ) -> Result<TwinChanged, TwinError> {
        wait(|done| self.patch_reported(name, generation, patch, version, now, done))
    }

    fn write(&self, name: IdentityName, change: TwinChange, condition: Condition, now: UtcMillis, done: Done) {
        let bytes = match change.memory_bytes() {
            Ok(bytes) => bytes,
            Err(invalid) => return done(Err(invalid.into())),
        };
        let write = Write {
            change: Arc::new(change),
            condition,
            now,
            bytes,
            done,
        };
        let admitted = self.shared.lanes().admit(&name, write);
        match admitted {
            Admitted::First(write) => run(Arc::clone(&self.shared), name, vec![write]),
            Admitted::Waits => {}
            Admitted::Refused(write) => (write.done)(Err(StateError::Busy.into())),
        }
    }
}

impl TwinChange {
    /// `opType` of the change event.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Patched(_) | Self::Reported(_) => Operation::UpdateTwin,
            Self::Replaced(_) => Operation::ReplaceTwin,
        }
    }

    /// Checks what can be checked without the twin, and says what keeping this change in memory costs.
    fn memory_bytes(&self) -> Result<usize, InvalidTwin> {
        let (tags, desired, reported) = match self {
            Self::Patched(update) | Self::Replaced(update) => (update.tags.as_ref(), update.desired.as_ref(), None),
            Self::Reported(patch) => (None, None, Some(patch)),
        };
        let sections = [
            (SectionName::Tags, tags),
            (SectionName::Desired, desired),
            (SectionName::Reported, reported),
        ];
        let mut memory = WRITE_BYTES;
        for (section, members) in sections {
            if let Some(members) = members {
                let Measure { bytes, values, .. } = check_patch(section, members)?;
                memory += bytes + values * VALUE_BYTES;
            }
        }
        Ok(memory)
    }

    fn apply(&self, twin: &Twin, now: UtcMillis) -> Result<Twin, InvalidTwin> {
        match self {
            Self::Patched(update) => twin.patched(update, now),
            Self::Replaced(update) => twin.replaced(update, now),
            Self::Reported(patch) => twin.patched_reported(patch, now),
        }
    }
}

/// A twin with writes under way has a lane, in which further ones wait.
#[derive(Default)]
struct Lanes {
    waiting: HashMap<IdentityName, VecDeque<Write>>,
    waiting_bytes: usize,
}

enum Admitted {
    /// Nothing is under way: the caller runs it.
    First(Write),
    Waits,
    Refused(Write),
}

impl Lanes {
    fn admit(&mut self, name: &IdentityName, write: Write) -> Admitted {
        let Some(lane) = self.waiting.get_mut(name) else {
            self.waiting.insert(name.clone(), VecDeque::new());
            return Admitted::First(write);
        };
        if lane.len() == WAITING_PER_TWIN_MAX || self.waiting_bytes + write.bytes > WAITING_BYTES_MAX {
            return Admitted::Refused(write);
        }
        self.waiting_bytes += write.bytes;
        lane.push_back(write);
        Admitted::Waits
    }

    /// All that waits; when nothing does, the lane is closed.
    fn next(&mut self, name: &IdentityName) -> Vec<Write> {
        let lane = self.waiting.get_mut(name).map(std::mem::take).unwrap_or_default();
        if lane.is_empty() {
            self.waiting.remove(name);
        }
        self.waiting_bytes -= lane.iter().map(|write| write.bytes).sum::<usize>();
        lane.into()
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of each write of a group, in order.
type Outcomes = Vec<Result<TwinChanged, TwinError>>;

/// Why nothing of a group was written.
enum Unwritten {
    /// Each write was refused for a reason of its own.
    Refused(Outcomes),
    All(TwinError),
}

impl From<StateError> for Unwritten {
    fn from(error: StateError) -> Self {
        Self::All(error.into())
    }
}

impl From<TwinError> for Unwritten {
    fn from(error: TwinError) -> Self {
        Self::All(error)
    }
}

/// Runs a group of writes of one twin, and the groups that have come since, until nothing waits.
///
/// A group may be answered before `decide` returns or later, on another thread. Whoever is second to see that goes on,
/// so that groups which are refused at once make a loop and not a recursion as deep as there are groups.
fn run(shared: Arc<Shared>, name: IdentityName, mut writes: Vec<Write>) {
    while !writes.is_empty() {
        let is_second = Arc::new(AtomicBool::new(false));
        let (again, subject, is_second_there) = (Arc::clone(&shared), name.clone(), Arc::clone(&is_second));
        let answered = move || {
            if is_second_there.swap(true, Ordering::AcqRel) {
                let writes = again.lanes().next(&subject);
                run(again, subject, writes);
            }
        };
        decide_group(&shared, &name, writes, answered);
        if !is_second.swap(true, Ordering::AcqRel) {
            return;
        }
        writes = shared.lanes().next(&name);
    }
}

/// Decides a group of writes of one twin and answers them in order, then calls `answered`.
fn decide_group(
    shared: &Arc<Shared>,
    name: &IdentityName,
    writes: Vec<Write>,
    answered: impl FnOnce() + Send + 'static,
) {
    let mut decisions = Vec::with_capacity(writes.len());
    let mut waiting = Vec::with_capacity(writes.len());
    for write in writes {
        decisions.push((write.change, write.condition, write.now));
        waiting.push(write.done);
    }
    let (table, key) = shared.registry.identity_key(name);
    let subject = name.clone();
    let partition = shared.registry.partition(&name.device);
    let recorder = shared.registry.recorder().clone();
    let attempt = move |state: &dyn State| {
        let identity = state.get(table, &key)?.ok_or_else(|| TwinError::not_found(&subject))?;
        let generation = decode::<Life>(&identity)?.generation_id;
        let stored = state.get(Table::Twins, &key)?;
        let mut twin = Arc::new(match &stored {
            Some(bytes) => decode(bytes)?,
            None => Twin::fresh(),
        });
        let mut outcomes = Outcomes::with_capacity(decisions.len());
        for (change, condition, now) in &decisions {
            let next = condition
                .check(&subject, generation, &twin)
                .and_then(|()| Ok(Arc::new(change.apply(&twin, *now)?)));
            outcomes.push(next.map(|next| {
                twin = Arc::clone(&next);
                TwinChanged {
                    identity: subject.clone(),
                    generation,
                    change: Arc::clone(change),
                    at: *now,
                    twin: next,
                }
            }));
        }
        if outcomes.iter().all(Result::is_err) {
            return Err(Unwritten::Refused(outcomes));
        }
        let batch = WriteBatch::new()
            // The whole record, not only that there is one: it may be that of a later life.
            .expect(table, key.clone(), Expected::Value(identity))
            .expect(Table::Twins, key.clone(), Expected::unchanged(stored.as_deref()))
            .put(Table::Twins, key.clone(), encode(&*twin));
        let mut draft = recorder.draft(partition);
        for changed in outcomes.iter().flatten() {
            draft.twin(changed);
        }
        let (batch, tally) = draft.add_to(batch);
        Ok((batch, (tally, outcomes)))
    };
    let told = Arc::clone(shared);
    let answer = move |decided: Result<Outcomes, Unwritten>| {
        let outcomes = match decided {
            Ok(outcomes) | Err(Unwritten::Refused(outcomes)) => outcomes,
            Err(Unwritten::All(error)) => vec![Err(error); waiting.len()],
        };
        for (done, outcome) in waiting.into_iter().zip(outcomes) {
            if let (Some(observer), Ok(changed)) = (told.observer.get(), &outcome) {
                observer(changed);
            }
            done(outcome);
        }
        // Only now, so that the answers of the next group cannot overtake these.
        answered();
    };
    let answer = shared.registry.recorder().counted(Box::new(answer));
    decide(&shared.state, Box::new(attempt), answer);
}

impl Condition {
    fn check(&self, name: &IdentityName, current: Generation, twin: &Twin) -> Result<(), TwinError> {
        match self {
            Self::Etag(if_match) if if_match.admits(&twin.etag()) => Ok(()),
            Self::Etag(_) => Err(TwinError::PreconditionFailed),
            Self::Device { generation, .. } if *generation != current => Err(TwinError::not_found(name)),
            Self::Device { reported, .. } => match (*reported, twin.reported.version) {
                (Some(wanted), version) if wanted != version => Err(TwinError::OtherVersion { version }),
                (Some(_) | None, _) => Ok(()),
            },
        }
    }
}

fn wait(start: impl FnOnce(Done)) -> Result<TwinChanged, TwinError> {
    blocking(start).unwrap_or(Err(TwinError::State(StateError::Closed)))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
