//! Connection strings: `Name=value;Name=value`, as SDKs take them and Kafka clients send them.

use std::fmt;

/// A longer text is refused unread.
pub const BYTES_MAX: usize = 8 * 1024;

/// The parts of a connection string, each as it stands there. What is absent is `None`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectionString {
    /// `HostName`, or the host of `Endpoint`.
    pub host_name: String,
    pub gateway_host_name: Option<String>,
    pub device_id: Option<String>,
    pub module_id: Option<String>,
    pub shared_access_key_name: Option<String>,
    pub shared_access_key: Option<String>,
    pub shared_access_signature: Option<String>,
    pub x509: bool,
    /// Event Hubs: the string has `Endpoint=sb://{host}/` instead of `HostName`.
    pub is_endpoint: bool,
    pub entity_path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    #[error("longer than {BYTES_MAX} bytes")]
    TooLong,
    #[error("has a part without `=`")]
    Part,
    #[error("names a part twice")]
    Repeated,
    #[error("lacks HostName or Endpoint")]
    NoHost,
}

impl ConnectionString {
    /// Names compare without case, unknown ones are ignored, values may contain `=`.
    ///
    /// # Errors
    /// `ConnectionStringError` says what is wrong with the form; whether keys are keys is not looked at.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        if text.len() > BYTES_MAX {
            return Err(ConnectionStringError::TooLong);
        }
        let mut parsed = Self::default();
        let mut host_name = None;
        let mut endpoint = None;
        let mut x509 = None;
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(ConnectionStringError::Part)?;
            let slot = match name.to_ascii_lowercase().as_str() {
                "hostname" => &mut host_name,
                "endpoint" => &mut endpoint,
                "x509" => &mut x509,
                "gatewayhostname" => &mut parsed.gateway_host_name,
                "deviceid" => &mut parsed.device_id,
                "moduleid" => &mut parsed.module_id,
                "sharedaccesskeyname" => &mut parsed.shared_access_key_name,
                "sharedaccesskey" => &mut parsed.shared_access_key,
                "sharedaccesssignature" => &mut parsed.shared_access_signature,
                "entitypath" => &mut parsed.entity_path,
                _ => continue,
            };
            if slot.replace(value.to_owned()).is_some() {
                return Err(ConnectionStringError::Repeated);
            }
        }
        parsed.x509 = x509.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        parsed.is_endpoint = host_name.is_none() && endpoint.is_some();
        parsed.host_name = match (host_name, endpoint) {
            (Some(host), _) => host,
            (None, Some(endpoint)) => {
                let host = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, host)| host);
                host.trim_end_matches('/').to_owned()
            }
            (None, None) => String::new(),
        };
        if parsed.host_name.is_empty() {
            return Err(ConnectionStringError::NoHost);
        }
        Ok(parsed)
    }

    pub fn for_device(host_name: &str, device: &str, key: &str) -> Self {
        Self {
            host_name: host_name.into(),
            device_id: Some(device.into()),
            shared_access_key: Some(key.into()),
            ..Self::default()
        }
    }

    pub fn for_module(host_name: &str, device: &str, module: &str, key: &str) -> Self {
        Self {
            module_id: Some(module.into()),
            ..Self::for_device(host_name, device, key)
        }
    }

    pub fn for_policy(host_name: &str, policy: &str, key: &str) -> Self {
        Self {
            host_name: host_name.into(),
            shared_access_key_name: Some(policy.into()),
            shared_access_key: Some(key.into()),
            ..Self::default()
        }
    }

    pub fn for_eventhub(host_name: &str, policy: &str, key: &str, entity_path: &str) -> Self {
        Self {
            is_endpoint: true,
            entity_path: Some(entity_path.into()),
            ..Self::for_policy(host_name, policy, key)
        }
    }
}

/// The complete string, secrets included.
impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_endpoint {
            write!(f, "Endpoint=sb://{}/", self.host_name)?;
        } else {
            write!(f, "HostName={}", self.host_name)?;
        }
        let parts = [
            ("GatewayHostName", &self.gateway_host_name),
            ("DeviceId", &self.device_id),
            ("ModuleId", &self.module_id),
            ("SharedAccessKeyName", &self.shared_access_key_name),
            ("SharedAccessKey", &self.shared_access_key),
            ("SharedAccessSignature", &self.shared_access_signature),
            ("EntityPath", &self.entity_path),
        ];
        for (name, value) in parts {
            if let Some(value) = value {
                write!(f, ";{name}={value}")?;
            }
        }
        if self.x509 {
            f.write_str(";x509=true")?;
        }
        Ok(())
    }
}

// Keys must not reach a log by way of a debug print.
impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("host_name", &self.host_name)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_the_contract_is_read_and_written_back() {
        for text in [
            "HostName=h.example;DeviceId=d=1;SharedAccessKey=AAEC=",
            "HostName=h.example;DeviceId=d;ModuleId=m;SharedAccessKey=AAEC=",
            "HostName=h.example;DeviceId=d;SharedAccessSignature=SharedAccessSignature sr=x&sig=y&se=1",
            "HostName=h.example;DeviceId=d;x509=true",
            "HostName=h.example;GatewayHostName=gw;DeviceId=d;SharedAccessKey=AA==",
            "HostName=h.example;SharedAccessKeyName=service;SharedAccessKey=AA==",
            "Endpoint=sb://h.example/;SharedAccessKeyName=service;SharedAccessKey=AA==;EntityPath=events",
        ] {
            assert_eq!(ConnectionString::parse(text).unwrap().to_string(), text);
        }
        let made = ConnectionString::for_eventhub("h", "p", "k=", "e");
        assert_eq!(ConnectionString::parse(&made.to_string()), Ok(made));
        let made = ConnectionString::for_module("h", "d", "m", "k=");
        assert_eq!(ConnectionString::parse(&made.to_string()), Ok(made.clone()));
        assert!(!format!("{made:?}").contains("k="));
    }

    #[test]
    fn broken_strings_are_refused() {
        let check = |text: &str, error| assert_eq!(ConnectionString::parse(text), Err(error), "{text}");
        check("", ConnectionStringError::NoHost);
        check("DeviceId=d", ConnectionStringError::NoHost);
        check("HostName=h;DeviceId", ConnectionStringError::Part);
        check("HostName=h;hostname=g", ConnectionStringError::Repeated);
        check(&"x".repeat(BYTES_MAX + 1), ConnectionStringError::TooLong);
    }
}
