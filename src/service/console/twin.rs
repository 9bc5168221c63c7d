//! Twins: read, and written as a whole or in parts.
//!
//! Sections go to the browser as text, and come back as text: its numbers have 53 bits, a twin's have 64.

use actix_web::HttpResponse;
use actix_web::http::Method;
use serde_json::{Value, json};

use super::Console;
use super::denied::Denied;
use super::serve::{Call, json_answer};
use crate::http::{Refused, wait};
use crate::hub::throttle::Class;
use crate::hub::twin::ServiceSide;
use crate::hub::{IdentityName, Twin, TwinUpdate};

impl Console {
    pub(super) async fn twin_get(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let name = call.identity()?;
        self.throttle(Class::TwinReads).await?;
        let twin = self.parts.twins.get(&name)?;
        self.twin_answer(&name, &twin)
    }

    pub(super) async fn twin_change(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let (name, if_match) = (call.identity()?, call.if_match()?);
        let update = TwinUpdate::from_json(&call.body).map_err(|error| Denied::of_json(&error))?;
        self.throttle(Class::TwinUpdates).await?;
        let (twins, now) = (&self.parts.twins, self.now());
        let changed = if call.is_method(&Method::PUT) {
            wait(|done| twins.replace(name.clone(), update, if_match, now, done)).await??
        } else {
            wait(|done| twins.patch(name.clone(), update, if_match, now, done)).await??
        };
        call.did("a twin was changed", name.device.as_str());
        self.twin_answer(&name, &changed.twin)
    }

    fn twin_answer(&self, name: &IdentityName, twin: &Twin) -> Result<HttpResponse, Denied> {
        let (registry, live, now) = (&self.parts.registry, &self.parts.live, self.now());
        let document = match &name.module {
            None => {
                let identity = live.device(registry.device(&name.device)?, now)?;
                serde_json::to_value(ServiceSide::of_device(&identity, twin))
            }
            Some(module) => {
                let identity = live.module(registry.module(&name.device, module)?, now)?;
                serde_json::to_value(ServiceSide::of_module(&identity, twin))
            }
        };
        let mut document = document.map_err(Refused::invalid)?;
        let updated = |section: &str| document["properties"][section]["$metadata"]["$lastUpdated"].clone();
        let section = |section: &str, members: &serde_json::Map<String, Value>, version: u64| {
            let text = serde_json::to_string_pretty(members).unwrap_or_default();
            json!({ "text": text, "version": version, "updated": updated(section) })
        };
        let properties = json!({
            "desired": section("desired", &twin.desired.members, twin.desired.version),
            "reported": section("reported", &twin.reported.members, twin.reported.version),
        });
        document["properties"] = properties;
        document["tags"] = json!({ "text": serde_json::to_string_pretty(&twin.tags).unwrap_or_default() });
        Ok(json_answer(&document))
    }
}
