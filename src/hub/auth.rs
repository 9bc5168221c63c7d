//! Who is at the door, and what may they do.
//!
//! Reads one identity and checks one credential against it; cost some microseconds, a chain of certificates some
//! hundred. `AuthError::code` is what a peer may be told, `label` what a metric counts, `Display` what the log says: a
//! peer learns that an identity exists only once it has proved itself.

use subtle::ConstantTimeEq as _;

use super::authority::Authorities;
use super::code::ErrorCode;
use super::identity::{Authentication, AuthenticationKind, IdentityName, Proof, Status};
use super::policy::{Permissions, Policies, Policy};
use super::registry::{Registry, RegistryError};
use super::sas::{Resource, SasError, SasToken};
use super::x509::{CertificateFacts, has_thumbprint};
use crate::model::{Generation, PolicyName, UtcMillis};
use crate::state::StateError;

/// What a device shows.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// The text of a token.
    Sas(&'a str),
    /// DER as TLS received it: the handshake has shown that the peer holds the leaf's key, and nothing else.
    Certificate {
        leaf: &'a [u8],
        intermediates: &'a [&'a [u8]],
    },
    Nothing,
}

/// How an identity was proved; stamped on its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// A policy's token.
    HubSas,
    DeviceSas,
    ModuleSas,
    DeviceX509,
    ModuleX509,
}

impl AuthMethod {
    /// The value of `iothub-connection-auth-method`.
    // IoT Hub, message format section 4.
    pub fn json(self) -> &'static str {
        match self {
            Self::HubSas => r#"{"scope":"hub","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#,
            Self::DeviceSas => r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#,
            Self::ModuleSas => r#"{"scope":"module","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#,
            Self::DeviceX509 => r#"{"scope":"device","type":"x509","issuer":"iothub","acceptingIpFilterRule":null}"#,
            Self::ModuleX509 => r#"{"scope":"module","type":"x509","issuer":"iothub","acceptingIpFilterRule":null}"#,
        }
    }
}

/// A device or module that proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub identity: IdentityName,
    pub generation: Generation,
    pub method: AuthMethod,
    /// By which credential.
    pub proof: Proof,
    pub permissions: Permissions,
    /// When the session must end: the token's or the leaf certificate's. `None`: never by itself.
    pub expires: Option<UtcMillis>,
}

/// A service that proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAuthenticated {
    pub policy: PolicyName,
    pub permissions: Permissions,
    /// What the token is for; `None` if the key itself was shown. Doors of Event Hubs ask it for each link.
    pub scope: Option<Resource>,
    pub expires: Option<UtcMillis>,
}

/// Why a credential was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthError {
    #[error("no credential")]
    Missing,
    #[error("the token cannot be read: it {0}")]
    Malformed(SasError),
    #[error("the token has expired")]
    Expired,
    #[error("the token was made for something else")]
    Scope,
    #[error("no key made this signature")]
    Signature,
    #[error("no such policy")]
    UnknownPolicy,
    /// The credential might be right, nobody can tell.
    #[error("no such identity")]
    UnknownIdentity,
    #[error("the identity proves itself in another way")]
    WrongKind,
    #[error("the certificate cannot be read")]
    CertificateMalformed,
    #[error("the certificate is not valid now")]
    CertificateExpired,
    #[error("the certificate has none of the thumbprints")]
    Thumbprint,
    #[error("the certificate has another name")]
    CommonName,
    #[error("no registered authority vouches for the certificate")]
    Chain,
    #[error("the client asked for another hub")]
    UnknownHost,
    /// The credential is right, its policy lacks the right.
    #[error("the policy does not grant {wanted}")]
    NotPermitted { wanted: Permissions },
    /// The credential is right: a policy's.
    #[error("no such device")]
    DeviceNotFound,
    /// The credential is right: a policy's.
    #[error("no such module")]
    ModuleNotFound,
    /// The credential is right.
    #[error("the device is disabled")]
    Disabled,
    #[error("the registry cannot be read")]
    Unavailable(#[source] StateError),
}

impl AuthError {
    /// What a peer may be told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing
            | Self::Malformed(_)
            | Self::Expired
            | Self::Scope
            | Self::Signature
            | Self::UnknownPolicy
            | Self::UnknownIdentity
            | Self::WrongKind
            | Self::CertificateMalformed
            | Self::CertificateExpired
            | Self::Thumbprint
            | Self::CommonName
            | Self::Chain => ErrorCode::UNAUTHORIZED,
            Self::UnknownHost => ErrorCode::HUB_NOT_FOUND,
            Self::NotPermitted { .. } => ErrorCode::UNAUTHORIZED_ACCESS,
            Self::DeviceNotFound => ErrorCode::DEVICE_NOT_FOUND,
            Self::ModuleNotFound => ErrorCode::MODULE_NOT_FOUND,
            Self::Disabled => ErrorCode::DEVICE_DISABLED,
            Self::Unavailable(_) => ErrorCode::SERVER_ERROR,
        }
    }

    /// Every value of [`label`](Self::label).
    pub const LABELS: [&'static str; 19] = [
        "missing",
        "malformed",
        "expired",
        "scope",
        "signature",
        "unknown_policy",
        "unknown_identity",
        "wrong_kind",
        "certificate_malformed",
        "certificate_expired",
        "thumbprint",
        "common_name",
        "chain",
        "unknown_host",
        "not_permitted",
        "device_not_found",
        "module_not_found",
        "disabled",
        "unavailable",
    ];

    /// The value of a metric's label; a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed(_) => "malformed",
            Self::Expired => "expired",
            Self::Scope => "scope",
            Self::Signature => "signature",
            Self::UnknownPolicy => "unknown_policy",
            Self::UnknownIdentity => "unknown_identity",
            Self::WrongKind => "wrong_kind",
            Self::CertificateMalformed => "certificate_malformed",
            Self::CertificateExpired => "certificate_expired",
            Self::Thumbprint => "thumbprint",
            Self::CommonName => "common_name",
            Self::Chain => "chain",
            Self::UnknownHost => "unknown_host",
            Self::NotPermitted { .. } => "not_permitted",
            Self::DeviceNotFound => "device_not_found",
            Self::ModuleNotFound => "module_not_found",
            Self::Disabled => "disabled",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// Checks credentials against the registry, the policies and the authorities. Cloning shares it.
#[derive(Clone)]
pub struct Authenticator {
    registry: Registry,
    policies: Policies,
    authorities: Authorities,
    host_names: std::sync::Arc<[String]>,
}

/// What the registry knows of who is at the door.
struct Known {
    generation: Generation,
    authentication: Authentication,
    is_enabled: bool,
}

impl Authenticator {
    /// `host_names` are the names of this hub, see `HubConfig`.
    pub fn new(registry: Registry, policies: Policies, authorities: Authorities, host_names: &[String]) -> Self {
        Self {
            registry,
            policies,
            authorities,
            host_names: host_names.into(),
        }
    }

    /// Checks the credential of a device or module that connects as `wanted` to `host_name`.
    ///
    /// # Errors
    /// `AuthError`; nothing was granted.
    pub fn authenticate(
        &self,
        credential: Credential<'_>,
        wanted: &IdentityName,
        host_name: &str,
        now: UtcMillis,
    ) -> Result<Authenticated, AuthError> {
        self.check_host(host_name)?;
        match credential {
            Credential::Sas(text) => self.by_token(&self.read(text, now)?, wanted),
            Credential::Certificate { leaf, intermediates } => self.by_certificate(leaf, intermediates, wanted, now),
            Credential::Nothing => Err(AuthError::Missing),
        }
    }

    /// Checks a policy's token for the whole hub and one right, as REST and the hub's AMQP endpoints need it.
    ///
    /// # Errors
    /// `AuthError`; nothing was granted.
    pub fn authenticate_service(
        &self,
        token: &str,
        wanted: Permissions,
        host_name: &str,
        now: UtcMillis,
    ) -> Result<ServiceAuthenticated, AuthError> {
        self.check_host(host_name)?;
        let token = self.read(token, now)?;
        // IoT Hub, SAS: a service's token is for the hub, there is no finer scope.
        if token.resource().has_scheme() || !token.resource().is_hub() {
            return Err(AuthError::Scope);
        }
        self.by_policy(&token, wanted, |policy| is_signed_by_decoded(&token, policy))
    }

    /// Checks a policy's token on the Event Hubs surface, for an address such as `messages/consumergroups/$Default`
    /// (empty: the whole hub). Ask `scope` of the answer for each link that leans on it.
    ///
    /// # Errors
    /// `AuthError`; nothing was granted.
    pub fn authenticate_eventhub(
        &self,
        token: &str,
        address: &str,
        host_name: &str,
        now: UtcMillis,
    ) -> Result<ServiceAuthenticated, AuthError> {
        self.check_host(host_name)?;
        let token = self.read(token, now)?;
        if !token.resource().covers_address(address) {
            return Err(AuthError::Scope);
        }
        // Its clients sign with the text of the key; one old library, given a hub's connection string, with the bytes.
        self.by_policy(&token, Permissions::SERVICE_CONNECT, |policy| {
            let is_text = policy.keys.iter().any(|key| token.is_signed_by(key.as_bytes()));
            is_text || is_signed_by_decoded(&token, policy)
        })
    }

    /// Checks a policy's key itself, as Kafka clients send it in a connection string.
    ///
    /// # Errors
    /// `AuthError`; nothing was granted.
    pub fn authenticate_key(
        &self,
        policy: &str,
        key: &str,
        wanted: Permissions,
    ) -> Result<ServiceAuthenticated, AuthError> {
        let name = PolicyName::new(policy).map_err(|_| AuthError::UnknownPolicy)?;
        let checked = self.policies.with(&name, |policy| {
            let is_equal = |known: &str| bool::from(known.as_bytes().ct_eq(key.as_bytes()));
            policy
                .keys
                .iter()
                .any(is_equal)
                .then_some(policy.rights)
                .ok_or(AuthError::Signature)
        });
        let permissions = checked.ok_or(AuthError::UnknownPolicy)??;
        if !permissions.allow(wanted) {
            return Err(AuthError::NotPermitted { wanted });
        }
        Ok(ServiceAuthenticated {
            policy: name,
            permissions,
            scope: None,
            expires: None,
        })
    }

    fn check_host(&self, host_name: &str) -> Result<(), AuthError> {
        let is_known = self.host_names.iter().any(|name| name.eq_ignore_ascii_case(host_name));
        if is_known { Ok(()) } else { Err(AuthError::UnknownHost) }
    }

    /// A token that is for this hub and has time left; not yet one that is signed.
    fn read<'a>(&self, text: &'a str, now: UtcMillis) -> Result<SasToken<'a>, AuthError> {
        let token = SasToken::parse(text).map_err(AuthError::Malformed)?;
        if token.is_expired(now) {
            return Err(AuthError::Expired);
        }
        if !token.resource().is_host_one_of(&self.host_names) {
            return Err(AuthError::Scope);
        }
        Ok(token)
    }

    fn by_token(&self, token: &SasToken<'_>, wanted: &IdentityName) -> Result<Authenticated, AuthError> {
        let resource = token.resource();
        let device = wanted.device.as_str();
        let path = [
            "devices",
            device,
            "modules",
            wanted.module.as_ref().map_or("", |module| module.as_str()),
        ];
        let path = if wanted.module.is_some() { &path[..] } else { &path[..2] };
        if resource.has_scheme() {
            return Err(AuthError::Scope);
        }
        if token.policy().is_some() {
            if !resource.covers(path) {
                return Err(AuthError::Scope);
            }
            let wanted_right = Permissions::DEVICE_CONNECT;
            let granted = self.by_policy(token, wanted_right, |policy| is_signed_by_decoded(token, policy))?;
            // The holder of a policy's key may know who exists.
            let known = self.known(wanted)?.ok_or(match wanted.module {
                Some(_) => AuthError::ModuleNotFound,
                None => AuthError::DeviceNotFound,
            })?;
            return known.admit(wanted, AuthMethod::HubSas, Proof::POLICY, granted.expires);
        }
        if !resource.names(path) {
            return Err(AuthError::Scope);
        }
        let known = self.known(wanted)?.ok_or(AuthError::UnknownIdentity)?;
        if known.authentication.kind != AuthenticationKind::Sas {
            return Err(AuthError::WrongKind);
        }
        let keys = &known.authentication.symmetric_key;
        let key = keys.find_decoded(|key| token.is_signed_by(key));
        let proof = Proof::of_key(key.ok_or(AuthError::Signature)?);
        let method = if wanted.module.is_some() {
            AuthMethod::ModuleSas
        } else {
            AuthMethod::DeviceSas
        };
        known.admit(wanted, method, proof, Some(token.expires()))
    }

    fn by_certificate(
        &self,
        leaf: &[u8],
        intermediates: &[&[u8]],
        wanted: &IdentityName,
        now: UtcMillis,
    ) -> Result<Authenticated, AuthError> {
        let facts = CertificateFacts::read(leaf).ok_or(AuthError::CertificateMalformed)?;
        let known = self.known(wanted)?.ok_or(AuthError::UnknownIdentity)?;
        let proof = match known.authentication.kind {
            AuthenticationKind::SelfSigned => {
                let mut thumbprints = known.authentication.x509_thumbprint.iter();
                let found = thumbprints.find(|thumbprint| has_thumbprint(leaf, thumbprint));
                Proof::of_thumbprint(found.ok_or(AuthError::Thumbprint)?)
            }
            AuthenticationKind::CertificateAuthority => {
                if !facts.common_name.is_some_and(|ref name| is_name_of(name, wanted)) {
                    return Err(AuthError::CommonName);
                }
                Proof::of_authority()
            }
            AuthenticationKind::Sas | AuthenticationKind::None => return Err(AuthError::WrongKind),
        };
        if !(facts.not_before..=facts.not_after).contains(&now.seconds()) {
            return Err(AuthError::CertificateExpired);
        }
        let needs_chain = known.authentication.kind == AuthenticationKind::CertificateAuthority;
        if needs_chain && !self.authorities.vouch_for(leaf, intermediates, now) {
            return Err(AuthError::Chain);
        }
        let method = if wanted.module.is_some() {
            AuthMethod::ModuleX509
        } else {
            AuthMethod::DeviceX509
        };
        // Valid to the end of the second `not_after` names.
        let expires = UtcMillis(facts.not_after.saturating_add(1).saturating_mul(1000));
        known.admit(wanted, method, proof, Some(expires))
    }

    fn by_policy(
        &self,
        token: &SasToken<'_>,
        wanted: Permissions,
        is_signed: impl FnOnce(&Policy) -> bool,
    ) -> Result<ServiceAuthenticated, AuthError> {
        let name = token.policy().ok_or(AuthError::UnknownPolicy)?;
        let checked = self
            .policies
            .with(name, |policy| is_signed(policy).then_some(policy.rights));
        let permissions = checked.ok_or(AuthError::UnknownPolicy)?.ok_or(AuthError::Signature)?;
        if !permissions.allow(wanted) {
            return Err(AuthError::NotPermitted { wanted });
        }
        Ok(ServiceAuthenticated {
            policy: name.clone(),
            permissions,
            scope: Some(token.resource().clone()),
            expires: Some(token.expires()),
        })
    }

    /// `None` if there is no such device or module. A module is as enabled as its device.
    fn known(&self, wanted: &IdentityName) -> Result<Option<Known>, AuthError> {
        let found = self.registry.device(&wanted.device).and_then(|device| {
            let is_enabled = device.status == Status::Enabled;
            let (generation, authentication) = match &wanted.module {
                None => (device.generation_id, device.authentication),
                Some(module) => {
                    let module = self.registry.module(&wanted.device, module)?;
                    (module.generation_id, module.authentication)
                }
            };
            Ok(Known {
                generation,
                authentication,
                is_enabled,
            })
        });
        match found {
            Ok(known) => Ok(Some(known)),
            Err(RegistryError::State(error)) => Err(AuthError::Unavailable(error)),
            // Reads know no other refusal than absence.
            Err(_) => Ok(None),
        }
    }
}

impl Known {
    /// The last question, once the credential is right.
    fn admit(
        self,
        wanted: &IdentityName,
        method: AuthMethod,
        proof: Proof,
        expires: Option<UtcMillis>,
    ) -> Result<Authenticated, AuthError> {
        if !self.is_enabled {
            return Err(AuthError::Disabled);
        }
        Ok(Authenticated {
            identity: wanted.clone(),
            generation: self.generation,
            method,
            proof,
            permissions: Permissions::DEVICE_CONNECT,
            expires,
        })
    }
}

fn is_signed_by_decoded(token: &SasToken<'_>, policy: &Policy) -> bool {
    policy.keys.any_decoded(|key| token.is_signed_by(key))
}

// IoT Hub, X.509: CN is the device id, for a module `{device}/{module}`.
fn is_name_of(common_name: &str, wanted: &IdentityName) -> bool {
    match &wanted.module {
        None => common_name == wanted.device.as_str(),
        Some(module) => common_name.split_once('/') == Some((wanted.device.as_str(), module.as_str())),
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
