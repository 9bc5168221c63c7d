//! Identities: looked for, looked at, made, disabled, deleted; and queries over them.

use std::time::Instant;

use actix_web::HttpResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Console;
use super::denied::Denied;
use super::serve::{Call, json_answer};
use crate::http::{Refused, wait};
use crate::hub::connection_string::ConnectionString;
use crate::hub::identity::{AuthenticationKind, ConnectionState, Status};
use crate::hub::query::{Progress, Query, Search};
use crate::hub::registry::Wanted;
use crate::hub::throttle::Class;
use crate::hub::{DeviceIdentity, IfMatch, ModuleIdentity, RegistryError};
use crate::model::{DeviceId, UtcMillis};
use crate::shard::timing::pass;

/// Results of a page, unless fewer are asked for.
const PAGE_MAX: usize = 200;
/// Devices looked at for one page: some hundred milliseconds of one processor.
const VISITS_MAX: usize = 20_000;
/// Identities that a slice of a query looks at, and slices of one request: then it is told to go on.
const SLICE_VISITS: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Change {
    status: Status,
    status_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    query: String,
    continuation: Option<String>,
}

impl Console {
    pub(super) async fn device_list(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let after = call.query("after").map(|after| DeviceId::new(&after)).transpose();
        let after = after.map_err(|error| Denied::body(format_args!("after: the device id {error}")))?;
        let limit = match call.query("limit") {
            None => PAGE_MAX,
            Some(text) => text.parse().map_err(|_| Denied::body("limit is no number"))?,
        };
        let status = match call.query("status").as_deref() {
            None | Some("") => None,
            Some("enabled") => Some(Status::Enabled),
            Some("disabled") => Some(Status::Disabled),
            Some(_) => return Err(Denied::body("status is neither enabled nor disabled")),
        };
        let state = match call.query("connection").as_deref() {
            None | Some("") => None,
            Some("connected") => Some(ConnectionState::Connected),
            Some("disconnected") => Some(ConnectionState::Disconnected),
            Some(_) => return Err(Denied::body("connection is neither connected nor disconnected")),
        };
        let wanted = Wanted {
            contains: call.query("contains").unwrap_or_default(),
            limit: limit.clamp(1, PAGE_MAX),
            visits_max: VISITS_MAX,
        };
        self.throttle(Class::Registry).await?;
        let (registry, live, now) = (self.parts.registry.clone(), self.parts.live.clone(), self.now());
        let router = self.parts.router.clone();
        let page = self
            .walk(move || -> Result<Value, Refused> {
                let page = registry.browse(after.as_ref(), &wanted, |device| -> Result<bool, Refused> {
                    if status.is_some_and(|status| device.status != status) {
                        return Ok(false);
                    }
                    match state {
                        None => Ok(true),
                        Some(state) => Ok(live.device(device.clone(), now)?.connection_state == state),
                    }
                })?;
                let mut devices = Vec::with_capacity(page.devices.len());
                for device in page.devices {
                    let device = live.device(device, now)?;
                    let partition = router.partition_of(&device.device_id);
                    devices.push(json!({
                        "deviceId": device.device_id.as_str(),
                        "status": device.status,
                        "connectionState": device.connection_state,
                        "lastActivityTime": device.last_activity_time.map(|time| time.0),
                        "cloudToDeviceMessageCount": device.cloud_to_device_message_count,
                        "authenticationType": device.authentication.kind,
                        "partition": partition.0,
                    }));
                }
                let statistics = registry.statistics()?;
                Ok(json!({
                    "devices": devices,
                    "visited": page.visited,
                    "next": page.next.as_ref().map(DeviceId::as_str),
                    "total": statistics.enabled + statistics.disabled,
                }))
            })
            .await??;
        Ok(json_answer(&page))
    }

    pub(super) async fn device_get(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let id = call.device()?;
        self.throttle(Class::Registry).await?;
        let device = self.parts.live.device(self.parts.registry.device(&id)?, self.now())?;
        let modules = self.parts.registry.modules(&id)?;
        let modules: Result<Vec<_>, _> = modules
            .into_iter()
            .map(|module| self.parts.live.module(module, self.now()))
            .collect();
        Ok(json_answer(&self.device_document(&device, &modules?)))
    }

    /// An identity without what proves it.
    fn device_document(&self, device: &DeviceIdentity, modules: &[ModuleIdentity]) -> Value {
        let time = |time: Option<UtcMillis>| time.map(|time| time.0);
        let modules: Vec<_> = modules
            .iter()
            .map(|module| {
                json!({
                    "moduleId": module.module_id.as_str(),
                    "managedBy": module.managed_by,
                    "connectionState": module.connection_state,
                    "lastActivityTime": time(module.last_activity_time),
                    "cloudToDeviceMessageCount": module.cloud_to_device_message_count,
                    "authenticationType": module.authentication.kind,
                })
            })
            .collect();
        json!({
            "deviceId": device.device_id.as_str(),
            "generationId": device.generation_id.to_string(),
            "etag": device.etag,
            "status": device.status,
            "statusReason": device.status_reason,
            "statusUpdatedTime": time(device.status_updated_time),
            "connectionState": device.connection_state,
            "connectionStateUpdatedTime": time(device.connection_state_updated_time),
            "lastActivityTime": time(device.last_activity_time),
            "cloudToDeviceMessageCount": device.cloud_to_device_message_count,
            "authenticationType": device.authentication.kind,
            "thumbprints": device.authentication.x509_thumbprint.iter().collect::<Vec<_>>(),
            "iotEdge": device.capabilities.iot_edge,
            "deviceScope": device.device_scope,
            "partition": self.parts.router.partition_of(&device.device_id).0,
            "modules": modules,
        })
    }

    pub(super) async fn device_keys(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let id = call.device()?;
        self.throttle(Class::Registry).await?;
        let keys = self.parts.registry.device(&id)?.authentication.symmetric_key;
        let host = self.parts.host_names.first().map_or("localhost", String::as_str);
        let string = |key: &Option<String>| {
            let key = key.as_deref()?;
            Some(ConnectionString::for_device(host, id.as_str(), key).to_string())
        };
        call.did("the keys of a device were shown", id.as_str());
        Ok(json_answer(&json!({
            "primaryKey": keys.primary_key,
            "secondaryKey": keys.secondary_key,
            "primaryConnectionString": string(&keys.primary_key),
            "secondaryConnectionString": string(&keys.secondary_key),
        })))
    }

    pub(super) async fn device_create(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        struct New {
            device_id: String,
            authentication_type: Option<AuthenticationKind>,
        }
        let new: New = call.json()?;
        let id = DeviceId::new(&new.device_id).map_err(|error| Denied::body(format_args!("the device id {error}")))?;
        let mut device = DeviceIdentity::new(id.clone());
        device.authentication.kind = new.authentication_type.unwrap_or_default();
        self.throttle(Class::Registry).await?;
        let now = self.now();
        let registry = &self.parts.registry;
        let created = wait(|done| registry.create_device(device, now, done)).await??;
        self.parts.router.identity_changed(&created.change).await;
        call.did("a device was created", id.as_str());
        Ok(HttpResponse::Created().json(self.device_document(&created.identity, &[])))
    }

    /// Enables or disables.
    pub(super) async fn device_change(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let (id, if_match, change) = (call.device()?, call.if_match()?, call.json::<Change>()?);
        self.throttle(Class::Registry).await?;
        let mut wanted = self.parts.registry.device(&id)?;
        // What was read is written back but for the status: only if nobody changed it since.
        let read = IfMatch::Etag(wanted.etag.clone());
        if let IfMatch::Etag(etag) = if_match
            && etag != wanted.etag
        {
            return Err(RegistryError::PreconditionFailed.into());
        }
        wanted.status = change.status;
        wanted.status_reason = change.status_reason.filter(|reason| !reason.is_empty());
        let now = self.now();
        let registry = &self.parts.registry;
        let changed = wait(|done| registry.update_device(wanted, read, now, done)).await??;
        self.parts.router.identity_changed(&changed.change).await;
        call.did("the status of a device was changed", id.as_str());
        let device = self.parts.live.device(changed.identity, now)?;
        let modules = self.parts.registry.modules(&id)?;
        Ok(json_answer(&self.device_document(&device, &modules)))
    }

    pub(super) async fn device_delete(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let (id, if_match) = (call.device()?, call.if_match()?);
        self.throttle(Class::Registry).await?;
        let changed = wait(|done| self.parts.registry.delete_device(&id, if_match, done)).await??;
        self.parts.router.identity_changed(&changed.change).await;
        call.did("a device was deleted", id.as_str());
        Ok(HttpResponse::NoContent().finish())
    }

    pub(super) async fn query(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let question: Question = call.json()?;
        let query = Query::parse(&question.query).map_err(Refused::invalid)?;
        self.throttle(Class::Queries).await?;
        let registry = self.parts.registry.clone();
        let continuation = question.continuation.as_deref();
        let mut search = Search::new(registry, &question.query, query, PAGE_MAX / 2, continuation)?;
        loop {
            let progress;
            // Slice by slice, so that searches take turns.
            (search, progress) = self
                .walk(move || {
                    let progress = search.advance(SLICE_VISITS);
                    (search, progress)
                })
                .await?;
            if let Progress::Page(page) = progress? {
                return Ok(json_answer(&json!({
                    "items": page.items,
                    "itemType": page.item_type,
                    "continuation": page.continuation,
                })));
            }
        }
    }

    /// Waits until one operation of a class may be made.
    pub(super) async fn throttle(&self, class: Class) -> Result<(), Denied> {
        self.throttle_units(class, 1).await
    }

    pub(super) async fn throttle_units(&self, class: Class, units: u64) -> Result<(), Denied> {
        Ok(pass(self.parts.throttles.admit(class, units, Instant::now())).await?)
    }
}
