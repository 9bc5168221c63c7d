//! What the hub remembers of a device's MQTT session between its connections: to what it subscribed.
//!
//! A session that is to be kept is kept on disk, since SDKs subscribe once and never again, whatever happens to the hub
//! (IoT Hub, SDKs, section 1). It is one record an identity, under the key of its twin, and costs no memory.
//!
//! Invariants:
//! - What was put is durable when it is answered.
//! - A session is of one life of an identity: it is removed with it, and one of an earlier life is none.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decide::{decide, decode, encode};
use super::identity::IdentityName;
use super::json;
use super::registry::Registry;
use crate::model::{Generation, UtcMillis};
use crate::state::{Expected, State, StateError, Table, WriteBatch};

/// One subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub filter: String,
    /// The quality of service that was granted.
    pub qos: u8,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    pub filters: Vec<Subscription>,
    /// When the session ends if its device does not come back; `None`: never.
    pub expires: Option<UtcMillis>,
}

/// As it is stored, in JSON.
#[derive(Serialize, Deserialize)]
struct Record {
    generation: u64,
    filters: Vec<Subscription>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
}

/// Why a session was not kept, or not found out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unkept {
    #[error("the identity is gone")]
    Gone,
    #[error(transparent)]
    State(#[from] StateError),
}

/// The sessions of all identities. Cloning shares them.
#[derive(Clone)]
pub struct Subscriptions {
    state: Arc<dyn State>,
    registry: Registry,
}

impl Subscriptions {
    pub fn new(state: Arc<dyn State>, registry: Registry) -> Self {
        Self { state, registry }
    }

    /// The session of this life of an identity, if one is kept that has not expired.
    ///
    /// # Errors
    /// The store's.
    pub fn get(
        &self,
        name: &IdentityName,
        generation: Generation,
        now: UtcMillis,
    ) -> Result<Option<Remembered>, Unkept> {
        let (_, key) = self.registry.identity_key(name);
        let Some(raw) = self.state.get(Table::Subscriptions, &key)? else {
            return Ok(None);
        };
        let record: Record = decode(&raw)?;
        let expires = record.expires.map(UtcMillis);
        let is_kept = record.generation == generation.0 && expires.is_none_or(|at| now < at);
        Ok(is_kept.then_some(Remembered {
            filters: record.filters,
            expires,
        }))
    }

    /// Keeps a session in place of what was kept before. `done` is called once it is durable, or refused; also when this
    /// life of the identity is over.
    pub fn put(
        &self,
        name: &IdentityName,
        generation: Generation,
        remembered: Remembered,
        done: impl FnOnce(Result<(), Unkept>) + Send + 'static,
    ) {
        let (_, key) = self.registry.identity_key(name);
        let record = Record {
            generation: generation.0,
            filters: remembered.filters,
            expires: remembered.expires.map(|at| at.0),
        };
        let record = encode(&record);
        self.write(name, generation, done, move |batch| {
            batch.put(Table::Subscriptions, key.clone(), record.clone())
        });
    }

    /// Ends a session. `done` is called once that is durable, or refused; also when this life of the identity is over.
    pub fn forget(
        &self,
        name: &IdentityName,
        generation: Generation,
        done: impl FnOnce(Result<(), Unkept>) + Send + 'static,
    ) {
        let (_, key) = self.registry.identity_key(name);
        self.write(name, generation, done, move |batch| {
            batch.delete(Table::Subscriptions, key.clone())
        });
    }

    /// Writes if the identity still lives: a connection that ends late must not touch the session of the next life.
    fn write(
        &self,
        name: &IdentityName,
        generation: Generation,
        done: impl FnOnce(Result<(), Unkept>) + Send + 'static,
        change: impl Fn(WriteBatch) -> WriteBatch + Send + 'static,
    ) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Life {
            #[serde(with = "json::generation")]
            generation_id: Generation,
        }
        let (table, key) = self.registry.identity_key(name);
        let attempt = move |state: &dyn State| -> Result<_, Unkept> {
            let raw = state.get(table, &key)?.ok_or(Unkept::Gone)?;
            if decode::<Life>(&raw)?.generation_id != generation {
                return Err(Unkept::Gone);
            }
            let unchanged = WriteBatch::default().expect(table, key.clone(), Expected::Value(raw));
            Ok((change(unchanged), ()))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::entropy::testing::Counting;
    use crate::hub::identity::{DeviceIdentity, ModuleIdentity};
    use crate::hub::registry::IfMatch;
    use crate::model::{DeviceId, ModuleId};
    use crate::state::{MemoryState, blocking};

    const NOW: UtcMillis = UtcMillis(1_700_000_000_000);

    struct Hub {
        registry: Registry,
        subscriptions: Subscriptions,
    }

    impl Hub {
        fn new(state: Arc<dyn State>) -> Self {
            let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
            Self {
                subscriptions: Subscriptions::new(state, registry.clone()),
                registry,
            }
        }

        fn create(&self) -> Generation {
            let wanted = DeviceIdentity::new(device().device);
            self.registry
                .create_device_blocking(wanted, NOW)
                .unwrap()
                .identity
                .generation_id
        }

        fn put(&self, name: IdentityName, generation: Generation, remembered: &Remembered) -> Result<(), Unkept> {
            let remembered = remembered.clone();
            blocking(|done| self.subscriptions.put(&name, generation, remembered, done)).unwrap()
        }

        fn get(&self, generation: Generation, now: UtcMillis) -> Option<Remembered> {
            self.subscriptions.get(&device(), generation, now).unwrap()
        }
    }

    fn device() -> IdentityName {
        IdentityName::device(DeviceId::new("d").unwrap())
    }

    fn remembered(expires: Option<UtcMillis>) -> Remembered {
        let subscription = |filter: &str, qos| Subscription {
            filter: filter.to_owned(),
            qos,
        };
        Remembered {
            filters: vec![subscription("$iothub/twin/res/#", 0), subscription("a", 1)],
            expires,
        }
    }

    #[test]
    fn a_session_survives_the_hub_and_ends_when_it_is_forgotten() {
        let state = MemoryState::new();
        let hub = Hub::new(state.clone());
        let generation = hub.create();
        assert_eq!(hub.get(generation, NOW), None);
        hub.put(device(), generation, &remembered(None)).unwrap();
        let hub = Hub::new(state);
        assert_eq!(hub.get(generation, NOW), Some(remembered(None)));
        blocking(|done| hub.subscriptions.forget(&device(), generation, done))
            .unwrap()
            .unwrap();
        assert_eq!(hub.get(generation, NOW), None);
    }

    #[test]
    fn a_session_expires() {
        let hub = Hub::new(MemoryState::new());
        let generation = hub.create();
        let until = remembered(Some(UtcMillis(NOW.0 + 1)));
        hub.put(device(), generation, &until).unwrap();
        assert_eq!(hub.get(generation, NOW), Some(until));
        assert_eq!(hub.get(generation, UtcMillis(NOW.0 + 1)), None);
    }

    #[test]
    fn a_session_is_of_one_life_of_its_identity() {
        let hub = Hub::new(MemoryState::new());
        let first = hub.create();
        let module = ModuleIdentity::new(device().device, ModuleId::new("m").unwrap());
        let of_module = hub.registry.create_module_blocking(module, NOW).unwrap().identity;
        let module = IdentityName {
            module: Some(of_module.module_id),
            ..device()
        };
        hub.put(device(), first, &remembered(None)).unwrap();
        hub.put(module.clone(), of_module.generation_id, &remembered(None))
            .unwrap();
        hub.registry
            .delete_device_blocking(&device().device, IfMatch::Any)
            .unwrap();
        let late = hub.put(device(), first, &remembered(None));
        assert!(matches!(late, Err(Unkept::Gone)), "{late:?}");
        let second = hub.create();
        for (name, generation) in [(device(), first), (device(), second), (module, of_module.generation_id)] {
            assert_eq!(hub.subscriptions.get(&name, generation, NOW).unwrap(), None);
        }
        // A connection of the life before ends late.
        hub.put(device(), second, &remembered(None)).unwrap();
        let late = hub.put(device(), first, &Remembered::default());
        assert!(matches!(late, Err(Unkept::Gone)), "{late:?}");
        let late = blocking(|done| hub.subscriptions.forget(&device(), first, done)).unwrap();
        assert!(matches!(late, Err(Unkept::Gone)), "{late:?}");
        assert_eq!(hub.get(second, NOW), Some(remembered(None)));
    }
}
