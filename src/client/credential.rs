//! How a client shows who it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ClientError;
use crate::hub::sas;
use crate::model::DeviceId;

/// How long a token made from a key lives, seconds; renewed by reconnecting.
// The Azure device SDKs' default.
const TOKEN_SECONDS: u64 = 3600;

/// What a device connects with.
#[derive(Clone)]
pub enum Credential {
    /// The identity's own key, base64: tokens are made from it as needed.
    Key(String),
    /// A ready SAS token.
    Token(String),
    /// The client certificate of the endpoint's TLS configuration.
    Certificate,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(..)",
            Self::Token(_) => "Token(..)",
            Self::Certificate => "Certificate",
        })
    }
}

impl Credential {
    /// The token for a hello; empty for a certificate. An empty `module` is none.
    pub(super) fn device_token(
        &self,
        host_name: &str,
        device: &DeviceId,
        module: &str,
        now_seconds: u64,
    ) -> Result<String, ClientError> {
        match self {
            Self::Key(key) => {
                // IoT Hub, SAS: a module's own key signs for the module, and for nothing above it.
                let mut resource = format!("{host_name}/devices/{}", device.as_str());
                if !module.is_empty() {
                    resource = format!("{resource}/modules/{module}");
                }
                Ok(sas::generate(
                    &resource,
                    &decode(key)?,
                    now_seconds + TOKEN_SECONDS,
                    None,
                ))
            }
            Self::Token(token) => Ok(token.clone()),
            Self::Certificate => Ok(String::new()),
        }
    }
}

/// A shared access policy's key, for services.
#[derive(Clone)]
pub struct PolicyKey {
    pub policy: String,
    /// Base64.
    pub key: String,
}

impl std::fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PolicyKey({})", self.policy)
    }
}

impl PolicyKey {
    pub(super) fn token(&self, host_name: &str, now_seconds: u64) -> Result<String, ClientError> {
        Ok(sas::generate(
            host_name,
            &decode(&self.key)?,
            now_seconds + TOKEN_SECONDS,
            Some(&self.policy),
        ))
    }
}

fn decode(key: &str) -> Result<Vec<u8>, ClientError> {
    STANDARD
        .decode(key)
        .map_err(|_| ClientError::Credential("the key is not base64".into()))
}
