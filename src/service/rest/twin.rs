//! Twins of devices and modules: read, patched, replaced.

use super::Rest;
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::twin::{ServiceSide, TwinChanged, TwinError};
use crate::hub::{IdentityName, IfMatch, Twin, TwinUpdate};
use crate::model::UtcMillis;

/// How a request changes a twin.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Patch,
    Replace,
}

impl Rest {
    pub(super) fn twin_get(&self, call: &Call) -> Result<Answer, Refused> {
        let name = call.identity()?;
        let twin = self.twins.get(&name)?;
        self.twin_answer(&name, &twin, call.now())
    }

    // IoT Hub, HTTPS section 7: without `If-Match` the update is unconditional.
    pub(super) async fn twin_change(&self, call: Call, way: Way) -> Result<Answer, Refused> {
        let name = call.identity()?;
        let if_match = call.if_match().unwrap_or(IfMatch::Any);
        let update = call.json_by(TwinUpdate::from_json).await?;
        let now = call.now();
        let changed: TwinChanged = match way {
            Way::Patch => wait(|done| self.twins.patch(name.clone(), update, if_match, now, done)).await??,
            Way::Replace => wait(|done| self.twins.replace(name.clone(), update, if_match, now, done)).await??,
        };
        self.twin_answer(&name, &changed.twin, now)
    }

    fn twin_answer(&self, name: &IdentityName, twin: &Twin, now: UtcMillis) -> Result<Answer, Refused> {
        let answer = match &name.module {
            None => {
                let identity = self.live.device(self.registry.device(&name.device)?, now)?;
                Answer::json(200, &ServiceSide::of_device(&identity, twin))
            }
            Some(module) => {
                let identity = self.live.module(self.registry.module(&name.device, module)?, now)?;
                Answer::json(200, &ServiceSide::of_module(&identity, twin))
            }
        };
        Ok(answer.etag(&twin.etag()))
    }
}

impl From<TwinError> for Refused {
    fn from(error: TwinError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
