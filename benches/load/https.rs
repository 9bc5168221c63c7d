//! What does a message cost that a device posts over HTTPS, beside a server that does nothing but HTTPS?
//!
//! The client blocks in one thread a connection: its own cost is of no interest, and each connection has one request
//! under way, as the device SDKs have. Hub and bare server are measured one after the other in every run.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use forebay::client::tls::read_certificates;
use forebay::hub::sas;
use forebay::server::tls::DevFiles;
use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde::Serialize;

use crate::bare::Bare;
use crate::fleet;
use crate::hub::{Hub, Member};
use crate::measure::{Mark, Stretch, latencies, percentiles, record};
use crate::progress::Progress;
use crate::report::{Figure, Run};

/// A server that does not answer fails the measurement.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_SECONDS: u64 = 3600;

#[derive(Clone, Debug, Args, Serialize)]
pub struct HttpsArgs {
    /// Connections kept alive, each of a device of its own with one request under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Body of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,
    /// Measured time of each of the two servers
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, which does not count
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
}

impl HttpsArgs {
    /// # Errors
    /// The hub refuses, or is gone; the bare server does not start.
    pub async fn run(&self, hub: &Hub) -> anyhow::Result<Run> {
        ensure!(self.connections > 0, "there must be connections");
        let members = hub.members(self.connections).await?;
        let body = fleet::body(self.size);
        let requests = members
            .iter()
            .map(|member| request(hub, member, &body))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let ca = hub.ca_file();
        let (of_hub, latencies) = self.measure(hub.pid()?, hub.https_port(), ca, &requests).await?;
        // A hub of `dev` keeps its certificate beside its CA.
        let files = DevFiles::in_directory(ca.parent().context("the CA file has no folder")?);
        let bare = Bare::start(files.server_certificate, files.server_key)?;
        let (of_bare, _) = self.measure(bare.pid(), bare.port, ca, &requests).await?;
        let cost = |posted: &Posted| posted.stretch.server.total() / posted.count as f64 * 1e6;
        let mut figures = vec![
            Figure::new("server_cpu_us_per_message", cost(&of_hub), "us"),
            Figure::new("bare_cpu_us_per_message", cost(&of_bare), "us"),
            Figure::new("ratio_to_bare", cost(&of_hub) / cost(&of_bare), ""),
            Figure::new("messages_per_s", of_hub.count as f64 / of_hub.stretch.seconds, "1/s"),
            Figure::new("bare_per_s", of_bare.count as f64 / of_bare.stretch.seconds, "1/s"),
        ];
        figures.extend(percentiles(&latencies));
        Ok(Run {
            figures,
            latencies: Some(latencies),
        })
    }

    async fn measure(
        &self,
        pid: u32,
        port: u16,
        ca: &Path,
        requests: &[Vec<u8>],
    ) -> anyhow::Result<(Posted, Histogram<u64>)> {
        let shared = Arc::new(Shared::default());
        let tls = client_config(ca)?;
        let warmup = Duration::from_secs_f64(self.warmup);
        let measured_from = Instant::now() + warmup;
        let posters: Vec<_> = requests
            .iter()
            .map(|request| {
                let poster = Poster::connect(port, tls.clone(), request.clone())?;
                let shared = shared.clone();
                Ok(std::thread::spawn(move || poster.run(&shared, measured_from)))
            })
            .collect::<anyhow::Result<_>>()?;
        Progress::sleep("warm-up", warmup).await;
        let (before, counted) = (Mark::of(pid)?, shared.answered.load(Ordering::Relaxed));
        Progress::sleep("measure", Duration::from_secs_f64(self.seconds)).await;
        let (after, count) = (Mark::of(pid)?, shared.answered.load(Ordering::Relaxed) - counted);
        shared.stop.store(true, Ordering::Relaxed);
        let mut all = latencies();
        for poster in posters {
            let latencies = poster.join().expect("a poster does not panic")?;
            all.add(latencies)?;
        }
        let stretch = before.until(after);
        Ok((Posted { stretch, count }, all))
    }
}

struct Posted {
    stretch: Stretch,
    count: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
}

fn request(hub: &Hub, member: &Member, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (host, id) = (hub.host_name(), member.id.as_str());
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let key = STANDARD.decode(&member.key)?;
    let token = sas::generate(&format!("{host}/devices/{id}"), &key, now + TOKEN_SECONDS, None);
    let head = format!(
        "POST /devices/{id}/messages/events?api-version=2020-03-13 HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.as_bytes(), body].concat())
}

/// TLS as a TCP client without application protocols has it.
///
/// # Errors
/// The CA file cannot be read.
pub fn client_config(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("CA certificate", ca)? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// One connection.
struct Poster {
    stream: StreamOwned<ClientConnection, TcpStream>,
    request: Vec<u8>,
}

impl Poster {
    fn connect(port: u16, tls: Arc<ClientConfig>, request: Vec<u8>) -> anyhow::Result<Self> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let name = ServerName::try_from("localhost")?;
        Ok(Self {
            stream: StreamOwned::new(ClientConnection::new(tls, name)?, socket),
            request,
        })
    }

    /// Latencies count for requests begun at `measured_from` or later.
    fn run(mut self, shared: &Shared, measured_from: Instant) -> anyhow::Result<Histogram<u64>> {
        let mut latencies = latencies();
        while !shared.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.exchange()?;
            shared.answered.fetch_add(1, Ordering::Relaxed);
            if begun >= measured_from {
                record(&mut latencies, begun.elapsed(), 1)?;
            }
        }
        Ok(latencies)
    }

    fn exchange(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.request)?;
        let mut answer = [0; 2048];
        let mut filled = 0;
        while !answer[..filled].ends_with(b"\r\n\r\n") {
            ensure!(filled < answer.len(), "the answer's head is too long");
            match self.stream.read(&mut answer[filled..]).context("no answer")? {
                0 => bail!("the connection ended"),
                read => filled += read,
            }
        }
        if !answer.starts_with(b"HTTP/1.1 204 ") {
            bail!("not stored: {}", String::from_utf8_lossy(&answer[..filled]));
        }
        Ok(())
    }
}
