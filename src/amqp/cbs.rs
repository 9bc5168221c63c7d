//! `$cbs`: a client shows a token for what it wants to do on the connection, and shows a newer one before it runs out.

use std::rc::Rc;

use super::connection::Visited;
use super::node::Response;
use crate::hub::ErrorCode;
use crate::proto::amqp::message::{Body, Message};
use crate::proto::amqp::value::Value;

// IoT Hub, AMQP section 2.2; built-in endpoint section 5.
const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

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
            // Who shows nothing right learns nothing: IoT Hub, identity and security. And in one short word: uamqp reads the
            // text when it has freed it already, which a word of its smallest allocations survives.
            let reason = if code == ErrorCode::UNAUTHORIZED {
                code.name.to_owned()
            } else {
                format!("{}: {refused}", code.name)
            };
            let status = match code.number / 1000 {
                400 => 400,
                403 => 403,
                404 => 404,
                500..=599 => 500,
                _ => 401,
            };
            // No `error-condition`: azure-eventhub reads the status only without one.
            Response::new(status, reason)
        }
    }
}
