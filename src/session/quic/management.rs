//! Management requests of a service: identities, policies and authorities, messages to devices, and consumer groups, as
//! JSON documents in the contract's shape.
//!
//! | operation | document | permission | answer |
//! | --- | --- | --- | --- |
//! | `device.create` | device identity | RegistryWrite | the stored identity |
//! | `device.get` | `{"deviceId"}` | RegistryRead | the identity |
//! | `device.update` | device identity with `etag` or `*` | RegistryWrite | the stored identity |
//! | `device.delete` | `{"deviceId", "etag"?}` | RegistryWrite | `{}` |
//! | `device.list` | `{"after"?, "limit"?}` | RegistryRead | a list of at most 1,000 identities |
//! | `device.regenerate` | `{"deviceId", "moduleId"?, "policyKey": "primaryKey", "secondaryKey" or "both"}` | RegistryWrite | `{"primaryKey", "secondaryKey"}` |
//! | `module.create`, `module.update` | module identity, with `etag` or `*` to update | RegistryWrite | the stored identity |
//! | `module.get` | `{"deviceId", "moduleId"}` | RegistryRead | the identity |
//! | `module.list` | `{"deviceId"}` | RegistryRead | a list of all modules of the device |
//! | `module.delete` | `{"deviceId", "moduleId", "etag"?}` | RegistryWrite | `{}` |
//! | `device.import` | `{"entries": [ExportImportDevice]}` | RegistryWrite | `{"created", "changed", "unchanged", "errors"}` |
//! | `device.export` | `{"after"?: {"deviceId", "moduleId"?}, "limit"?}` | RegistryWrite | `{"entries", "next"}` |
//! | `c2d.send` | `{"deviceId", "moduleId"?, "body" or "bodyBase64", "properties"?, "system"?}` | ServiceConnect | `{"sequenceNumber", "expiryTimeUtc"}`, once it is durable |
//! | `c2d.purge` | `{"deviceId", "moduleId"?}` | ServiceConnect | `{"deviceId", "moduleId", "totalMessagesPurged"}` |
//! | `method.invoke` | `{"deviceId", "moduleId"?, "methodName", "payload"?, "responseTimeoutInSeconds"?, "connectTimeoutInSeconds"?}` | ServiceConnect | `{"status", "payload"}` |
//! | `twin.get` | `{"deviceId", "moduleId"?}` | ServiceConnect | the twin |
//! | `twin.patch`, `twin.replace` | `{"deviceId", "moduleId"?, "etag"?, "twin": {"tags"?, "properties"?: {"desired"}}}` | ServiceConnect | the twin, once it is durable |
//! | `feedback.receive` | `{"waitSeconds"?}`, at most 60 | ServiceConnect | `{"lockToken", "records"}`, or `{}` when none came |
//! | `feedback.complete`, `feedback.abandon` | `{"lockToken"}` | ServiceConnect | `{}` |
//! | `group.create`, `group.delete` | `{"name"}` | ServiceConnect | `{}` |
//! | `group.list` | `{}` | ServiceConnect | a list of names |
//! | `event.list` | `{"partition", "after"?, "limit"?}` | ServiceConnect | `{"events": [...], "last"}`: the hub's own events behind a sequence number, and the number of the newest |
//! | `policy.list` | `{}` | all | a list of policies with their keys |
//! | `policy.get` | `{"keyName"}` | all | the policy |
//! | `policy.create` | `{"keyName", "rights", "primaryKey"?, "secondaryKey"?}` | all | the policy |
//! | `policy.update` | `{"keyName", "rights"}` | all | the policy, its keys as they were |
//! | `policy.regenerate` | `{"keyName", "policyKey": "primaryKey" or "secondaryKey"}` | all | the policy |
//! | `policy.delete` | `{"keyName"}`, not the owner's | all | `{}` |
//! | `authority.list` | `{}` | all | a list of authorities |
//! | `authority.create` | `{"name", "certificate": base64 of the DER, "isVerified"?}` | all | the authority |
//! | `authority.challenge` | `{"name"}` | all | `{"name", "challenge"}`: the common name of the proof |
//! | `authority.prove` | `{"name", "certificate"}`: signed by the authority for its challenge | all | the authority, verified |
//! | `authority.delete` | `{"name"}` | all | `{}` |
//! | `hub.get` | `{}` | ServiceConnect | `{"partitions": [{"id", "first", "next"}]}` |
//!
//! Permissions: `contract/identity-security.md` section 2; "all" of them for what can give rights. Errors carry the
//! contract's codes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::access;
use super::door::Door;
use super::modules;
use super::transfer;
use super::twins;
use crate::hub::auth::ServiceAuthenticated;
use crate::hub::events::{Event, EventError};
use crate::hub::method::{self, MethodError, MethodRequest, MethodResponse};
use crate::hub::outbox::Settlement;
use crate::hub::policy::Permissions;
use crate::hub::throttle::{self, Class};
use crate::hub::{DeviceIdentity, ErrorCode, GroupError, IdentityName, IfMatch, OutboxError, RegistryError, Throttled};
use crate::model::{ConsumerGroup, DeviceId, Message, ModuleId, PartitionId, SystemKey};
use crate::shard::timing::pass;
use crate::wire::control::{Request, Response};

/// Events of one answer.
const EVENTS_MAX: usize = 256;

/// Why a request failed.
pub(super) struct Refused {
    pub code: ErrorCode,
    pub reason: String,
}

impl Refused {
    pub(super) fn new(code: ErrorCode, reason: impl std::fmt::Display) -> Self {
        Self {
            code,
            reason: reason.to_string(),
        }
    }
}

impl From<RegistryError> for Refused {
    fn from(error: RegistryError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

impl From<GroupError> for Refused {
    fn from(error: GroupError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

impl From<EventError> for Refused {
    fn from(error: EventError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

impl From<OutboxError> for Refused {
    fn from(error: OutboxError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

impl From<Throttled> for Refused {
    fn from(throttled: Throttled) -> Self {
        Self {
            code: throttled.code(),
            reason: throttled.to_string(),
        }
    }
}

impl From<MethodError> for Refused {
    fn from(error: MethodError) -> Self {
        Self {
            code: error.code(),
            reason: error.to_string(),
        }
    }
}

pub(super) fn invalid(reason: impl std::fmt::Display) -> Refused {
    Refused {
        code: ErrorCode::ARGUMENT_INVALID,
        reason: reason.to_string(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceName {
    device_id: String,
    etag: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct QueueName {
    device_id: String,
    module_id: Option<String>,
}

impl QueueName {
    pub(super) fn new(device_id: String, module_id: Option<String>) -> Self {
        Self { device_id, module_id }
    }

    pub(super) fn read(&self) -> Result<IdentityName, Refused> {
        Ok(IdentityName {
            device: DeviceId::new(&self.device_id).map_err(invalid)?,
            module: self
                .module_id
                .as_deref()
                .map(ModuleId::new)
                .transpose()
                .map_err(invalid)?,
        })
    }
}

/// Whom a method is for; members of the method are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    device_id: String,
    module_id: Option<String>,
}

impl Target {
    fn read(self) -> Result<IdentityName, Refused> {
        QueueName {
            device_id: self.device_id,
            module_id: self.module_id,
        }
        .read()
    }
}

/// A message to a device. System properties have the names they have in routing queries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Command {
    device_id: String,
    module_id: Option<String>,
    body: Option<String>,
    body_base64: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    system: BTreeMap<String, String>,
}

impl Command {
    fn read(self) -> Result<(IdentityName, Message), Refused> {
        let name = QueueName {
            device_id: self.device_id,
            module_id: self.module_id,
        };
        let mut message = Message::new(match (self.body, self.body_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).map_err(invalid)?,
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => return Err(invalid("give body or bodyBase64")),
        });
        for (key, value) in self.system {
            let system = SystemKey::from_name(&key)
                .ok_or_else(|| invalid(format_args!("there is no system property {key:?}")))?;
            // Devices get them in headers.
            if value.chars().any(char::is_control) {
                return Err(invalid(format_args!("system property {key:?} has a control character")));
            }
            message = message.system(system, value);
        }
        message.properties = self.properties.into_iter().collect();
        Ok((name.read()?, message))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventPage {
    partition: u16,
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupName {
    name: String,
}

#[derive(Serialize)]
struct PartitionRange {
    id: u16,
    first: u64,
    next: u64,
}

#[derive(Serialize)]
struct HubDocument {
    partitions: Vec<PartitionRange>,
}

pub(super) async fn respond(door: &Arc<Door>, identity: &ServiceAuthenticated, request: &Request) -> Response {
    match answer(door, identity, request).await {
        Ok(json) => Response {
            status: 200,
            code: 0,
            json,
        },
        Err(Refused { code, reason }) => {
            let json = serde_json::json!({ "Message": format!("ErrorCode:{};{reason}", code.name) }).to_string();
            Response {
                status: code.http_status(),
                code: code.number,
                json,
            }
        }
    }
}

async fn answer(door: &Arc<Door>, identity: &ServiceAuthenticated, request: &Request) -> Result<String, Refused> {
    let permission = match request.operation.as_str() {
        // IoT Hub, jobs: import and export, which shows keys, need RegistryWrite.
        "device.create" | "device.update" | "device.delete" | "device.import" | "device.export"
        | "device.regenerate" | "module.create" | "module.update" | "module.delete" => Permissions::REGISTRY_WRITE,
        "device.get" | "device.list" | "module.get" | "module.list" => Permissions::REGISTRY_READ,
        "policy.list"
        | "policy.get"
        | "policy.create"
        | "policy.update"
        | "policy.regenerate"
        | "policy.delete"
        | "authority.list"
        | "authority.create"
        | "authority.challenge"
        | "authority.prove"
        | "authority.delete" => Permissions::ALL,
        "c2d.send" | "c2d.purge" | "method.invoke" | "twin.get" | "twin.patch" | "twin.replace"
        | "feedback.receive" | "feedback.complete" | "feedback.abandon" | "event.list" | "group.create"
        | "group.delete" | "group.list" | "hub.get" => Permissions::SERVICE_CONNECT,
        other => return Err(invalid(format_args!("there is no operation {other:?}"))),
    };
    if !identity.permissions.allow(permission) {
        let reason = format!("{} needs the permission {permission}", request.operation);
        return Err(Refused {
            code: ErrorCode::UNAUTHORIZED_ACCESS,
            reason,
        });
    }
    // IoT Hub, quotas and errors section 2.
    match request.operation.as_str() {
        operation if operation.starts_with("device.") || operation.starts_with("module.") => {
            pass(door.throttles.admit(Class::Registry, 1, Instant::now())).await?;
        }
        "c2d.send" => pass(door.throttles.admit_command(Instant::now(), door.clock.now())).await?,
        _ => {}
    }
    match request.operation.as_str() {
        "device.create" => {
            let wanted: DeviceIdentity = parse(&request.json)?;
            let now = door.clock.now();
            let changed = wait(|done| door.registry.create_device(wanted, now, done)).await??;
            Ok(json(&door.live.device(changed.identity, now)?))
        }
        "device.update" => {
            let wanted: DeviceIdentity = parse(&request.json)?;
            let if_match = if_match(Some(&wanted.etag));
            let now = door.clock.now();
            let changed = wait(|done| door.registry.update_device(wanted, if_match, now, done)).await??;
            door.router.identity_changed(&changed.change).await;
            Ok(json(&door.live.device(changed.identity, now)?))
        }
        "device.delete" => {
            let name: DeviceName = parse(&request.json)?;
            let device = DeviceId::new(&name.device_id).map_err(invalid)?;
            let if_match = if_match(name.etag.as_deref());
            let changed = wait(|done| door.registry.delete_device(&device, if_match, done)).await??;
            door.router.identity_changed(&changed.change).await;
            Ok("{}".into())
        }
        "device.get" => {
            let name: DeviceName = parse(&request.json)?;
            let device = DeviceId::new(&name.device_id).map_err(invalid)?;
            let found = door.registry.device(&device)?;
            Ok(json(&door.live.device(found, door.clock.now())?))
        }
        "device.list" => {
            let page: Page = parse(&request.json)?;
            let after = page
                .after
                .map(|after| DeviceId::new(&after))
                .transpose()
                .map_err(invalid)?;
            let now = door.clock.now();
            let found = door.registry.devices(after.as_ref(), page.limit.unwrap_or(1000))?;
            let devices: Result<Vec<_>, OutboxError> =
                found.into_iter().map(|device| door.live.device(device, now)).collect();
            Ok(json(&devices?))
        }
        operation if operation.starts_with("module.") || operation == "device.regenerate" => {
            modules::answer(door, operation, &request.json).await
        }
        operation if operation.starts_with("policy.") || operation.starts_with("authority.") => {
            access::answer(door, operation, &request.json).await
        }
        "device.import" => transfer::import(door, &request.json).await,
        "device.export" => transfer::export(door, parse(&request.json)?).await,
        "c2d.send" => {
            let (name, message) = parse::<Command>(&request.json)?.read()?;
            let now = door.clock.now();
            let queued = wait(|done| door.outboxes.enqueue(&name, &message, now, done)).await??;
            let expires = jiff::Timestamp::from_millisecond(queued.expires.0).unwrap_or_default();
            Ok(json(&serde_json::json!({
                "sequenceNumber": queued.sequence,
                "expiryTimeUtc": format!("{expires:.3}"),
            })))
        }
        "c2d.purge" => {
            let name = parse::<QueueName>(&request.json)?.read()?;
            let purged = wait(|done| door.outboxes.purge(&name, door.clock.now(), done)).await??;
            Ok(json(&serde_json::json!({
                "deviceId": name.device.as_str(),
                "moduleId": name.module.as_ref().map(ModuleId::as_str),
                "totalMessagesPurged": purged,
            })))
        }
        "event.list" => {
            let page: EventPage = parse(&request.json)?;
            let partition = PartitionId(page.partition);
            // First, so that it is not ahead of what is told: a reader that sees them equal has read all there was.
            let last = door.events.last(partition)?;
            let events = door
                .events
                .read(partition, page.after, page.limit.unwrap_or(EVENTS_MAX).min(EVENTS_MAX))?;
            let events: Vec<_> = events.iter().map(Event::to_json).collect();
            Ok(json(&serde_json::json!({ "events": events, "last": last })))
        }
        "method.invoke" => {
            // The request's own members are passed over here and the identity's there.
            let name = parse::<Target>(&request.json)?.read()?;
            let method = parse::<MethodRequest>(&request.json)?.check()?;
            method::find(&door.registry, &name)?;
            let bytes = throttle::method_bytes(method.payload.len());
            pass(door.throttles.admit(Class::MethodBytes, bytes, Instant::now())).await?;
            let answer = door.lines.invoke(&name, method).await?;
            Ok(json(&MethodResponse::from(answer)))
        }
        "twin.get" => twins::get(door, &request.json).await,
        "twin.patch" => twins::change(door, &request.json, twins::Way::Patch).await,
        "twin.replace" => twins::change(door, &request.json, twins::Way::Replace).await,
        "feedback.receive" => twins::receive_feedback(door, &request.json).await,
        "feedback.complete" => twins::settle_feedback(door, &request.json, Settlement::Complete).await,
        "feedback.abandon" => twins::settle_feedback(door, &request.json, Settlement::Abandon).await,
        "group.create" => {
            let group = group(&request.json)?;
            wait(|done| door.groups.create(&group, done)).await??;
            Ok("{}".into())
        }
        "group.delete" => {
            let group = group(&request.json)?;
            wait(|done| door.groups.delete(&group, done)).await??;
            Ok("{}".into())
        }
        "group.list" => {
            let groups = door.groups.list()?;
            Ok(json(&groups.iter().map(ConsumerGroup::as_str).collect::<Vec<_>>()))
        }
        "hub.get" => {
            let range = |partition: &Arc<crate::shard::router::Partition<crate::log::DiskStorage>>| PartitionRange {
                id: partition.view.partition().0,
                first: partition.view.first_retained().0,
                next: partition.view.durable().0,
            };
            Ok(json(&HubDocument {
                partitions: door.router.partitions().iter().map(range).collect(),
            }))
        }
        other => unreachable!("{other} has a permission above"),
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Refused> {
    serde_json::from_str(json).map_err(invalid)
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("these documents have text keys and no failing serializers")
}

fn group(json: &str) -> Result<ConsumerGroup, Refused> {
    let name: GroupName = parse(json)?;
    ConsumerGroup::new(&name.name).map_err(invalid)
}

pub(super) fn if_match(etag: Option<&str>) -> IfMatch {
    match etag {
        None | Some("" | "*") => IfMatch::Any,
        Some(etag) => IfMatch::Etag(etag.to_owned()),
    }
}

/// Waits for a callback without blocking the arbiter.
pub(super) async fn wait<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Result<T, Refused> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |value| drop(sender.send(value))));
    receiver.await.map_err(|_| Refused {
        code: ErrorCode::SERVER_ERROR,
        reason: "the store is closed".into(),
    })
}
