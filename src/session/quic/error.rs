//! Errors of the rooms below as close codes and stream failures: the native door's one table.

use super::door::Closing;
use crate::hub::auth::AuthError;
use crate::wire::close::CloseCode;

/// What the peer is told of a refused credential: never whether the device exists.
pub(super) fn closing_of_auth(error: &AuthError) -> Closing {
    let (code, reason) = match error.code().number {
        403_012 => (CloseCode::DeviceDisabled, "the device is disabled"),
        401_002 => (CloseCode::Forbidden, "the policy lacks the permission"),
        500_000..=599_999 => (CloseCode::Internal, "the registry cannot be read"),
        _ => (CloseCode::Unauthorized, "the credential is not accepted"),
    };
    Closing::new(code, format!("{} ({reason})", error.code().number))
}
