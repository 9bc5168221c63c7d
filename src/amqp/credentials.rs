//! What a connection has shown: a SASL exchange, tokens for `$cbs`, a client certificate. Every link is opened by one of
//! them, and lives as long as it.

use foldhash::{HashMap, HashMapExt as _};
use rustls::pki_types::CertificateDer;

use super::config::TOKENS_MAX;
use crate::hub::auth::{AuthError, Authenticated, Authenticator, Credential, ServiceAuthenticated};
use crate::hub::policy::Permissions;
use crate::hub::sas::{SasError, SasToken};
use crate::hub::{ErrorCode, IdentityName};
use crate::model::{DeviceId, ModuleId, UtcMillis};

/// What a link needs a credential for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    Device(IdentityName),
    /// A right over the whole hub.
    Service(Permissions),
    /// An address of the built-in endpoint.
    Events(String),
}

/// Who a link's peer is.
#[derive(Clone, Debug)]
pub enum Granted {
    Device(Authenticated),
    Service(ServiceAuthenticated),
}

impl Granted {
    pub fn expires(&self) -> Option<UtcMillis> {
        match self {
            Self::Device(device) => device.expires,
            Self::Service(service) => service.expires,
        }
    }
}

/// The user and password of SASL PLAIN.
// IoT Hub, AMQP section 2.1; built-in endpoint section 4.1.
enum Plain {
    /// The user is a policy of the hub or an identity, the password a token. The connection lives no longer than it.
    Token {
        token: String,
        /// Whom the connection is bound to, if the user is an identity.
        identity: Option<IdentityName>,
        expires: UtcMillis,
    },
    /// The user is a policy, the password its key.
    Key { policy: String, key: String },
}

/// All a connection has shown so far.
pub struct Credentials {
    authenticator: Authenticator,
    host_name: String,
    plain: Option<Plain>,
    /// By what they are for, in lower case; a later one for the same takes the earlier one's place.
    tokens: HashMap<String, String>,
    chain: Vec<CertificateDer<'static>>,
}

/// Why a token was not kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Auth(#[from] AuthError),
    // IoT Hub, AMQP section 2.2; the number is our own.
    #[error("a connection holds at most {TOKENS_MAX} tokens")]
    TooMany,
}

impl TokenError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Auth(error) => error.code(),
            Self::TooMany => ErrorCode::TOKENS_EXCEEDED,
        }
    }
}

impl Credentials {
    pub fn new(authenticator: Authenticator, host_name: String, chain: Vec<CertificateDer<'static>>) -> Self {
        Self {
            authenticator,
            host_name,
            plain: None,
            tokens: HashMap::new(),
            chain,
        }
    }

    /// Whether the handshake showed a certificate.
    pub fn has_certificate(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Checks and keeps what SASL PLAIN carried: an identity to act for, a user, a password.
    ///
    /// # Errors
    /// `AuthError`; nothing is kept.
    pub fn plain(&mut self, response: &[u8], now: UtcMillis) -> Result<(), AuthError> {
        let malformed = AuthError::Malformed(SasError::Field);
        let text = std::str::from_utf8(response).map_err(|_| malformed.clone())?;
        let mut parts = text.split('\0');
        let (Some(_), Some(user), Some(password), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed);
        };
        if password.starts_with("SharedAccessSignature") {
            self.check(password, now)?;
            let token = SasToken::parse(password).map_err(AuthError::Malformed)?;
            self.plain = Some(Plain::Token {
                token: password.to_owned(),
                identity: user_identity(user).ok_or(AuthError::Scope)?,
                expires: token.expires(),
            });
        } else {
            // A hub's user with a key, or an Event Hubs one.
            let policy = user.split_once("@sas.root.").map_or(user, |(policy, _)| policy);
            self.authenticator
                .authenticate_key(policy, password, Permissions::NONE)?;
            self.plain = Some(Plain::Key {
                policy: policy.to_owned(),
                key: password.to_owned(),
            });
        }
        Ok(())
    }

    /// Until when the connection as a whole may last.
    // IoT Hub, AMQP section 2.1: one token a connection, which cannot be renewed.
    pub fn plain_expires(&self) -> Option<UtcMillis> {
        match &self.plain {
            Some(Plain::Token { expires, .. }) => Some(*expires),
            Some(Plain::Key { .. }) | None => None,
        }
    }

    /// Checks and keeps a token for `$cbs`.
    ///
    /// # Errors
    /// `TokenError`; an earlier token for the same stays.
    pub fn put_token(&mut self, token: &str, now: UtcMillis) -> Result<(), TokenError> {
        let key = self.check(token, now)?;
        if self.tokens.len() >= TOKENS_MAX && !self.tokens.contains_key(&key) {
            // Those that have run out make room first.
            let is_valid = |token: &String| SasToken::parse(token).is_ok_and(|token| !token.is_expired(now));
            self.tokens.retain(|_, token| is_valid(token));
            if self.tokens.len() >= TOKENS_MAX {
                return Err(TokenError::TooMany);
            }
        }
        self.tokens.insert(key, token.to_owned());
        Ok(())
    }

    /// Whether the token is good for what it says it is for; and what that is.
    fn check(&self, text: &str, now: UtcMillis) -> Result<String, AuthError> {
        let token = SasToken::parse(text).map_err(AuthError::Malformed)?;
        let resource = token.resource();
        let path = resource.path();
        if resource.has_scheme() {
            let address = path.join("/");
            self.authenticator
                .authenticate_eventhub(text, &address, &self.host_name, now)?;
        } else if let Some(identity) = identity(path) {
            self.authenticator
                .authenticate(Credential::Sas(text), &identity, &self.host_name, now)?;
        } else {
            self.authenticator
                .authenticate_service(text, Permissions::NONE, &self.host_name, now)?;
        }
        Ok(key(resource.has_scheme(), path.iter().map(String::as_str)))
    }

    /// Who may open a link of that kind now.
    ///
    /// # Errors
    /// The error of the credential that came nearest, `Missing` if there was none.
    pub fn grant(&self, grant: &Grant, now: UtcMillis) -> Result<Granted, AuthError> {
        match grant {
            Grant::Device(name) => self.device(name, now).map(Granted::Device),
            Grant::Service(wanted) => self.service(*wanted, now).map(Granted::Service),
            Grant::Events(address) => self.events(address, now).map(Granted::Service),
        }
    }

    fn device(&self, name: &IdentityName, now: UtcMillis) -> Result<Authenticated, AuthError> {
        let device = name.device.as_str();
        let of_device = key(false, ["devices", device].into_iter());
        let module = name.module.as_ref().map(|module| module.as_str());
        let of_module = module.map(|module| key(false, ["devices", device, "modules", module].into_iter()));
        let of_hub = key(false, std::iter::empty());
        let texts = [of_module.as_ref(), Some(&of_device), Some(&of_hub)]
            .into_iter()
            .flatten()
            .filter_map(|key| self.tokens.get(key));
        let plain = match &self.plain {
            // IoT Hub, AMQP section 1.
            Some(Plain::Token {
                identity: Some(bound), ..
            }) if bound != name => return Err(AuthError::Scope),
            Some(Plain::Token { token, .. }) => Some(token),
            Some(Plain::Key { .. }) | None => None,
        };
        let mut refused = AuthError::Missing;
        for text in texts.chain(plain) {
            match self
                .authenticator
                .authenticate(Credential::Sas(text), name, &self.host_name, now)
            {
                Ok(device) => return Ok(device),
                Err(error) => refused = error,
            }
        }
        let chain: Vec<&[u8]> = self.chain.iter().map(AsRef::as_ref).collect();
        match chain.split_first() {
            Some((leaf, intermediates)) => {
                let credential = Credential::Certificate { leaf, intermediates };
                self.authenticator.authenticate(credential, name, &self.host_name, now)
            }
            None => Err(refused),
        }
    }

    fn service(&self, wanted: Permissions, now: UtcMillis) -> Result<ServiceAuthenticated, AuthError> {
        let of_hub = self.tokens.get(&key(false, std::iter::empty()));
        if let Some(token) = of_hub {
            return self
                .authenticator
                .authenticate_service(token, wanted, &self.host_name, now);
        }
        self.by_plain(wanted, |token| {
            self.authenticator
                .authenticate_service(token, wanted, &self.host_name, now)
        })
    }

    fn events(&self, address: &str, now: UtcMillis) -> Result<ServiceAuthenticated, AuthError> {
        let mut refused = None;
        for token in self.tokens.values() {
            match self
                .authenticator
                .authenticate_eventhub(token, address, &self.host_name, now)
            {
                Ok(service) => return Ok(service),
                Err(AuthError::Scope) => {}
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) => Err(error),
            None => self.by_plain(Permissions::SERVICE_CONNECT, |token| {
                self.authenticator
                    .authenticate_eventhub(token, address, &self.host_name, now)
            }),
        }
    }

    fn by_plain(
        &self,
        wanted: Permissions,
        by_token: impl FnOnce(&str) -> Result<ServiceAuthenticated, AuthError>,
    ) -> Result<ServiceAuthenticated, AuthError> {
        match &self.plain {
            Some(Plain::Token { token, .. }) => by_token(token),
            Some(Plain::Key { policy, key }) => self.authenticator.authenticate_key(policy, key, wanted),
            None => Err(AuthError::Missing),
        }
    }

    /// A token that a request carries beside what the connection has shown.
    ///
    /// # Errors
    /// `AuthError`.
    pub fn events_by_token(
        &self,
        token: &str,
        address: &str,
        now: UtcMillis,
    ) -> Result<ServiceAuthenticated, AuthError> {
        self.authenticator
            .authenticate_eventhub(token, address, &self.host_name, now)
    }
}

/// The identity that a user of SASL PLAIN is, if it is one and no policy. `None`: it names none that can be.
// IoT Hub, AMQP section 2.1.
fn user_identity(user: &str) -> Option<Option<IdentityName>> {
    let Some((path, hub)) = user.rsplit_once("@sas.") else {
        return Some(None);
    };
    if hub.starts_with("root.") {
        return Some(None);
    }
    let (device, module) = match path.split_once("/modules/") {
        Some((device, module)) => (device, Some(module)),
        None => (path, None),
    };
    Some(Some(IdentityName {
        device: DeviceId::new(device).ok()?,
        module: module.map(ModuleId::new).transpose().ok()?,
    }))
}

/// The device or module whose path it is.
fn identity(path: &[String]) -> Option<IdentityName> {
    let is = |index: usize, word: &str| {
        path.get(index)
            .is_some_and(|segment| segment.eq_ignore_ascii_case(word))
    };
    if !is(0, "devices") {
        return None;
    }
    let module = match path.get(3) {
        Some(id) if is(2, "modules") => Some(ModuleId::new(id).ok()?),
        Some(_) | None => None,
    };
    Some(IdentityName {
        device: DeviceId::new(path.get(1)?).ok()?,
        module,
    })
}

/// Ids keep their case, hosts are the hub's: only what a token is for tells tokens apart.
fn key<'a>(has_scheme: bool, path: impl Iterator<Item = &'a str>) -> String {
    let mut key = String::from(if has_scheme { "events:" } else { "hub:" });
    for segment in path {
        key.push('/');
        key.push_str(segment);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_an_identity_or_a_policy() {
        let name = |user: &str| {
            let identity = user_identity(user)?;
            Some(identity.map(|name| {
                let module = name.module.as_ref().map(|module| module.as_str().to_owned());
                (name.device.as_str().to_owned(), module)
            }))
        };
        let identity = |device: &str, module: Option<&str>| Some(Some((device.to_owned(), module.map(str::to_owned))));
        assert_eq!(name("lamp@sas.hub"), identity("lamp", None));
        assert_eq!(name("a@sas.b@sas.hub"), identity("a@sas.b", None));
        assert_eq!(name("lamp/modules/m@sas.hub"), identity("lamp", Some("m")));
        assert_eq!(name("service@sas.root.hub"), Some(None));
        assert_eq!(name("iothubowner"), Some(None));
        for user in ["@sas.hub", "lamp/modules/@sas.hub", "a b@sas.hub"] {
            assert_eq!(name(user), None, "{user}");
        }
    }
}
