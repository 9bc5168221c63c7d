//! A request as a route sees it: decoded path, query, headers, and a body of bounded size and time.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::{AUTHORIZATION, HeaderMap, IF_MATCH};
use actix_web::web::Bytes;
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;

use super::answer::Refused;
use super::body::{BodyError, Incoming};
use super::config::Config;
use super::serve::Site;
use crate::hub::outbox::LockToken;
use crate::hub::sas;
use crate::hub::{AuthError, ErrorCode, IdentityName, IfMatch};
use crate::model::{DeviceId, ModuleId, UtcMillis};

/// The certificates of a client, leaf first, whose key signed its handshake.
pub(super) struct PeerChain(pub Vec<CertificateDer<'static>>);

/// One request.
pub struct Call {
    request: HttpRequest,
    incoming: Incoming,
    segments: Vec<String>,
    site: Arc<Site>,
}

impl Call {
    /// # Errors
    /// `GenericBadRequest`: the path has a broken escape.
    pub(super) fn new(request: HttpRequest, incoming: Incoming, site: Arc<Site>) -> Result<Self, Refused> {
        let segments = segments(request.uri().path())
            .ok_or_else(|| Refused::new(ErrorCode::BAD_REQUEST, "the path has a broken escape").closing())?;
        Ok(Self {
            request,
            incoming,
            segments,
            site,
        })
    }

    pub fn config(&self) -> &Config {
        &self.site.config
    }

    pub fn now(&self) -> UtcMillis {
        self.site.clock.now()
    }

    pub(super) fn request(&self) -> &HttpRequest {
        &self.request
    }

    pub(super) fn method(&self) -> &str {
        self.request.method().as_str()
    }

    pub(super) fn segments(&self) -> &[String] {
        &self.segments
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// A header's text; what is not ASCII counts as absent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// A query parameter, undecoded: the ones there are have no characters that need it.
    pub fn query(&self, name: &str) -> Option<&str> {
        query(self.request.uri().query()?, name)
    }

    /// # Errors
    /// `InvalidProtocolVersion`.
    // IoT Hub, HTTPS section 1: any version is served as the newest, none is refused.
    pub(super) fn check_api_version(&self) -> Result<(), Refused> {
        match self.query("api-version") {
            Some(version) if !version.is_empty() => Ok(()),
            Some(_) | None => Err(Refused::new(
                ErrorCode::INVALID_PROTOCOL_VERSION,
                "api-version is missing",
            )),
        }
    }

    /// The token of the request.
    ///
    /// # Errors
    /// `AuthError::Missing`.
    pub fn authorization(&self) -> Result<&str, AuthError> {
        let value = self.headers().get(AUTHORIZATION).ok_or(AuthError::Missing)?;
        value.to_str().map_err(|_| AuthError::Missing)
    }

    /// The certificates, leaf first, that the client proved to hold; none if it showed none.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        self.request.conn_data().map_or(&[], |PeerChain(chain)| chain)
    }

    /// The device that the path names.
    ///
    /// # Errors
    /// `ArgumentInvalid`.
    pub fn device(&self) -> Result<DeviceId, Refused> {
        DeviceId::new(self.id(1)).map_err(|error| Refused::invalid(format_args!("the device id {error}")))
    }

    /// The module that the path names behind its device.
    ///
    /// # Errors
    /// `ArgumentInvalid`.
    pub fn module(&self) -> Result<ModuleId, Refused> {
        ModuleId::new(self.id(3)).map_err(|error| Refused::invalid(format_args!("the module id {error}")))
    }

    /// The device, or the module of it, that the path names.
    ///
    /// # Errors
    /// `ArgumentInvalid`.
    pub fn identity(&self) -> Result<IdentityName, Refused> {
        Ok(IdentityName {
            device: self.device()?,
            module: if self.names_module() {
                Some(self.module()?)
            } else {
                None
            },
        })
    }

    /// The lock token that is the path's segment of this number, from 0.
    ///
    /// # Errors
    /// `DeviceMessageLockLost`: nothing is locked by text that is no token.
    pub fn lock_token(&self, index: usize) -> Result<LockToken, Refused> {
        let token = self.id(index).parse();
        token.map_err(|_| Refused::new(ErrorCode::LOCK_LOST, "no such lock"))
    }

    /// Whether the path goes by way of a module.
    pub fn names_module(&self) -> bool {
        self.segments
            .get(2)
            .is_some_and(|word| word.eq_ignore_ascii_case("modules"))
    }

    fn id(&self, index: usize) -> &str {
        self.segments.get(index).map_or("", String::as_str)
    }

    /// Which version the request is meant for; `None` without the header.
    pub fn if_match(&self) -> Option<IfMatch> {
        self.headers().get(IF_MATCH)?.to_str().ok().map(if_match)
    }

    /// The whole body.
    ///
    /// # Errors
    /// `too_large` above `bytes_max`, `RequestTimedOut`, or `GenericBadRequest` when the client broke off. The connection
    /// ends with each of them: what else comes on it cannot be told from the rest of the body.
    pub async fn body(&self, bytes_max: usize, too_large: ErrorCode) -> Result<Bytes, Refused> {
        let config = &self.site.config;
        let bytes_max = bytes_max.min(config.body_bytes_max);
        let read = self.incoming.read(self.headers(), bytes_max, config.body_timeout).await;
        read.map_err(|error| {
            let code = match error {
                BodyError::TooLarge { .. } => too_large,
                BodyError::TimedOut => ErrorCode::REQUEST_TIMED_OUT,
                BodyError::Broken(_) => ErrorCode::BAD_REQUEST,
            };
            Refused::new(code, error.to_string()).closing()
        })
    }

    /// The body as a JSON document.
    ///
    /// # Errors
    /// As `body`; `IotHubFormatError` for what is no JSON, `ArgumentInvalid` for JSON of another kind.
    pub async fn json<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        self.json_by(|body| serde_json::from_slice(body)).await
    }

    /// The body as what `parse` makes of it.
    ///
    /// # Errors
    /// As `json`.
    pub async fn json_by<T>(&self, parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>) -> Result<T, Refused> {
        let body = self.body(usize::MAX, ErrorCode::TOO_LARGE).await?;
        parse(&body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Refused::invalid(error),
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => Refused::new(ErrorCode::FORMAT_ERROR, error.to_string()),
        })
    }
}

/// The path's segments, each decoded once; a slash at the end adds none.
// IoT Hub, HTTPS section 1: ids in paths are percent-encoded.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/')
        .map(|segment| sas::decode(segment).map(std::borrow::Cow::into_owned))
        .collect()
}

fn query<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split('&').find_map(|parameter| {
        let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// `"etag"`, `etag`, `W/"etag"`, `"*"` or `*`.
fn if_match(text: &str) -> IfMatch {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let bare = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    match bare {
        "*" => IfMatch::Any,
        etag => IfMatch::Etag(etag.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_once_and_segment_by_segment() {
        let check = |path, expected: Option<&[&str]>| {
            let expected = expected.map(|segments| segments.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(segments(path), expected, "{path}");
        };
        check("/devices/a%2Fb", Some(&["devices", "a/b"]));
        check("/devices/a%2525", Some(&["devices", "a%25"]));
        check("/devices/a+b/", Some(&["devices", "a+b"]));
        check("/devices//x", Some(&["devices", "", "x"]));
        check("/devices/%zz", None);
        check("/devices/%ff", None);
        check("/", Some(&[""]));
    }

    #[test]
    fn if_match_has_five_forms() {
        let etag = IfMatch::Etag("AAAA=".into());
        for text in ["\"AAAA=\"", "AAAA=", "W/\"AAAA=\"", " \"AAAA=\" "] {
            assert_eq!(if_match(text), etag, "{text}");
        }
        assert_eq!(if_match("*"), IfMatch::Any);
        assert_eq!(if_match("\"*\""), IfMatch::Any);
    }

    #[test]
    fn query_names_have_no_case() {
        assert_eq!(query("top=5&API-Version=2021-04-12", "api-version"), Some("2021-04-12"));
        assert_eq!(query("a=1&reject", "reject"), Some(""));
        assert_eq!(query("xtop=5", "top"), None);
    }
}
