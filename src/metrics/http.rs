//! The operations port: `/metrics`, `/healthz`, `/readyz`, `/openapi.json`, and what the server adds.
//!
//! One worker, HTTP/1.1, no authentication of its own: it listens on the loopback address unless configured otherwise.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::Server;
use actix_web::{App, HttpResponse, HttpServer, web};
use serde::Serialize;

use super::registry::Metrics;

const CONNECTIONS_MAX: usize = 64;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Scrapers may close what is open; a stop does not wait for them longer than this.
const SHUTDOWN_SECONDS: u64 = 1;
/// A thread that has not turned for so long never will: only a restart helps. Far beyond what a busy one takes.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// Whether traffic should come here, and why not. Written by the server, read by `/readyz`.
#[derive(Debug)]
pub struct Readiness(Mutex<State>);

#[derive(Clone, Debug, Serialize)]
struct State {
    state: Phase,
    /// Part to what is wrong with it.
    reasons: BTreeMap<String, String>,
    /// Thread to when it last turned.
    #[serde(skip)]
    beats: BTreeMap<usize, Instant>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Mutex::new(State {
            state: Phase::Starting,
            reasons: BTreeMap::new(),
            beats: BTreeMap::new(),
        }))
    }
}

impl Readiness {
    pub fn set_phase(&self, phase: Phase) {
        self.lock().state = phase;
    }

    /// `part` is not able to serve; a second reason of the same part replaces the first.
    pub fn block(&self, part: &str, reason: impl Into<String>) {
        self.lock().reasons.insert(part.to_owned(), reason.into());
    }

    /// `part` serves again.
    pub fn unblock(&self, part: &str) {
        self.lock().reasons.remove(part);
    }

    /// A thread turns; from the first time on it must go on to say so.
    pub fn beat(&self, thread: usize, now: Instant) {
        self.lock().beats.insert(thread, now);
    }

    /// The thread that has not turned for longest, and for how long, if that is beyond what overload explains.
    fn stuck(&self, now: Instant) -> Option<(usize, Duration)> {
        let state = self.lock();
        let silent = state
            .beats
            .iter()
            .map(|(thread, last)| (*thread, now.saturating_duration_since(*last)));
        silent
            .max_by_key(|(_, silence)| *silence)
            .filter(|(_, silence)| *silence > STUCK_AFTER)
    }

    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.state == Phase::Ready && state.reasons.is_empty()
    }

    /// Where the process stands, and each part that cannot serve with what is wrong with it.
    pub fn state(&self) -> (Phase, BTreeMap<String, String>) {
        let state = self.lock();
        (state.state, state.reasons.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the operations port shows.
#[derive(Clone, Debug)]
pub struct OpsState {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// The document that describes the hub's routes.
    pub openapi: Arc<str>,
}

/// Serves the operations port on a bound listener, with whatever `further` adds. The returned server runs when it is
/// awaited or spawned, on an actix system; its handle stops it.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(
    listener: TcpListener,
    state: OpsState,
    further: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> io::Result<Server> {
    let app = move || {
        let app = App::new().app_data(web::Data::new(state.clone())).configure(routes);
        app.configure(&further)
    };
    Ok(HttpServer::new(app)
        .workers(1)
        .max_connections(CONNECTIONS_MAX)
        .client_request_timeout(REQUEST_TIMEOUT)
        // Whoever has gone while a request waits is noticed at once, and gives its place to the next.
        .h1_allow_half_closed(false)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals()
        .listen(listener)?
        .run())
}

fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/metrics", web::get().to(metrics))
        .route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .route("/openapi.json", web::get().to(openapi));
}

async fn metrics(state: web::Data<OpsState>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(state.metrics.render())
}

/// The process answers and its threads turn: it is alive. Whether it should get traffic is `/readyz`.
async fn healthz(state: web::Data<OpsState>) -> HttpResponse {
    let (mut answer, text) = match state.readiness.stuck(Instant::now()) {
        None => (HttpResponse::Ok(), "ok\n".to_owned()),
        Some((thread, silence)) => (
            HttpResponse::ServiceUnavailable(),
            format!("thread {thread} has not turned for {} s\n", silence.as_secs()),
        ),
    };
    answer.content_type("text/plain; charset=utf-8").body(text)
}

async fn readyz(state: web::Data<OpsState>) -> HttpResponse {
    let now = state.readiness.lock().clone();
    let is_ready = now.state == Phase::Ready && now.reasons.is_empty();
    let mut answer = if is_ready {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    answer.json(now)
}

async fn openapi(state: web::Data<OpsState>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json; charset=utf-8")
        .body(state.openapi.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::SystemTime;

    use super::*;

    fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_port_tells_metrics_health_and_readiness() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Arc::new(Readiness::default());
        let state = OpsState {
            metrics: Arc::new(Metrics::new(1, 2, "os", SystemTime::now())),
            readiness: readiness.clone(),
            openapi: "{\"openapi\":\"3.1.0\"}".into(),
        };
        let (send, receive) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async {
                let server = serve(listener, state, |_| {}).unwrap();
                send.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        let handle = receive.recv().unwrap();

        let metrics = get(address, "/metrics");
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("durability=\"os\"") && metrics.contains("forebay_messages_accepted_total 0"));
        assert!(get(address, "/healthz").ends_with("ok\n"));
        readiness.beat(0, Instant::now());
        readiness.beat(1, Instant::now());
        assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
        let long_ago = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(11));
        let long_ago = long_ago.expect("the machine has run for longer than a minute");
        readiness.beat(1, long_ago);
        let stuck = get(address, "/healthz");
        assert!(stuck.starts_with("HTTP/1.1 503"), "{stuck}");
        assert!(stuck.ends_with("thread 1 has not turned for 41 s\n"), "{stuck}");
        readiness.beat(1, Instant::now());
        assert!(get(address, "/healthz").ends_with("ok\n"));
        assert!(get(address, "/openapi.json").ends_with("{\"openapi\":\"3.1.0\"}"));
        assert!(get(address, "/other").starts_with("HTTP/1.1 404"));

        let starting = get(address, "/readyz");
        assert!(starting.starts_with("HTTP/1.1 503"), "{starting}");
        assert!(
            starting.ends_with("{\"state\":\"starting\",\"reasons\":{}}"),
            "{starting}"
        );
        readiness.set_phase(Phase::Ready);
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 200"));
        readiness.block("partition 3", "closed after an I/O error");
        let blocked = get(address, "/readyz");
        assert!(blocked.starts_with("HTTP/1.1 503"), "{blocked}");
        assert!(
            blocked.contains("\"partition 3\":\"closed after an I/O error\""),
            "{blocked}"
        );
        readiness.unblock("partition 3");
        assert!(readiness.is_ready());
        readiness.set_phase(Phase::Draining);
        assert!(get(address, "/readyz").contains("\"draining\""));

        actix_rt::System::new().block_on(handle.stop(true));
        server.join().unwrap();
    }
}
