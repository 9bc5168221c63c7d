//! Direct methods (IoT Hub, twins and methods, section 2): what may be called, for how long, and what a call comes to.
//!
//! A call is never stored: it reaches a device that is connected and listens, or it fails.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::code::ErrorCode;
use super::identity::IdentityName;
use super::registry::{Registry, RegistryError};
use crate::state::StateError;

/// Of a method's name, characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Of the payload of a request or an answer, bytes of JSON.
pub const PAYLOAD_BYTES_MAX: usize = 128 * 1024;
/// Calls of one device or module at a time; more are refused.
// The contract gives the error, not the limit; texts in the wild say 10.
pub const CALLS_PER_TARGET_MAX: usize = 10;

const RESPONSE_SECONDS: std::ops::RangeInclusive<u32> = 5..=300;
const CONNECT_SECONDS_MAX: u32 = 300;

/// A request as services write it; members it does not know are passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MethodRequest {
    pub method_name: String,
    #[serde(default)]
    pub payload: Option<Box<RawValue>>,
    #[serde(default)]
    pub response_timeout_in_seconds: Option<u32>,
    #[serde(default)]
    pub connect_timeout_in_seconds: Option<u32>,
}

/// A call that may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodCall {
    pub name: String,
    /// JSON; empty for none.
    pub payload: String,
    /// From the moment the device has it.
    pub response_timeout: Duration,
    /// How long to wait for a device that is not connected.
    pub connect_timeout: Duration,
}

/// What the device said.
#[derive(Clone, Debug)]
pub struct MethodAnswer {
    pub status: i32,
    /// JSON; `None` where the device sent nothing.
    pub payload: Option<Box<RawValue>>,
}

/// An answer as services read it.
#[derive(Debug, Serialize)]
pub struct MethodResponse {
    pub status: i32,
    pub payload: Option<Box<RawValue>>,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MethodError {
    #[error("no such device")]
    DeviceNotFound,
    #[error("no such module")]
    ModuleNotFound,
    #[error("{0}")]
    Invalid(String),
    #[error("the payload of {bytes} bytes exceeds {PAYLOAD_BYTES_MAX}")]
    TooLarge { bytes: usize },
    /// Nobody listens for methods, or the one who did is gone.
    #[error("the device is not online, or does not listen for methods")]
    NotOnline,
    /// The device has the call; whether it did something is unknown.
    #[error("the device did not answer in time")]
    TimedOut,
    #[error("{CALLS_PER_TARGET_MAX} calls of this device are under way")]
    TooManyInFlight,
    #[error("too many calls wait for their devices to connect")]
    Busy,
    /// The device answered something that is no JSON, or too much of it.
    #[error("the device's answer cannot be passed on: {0}")]
    BadAnswer(String),
    #[error(transparent)]
    State(#[from] StateError),
}

/// How a call that reached the lines of devices ended; the value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodOutcome {
    Answered,
    NotOnline,
    TimedOut,
    /// Too many calls are under way or wait.
    Refused,
    BadAnswer,
}

impl MethodOutcome {
    pub const ALL: [Self; 5] = [
        Self::Answered,
        Self::NotOnline,
        Self::TimedOut,
        Self::Refused,
        Self::BadAnswer,
    ];

    pub fn of<T>(result: &Result<T, MethodError>) -> Self {
        match result {
            Ok(_) => Self::Answered,
            Err(MethodError::NotOnline) => Self::NotOnline,
            Err(MethodError::TimedOut) => Self::TimedOut,
            Err(MethodError::BadAnswer(_)) => Self::BadAnswer,
            Err(
                MethodError::TooManyInFlight
                | MethodError::Busy
                | MethodError::DeviceNotFound
                | MethodError::ModuleNotFound
                | MethodError::Invalid(_)
                | MethodError::TooLarge { .. }
                | MethodError::State(_),
            ) => Self::Refused,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotOnline => "not_online",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::BadAnswer => "bad_answer",
        }
    }
}

impl MethodError {
    // IoT Hub, twins and methods section 2.2.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DeviceNotFound => ErrorCode::DEVICE_NOT_FOUND,
            Self::ModuleNotFound => ErrorCode::MODULE_NOT_FOUND,
            Self::Invalid(_) => ErrorCode::ARGUMENT_INVALID,
            Self::TooLarge { .. } => ErrorCode::MESSAGE_TOO_LARGE,
            Self::NotOnline => ErrorCode::DEVICE_NOT_ONLINE,
            Self::TimedOut => ErrorCode::GATEWAY_TIMEOUT,
            Self::TooManyInFlight => ErrorCode::METHODS_IN_FLIGHT,
            Self::Busy => ErrorCode::SERVER_BUSY,
            Self::BadAnswer(_) => ErrorCode::BAD_GATEWAY,
            Self::State(_) => ErrorCode::SERVER_ERROR,
        }
    }
}

/// Whether there is somebody who could be called.
///
/// # Errors
/// `DeviceNotFound`, `ModuleNotFound`, or the store's.
pub fn find(registry: &Registry, name: &IdentityName) -> Result<(), MethodError> {
    let found = match &name.module {
        None => registry.device(&name.device).map(drop),
        Some(module) => registry.module(&name.device, module).map(drop),
    };
    found.map_err(|error| match (error, &name.module) {
        (RegistryError::State(error), _) => MethodError::State(error),
        (_, None) => MethodError::DeviceNotFound,
        (_, Some(_)) => MethodError::ModuleNotFound,
    })
}

impl MethodRequest {
    /// # Errors
    /// `Invalid` or `TooLarge`.
    pub fn check(self) -> Result<MethodCall, MethodError> {
        let name = &self.method_name;
        if name.is_empty() || name.len() > NAME_CHARS_MAX {
            let reason = format!("a method's name has 1 to {NAME_CHARS_MAX} characters");
            return Err(MethodError::Invalid(reason));
        }
        // IoT Hub, twins and methods section 2.1.
        if let Some(wrong) = name
            .chars()
            .find(|c| !c.is_ascii_graphic() || "$()<>@,;:\\\"/[]?={}".contains(*c))
        {
            return Err(MethodError::Invalid(format!("a method's name cannot have {wrong:?}")));
        }
        let response = self.response_timeout_in_seconds.unwrap_or(30);
        if !RESPONSE_SECONDS.contains(&response) {
            let reason = format!("responseTimeoutInSeconds is {response}, not 5 to 300");
            return Err(MethodError::Invalid(reason));
        }
        let connect = self.connect_timeout_in_seconds.unwrap_or(0);
        if connect > CONNECT_SECONDS_MAX {
            let reason = format!("connectTimeoutInSeconds is {connect}, not 0 to 300");
            return Err(MethodError::Invalid(reason));
        }
        let payload = self
            .payload
            .map_or_else(String::new, |payload| payload.get().to_owned());
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(MethodError::TooLarge { bytes: payload.len() });
        }
        Ok(MethodCall {
            name: self.method_name,
            payload,
            response_timeout: Duration::from_secs(response.into()),
            connect_timeout: Duration::from_secs(connect.into()),
        })
    }
}

impl MethodAnswer {
    /// What a device sent: JSON or nothing.
    ///
    /// # Errors
    /// `BadAnswer`.
    pub fn check(status: i32, payload: &str) -> Result<Self, MethodError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            let reason = format!("{} bytes, at most {PAYLOAD_BYTES_MAX}", payload.len());
            return Err(MethodError::BadAnswer(reason));
        }
        let payload = if payload.is_empty() {
            None
        } else {
            let parsed = serde_json::from_str(payload);
            Some(parsed.map_err(|error| MethodError::BadAnswer(error.to_string()))?)
        };
        Ok(Self { status, payload })
    }
}

impl From<MethodAnswer> for MethodResponse {
    fn from(answer: MethodAnswer) -> Self {
        Self {
            status: answer.status,
            payload: answer.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<MethodCall, MethodError> {
        serde_json::from_str::<MethodRequest>(json).unwrap().check()
    }

    #[test]
    fn requests_have_the_contracts_defaults_and_limits() {
        let call = check(r#"{"methodName": "reboot", "payload": {"b": 1.0, "a": 18446744073709551616}, "other": 1}"#);
        let expected = MethodCall {
            name: "reboot".into(),
            payload: r#"{"b": 1.0, "a": 18446744073709551616}"#.into(),
            response_timeout: Duration::from_secs(30),
            connect_timeout: Duration::ZERO,
        };
        assert_eq!(call.unwrap(), expected, "a payload is passed on as it was written");
        assert_eq!(check(r#"{"methodName": "a"}"#).unwrap().payload, "");
        assert_eq!(check(r#"{"methodName": "a", "payload": null}"#).unwrap().payload, "");
        let refused = |json: &str| check(json).unwrap_err().code().number;
        let name = |name: &str| refused(&serde_json::json!({ "methodName": name }).to_string());
        for wrong in ["", "a b", "a/b", "a?", "é", "a\t", &"n".repeat(101)] {
            assert_eq!(name(wrong), 400_004, "{wrong:?}");
        }
        let timeouts = |response: u32, connect: u32| {
            check(&format!(
                r#"{{"methodName": "a", "responseTimeoutInSeconds": {response}, "connectTimeoutInSeconds": {connect}}}"#
            ))
            .map_err(|error| error.code().number)
            .map(|call| (call.response_timeout.as_secs(), call.connect_timeout.as_secs()))
        };
        assert_eq!(timeouts(5, 0), Ok((5, 0)));
        assert_eq!(timeouts(300, 300), Ok((300, 300)));
        for (response, connect) in [(4, 0), (301, 0), (30, 301)] {
            assert_eq!(timeouts(response, connect), Err(400_004));
        }
        let long = |bytes: usize| {
            let payload = format!("\"{}\"", "x".repeat(bytes - 2));
            check(&format!(r#"{{"methodName": "a", "payload": {payload}}}"#)).map_err(|error| error.code().number)
        };
        assert!(long(PAYLOAD_BYTES_MAX).is_ok());
        assert_eq!(long(PAYLOAD_BYTES_MAX + 1), Err(413_001));
    }

    #[test]
    fn answers_are_json_or_nothing() {
        let check = |payload: &str| {
            MethodAnswer::check(200, payload)
                .map(|answer| serde_json::to_string(&MethodResponse::from(answer)).unwrap())
        };
        assert_eq!(check("").unwrap(), r#"{"status":200,"payload":null}"#);
        assert_eq!(
            check(r#"{"z":1,"a":[]}"#).unwrap(),
            r#"{"status":200,"payload":{"z":1,"a":[]}}"#
        );
        for wrong in ["{", "tru", "1 2", &format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX))] {
            assert_eq!(check(wrong).unwrap_err().code(), ErrorCode::BAD_GATEWAY);
        }
    }
}
