//! The listener and the way from a request to its room.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::body::{BodySize, BodyStream, BoxBody, MessageBody};
use actix_web::dev::{Extensions, Server};
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

use super::answer::{Answer, Refused};
use super::call::{self, Call, PeerChain};
use super::config::Config;
use super::observer::Observer;
use super::route::{Entry, Found, Route, find};
use crate::hub::{Entropy, ErrorCode};
use crate::model::time::Clock;

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
        let incoming = call::incoming(payload);
        let answered = match Call::new(request, incoming.clone(), self.clone()) {
            Err(refused) => Err(refused),
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
        match incoming.take() {
            Some(unread) => response.map_body(|_, body| Holding { body, _unread: unread }.boxed()),
            None => response,
        }
    }
}

/// An answer's body that keeps what was not read of the request until it is sent; see [`call::Incoming`].
struct Holding {
    body: BoxBody,
    _unread: Pin<Box<BodyStream<web::Payload>>>,
}

impl MessageBody for Holding {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<web::Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(context)
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

/// Keeps what a client proved in its handshake for the requests of the connection.
fn keep_certificates(connection: &dyn Any, extensions: &mut Extensions) {
    let stream = connection
        .downcast_ref::<TlsStream<TcpStream>>()
        .expect("the only listener speaks TLS");
    let (_, tls) = stream.get_ref();
    if let Some(chain) = tls.peer_certificates() {
        extensions.insert(PeerChain(chain.iter().map(|one| one.clone().into_owned()).collect()));
    }
}

/// Serves a bound port. The server runs when it is awaited or spawned, on an actix system; its handle stops it.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(listener: TcpListener, site: Site, tls: rustls::ServerConfig) -> io::Result<Server> {
    let config = site.config.clone();
    let site = web::Data::new(site);
    let app = move || App::new().app_data(site.clone()).default_service(web::to(dispatch));
    Ok(HttpServer::new(app)
        .on_connect(keep_certificates)
        .workers(config.workers)
        .max_connections(config.connections_max.div_ceil(config.workers))
        .tls_handshake_timeout(config.head_timeout)
        .client_request_timeout(config.head_timeout)
        .keep_alive(config.keep_alive)
        .shutdown_timeout(config.drain_timeout.as_secs().max(1))
        .disable_signals()
        .listen_rustls_0_23(listener, tls)?
        .run())
}
