//! Management requests about modules, and about the keys of devices and modules.

use serde::Deserialize;

use super::access::slots;
use super::door::Door;
use super::management::{QueueName, Refused, if_match, invalid, json, parse, wait};
use crate::hub::{ModuleIdentity, OutboxError};
use crate::model::{DeviceId, ModuleId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Name {
    device_id: String,
    module_id: String,
    etag: Option<String>,
}

impl Name {
    fn read(&self) -> Result<(DeviceId, ModuleId), Refused> {
        let device = DeviceId::new(&self.device_id).map_err(|error| invalid(format_args!("the device id {error}")))?;
        let module = ModuleId::new(&self.module_id).map_err(|error| invalid(format_args!("the module id {error}")))?;
        Ok((device, module))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OfDevice {
    device_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rotation {
    device_id: String,
    module_id: Option<String>,
    policy_key: String,
}

pub(super) async fn answer(door: &Door, operation: &str, request: &str) -> Result<String, Refused> {
    let now = door.clock.now();
    match operation {
        "module.create" => {
            let wanted: ModuleIdentity = parse(request)?;
            let changed = wait(|done| door.registry.create_module(wanted, now, done)).await??;
            Ok(json(&door.live.module(changed.identity, now)?))
        }
        "module.get" => {
            let (device, module) = parse::<Name>(request)?.read()?;
            let found = door.registry.module(&device, &module)?;
            Ok(json(&door.live.module(found, now)?))
        }
        "module.list" => {
            let OfDevice { device_id } = parse(request)?;
            let device = DeviceId::new(&device_id).map_err(|error| invalid(format_args!("the device id {error}")))?;
            door.registry.device(&device)?;
            let modules = door.registry.modules(&device)?.into_iter();
            let live: Result<Vec<_>, OutboxError> = modules.map(|module| door.live.module(module, now)).collect();
            Ok(json(&live?))
        }
        "module.update" => {
            let wanted: ModuleIdentity = parse(request)?;
            let if_match = if_match(Some(&wanted.etag));
            let changed = wait(|done| door.registry.update_module(wanted, if_match, done)).await??;
            door.router.identity_changed(&changed.change).await;
            Ok(json(&door.live.module(changed.identity, now)?))
        }
        "module.delete" => {
            let name: Name = parse(request)?;
            let (device, module) = name.read()?;
            let if_match = if_match(name.etag.as_deref());
            let changed = wait(|done| door.registry.delete_module(&device, &module, if_match, done)).await??;
            door.router.identity_changed(&changed.change).await;
            Ok("{}".into())
        }
        "device.regenerate" => {
            let Rotation {
                device_id,
                module_id,
                policy_key,
            } = parse(request)?;
            let name = QueueName::new(device_id, module_id).read()?;
            let slots = slots(&policy_key)?;
            let (keys, change) = wait(|done| door.registry.regenerate_keys(&name, slots, done)).await??;
            door.router.identity_changed(&change).await;
            Ok(json(&keys))
        }
        other => unreachable!("{other} is not among this file's operations"),
    }
}
