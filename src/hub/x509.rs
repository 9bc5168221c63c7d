//! What the hub reads from a client's certificate: name, validity, thumbprints.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use subtle::ConstantTimeEq as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::model::UtcMillis;

/// A larger certificate is refused unread.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// A certificate's readable parts.
pub struct CertificateFacts {
    /// The subject's common name, if there is exactly one.
    pub common_name: Option<String>,
    /// For people: the whole subject.
    pub subject: String,
    /// Seconds since 1970, inclusive.
    pub not_before: i64,
    pub not_after: i64,
    pub is_authority: bool,
}

impl CertificateFacts {
    /// `None` if the bytes are not one certificate.
    pub fn read(der: &[u8]) -> Option<Self> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return None;
        }
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let subject = certificate.subject();
        let mut names = subject.iter_common_name();
        // Two names would let the certificate speak for two devices.
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok().map(str::to_owned),
            (Some(_), Some(_)) | (None, _) => None,
        };
        Some(Self {
            common_name,
            subject: subject.to_string(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_authority: certificate.is_ca(),
        })
    }

    pub fn is_valid_at(&self, now: UtcMillis) -> bool {
        (self.not_before..=self.not_after).contains(&now.seconds())
    }
}

/// Whether a thumbprint of 40 (SHA-1) or 64 (SHA-256) hexadecimal digits is this certificate's.
pub fn has_thumbprint(der: &[u8], thumbprint: &str) -> bool {
    let algorithm = match thumbprint.len() {
        40 => &SHA1_FOR_LEGACY_USE_ONLY,
        64 => &SHA256,
        _ => return false,
    };
    let own = hex(digest(algorithm, der).as_ref());
    own.as_bytes().ct_eq(thumbprint.to_ascii_lowercase().as_bytes()).into()
}

/// SHA-256 of a certificate, 64 hexadecimal digits.
pub fn thumbprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
