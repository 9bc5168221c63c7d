//! The server's TLS: a development CA, certificates from files, and the QUIC configuration.
//!
//! `dev` makes a CA once and a server certificate whenever the old one does not name every host or runs out; the CA
//! stays the same, so clients that trust it keep working. `serve` reads what it is given and makes nothing.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::StoresServerSessions as _;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certificate::{Certificate, Files};
use crate::client::tls::{ALPN, Identity, TlsError, provider, read_certificates, read_key};

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 3_650;
const SERVER_DAYS: u32 = 730;
/// A server certificate with less than this left is replaced at the next start.
const RENEW_DAYS: u32 = 30;
/// Certificates start this much in the past, for clients whose clock is behind.
const BACKDATE: Duration = DAY;
/// Longest chain of a client that is looked at.
const CLIENT_CHAIN_MAX: usize = 8;

/// Where `dev` keeps its CA and server certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevFiles {
    /// What clients trust.
    pub ca_certificate: PathBuf,
    pub ca_key: PathBuf,
    pub server_certificate: PathBuf,
    pub server_key: PathBuf,
}

impl DevFiles {
    /// What the doors serve.
    pub fn server(&self) -> Files {
        Files {
            certificate: self.server_certificate.clone(),
            key: self.server_key.clone(),
        }
    }

    pub fn in_directory(directory: &Path) -> Self {
        Self {
            ca_certificate: directory.join("ca.pem"),
            ca_key: directory.join("ca-key.pem"),
            server_certificate: directory.join("server.pem"),
            server_key: directory.join("server-key.pem"),
        }
    }
}

/// Makes or keeps the development CA and a server certificate for `host_names`, `localhost`, 127.0.0.1 and ::1.
/// Key files can be read by their owner only.
///
/// # Errors
/// A file cannot be read or written, holds something else, or a name cannot stand in a certificate. Existing files are
/// never replaced because they are unreadable: a lost CA would lock out its clients.
pub fn ensure_dev_certificates(directory: &Path, host_names: &[String], now: SystemTime) -> Result<DevFiles, TlsError> {
    let files = DevFiles::in_directory(directory);
    fs::create_dir_all(directory).map_err(|source| write_error(directory, source))?;
    let ca_key = ensure_ca(&files, now)?;
    let names = subject_names(host_names);
    if !is_current(&files, &names, now)? {
        issue_server_certificate(&files, ca_key, &names, now)?;
    }
    Ok(files)
}

fn subject_names(host_names: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in host_names
        .iter()
        .map(String::as_str)
        .chain(["localhost", "127.0.0.1", "::1"])
    {
        let name = name.to_ascii_lowercase();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn ensure_ca(files: &DevFiles, now: SystemTime) -> Result<KeyPair, TlsError> {
    let parts_exist = (files.ca_certificate.exists(), files.ca_key.exists());
    match parts_exist {
        (true, true) => {
            read_certificates("CA certificate", &files.ca_certificate)?;
            let key = read_key(&files.ca_key)?;
            return KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(|error| TlsError::Content {
                what: "CA key",
                path: files.ca_key.clone(),
                detail: error.to_string(),
            });
        }
        (true, false) => return Err(half_a_ca(&files.ca_key, &files.ca_certificate)),
        // The key is written first, so a start that was cut off between the two left only the key. Nobody can trust a
        // CA whose certificate never existed, hence the key may be replaced.
        (false, _) => {}
    }
    let key = new_key(&["CA".to_owned()])?;
    let mut params = ca_params(&key);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + DAY * CA_DAYS).into();
    let certificate = params
        .self_signed(&key)
        .map_err(|error| issue_error(&["CA".to_owned()], &error))?;
    write_private(&files.ca_key, &key.serialize_pem())?;
    write_public(&files.ca_certificate, &certificate.pem())?;
    Ok(key)
}

fn half_a_ca(missing: &Path, present: &Path) -> TlsError {
    TlsError::Content {
        what: "CA certificate",
        path: present.to_owned(),
        detail: format!(
            "its key {} is missing; restore it, or remove the certificate to make a new CA",
            missing.display()
        ),
    }
}

/// The CA's fields; its name follows from its key, so that two development CAs in one trust store differ and the same
/// fields come out again when the next server certificate is signed.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let mut suffix = String::new();
    for byte in &Sha256::digest(key.public_key_raw())[..4] {
        write!(suffix, "{byte:02x}").expect("writing to a String cannot fail");
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Forebay development CA {suffix}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Whether the server certificate names all of `names`, is signed by this CA and lasts long enough.
fn is_current(files: &DevFiles, names: &[String], now: SystemTime) -> Result<bool, TlsError> {
    if !files.server_certificate.exists() || !files.server_key.exists() {
        return Ok(false);
    }
    let identity = Identity::load(&files.server_certificate, &files.server_key)?;
    let ca = read_certificates("CA certificate", &files.ca_certificate)?;
    let certificate = parse("certificate", &files.server_certificate, &identity.chain[0])?;
    let ca = parse("CA certificate", &files.ca_certificate, &ca[0])?;
    let key = KeyPair::from_der_and_sign_algo(&identity.key, &PKCS_ECDSA_P256_SHA256);
    let key_fits = key.is_ok_and(|key| certificate.public_key().subject_public_key.data == key.public_key_raw());
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let lasts = certificate.validity().not_after.timestamp() > seconds(now + DAY * RENEW_DAYS) as i64;
    let present = certificate_names(&certificate);
    // The CA's name carries a digest of its key, so it stands for the key.
    let is_signed = certificate.issuer().as_raw() == ca.subject().as_raw();
    Ok(key_fits && lasts && is_signed && names.iter().all(|name| present.contains(name)))
}

pub(super) fn parse<'a>(
    what: &'static str,
    path: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, TlsError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|error| TlsError::Content {
            what,
            path: path.to_owned(),
            detail: format!("is not a valid X.509 certificate: {error}"),
        })
}

/// Subject alternative names as text, in lower case.
pub(super) fn certificate_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(IpAddr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

fn issue_server_certificate(
    files: &DevFiles,
    ca_key: KeyPair,
    names: &[String],
    now: SystemTime,
) -> Result<(), TlsError> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(|error| issue_error(names, &error))?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, names[0].as_str());
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + DAY * SERVER_DAYS).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = new_key(names)?;
    let issuer = Issuer::new(ca_params(&ca_key), ca_key);
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(|error| issue_error(names, &error))?;
    // A start cut off between the two leaves a pair that does not fit, which `is_current` sees and replaces.
    write_private(&files.server_key, &key.serialize_pem())?;
    write_public(&files.server_certificate, &certificate.pem())
}

fn new_key(names: &[String]) -> Result<KeyPair, TlsError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| issue_error(names, &error))
}

fn issue_error(names: &[String], error: &rcgen::Error) -> TlsError {
    TlsError::Issue {
        names: names.join(", "),
        detail: error.to_string(),
    }
}

fn write_error(path: &Path, source: std::io::Error) -> TlsError {
    TlsError::Write {
        path: path.to_owned(),
        source,
    }
}

fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    write_whole(path, text, 0o600)
}

fn write_public(path: &Path, text: &str) -> Result<(), TlsError> {
    write_whole(path, text, 0o644)
}

/// Writes beside the file and renames, so that nobody ever reads half of it and the mode holds from the first byte.
fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = (|| {
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(|source| write_error(path, source))
}

/// Reads the operator's own certificate and key and checks that they belong together.
///
/// # Errors
/// Names the file that is missing, unreadable, of another kind, or that does not fit the other.
pub fn load_identity(certificate: &Path, key: &Path) -> Result<Identity, TlsError> {
    let identity = Identity::load(certificate, key)?;
    for der in &identity.chain {
        parse("certificate", certificate, der)?;
    }
    let keys = provider();
    rustls::sign::CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &keys).map_err(|error| {
        TlsError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            detail: error.to_string(),
        }
    })?;
    Ok(identity)
}

/// TLS for the QUIC door. One for all endpoints of a process: resumption works only where the sessions are remembered.
///
/// A client may show a certificate; any well-formed one whose key signs the handshake is let through, because who may
/// in is decided by the hub, from the chain and the registry. Early data of any size is accepted: the duplicate filter
/// makes a replay harmless.
///
/// # Errors
/// rustls has none of the protocols.
pub fn server_config(certificate: &Arc<Certificate>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyClientCertificate { provider }))
        .with_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    // Sessions are remembered here and not sealed into tickets: rustls refuses early data when a ticketer is set, since
    // only a memory can see that a ticket is used twice.
    config.session_storage = certificate.clone();
    // A device comes back once; each time it is given the next.
    config.send_tls13_tickets = 1;
    // QUIC knows only all or nothing here (RFC 9001 s4.6.1).
    config.max_early_data_size = if certificate.can_cache() { u32::MAX } else { 0 };
    config.send_half_rtt_data = true;
    Ok(Arc::new(config))
}

/// TLS for the TCP ports: 1.2 and 1.3. A client may show a certificate, on the terms of the QUIC door. Sessions
/// are sealed into tickets that clients keep, under keys of this process that change every six hours and with each
/// certificate; so any number of clients resume, and none costs memory.
///
/// # Errors
/// rustls has none of the protocols.
// IoT Hub, SDKs: azure-iot-device (Python) speaks TLS 1.2 only. ALPN is never required.
pub fn https_config(certificate: &Arc<Certificate>) -> Result<ServerConfig, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    // As in the QUIC door's provider, and for its reason.
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    let provider = Arc::new(provider);
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(AnyClientCertificate { provider }))
        .with_cert_resolver(certificate.clone());
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A client takes one for each connection, and gets a new one with it.
    config.send_tls13_tickets = 1;
    config.ticketer = certificate.clone();
    Ok(config)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// What each door needs of one certificate.
#[derive(Clone)]
pub struct DoorTls {
    pub quic: Arc<ServerConfig>,
    pub https: ServerConfig,
    pub certificate: Arc<Certificate>,
    /// Where it was read, and is read again when they change.
    pub files: Files,
}

impl DoorTls {
    /// An expired certificate is taken: a hub that runs can say so, and takes a new one without a restart.
    ///
    /// # Errors
    /// The certificate or its key cannot be read or used.
    pub fn load(files: Files, config: &crate::config::Config) -> Result<Self, TlsError> {
        let identity = load_identity(&files.certificate, &files.key)?;
        let certificate = Certificate::new(identity, config.quic.resumptions_max as usize)?;
        Ok(Self {
            https: https_config(&certificate)?,
            quic: server_config(&certificate)?,
            certificate,
            files,
        })
    }
}

/// Asks for a certificate, needs none, and takes any that is one and whose key signed the handshake.
#[derive(Debug)]
struct AnyClientCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClientCertificate {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() >= CLIENT_CHAIN_MAX {
            return Err(CertificateError::BadEncoding.into());
        }
        ParsedCertificate::try_from(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
