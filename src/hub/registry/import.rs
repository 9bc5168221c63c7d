//! Many new devices in one batch of the store: what makes an import fast.

use std::collections::HashSet;

use super::{
    ChangeKind, Changed, DeviceIdentity, GENERATION_KEY, Registry, RegistryError, count_key, created, device_changed,
    put_twin,
};
use crate::hub::decide::{decide, decode, encode};
use crate::hub::events::Tally;
use crate::hub::identity::Status;
use crate::hub::twin::InitialTwin;
use crate::model::UtcMillis;
use crate::state::{Expected, State, Table, WriteBatch};

/// A device as an import asks for it.
#[derive(Clone, Debug)]
pub struct NewDevice {
    pub identity: DeviceIdentity,
    pub twin: InitialTwin,
}

/// What became of one device of an import.
#[derive(Clone, Debug, PartialEq)]
pub enum Imported {
    Created(Box<Changed<DeviceIdentity>>),
    /// It was there, as it was asked for: an import that is started again does nothing twice.
    Unchanged,
}

/// One for each device, in order.
type Outcomes = Vec<Result<Imported, RegistryError>>;

impl Registry {
    /// Creates those devices that are not there, all in one batch. A device that is there and differs is `DeviceExists`.
    pub fn create_devices(
        &self,
        wanted: Vec<NewDevice>,
        now: UtcMillis,
        done: impl FnOnce(Result<Outcomes, RegistryError>) + Send + 'static,
    ) {
        let new = wanted.into_iter().map(|NewDevice { identity, twin }| {
            let has_keys = identity.authentication.symmetric_key.iter().next().is_some();
            let (device, twin) = self.new_device(identity, twin, now)?;
            Ok((self.device_key(&device.device_id), device, twin, has_keys))
        });
        let new: Vec<Result<_, RegistryError>> = new.collect();
        let registry = self.clone();
        let attempt = move |state: &dyn State| {
            let (mut batch, mut tally) = (WriteBatch::new(), Tally::default());
            let mut outcomes = Outcomes::with_capacity(new.len());
            let mut seen = HashSet::new();
            let (mut enabled, mut disabled, mut generation) = (0, 0, None);
            for one in &new {
                let (key, device, twin, has_keys) = match one {
                    Ok(one) => one,
                    Err(error) => {
                        outcomes.push(Err(error.clone()));
                        continue;
                    }
                };
                if !seen.insert(key) {
                    outcomes.push(Err(RegistryError::DeviceExists));
                    continue;
                }
                if let Some(raw) = state.get(Table::Devices, key)? {
                    let stored: DeviceIdentity = decode(&raw)?;
                    let is_same = is_as_asked(&stored, device, *has_keys);
                    outcomes.push(
                        is_same
                            .then_some(Imported::Unchanged)
                            .ok_or(RegistryError::DeviceExists),
                    );
                    continue;
                }
                batch = batch.expect(Table::Devices, key.clone(), Expected::Absent).put(
                    Table::Devices,
                    key.clone(),
                    encode(device),
                );
                batch = put_twin(batch, key, twin.as_ref());
                match device.status {
                    Status::Enabled => enabled += 1,
                    Status::Disabled => disabled += 1,
                }
                generation = generation.max(Some(device.generation_id));
                let changed = device_changed(device.clone(), ChangeKind::Created);
                let (partition, name) = (registry.partition(&device.device_id), &changed.change.identity);
                let (with_event, one) = created(&registry.recorder, partition, name, twin.as_ref(), now, batch);
                batch = with_event;
                tally += one;
                outcomes.push(Ok(Imported::Created(Box::new(changed))));
            }
            if let Some(generation) = generation {
                batch = batch
                    .add(Table::Meta, count_key(Status::Enabled), enabled)
                    .add(Table::Meta, count_key(Status::Disabled), disabled)
                    .put(Table::Meta, GENERATION_KEY, encode(&generation.0));
            }
            Ok((batch, (tally, outcomes)))
        };
        decide(&self.state, Box::new(attempt), self.recorder.counted(Box::new(done)));
    }
}

/// Whether creating `wanted` would have led to `stored`. Keys that were not given were made by the hub: any will do.
fn is_as_asked(stored: &DeviceIdentity, wanted: &DeviceIdentity, has_keys: bool) -> bool {
    let mut authentication = wanted.authentication.clone();
    if !has_keys && authentication.kind == stored.authentication.kind {
        authentication.symmetric_key = stored.authentication.symmetric_key.clone();
    }
    authentication == stored.authentication
        && wanted.status == stored.status
        && wanted.status_reason == stored.status_reason
        && wanted.capabilities == stored.capabilities
        && wanted.device_scope == stored.device_scope
        && wanted.parent_scopes == stored.parent_scopes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::hub::bulk::{self, Entry};
    use crate::hub::entropy::testing::Counting;
    use crate::hub::registry::Statistics;
    use crate::hub::twin::{ServiceSide, Twins};
    use crate::hub::{ErrorCode, IdentityName};
    use crate::model::DeviceId;
    use crate::state::{MemoryState, blocking};

    const NOW: UtcMillis = UtcMillis(1_700_000_000_123);
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";

    fn registry(state: &Arc<MemoryState>) -> Registry {
        Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap()
    }

    fn import(registry: &Registry, lines: &[Value]) -> Vec<Result<Imported, RegistryError>> {
        let new = lines.iter().map(|line| {
            let entry: Entry = serde_json::from_value(line.clone()).unwrap();
            let device = entry.name().unwrap().device;
            entry.into_device(device)
        });
        let new = new.collect();
        blocking(|done| registry.create_devices(new, NOW, done))
            .unwrap()
            .unwrap()
    }

    fn what(outcomes: &[Result<Imported, RegistryError>]) -> Vec<&'static str> {
        let what = |outcome: &Result<Imported, RegistryError>| match outcome {
            Ok(Imported::Created(_)) => "created",
            Ok(Imported::Unchanged) => "unchanged",
            Err(error) => error.code().name,
        };
        outcomes.iter().map(what).collect()
    }

    #[test]
    fn an_import_twice_is_an_import_once() {
        let state = MemoryState::new();
        let registry = registry(&state);
        let lines = [
            json!({ "id": "a", "authentication": { "symmetricKey": { "primaryKey": KEY, "secondaryKey": KEY } } }),
            json!({ "id": "b", "status": "disabled", "tags": { "floor": 1 } }),
            json!({ "id": "c", "tags": { "bad key": 1 } }),
            json!({ "id": "a" }),
        ];
        let first = import(&registry, &lines);
        assert_eq!(
            what(&first),
            ["created", "created", "ArgumentInvalid", "DeviceAlreadyExists"]
        );
        let before: Vec<_> = registry.devices(None, 10).unwrap();
        assert_eq!(
            what(&import(&registry, &lines)),
            ["unchanged", "unchanged", "ArgumentInvalid", "DeviceAlreadyExists"]
        );
        assert_eq!(registry.devices(None, 10).unwrap(), before);
        assert_eq!(
            registry.statistics().unwrap(),
            Statistics {
                enabled: 1,
                disabled: 1
            }
        );
        let differs = [json!({ "id": "a", "status": "disabled" }), json!({ "id": "d" })];
        assert_eq!(what(&import(&registry, &differs)), ["DeviceAlreadyExists", "created"]);
        // What was given out is never given out again.
        let highest = before.iter().map(|device| device.generation_id).max().unwrap();
        let again = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
        let made = again.create_device_blocking(DeviceIdentity::new(DeviceId::new("e").unwrap()), NOW);
        assert!(made.unwrap().identity.generation_id > highest);
    }

    #[test]
    fn a_batch_is_there_as_a_whole_or_not_at_all() {
        let state = MemoryState::new();
        let registry = registry(&state);
        state.hold(10);
        let lines: Vec<_> = (0..50)
            .map(|n| json!({ "id": format!("d{n}"), "tags": { "n": n } }))
            .collect();
        let new = lines.iter().map(|line| {
            let entry: Entry = serde_json::from_value(line.clone()).unwrap();
            let device = entry.name().unwrap().device;
            entry.into_device(device)
        });
        registry.create_devices(new.collect(), NOW, |_| panic!("the process died before the answer"));
        state.crash();
        assert_eq!(registry.devices(None, 100).unwrap().len(), 0);
        assert_eq!(registry.statistics().unwrap(), Statistics::default());
    }

    /// What is exported creates the same again in another hub.
    #[test]
    fn an_export_is_an_import() {
        let state = MemoryState::new();
        let registry = registry(&state);
        let twins = Twins::new(state.clone(), registry.clone());
        let lines: Vec<_> = (0..20)
            .map(|n| {
                json!({
                    "id": format!("d{n}"),
                    "status": if n % 3 == 0 { "disabled" } else { "enabled" },
                    "tags": { "n": n },
                    "properties": { "desired": { "o": { "p": n } }, "reported": { "r": [n] } },
                })
            })
            .collect();
        import(&registry, &lines);
        for module in ["m", "n"] {
            let entry = json!({ "id": "d7", "moduleId": module, "tags": { "of": module } });
            let entry: Entry = serde_json::from_value(entry).unwrap();
            let outcome = blocking(|done| entry.start(&registry, &twins, NOW, done)).unwrap();
            assert!(outcome.is_ok());
        }
        let name = IdentityName::device(DeviceId::new("d5").unwrap());
        let twin = twins.get(&name).unwrap();
        let identity = registry.device(&name.device).unwrap();
        let shown = serde_json::to_value(ServiceSide::of_device(&identity, &twin)).unwrap();
        // IoT Hub, life cycle: a twin begins with these, whatever it begins with.
        assert_eq!((&shown["version"], &shown["etag"]), (&json!(2), &json!("AAAAAAAAAAE=")));
        assert_eq!(shown["properties"]["desired"]["$version"], 1);
        assert_eq!(
            shown["properties"]["desired"]["$metadata"]["o"]["p"]["$lastUpdatedVersion"],
            1
        );

        let export = |registry: &Registry, entries_max, bytes_max| {
            let (mut all, mut after) = (Vec::<Entry>::new(), None);
            loop {
                let page = bulk::export(registry, after.as_ref(), entries_max, bytes_max).unwrap();
                assert!(page.len() <= entries_max);
                let Some(last) = page.last() else { return all };
                after = Some(last.name().unwrap());
                all.extend(page);
            }
        };
        let all = export(&registry, 3, usize::MAX);
        assert_eq!(all.len(), 22);
        assert_eq!(all, export(&registry, 1000, 1), "pages end with their bytes as well");

        let copy_state = MemoryState::new();
        let copy = Registry::open(copy_state.clone(), Arc::new(Counting::default()), 4).unwrap();
        let copied_twins = Twins::new(copy_state, copy.clone());
        for entry in &all {
            let outcome = blocking(|done| entry.clone().start(&copy, &copied_twins, NOW, done)).unwrap();
            assert!(outcome.is_ok(), "{outcome:?}");
        }
        let without_etags = |mut all: Vec<Entry>| {
            all.iter_mut().for_each(|entry| entry.e_tag = None);
            all
        };
        assert_eq!(
            without_etags(export(&copy, 100, usize::MAX)),
            without_etags(all.clone())
        );
        // Started again, it meets what it did.
        let module = all.iter().find(|entry| entry.module_id.is_some()).unwrap();
        let again = blocking(|done| module.clone().start(&copy, &copied_twins, NOW, done)).unwrap();
        let code = again.unwrap_err().code;
        assert_eq!(code, ErrorCode::MODULE_ALREADY_EXISTS);
        assert!(module.is_done(&copy, code));
    }
}
