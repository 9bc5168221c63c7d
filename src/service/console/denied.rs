//! Why a request to the console did nothing, as JSON for its scripts and as a label for its counter.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use serde_json::json;

use super::observer::Reason;
use crate::http::{BodyError, Refused};
use crate::hub::{ErrorCode, Permissions};

/// A refusal.
#[derive(Debug)]
pub struct Denied {
    pub reason: Reason,
    status: u16,
    /// As in the contract where it has one.
    code: &'static str,
    /// For a person; never says more than its reader may know.
    message: String,
    retry_after_seconds: Option<u64>,
    /// The rest of the request is not worth reading.
    closes: bool,
}

impl Denied {
    fn new(reason: Reason, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            status,
            code,
            message: message.into(),
            retry_after_seconds: None,
            closes: false,
        }
    }

    // RFC 9110 s15.5.20: the request was directed at somebody who does not answer for that name.
    pub fn host() -> Self {
        let message =
            "The console answers to localhost, to IP addresses and to the hub's own names (identity.host_names).";
        Self::new(Reason::Host, 421, "MisdirectedRequest", message)
    }

    pub fn origin() -> Self {
        let message = "The request did not come from a page of the console.";
        Self::new(Reason::Origin, 403, "ForeignOrigin", message)
    }

    pub fn session() -> Self {
        Self::new(Reason::Session, 401, "NotSignedIn", "Sign in first.")
    }

    /// One text for whatever was wrong.
    pub fn sign_in() -> Self {
        let message = "There is no such policy, or this is not its key.";
        Self::new(Reason::Session, 401, "SignInRefused", message)
    }

    pub fn slowed() -> Self {
        let message = "Too many attempts to sign in were wrong. Wait a moment.";
        Self {
            retry_after_seconds: Some(1),
            ..Self::new(Reason::Session, 429, "SignInSlowed", message)
        }
    }

    pub fn permission(wanted: Permissions) -> Self {
        let message = format!("This needs a policy with the right {wanted}.");
        Self::new(Reason::Permission, 403, "NotPermitted", message)
    }

    /// A policy that grants nothing the console shows.
    pub fn no_right() -> Self {
        let message = "The policy grants neither RegistryRead nor ServiceConnect.";
        Self::new(Reason::Permission, 403, "NotPermitted", message)
    }

    pub fn path() -> Self {
        Self::new(Reason::Path, 404, "NotFound", "There is no such path.")
    }

    pub fn method() -> Self {
        Self::new(Reason::Path, 405, "MethodNotAllowed", "The path has no such method.")
    }

    pub fn body(message: impl std::fmt::Display) -> Self {
        Self::new(Reason::Body, 400, "BadRequest", message.to_string())
    }

    pub fn tails() -> Self {
        let message = "As many live tails are open as there may be. Close one, or wait.";
        Self {
            retry_after_seconds: Some(2),
            ..Self::new(Reason::Busy, 503, "TooManyTails", message)
        }
    }

    pub fn into_response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        if let Some(seconds) = self.retry_after_seconds {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if self.closes {
            response.force_close();
        }
        response.json(json!({ "error": { "status": self.status, "code": self.code, "message": self.message } }))
    }
}

impl<E: Into<Refused>> From<E> for Denied {
    fn from(error: E) -> Self {
        let refused: Refused = error.into();
        let status = refused.status();
        Self {
            retry_after_seconds: matches!(status, 429 | 503).then(|| refused.retry_after_seconds()),
            ..Self::new(Reason::Hub, status, refused.code.name, refused.reason)
        }
    }
}

impl Denied {
    pub fn of_body(error: &BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLarge { .. } => (413, "TooLarge"),
            BodyError::TimedOut => (408, "RequestTimedOut"),
            BodyError::Broken(_) => (400, "BadRequest"),
        };
        Self {
            closes: true,
            ..Self::new(Reason::Body, status, code, error.to_string())
        }
    }

    /// JSON that is none, or of another kind.
    pub fn of_json(error: &serde_json::Error) -> Self {
        let code = if error.is_data() {
            ErrorCode::ARGUMENT_INVALID
        } else {
            ErrorCode::FORMAT_ERROR
        };
        Self::new(Reason::Body, 400, code.name, error.to_string())
    }
}
