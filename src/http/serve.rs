//! The listener and the way from a request to its room.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, TlsAcceptorConfig};
use actix_server::{Server, ServerHandle};
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_tls::accept::TlsError;
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::{AppConfig, Extensions};
use actix_web::http::header::{HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE};
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpRequest, HttpResponse, web};
use socket2::SockRef;

use super::answer::{Answer, Refused};
use super::body::Incoming;
use super::call::{Call, PeerChain};
use super::config::Config;
use super::observer::Observer;
use super::route::{Entry, Found, Route, find};
use super::websocket::{self, Stop, Tunnel, handshake};
use crate::hub::{Entropy, ErrorCode};
use crate::model::time::Clock;
use crate::net::{self, admission::Admission};

/// How long a connection that is closed may take to hear of it.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A request being answered, on the worker that read it.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, Refused>>>>;

/// A set of routes that belong together.
pub trait Room: Send + Sync + 'static {
    fn routes(&self) -> &'static [Entry];

    /// Answers a request of one of `routes`.
    fn answer(self: Arc<Self>, route: Route, call: Call) -> Answering;
}

/// What all connections share.
pub struct Site {
    pub(super) config: Config,
    rooms: Vec<Arc<dyn Room>>,
    tunnels: Vec<Arc<dyn Tunnel>>,
    stop: Stop,
    observer: Arc<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    /// Tells requests of different lives of the hub apart.
    life: u64,
    requests: AtomicU64,
}

impl Site {
    pub fn new(config: Config, observer: Arc<dyn Observer>, clock: Arc<dyn Clock>, entropy: &dyn Entropy) -> Self {
        let mut life = [0; 8];
        entropy.fill(&mut life);
        Self {
            config,
            rooms: Vec::new(),
            tunnels: Vec::new(),
            stop: Stop::new(),
            observer,
            clock,
            life: u64::from_be_bytes(life),
            requests: AtomicU64::new(0),
        }
    }

    /// Adds a room; the first that knows a request answers it.
    #[must_use]
    pub fn with(mut self, room: Arc<dyn Room>) -> Self {
        self.rooms.push(room);
        self
    }

    /// Adds a protocol that is reached by WebSocket, on `/$iothub/websocket` and `/$servicebus/websocket`; the first that
    /// speaks what a client offers serves it.
    #[must_use]
    pub fn with_tunnel(mut self, tunnel: Arc<dyn Tunnel>) -> Self {
        self.tunnels.push(tunnel);
        self
    }

    fn tracking_id(&self) -> String {
        format!(
            "{:016x}{:016x}",
            self.life,
            self.requests.fetch_add(1, Ordering::Relaxed)
        )
    }

    fn find(&self, call: &Call) -> Result<(Arc<dyn Room>, Route), Refused> {
        let mut is_path_known = false;
        for room in &self.rooms {
            match find(room.routes(), call.method(), call.segments()) {
                Found::Route(route) => return Ok((room.clone(), route)),
                Found::OtherMethod => is_path_known = true,
                Found::Nothing => {}
            }
        }
        Err(if is_path_known {
            Refused::new(ErrorCode::METHOD_NOT_ALLOWED, "the path has no such method")
        } else {
            Refused::new(ErrorCode::NOT_FOUND, "there is no such path")
        })
    }

    async fn answer(self: Arc<Self>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
        let tracking_id = self.tracking_id();
        let mut route = Route::None;
        let incoming = Incoming::new(payload);
        let answered = match Call::new(request, incoming.clone(), self.clone()) {
            Err(refused) => Err(refused),
            Ok(call) if handshake::is_door(call.segments()) => return self.upgrade(&call, &incoming, &tracking_id),
            Ok(call) => match self.find(&call) {
                Err(refused) => Err(refused),
                Ok((room, found)) => {
                    route = found;
                    match call.check_api_version() {
                        Ok(()) => room.answer(route, call).await,
                        Err(refused) => Err(refused),
                    }
                }
            },
        };
        let response = match answered {
            Ok(answer) => answer.into_response(&tracking_id),
            Err(refused) => {
                if let Some(label) = refused.credential {
                    self.observer.auth_refused(label);
                }
                tracing::debug!(route = route.label(), code = refused.code.number, reason = %refused.reason, tracking_id, "refused");
                refused.into_response(&tracking_id, self.clock.now())
            }
        };
        self.observer.answered(route, response.status().as_u16());
        incoming.hold(response)
    }

    // IoT Hub, SDKs, section 2: the path does not tell the protocol, and nobody says an api-version.
    fn upgrade(&self, call: &Call, incoming: &Incoming, tracking_id: &str) -> HttpResponse {
        match websocket::open(&self.tunnels, &self.stop, call, incoming) {
            Ok((protocol, response)) => {
                self.observer.upgraded(protocol);
                response
            }
            Err(reason) => {
                self.observer.upgrade_refused(reason);
                tracing::debug!(%reason, tracking_id, "refused to open a WebSocket");
                let code = reason.code();
                let refused = Refused::new(code, reason.to_string()).closing();
                let mut response = refused.into_response(tracking_id, self.clock.now());
                // RFC 9110 s15.5.22, RFC 6455 s4.2.2.
                if code == ErrorCode::UPGRADE_REQUIRED {
                    let headers = response.headers_mut();
                    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(handshake::VERSION));
                }
                incoming.hold(response)
            }
        }
    }
}

async fn dispatch(site: web::Data<Site>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    site.into_inner().answer(request, payload).await
}

/// Binds the port.
///
/// # Errors
/// The address cannot be had.
pub fn bind(config: &Config) -> io::Result<TcpListener> {
    let address = config.listen;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // A fleet that comes back at once should wait in the kernel rather than be refused.
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Keeps what a client proved in its handshake for the requests of the connection, and bounds how long it may take none
/// of what waits for it.
fn begin(connection: &dyn Any, extensions: &mut Extensions, stall_timeout: Duration) {
    let stream = connection
        .downcast_ref::<TlsStream<TcpStream>>()
        .expect("the only listener speaks TLS");
    let (socket, tls) = stream.get_ref();
    // The kernel is the only one to watch: actix does not, while an answer waits for room. An error means that the
    // connection is over already.
    let _ = SockRef::from(socket).set_tcp_user_timeout(Some(stall_timeout));
    if let Some(chain) = tls.peer_certificates() {
        extensions.insert(PeerChain(chain.iter().map(|one| one.clone().into_owned()).collect()));
    }
}

/// Stops a server.
#[derive(Clone, Debug)]
pub struct Handle {
    server: ServerHandle,
    stop: Stop,
}

impl Handle {
    /// Takes no more connections; they wait in the kernel, for the stop that follows.
    pub fn refuse(&self) -> impl Future<Output = ()> + use<> {
        self.server.pause()
    }

    /// Takes no more connections and, if it is to be `graceful`, waits for requests under way and tells tunnels to end; at
    /// most `Config::drain_timeout`.
    pub fn stop(&self, graceful: bool) -> impl Future<Output = ()> + use<> {
        self.stop.tell();
        self.server.stop(graceful)
    }
}

/// Serves a bound port. The server runs when it is awaited or spawned, on an actix system; its handle stops it.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(
    listener: TcpListener,
    site: Site,
    tls: rustls::ServerConfig,
    admission: Arc<Admission>,
) -> io::Result<(Server, Handle)> {
    let config = site.config.clone();
    let stop = site.stop.clone();
    let site = web::Data::new(site);
    let builder = Server::build()
        .workers(config.workers)
        .max_concurrent_connections(config.connections_max.div_ceil(config.workers))
        .shutdown_timeout(config.drain_timeout.as_secs().max(1))
        .disable_signals();
    let draining = builder.graceful_shutdown_signal();
    // As actix-web's own server does it, with the line of those who wait for their turn in front of TLS.
    let service = move || {
        let (site, admission, draining) = (site.clone(), admission.clone(), draining.clone());
        let app = App::new().app_data(site).default_service(web::to(dispatch));
        let app = map_config(app.into_factory(), |()| AppConfig::default());
        let stall_timeout = config.stall_timeout;
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .keep_alive(config.keep_alive)
            .client_request_timeout(config.head_timeout)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .on_connect_ext(move |connection, extensions| begin(connection, extensions, stall_timeout))
            .finish(app)
            .rustls_0_23_with_config(
                tls.clone(),
                TlsAcceptorConfig::default().handshake_timeout(config.head_timeout),
            );
        fn_service(move |stream: TcpStream| {
            let admission = admission.clone();
            async move {
                tokio::select! {
                    biased;
                    () = admission.turn() => Ok(stream),
                    () = net::closed(&stream) => Err(TlsError::Service(DispatchError::Io(io::ErrorKind::NotConnected.into()))),
                }
            }
        })
        .and_then(http)
    };
    let server = builder.listen("https", listener, service)?.run();
    let handle = Handle {
        server: server.handle(),
        stop,
    };
    Ok((server, handle))
}
