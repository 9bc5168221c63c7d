//! Answers and refusals in the contract's form: status, error bodies, tracking headers.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::hub::{AuthError, ErrorCode, OutboxError, RegistryError, Throttled};
use crate::model::UtcMillis;

// IoT Hub, HTTPS section 1.
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const ERROR_CODE: HeaderName = HeaderName::from_static("iothub-errorcode");
const TRACKING_ID: HeaderName = HeaderName::from_static("iothub-servicetrackingid");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

/// What a client that was told to come back later should wait.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A date-time as general parsers accept it.
pub fn time(at: UtcMillis) -> String {
    let time = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
    format!("{time:.3}")
}

/// A request did what it was for.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    etag: Option<String>,
    /// Of the error that a body of its own form tells of.
    error: Option<ErrorCode>,
    body: Option<(HeaderValue, Vec<u8>)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Answer {
    pub fn no_content() -> Self {
        Self {
            status: 204,
            etag: None,
            error: None,
            body: None,
            headers: Vec::new(),
        }
    }

    pub fn json(status: u16, document: &impl Serialize) -> Self {
        let body = serde_json::to_vec(document).expect("documents have text keys and no failing serializers");
        Self {
            status,
            body: Some((JSON, body)),
            ..Self::no_content()
        }
    }

    /// Bytes that are the hub's users' own.
    pub fn bytes(status: u16, body: Vec<u8>) -> Self {
        Self {
            status,
            body: Some((BYTES, body)),
            ..Self::no_content()
        }
    }

    /// Adds a header. What no header may carry is replaced by spaces; a name that is none is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if let (Ok(name), Ok(value)) = (name.parse(), HeaderValue::from_bytes(value.as_bytes())) {
            self.headers.push((name, value));
        }
        self
    }

    /// Adds the version, which stands in quotes in the header.
    #[must_use]
    pub fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(format!("\"{etag}\""));
        self
    }

    /// Names the error that the body tells of in its own form.
    #[must_use]
    pub fn error(mut self, code: ErrorCode) -> Self {
        self.error = Some(code);
        self
    }

    pub(super) fn into_response(self, tracking_id: &str) -> HttpResponse {
        let mut response = HttpResponse::build(status(self.status));
        response.insert_header((REQUEST_ID, tracking_id));
        if let Some(etag) = self.etag {
            response.insert_header((ETAG, etag));
        }
        if let Some(code) = self.error {
            response.insert_header((ERROR_CODE, code.name));
        }
        for header in self.headers {
            response.append_header(header);
        }
        match self.body {
            Some((kind, body)) => response.insert_header((CONTENT_TYPE, kind)).body(body),
            None => response.finish(),
        }
    }
}

/// Why a request did nothing.
#[derive(Debug)]
pub struct Refused {
    pub code: ErrorCode,
    /// For a person; never says more than its reader may know.
    pub reason: String,
    /// Of a refused credential: the label of its metric.
    pub credential: Option<&'static str>,
    /// The rest of the request is not worth reading.
    closes: bool,
    /// When it is worth coming back.
    retry_after_seconds: u64,
}

impl Refused {
    pub fn new(code: ErrorCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            credential: None,
            closes: false,
            retry_after_seconds: RETRY_AFTER_SECONDS,
        }
    }

    pub fn invalid(reason: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::ARGUMENT_INVALID, reason.to_string())
    }

    pub fn busy(reason: &str) -> Self {
        Self::new(ErrorCode::SERVER_BUSY, reason)
    }

    /// The connection ends with this answer.
    #[must_use]
    pub(super) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    pub fn status(&self) -> u16 {
        self.code.http_status()
    }

    /// When it is worth coming back, where the status says that it is.
    pub fn retry_after_seconds(&self) -> u64 {
        self.retry_after_seconds
    }

    pub(super) fn into_response(self, tracking_id: &str, now: UtcMillis) -> HttpResponse {
        let mut response = HttpResponse::build(status(self.status()));
        response
            .insert_header((CONTENT_TYPE, JSON))
            .insert_header((ERROR_CODE, self.code.name))
            .insert_header((TRACKING_ID, tracking_id))
            .insert_header((REQUEST_ID, tracking_id));
        // IoT Hub, HTTPS section 13. Clients that know the header come back when it says.
        if matches!(self.status(), 429 | 503) {
            response.insert_header((RETRY_AFTER, self.retry_after_seconds.to_string()));
        }
        if self.closes {
            response.force_close();
        }
        response.body(error_body(self.code, &self.reason, tracking_id, now))
    }
}

/// The two bodies that SDKs understand.
// IoT Hub, HTTPS section 1, error body: header and body name the same error, or C# reports neither.
fn error_body(code: ErrorCode, reason: &str, tracking_id: &str, now: UtcMillis) -> String {
    let time = jiff::Timestamp::from_millisecond(now.0).unwrap_or_default();
    let document = if has_inner_document(code) {
        let inner = json!({
            "errorCode": code.number,
            "trackingId": tracking_id,
            "message": reason,
            "timestampUtc": format!("{time:.7}"),
        });
        json!({ "Message": inner.to_string(), "ExceptionMessage": "" })
    } else {
        json!({
            "Message": format!("ErrorCode:{};{reason}", code.name),
            "ExceptionMessage": format!("Tracking ID:{tracking_id}-TimeStamp:{time:.3}"),
        })
    };
    document.to_string()
}

/// Errors newer than the first form, whose number clients look for.
fn has_inner_document(code: ErrorCode) -> bool {
    matches!(code.number, 403_012 | 403_800 | 404_103 | 504_101)
}

fn status(number: u16) -> StatusCode {
    StatusCode::from_u16(number).expect("codes begin with an HTTP status")
}

impl From<RegistryError> for Refused {
    fn from(error: RegistryError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<OutboxError> for Refused {
    fn from(error: OutboxError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<AuthError> for Refused {
    /// Never whether the identity exists, unless its reader has proved that it may know.
    fn from(error: AuthError) -> Self {
        let code = error.code();
        let reason = match code.number {
            403_012 => "the device is disabled".to_owned(),
            401_002 | 404_001 | 404_010 => error.to_string(),
            500_000..=599_999 => "the registry cannot be read".to_owned(),
            _ => "the credential is not accepted".to_owned(),
        };
        Self {
            credential: Some(error.label()),
            ..Self::new(code, reason)
        }
    }
}

impl From<Throttled> for Refused {
    fn from(throttled: Throttled) -> Self {
        let wait = throttled.wait();
        Self {
            retry_after_seconds: wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            ..Self::new(throttled.code(), throttled.to_string())
        }
    }
}

/// Waits for the store's callback without blocking the worker.
///
/// # Errors
/// `ServerError`: the store was closed before it answered.
pub async fn wait<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Result<T, Refused> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |value| drop(sender.send(value))));
    receiver
        .await
        .map_err(|_| Refused::new(ErrorCode::SERVER_ERROR, "the store is closed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bodies_are_read_back_as_sdks_do() {
        let now = UtcMillis(1_700_000_000_123);
        let body = error_body(ErrorCode::DEVICE_NOT_FOUND, "no such device", "id-1", now);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["Message"], "ErrorCode:DeviceNotFound;no such device");
        assert_eq!(
            body["ExceptionMessage"],
            "Tracking ID:id-1-TimeStamp:2023-11-14T22:13:20.123Z"
        );
        let body = error_body(ErrorCode::DEVICE_DISABLED, "disabled", "id-1", now);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let inner: serde_json::Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
        assert_eq!(inner["errorCode"], 403_012);
        assert_eq!(inner["timestampUtc"], "2023-11-14T22:13:20.1230000Z");
        assert_eq!(inner["trackingId"], "id-1");
    }

    #[test]
    fn a_refused_credential_does_not_say_who_exists() {
        let unknown = Refused::from(AuthError::UnknownIdentity);
        let wrong = Refused::from(AuthError::Signature);
        assert_eq!((unknown.code, unknown.reason), (wrong.code, wrong.reason));
        assert_ne!(unknown.credential, wrong.credential, "the metric may know");
    }
}
