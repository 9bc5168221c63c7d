//! The way from a request to its answer.

use std::time::{Duration, Instant};

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, COOKIE, IF_MATCH, SET_COOKIE};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::denied::Denied;
use super::observer::SignIn;
use super::session::Operator;
use super::{Console, gate, page};
use crate::http::Incoming;
use crate::hub::{IdentityName, IfMatch, Permissions, sas};
use crate::model::{DeviceId, ModuleId, UtcMillis};

/// Of a request: a method's payload of 128 KiB fits, as does a message of 64 KiB in base64.
const BODY_BYTES_MAX: usize = 192 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a credential: the longest name and key are far shorter.
const CREDENTIAL_BYTES_MAX: usize = 4 * 1024;
/// How long a wrong attempt to sign in waits for its answer.
const SIGN_IN_DELAY: Duration = Duration::from_secs(1);

/// Puts the console on a server of pages.
pub fn routes(console: web::Data<Console>, config: &mut web::ServiceConfig) {
    config.service(
        web::scope("/console")
            .app_data(console)
            .default_service(web::to(dispatch)),
    );
}

/// Says, in the place of a console that is off, how to have one.
pub fn absent(config: &mut web::ServiceConfig) {
    let answer = || async {
        HttpResponse::NotFound()
            .content_type("text/plain; charset=utf-8")
            .body("The console is off: see ops.console in the configuration.\n")
    };
    config.service(web::scope("/console").default_service(web::to(answer)));
}

async fn dispatch(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let console = console.into_inner();
    let incoming = Incoming::new(payload);
    let answered = console.answer(&request, &incoming).await;
    let response = answered.unwrap_or_else(|denied| {
        console.parts.observer.refused(denied.reason);
        tracing::debug!(path = request.uri().path(), ?denied, "the console refused");
        denied.into_response()
    });
    incoming.hold(page::guarded(response))
}

/// A request with its operator, body and path below `/console/api/`.
pub(super) struct Call<'a> {
    request: &'a HttpRequest,
    segments: Vec<String>,
    pub operator: Operator,
    pub body: Bytes,
}

impl Console {
    async fn answer(&self, request: &HttpRequest, incoming: &Incoming) -> Result<HttpResponse, Denied> {
        gate::check_host(request.headers(), &self.parts.host_names)?;
        let path = request.uri().path().strip_prefix("/console").unwrap_or_default();
        let Some(path) = path.strip_prefix("/api/") else {
            return page::answer(request.method(), path);
        };
        let is_reader = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_reader {
            gate::check_reader(request.headers())?;
        } else {
            gate::check_writer(request.headers())?;
        }
        let segments: Option<Vec<String>> = path
            .split('/')
            .map(|segment| sas::decode(segment).map(std::borrow::Cow::into_owned))
            .collect();
        let segments = segments.ok_or_else(|| Denied::body("the path has a broken escape"))?;
        if segments == ["session"] && *request.method() == Method::POST {
            let body = read(request, incoming, CREDENTIAL_BYTES_MAX).await?;
            return self.sign_in(request, &body).await;
        }
        let token = self.token(request).ok_or_else(Denied::session)?;
        let operator = self.sessions.find(token, Instant::now()).ok_or_else(Denied::session)?;
        let body = if is_reader {
            Bytes::new()
        } else {
            read(request, incoming, BODY_BYTES_MAX).await?
        };
        let call = Call {
            request,
            segments,
            operator,
            body,
        };
        self.route(call, token).await
    }

    async fn route(&self, call: Call<'_>, token: &str) -> Result<HttpResponse, Denied> {
        let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
        let method = call.request.method().as_str();
        let (read, write) = (Permissions::REGISTRY_READ, Permissions::REGISTRY_WRITE);
        let service = Permissions::SERVICE_CONNECT;
        match (method, &segments[..]) {
            ("GET", ["session"]) => Ok(self.session_answer(&call.operator).finish_json()),
            ("DELETE", ["session"]) => {
                self.sessions.end(token);
                tracing::info!(policy = call.operator.policy.as_str(), "signed out of the console");
                Ok(HttpResponse::NoContent()
                    .insert_header((SET_COOKIE, self.cookie(call.request, "", true)))
                    .finish())
            }
            ("GET", ["overview"]) => self.overview(&call),
            ("GET", ["hub"]) => self.hub(),
            ("GET", ["configuration"]) => {
                call.permit(service)?;
                Ok(json_answer(&self.parts.facts.configuration()))
            }
            ("GET", ["devices"]) => {
                call.permit(read)?;
                self.device_list(&call).await
            }
            ("POST", ["devices"]) => {
                call.permit(write)?;
                self.device_create(&call).await
            }
            ("GET", ["devices", _]) => {
                call.permit(read)?;
                self.device_get(&call).await
            }
            ("PATCH", ["devices", _]) => {
                call.permit(write)?;
                self.device_change(&call).await
            }
            ("DELETE", ["devices", _]) => {
                call.permit(write)?;
                self.device_delete(&call).await
            }
            // IoT Hub, identity registry: whoever may read identities reads their keys.
            ("GET", ["devices", _, "keys"]) => {
                call.permit(read)?;
                self.device_keys(&call).await
            }
            ("GET", ["devices", _, "twin"]) => {
                call.permit(service)?;
                self.twin_get(&call).await
            }
            ("PUT" | "PATCH", ["devices", _, "twin"]) => {
                call.permit(service)?;
                self.twin_change(&call).await
            }
            ("POST", ["devices", _, "messages"]) => {
                call.permit(service)?;
                self.send(&call).await
            }
            ("DELETE", ["devices", _, "queue"]) => {
                call.permit(service)?;
                self.purge(&call).await
            }
            ("POST", ["devices", _, "methods"]) => {
                call.permit(service)?;
                self.invoke(&call).await
            }
            ("POST", ["query"]) => {
                call.permit(service)?;
                self.query(&call).await
            }
            ("GET", ["partitions"]) => {
                call.permit(service)?;
                self.partitions().await
            }
            ("POST", ["groups"]) => {
                call.permit(service)?;
                self.group_create(&call).await
            }
            ("DELETE", ["groups", _]) => {
                call.permit(service)?;
                self.group_delete(&call).await
            }
            ("GET", ["tail"]) => {
                call.permit(service)?;
                self.tail(&call, token).await
            }
            (
                _,
                [
                    "session" | "overview" | "hub" | "configuration" | "devices" | "query" | "partitions" | "groups"
                    | "tail",
                ]
                | ["groups" | "devices", _]
                | ["devices", _, "keys" | "twin" | "messages" | "queue" | "methods"],
            ) => Err(Denied::method()),
            _ => Err(Denied::path()),
        }
    }

    async fn sign_in(&self, request: &HttpRequest, body: &[u8]) -> Result<HttpResponse, Denied> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Credential {
            policy: String,
            key: String,
        }
        let Credential { policy, key } = parse(body)?;
        // Before the key is looked at: whoever guesses faster learns nothing by it.
        let Ok(guess) = self.guesses.try_acquire() else {
            self.parts.observer.signed_in(SignIn::Slowed);
            return Err(Denied::slowed());
        };
        let found = match self
            .parts
            .authenticator
            .authenticate_key(&policy, &key, Permissions::NONE)
        {
            Ok(found) => found,
            Err(error) => {
                self.parts.observer.signed_in(SignIn::Refused);
                self.parts.observer.auth_refused(error.label());
                tracing::warn!(reason = %error, "an attempt to sign in to the console was refused");
                tokio::time::sleep(SIGN_IN_DELAY).await;
                drop(guess);
                return Err(Denied::sign_in());
            }
        };
        drop(guess);
        let rights = found.permissions;
        if !rights.allow(Permissions::REGISTRY_READ) && !rights.allow(Permissions::SERVICE_CONNECT) {
            self.parts.observer.signed_in(SignIn::Refused);
            return Err(Denied::no_right());
        }
        let now = Instant::now();
        // One browser, one session: a new sign-in ends what it had.
        if let Some(former) = self.token(request) {
            self.sessions.end(former);
        }
        let token = self.sessions.begin(&found.policy, &key, now);
        self.parts.observer.signed_in(SignIn::Accepted);
        tracing::info!(policy = found.policy.as_str(), "signed in to the console");
        let operator = self.sessions.find(&token, now).ok_or_else(Denied::session)?;
        let mut answer = self.session_answer(&operator);
        answer.cookie = Some(self.cookie(request, &token, false));
        Ok(answer.finish_json())
    }

    fn session_answer(&self, operator: &Operator) -> SessionAnswer {
        let rights = operator.permissions;
        let about = self.parts.facts.about();
        SessionAnswer {
            document: json!({
                "policy": operator.policy.as_str(),
                "rights": {
                    "registryRead": rights.allow(Permissions::REGISTRY_READ),
                    "registryWrite": rights.allow(Permissions::REGISTRY_WRITE),
                    "serviceConnect": rights.allow(Permissions::SERVICE_CONNECT),
                },
                "endsInSeconds": operator.ends.saturating_duration_since(Instant::now()).as_secs(),
                "hub": about.host_names.first(),
                "version": about.version,
            }),
            cookie: None,
        }
    }

    fn cookie_name(&self) -> String {
        format!("forebay-console-{}", self.parts.port)
    }

    /// No `Secure` over plain HTTP, where a browser would not keep it; a proxy that ends TLS says that it did.
    fn cookie(&self, request: &HttpRequest, token: &str, ends: bool) -> String {
        let proto = request.headers().get("x-forwarded-proto");
        let secure = if proto.is_some_and(|proto| proto == "https") {
            "; Secure"
        } else {
            ""
        };
        let end = if ends { "; Max-Age=0" } else { "" };
        let name = self.cookie_name();
        format!("{name}={token}; Path=/console; HttpOnly; SameSite=Strict{secure}{end}")
    }

    fn token<'a>(&self, request: &'a HttpRequest) -> Option<&'a str> {
        let name = self.cookie_name();
        request.headers().get_all(COOKIE).find_map(|cookies| {
            let cookies = cookies.to_str().ok()?;
            cookies.split(';').find_map(|cookie| {
                let (found, token) = cookie.trim().split_once('=')?;
                (found == name).then_some(token)
            })
        })
    }

    fn overview(&self, call: &Call<'_>) -> Result<HttpResponse, Denied> {
        let since = match call.query("since") {
            None => 0,
            Some(text) => text.parse().map_err(|_| Denied::body("since is no number"))?,
        };
        Ok(json_answer(&json!({
            "samples": self.history.since(since),
            "health": self.parts.facts.health(),
            "now": self.now().0,
        })))
    }

    fn hub(&self) -> Result<HttpResponse, Denied> {
        Ok(json_answer(&json!({
            "about": self.parts.facts.about(),
            "health": self.parts.facts.health(),
            "sessions": self.sessions.count(Instant::now()),
            "now": self.now().0,
        })))
    }

    pub(super) fn now(&self) -> UtcMillis {
        self.parts.clock.now()
    }

    /// Runs what walks the store or the log where it blocks nobody.
    pub(super) async fn walk<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Denied> {
        let _turn = self.walks.acquire().await.expect("the semaphore is never closed");
        let busy = || crate::http::Refused::busy("too much is under way");
        web::block(work).await.map_err(|_| busy().into())
    }

    /// Whether the token is still somebody's; for who waited.
    pub(super) fn is_signed_in(&self, token: &str, wanted: Permissions) -> bool {
        let operator = self.sessions.find(token, Instant::now());
        operator.is_some_and(|operator| operator.permissions.allow(wanted))
    }
}

struct SessionAnswer {
    document: serde_json::Value,
    cookie: Option<String>,
}

impl SessionAnswer {
    fn finish_json(self) -> HttpResponse {
        let mut response = HttpResponse::Ok();
        if let Some(cookie) = self.cookie {
            response.insert_header((SET_COOKIE, cookie));
        }
        response.json(self.document)
    }
}

impl Call<'_> {
    fn permit(&self, wanted: Permissions) -> Result<(), Denied> {
        let is_allowed = self.operator.permissions.allow(wanted);
        is_allowed.then_some(()).ok_or_else(|| Denied::permission(wanted))
    }

    /// The path's segment of this number behind `api`, from 0.
    pub fn segment(&self, index: usize) -> &str {
        self.segments.get(index).map_or("", String::as_str)
    }

    /// A query parameter, decoded; one whose escapes are broken counts as absent.
    pub fn query(&self, name: &str) -> Option<String> {
        let text = self.request.uri().query()?;
        let value = text.split('&').find_map(|parameter| {
            let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (found == name).then_some(value)
        })?;
        sas::decode(value).map(std::borrow::Cow::into_owned)
    }

    /// The device of the path, or the module of it that the query names.
    pub fn identity(&self) -> Result<IdentityName, Denied> {
        let device = self.device()?;
        let module = self.query("module").filter(|module| !module.is_empty());
        let module = module.map(|module| ModuleId::new(&module)).transpose();
        let module = module.map_err(|error| Denied::body(format_args!("the module id {error}")))?;
        Ok(IdentityName { device, module })
    }

    pub fn device(&self) -> Result<DeviceId, Denied> {
        DeviceId::new(self.segment(1)).map_err(|error| Denied::body(format_args!("the device id {error}")))
    }

    /// Which version a change is meant for.
    ///
    /// # Errors
    /// The header is missing: nothing is overwritten unseen.
    pub fn if_match(&self) -> Result<IfMatch, Denied> {
        let header = self.request.headers().get(IF_MATCH);
        let text = header.and_then(|value| value.to_str().ok()).map(str::trim);
        match text.map(|text| text.trim_matches('"')) {
            Some("*") => Ok(IfMatch::Any),
            Some(etag) if !etag.is_empty() => Ok(IfMatch::Etag(etag.to_owned())),
            Some(_) | None => Err(Denied::body("If-Match is missing")),
        }
    }

    pub fn is_method(&self, method: &Method) -> bool {
        self.request.method() == method
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Denied> {
        parse(&self.body)
    }

    /// What an operator did, for the log.
    pub fn did(&self, what: &str, to: &str) {
        tracing::info!(policy = self.operator.policy.as_str(), to, "console: {what}");
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Denied> {
    serde_json::from_slice(body).map_err(|error| Denied::of_json(&error))
}

async fn read(request: &HttpRequest, incoming: &Incoming, bytes_max: usize) -> Result<Bytes, Denied> {
    let body = incoming.read(request.headers(), bytes_max, BODY_TIMEOUT).await;
    body.map_err(|error| Denied::of_body(&error))
}

pub(super) fn json_answer(document: &impl serde::Serialize) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(document)
}
