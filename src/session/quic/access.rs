//! Management requests about who may do what: shared access policies, and the authorities that vouch for devices'
//! certificates. They are for whoever has all rights, since each of them can give rights.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::door::Door;
use super::management::{Refused, invalid, json, parse, wait};
use crate::hub::authority::AuthorityError;
use crate::hub::identity::KeyPair;
use crate::hub::policy::{Policy, PolicyError};
use crate::hub::{ErrorCode, KeySlot, Permissions};
use crate::model::PolicyName;

impl From<PolicyError> for Refused {
    fn from(error: PolicyError) -> Self {
        Self::new(error.code(), error)
    }
}

impl From<AuthorityError> for Refused {
    fn from(error: AuthorityError) -> Self {
        Self::new(error.code(), error)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyKeyName {
    key_name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewPolicy {
    key_name: String,
    rights: Permissions,
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rights {
    key_name: String,
    rights: Permissions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rotation {
    key_name: String,
    policy_key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityName {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewAuthority {
    name: String,
    /// Base64 of the DER.
    certificate: String,
    #[serde(default)]
    is_verified: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    name: String,
    certificate: String,
}

pub(super) async fn answer(door: &Door, operation: &str, request: &str) -> Result<String, Refused> {
    match operation {
        "policy.list" => Ok(json(&*door.policies.list())),
        "policy.get" => {
            let name: PolicyKeyName = parse(request)?;
            policy(door, &name.key_name)
        }
        "policy.create" => {
            let new: NewPolicy = parse(request)?;
            let policy = Policy {
                key_name: policy_name(&new.key_name)?,
                keys: KeyPair {
                    primary_key: new.primary_key,
                    secondary_key: new.secondary_key,
                },
                rights: new.rights,
            };
            wait(|done| door.policies.create(policy, done)).await??;
            self::policy(door, &new.key_name)
        }
        "policy.update" => {
            let wanted: Rights = parse(request)?;
            let name = policy_name(&wanted.key_name)?;
            wait(|done| door.policies.set_rights(&name, wanted.rights, done)).await??;
            policy(door, &wanted.key_name)
        }
        "policy.regenerate" => {
            let wanted: Rotation = parse(request)?;
            let name = policy_name(&wanted.key_name)?;
            // One at a time, so that whoever uses the other one goes on.
            let [slot] = slots(&wanted.policy_key)? else {
                let reason = "policyKey is neither primaryKey nor secondaryKey";
                return Err(Refused::new(ErrorCode::INVALID_POLICY_KEY, reason));
            };
            wait(|done| door.policies.regenerate(&name, *slot, done)).await??;
            policy(door, &wanted.key_name)
        }
        "policy.delete" => {
            let name: PolicyKeyName = parse(request)?;
            let name = policy_name(&name.key_name)?;
            wait(|done| door.policies.delete(&name, done)).await??;
            Ok("{}".into())
        }
        "authority.list" => Ok(json(&door.authorities.list())),
        "authority.create" => {
            let new: NewAuthority = parse(request)?;
            let der = STANDARD.decode(&new.certificate).map_err(invalid)?;
            let now = door.clock.now();
            wait(|done| door.authorities.add(&new.name, &der, new.is_verified, now, done)).await??;
            authority(door, &new.name)
        }
        "authority.challenge" => {
            let AuthorityName { name } = parse(request)?;
            let challenge = wait(|done| door.authorities.challenge(&name, done)).await??;
            Ok(json(&serde_json::json!({ "name": name, "challenge": challenge })))
        }
        "authority.prove" => {
            let Proof { name, certificate } = parse(request)?;
            let der = STANDARD.decode(&certificate).map_err(invalid)?;
            wait(|done| door.authorities.prove(&name, &der, door.clock.now(), done)).await??;
            authority(door, &name)
        }
        "authority.delete" => {
            let AuthorityName { name } = parse(request)?;
            wait(|done| door.authorities.remove(&name, done)).await??;
            Ok("{}".into())
        }
        other => unreachable!("{other} is not among this file's operations"),
    }
}

/// Which keys a rotation means, in the contract's words.
pub(super) fn slots(policy_key: &str) -> Result<&'static [KeySlot], Refused> {
    KeySlot::parse(policy_key).ok_or_else(|| {
        let reason = "policyKey is none of primaryKey, secondaryKey, both";
        Refused::new(ErrorCode::INVALID_POLICY_KEY, reason)
    })
}

fn policy_name(name: &str) -> Result<PolicyName, Refused> {
    PolicyName::new(name).map_err(|error| invalid(format_args!("the policy's name {error}")))
}

fn policy(door: &Door, name: &str) -> Result<String, Refused> {
    let found = door.policies.get(&policy_name(name)?);
    Ok(json(&found.ok_or(PolicyError::NotFound)?))
}

fn authority(door: &Door, name: &str) -> Result<String, Refused> {
    let authorities = door.authorities.list();
    let found = authorities.iter().find(|authority| authority.name == name);
    Ok(json(found.ok_or(AuthorityError::NotFound)?))
}
