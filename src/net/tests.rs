//! Connections over loopback: who gets a place, how long it is held, and what ends it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;

use actix_rt::{Arbiter, System};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsConnector;

use super::*;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Taken { is_tls: bool },
    Refused,
    Failed,
    Served { chain: usize, thread: ThreadId },
    GivenBack,
}

/// Sends back what it reads.
struct Echo {
    handshake_timeout: Duration,
    places_max: usize,
    places: AtomicUsize,
    /// Turns there are.
    turns: Semaphore,
    refuses_turns: AtomicBool,
    stop: watch::Sender<bool>,
    events: mpsc::UnboundedSender<Event>,
}

impl Echo {
    fn new(setting: Setting, events: mpsc::UnboundedSender<Event>) -> Arc<Self> {
        Arc::new(Self {
            handshake_timeout: setting.handshake_timeout,
            places_max: setting.places_max,
            places: AtomicUsize::new(0),
            turns: Semaphore::new(setting.turns),
            refuses_turns: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            events,
        })
    }
}

struct Place(Arc<Echo>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::Relaxed);
        let _ = self.0.events.send(Event::GivenBack);
    }
}

impl Host for Echo {
    type Place = Place;

    fn take_place(self: &Arc<Self>, is_tls: bool) -> Option<Place> {
        if self.places.load(Ordering::Relaxed) == self.places_max {
            let _ = self.events.send(Event::Refused);
            return None;
        }
        self.places.fetch_add(1, Ordering::Relaxed);
        let _ = self.events.send(Event::Taken { is_tls });
        Some(Place(self.clone()))
    }

    fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    fn handshake_failed(&self) {
        let _ = self.events.send(Event::Failed);
    }

    async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|is_stopped| *is_stopped).await;
    }

    async fn admitted(&self) -> bool {
        self.turns.acquire().await.expect("never closed").forget();
        !self.refuses_turns.load(Ordering::Relaxed)
    }

    async fn serve<S: Stream>(self: Arc<Self>, _place: Place, mut stream: S, chain: Vec<CertificateDer<'static>>) {
        let chain = chain.len();
        let thread = std::thread::current().id();
        let _ = self.events.send(Event::Served { chain, thread });
        while let Ok(bytes) = stream.fill_buf().await
            && !bytes.is_empty()
        {
            let bytes = bytes.to_vec();
            stream.consume(bytes.len());
            if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                break;
            }
        }
    }
}

struct Rig {
    host: Arc<Echo>,
    events: mpsc::UnboundedReceiver<Event>,
    address: SocketAddr,
    connector: TlsConnector,
    accepting: actix_rt::task::JoinHandle<()>,
    arbiters: Vec<Arbiter>,
}

#[derive(Clone, Copy)]
struct Setting {
    is_tls: bool,
    places_max: usize,
    turns: usize,
    handshake_timeout: Duration,
}

const TLS: Setting = Setting {
    is_tls: true,
    places_max: 100,
    turns: 100,
    handshake_timeout: PATIENCE,
};
const PLAIN: Setting = Setting { is_tls: false, ..TLS };

impl Rig {
    fn new(setting: Setting) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (told, events) = mpsc::unbounded_channel();
        let host = Echo::new(setting, told);
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let arbiters = vec![Arbiter::new(), Arbiter::new()];
        let handles = arbiters.iter().map(Arbiter::handle).collect();
        let tls = setting.is_tls.then(|| Arc::new(server));
        Self {
            accepting: actix_rt::spawn(accept(host.clone(), listener, tls, handles)),
            host,
            events,
            address,
            connector: TlsConnector::from(Arc::new(client)),
            arbiters,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The handshake of a client.
    async fn shake(&self, stream: TcpStream) -> tokio_rustls::client::TlsStream<TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        let shaken = tokio::time::timeout(PATIENCE, self.connector.connect(name, stream)).await;
        shaken.expect("the handshake ends").expect("the handshake succeeds")
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("something happens").expect("the host is there")
    }

    async fn expect(&mut self, expected: &[Event]) {
        for expected in expected {
            assert_eq!(self.event().await, *expected);
        }
    }

    async fn served(&mut self) -> ThreadId {
        match self.event().await {
            Event::Served { chain: 0, thread } => thread,
            other => panic!("{other:?}"),
        }
    }
}

/// Runs a test on a system, and ends the arbiters that it gives back.
fn run(test: impl AsyncFnOnce() -> Rig) {
    System::new().block_on(async {
        let rig = test().await;
        rig.accepting.abort();
        for arbiter in rig.arbiters {
            arbiter.stop();
            arbiter.join().unwrap();
        }
    });
}

async fn echoes(stream: &mut (impl tokio::io::AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"said").await.unwrap();
    let mut heard = [0; 4];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard)).await;
    read.expect("an answer").unwrap();
    assert_eq!(&heard, b"said");
}

/// Reads until the other side closes.
async fn closes(stream: &mut TcpStream) {
    let mut heard = Vec::new();
    // Refused while our bytes are unread, it is reset instead of ended.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard))
        .await
        .expect("it is closed");
}

#[test]
fn connections_are_served_in_turn_and_give_their_places_back() {
    run(async || {
        let mut rig = Rig::new(TLS);
        let mut threads = Vec::new();
        for _ in 0..4 {
            let stream = rig.connect().await;
            let mut stream = rig.shake(stream).await;
            echoes(&mut stream).await;
            rig.expect(&[Event::Taken { is_tls: true }]).await;
            threads.push(rig.served().await);
            drop(stream);
            rig.expect(&[Event::GivenBack]).await;
        }
        assert_ne!(threads[0], threads[1]);
        assert_eq!(threads[..2], threads[2..]);
        rig
    });
}

#[test]
fn loopback_is_served_without_tls() {
    run(async || {
        let mut rig = Rig::new(PLAIN);
        let mut stream = rig.connect().await;
        echoes(&mut stream).await;
        rig.expect(&[Event::Taken { is_tls: false }]).await;
        rig.served().await;
        rig
    });
}

#[test]
fn nothing_but_loopback_is_served_without_tls() {
    System::new().block_on(async {
        let (told, _events) = mpsc::unbounded_channel();
        let host = Echo::new(PLAIN, told);
        host.stop.send_replace(true);
        let listener = bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let accepting = actix_rt::spawn(accept(host, listener, None, Vec::new()));
        assert!(accepting.await.unwrap_err().is_panic());
    });
}

#[test]
fn a_handshake_that_never_ends_is_ended_after_its_time() {
    run(async || {
        let mut rig = Rig::new(Setting {
            handshake_timeout: HANDSHAKE_TIMEOUT,
            ..TLS
        });
        // One says nothing, the other half of a record.
        for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut stream = rig.connect().await;
            stream.write_all(said).await.unwrap();
            closes(&mut stream).await;
            rig.expect(&[Event::Taken { is_tls: true }, Event::Failed, Event::GivenBack])
                .await;
        }
        rig
    });
}

#[test]
fn a_handshake_that_fails_is_counted() {
    run(async || {
        let mut rig = Rig::new(TLS);
        let mut stream = rig.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closes(&mut stream).await;
        rig.expect(&[Event::Taken { is_tls: true }, Event::Failed, Event::GivenBack])
            .await;
        rig
    });
}

#[test]
fn there_are_no_more_connections_than_places() {
    run(async || {
        let mut rig = Rig::new(Setting { places_max: 1, ..TLS });
        let stream = rig.connect().await;
        let mut first = rig.shake(stream).await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        rig.served().await;
        let mut second = rig.connect().await;
        closes(&mut second).await;
        rig.expect(&[Event::Refused, Event::Failed]).await;
        echoes(&mut first).await;
        drop(first);
        rig.expect(&[Event::GivenBack]).await;
        let stream = rig.connect().await;
        echoes(&mut rig.shake(stream).await).await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        rig
    });
}

#[test]
fn a_stop_ends_accepting_and_leaves_what_is_served() {
    run(async || {
        let mut rig = Rig::new(TLS);
        let stream = rig.connect().await;
        let mut first = rig.shake(stream).await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        rig.served().await;
        rig.host.stop.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, &mut rig.accepting).await;
        ended.expect("accepting ends").unwrap();
        assert!(TcpStream::connect(rig.address).await.is_err(), "the port is free");
        echoes(&mut first).await;
        rig
    });
}

/// Else a hub that admits slowly would refuse those it let wait.
#[test]
fn waiting_for_a_turn_is_not_the_handshakes_time() {
    run(async || {
        let mut rig = Rig::new(Setting {
            turns: 0,
            handshake_timeout: Duration::from_secs(2),
            ..TLS
        });
        let stream = rig.connect().await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        let longer = rig.host.handshake_timeout + HANDSHAKE_TIMEOUT;
        let (mut stream, ()) = tokio::join!(rig.shake(stream), async {
            tokio::time::sleep(longer).await;
            rig.host.turns.add_permits(1);
        });
        echoes(&mut stream).await;
        rig.served().await;
        rig
    });
}

#[test]
fn who_is_not_admitted_is_refused() {
    run(async || {
        for setting in [TLS, PLAIN] {
            let mut rig = Rig::new(setting);
            rig.host.refuses_turns.store(true, Ordering::Relaxed);
            let mut stream = rig.connect().await;
            closes(&mut stream).await;
            let Setting { is_tls, .. } = setting;
            rig.expect(&[Event::Taken { is_tls }, Event::Failed, Event::GivenBack])
                .await;
        }
        Rig::new(TLS)
    });
}

#[test]
fn who_leaves_while_it_waits_uses_no_turn() {
    run(async || {
        let mut rig = Rig::new(Setting { turns: 0, ..TLS });
        let mut stream = rig.connect().await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        // What it said is no sign of its leaving.
        stream.write_all(b"\x16\x03\x01").await.unwrap();
        let early = tokio::time::timeout(HANDSHAKE_TIMEOUT, rig.events.recv()).await;
        assert!(early.is_err(), "{early:?}");
        drop(stream);
        rig.expect(&[Event::Failed, Event::GivenBack]).await;
        rig.host.turns.add_permits(1);
        let stream = rig.connect().await;
        echoes(&mut rig.shake(stream).await).await;
        rig
    });
}

#[test]
fn a_stop_ends_those_who_wait_for_a_turn() {
    run(async || {
        let mut rig = Rig::new(Setting { turns: 0, ..TLS });
        let mut stream = rig.connect().await;
        rig.expect(&[Event::Taken { is_tls: true }]).await;
        rig.host.stop.send_replace(true);
        closes(&mut stream).await;
        rig.expect(&[Event::Failed, Event::GivenBack]).await;
        rig
    });
}

/// Ten thousand idle connections are ten thousand tasks.
#[test]
fn a_task_is_small_beside_the_connection_it_serves() {
    System::new().block_on(async {
        let (told, _events) = mpsc::unbounded_channel();
        let host = Echo::new(PLAIN, told);
        let place = host.take_place(true).unwrap();
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let task = size_of_val(&serve(host, place, stream, None));
        let connection = size_of::<TlsStream<TcpStream>>();
        assert!(task < connection / 2, "{task} of {connection} bytes");
    });
}
