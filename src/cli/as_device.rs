//! Connecting as a device or module: who it is, and what it proves that by.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::connect::{self, Target, explain};
use super::device::{connection_string, module_connection_string};
use super::endpoints::{EndpointsError, HubArgs, Target as HubTarget};
use crate::client::ClientError;
use crate::client::credential::Credential;
use crate::client::device::{Device, DeviceOptions};
use crate::client::endpoint::ClientEndpoint;
use crate::client::service::Service;
use crate::client::tls::Identity;
use crate::hub::ModuleIdentity;
use crate::hub::connection_string::ConnectionString;
use crate::model::DeviceId;

/// Bytes of a device's messages that wait for their acknowledgement; more are not taken before these are stored.
const BUFFER_BYTES: u64 = 8 << 20;

/// A certificate in place of a key.
#[derive(Args, Clone, Debug, Default)]
pub struct CertificateArgs {
    /// PEM file of the device's certificate, with what leads to its authority behind it: shown in place of a key
    #[arg(long, value_name = "FILE", requires = "certificate_key")]
    pub certificate: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub certificate_key: Option<PathBuf>,
}

impl CertificateArgs {
    fn load(&self) -> anyhow::Result<Option<Identity>> {
        match (&self.certificate, &self.certificate_key) {
            (Some(certificate), Some(key)) => Ok(Some(Identity::load(certificate, key)?)),
            // clap asks for both.
            (_, _) => Ok(None),
        }
    }
}

/// A hub with the connection string of whoever connects, and the socket to do it on.
struct Caller {
    target: HubTarget,
    endpoint: ClientEndpoint,
    has_certificate: bool,
}

impl Caller {
    /// A device that neither the connection string nor the hub's file has a key of is looked up in the hub's registry.
    async fn find(hub: &HubArgs, wanted: Option<&Target>, certificate: &CertificateArgs) -> anyhow::Result<Self> {
        let identity = certificate.load()?;
        let has_certificate = identity.is_some();
        let known = match wanted {
            // The hub's file knows devices only.
            Some(Target { device, module: None }) => hub.device(device.as_str()),
            Some(Target { module: Some(_), .. }) | None => hub.service(),
        };
        match known {
            Ok(target) if target.connection_string.device_id.is_some() => {
                if let Some(wanted) = wanted {
                    check_name(&target.connection_string, wanted)?;
                }
                let endpoint = connect::endpoint_as(&target.ca_file, identity)?;
                return Ok(Self {
                    target,
                    endpoint,
                    has_certificate,
                });
            }
            Ok(_) | Err(EndpointsError::NoDevice { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let wanted = wanted.context("the connection string names no device")?;
        let target = hub.service()?;
        let endpoint = connect::endpoint_as(&target.ca_file, identity)?;
        let host_name = &target.connection_string.host_name;
        let own = if has_certificate {
            ConnectionString {
                host_name: host_name.clone(),
                device_id: Some(wanted.device.as_str().to_owned()),
                module_id: wanted.module.as_ref().map(|module| module.as_str().to_owned()),
                x509: true,
                ..ConnectionString::default()
            }
        } else {
            let service = connect::service(&endpoint, &target).await?;
            let own = of_registry(&service, host_name, wanted).await?;
            service.close();
            own
        };
        let target = HubTarget {
            connection_string: own,
            ..target
        };
        Ok(Self {
            target,
            endpoint,
            has_certificate,
        })
    }

    fn options(&self) -> anyhow::Result<DeviceOptions> {
        let connection_string = &self.target.connection_string;
        let id = connection_string.device_id.as_deref().unwrap_or_default();
        let credential = match (
            self.has_certificate,
            &connection_string.shared_access_key,
            &connection_string.shared_access_signature,
        ) {
            (true, _, _) => Credential::Certificate,
            (false, Some(key), _) => Credential::Key(key.clone()),
            (false, None, Some(token)) => Credential::Token(token.clone()),
            (false, None, None) => {
                bail!("{id} proves itself by a certificate: give it with --certificate and --certificate-key")
            }
        };
        let device = DeviceId::new(id).map_err(|error| anyhow::anyhow!("the device id {error}"))?;
        let mut options = DeviceOptions::new(connect::address(&self.target)?, device, credential);
        options.module_id = connection_string.module_id.clone().unwrap_or_default();
        options.buffer.bytes_max = BUFFER_BYTES;
        Ok(options)
    }
}

fn check_name(connection_string: &ConnectionString, wanted: &Target) -> anyhow::Result<()> {
    let named = match (&connection_string.device_id, &connection_string.module_id) {
        (Some(device), Some(module)) => format!("{device}/{module}"),
        (Some(device), None) => device.clone(),
        (None, _) => String::new(),
    };
    if named != wanted.to_string() {
        bail!("the connection string is of {named}, not of {wanted}");
    }
    Ok(())
}

/// The connection string of a device or module, with the key that the registry has of it.
pub(super) async fn of_registry(
    service: &Service,
    host_name: &str,
    wanted: &Target,
) -> anyhow::Result<ConnectionString> {
    if wanted.module.is_none() {
        let identity = connect::get_device(service, &wanted.device).await?;
        return Ok(connection_string(host_name, &identity));
    }
    let answer: Value = service
        .request("module.get", &wanted.document())
        .await
        .map_err(explain)?;
    let identity: ModuleIdentity =
        serde_json::from_value(answer).context("the hub's answer is not a module identity")?;
    Ok(module_connection_string(host_name, &identity))
}

/// Is the device until it is closed; waits for the first welcome.
///
/// # Errors
/// A certificate cannot be read, the hub cannot be found or reached, or refuses the device.
pub(super) async fn connect_device(
    hub: &HubArgs,
    wanted: Option<&Target>,
    certificate: &CertificateArgs,
) -> anyhow::Result<(Device, ClientEndpoint)> {
    let caller = Caller::find(hub, wanted, certificate).await?;
    let options = caller.options()?;
    let address = options.hub.clone();
    let device = Device::start(caller.endpoint.clone(), options)?;
    match tokio::time::timeout(connect::CONNECT_TIMEOUT, device.connected()).await {
        Ok(connected) => connected?,
        Err(_) => {
            return Err(match device.trouble() {
                // Somebody answered, and said why not.
                Some(trouble) => ClientError::Unreachable(trouble),
                None => connect::no_answer(&address),
            }
            .into());
        }
    }
    Ok((device, caller.endpoint))
}
