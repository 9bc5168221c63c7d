//! One device or module at a time, lists, and figures of the whole registry.

use super::{Rest, walk};
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::registry::LIST_MAX;
use crate::hub::{DeviceIdentity, ErrorCode, IfMatch, ModuleIdentity, OutboxError};

impl Rest {
    pub(super) fn device_get(&self, call: &Call) -> Result<Answer, Refused> {
        let device = self.registry.device(&call.device()?)?;
        Ok(device_answer(&self.live.device(device, call.now())?))
    }

    /// Without `If-Match` it creates, with it it replaces.
    pub(super) async fn device_put(&self, call: Call) -> Result<Answer, Refused> {
        let device = call.device()?;
        let if_match = call.if_match();
        let wanted: DeviceIdentity = call.json().await?;
        if wanted.device_id != device {
            return Err(Refused::invalid("deviceId in the body is not that of the path"));
        }
        let now = call.now();
        let changed = match if_match {
            None => wait(|done| self.registry.create_device(wanted, now, done)).await??,
            Some(if_match) => wait(|done| self.registry.update_device(wanted, if_match, now, done)).await??,
        };
        self.router.identity_changed(&changed.change).await;
        Ok(device_answer(&self.live.device(changed.identity, now)?))
    }

    pub(super) async fn device_delete(&self, call: &Call) -> Result<Answer, Refused> {
        let (device, if_match) = (call.device()?, required(call)?);
        let changed = wait(|done| self.registry.delete_device(&device, if_match, done)).await??;
        self.router.identity_changed(&changed.change).await;
        Ok(Answer::no_content())
    }

    // IoT Hub, HTTPS section 5: `top` 1 to 1000, absent or out of range is 1000; there is no next page.
    pub(super) async fn device_list(&self, call: Call) -> Result<Answer, Refused> {
        let top = call.query("top").and_then(|top| top.parse().ok());
        let top = top.filter(|top| (1..=LIST_MAX).contains(top)).unwrap_or(LIST_MAX);
        let (registry, live, now) = (self.registry.clone(), self.live.clone(), call.now());
        let list = move || -> Result<Vec<DeviceIdentity>, Refused> {
            let devices = registry.devices(None, top)?.into_iter();
            Ok(devices
                .map(|device| live.device(device, now))
                .collect::<Result<_, _>>()?)
        };
        Ok(Answer::json(200, &walk(list).await??))
    }

    pub(super) fn module_get(&self, call: &Call) -> Result<Answer, Refused> {
        let module = self.registry.module(&call.device()?, &call.module()?)?;
        Ok(module_answer(200, &self.live.module(module, call.now())?))
    }

    pub(super) async fn module_put(&self, call: Call) -> Result<Answer, Refused> {
        let (device, module) = (call.device()?, call.module()?);
        let if_match = call.if_match();
        let wanted: ModuleIdentity = call.json().await?;
        if wanted.device_id != device || wanted.module_id != module {
            return Err(Refused::invalid(
                "deviceId or moduleId in the body is not that of the path",
            ));
        }
        let now = call.now();
        let (status, changed) = match if_match {
            None => (201, wait(|done| self.registry.create_module(wanted, now, done)).await??),
            Some(if_match) => (
                200,
                wait(|done| self.registry.update_module(wanted, if_match, done)).await??,
            ),
        };
        self.router.identity_changed(&changed.change).await;
        Ok(module_answer(status, &self.live.module(changed.identity, now)?))
    }

    pub(super) async fn module_delete(&self, call: &Call) -> Result<Answer, Refused> {
        let (device, module, if_match) = (call.device()?, call.module()?, required(call)?);
        let changed = wait(|done| self.registry.delete_module(&device, &module, if_match, done)).await??;
        self.router.identity_changed(&changed.change).await;
        Ok(Answer::no_content())
    }

    pub(super) fn module_list(&self, call: &Call) -> Result<Answer, Refused> {
        let device = call.device()?;
        self.registry.device(&device)?;
        let modules = self.registry.modules(&device)?.into_iter();
        let live: Result<Vec<_>, OutboxError> = modules.map(|module| self.live.module(module, call.now())).collect();
        Ok(Answer::json(200, &live?))
    }

    pub(super) async fn statistics(&self) -> Result<Answer, Refused> {
        let registry = self.registry.clone();
        let statistics = walk(move || registry.statistics()).await??;
        Ok(Answer::json(
            200,
            &serde_json::json!({
                "totalDeviceCount": statistics.enabled + statistics.disabled,
                "enabledDeviceCount": statistics.enabled,
                "disabledDeviceCount": statistics.disabled,
            }),
        ))
    }
}

// IoT Hub, identity: a delete says which version it means.
fn required(call: &Call) -> Result<IfMatch, Refused> {
    call.if_match()
        .ok_or_else(|| Refused::new(ErrorCode::PRECONDITION_FAILED, "If-Match is missing"))
}

fn device_answer(device: &DeviceIdentity) -> Answer {
    Answer::json(200, device).etag(&device.etag)
}

fn module_answer(status: u16, module: &ModuleIdentity) -> Answer {
    Answer::json(status, module).etag(&module.etag)
}
