//! Errors of the rooms below as AMQP conditions: the AMQP doors' one table.

use crate::hub::auth::AuthError;
use crate::hub::{ErrorCode, Throttled};
use crate::proto::amqp::{Condition, Error, Info};

// IoT Hub, AMQP section 7.
const ERROR_CODE: &str = "com.microsoft:error-code";

/// What the peer is told of an error code.
pub fn of(code: ErrorCode, reason: impl std::fmt::Display) -> Error {
    let number = i32::try_from(code.number).unwrap_or(500_001);
    Error::new(condition(code), format!("{}: {reason} (errorcode:{number})", code.name))
        .with(ERROR_CODE, Info::Int(number))
}

/// What the peer is told of a refused credential: never whether an identity exists, unless it may know.
pub fn of_auth(error: &AuthError) -> Error {
    let code = error.code();
    match code {
        ErrorCode::UNAUTHORIZED => of(code, "the credential is not accepted"),
        _ => of(code, error),
    }
}

pub fn of_throttled(throttled: &Throttled) -> Error {
    of(throttled.code(), throttled)
}

// IoT Hub, AMQP section 7.
fn condition(code: ErrorCode) -> Condition {
    match code {
        ErrorCode::HUB_NOT_FOUND => Condition::HUB_NOT_FOUND,
        ErrorCode::UNAUTHORIZED | ErrorCode::UNAUTHORIZED_ACCESS | ErrorCode::DEVICE_DISABLED => {
            Condition::UNAUTHORIZED
        }
        ErrorCode::QUOTA_EXCEEDED => Condition::QUOTA_EXCEEDED,
        ErrorCode::DEVICE_QUEUE_DEPTH => Condition::RESOURCE_LIMIT_EXCEEDED,
        ErrorCode::ARGUMENT_INVALID | ErrorCode::FORMAT_ERROR | ErrorCode::BAD_REQUEST => Condition::ARGUMENT_ERROR,
        ErrorCode::MESSAGE_EXPIRY => Condition::ARGUMENT_OUT_OF_RANGE,
        ErrorCode::PRECONDITION_FAILED => Condition::PRECONDITION_FAILED,
        ErrorCode::LOCK_LOST => Condition::MESSAGE_LOCK_LOST,
        ErrorCode::DEVICE_ALREADY_EXISTS => Condition::DEVICE_ALREADY_EXISTS,
        ErrorCode::SUBSCRIPTION_CONFLICT => Condition::LINK_CREATION_CONFLICT,
        ErrorCode::SERVER_BUSY => Condition::SERVER_BUSY,
        code => match code.number {
            404_000..=404_999 => Condition::NOT_FOUND,
            409_000..=409_999 => Condition::LINK_CREATION_CONFLICT,
            413_000..=413_999 => Condition::MESSAGE_SIZE_EXCEEDED,
            429_000..=429_999 => Condition::THROTTLED,
            504_000..=504_999 => Condition::TIMEOUT,
            400_000..=499_999 => Condition::NOT_ALLOWED,
            _ => Condition::INTERNAL_ERROR,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_contract_s_conditions() {
        for (code, condition) in [
            (ErrorCode::DEVICE_NOT_FOUND, "amqp:not-found"),
            (ErrorCode::UNAUTHORIZED, "amqp:unauthorized-access"),
            (ErrorCode::DEVICE_QUEUE_DEPTH, "amqp:resource-limit-exceeded"),
            (ErrorCode::MESSAGE_TOO_LARGE, "amqp:link:message-size-exceeded"),
            (ErrorCode::LOCK_LOST, "com.microsoft:message-lock-lost"),
            (ErrorCode::THROTTLED, "com.microsoft:device-container-throttled"),
            (ErrorCode::QUOTA_EXCEEDED, "com.microsoft:quota-exceeded"),
            (ErrorCode::SERVER_ERROR, "amqp:internal-error"),
            (ErrorCode::PRECONDITION_FAILED, "amqp:precondition-failed"),
        ] {
            let error = of(code, "why");
            assert_eq!(error.condition.name(), condition);
            assert_eq!(error.info, [(ERROR_CODE, Info::Int(code.number as i32))]);
            assert!(error.description.contains(&format!("errorcode:{}", code.number)));
        }
    }

    #[test]
    fn who_shows_nothing_right_learns_nothing() {
        let unknown = of_auth(&AuthError::UnknownIdentity);
        assert_eq!(unknown, of_auth(&AuthError::Signature));
    }
}
