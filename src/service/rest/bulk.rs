//! Many identities in one request: bulk registry operations and key regeneration.
//!
//! Entries are independent: each that is valid takes effect, durable when the request is answered, whatever becomes of
//! the others.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Rest;
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::identity::{Authentication, Capabilities, Status};
use crate::hub::throttle::Class;
use crate::hub::twin::Members;
use crate::hub::{
    DeviceIdentity, ErrorCode, IdentityChanged, IdentityName, IfMatch, KeySlot, ModuleIdentity, TwinChanged, TwinError,
    TwinUpdate,
};
use crate::model::{DeviceId, ModuleId, UtcMillis};

/// IoT Hub, quotas: entries of one bulk request.
const ENTRIES_MAX: usize = 100;

// IoT Hub, HTTPS section 5, ExportImportDevice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    module_id: Option<String>,
    e_tag: Option<String>,
    import_mode: Option<Mode>,
    status: Option<Status>,
    status_reason: Option<String>,
    authentication: Option<Authentication>,
    capabilities: Option<Capabilities>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
    twin_e_tag: Option<String>,
    tags: Option<Members>,
    properties: Option<Properties>,
}

#[derive(Deserialize)]
struct Properties {
    desired: Option<Members>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Mode {
    Create,
    Update,
    UpdateIfMatchETag,
    Delete,
    DeleteIfMatchETag,
    UpdateTwin,
    UpdateTwinIfMatchETag,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryError {
    device_id: String,
    error_code: &'static str,
    error_status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<Mode>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BulkResult {
    is_successful: bool,
    errors: Vec<EntryError>,
    /// Members that SDKs read; this hub has nothing to warn of.
    warnings: [(); 0],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Regenerate {
    policy_key: String,
    devices: Vec<Name>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Name {
    id: String,
    module_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rotated {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RotationError {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    error_code: &'static str,
    error_status: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegenerateResult {
    policy_key: String,
    rotated_keys: Vec<Rotated>,
    errors: Vec<RotationError>,
}

impl Rest {
    pub(super) async fn bulk(&self, call: Call) -> Result<Answer, Refused> {
        let entries: Vec<Entry> = call.json().await?;
        check_count(entries.len())?;
        self.throttle(Class::Registry, entries.len() as u64).await?;
        let now = call.now();
        let count = entries.len();
        let mut seen = HashSet::new();
        // All are under way before the first is waited for: they share the store's commits.
        let started: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let (device_id, module_id) = (entry.id.clone(), none_if_empty(entry.module_id.clone()));
                let operation = entry.import_mode;
                let is_first = seen.insert((device_id.clone(), module_id.clone()));
                let outcome = if is_first {
                    self.start(entry, now)
                } else {
                    let code = ErrorCode::DEFINED_MULTIPLE_TIMES;
                    Err(Refused::new(code, "the request names the identity twice"))
                };
                (device_id, module_id, operation, outcome)
            })
            .collect();
        let mut errors = Vec::new();
        for (device_id, module_id, operation, outcome) in started {
            match finish(outcome).await {
                Ok(Some(change)) => self.router.identity_changed(&change).await,
                Ok(None) => {}
                Err(refused) => errors.push(EntryError {
                    device_id,
                    error_code: refused.code.name,
                    error_status: refused.reason,
                    module_id,
                    operation,
                }),
            }
        }
        let have_all_failed = count > 0 && errors.len() == count;
        let result = BulkResult {
            is_successful: errors.is_empty(),
            errors,
            warnings: [],
        };
        Ok(if have_all_failed {
            Answer::json(400, &result).error(ErrorCode::BULK_REGISTRY_FAILURE)
        } else {
            Answer::json(200, &result)
        })
    }

    pub(super) async fn regenerate(&self, call: Call) -> Result<Answer, Refused> {
        let wanted: Regenerate = call.json().await?;
        check_count(wanted.devices.len())?;
        self.throttle(Class::Registry, wanted.devices.len() as u64).await?;
        let slots: &'static [KeySlot] = match wanted.policy_key.to_ascii_lowercase().as_str() {
            "primarykey" => &[KeySlot::Primary],
            "secondarykey" => &[KeySlot::Secondary],
            "both" => &[KeySlot::Primary, KeySlot::Secondary],
            _ => {
                let reason = "policyKey is none of primaryKey, secondaryKey, both";
                return Err(Refused::new(ErrorCode::INVALID_POLICY_KEY, reason));
            }
        };
        let mut result = RegenerateResult {
            policy_key: wanted.policy_key,
            rotated_keys: Vec::new(),
            errors: Vec::new(),
        };
        for Name { id, module_id } in wanted.devices {
            let module_id = none_if_empty(module_id);
            let rotated = match name(&id, module_id.as_deref()) {
                Ok(name) => wait(|done| self.registry.regenerate_keys(&name, slots, done)).await?,
                Err(refused) => {
                    result.errors.push(rotation_error(id, module_id, refused));
                    continue;
                }
            };
            match rotated {
                Ok((keys, change)) => {
                    self.router.identity_changed(&change).await;
                    result.rotated_keys.push(Rotated {
                        id,
                        module_id,
                        primary_key: keys.primary_key,
                        secondary_key: keys.secondary_key,
                    });
                }
                Err(error) => result.errors.push(rotation_error(id, module_id, error.into())),
            }
        }
        let is_any = !result.rotated_keys.is_empty();
        Ok(match (is_any, result.errors.is_empty()) {
            (_, true) => Answer::json(200, &result),
            (true, false) => Answer::json(207, &result),
            (false, false) => Answer::json(400, &result).error(ErrorCode::BULK_REGENERATE_FAILURE),
        })
    }
}

fn rotation_error(id: String, module_id: Option<String>, refused: Refused) -> RotationError {
    RotationError {
        id,
        module_id,
        error_code: refused.code.name,
        error_status: refused.reason,
    }
}

fn check_count(count: usize) -> Result<(), Refused> {
    if count > ENTRIES_MAX {
        let reason = format!("{count} entries exceed {ENTRIES_MAX}");
        return Err(Refused::new(ErrorCode::TOO_MANY_DEVICES, reason));
    }
    Ok(())
}

fn none_if_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn name(id: &str, module_id: Option<&str>) -> Result<IdentityName, Refused> {
    let device = DeviceId::new(id).map_err(|error| Refused::invalid(format_args!("the device id {error}")))?;
    let module = module_id
        .map(ModuleId::new)
        .transpose()
        .map_err(|error| Refused::invalid(format_args!("the module id {error}")))?;
    Ok(IdentityName { device, module })
}

/// A change of a twin concerns no session.
type Outcome = tokio::sync::oneshot::Receiver<Result<Option<IdentityChanged>, Refused>>;

async fn finish(outcome: Result<Outcome, Refused>) -> Result<Option<IdentityChanged>, Refused> {
    outcome?
        .await
        .unwrap_or_else(|_| Err(Refused::new(ErrorCode::SERVER_ERROR, "the store is closed")))
}

impl Rest {
    /// Starts one operation; its outcome comes once it is durable or refused.
    fn start(&self, entry: Entry, now: UtcMillis) -> Result<Outcome, Refused> {
        let registry = &self.registry;
        let mode = entry.import_mode.unwrap_or(Mode::Create);
        let required = |etag: &Option<String>| match none_if_empty(etag.clone()) {
            Some(etag) => Ok(IfMatch::Etag(etag)),
            None => Err(Refused::new(ErrorCode::PRECONDITION_FAILED, "the etag is missing")),
        };
        let if_match = match mode {
            Mode::UpdateIfMatchETag | Mode::DeleteIfMatchETag => required(&entry.e_tag)?,
            Mode::UpdateTwinIfMatchETag => required(&entry.twin_e_tag)?,
            Mode::Create | Mode::Update | Mode::Delete | Mode::UpdateTwin => IfMatch::Any,
        };
        let name = name(&entry.id, none_if_empty(entry.module_id.clone()).as_deref())?;
        let (sender, outcome) = tokio::sync::oneshot::channel();
        macro_rules! done {
            () => {
                move |changed: Result<crate::hub::Changed<_>, crate::hub::RegistryError>| {
                    drop(sender.send(changed.map(|changed| Some(changed.change)).map_err(Refused::from)))
                }
            };
        }
        match (mode, name.module) {
            (Mode::Create, None) => registry.create_device(entry.into_device(name.device), now, done!()),
            (Mode::Update | Mode::UpdateIfMatchETag, None) => {
                registry.update_device(entry.into_device(name.device), if_match, now, done!());
            }
            (Mode::Delete | Mode::DeleteIfMatchETag, None) => registry.delete_device(&name.device, if_match, done!()),
            (Mode::Create, Some(module)) => {
                registry.create_module(entry.into_module(name.device, module), now, done!())
            }
            (Mode::Update | Mode::UpdateIfMatchETag, Some(module)) => {
                registry.update_module(entry.into_module(name.device, module), if_match, done!());
            }
            (Mode::Delete | Mode::DeleteIfMatchETag, Some(module)) => {
                registry.delete_module(&name.device, &module, if_match, done!());
            }
            (Mode::UpdateTwin | Mode::UpdateTwinIfMatchETag, module) => {
                let name = IdentityName {
                    device: name.device,
                    module,
                };
                let update = TwinUpdate {
                    tags: entry.tags,
                    desired: entry.properties.and_then(|properties| properties.desired),
                };
                let done = move |changed: Result<TwinChanged, TwinError>| {
                    drop(sender.send(changed.map(|_| None).map_err(Refused::from)));
                };
                self.twins.patch(name, update, if_match, now, done);
            }
        }
        Ok(outcome)
    }
}

impl Entry {
    fn into_device(self, device: DeviceId) -> DeviceIdentity {
        let mut identity = DeviceIdentity::new(device);
        identity.status = self.status.unwrap_or_default();
        identity.status_reason = self.status_reason;
        identity.authentication = self.authentication.unwrap_or_default();
        identity.capabilities = self.capabilities.unwrap_or_default();
        identity.device_scope = self.device_scope;
        identity.parent_scopes = self.parent_scopes.unwrap_or_default();
        identity
    }

    fn into_module(self, device: DeviceId, module: ModuleId) -> ModuleIdentity {
        let mut identity = ModuleIdentity::new(device, module);
        identity.authentication = self.authentication.unwrap_or_default();
        identity
    }
}
