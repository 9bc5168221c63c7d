//! What goes wrong, in the words of AMQP and of the hubs.

use std::borrow::Cow;

use super::value::Writer;

/// An error condition: a symbol from the standard or from a vendor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition(Cow<'static, str>);

macro_rules! conditions {
    ($($name:ident = $text:literal,)*) => {
        impl Condition {
            $(pub const $name: Self = Self(Cow::Borrowed($text));)*

            /// Every condition the hub gives.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

// AMQP 1.0 s2.8.15 to s2.8.18; IoT Hub, AMQP section 7.
conditions! {
    INTERNAL_ERROR = "amqp:internal-error",
    NOT_FOUND = "amqp:not-found",
    UNAUTHORIZED = "amqp:unauthorized-access",
    DECODE_ERROR = "amqp:decode-error",
    RESOURCE_LIMIT_EXCEEDED = "amqp:resource-limit-exceeded",
    NOT_ALLOWED = "amqp:not-allowed",
    ILLEGAL_STATE = "amqp:illegal-state",
    INVALID_FIELD = "amqp:invalid-field",
    NOT_IMPLEMENTED = "amqp:not-implemented",
    PRECONDITION_FAILED = "amqp:precondition-failed",
    CONNECTION_FORCED = "amqp:connection:forced",
    FRAMING_ERROR = "amqp:connection:framing-error",
    WINDOW_VIOLATION = "amqp:session:window-violation",
    ERRANT_LINK = "amqp:session:errant-link",
    HANDLE_IN_USE = "amqp:session:handle-in-use",
    UNATTACHED_HANDLE = "amqp:session:unattached-handle",
    DETACH_FORCED = "amqp:link:detach-forced",
    TRANSFER_LIMIT_EXCEEDED = "amqp:link:transfer-limit-exceeded",
    MESSAGE_SIZE_EXCEEDED = "amqp:link:message-size-exceeded",
    REDIRECT = "amqp:link:redirect",
    STOLEN = "amqp:link:stolen",
    TIMEOUT = "com.microsoft:timeout",
    SERVER_BUSY = "com.microsoft:server-busy",
    ARGUMENT_ERROR = "com.microsoft:argument-error",
    ARGUMENT_OUT_OF_RANGE = "com.microsoft:argument-out-of-range",
    MESSAGE_LOCK_LOST = "com.microsoft:message-lock-lost",
    DEVICE_ALREADY_EXISTS = "com.microsoft:device-already-exists",
    THROTTLED = "com.microsoft:device-container-throttled",
    QUOTA_EXCEEDED = "com.microsoft:quota-exceeded",
    HUB_NOT_FOUND = "com.microsoft:iot-hub-not-found-error",
    LINK_CREATION_CONFLICT = "com.microsoft:link-creation-conflict",
}

impl Condition {
    /// One that a peer sent.
    pub fn new(name: &str) -> Self {
        match Self::ALL.iter().find(|known| known.0 == name) {
            Some(known) => known.clone(),
            None => Self(Cow::Owned(name.to_owned())),
        }
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// For metrics: of the closed set above.
    pub fn label(&self) -> &'static str {
        match &self.0 {
            Cow::Borrowed(name) => name,
            Cow::Owned(_) => "other",
        }
    }
}

/// A value of an error's info map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    Text(String),
    Int(i32),
}

impl Info {
    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Text(text) => writer.string(text),
            Self::Int(number) => writer.int(*number),
        }
    }
}

/// Why a delivery, link, session or connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub condition: Condition,
    pub description: String,
    /// Symbols and what they stand for.
    pub info: Vec<(&'static str, Info)>,
}

impl Error {
    pub fn new(condition: Condition, description: impl Into<String>) -> Self {
        Self {
            condition,
            description: description.into(),
            info: Vec::new(),
        }
    }

    #[must_use]
    pub fn with(mut self, key: &'static str, value: Info) -> Self {
        self.info.push((key, value));
        self
    }
}
