//! The certificate that all doors serve, and how a new one takes its place while they do.
//!
//! ```text
//!   files ── look (every 2 s, or when told) ── new, and at rest? ── read and checked ── good ──> Certificate::replace
//!                                                                          └── bad: logged, counted; the old one stays
//! ```
//!
//! Invariants:
//! - Chain and key are replaced as one: a handshake never sees those of two certificates.
//! - What was begun under an earlier certificate is not resumed, so whoever connects sees the present one.
//! - Open connections are not touched.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, StoresServerSessions};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::X509Certificate;

use super::resumption::Resumptions;
use super::tls::{certificate_names, load_identity, parse};
use crate::client::tls::{Identity, TlsError, provider};
use crate::metrics::{CertificateName, Metrics};

/// How often the files are looked at. Reading two small files costs nothing, and needs no help of the file system, which
/// networked and mounted ones do not give.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// With less than this left, the log says so once a day.
const WARN_SECONDS: i64 = 14 * DAY_SECONDS;
const DAY_SECONDS: i64 = 86_400;

/// Where a certificate and its key are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// PEM, the leaf first.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why a certificate is not put in service.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("certificate {} expired at {}", path.display(), time_text(*at))]
    Expired { path: PathBuf, at: i64 },
    #[error("certificate {} is valid only from {}", path.display(), time_text(*from))]
    NotYetValid { path: PathBuf, from: i64 },
}

/// What a server's certificate says. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub not_before: i64,
    pub not_after: i64,
    /// DNS names and addresses, in lower case.
    pub names: Vec<String>,
    /// In hexadecimal digits.
    pub serial: String,
}

impl Leaf {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            names: certificate_names(certificate),
            serial: certificate.raw_serial_as_string().replace(':', ""),
        }
    }

    /// The first certificate of a PEM file.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn read(what: &'static str, path: &Path) -> Result<Self, TlsError> {
        let chain = crate::client::tls::read_certificates(what, path)?;
        Ok(Self::of(&parse(what, path, &chain[0])?))
    }

    /// # Errors
    /// It is not valid at `now`.
    pub fn check_time(&self, path: &Path, now: i64) -> Result<(), Unusable> {
        if now > self.not_after {
            return Err(Unusable::Expired {
                path: path.to_owned(),
                at: self.not_after,
            });
        }
        if now < self.not_before {
            return Err(Unusable::NotYetValid {
                path: path.to_owned(),
                from: self.not_before,
            });
        }
        Ok(())
    }

    /// Whether it is for this host.
    // RFC 6125 s6.4.3: an asterisk stands for one whole label, the leftmost.
    pub fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let behind_first = host.split_once('.').map(|(_, rest)| rest);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => behind_first == Some(parent),
            None => *name == host,
        })
    }
}

pub(super) fn time_text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

pub(crate) fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The certificate in service, and what its clients may resume.
#[derive(Debug)]
pub struct Certificate {
    current: ArcSwap<CertifiedKey>,
    /// Of QUIC; `None` turns resumption off.
    resumptions: Option<Resumptions>,
    /// Seals the sessions of the TCP doors.
    tickets: ArcSwap<Arc<dyn ProducesTickets>>,
}

impl Certificate {
    /// `resumptions_max`: sessions of QUIC that are remembered; 0 turns their resumption off.
    ///
    /// # Errors
    /// The key cannot be used or is another certificate's.
    pub fn new(identity: Identity, resumptions_max: usize) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(certified(identity)?),
            resumptions: (resumptions_max > 0).then(|| Resumptions::new(resumptions_max)),
            tickets: ArcSwap::from_pointee(rustls::crypto::ring::Ticketer::new()?),
        }))
    }

    /// Serves another one to all who connect from now on.
    ///
    /// # Errors
    /// As `new`; the old one stays.
    pub fn replace(&self, identity: Identity) -> Result<(), TlsError> {
        let new = certified(identity)?;
        let tickets = rustls::crypto::ring::Ticketer::new()?;
        self.current.store(Arc::new(new));
        self.tickets.store(Arc::new(tickets));
        if let Some(resumptions) = &self.resumptions {
            resumptions.forget();
        }
        Ok(())
    }
}

fn certified(identity: Identity) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(identity.chain, identity.key, &provider())?)
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl StoresServerSessions for Certificate {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.resumptions.as_ref().is_some_and(|held| held.put(key, value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumptions.as_ref()?.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumptions.as_ref()?.take(key)
    }

    fn can_cache(&self) -> bool {
        self.resumptions.is_some()
    }
}

impl ProducesTickets for Certificate {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.tickets.load().lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.load().encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.tickets.load().decrypt(cipher)
    }
}

/// What stands in the files; that they cannot be read is one of the things that may stand there.
type Content = Result<[u8; 32], String>;

/// Which contents were seen.
#[derive(Debug, Default)]
struct Seen {
    last: Option<Content>,
    /// The one that was read, whether it was good or bad.
    tried: Option<Content>,
}

impl Seen {
    /// Whether to read what stands there now. Files that are replaced one after the other are seen half replaced, so what is
    /// new has to stand there for two looks, unless somebody says that it is complete.
    fn is_due(&mut self, content: &Content, is_told: bool) -> bool {
        let is_at_rest = self.last.as_ref() == Some(content);
        self.last = Some(content.clone());
        let is_due = self.tried.as_ref() != Some(content) && (is_at_rest || is_told);
        if is_due {
            self.tried = Some(content.clone());
        }
        is_due
    }
}

/// Keeps the doors' certificate that of the files.
pub(super) struct Keeper {
    certificate: Arc<Certificate>,
    host_names: Vec<String>,
    metrics: Arc<Metrics>,
    not_after: AtomicI64,
    // One look at a time.
    watched: Mutex<(Files, Seen)>,
}

impl Keeper {
    /// `files`: where `certificate` was read.
    pub fn new(
        certificate: Arc<Certificate>,
        files: Files,
        host_names: Vec<String>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let content = read(&files);
        let seen = Seen {
            last: Some(content.clone()),
            tried: Some(content),
        };
        let leaf = Leaf::read("certificate", &files.certificate);
        let keeper = Self {
            certificate,
            host_names,
            metrics,
            not_after: AtomicI64::new(0),
            watched: Mutex::new((files, seen)),
        };
        if let Ok(leaf) = leaf {
            keeper.tell(&leaf);
        }
        Arc::new(keeper)
    }

    /// The names of the files may change: those are looked at next.
    pub fn set_files(&self, files: Files) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.0 != files {
            *watched = (files, Seen::default());
        }
    }

    pub fn files(&self) -> Files {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Looks at the files and serves what is new in them, if it is good. Blocks for the disk.
    pub fn look(&self, is_told: bool) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, seen) = &mut *watched;
        if !seen.is_due(&read(files), is_told) {
            return;
        }
        match self.load(files) {
            Ok(leaf) => {
                self.metrics.certificate_reloaded(true);
                tracing::info!(
                    serial = leaf.serial,
                    not_after = time_text(leaf.not_after),
                    "a new certificate is served"
                );
                self.tell(&leaf);
            }
            Err(error) => {
                self.metrics.certificate_reloaded(false);
                tracing::error!(%error, "the new certificate is refused: the old one is served on");
            }
        }
    }

    fn load(&self, files: &Files) -> Result<Leaf, Unusable> {
        let identity = load_identity(&files.certificate, &files.key)?;
        let leaf = Leaf::of(&parse("certificate", &files.certificate, &identity.chain[0])?);
        leaf.check_time(&files.certificate, now_seconds())?;
        self.certificate.replace(identity)?;
        Ok(leaf)
    }

    fn tell(&self, leaf: &Leaf) {
        self.not_after.store(leaf.not_after, Ordering::Relaxed);
        self.metrics
            .certificate_expires(CertificateName::Server, leaf.not_after);
        for host in self.host_names.iter().filter(|host| !leaf.is_for(host)) {
            tracing::warn!(
                host,
                names = leaf.names.join(", "),
                "the certificate is not for a name of identity.host_names: clients that call the hub so refuse it"
            );
        }
    }

    fn warn(&self) {
        let not_after = self.not_after.load(Ordering::Relaxed);
        let left = not_after - now_seconds();
        let not_after = time_text(not_after);
        match left {
            ..0 => tracing::error!(not_after, "the certificate has expired: clients refuse it"),
            0..WARN_SECONDS => tracing::warn!(not_after, "the certificate expires soon"),
            _ => {}
        }
    }

    /// Looks again and again, until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut warned = i64::MIN;
        loop {
            if now_seconds() / DAY_SECONDS != warned {
                warned = now_seconds() / DAY_SECONDS;
                self.warn();
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let keeper = self.clone();
            // A disk that hangs, hangs a thread that nobody waits for but this task.
            let _ = tokio::task::spawn_blocking(move || keeper.look(false)).await;
        }
    }
}

fn read(files: &Files) -> Content {
    let mut digest = Sha256::new();
    for path in [&files.certificate, &files.key] {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    Ok(digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_read_once_and_at_rest() {
        let content = |byte: u8| Ok::<_, String>([byte; 32]);
        let (first, half, second, gone) = (content(1), content(2), content(3), Err("gone".to_owned()));
        let mut seen = Seen::default();
        let looks: [(&Content, bool, bool); 13] = [
            (&first, false, false),
            (&first, false, true),
            (&first, false, false),
            // Replaced one file after the other.
            (&half, false, false),
            (&second, false, false),
            (&second, false, true),
            (&second, true, false),
            (&gone, false, false),
            (&gone, false, true),
            (&gone, false, false),
            // Back to what is served already: nothing is lost by reading it again.
            (&second, false, false),
            (&second, false, true),
            // Told that it is complete.
            (&first, true, true),
        ];
        for (number, (content, is_told, is_due)) in looks.into_iter().enumerate() {
            assert_eq!(seen.is_due(content, is_told), is_due, "look {number}");
        }
    }

    #[test]
    fn names_are_matched_as_clients_do() {
        let leaf = Leaf {
            not_before: 10,
            not_after: 20,
            names: ["a.example", "*.b.example", "10.0.0.1"].map(str::to_owned).to_vec(),
            serial: String::new(),
        };
        for (host, expected) in [
            ("a.example", true),
            ("A.Example", true),
            ("x.a.example", false),
            ("x.b.example", true),
            ("b.example", false),
            ("x.y.b.example", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
        ] {
            assert_eq!(leaf.is_for(host), expected, "{host}");
        }
        let path = Path::new("c.pem");
        assert!(matches!(
            leaf.check_time(path, 9),
            Err(Unusable::NotYetValid { from: 10, .. })
        ));
        assert!(leaf.check_time(path, 10).is_ok() && leaf.check_time(path, 20).is_ok());
        let expired = leaf.check_time(path, 21).unwrap_err().to_string();
        assert!(expired.contains("c.pem expired at 1970-01-01T00:00:20Z"), "{expired}");
    }
}
