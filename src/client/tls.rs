//! TLS as the native client speaks it, and the reading of PEM files that client and server share.
//!
//! TLS 1.3 only, provider ring, ALPN [`ALPN`]. The server is trusted through the CA file that `endpoints.json` names,
//! never through the system's store: a hub usually has a CA of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The application protocol both ends must name; its version is the wire version.
pub const ALPN: &[u8] = b"forebay/1";

/// Why certificates, keys or a TLS configuration could not be had. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} {} cannot be read: {source}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is there and holds something else.
    #[error("{what} {}: {detail}", path.display())]
    Content {
        what: &'static str,
        path: PathBuf,
        detail: String,
    },
    #[error("certificate {} and key {} do not belong together: {detail}", certificate.display(), key.display())]
    Mismatch {
        certificate: PathBuf,
        key: PathBuf,
        detail: String,
    },
    #[error("certificate for {names}: {detail}")]
    Issue { names: String, detail: String },
    #[error("TLS set-up: {0}")]
    Setup(#[from] rustls::Error),
}

/// A certificate chain, leaf first, with the key of its leaf.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads a chain and its key.
    ///
    /// # Errors
    /// A file cannot be read, or holds no certificate or no private key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            chain: read_certificates("certificate", certificate)?,
            key: read_key(key)?,
        })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// All certificates of a PEM file, in its order; at least one. `what` names the file's part in messages.
///
/// # Errors
/// The file cannot be read, is no PEM, or has no certificate.
pub fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, path)?;
    let content = |detail: String| TlsError::Content {
        what,
        path: path.to_owned(),
        detail,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| content(format!("is not valid PEM: {error}")))?;
    if chain.is_empty() {
        return Err(content("has no certificate (no BEGIN CERTIFICATE)".to_owned()));
    }
    Ok(chain)
}

/// The first private key of a PEM file: PKCS #8, SEC 1 or PKCS #1.
///
/// # Errors
/// The file cannot be read, is no PEM, or has no private key.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "private key";
    let text = read(WHAT, path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::Content {
        what: WHAT,
        path: path.to_owned(),
        detail: match error {
            pem::Error::NoItemsFound => "has no private key (no BEGIN PRIVATE KEY)".to_owned(),
            other => format!("is not valid PEM: {other}"),
        },
    })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The cryptography of both ends. AES-128-GCM stands first: it is the cheapest suite on processors with AES
/// instructions, and QUIC needs it for its first packets anyway.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}

/// What a client's TLS needs.
#[derive(Debug)]
pub struct ClientTls {
    /// CAs that may vouch for the hub.
    pub roots: Vec<CertificateDer<'static>>,
    /// The device's own certificate, where it authenticates by one.
    pub identity: Option<Identity>,
    /// Hubs whose session tickets are kept for resumption and 0-RTT.
    pub resumptions_max: usize,
}

impl ClientTls {
    /// The usual client: a CA file and no certificate of its own.
    ///
    /// # Errors
    /// The file cannot be read or has no certificate.
    pub fn from_ca_file(path: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            roots: read_certificates("CA file", path)?,
            identity: None,
            resumptions_max: 8,
        })
    }
}

/// TLS for QUIC connections to a hub. Keep one for all connections of a device: it holds the tickets that make the next
/// handshake short.
///
/// # Errors
/// A root or the identity is unusable.
pub fn client_config(tls: ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in tls.roots {
        roots.add(root)?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match tls.identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(tls.resumptions_max);
    // What goes into early data is the caller's choice; only frames that may be repeated belong there.
    config.enable_early_data = true;
    Ok(Arc::new(config))
}
