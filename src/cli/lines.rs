//! How one message of the log looks to a person, and as a line of JSON.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::client::service::Event;
use crate::model::{PartitionId, UtcMillis};

/// Renders messages one a line, either way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    pub json: bool,
}

impl Lines {
    /// The message's line, without its end.
    pub fn line(self, partition: PartitionId, event: &Event<'_>) -> String {
        if self.json {
            serde_json::to_string(&document(partition, event)).expect("a document has text keys")
        } else {
            text(partition, event)
        }
    }
}

/// Milliseconds always, so that times of a column align and sort as text.
pub(super) fn time(time: UtcMillis) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => time.0.to_string(),
    }
}

/// Text of a device on its way to a terminal: control characters, which could move the cursor or worse, are escaped.
pub(super) struct Visible<'a>(pub &'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            // Bidirectional overrides turn what is read around without being seen.
            if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
            {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

fn text(partition: PartitionId, event: &Event<'_>) -> String {
    let origin = &event.origin;
    let mut sender = Visible(&origin.device_id).to_string();
    if !origin.module_id.is_empty() {
        let _ = write!(sender, "/{}", Visible(&origin.module_id));
    }
    let place = format!("{partition}/{}", event.sequence);
    let mut line = format!("{}  {place:<10}  {sender:<16}  ", time(event.enqueued_time));
    let _ = match std::str::from_utf8(event.message.body()) {
        Ok(body) => write!(line, "{}", Visible(body)),
        Err(_) => write!(line, "base64:{}", STANDARD.encode(event.message.body())),
    };
    let system = event.message.system().map(|(key, value)| (key.name(), value));
    let mut before = "  ";
    for (name, value) in event.message.properties().chain(system) {
        let _ = write!(line, "{before}{}={}", Visible(name), Visible(value));
        before = " ";
    }
    line
}

/// One message as JSON; members in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    sequence: u64,
    partition: u16,
    offset: String,
    enqueued_time: String,
    device_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    module_id: &'a str,
    /// What the device set and what the hub stamped, by the names a reader of the built-in endpoint sees.
    system_properties: Map<String, Value>,
    properties: Map<String, Value>,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Body<'a> {
    #[serde(rename = "body")]
    Text(&'a str),
    #[serde(rename = "bodyBase64")]
    Binary(String),
}

fn document<'a>(partition: PartitionId, event: &'a Event<'a>) -> Document<'a> {
    let origin = &event.origin;
    let message = &event.message;
    let map = |(name, value): (&str, &str)| (name.to_owned(), Value::from(value));
    let generation = origin.generation.to_string();
    let stamped = [
        ("iothub-connection-auth-method", origin.auth_method.as_str()),
        ("iothub-connection-auth-generation-id", generation.as_str()),
    ];
    let set = message.system().map(|(key, value)| (key.name(), value));
    Document {
        sequence: event.sequence.0,
        partition: partition.0,
        offset: event.sequence.to_string(),
        enqueued_time: time(event.enqueued_time),
        device_id: &origin.device_id,
        module_id: &origin.module_id,
        system_properties: set.chain(stamped).map(map).collect(),
        properties: message.properties().map(map).collect(),
        body: match std::str::from_utf8(message.body()) {
            Ok(text) => Body::Text(text),
            Err(_) => Body::Binary(STANDARD.encode(message.body())),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::model::{Message, SequenceNumber, SystemKey};
    use crate::wire::message::{MessageRef, encode};
    use crate::wire::stamp::Origin;

    fn line(json: bool, module: &str, message: &Message) -> String {
        let mut archive = Vec::new();
        encode(message, &mut archive);
        let event = Event {
            sequence: SequenceNumber(17),
            enqueued_time: UtcMillis(1_767_225_600_050),
            origin: Arc::new(Origin {
                device_id: "dev-1".into(),
                module_id: module.into(),
                generation: 3,
                epoch: 1,
                auth_method: r#"{"scope":"device"}"#.into(),
            }),
            message: MessageRef::check(&archive).unwrap(),
        };
        Lines { json }.line(PartitionId(2), &event)
    }

    #[test]
    fn a_line_has_time_place_sender_body_and_properties() {
        let message = Message::new("hot").property("level", "5").system(SystemKey::To, "x");
        assert_eq!(
            line(false, "", &message),
            "2026-01-01T00:00:00.050Z  2/17        dev-1             hot  level=5 to=x"
        );
        assert!(line(false, "mod", &message).contains("dev-1/mod "));
    }

    #[test]
    fn what_a_device_writes_cannot_steer_the_terminal() {
        let line = line(
            false,
            "",
            &Message::new("a\u{1b}[2Jb\r\n").property("\u{202e}p", "\u{7}"),
        );
        assert!(line.ends_with(r"a\u{1b}[2Jb\r\n  \u{202e}p=\u{7}"), "{line}");
    }

    #[test]
    fn json_has_contract_names_and_any_body() {
        let message = Message::new("21.5")
            .property("a", "b")
            .system(SystemKey::ContentType, "text/plain");
        let document: Value = serde_json::from_str(&line(true, "mod", &message)).unwrap();
        assert_eq!(
            document,
            json!({
                "sequence": 17, "partition": 2, "offset": "17", "enqueuedTime": "2026-01-01T00:00:00.050Z",
                "deviceId": "dev-1", "moduleId": "mod", "body": "21.5", "properties": {"a": "b"},
                "systemProperties": {
                    "content-type": "text/plain",
                    "iothub-connection-auth-method": "{\"scope\":\"device\"}",
                    "iothub-connection-auth-generation-id": "3",
                },
            })
        );
        let document: Value = serde_json::from_str(&line(true, "", &Message::new([0xff, 0]))).unwrap();
        assert_eq!(document["bodyBase64"], "/wA=");
        assert!(document.get("body").is_none() && document.get("moduleId").is_none());
    }
}
