//! What the hub tells of itself: devices created and deleted, connected and disconnected, twins changed.
//!
//! It deliberately does not know who reads: records stand in the store, by partition of their device, until retention
//! drops them. What tells of a change is written in the batch of that change, so that each is there exactly once.
//!
//! ```text
//!   registry, twins, presence ── change ──┐
//!                   Recorder ── record ───┴─> one batch ──> partition, 1  2  3  4 ... <── Events::read(after)
//!                                                                    └── dropped by age and count
//! ```
//!
//! Invariants:
//! - A record is there if and only if its change took effect, also over crashes.
//! - Sequence numbers of a partition are dense, in the order in which the changes took effect, and never reused.
//! - A deletion of a device stands for its modules too; if the device was recorded as connected, its disconnection
//!   comes right before.

mod record;
mod store;

use serde_json::json;

use super::code::ErrorCode;
use super::dates;
use super::identity::IdentityName;
use crate::model::{PartitionId, UtcMillis};

pub use record::{Draft, Recorder, Tally};
pub use store::{EventSettings, Events};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Connection,
    LifeCycle,
    Twin,
}

impl EventKind {
    pub const ALL: [Self; 3] = [Self::Connection, Self::LifeCycle, Self::Twin];

    /// In settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::LifeCycle => "lifecycle",
            Self::Twin => "twin",
        }
    }

    /// `iothub-message-source`.
    // IoT Hub, events section 1; modules have the source of devices in the current form.
    pub fn source(self) -> &'static str {
        match self {
            Self::Connection => "deviceConnectionStateEvents",
            Self::LifeCycle => "deviceLifecycleEvents",
            Self::Twin => "twinChangeEvents",
        }
    }

    /// `iothub-message-schema`.
    pub fn schema(self) -> &'static str {
        match self {
            Self::Connection => "deviceConnectionStateNotification",
            Self::LifeCycle => "deviceLifecycleNotification",
            Self::Twin => "twinChangeNotification",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operation {
    #[serde(rename = "createDeviceIdentity")]
    Create,
    #[serde(rename = "deleteDeviceIdentity")]
    Delete,
    #[serde(rename = "deviceConnected")]
    Connect,
    #[serde(rename = "deviceDisconnected")]
    Disconnect,
    #[serde(rename = "updateTwin")]
    UpdateTwin,
    #[serde(rename = "replaceTwin")]
    ReplaceTwin,
}

impl Operation {
    pub fn kind(self) -> EventKind {
        match self {
            Self::Create | Self::Delete => EventKind::LifeCycle,
            Self::Connect | Self::Disconnect => EventKind::Connection,
            Self::UpdateTwin | Self::ReplaceTwin => EventKind::Twin,
        }
    }

    /// `opType`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "createDeviceIdentity",
            Self::Delete => "deleteDeviceIdentity",
            Self::Connect => "deviceConnected",
            Self::Disconnect => "deviceDisconnected",
            Self::UpdateTwin => "updateTwin",
            Self::ReplaceTwin => "replaceTwin",
        }
    }
}

/// A record as it was read, with all that a message made of it carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub partition: PartitionId,
    /// From 1, dense within the partition; a gap before the first one read was dropped by retention.
    pub sequence: u64,
    pub operation: Operation,
    pub identity: IdentityName,
    pub at: UtcMillis,
    /// JSON text.
    pub body: String,
    hub_name: std::sync::Arc<str>,
}

impl Event {
    /// System properties by their names; of `x-opt-*` an endpoint has its own.
    // IoT Hub, events section 2.
    pub fn system_properties(&self) -> Vec<(&'static str, String)> {
        let mut properties = vec![
            ("content-type", "application/json".to_owned()),
            ("content-encoding", "utf-8".to_owned()),
            // The same however often the event is delivered.
            ("correlation-id", format!("{:x}-{:x}", self.partition.0, self.sequence)),
            ("user-id", self.hub_name.to_string()),
            ("iothub-connection-device-id", self.identity.device.as_str().to_owned()),
        ];
        if let Some(module) = &self.identity.module {
            properties.push(("iothub-connection-module-id", module.as_str().to_owned()));
        }
        properties.push(("iothub-enqueuedtime", dates::text(self.at, 3)));
        properties.push(("iothub-message-source", self.operation.kind().source().to_owned()));
        properties
    }

    // IoT Hub, events section 2.
    pub fn application_properties(&self) -> Vec<(&'static str, String)> {
        let mut properties = vec![("deviceId", self.identity.device.as_str().to_owned())];
        if let Some(module) = &self.identity.module {
            properties.push(("moduleId", module.as_str().to_owned()));
        }
        properties.extend([
            ("hubName", self.hub_name.to_string()),
            ("operationTimestamp", dates::text(self.at, 7)),
            ("iothub-message-schema", self.operation.kind().schema().to_owned()),
            ("opType", self.operation.name().to_owned()),
        ]);
        properties
    }

    /// For people and tools.
    pub fn to_json(&self) -> serde_json::Value {
        let object = |properties: Vec<(&'static str, String)>| {
            let members = properties
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into()));
            serde_json::Value::Object(members.collect())
        };
        json!({
            "partition": self.partition.0,
            "sequenceNumber": self.sequence,
            "systemProperties": object(self.system_properties()),
            "properties": object(self.application_properties()),
            "body": serde_json::from_str::<serde_json::Value>(&self.body).unwrap_or_default(),
        })
    }
}

/// Why events were not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EventError {
    #[error("there is no partition {0}")]
    NoPartition(u16),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

impl EventError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoPartition(_) => ErrorCode::ARGUMENT_INVALID,
            Self::State(_) => ErrorCode::SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests;
