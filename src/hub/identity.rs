//! Device and module identities, in the contract's JSON (identity and security, section 1).
//!
//! The same types read what a client sends and keep what the registry knows; the registry replaces what a client may
//! not write. Connection state and counters are kept as they were last told; who shows an identity puts the live ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::entropy::{Entropy, new_key};
use super::json::{self, null_default};
use crate::model::{DeviceId, Generation, ModuleId, UtcMillis};

/// IoT Hub, identity registry: decoded key length in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// IoT Hub, identity registry: characters of `statusReason`.
const STATUS_REASON_CHARS_MAX: usize = 128;
/// Bounds what an identity may store of what the contract leaves open (`attributes`, scopes, `managedBy`).
const EXTRAS_BYTES_MAX: usize = 8 * 1024;

/// Who connects: a device, or a module of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentityName {
    pub device: DeviceId,
    pub module: Option<ModuleId>,
}

impl IdentityName {
    pub fn device(device: DeviceId) -> Self {
        Self { device, module: None }
    }

    pub fn module(device: DeviceId, module: ModuleId) -> Self {
        Self {
            device,
            module: Some(module),
        }
    }
}

/// A device identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    #[serde(with = "json::device_id")]
    pub device_id: DeviceId,
    #[serde(default, with = "json::generation")]
    pub generation_id: Generation,
    #[serde(default, deserialize_with = "null_default")]
    pub etag: String,
    #[serde(default, deserialize_with = "null_default")]
    pub connection_state: ConnectionState,
    #[serde(default, with = "json::date")]
    pub connection_state_updated_time: Option<UtcMillis>,
    #[serde(default, deserialize_with = "null_default")]
    pub status: Status,
    #[serde(default)]
    pub status_reason: Option<String>,
    #[serde(default, with = "json::date")]
    pub status_updated_time: Option<UtcMillis>,
    #[serde(default, with = "json::date")]
    pub last_activity_time: Option<UtcMillis>,
    #[serde(default, deserialize_with = "null_default")]
    pub cloud_to_device_message_count: u32,
    #[serde(default, deserialize_with = "null_default")]
    pub authentication: Authentication,
    #[serde(default, deserialize_with = "null_default")]
    pub capabilities: Capabilities,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_scope: Option<String>,
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub parent_scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A module identity. It has no status of its own: disabling goes by device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleIdentity {
    #[serde(with = "json::module_id")]
    pub module_id: ModuleId,
    #[serde(with = "json::device_id")]
    pub device_id: DeviceId,
    #[serde(default)]
    pub managed_by: Option<String>,
    #[serde(default, with = "json::generation")]
    pub generation_id: Generation,
    #[serde(default, deserialize_with = "null_default")]
    pub etag: String,
    #[serde(default, deserialize_with = "null_default")]
    pub connection_state: ConnectionState,
    #[serde(default, with = "json::date")]
    pub connection_state_updated_time: Option<UtcMillis>,
    #[serde(default, with = "json::date")]
    pub last_activity_time: Option<UtcMillis>,
    #[serde(default, deserialize_with = "null_default")]
    pub cloud_to_device_message_count: u32,
    #[serde(default, deserialize_with = "null_default")]
    pub authentication: Authentication,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What others need to know of an identity's record, device's or module's: which life it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Life {
    #[serde(with = "json::generation")]
    pub generation_id: Generation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Enabled,
    Disabled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    #[default]
    Disconnected,
    Connected,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    #[serde(default, deserialize_with = "null_default")]
    pub iot_edge: bool,
}

/// How an identity proves itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    #[serde(default, deserialize_with = "null_default")]
    pub symmetric_key: KeyPair,
    #[serde(default, deserialize_with = "null_default")]
    pub x509_thumbprint: ThumbprintPair,
    #[serde(default, rename = "type", deserialize_with = "null_default")]
    pub kind: AuthenticationKind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AuthenticationKind {
    #[default]
    Sas,
    SelfSigned,
    CertificateAuthority,
    None,
}

/// Two keys of equal rights, so that one can be changed while the other is used. Base64.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyPair {
    #[serde(default)]
    pub primary_key: Option<String>,
    #[serde(default)]
    pub secondary_key: Option<String>,
}

/// Which of its credentials proved an identity, so that a change of them ends only what they no longer prove. Means
/// something within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proof(u64);

impl Proof {
    /// A policy's token, which no change of the identity concerns.
    pub const POLICY: Self = Self(1);
    /// A certificate that an authority vouches for.
    const AUTHORITY: Self = Self(2);

    fn of(credential: &str) -> Self {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        credential.hash(&mut hasher);
        Self(hasher.finish().max(3))
    }

    /// Never 0.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The inverse of `number`; `None` for 0.
    pub fn from_number(number: u64) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    pub fn of_key(key: &str) -> Self {
        Self::of(key)
    }

    pub fn of_thumbprint(thumbprint: &str) -> Self {
        Self::of(&thumbprint.to_ascii_lowercase())
    }

    pub fn of_authority() -> Self {
        Self::AUTHORITY
    }
}

/// SHA-1 or SHA-256 of the certificate, hexadecimal without separators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThumbprintPair {
    #[serde(default)]
    pub primary_thumbprint: Option<String>,
    #[serde(default)]
    pub secondary_thumbprint: Option<String>,
}

// Keys must not reach a log by way of a debug print.
impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

impl std::fmt::Debug for Authentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authentication")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Why an identity cannot be stored: the member at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    #[error("symmetricKey: give both keys or neither")]
    OneKey,
    #[error("symmetricKey: a key is not the base64 of 16 to 64 bytes")]
    Key,
    #[error("x509Thumbprint: a thumbprint is not 40 or 64 hexadecimal digits")]
    Thumbprint,
    #[error("x509Thumbprint: type selfSigned needs at least one thumbprint")]
    NoThumbprint,
    #[error("statusReason: longer than {STATUS_REASON_CHARS_MAX} characters")]
    StatusReason,
    #[error("attributes, scopes and managedBy: together longer than {EXTRAS_BYTES_MAX} bytes")]
    Extras,
}

impl KeyPair {
    pub fn generate(entropy: &dyn Entropy) -> Self {
        Self {
            primary_key: Some(new_key(entropy)),
            secondary_key: Some(new_key(entropy)),
        }
    }

    /// The keys that are there, primary first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        [&self.primary_key, &self.secondary_key]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Whether one of the decoded keys pleases.
    pub fn any_decoded(&self, matches: impl FnMut(&[u8]) -> bool) -> bool {
        self.find_decoded(matches).is_some()
    }

    /// The first key that pleases when it is decoded.
    pub fn find_decoded(&self, mut matches: impl FnMut(&[u8]) -> bool) -> Option<&str> {
        let mut decoded = [0; *KEY_BYTES.end() + 2];
        self.iter().find(|key| {
            let length = STANDARD.decode_slice(key, &mut decoded);
            length.is_ok_and(|length| matches(&decoded[..length]))
        })
    }

    pub(super) fn check(&self) -> Result<(), InvalidIdentity> {
        if self.primary_key.is_some() != self.secondary_key.is_some() {
            return Err(InvalidIdentity::OneKey);
        }
        let is_key = |key: &str| STANDARD.decode(key).is_ok_and(|key| KEY_BYTES.contains(&key.len()));
        if self.iter().all(is_key) {
            Ok(())
        } else {
            Err(InvalidIdentity::Key)
        }
    }
}

impl ThumbprintPair {
    /// The thumbprints that are there, primary first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        [&self.primary_thumbprint, &self.secondary_thumbprint]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    fn check(&self) -> Result<(), InvalidIdentity> {
        let is_thumbprint = |text: &str| matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if self.iter().all(is_thumbprint) {
            Ok(())
        } else {
            Err(InvalidIdentity::Thumbprint)
        }
    }
}

impl Authentication {
    /// Everything that proves the identity now.
    pub fn proofs(&self) -> Vec<Proof> {
        match self.kind {
            AuthenticationKind::Sas => self.symmetric_key.iter().map(Proof::of_key).collect(),
            AuthenticationKind::SelfSigned => self.x509_thumbprint.iter().map(Proof::of_thumbprint).collect(),
            AuthenticationKind::CertificateAuthority => vec![Proof::AUTHORITY],
            AuthenticationKind::None => Vec::new(),
        }
    }

    /// Checks, brings into the stored form, and makes keys where type `sas` has none.
    pub(super) fn settle(&mut self, entropy: &dyn Entropy) -> Result<(), InvalidIdentity> {
        // Some SDKs send empty text where they mean none.
        for text in [
            &mut self.symmetric_key.primary_key,
            &mut self.symmetric_key.secondary_key,
            &mut self.x509_thumbprint.primary_thumbprint,
            &mut self.x509_thumbprint.secondary_thumbprint,
        ] {
            if text.as_ref().is_some_and(String::is_empty) {
                *text = None;
            }
        }
        self.symmetric_key.check()?;
        self.x509_thumbprint.check()?;
        match self.kind {
            // IoT Hub: credentials are keys or certificates, not both at the same time.
            AuthenticationKind::Sas => {
                self.x509_thumbprint = ThumbprintPair::default();
                if self.symmetric_key.primary_key.is_none() {
                    self.symmetric_key = KeyPair::generate(entropy);
                }
            }
            AuthenticationKind::SelfSigned => {
                self.symmetric_key = KeyPair::default();
                if self.x509_thumbprint.iter().next().is_none() {
                    return Err(InvalidIdentity::NoThumbprint);
                }
            }
            AuthenticationKind::CertificateAuthority | AuthenticationKind::None => {
                self.symmetric_key = KeyPair::default();
                self.x509_thumbprint = ThumbprintPair::default();
            }
        }
        Ok(())
    }
}

impl DeviceIdentity {
    /// A device as a client asks for it: enabled, with generated keys.
    pub fn new(device_id: DeviceId) -> Self {
        Self {
            device_id,
            generation_id: Generation::default(),
            etag: String::new(),
            connection_state: ConnectionState::default(),
            connection_state_updated_time: None,
            status: Status::default(),
            status_reason: None,
            status_updated_time: None,
            last_activity_time: None,
            cloud_to_device_message_count: 0,
            authentication: Authentication::default(),
            capabilities: Capabilities::default(),
            device_scope: None,
            parent_scopes: Vec::new(),
            attributes: None,
        }
    }

    pub(super) fn settle(&mut self, entropy: &dyn Entropy) -> Result<(), InvalidIdentity> {
        if self
            .status_reason
            .as_ref()
            .is_some_and(|reason| reason.chars().count() > STATUS_REASON_CHARS_MAX)
        {
            return Err(InvalidIdentity::StatusReason);
        }
        let scopes = self.parent_scopes.iter().chain(&self.device_scope);
        check_extras(scopes.map(String::len).sum(), self.attributes.as_ref())?;
        self.authentication.settle(entropy)
    }
}

impl ModuleIdentity {
    /// A module as a client asks for it, with generated keys.
    pub fn new(device_id: DeviceId, module_id: ModuleId) -> Self {
        Self {
            module_id,
            device_id,
            managed_by: None,
            generation_id: Generation::default(),
            etag: String::new(),
            connection_state: ConnectionState::default(),
            connection_state_updated_time: None,
            last_activity_time: None,
            cloud_to_device_message_count: 0,
            authentication: Authentication::default(),
            attributes: None,
        }
    }

    pub(super) fn settle(&mut self, entropy: &dyn Entropy) -> Result<(), InvalidIdentity> {
        let managed_by = self.managed_by.as_ref().map_or(0, String::len);
        check_extras(managed_by, self.attributes.as_ref())?;
        self.authentication.settle(entropy)
    }
}

fn check_extras(
    text_bytes: usize,
    attributes: Option<&serde_json::Map<String, serde_json::Value>>,
) -> Result<(), InvalidIdentity> {
    let attributes = attributes.map_or(0, |map| {
        serde_json::to_string(map).map_or(usize::MAX, |text| text.len())
    });
    if text_bytes.saturating_add(attributes) > EXTRAS_BYTES_MAX {
        return Err(InvalidIdentity::Extras);
    }
    Ok(())
}
