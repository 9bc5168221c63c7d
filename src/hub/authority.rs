//! Registered certificate authorities, and whether a client's chain leads to one of them.
//!
//! ```text
//!   add ──> unverified ──challenge──> waits for a certificate of this name ──prove──> verified
//! ```
//!
//! Only verified ones count: an owner who is trusted may say so when it is added, anybody else shows that he holds the
//! authority's key by a certificate for a name that nobody could know before (IoT Hub, X.509: proof of possession). All are one record and held in memory, ready to verify with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde::{Deserialize, Serialize};

use super::code::ErrorCode;
use super::decide::{Answer, decide, decode, encode};
use super::entropy::Entropy;
use super::json;
use super::x509::{CertificateFacts, hex, thumbprint};
use crate::model::UtcMillis;
use crate::state::{Expected, State, StateError, Table, WriteBatch, blocking};

const KEY: &[u8] = b"authorities";
/// IoT Hub, quotas: CA certificates.
pub const AUTHORITIES_MAX: usize = 25;
pub const NAME_BYTES_MAX: usize = 64;
/// Certificates a client may send above its own.
pub const INTERMEDIATES_MAX: usize = 8;
/// Of chance in the name of a challenge.
const CHALLENGE_BYTES: usize = 20;

/// A registered certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    pub name: String,
    /// Base64 of the DER.
    pub certificate: String,
    pub subject: String,
    /// SHA-256, hexadecimal.
    pub thumbprint: String,
    #[serde(with = "json::date")]
    pub created: Option<UtcMillis>,
    /// Whether its owner has shown to hold the key. Others vouch for nobody.
    pub is_verified: bool,
    /// The common name that a proof must bear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

/// Why authorities were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("not the certificate of an authority")]
    NotAnAuthority,
    #[error("the certificate is not valid now")]
    NotValid,
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes")]
    Name,
    #[error("the name is taken")]
    Exists,
    #[error("there are {AUTHORITIES_MAX} authorities")]
    TooMany,
    #[error("no such authority")]
    NotFound,
    /// Ask for one first.
    #[error("the authority has no challenge that waits for its proof")]
    NoChallenge,
    #[error("the proof is no certificate that the authority signed for the name of the challenge, valid now")]
    NotProven,
    #[error(transparent)]
    State(#[from] StateError),
}

impl AuthorityError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotAnAuthority | Self::NotValid | Self::Name | Self::NoChallenge | Self::NotProven => {
                ErrorCode::ARGUMENT_INVALID
            }
            Self::Exists => ErrorCode::CONFLICT,
            Self::TooMany => ErrorCode::TOO_LARGE,
            Self::NotFound => ErrorCode::CERTIFICATE_NOT_FOUND,
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

/// The registered authorities. Cloning shares them.
#[derive(Clone)]
pub struct Authorities {
    state: Arc<dyn State>,
    entropy: Arc<dyn Entropy>,
    current: Arc<ArcSwap<Current>>,
}

#[derive(Default)]
struct Current {
    authorities: Vec<Authority>,
    /// `None` while no authority is verified.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Authorities {
    /// # Errors
    /// The store's.
    pub fn open(state: Arc<dyn State>, entropy: Arc<dyn Entropy>) -> Result<Self, StateError> {
        let raw = state.get(Table::Authorities, KEY)?;
        let authorities = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
        let current = Arc::new(ArcSwap::from_pointee(Current::of(authorities)));
        Ok(Self {
            state,
            entropy,
            current,
        })
    }

    pub fn list(&self) -> Vec<Authority> {
        self.current.load().authorities.clone()
    }

    /// Registers the certificate (DER) of an authority.
    pub fn add(
        &self,
        name: &str,
        certificate: &[u8],
        is_verified: bool,
        now: UtcMillis,
        done: impl FnOnce(Result<(), AuthorityError>) + Send + 'static,
    ) {
        let authority = match check(name, certificate, is_verified, now) {
            Ok(authority) => authority,
            Err(error) => return done(Err(error)),
        };
        self.change(Box::new(done), move |authorities| {
            if authorities.iter().any(|known| known.name == authority.name) {
                return Err(AuthorityError::Exists);
            }
            if authorities.len() >= AUTHORITIES_MAX {
                return Err(AuthorityError::TooMany);
            }
            authorities.push(authority.clone());
            Ok(())
        });
    }

    /// Lets an authority vouch for devices, or no longer.
    pub fn set_verified(
        &self,
        name: &str,
        is_verified: bool,
        done: impl FnOnce(Result<(), AuthorityError>) + Send + 'static,
    ) {
        let name = name.to_owned();
        self.change(Box::new(done), move |authorities| {
            let known = authorities.iter_mut().find(|known| known.name == name);
            known.ok_or(AuthorityError::NotFound)?.is_verified = is_verified;
            Ok(())
        });
    }

    /// Gives the name for which the holder of the authority's key is to sign a certificate. A newer one replaces it.
    pub fn challenge(&self, name: &str, done: impl FnOnce(Result<String, AuthorityError>) + Send + 'static) {
        let mut code = [0; CHALLENGE_BYTES];
        self.entropy.fill(&mut code);
        let code = hex(&code);
        let (name, told) = (name.to_owned(), code.clone());
        let done = move |result: Result<(), AuthorityError>| done(result.map(|()| told));
        self.change(Box::new(done), move |authorities| {
            let known = authorities.iter_mut().find(|known| known.name == name);
            known.ok_or(AuthorityError::NotFound)?.challenge = Some(code.clone());
            Ok(())
        });
    }

    /// Makes an authority a verified one by the certificate (DER) that it signed for the name of its challenge.
    pub fn prove(
        &self,
        name: &str,
        proof: &[u8],
        now: UtcMillis,
        done: impl FnOnce(Result<(), AuthorityError>) + Send + 'static,
    ) {
        let (name, proof) = (name.to_owned(), proof.to_owned());
        self.change(Box::new(done), move |authorities| {
            let known = authorities.iter_mut().find(|known| known.name == name);
            let known = known.ok_or(AuthorityError::NotFound)?;
            let challenge = known.challenge.as_ref().ok_or(AuthorityError::NoChallenge)?;
            let facts = CertificateFacts::read(&proof).ok_or(AuthorityError::NotProven)?;
            let has_signed = verifier([&*known]).is_some_and(|verifier| verifies(&*verifier, &proof, &[], now));
            if facts.common_name.as_ref() != Some(challenge) || !has_signed {
                return Err(AuthorityError::NotProven);
            }
            known.challenge = None;
            known.is_verified = true;
            Ok(())
        });
    }

    pub fn remove(&self, name: &str, done: impl FnOnce(Result<(), AuthorityError>) + Send + 'static) {
        let name = name.to_owned();
        self.change(Box::new(done), move |authorities| {
            let before = authorities.len();
            authorities.retain(|known| known.name != name);
            if authorities.len() == before {
                Err(AuthorityError::NotFound)
            } else {
                Ok(())
            }
        });
    }

    /// Waits for the answer of one of the calls above. For the command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn wait<R: Send + 'static>(&self, start: impl FnOnce(Answer<R, AuthorityError>)) -> Result<R, AuthorityError> {
        blocking(start).unwrap_or(Err(AuthorityError::State(StateError::Closed)))
    }

    /// Whether a leaf leads to a verified authority over these intermediates, each of them valid now. Costs a few
    /// signature checks.
    pub(super) fn vouch_for(&self, leaf: &[u8], intermediates: &[&[u8]], now: UtcMillis) -> bool {
        let current = self.current.load();
        let Some(verifier) = &current.verifier else {
            return false;
        };
        if intermediates.len() > INTERMEDIATES_MAX {
            return false;
        }
        verifies(&**verifier, leaf, intermediates, now)
    }

    fn change(
        &self,
        done: Answer<(), AuthorityError>,
        change: impl Fn(&mut Vec<Authority>) -> Result<(), AuthorityError> + Send + 'static,
    ) {
        let attempt = move |state: &dyn State| {
            let raw = state.get(Table::Authorities, KEY)?;
            let mut authorities: Vec<Authority> = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
            change(&mut authorities)?;
            let batch = WriteBatch::new()
                .expect(Table::Authorities, KEY, Expected::unchanged(raw.as_deref()))
                .put(Table::Authorities, KEY, encode(&authorities));
            Ok((batch, authorities))
        };
        let current = Arc::clone(&self.current);
        let stored = move |result: Result<Vec<Authority>, AuthorityError>| {
            done(result.map(|authorities| current.store(Arc::new(Current::of(authorities)))));
        };
        decide(&self.state, Box::new(attempt), Box::new(stored));
    }
}

impl Current {
    fn of(authorities: Vec<Authority>) -> Self {
        let verifier = verifier(authorities.iter().filter(|authority| authority.is_verified));
        Self { authorities, verifier }
    }
}

/// What checks chains that lead to one of these; `None` without any.
fn verifier<'a>(authorities: impl IntoIterator<Item = &'a Authority>) -> Option<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        // One that cannot be read vouches for nobody; it was readable when it was added.
        if let Ok(der) = STANDARD.decode(&authority.certificate) {
            let _ = roots.add(CertificateDer::from(der));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Refuses to be built without roots.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .ok()
}

fn verifies(verifier: &dyn ClientCertVerifier, leaf: &[u8], intermediates: &[&[u8]], now: UtcMillis) -> bool {
    let intermediates: Vec<_> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0.max(0) as u64));
    verifier
        .verify_client_cert(&CertificateDer::from(leaf), &intermediates, now)
        .is_ok()
}

fn check(name: &str, certificate: &[u8], is_verified: bool, now: UtcMillis) -> Result<Authority, AuthorityError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(AuthorityError::Name);
    }
    let facts = CertificateFacts::read(certificate).ok_or(AuthorityError::NotAnAuthority)?;
    let is_usable = RootCertStore::empty().add(CertificateDer::from(certificate)).is_ok();
    if !facts.is_authority || !is_usable {
        return Err(AuthorityError::NotAnAuthority);
    }
    if !facts.is_valid_at(now) {
        return Err(AuthorityError::NotValid);
    }
    Ok(Authority {
        name: name.to_owned(),
        certificate: STANDARD.encode(certificate),
        subject: facts.subject,
        thumbprint: thumbprint(certificate),
        created: Some(now),
        is_verified,
        challenge: None,
    })
}
