//! Shared access policies: named key pairs with rights (identity and security, section 2).
//!
//! All policies are one record, so that their number is exact, and are held in memory: checking one costs no read.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::code::ErrorCode;
use super::decide::{Answer, decide, decode, encode};
use super::entropy::{Entropy, new_key};
use super::identity::{InvalidIdentity, KeyPair};
use super::json;
use crate::model::{PolicyName, limits};
use crate::state::{Expected, State, StateError, Table, WriteBatch, blocking};

const KEY: &[u8] = b"policies";
/// The policy with all rights. It is always there and keeps them: without it nobody could give rights any more.
pub const OWNER: &str = "iothubowner";
/// IoT Hub, shared access policies: with `ServiceConnect`.
pub const SERVICE_POLICIES_MAX: usize = 10;

/// A set of rights. `REGISTRY_WRITE` implies `REGISTRY_READ`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions(u8);

impl Permissions {
    pub const NONE: Self = Self(0);
    pub const REGISTRY_READ: Self = Self(1);
    pub const REGISTRY_WRITE: Self = Self(2);
    pub const SERVICE_CONNECT: Self = Self(4);
    pub const DEVICE_CONNECT: Self = Self(8);
    /// Of who may give rights: to hand out what one has not would be to have it.
    pub const ALL: Self = Self(15);
    const NAMES: [(&'static str, Self); 4] = [
        ("RegistryRead", Self::REGISTRY_READ),
        ("RegistryWrite", Self::REGISTRY_WRITE),
        ("ServiceConnect", Self::SERVICE_CONNECT),
        ("DeviceConnect", Self::DEVICE_CONNECT),
    ];

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every right of `wanted` is granted.
    pub fn allow(self, wanted: Self) -> bool {
        let implied = if self.0 & Self::REGISTRY_WRITE.0 != 0 {
            Self::REGISTRY_READ.0
        } else {
            0
        };
        (self.0 | implied) & wanted.0 == wanted.0
    }

    /// Reads `RegistryRead, ServiceConnect`; `None` for an unknown name.
    pub fn parse(text: &str) -> Option<Self> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.into_iter().try_fold(Self::NONE, |rights, name| {
            let (_, right) = Self::NAMES
                .into_iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            Some(rights.with(right))
        })
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, right) in Self::NAMES {
            if self.0 & right.0 != 0 {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permissions({self})")
    }
}

impl Serialize for Permissions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("unknown right"))
    }
}

/// A shared access policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(with = "json::policy_name")]
    pub key_name: PolicyName,
    #[serde(flatten)]
    pub keys: KeyPair,
    pub rights: Permissions,
}

/// Which key of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    Primary,
    Secondary,
}

impl KeySlot {
    /// `primaryKey`, `secondaryKey` or `both`, in any case.
    pub fn parse(policy_key: &str) -> Option<&'static [Self]> {
        match policy_key.to_ascii_lowercase().as_str() {
            "primarykey" => Some(&[Self::Primary]),
            "secondarykey" => Some(&[Self::Secondary]),
            "both" => Some(&[Self::Primary, Self::Secondary]),
            _ => None,
        }
    }
}

/// Why policies were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("no such policy")]
    NotFound,
    #[error("the policy exists")]
    Exists,
    #[error("a policy has at least one right")]
    NoRights,
    #[error("{OWNER} stays, with all its rights")]
    IsOwner,
    #[error(
        "there are {} policies, or {SERVICE_POLICIES_MAX} with ServiceConnect",
        limits::POLICIES_MAX
    )]
    TooMany,
    #[error(transparent)]
    Invalid(#[from] InvalidIdentity),
    #[error(transparent)]
    State(#[from] StateError),
}

impl PolicyError {
    pub fn code(&self) -> ErrorCode {
        match self {
            // The contract has no code for a policy that is not there.
            Self::NotFound => ErrorCode::NOT_FOUND,
            Self::Exists => ErrorCode::CONFLICT,
            Self::Invalid(_) | Self::NoRights | Self::IsOwner => ErrorCode::ARGUMENT_INVALID,
            Self::TooMany => ErrorCode::TOO_LARGE,
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// The hub's policies. Cloning shares them.
#[derive(Clone)]
pub struct Policies {
    state: Arc<dyn State>,
    entropy: Arc<dyn Entropy>,
    current: Arc<ArcSwap<Vec<Policy>>>,
}

impl Policies {
    /// Reads the policies, or writes the five of the contract with new keys into an empty store. Blocks; for the start
    /// of the program.
    ///
    /// # Errors
    /// The store's.
    pub fn open(state: Arc<dyn State>, entropy: Arc<dyn Entropy>) -> Result<Self, StateError> {
        let policies = match state.get(Table::Policies, KEY)? {
            Some(bytes) => decode(&bytes)?,
            None => {
                let policies = defaults(&*entropy);
                let batch = WriteBatch::new().expect(Table::Policies, KEY, Expected::Absent).put(
                    Table::Policies,
                    KEY,
                    encode(&policies),
                );
                state.commit_blocking(batch)?;
                policies
            }
        };
        let current = Arc::new(ArcSwap::from_pointee(policies));
        Ok(Self {
            state,
            entropy,
            current,
        })
    }

    /// All policies, as of now.
    pub fn list(&self) -> Arc<Vec<Policy>> {
        self.current.load_full()
    }

    pub fn get(&self, name: &PolicyName) -> Option<Policy> {
        self.list().iter().find(|policy| policy.key_name == *name).cloned()
    }

    /// Calls `with` on a policy, without copying it.
    pub(super) fn with<R>(&self, name: &PolicyName, with: impl FnOnce(&Policy) -> R) -> Option<R> {
        self.current
            .load()
            .iter()
            .find(|policy| policy.key_name == *name)
            .map(with)
    }

    /// Adds a policy; keys are made where there are none.
    pub fn create(&self, policy: Policy, done: impl FnOnce(Result<(), PolicyError>) + Send + 'static) {
        if policy.rights == Permissions::NONE {
            return done(Err(PolicyError::NoRights));
        }
        let policy = match self.with_keys(policy) {
            Ok(policy) => policy,
            Err(error) => return done(Err(error)),
        };
        self.change(Box::new(done), move |policies| {
            if policies.iter().any(|known| known.key_name == policy.key_name) {
                return Err(PolicyError::Exists);
            }
            policies.push(policy.clone());
            check_count(policies)
        });
    }

    /// Adds a policy, or replaces the one of the same name; keys are made where there are none.
    pub fn put(&self, policy: Policy, done: impl FnOnce(Result<(), PolicyError>) + Send + 'static) {
        let policy = match self.with_keys(policy) {
            Ok(policy) => policy,
            Err(error) => return done(Err(error)),
        };
        self.change(Box::new(done), move |policies| {
            match policies.iter_mut().find(|known| known.key_name == policy.key_name) {
                Some(known) => *known = policy.clone(),
                None => policies.push(policy.clone()),
            }
            check_count(policies)
        });
    }

    /// Gives a policy other rights; its keys stay. Tokens made with them have the new rights from the next check on.
    pub fn set_rights(
        &self,
        name: &PolicyName,
        rights: Permissions,
        done: impl FnOnce(Result<(), PolicyError>) + Send + 'static,
    ) {
        if rights == Permissions::NONE {
            return done(Err(PolicyError::NoRights));
        }
        if name.as_str() == OWNER && rights != Permissions::ALL {
            return done(Err(PolicyError::IsOwner));
        }
        let name = name.clone();
        self.change(Box::new(done), move |policies| {
            let policy = policies.iter_mut().find(|policy| policy.key_name == name);
            policy.ok_or(PolicyError::NotFound)?.rights = rights;
            check_count(policies)
        });
    }

    fn with_keys(&self, mut policy: Policy) -> Result<Policy, PolicyError> {
        if policy.keys == KeyPair::default() {
            policy.keys = KeyPair::generate(&*self.entropy);
        }
        policy.keys.check()?;
        Ok(policy)
    }

    pub fn delete(&self, name: &PolicyName, done: impl FnOnce(Result<(), PolicyError>) + Send + 'static) {
        if name.as_str() == OWNER {
            return done(Err(PolicyError::IsOwner));
        }
        let name = name.clone();
        self.change(Box::new(done), move |policies| {
            let before = policies.len();
            policies.retain(|policy| policy.key_name != name);
            if policies.len() == before {
                Err(PolicyError::NotFound)
            } else {
                Ok(())
            }
        });
    }

    /// Replaces one key by a new one: whoever uses the other one goes on.
    pub fn regenerate(
        &self,
        name: &PolicyName,
        slot: KeySlot,
        done: impl FnOnce(Result<(), PolicyError>) + Send + 'static,
    ) {
        let name = name.clone();
        let key = new_key(&*self.entropy);
        self.change(Box::new(done), move |policies| {
            let policy = policies.iter_mut().find(|policy| policy.key_name == name);
            let keys = &mut policy.ok_or(PolicyError::NotFound)?.keys;
            match slot {
                KeySlot::Primary => keys.primary_key = Some(key.clone()),
                KeySlot::Secondary => keys.secondary_key = Some(key.clone()),
            }
            Ok(())
        });
    }

    /// Waits for the answer of one of the calls above. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn wait<R: Send + 'static>(&self, start: impl FnOnce(Answer<R, PolicyError>)) -> Result<R, PolicyError> {
        blocking(start).unwrap_or(Err(PolicyError::State(StateError::Closed)))
    }

    fn change(
        &self,
        done: Answer<(), PolicyError>,
        change: impl Fn(&mut Vec<Policy>) -> Result<(), PolicyError> + Send + 'static,
    ) {
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Policies, KEY)?;
            let mut policies: Vec<Policy> = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
            change(&mut policies)?;
            let batch = WriteBatch::new()
                .expect(Table::Policies, KEY, Expected::unchanged(raw.as_deref()))
                .put(Table::Policies, KEY, encode(&policies));
            Ok((batch, Arc::new(policies)))
        };
        let current = Arc::clone(&self.current);
        // Answers come in the order of the commits, so the last one stored is the last one written.
        let stored = move |result: Result<Arc<Vec<Policy>>, PolicyError>| {
            done(result.map(|policies| current.store(policies)));
        };
        decide(&self.state, Box::new(attempt), Box::new(stored));
    }
}

fn check_count(policies: &[Policy]) -> Result<(), PolicyError> {
    let services = policies
        .iter()
        .filter(|policy| policy.rights.allow(Permissions::SERVICE_CONNECT));
    if policies.len() > limits::POLICIES_MAX || services.count() > SERVICE_POLICIES_MAX {
        return Err(PolicyError::TooMany);
    }
    Ok(())
}

fn defaults(entropy: &dyn Entropy) -> Vec<Policy> {
    let read = Permissions::REGISTRY_READ;
    let write = read.with(Permissions::REGISTRY_WRITE);
    let policies = [
        (OWNER, Permissions::ALL),
        ("service", Permissions::SERVICE_CONNECT),
        ("device", Permissions::DEVICE_CONNECT),
        ("registryRead", read),
        ("registryReadWrite", write),
    ];
    let make = |(name, rights)| Policy {
        key_name: PolicyName::new(name).expect("the names above are valid"),
        keys: KeyPair::generate(entropy),
        rights,
    };
    policies.into_iter().map(make).collect()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
