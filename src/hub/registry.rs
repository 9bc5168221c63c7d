//! The identity registry: create, read, update, delete and list devices and modules.
//!
//! Invariants:
//! - An answered change is durable; a change is answered once.
//! - A generation is never given out twice, whatever the clock does.
//! - A module exists only while its device does; deleting a device deletes its modules and filter positions with it.
//! - Deleting an identity deletes its twin, its queue of messages, the feedback about them and its presence with it.
//! - With a recorder, the event of a creation or deletion stands in the batch that creates or deletes.
//!
//! Reads are direct and cost microseconds. Writes answer on the store's writer thread.

mod browse;
mod import;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::code::ErrorCode;
use super::decide::{Answer, decide, decode, encode};
use super::entropy::{Entropy, new_etag};
use super::events::{EventKind, Operation, Recorder, Tally};
use super::filter;
use super::identity::{
    Authentication, AuthenticationKind, DeviceIdentity, IdentityName, InvalidIdentity, KeyPair, ModuleIdentity, Proof,
    Status,
};
use super::outbox;
use super::policy::KeySlot;
use super::presence;
use super::twin::{InitialTwin, InvalidTwin, Twin};
use crate::model::{DeviceId, Generation, ModuleId, PartitionId, UtcMillis};
use crate::state::{Expected, Scan, State, StateError, Table, WriteBatch, blocking, counter};
pub use browse::{Browsed, Wanted};
pub use import::{Imported, NewDevice};

/// IoT Hub, quotas: modules per device. Checked before the write, so that creations at the same instant may pass it by
/// a few; it bounds storage, nothing is sized by it.
pub const MODULES_PER_DEVICE_MAX: usize = 50;
/// IoT Hub, identity registry: entries of one list answer.
pub const LIST_MAX: usize = 1000;
/// Where the highest generation given out is kept.
const GENERATION_KEY: &[u8] = b"generation";
/// Where devices are counted, by status.
const ENABLED_KEY: &[u8] = b"devices.enabled";
const DISABLED_KEY: &[u8] = b"devices.disabled";
/// More than batches can be under way at a crash: keeps new generations above those whose record came late.
const GENERATION_MARGIN: u64 = 100_000;
/// .NET ticks of 100 ns count from the year 1; this is 1970 in milliseconds.
const TICKS_EPOCH_MILLIS: i64 = 62_135_596_800_000;

/// Which version of an identity a write is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// `*`: whatever is there.
    Any,
    /// The version with this etag, without quotes.
    Etag(String),
}

impl IfMatch {
    pub(super) fn admits(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Etag(wanted) => wanted == etag,
        }
    }

    fn check(&self, etag: &str) -> Result<(), RegistryError> {
        let admits = self.admits(etag);
        admits.then_some(()).ok_or(RegistryError::PreconditionFailed)
    }
}

/// Why the registry refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the device exists")]
    DeviceExists,
    #[error("the module exists")]
    ModuleExists,
    #[error("no such device")]
    DeviceNotFound,
    #[error("no such module")]
    ModuleNotFound,
    /// Read again, then decide again.
    #[error("the identity has another etag")]
    PreconditionFailed,
    #[error("the device has {MODULES_PER_DEVICE_MAX} modules")]
    TooManyModules,
    /// It proves itself by a certificate, or not at all.
    #[error("the identity has no symmetric keys")]
    NoKeys,
    #[error(transparent)]
    Invalid(#[from] InvalidIdentity),
    #[error(transparent)]
    InvalidTwin(#[from] InvalidTwin),
    /// `Busy` means try again; after `Failed` the outcome is unknown.
    #[error(transparent)]
    State(#[from] StateError),
}

impl RegistryError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DeviceExists => ErrorCode::DEVICE_ALREADY_EXISTS,
            Self::ModuleExists => ErrorCode::MODULE_ALREADY_EXISTS,
            Self::DeviceNotFound => ErrorCode::DEVICE_NOT_FOUND,
            Self::ModuleNotFound => ErrorCode::MODULE_NOT_FOUND,
            Self::PreconditionFailed => ErrorCode::PRECONDITION_FAILED,
            Self::TooManyModules => ErrorCode::TOO_MANY_MODULES,
            Self::Invalid(_) | Self::NoKeys => ErrorCode::ARGUMENT_INVALID,
            Self::InvalidTwin(invalid) => invalid.code(),
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// A change that took effect, for whoever holds sessions of the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityChanged {
    pub identity: IdentityName,
    pub generation: Generation,
    pub kind: ChangeKind,
    /// What proves the identity from now on.
    pub proofs: Vec<Proof>,
}

/// What happened. Of several at once the one that concerns sessions most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    /// Neither status nor credentials.
    Updated,
    /// Sessions of the device and its modules end.
    Disabled,
    Enabled,
    /// Sessions of the device and its modules end.
    Deleted,
    /// The ways to prove the identity changed. Sessions that proved it by one that is gone end.
    KeysChanged,
}

/// Devices by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub enabled: u64,
    pub disabled: u64,
}

/// A stored identity and the change that made it so.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed<T> {
    pub identity: T,
    pub change: IdentityChanged,
}

/// The registry. Cloning shares it.
#[derive(Clone)]
pub struct Registry {
    state: Arc<dyn State>,
    entropy: Arc<dyn Entropy>,
    generations: Arc<AtomicU64>,
    partition_count: u16,
    recorder: Recorder,
}

impl Registry {
    /// Costs the same however many devices there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(state: Arc<dyn State>, entropy: Arc<dyn Entropy>, partition_count: u16) -> Result<Self, StateError> {
        let highest = match state.get(Table::Meta, GENERATION_KEY)? {
            Some(bytes) => decode::<u64>(&bytes)? + GENERATION_MARGIN,
            None => 0,
        };
        let generations = Arc::new(AtomicU64::new(highest));
        count_uncounted(&state)?;
        Ok(Self {
            state,
            entropy,
            generations,
            partition_count,
            recorder: Recorder::default(),
        })
    }

    /// From now on changes are recorded as events: also those of twins, and of presence, that are made of this registry.
    #[must_use]
    pub fn recording(mut self, recorder: Recorder) -> Self {
        self.recorder = recorder;
        self
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Where a device lives.
    pub fn partition(&self, device: &DeviceId) -> PartitionId {
        PartitionId::of_hash(device.hash64(), self.partition_count)
    }

    /// # Errors
    /// `DeviceNotFound`, or the store's.
    pub fn device(&self, device: &DeviceId) -> Result<DeviceIdentity, RegistryError> {
        let bytes = self.state.get(Table::Devices, &self.device_key(device))?;
        Ok(decode(&bytes.ok_or(RegistryError::DeviceNotFound)?)?)
    }

    /// # Errors
    /// `ModuleNotFound`, or the store's.
    pub fn module(&self, device: &DeviceId, module: &ModuleId) -> Result<ModuleIdentity, RegistryError> {
        let bytes = self.state.get(Table::Modules, &self.module_key(device, module))?;
        Ok(decode(&bytes.ok_or(RegistryError::ModuleNotFound)?)?)
    }

    /// Devices in the order of partition and id, from behind `after`, at most `limit` and at most `LIST_MAX`.
    ///
    /// # Errors
    /// The store's.
    pub fn devices(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<DeviceIdentity>, RegistryError> {
        let after = after.map(|device| self.device_key(device));
        let scan = Scan {
            prefix: &[],
            after: after.as_deref(),
            limit: limit.min(LIST_MAX),
        };
        decode_all(&self.state.scan(Table::Devices, scan)?)
    }

    /// All modules of a device, by id. An unknown device has none.
    ///
    /// # Errors
    /// The store's.
    pub fn modules(&self, device: &DeviceId) -> Result<Vec<ModuleIdentity>, RegistryError> {
        let prefix = self.modules_prefix(device);
        let scan = Scan {
            prefix: &prefix,
            after: None,
            limit: LIST_MAX,
        };
        decode_all(&self.state.scan(Table::Modules, scan)?)
    }

    /// Stores a new device; keys are made where type `sas` has none.
    pub fn create_device(
        &self,
        wanted: DeviceIdentity,
        now: UtcMillis,
        done: impl FnOnce(Result<Changed<DeviceIdentity>, RegistryError>) + Send + 'static,
    ) {
        self.create_device_with(wanted, InitialTwin::default(), now, done);
    }

    /// `create_device` with a twin that is more than the fresh one, in the same batch.
    pub fn create_device_with(
        &self,
        wanted: DeviceIdentity,
        twin: InitialTwin,
        now: UtcMillis,
        done: impl FnOnce(Result<Changed<DeviceIdentity>, RegistryError>) + Send + 'static,
    ) {
        let (device, twin) = match self.new_device(wanted, twin, now) {
            Ok(new) => new,
            Err(error) => return done(Err(error)),
        };
        let key = self.device_key(&device.device_id);
        let (recorder, partition) = (self.recorder.clone(), self.partition(&device.device_id));
        let attempt = move |state: &dyn State| {
            if state.get(Table::Devices, &key)?.is_some() {
                return Err(RegistryError::DeviceExists);
            }
            let batch = WriteBatch::new()
                .expect(Table::Devices, key.clone(), Expected::Absent)
                .put(Table::Devices, key.clone(), encode(&device))
                .add(Table::Meta, count_key(device.status), 1)
                .put(Table::Meta, GENERATION_KEY, encode(&device.generation_id.0));
            let batch = put_twin(batch, &key, twin.as_ref());
            let changed = device_changed(device.clone(), ChangeKind::Created);
            let name = &changed.change.identity;
            let (batch, tally) = created(&recorder, partition, name, twin.as_ref(), now, batch);
            Ok((batch, (tally, changed)))
        };
        decide(&self.state, Box::new(attempt), self.recorder.counted(Box::new(done)));
    }

    /// A device as it will be stored, and its twin if that is not the fresh one.
    fn new_device(
        &self,
        wanted: DeviceIdentity,
        twin: InitialTwin,
        now: UtcMillis,
    ) -> Result<(DeviceIdentity, Option<Twin>), RegistryError> {
        let mut device = wanted;
        device.settle(&*self.entropy)?;
        let twin = twin.build(now)?;
        device.generation_id = self.next_generation(now);
        device.etag = new_etag(&*self.entropy);
        device.status_updated_time = None;
        device.last_activity_time = None;
        device.connection_state_updated_time = None;
        device.connection_state = Default::default();
        device.cloud_to_device_message_count = 0;
        Ok((device, twin))
    }

    /// Replaces what a client may write of a device. Absent keys of type `sas` stay as they are.
    pub fn update_device(
        &self,
        wanted: DeviceIdentity,
        if_match: IfMatch,
        now: UtcMillis,
        done: impl FnOnce(Result<Changed<DeviceIdentity>, RegistryError>) + Send + 'static,
    ) {
        let key = self.device_key(&wanted.device_id);
        let entropy = Arc::clone(&self.entropy);
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Devices, &key)?.ok_or(RegistryError::DeviceNotFound)?;
            let stored: DeviceIdentity = decode(&raw)?;
            if_match.check(&stored.etag)?;
            let mut device = wanted.clone();
            keep_keys(&mut device.authentication, &stored.authentication);
            device.settle(&*entropy)?;
            device.generation_id = stored.generation_id;
            device.etag = new_etag(&*entropy);
            device.connection_state = stored.connection_state;
            device.connection_state_updated_time = stored.connection_state_updated_time;
            device.last_activity_time = stored.last_activity_time;
            device.cloud_to_device_message_count = stored.cloud_to_device_message_count;
            device.status_updated_time = stored.status_updated_time;
            let kind = match (stored.status, device.status) {
                (Status::Enabled, Status::Disabled) => ChangeKind::Disabled,
                (Status::Disabled, Status::Enabled) => ChangeKind::Enabled,
                (Status::Enabled, Status::Enabled) | (Status::Disabled, Status::Disabled) => {
                    credentials_change(&stored.authentication, &device.authentication)
                }
            };
            if stored.status != device.status {
                device.status_updated_time = Some(now);
            }
            let mut batch = WriteBatch::new()
                .expect(Table::Devices, key.clone(), Expected::Value(raw))
                .put(Table::Devices, key.clone(), encode(&device));
            if stored.status != device.status {
                batch =
                    batch
                        .add(Table::Meta, count_key(stored.status), -1)
                        .add(Table::Meta, count_key(device.status), 1);
            }
            Ok((batch, device_changed(device, kind)))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Removes a device with its modules, filter positions, twins and queues; tells what it was.
    pub fn delete_device(
        &self,
        device: &DeviceId,
        if_match: IfMatch,
        done: impl FnOnce(Result<Changed<DeviceIdentity>, RegistryError>) + Send + 'static,
    ) {
        let key = self.device_key(device);
        let prefix = self.modules_prefix(device);
        let partition = self.partition(device);
        let positions = filter::positions_prefix(partition, device);
        let device = device.clone();
        let recorder = self.recorder.clone();
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Devices, &key)?.ok_or(RegistryError::DeviceNotFound)?;
            let stored: DeviceIdentity = decode(&raw)?;
            if_match.check(&stored.etag)?;
            let changed = device_changed(stored, ChangeKind::Deleted);
            let (batch, tally) = deleted(&recorder, partition, &changed.change.identity, &key, state)?;
            let batch = batch
                .expect(Table::Devices, key.clone(), Expected::Value(raw))
                .delete(Table::Devices, key.clone())
                .add(Table::Meta, count_key(changed.identity.status), -1)
                .delete_prefix(Table::Modules, prefix.clone())
                .delete(Table::Twins, key.clone())
                .delete_prefix(Table::Twins, prefix.clone())
                .delete(Table::Presence, key.clone())
                .delete_prefix(Table::Presence, prefix.clone())
                .delete(Table::Subscriptions, key.clone())
                .delete_prefix(Table::Subscriptions, prefix.clone())
                .delete_prefix(Table::Filter, positions.clone());
            let batch = outbox::delete_device(batch, partition, &device);
            Ok((batch, (tally, changed)))
        };
        decide(&self.state, Box::new(attempt), self.recorder.counted(Box::new(done)));
    }

    /// Stores a new module of an existing device.
    pub fn create_module(
        &self,
        wanted: ModuleIdentity,
        now: UtcMillis,
        done: impl FnOnce(Result<Changed<ModuleIdentity>, RegistryError>) + Send + 'static,
    ) {
        self.create_module_with(wanted, InitialTwin::default(), now, done);
    }

    /// `create_module` with a twin that is more than the fresh one, in the same batch.
    pub fn create_module_with(
        &self,
        wanted: ModuleIdentity,
        twin: InitialTwin,
        now: UtcMillis,
        done: impl FnOnce(Result<Changed<ModuleIdentity>, RegistryError>) + Send + 'static,
    ) {
        let mut module = wanted;
        if let Err(error) = module.settle(&*self.entropy) {
            return done(Err(error.into()));
        }
        let twin = match twin.build(now) {
            Ok(twin) => twin,
            Err(invalid) => return done(Err(invalid.into())),
        };
        module.generation_id = self.next_generation(now);
        module.etag = new_etag(&*self.entropy);
        module.last_activity_time = None;
        module.connection_state_updated_time = None;
        module.connection_state = Default::default();
        module.cloud_to_device_message_count = 0;
        let device_key = self.device_key(&module.device_id);
        let prefix = self.modules_prefix(&module.device_id);
        let key = self.module_key(&module.device_id, &module.module_id);
        let (recorder, partition) = (self.recorder.clone(), self.partition(&module.device_id));
        let attempt = move |state: &dyn State| {
            if state.get(Table::Devices, &device_key)?.is_none() {
                return Err(RegistryError::DeviceNotFound);
            }
            if state.get(Table::Modules, &key)?.is_some() {
                return Err(RegistryError::ModuleExists);
            }
            let scan = Scan {
                prefix: &prefix,
                after: None,
                limit: MODULES_PER_DEVICE_MAX,
            };
            if state.scan(Table::Modules, scan)?.len() >= MODULES_PER_DEVICE_MAX {
                return Err(RegistryError::TooManyModules);
            }
            let batch = WriteBatch::new()
                .expect(Table::Devices, device_key.clone(), Expected::Present)
                .expect(Table::Modules, key.clone(), Expected::Absent)
                .put(Table::Modules, key.clone(), encode(&module))
                .put(Table::Meta, GENERATION_KEY, encode(&module.generation_id.0));
            let batch = put_twin(batch, &key, twin.as_ref());
            let changed = module_changed(module.clone(), ChangeKind::Created);
            let name = &changed.change.identity;
            let (batch, tally) = created(&recorder, partition, name, twin.as_ref(), now, batch);
            Ok((batch, (tally, changed)))
        };
        decide(&self.state, Box::new(attempt), self.recorder.counted(Box::new(done)));
    }

    /// Replaces what a client may write of a module.
    pub fn update_module(
        &self,
        wanted: ModuleIdentity,
        if_match: IfMatch,
        done: impl FnOnce(Result<Changed<ModuleIdentity>, RegistryError>) + Send + 'static,
    ) {
        let key = self.module_key(&wanted.device_id, &wanted.module_id);
        let entropy = Arc::clone(&self.entropy);
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Modules, &key)?.ok_or(RegistryError::ModuleNotFound)?;
            let stored: ModuleIdentity = decode(&raw)?;
            if_match.check(&stored.etag)?;
            let mut module = wanted.clone();
            keep_keys(&mut module.authentication, &stored.authentication);
            module.settle(&*entropy)?;
            module.generation_id = stored.generation_id;
            module.etag = new_etag(&*entropy);
            module.connection_state = stored.connection_state;
            module.connection_state_updated_time = stored.connection_state_updated_time;
            module.last_activity_time = stored.last_activity_time;
            module.cloud_to_device_message_count = stored.cloud_to_device_message_count;
            let kind = credentials_change(&stored.authentication, &module.authentication);
            let batch = WriteBatch::new()
                .expect(Table::Modules, key.clone(), Expected::Value(raw))
                .put(Table::Modules, key.clone(), encode(&module));
            Ok((batch, module_changed(module, kind)))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Removes a module with its twin and queue; tells what it was.
    pub fn delete_module(
        &self,
        device: &DeviceId,
        module: &ModuleId,
        if_match: IfMatch,
        done: impl FnOnce(Result<Changed<ModuleIdentity>, RegistryError>) + Send + 'static,
    ) {
        let key = self.module_key(device, module);
        let partition = self.partition(device);
        let name = IdentityName::module(device.clone(), module.clone());
        let recorder = self.recorder.clone();
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Modules, &key)?.ok_or(RegistryError::ModuleNotFound)?;
            let stored: ModuleIdentity = decode(&raw)?;
            if_match.check(&stored.etag)?;
            let (batch, tally) = deleted(&recorder, partition, &name, &key, state)?;
            let batch = batch
                .expect(Table::Modules, key.clone(), Expected::Value(raw))
                .delete(Table::Modules, key.clone())
                .delete(Table::Twins, key.clone())
                .delete(Table::Presence, key.clone())
                .delete(Table::Subscriptions, key.clone());
            let batch = outbox::delete_queue(batch, partition, &name);
            Ok((batch, (tally, module_changed(stored, ChangeKind::Deleted))))
        };
        decide(&self.state, Box::new(attempt), self.recorder.counted(Box::new(done)));
    }

    /// Replaces keys of a device or module by new ones. Whoever uses a key that is not named goes on.
    pub fn regenerate_keys(
        &self,
        name: &IdentityName,
        slots: &'static [KeySlot],
        done: impl FnOnce(Result<(KeyPair, IdentityChanged), RegistryError>) + Send + 'static,
    ) {
        let made = KeyPair::generate(&*self.entropy);
        let etag = new_etag(&*self.entropy);
        let changed = IdentityName::clone(name);
        let renew = move |authentication: &mut Authentication| {
            if authentication.kind != AuthenticationKind::Sas {
                return Err(RegistryError::NoKeys);
            }
            for slot in slots {
                match slot {
                    KeySlot::Primary => authentication.symmetric_key.primary_key.clone_from(&made.primary_key),
                    KeySlot::Secondary => authentication
                        .symmetric_key
                        .secondary_key
                        .clone_from(&made.secondary_key),
                }
            }
            Ok((authentication.symmetric_key.clone(), authentication.proofs()))
        };
        let answer = move |(keys, proofs), generation| {
            let identity = changed.clone();
            let kind = ChangeKind::KeysChanged;
            (
                keys,
                IdentityChanged {
                    identity,
                    generation,
                    kind,
                    proofs,
                },
            )
        };
        let (table, key) = match &name.module {
            None => (Table::Devices, self.device_key(&name.device)),
            Some(module) => (Table::Modules, self.module_key(&name.device, module)),
        };
        let attempt = move |state: &dyn State| {
            let raw = state.get(table, &key)?;
            let (stored, keys, generation) = match table {
                Table::Devices => {
                    let raw = raw.as_deref().ok_or(RegistryError::DeviceNotFound)?;
                    let mut device: DeviceIdentity = decode(raw)?;
                    let keys = renew(&mut device.authentication)?;
                    device.etag.clone_from(&etag);
                    (encode(&device), keys, device.generation_id)
                }
                _ => {
                    let raw = raw.as_deref().ok_or(RegistryError::ModuleNotFound)?;
                    let mut module: ModuleIdentity = decode(raw)?;
                    let keys = renew(&mut module.authentication)?;
                    module.etag.clone_from(&etag);
                    (encode(&module), keys, module.generation_id)
                }
            };
            let batch = WriteBatch::new()
                .expect(table, key.clone(), Expected::unchanged(raw.as_deref()))
                .put(table, key.clone(), stored);
            Ok((batch, answer(keys, generation)))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// How many devices there are: counted in the batches that make and change them, so two reads tell it.
    ///
    /// # Errors
    /// The store's.
    pub fn statistics(&self) -> Result<Statistics, RegistryError> {
        let count = |key| -> Result<u64, RegistryError> {
            let count = counter(self.state.get(Table::Meta, key)?.as_deref());
            Ok(u64::try_from(count).unwrap_or_default())
        };
        Ok(Statistics {
            enabled: count(ENABLED_KEY)?,
            disabled: count(DISABLED_KEY)?,
        })
    }

    /// `create_device`, waiting for the answer. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn create_device_blocking(
        &self,
        wanted: DeviceIdentity,
        now: UtcMillis,
    ) -> Result<Changed<DeviceIdentity>, RegistryError> {
        wait(|done| self.create_device(wanted, now, done))
    }

    /// `update_device`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn update_device_blocking(
        &self,
        wanted: DeviceIdentity,
        if_match: IfMatch,
        now: UtcMillis,
    ) -> Result<Changed<DeviceIdentity>, RegistryError> {
        wait(|done| self.update_device(wanted, if_match, now, done))
    }

    /// `delete_device`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn delete_device_blocking(
        &self,
        device: &DeviceId,
        if_match: IfMatch,
    ) -> Result<Changed<DeviceIdentity>, RegistryError> {
        wait(|done| self.delete_device(device, if_match, done))
    }

    /// `create_module`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn create_module_blocking(
        &self,
        wanted: ModuleIdentity,
        now: UtcMillis,
    ) -> Result<Changed<ModuleIdentity>, RegistryError> {
        wait(|done| self.create_module(wanted, now, done))
    }

    /// `update_module`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn update_module_blocking(
        &self,
        wanted: ModuleIdentity,
        if_match: IfMatch,
    ) -> Result<Changed<ModuleIdentity>, RegistryError> {
        wait(|done| self.update_module(wanted, if_match, done))
    }

    /// `delete_module`, waiting for the answer.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn delete_module_blocking(
        &self,
        device: &DeviceId,
        module: &ModuleId,
        if_match: IfMatch,
    ) -> Result<Changed<ModuleIdentity>, RegistryError> {
        wait(|done| self.delete_module(device, module, if_match, done))
    }

    /// .NET ticks of now (18 digits), moved on if they were given out before.
    fn next_generation(&self, now: UtcMillis) -> Generation {
        let ticks = now.0.saturating_add(TICKS_EPOCH_MILLIS).max(0) as u64 * 10_000;
        let next = |last: u64| (last + 1).max(ticks);
        let last = self
            .generations
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        Generation(next(last.unwrap_or_else(|last| last)))
    }

    /// Where an identity's record is kept, and under which key also its twin.
    pub(super) fn identity_key(&self, name: &IdentityName) -> (Table, Vec<u8>) {
        match &name.module {
            None => (Table::Devices, self.device_key(&name.device)),
            Some(module) => (Table::Modules, self.module_key(&name.device, module)),
        }
    }

    pub(super) fn state(&self) -> &dyn State {
        &*self.state
    }

    pub(super) fn device_key(&self, device: &DeviceId) -> Vec<u8> {
        device_key(self.partition(device), device)
    }

    pub(super) fn modules_prefix(&self, device: &DeviceId) -> Vec<u8> {
        modules_prefix(self.partition(device), device)
    }

    pub(super) fn module_key(&self, device: &DeviceId, module: &ModuleId) -> Vec<u8> {
        module_key(self.partition(device), device, module)
    }
}

/// Counts the devices of a store that was written before they were counted: once, and only there.
fn count_uncounted(state: &Arc<dyn State>) -> Result<(), StateError> {
    #[derive(serde::Deserialize)]
    struct OnlyStatus {
        status: Status,
    }
    for key in [ENABLED_KEY, DISABLED_KEY] {
        if state.get(Table::Meta, key)?.is_some() {
            return Ok(());
        }
    }
    let mut batch = WriteBatch::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let scan = Scan {
            prefix: &[],
            after: after.as_deref(),
            limit: LIST_MAX,
        };
        let page = state.scan(Table::Devices, scan)?;
        for (_, value) in &page {
            batch = batch.add(Table::Meta, count_key(decode::<OnlyStatus>(value)?.status), 1);
        }
        match page.into_iter().last() {
            Some((key, _)) => after = Some(key),
            None if batch.is_empty() => return Ok(()),
            None => return state.commit_blocking(batch),
        }
    }
}

/// A fresh twin is not written: it is what a missing one is taken for.
fn put_twin(batch: WriteBatch, key: &[u8], twin: Option<&Twin>) -> WriteBatch {
    match twin {
        Some(twin) => batch.put(Table::Twins, key, encode(twin)),
        None => batch,
    }
}

fn count_key(status: Status) -> &'static [u8] {
    match status {
        Status::Enabled => ENABLED_KEY,
        Status::Disabled => DISABLED_KEY,
    }
}

/// Under which a device stands in its table.
pub(super) fn device_key(partition: PartitionId, device: &DeviceId) -> Vec<u8> {
    let mut key = partition.0.to_be_bytes().to_vec();
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

fn modules_prefix(partition: PartitionId, device: &DeviceId) -> Vec<u8> {
    let mut key = device_key(partition, device);
    // No id has this byte, so no device's modules are among those of another.
    key.push(0);
    key
}

/// Under which a module stands in its table.
pub(super) fn module_key(partition: PartitionId, device: &DeviceId, module: &ModuleId) -> Vec<u8> {
    let mut key = modules_prefix(partition, device);
    key.extend_from_slice(module.as_str().as_bytes());
    key
}

/// Adds what tells of a creation.
fn created(
    recorder: &Recorder,
    partition: PartitionId,
    name: &IdentityName,
    twin: Option<&Twin>,
    now: UtcMillis,
    batch: WriteBatch,
) -> (WriteBatch, Tally) {
    let mut draft = recorder.draft(partition);
    match twin {
        Some(twin) => draft.life_cycle(Operation::Create, name, twin, Some(now)),
        None => draft.life_cycle(Operation::Create, name, &Twin::fresh(), Some(now)),
    }
    draft.add_to(batch)
}

/// What tells of a deletion, with the preconditions that it tells the truth: neither the twin nor what was recorded of
/// the connection changes before.
fn deleted(
    recorder: &Recorder,
    partition: PartitionId,
    name: &IdentityName,
    key: &[u8],
    state: &dyn State,
) -> Result<(WriteBatch, Tally), StateError> {
    let mut batch = WriteBatch::new();
    let mut draft = recorder.draft(partition);
    if recorder.is_recorded(EventKind::Connection) {
        let raw = state.get(Table::Presence, key)?;
        batch = batch.expect(Table::Presence, key, Expected::unchanged(raw.as_deref()));
        if presence::is_connected(raw.as_deref())? {
            draft.connection(false, name, None);
        }
    }
    if recorder.is_recorded(EventKind::LifeCycle) {
        let raw = state.get(Table::Twins, key)?;
        batch = batch.expect(Table::Twins, key, Expected::unchanged(raw.as_deref()));
        let twin = match raw {
            Some(raw) => decode(&raw)?,
            None => Twin::fresh(),
        };
        draft.life_cycle(Operation::Delete, name, &twin, None);
    }
    Ok(draft.add_to(batch))
}

fn wait<R: Send + 'static>(start: impl FnOnce(Answer<R, RegistryError>)) -> Result<R, RegistryError> {
    blocking(start).unwrap_or(Err(RegistryError::State(StateError::Closed)))
}

fn decode_all<T: serde::de::DeserializeOwned>(entries: &[crate::state::Entry]) -> Result<Vec<T>, RegistryError> {
    entries.iter().map(|(_, value)| Ok(decode(value)?)).collect()
}

/// A client that updates something else and sends no keys means to keep them.
fn keep_keys(wanted: &mut Authentication, stored: &Authentication) {
    if wanted.kind == stored.kind && wanted.symmetric_key.iter().next().is_none() {
        wanted.symmetric_key = stored.symmetric_key.clone();
    }
}

fn credentials_change(stored: &Authentication, wanted: &Authentication) -> ChangeKind {
    if stored == wanted {
        ChangeKind::Updated
    } else {
        ChangeKind::KeysChanged
    }
}

fn device_changed(identity: DeviceIdentity, kind: ChangeKind) -> Changed<DeviceIdentity> {
    let change = IdentityChanged {
        identity: IdentityName::device(identity.device_id.clone()),
        generation: identity.generation_id,
        kind,
        proofs: identity.authentication.proofs(),
    };
    Changed { identity, change }
}

fn module_changed(identity: ModuleIdentity, kind: ChangeKind) -> Changed<ModuleIdentity> {
    let change = IdentityChanged {
        identity: IdentityName::module(identity.device_id.clone(), identity.module_id.clone()),
        generation: identity.generation_id,
        kind,
        proofs: identity.authentication.proofs(),
    };
    Changed { identity, change }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
