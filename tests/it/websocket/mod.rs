//! WebSockets of an HTTPS server over real TLS: tunnels that do one thing each, and a client written by hand that may say
//! whatever a test wants said.

mod frames;
mod pressure;
mod upgrade;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay::http::serve::{Handle, serve};
use forebay::http::websocket::{Protocol, Tunneling, UpgradeRefused};
use forebay::http::{Config, Observer, Site, Tunnel, TunnelPeer};
use forebay::net::admission::Admission;
use forebay::server::{SystemClock, SystemEntropy};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// For what has to happen; nothing waits this long when it does.
const PATIENCE: Duration = Duration::from_secs(20);
/// Asked of the kernel for each end of a connection, so that what the server keeps stands out.
const SOCKET_BYTES: usize = 64 << 10;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0xa1, 0x02, 0x7f, 0x33];

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// What a tunnel does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sends back what it gets.
    Echo,
    /// Reads nothing, and never ends.
    Deaf,
    /// Writes without end.
    Talker,
    /// Writes this many bytes and is done.
    Speech(usize),
    /// Waits until the server stops; then it writes a word and is done.
    Patient,
}

/// A tunnel, and what can be seen of it.
#[derive(Debug)]
struct Scripted {
    kind: Kind,
    alive: AtomicUsize,
    /// Bytes it has written.
    written: AtomicU64,
    peers: Mutex<Vec<(usize, Option<SocketAddr>)>>,
}

struct Life(Arc<Scripted>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    async fn write(&self, stream: &mut DuplexStream, bytes: &[u8]) -> std::io::Result<()> {
        stream.write_all(bytes).await?;
        self.written.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    async fn play(&self, mut stream: DuplexStream, mut peer: TunnelPeer) -> std::io::Result<()> {
        match self.kind {
            Kind::Echo => {
                let mut bytes = [0; 4096];
                loop {
                    match stream.read(&mut bytes).await? {
                        0 => return Ok(()),
                        count => self.write(&mut stream, &bytes[..count]).await?,
                    }
                }
            }
            Kind::Deaf => std::future::pending().await,
            Kind::Talker => loop {
                self.write(&mut stream, &[7; 1024]).await?;
            },
            Kind::Speech(count) => self.write(&mut stream, &numbered(count)).await,
            Kind::Patient => {
                peer.stopping.told().await;
                self.write(&mut stream, b"farewell").await
            }
        }
    }
}

impl Tunnel for Scripted {
    fn protocol(&self) -> Protocol {
        Protocol::Amqp
    }

    fn run(self: Arc<Self>, stream: DuplexStream, peer: TunnelPeer) -> Tunneling {
        self.peers.lock().unwrap().push((peer.certificates.len(), peer.address));
        self.alive.fetch_add(1, Ordering::SeqCst);
        let life = Life(self.clone());
        Box::pin(async move {
            let life = life;
            // How it ends is for the client to see.
            let _ = life.0.play(stream, peer).await;
        })
    }
}

/// Bytes whose order shows.
fn numbered(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 251) as u8).collect()
}

#[derive(Default)]
struct Facts(Mutex<Vec<&'static str>>);

impl Observer for Facts {
    fn upgraded(&self, protocol: Protocol) {
        self.0.lock().unwrap().push(protocol.label());
    }

    fn upgrade_refused(&self, reason: UpgradeRefused) {
        self.0.lock().unwrap().push(reason.label());
    }
}

/// A server with one tunnel.
struct Host {
    address: SocketAddr,
    tunnel: Arc<Scripted>,
    facts: Arc<Facts>,
    tls: ClientConfig,
    tls_with_certificate: ClientConfig,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn start(kind: Kind) -> Self {
        Self::with(kind, |_| {})
    }

    fn with(kind: Kind, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            workers: 1,
            connections_max: 64,
            head_timeout: PATIENCE,
            body_timeout: PATIENCE,
            keep_alive: PATIENCE,
            stall_timeout: PATIENCE,
            body_bytes_max: 1 << 20,
            busy_timeout: PATIENCE,
            message_bytes_max: 1 << 20,
            drain_timeout: Duration::from_secs(2),
        };
        change(&mut config);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let chain = vec![made.cert.der().clone()];
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let (server_tls, [tls, tls_with_certificate]) = tls(&chain, &key, roots);

        let listener = listener(config.listen);
        let address = listener.local_addr().unwrap();

        let tunnel = Arc::new(Scripted {
            kind,
            alive: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            peers: Mutex::default(),
        });
        let facts = Arc::new(Facts::default());
        let site = Site::new(config, facts.clone(), Arc::new(SystemClock), &SystemEntropy).with_tunnel(tunnel.clone());
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async {
                let (server, handle) = serve(listener, site, server_tls, Arc::new(Admission::new(0))).unwrap();
                sender.send(handle).unwrap();
                server.await.unwrap();
            });
        });
        Self {
            address,
            tunnel,
            facts,
            tls,
            tls_with_certificate,
            handle: receiver.recv().unwrap(),
            thread: Some(thread),
        }
    }

    /// Begins to stop; ends when the server's thread does.
    fn stop(&mut self, graceful: bool) -> JoinHandle<()> {
        let (handle, thread) = (self.handle.clone(), self.thread.take().unwrap());
        let stop = handle.stop(graceful);
        std::thread::spawn(move || {
            actix_rt::System::new().block_on(stop);
            thread.join().unwrap();
        })
    }

    fn connect(&self) -> Client {
        let stream = connect(self.address);
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(self.tls.clone()), name).unwrap();
        Client(StreamOwned::new(connection, stream))
    }

    /// A client whose tunnel is open.
    fn open(&self) -> Client {
        let mut client = self.connect();
        let head = client.ask(&request("/$iothub/websocket", &upgrade_headers("AMQPWSB10")));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    fn alive(&self) -> usize {
        self.tunnel.alive.load(Ordering::SeqCst)
    }

    fn written(&self) -> u64 {
        self.tunnel.written.load(Ordering::SeqCst)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop(false).join().unwrap();
        }
    }
}

/// With buffers that are the same everywhere.
fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
    socket
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket = socket();
    socket.bind(&SockAddr::from(address)).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = socket();
    socket.connect(&SockAddr::from(address)).unwrap();
    socket.into()
}

/// The TLS of the server and of clients without and with a certificate: the server's own, which it trusts.
fn tls(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> (ServerConfig, [ClientConfig; 2]) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let shown = client
        .clone()
        .with_client_auth_cert(chain.to_vec(), key.clone_key())
        .unwrap();
    (server, [client.with_no_client_auth(), shown])
}

fn request(path: &str, headers: &[(&str, String)]) -> String {
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("GET {path} HTTP/1.1\r\nHost: localhost:443\r\n{lines}\r\n")
}

fn upgrade_headers(protocols: &str) -> Vec<(&'static str, String)> {
    vec![
        ("Upgrade", "websocket".into()),
        ("Connection", "Upgrade".into()),
        ("Sec-WebSocket-Version", "13".into()),
        ("Sec-WebSocket-Key", KEY.into()),
        ("Sec-WebSocket-Protocol", protocols.into()),
    ]
}

/// A client of TLS, and of WebSockets once a test made it one.
struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    /// The head of the answer.
    fn ask(&mut self, request: &str) -> String {
        self.0.write_all(request.as_bytes()).unwrap();
        self.head()
    }

    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// A masked frame.
    fn send(&mut self, first: u8, payload: &[u8]) {
        self.0.write_all(&masked(first, payload)).unwrap();
    }

    /// The first byte and the payload of a frame.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            short => {
                assert!(
                    short < 126,
                    "a server's frame is not masked, and none of these is so long"
                );
                usize::from(short)
            }
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        (head[0], payload)
    }

    /// This many bytes of binary frames.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let (first, payload) = self.frame();
            assert_eq!(first, BINARY);
            bytes.extend(payload);
        }
        bytes
    }

    /// What a close frame says.
    fn closed(&mut self) -> Option<u16> {
        let (first, payload) = self.frame();
        assert_eq!(first, CLOSE, "{payload:?}");
        payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }

    /// Waits for the end of the connection, with or without a word of TLS.
    fn is_over(&mut self) -> bool {
        loop {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Looks again and again until it is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}
