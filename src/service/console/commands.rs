//! The way to a device: messages that wait for it, and methods that are called on it.

use std::collections::BTreeMap;
use std::time::Instant;

use actix_web::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::Console;
use super::denied::Denied;
use super::serve::{Call, json_answer};
use crate::http::wait;
use crate::hub::method::{self, MethodRequest};
use crate::hub::throttle::{self, Class};
use crate::model::{Message, SystemKey};
use crate::shard::timing::pass;

/// A message as the form has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Command {
    body: String,
    /// The body is base64 of the message's bytes.
    #[serde(default)]
    is_base64: bool,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    message_id: Option<String>,
    content_type: Option<String>,
    /// `none`, `positive`, `negative` or `full`.
    ack: Option<String>,
    /// Seconds; the hub's default without it.
    ttl_seconds: Option<u32>,
}

impl Console {
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let name = call.identity()?;
        let command: Command = call.json()?;
        let body = if command.is_base64 {
            let decoded = STANDARD.decode(command.body.trim());
            decoded.map_err(|error| Denied::body(format_args!("the body is no base64: {error}")))?
        } else {
            command.body.into_bytes()
        };
        let now = self.now();
        let expiry = command.ttl_seconds.map(|seconds| {
            let at = now.0.saturating_add(i64::from(seconds) * 1000);
            let at = jiff::Timestamp::from_millisecond(at).unwrap_or(jiff::Timestamp::MAX);
            format!("{at:.3}")
        });
        let mut message = Message::new(body);
        for (key, value) in [
            (SystemKey::MessageId, command.message_id),
            (SystemKey::ContentType, command.content_type),
            (SystemKey::Ack, command.ack),
            (SystemKey::AbsoluteExpiryTime, expiry),
        ] {
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                continue;
            };
            // Devices get them in headers.
            if value.chars().any(char::is_control) {
                return Err(Denied::body(format_args!("{} has a control character", key.name())));
            }
            message = message.system(key, value);
        }
        message.properties = command.properties.into_iter().collect();
        pass(self.parts.throttles.admit_command(Instant::now(), now)).await?;
        let outboxes = &self.parts.outboxes;
        let queued = wait(|done| outboxes.enqueue(&name, &message, now, done)).await??;
        call.did("a message was queued for a device", name.device.as_str());
        Ok(json_answer(&json!({
            "sequenceNumber": queued.sequence,
            "expires": queued.expires.0,
            "waiting": outboxes.depth(&name, now)?,
        })))
    }

    pub(super) async fn purge(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let name = call.identity()?;
        let now = self.now();
        let purged = wait(|done| self.parts.outboxes.purge(&name, now, done)).await??;
        call.did("the queue of a device was purged", name.device.as_str());
        Ok(json_answer(&json!({ "purged": purged })))
    }

    pub(super) async fn invoke(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let name = call.identity()?;
        let method = call.json::<MethodRequest>()?.check()?;
        method::find(&self.parts.registry, &name)?;
        let units = throttle::method_bytes(method.payload.len());
        self.throttle_units(Class::MethodBytes, units).await?;
        call.did("a method was invoked on a device", name.device.as_str());
        let begun = Instant::now();
        let answer = self.parts.lines.invoke(&name, method).await?;
        let elapsed = begun.elapsed().as_secs_f64() * 1000.0;
        // As text, so that the browser shows what the device sent, digit for digit.
        let payload = answer.payload.as_ref().map(|payload| payload.get());
        Ok(json_answer(
            &json!({ "status": answer.status, "payload": payload, "elapsedMs": elapsed }),
        ))
    }
}
