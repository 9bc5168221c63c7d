//! Management requests about twins and about what became of messages to devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::door::Door;
use super::management::{QueueName, Refused, if_match, invalid, json, parse, wait};
use crate::hub::feedback::{FeedbackBatch, FeedbackError};
use crate::hub::outbox::{LockToken, Settlement};
use crate::hub::throttle::Class;
use crate::hub::twin::{ServiceSide, TwinError};
use crate::hub::{ErrorCode, IdentityName, Twin, TwinUpdate};
use crate::shard::timing::pass;

/// How long a request may wait for feedback, seconds.
const WAIT_SECONDS_MAX: u32 = 60;
/// How often the queue is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl From<TwinError> for Refused {
    fn from(error: TwinError) -> Self {
        Self::new(error.code(), error)
    }
}

impl From<FeedbackError> for Refused {
    fn from(error: FeedbackError) -> Self {
        Self::new(error.code(), error)
    }
}

/// How a request changes a twin.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Patch,
    Replace,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Change {
    device_id: String,
    module_id: Option<String>,
    etag: Option<String>,
    twin: Box<RawValue>,
}

pub(super) async fn get(door: &Door, request: &str) -> Result<String, Refused> {
    let name = parse::<QueueName>(request)?.read()?;
    pass(door.throttles.admit(Class::TwinReads, 1, Instant::now())).await?;
    view(door, &name, &door.twins.get(&name)?)
}

pub(super) async fn change(door: &Door, request: &str, way: Way) -> Result<String, Refused> {
    let change: Change = parse(request)?;
    let name = QueueName::new(change.device_id, change.module_id).read()?;
    let update = TwinUpdate::from_json(change.twin.get().as_bytes()).map_err(invalid)?;
    let condition = if_match(change.etag.as_deref());
    pass(door.throttles.admit(Class::TwinUpdates, 1, Instant::now())).await?;
    let (name_of_write, now) = (name.clone(), door.clock.now());
    let changed = match way {
        Way::Patch => wait(|done| door.twins.patch(name_of_write, update, condition, now, done)).await??,
        Way::Replace => wait(|done| door.twins.replace(name_of_write, update, condition, now, done)).await??,
    };
    view(door, &name, &changed.twin)
}

fn view(door: &Door, name: &IdentityName, twin: &Twin) -> Result<String, Refused> {
    let now = door.clock.now();
    Ok(match &name.module {
        None => {
            let identity = door.live.device(door.registry.device(&name.device)?, now)?;
            json(&ServiceSide::of_device(&identity, twin))
        }
        Some(module) => {
            let identity = door.live.module(door.registry.module(&name.device, module)?, now)?;
            json(&ServiceSide::of_module(&identity, twin))
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Receive {
    #[serde(default)]
    wait_seconds: u32,
}

/// The next batch, as soon as there is one.
pub(super) async fn receive_feedback(door: &Arc<Door>, request: &str) -> Result<String, Refused> {
    let Receive { wait_seconds } = parse(request)?;
    if wait_seconds > WAIT_SECONDS_MAX {
        return Err(invalid(format_args!(
            "waitSeconds is {wait_seconds}, not 0 to {WAIT_SECONDS_MAX}"
        )));
    }
    let until = Instant::now() + Duration::from_secs(wait_seconds.into());
    loop {
        let batch = wait(|done| door.feedbacks.receive(door.clock.now(), done)).await??;
        match batch {
            Some(FeedbackBatch { token, records, .. }) => {
                return Ok(json(
                    &serde_json::json!({ "lockToken": token.to_string(), "records": records }),
                ));
            }
            None if Instant::now() + LOOK_EVERY > until || door.shutdown.is_stopping() => return Ok("{}".into()),
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Settle {
    lock_token: String,
}

pub(super) async fn settle_feedback(door: &Door, request: &str, settlement: Settlement) -> Result<String, Refused> {
    let Settle { lock_token } = parse(request)?;
    let token: LockToken = lock_token
        .parse()
        .map_err(|_| Refused::new(ErrorCode::LOCK_LOST, "no such lock"))?;
    wait(|done| door.feedbacks.settle(token, settlement, door.clock.now(), done)).await??;
    Ok("{}".into())
}
