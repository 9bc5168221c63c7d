//! `$cbs`: a client shows a token for what it wants to do on the connection, and shows a newer one before it runs out.

use std::rc::Rc;

use super::connection::Visited;
use super::node::Response;
use crate::hub::ErrorCode;
use crate::proto::amqp::message::{Body, Message};
use crate::proto::amqp::value::Value;

// IoT Hub, AMQP section 2.2; built-in endpoint section 5.
const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

/// What is said of every token that is not accepted: who shows nothing right learns nothing of why (IoT Hub, identity and
/// security), but may read what a right one is.
///
/// Its length matters to uamqp, which reads the words when it has freed them already. As a Python object of more than 512
/// bytes they stood in memory of the C library, which leaves them as they were until somebody asks for just that size; shorter
/// ones stood where Python puts the next small object.
const UNAUTHORIZED: &str = "IotHubUnauthorized: the token is not accepted. A token is the text \
    'SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}'. The resource is the hub's host name, or \
    for a device '{host}/devices/{device}', or for a consumer 'sb://{host}/{entity}', with everything but letters, digits and \
    '-._~' percent-encoded. The expiry is a time to come, in seconds since 1970 (UTC). The signature is the base64 of the \
    HMAC-SHA256 of the encoded resource, a line break and the expiry, percent-encoded in its turn; its key is the decoded \
    base64 of the policy's or the device's primary or secondary key, for consumers that key's text as it is. The policy must \
    exist, and have the permission for what is asked; a device has no policy, must exist, and be enabled. Clocks that differ \
    make fresh tokens expired ones.";
const _: () = assert!(UNAUTHORIZED.len() > 512 && UNAUTHORIZED.len() < 1000);

/// Answers a put-token.
pub(super) fn answer(visited: &Rc<Visited>, request: &Message<'_>) -> Response {
    let text = |key| request.application_property(key).and_then(|value| value.as_text());
    match text("operation") {
        Some(operation) if operation.eq_ignore_ascii_case("put-token") => {}
        _ => return Response::new(400, "the operation is not put-token"),
    }
    match text("type") {
        Some(kind) if kind.eq_ignore_ascii_case(TOKEN_TYPE) => {}
        other => {
            let kind = other.unwrap_or("none");
            return Response::new(
                400,
                format!("tokens of the type {kind:?} are not taken; {TOKEN_TYPE} are"),
            );
        }
    }
    let token = match &request.body {
        Body::Value(Value::String(token)) => *token,
        Body::None | Body::Data(_) | Body::Value(_) | Body::Sequence => {
            return Response::new(400, "the body is not a token");
        }
    };
    match visited.put_token(token) {
        Ok(()) => Response::new(200, "OK"),
        Err(refused) => {
            let code = refused.code();
            if let super::credentials::TokenError::Auth(error) = &refused {
                visited.door.observer.auth_refused(error.label());
                tracing::debug!(%error, "token refused");
            }
            let status = match code.number / 1000 {
                400 => 400,
                403 => 403,
                404 => 404,
                500..=599 => 500,
                _ => 401,
            };
            let reason = if code == ErrorCode::UNAUTHORIZED {
                UNAUTHORIZED.to_owned()
            } else {
                format!("{}: {refused}", code.name)
            };
            // No `error-condition`: azure-eventhub reads the status only without one.
            Response::new(status, reason)
        }
    }
}
