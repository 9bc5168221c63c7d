//! Which request opens a tunnel, to what, and with what answer (RFC 6455 s4.2).

use actix_web::HttpRequest;
use actix_web::http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use actix_web::http::{Method, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use crate::hub::ErrorCode;

/// The one version there is.
pub const VERSION: &str = "13";
/// RFC 6455 s1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;

/// What goes through a tunnel; the value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Amqp,
    Mqtt,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Amqp, Self::Mqtt];

    pub fn label(self) -> &'static str {
        match self {
            Self::Amqp => "amqp",
            Self::Mqtt => "mqtt",
        }
    }

    /// By the name of the sub-protocol.
    // IoT Hub, AMQP section 1, MQTT section 1: compared without regard to case. Clients of event hubs also say `amqp`.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            _ if name.eq_ignore_ascii_case("AMQPWSB10") || name.eq_ignore_ascii_case("amqp") => Some(Self::Amqp),
            _ if name.eq_ignore_ascii_case("mqtt") => Some(Self::Mqtt),
            _ => None,
        }
    }
}

/// Why a request on the path of tunnels opened none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum UpgradeRefused {
    #[error("only a WebSocket can be opened here")]
    NotWebSocket,
    #[error("the WebSocket has a version other than 13")]
    Version,
    #[error("the WebSocket's key is missing or malformed")]
    Key,
    #[error("no sub-protocol is offered that this hub speaks")]
    Protocol,
}

impl UpgradeRefused {
    pub const ALL: [Self; 4] = [Self::NotWebSocket, Self::Version, Self::Key, Self::Protocol];

    /// The value of a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotWebSocket => "not_websocket",
            Self::Version => "version",
            Self::Key => "key",
            Self::Protocol => "protocol",
        }
    }

    pub fn code(self) -> ErrorCode {
        match self {
            Self::NotWebSocket | Self::Version => ErrorCode::UPGRADE_REQUIRED,
            Self::Key | Self::Protocol => ErrorCode::BAD_REQUEST,
        }
    }
}

/// An upgrade that both sides agree on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub protocol: Protocol,
    /// The sub-protocol as the client wrote it.
    pub name: String,
    /// The proof that its key was read.
    pub accept: String,
}

/// Whether the path, decoded, is one of those that clients open tunnels on. Which protocol goes through it, the path
/// does not tell.
pub(in crate::http) fn is_door(segments: &[String]) -> bool {
    let [room, door] = segments else { return false };
    let is_room = ["$iothub", "$servicebus"]
        .iter()
        .any(|name| room.eq_ignore_ascii_case(name));
    is_room && door.eq_ignore_ascii_case("websocket")
}

pub(super) fn agree(request: &HttpRequest, is_spoken: impl Fn(Protocol) -> bool) -> Result<Agreed, UpgradeRefused> {
    let headers = request.headers();
    // With a body the request would end before the frames begin.
    let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|name| headers.contains_key(name));
    let is_upgrade = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.head().upgrade()
        && single(headers, &UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
        && !has_body;
    if !is_upgrade {
        return Err(UpgradeRefused::NotWebSocket);
    }
    if single(headers, &SEC_WEBSOCKET_VERSION) != Some(VERSION) {
        return Err(UpgradeRefused::Version);
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY).ok_or(UpgradeRefused::Key)?;
    let accept = accept(key).ok_or(UpgradeRefused::Key)?;
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let chosen = offers
        .filter_map(|value| value.to_str().ok())
        .find_map(|offered| choose(offered, &is_spoken));
    let (protocol, name) = chosen.ok_or(UpgradeRefused::Protocol)?;
    Ok(Agreed {
        protocol,
        name: name.to_owned(),
        accept,
    })
}

/// A header that may not be there twice.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value.trim())
}

/// The first of the offered sub-protocols that is spoken here, as it was written.
pub fn choose(offered: &str, is_spoken: impl Fn(Protocol) -> bool) -> Option<(Protocol, &str)> {
    offered.split(',').map(str::trim).find_map(|name| {
        let protocol = Protocol::of(name)?;
        is_spoken(protocol).then_some((protocol, name))
    })
}

/// What proves that a key was read; `None` if it is none.
pub fn accept(key: &str) -> Option<String> {
    if STANDARD.decode(key).ok()?.len() != KEY_BYTES {
        return None;
    }
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(KEY_SUFFIX);
    Some(STANDARD.encode(digest.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_specification_is_accepted() {
        let accepted = accept("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        for key in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25j",
            "not base64, is it??????=",
        ] {
            assert_eq!(accept(key), None, "{key}");
        }
    }

    #[test]
    fn the_first_sub_protocol_that_is_spoken_is_chosen_and_echoed() {
        let check = |offered, expected| {
            let chosen = choose(offered, |protocol| protocol == Protocol::Amqp);
            assert_eq!(chosen.map(|(_, name)| name), expected, "{offered}");
        };
        check("AMQPWSB10", Some("AMQPWSB10"));
        check("amqp", Some("amqp"));
        check("AmqpWsb10, amqp", Some("AmqpWsb10"));
        check("mqtt, , soap ,amqp", Some("amqp"));
        check("MQTT", None);
        check("amqp10", None);
        check("", None);
        assert_eq!(choose("MQTT", |_| true), Some((Protocol::Mqtt, "MQTT")));
    }

    #[test]
    fn doors_have_a_name_of_two_words() {
        let check = |path: &[&str], expected| {
            let segments: Vec<_> = path.iter().map(ToString::to_string).collect();
            assert_eq!(is_door(&segments), expected, "{path:?}");
        };
        check(&["$iothub", "websocket"], true);
        check(&["$ServiceBus", "WebSocket"], true);
        check(&["iothub", "websocket"], false);
        check(&["$iothub"], false);
        check(&["$iothub", "websocket", "more"], false);
    }
}
