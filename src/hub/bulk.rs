//! Identities as they stand in bulk requests and in the lines of an import or export (IoT Hub, ExportImportDevice).
//!
//! It deliberately does not know how many come at a time or in which order: a door starts each, and is told each.

use serde::{Deserialize, Serialize};

use super::code::ErrorCode;
use super::decide::decode;
use super::identity::{
    Authentication, AuthenticationKind, Capabilities, DeviceIdentity, IdentityName, ModuleIdentity, Status,
};
use super::registry::{Changed, IdentityChanged, IfMatch, NewDevice, Registry, RegistryError};
use super::twin::{InitialTwin, Members, Twin, TwinError, TwinUpdate, Twins};
use crate::model::{DeviceId, ModuleId, UtcMillis};
use crate::state::{Scan, StateError, Table};

/// One identity and what is to be done with it.
// IoT Hub, HTTPS section 5, ExportImportDevice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e_tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_scopes: Option<Vec<String>>,
    // The contract writes `eTag` and `twinETag`.
    #[serde(rename = "twinETag", skip_serializing_if = "Option::is_none")]
    pub twin_etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Members>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Properties {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<Members>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported: Option<Members>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    Create,
    Update,
    UpdateIfMatchETag,
    Delete,
    DeleteIfMatchETag,
    UpdateTwin,
    UpdateTwinIfMatchETag,
}

/// Why an entry did nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct EntryError {
    pub code: ErrorCode,
    pub reason: String,
}

impl EntryError {
    fn invalid(reason: impl std::fmt::Display) -> Self {
        Self {
            code: ErrorCode::ARGUMENT_INVALID,
            reason: reason.to_string(),
        }
    }
}

impl From<RegistryError> for EntryError {
    fn from(error: RegistryError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

impl From<TwinError> for EntryError {
    fn from(error: TwinError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

/// What happened to an identity; a change of a twin concerns no session.
pub type Outcome = Result<Option<IdentityChanged>, EntryError>;

impl Entry {
    pub fn mode(&self) -> Mode {
        // IoT Hub, bulk operations: an entry without a mode is a new identity.
        self.import_mode.unwrap_or(Mode::Create)
    }

    /// # Errors
    /// An id that is none.
    pub fn name(&self) -> Result<IdentityName, EntryError> {
        name(&self.id, self.module_id.as_deref())
    }

    /// Starts the operation; `done` is called once it is durable or refused.
    pub fn start(
        self,
        registry: &Registry,
        twins: &Twins,
        now: UtcMillis,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) {
        let (name, if_match) = match (self.name(), self.if_match()) {
            (Ok(name), Ok(if_match)) => (name, if_match),
            (Err(error), _) | (_, Err(error)) => return done(Err(error)),
        };
        fn told<T>(changed: Result<Changed<T>, RegistryError>) -> Outcome {
            Ok(Some(changed?.change))
        }
        let mode = self.mode();
        match (mode, name.module) {
            (Mode::Create, None) => {
                let NewDevice { identity, twin } = self.into_device(name.device);
                registry.create_device_with(identity, twin, now, |changed| done(told(changed)));
            }
            (Mode::Update | Mode::UpdateIfMatchETag, None) => {
                let wanted = self.into_device(name.device).identity;
                registry.update_device(wanted, if_match, now, |changed| done(told(changed)));
            }
            (Mode::Delete | Mode::DeleteIfMatchETag, None) => {
                registry.delete_device(&name.device, if_match, |changed| done(told(changed)));
            }
            (Mode::Create, Some(module)) => {
                let (wanted, twin) = self.into_module(name.device, module);
                registry.create_module_with(wanted, twin, now, |changed| done(told(changed)));
            }
            (Mode::Update | Mode::UpdateIfMatchETag, Some(module)) => {
                let wanted = self.into_module(name.device, module).0;
                registry.update_module(wanted, if_match, |changed| done(told(changed)));
            }
            (Mode::Delete | Mode::DeleteIfMatchETag, Some(module)) => {
                registry.delete_module(&name.device, &module, if_match, |changed| done(told(changed)));
            }
            (Mode::UpdateTwin | Mode::UpdateTwinIfMatchETag, module) => {
                let name = IdentityName {
                    device: name.device,
                    module,
                };
                let update = TwinUpdate {
                    tags: self.tags,
                    desired: self.properties.and_then(|properties| properties.desired),
                };
                twins.patch(name, update, if_match, now, |changed| match changed {
                    Ok(_) => done(Ok(None)),
                    Err(error) => done(Err(error.into())),
                });
            }
        }
    }

    /// Whether what was refused with this code is what the entry asks for anyway: an import that was broken off and is
    /// started again meets its own work.
    pub fn is_done(&self, registry: &Registry, code: ErrorCode) -> bool {
        match self.mode() {
            Mode::Delete | Mode::DeleteIfMatchETag => {
                code == ErrorCode::DEVICE_NOT_FOUND || code == ErrorCode::MODULE_NOT_FOUND
            }
            Mode::Create if code == ErrorCode::MODULE_ALREADY_EXISTS => {
                let Ok(IdentityName { device, module }) = self.name() else {
                    return false;
                };
                let stored = module.and_then(|module| registry.module(&device, &module).ok());
                let wanted = self.authentication.clone().unwrap_or_default();
                stored.is_some_and(|stored| is_as_asked(&stored.authentication, &wanted))
            }
            Mode::Create | Mode::Update | Mode::UpdateIfMatchETag | Mode::UpdateTwin | Mode::UpdateTwinIfMatchETag => {
                false
            }
        }
    }

    fn if_match(&self) -> Result<IfMatch, EntryError> {
        let etag = match self.mode() {
            Mode::UpdateIfMatchETag | Mode::DeleteIfMatchETag => &self.e_tag,
            Mode::UpdateTwinIfMatchETag => &self.twin_etag,
            Mode::Create | Mode::Update | Mode::Delete | Mode::UpdateTwin => return Ok(IfMatch::Any),
        };
        match etag.as_deref() {
            None | Some("") => Err(EntryError {
                code: ErrorCode::PRECONDITION_FAILED,
                reason: "the etag is missing".into(),
            }),
            Some(etag) => Ok(IfMatch::Etag(etag.to_owned())),
        }
    }

    pub fn into_device(self, device: DeviceId) -> NewDevice {
        let mut identity = DeviceIdentity::new(device);
        identity.status = self.status.unwrap_or_default();
        identity.status_reason = self.status_reason;
        identity.authentication = self.authentication.unwrap_or_default();
        identity.capabilities = self.capabilities.unwrap_or_default();
        identity.device_scope = self.device_scope;
        identity.parent_scopes = self.parent_scopes.unwrap_or_default();
        let twin = initial(self.tags, self.properties);
        NewDevice { identity, twin }
    }

    fn into_module(self, device: DeviceId, module: ModuleId) -> (ModuleIdentity, InitialTwin) {
        let mut identity = ModuleIdentity::new(device, module);
        identity.authentication = self.authentication.unwrap_or_default();
        (identity, initial(self.tags, self.properties))
    }

    /// Of a stored identity: what creates it again elsewhere, and the etags it has here.
    fn of(stored: Stored, twin: Option<&Twin>) -> Self {
        let members = |members: &Members| (!members.is_empty()).then(|| members.clone());
        let entry = Self {
            twin_etag: twin.map(Twin::etag),
            tags: twin.and_then(|twin| members(&twin.tags)),
            properties: twin.map(|twin| Properties {
                desired: members(&twin.desired.members),
                reported: members(&twin.reported.members),
            }),
            ..Self::default()
        };
        match stored {
            Stored::Device(device) => Self {
                id: device.device_id.as_str().to_owned(),
                e_tag: Some(device.etag),
                status: Some(device.status),
                status_reason: device.status_reason,
                authentication: Some(device.authentication),
                capabilities: Some(device.capabilities),
                device_scope: device.device_scope,
                parent_scopes: (!device.parent_scopes.is_empty()).then_some(device.parent_scopes),
                ..entry
            },
            Stored::Module(module) => Self {
                id: module.device_id.as_str().to_owned(),
                module_id: Some(module.module_id.as_str().to_owned()),
                e_tag: Some(module.etag),
                authentication: Some(module.authentication),
                ..entry
            },
        }
    }
}

/// Keys that were not given were made by the hub: any will do.
fn is_as_asked(stored: &Authentication, wanted: &Authentication) -> bool {
    let has_keys = wanted.symmetric_key.iter().next().is_some();
    stored.kind == wanted.kind
        && (!has_keys || stored.symmetric_key == wanted.symmetric_key)
        && (stored.kind != AuthenticationKind::SelfSigned || stored.x509_thumbprint == wanted.x509_thumbprint)
}

fn initial(tags: Option<Members>, properties: Option<Properties>) -> InitialTwin {
    let properties = properties.unwrap_or_default();
    InitialTwin {
        tags,
        desired: properties.desired,
        reported: properties.reported,
    }
}

/// An id pair as clients write it: an empty module id is none.
///
/// # Errors
/// An id that is none.
pub fn name(id: &str, module_id: Option<&str>) -> Result<IdentityName, EntryError> {
    let device = DeviceId::new(id).map_err(|error| EntryError::invalid(format_args!("the device id {error}")))?;
    let module = module_id.filter(|id| !id.is_empty()).map(ModuleId::new).transpose();
    let module = module.map_err(|error| EntryError::invalid(format_args!("the module id {error}")))?;
    Ok(IdentityName { device, module })
}

enum Stored {
    Device(DeviceIdentity),
    Module(ModuleIdentity),
}

/// A page of an export: at most `entries_max` entries behind `after`, and no further one once `bytes_max` are passed.
/// Each device is followed by its modules. The last entry's name is where the next page begins.
///
/// # Errors
/// The store's.
pub fn export(
    registry: &Registry,
    after: Option<&IdentityName>,
    entries_max: usize,
    bytes_max: usize,
) -> Result<Vec<Entry>, StateError> {
    let mut page = Page {
        registry,
        entries: Vec::new(),
        entries_max,
        bytes_left: bytes_max,
    };
    if let Some(IdentityName { device, module }) = after {
        page.add_modules(device, module.as_ref())?;
    }
    let mut key = after.map(|name| registry.device_key(&name.device));
    while !page.is_full() {
        let scan = Scan {
            prefix: &[],
            after: key.as_deref(),
            limit: entries_max,
        };
        let found = registry.state().scan(Table::Devices, scan)?;
        if found.is_empty() {
            break;
        }
        for (device_key, value) in found {
            if page.is_full() {
                break;
            }
            let device: DeviceIdentity = decode(&value)?;
            let id = device.device_id.clone();
            page.add(Stored::Device(device), &device_key, value.len())?;
            page.add_modules(&id, None)?;
            key = Some(device_key);
        }
    }
    Ok(page.entries)
}

struct Page<'r> {
    registry: &'r Registry,
    entries: Vec<Entry>,
    entries_max: usize,
    bytes_left: usize,
}

impl Page<'_> {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.entries_max || self.bytes_left == 0
    }

    fn add(&mut self, stored: Stored, key: &[u8], bytes: usize) -> Result<(), StateError> {
        let twin = self.registry.state().get(Table::Twins, key)?;
        let twin_bytes = twin.as_ref().map_or(0, Vec::len);
        self.bytes_left = self.bytes_left.saturating_sub(bytes + twin_bytes);
        let twin: Option<Twin> = twin.map(|bytes| decode(&bytes)).transpose()?;
        self.entries.push(Entry::of(stored, twin.as_ref()));
        Ok(())
    }

    fn add_modules(&mut self, device: &DeviceId, after: Option<&ModuleId>) -> Result<(), StateError> {
        let prefix = self.registry.modules_prefix(device);
        let after = after.map(|module| self.registry.module_key(device, module));
        let scan = Scan {
            prefix: &prefix,
            after: after.as_deref(),
            limit: self.entries_max,
        };
        for (key, value) in self.registry.state().scan(Table::Modules, scan)? {
            if self.is_full() {
                break;
            }
            self.add(Stored::Module(decode(&value)?), &key, value.len())?;
        }
        Ok(())
    }
}
