//! Many identities in one request: bulk registry operations and key regeneration.
//!
//! Entries are independent: each that is valid takes effect, durable when the request is answered, whatever becomes of
//! the others.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Rest;
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::bulk::{self, Entry, Mode, Outcome};
use crate::hub::throttle::Class;
use crate::hub::{ErrorCode, KeySlot};

/// IoT Hub, quotas: entries of one bulk request.
const ENTRIES_MAX: usize = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
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
    errors: Vec<Failure>,
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
                let outcome = is_first.then(|| {
                    let (sender, outcome) = tokio::sync::oneshot::channel::<Outcome>();
                    let done = move |changed| drop(sender.send(changed));
                    entry.start(&self.registry, &self.twins, now, done);
                    outcome
                });
                (device_id, module_id, operation, outcome)
            })
            .collect();
        let mut errors = Vec::new();
        for (device_id, module_id, operation, outcome) in started {
            let (code, reason) = match outcome {
                None => (
                    ErrorCode::DEFINED_MULTIPLE_TIMES,
                    "the request names the identity twice".into(),
                ),
                Some(outcome) => match outcome.await {
                    Ok(Ok(Some(change))) => {
                        self.router.identity_changed(&change).await;
                        continue;
                    }
                    Ok(Ok(None)) => continue,
                    Ok(Err(error)) => (error.code, error.reason),
                    Err(_) => (ErrorCode::SERVER_ERROR, "the store is closed".into()),
                },
            };
            errors.push(Failure {
                device_id,
                error_code: code.name,
                error_status: reason,
                module_id,
                operation,
            });
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
        let slots = KeySlot::parse(&wanted.policy_key).ok_or_else(|| {
            let reason = "policyKey is none of primaryKey, secondaryKey, both";
            Refused::new(ErrorCode::INVALID_POLICY_KEY, reason)
        })?;
        let mut result = RegenerateResult {
            policy_key: wanted.policy_key,
            rotated_keys: Vec::new(),
            errors: Vec::new(),
        };
        for Name { id, module_id } in wanted.devices {
            let module_id = none_if_empty(module_id);
            let rotated = match bulk::name(&id, module_id.as_deref()) {
                Ok(name) => wait(|done| self.registry.regenerate_keys(&name, slots, done)).await?,
                Err(error) => {
                    let refused = Refused::new(error.code, error.reason);
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
