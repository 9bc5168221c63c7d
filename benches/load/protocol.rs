//! What the devices of a measurement speak. Not every scenario is measured over all of them.

use clap::ValueEnum;
use serde::Serialize;

/// Of a scenario that every protocol has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Quic,
    Mqtt,
    Amqp,
}

/// Of a scenario for devices that have a connection of their own each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceProtocol {
    #[default]
    Quic,
    Mqtt,
}

impl DeviceProtocol {
    /// The hub's metrics call its door so.
    pub fn label(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Mqtt => "mqtt",
        }
    }
}
