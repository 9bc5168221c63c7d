//! Messages to devices over HTTPS: one a request, under a lock that the next request settles.

use std::borrow::Cow;

use super::Devices;
use crate::http::answer::time;
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::IdentityName;
use crate::hub::outbox::{Delivered, Settlement};
use crate::hub::sas::percent_encode;
use crate::model::{Message, SystemKey};

impl Devices {
    // IoT Hub, HTTPS section 3.3. `iothub-messagelocktimeout` is accepted and not looked at: the lock is 60 s.
    pub(super) async fn receive(&self, call: &Call, name: &IdentityName) -> Result<Answer, Refused> {
        let mut delivered = wait(|done| self.outboxes.receive(name, 1, call.now(), done)).await??;
        Ok(delivered.pop().map_or_else(Answer::no_content, answer))
    }

    pub(super) async fn settle(
        &self,
        call: &Call,
        name: &IdentityName,
        settlement: Settlement,
    ) -> Result<Answer, Refused> {
        let token = call.lock_token(4)?;
        wait(|done| self.outboxes.settle(name, token, settlement, call.now(), done)).await??;
        Ok(Answer::no_content())
    }
}

fn answer(delivered: Delivered) -> Answer {
    let Message {
        system,
        properties,
        body,
    } = delivered.message;
    let mut answer = Answer::bytes(200, body)
        .etag(&delivered.token.to_string())
        .header("iothub-sequencenumber", &delivered.sequence.to_string())
        .header("iothub-deliverycount", &delivered.delivery_count.to_string())
        .header("iothub-enqueuedtime", &time(delivered.enqueued))
        .header("iothub-expiry", &time(delivered.expires));
    for (key, value) in &system {
        for name in header_names(*key) {
            answer = answer.header(name, value);
        }
    }
    for (name, value) in &properties {
        answer = answer.header(&format!("iothub-app-{}", field_text(name)), &field_text(value));
    }
    answer
}

/// What no header can carry goes percent-encoded.
// IoT Hub, message format section 7: the characters that stand for themselves.
fn field_text(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(percent_encode(text))
}

/// Under which names a device finds a system property; two where the SDKs differ.
fn header_names(key: SystemKey) -> &'static [&'static str] {
    match key {
        SystemKey::MessageId => &["iothub-messageid"],
        SystemKey::CorrelationId => &["iothub-correlationid"],
        SystemKey::UserId => &["iothub-userid"],
        SystemKey::To => &["iothub-to"],
        SystemKey::Ack => &["iothub-ack"],
        SystemKey::ContentType => &["contenttype", "iothub-contenttype"],
        SystemKey::ContentEncoding => &["contentencoding", "iothub-contentencoding"],
        SystemKey::MessageSchema => &["iothub-messageschema"],
        SystemKey::Operation => &["iothub-operation"],
        SystemKey::CreationTimeUtc => &["iothub-creationtimeutc"],
        SystemKey::InterfaceId => &["iothub-interface-id"],
        SystemKey::Subject => &["dt-subject"],
        // The expiry in force is told with the delivery.
        SystemKey::AbsoluteExpiryTime
        | SystemKey::OutputName
        | SystemKey::DiagnosticId
        | SystemKey::CorrelationContext
        | SystemKey::DataSchema => &[],
    }
}
