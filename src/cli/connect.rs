//! What the client subcommands share: a runtime, connections, and refusals said in words.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::endpoints::{HubArgs, Target as HubTarget};
use crate::client::ClientError;
use crate::client::backoff::{Backoff, BackoffConfig, Jitter};
use crate::client::credential::PolicyKey;
use crate::client::endpoint::{ClientEndpoint, HubAddress, TransportOptions};
use crate::client::service::{Service, ServiceOptions};
use crate::client::tls::{ClientTls, Identity, client_config};
use crate::hub::DeviceIdentity;
use crate::model::{DeviceId, ModuleId};

/// A person waits for the first answer. UDP does not tell that nobody listens, and QUIC itself would go on for the whole
/// idle timeout.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For one person's connection rather than for a fleet of batteries: a hub that crashed is missed within seconds.
const TRANSPORT: TransportOptions = TransportOptions {
    udp_payload_bytes_max: 1452,
    keep_alive: Some(Duration::from_secs(2)),
    idle_timeout: Duration::from_secs(15),
    send_window_bytes: 1 << 20,
    receive_window_bytes: 4 << 20,
    ack_eliciting_threshold: 20,
};

/// A hub that restarts is back within moments: looking often costs nothing here.
const BACKOFF: BackoffConfig = BackoffConfig {
    wait_min: Duration::from_millis(100),
    wait_max: Duration::from_secs(5),
    stable_after: Duration::from_secs(10),
    retry_after_max: Duration::from_secs(5),
};

/// Runs one subcommand. What it left running is not waited for: a blocked read of standard input has no end.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// Whom a command is for: `DEVICE` or `DEVICE/MODULE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub device: DeviceId,
    pub module: Option<ModuleId>,
}

impl Target {
    /// As management requests name it.
    pub(super) fn document(&self) -> serde_json::Value {
        let mut document = serde_json::json!({ "deviceId": self.device.as_str() });
        if let Some(module) = &self.module {
            document["moduleId"] = module.as_str().into();
        }
        document
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.module {
            None => write!(f, "{}", self.device),
            Some(module) => write!(f, "{}/{module}", self.device),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Ids cannot have a slash.
        let (device, module) = match text.split_once('/') {
            Some((device, module)) => (device, Some(module)),
            None => (text, None),
        };
        let module = module.map(ModuleId::new).transpose();
        Ok(Self {
            device: DeviceId::new(device).map_err(|error| format!("device id {error}"))?,
            module: module.map_err(|error| format!("module id {error}"))?,
        })
    }
}

/// Runs a subcommand that asks the hub as a service, and says farewell.
///
/// # Errors
/// The hub cannot be found or reached, or what `ask` could not do.
pub(super) fn with_service(hub: &HubArgs, ask: impl AsyncFnOnce(&Service) -> anyhow::Result<()>) -> anyhow::Result<()> {
    block_on(async {
        let target = hub.service()?;
        let endpoint = endpoint(&target.ca_file)?;
        let service = service(&endpoint, &target).await?;
        let answer = ask(&service).await;
        service.close();
        endpoint.wait_idle().await;
        answer
    })
}

/// A socket for connections to hubs that this CA vouches for. Call within a runtime.
pub(super) fn endpoint(ca_file: &Path) -> anyhow::Result<ClientEndpoint> {
    endpoint_as(ca_file, None)
}

/// `endpoint`, for connections that show a certificate.
pub(super) fn endpoint_as(ca_file: &Path, identity: Option<Identity>) -> anyhow::Result<ClientEndpoint> {
    let mut tls = ClientTls::from_ca_file(ca_file)?;
    tls.identity = identity;
    Ok(ClientEndpoint::new(client_config(tls)?, &TRANSPORT)?)
}

/// A service that outlives the hub it asks: for commands that follow something, over restarts and the ends of tokens.
pub(super) struct Lasting {
    hub: HubArgs,
    target: HubTarget,
    pub endpoint: ClientEndpoint,
    backoff: Backoff,
    jitter: Jitter,
}

impl Lasting {
    /// # Errors
    /// The hub cannot be found or reached at first, or refuses. Later losses of the connection are waited out.
    pub async fn open(hub: &HubArgs) -> anyhow::Result<(Self, Service)> {
        let target = hub.service()?;
        let endpoint = endpoint(&target.ca_file)?;
        let service = service(&endpoint, &target).await?;
        let mut lasting = Self {
            hub: hub.clone(),
            target,
            endpoint,
            backoff: Backoff::new(BACKOFF),
            jitter: Jitter::new(u64::from(std::process::id())),
        };
        lasting.backoff.handle_connected(Instant::now());
        Ok((lasting, service))
    }

    /// Connects again after an error that may pass.
    ///
    /// # Errors
    /// Trying later cannot help.
    pub async fn again(&mut self, error: ClientError) -> anyhow::Result<Service> {
        eprintln!("forebay: {}", still_there(error)?);
        loop {
            let wait = self.backoff.handle_failure(Instant::now(), None, || self.jitter.draw());
            tokio::time::sleep(wait).await;
            // A hub on free ports has others after its restart.
            if let Ok(target) = self.hub.service() {
                self.target = target;
            }
            match service(&self.endpoint, &self.target).await {
                Ok(service) => {
                    self.backoff.handle_connected(Instant::now());
                    eprintln!("forebay: connected again");
                    return Ok(service);
                }
                Err(error) => drop(still_there(error)?),
            }
        }
    }

    /// A management request, asked again when the connection was lost over it.
    ///
    /// # Errors
    /// The hub refuses, or trying later cannot help.
    pub async fn request(
        &mut self,
        service: &mut Service,
        operation: &str,
        document: &serde_json::Value,
    ) -> anyhow::Result<serde_json::Value> {
        loop {
            match service.request(operation, document).await {
                Ok(answer) => return Ok(answer),
                Err(error) => *service = self.again(error).await?,
            }
        }
    }
}

/// The error again if trying later can help; else it ends the command.
fn still_there(error: ClientError) -> anyhow::Result<ClientError> {
    if error.is_transient() {
        Ok(error)
    } else {
        Err(explain(error))
    }
}

pub(super) fn address(target: &HubTarget) -> Result<HubAddress, ClientError> {
    Ok(HubAddress {
        address: target.address().map_err(ClientError::Io)?,
        host_name: target.connection_string.host_name.clone(),
    })
}

/// Connects with the rights of the connection string's policy.
///
/// # Errors
/// `ClientError::Credential` when it names none; else as `Service::connect`.
pub(super) async fn service(endpoint: &ClientEndpoint, target: &HubTarget) -> Result<Service, ClientError> {
    let connection_string = &target.connection_string;
    let (Some(policy), Some(key)) = (
        &connection_string.shared_access_key_name,
        &connection_string.shared_access_key,
    ) else {
        let needs = "the connection string needs SharedAccessKeyName and SharedAccessKey here";
        return Err(ClientError::Credential(needs.into()));
    };
    let options = ServiceOptions {
        hub: address(target)?,
        key: PolicyKey {
            policy: policy.clone(),
            key: key.clone(),
        },
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, Service::connect(endpoint, &options)).await {
        Ok(connected) => connected,
        Err(_) => Err(no_answer(&options.hub)),
    }
}

pub(super) fn no_answer(hub: &HubAddress) -> ClientError {
    ClientError::Unreachable(format!(
        "nobody answers at {} (UDP) within {} s",
        hub.address,
        CONNECT_TIMEOUT.as_secs()
    ))
}

/// A management request that answers with one identity.
pub(super) async fn identity(
    service: &Service,
    operation: &str,
    document: &serde_json::Value,
) -> anyhow::Result<DeviceIdentity> {
    let answer = service.request(operation, document).await.map_err(explain)?;
    serde_json::from_value(answer).context("the hub's answer is not a device identity")
}

pub(super) async fn get_device(service: &Service, device: &DeviceId) -> anyhow::Result<DeviceIdentity> {
    identity(
        service,
        "device.get",
        &serde_json::json!({ "deviceId": device.as_str() }),
    )
    .await
}

/// A refusal in the contract's terms: name and number of the code, then the text.
pub(super) fn explain(error: ClientError) -> anyhow::Error {
    match &error {
        ClientError::Refused { code, reason, .. } => match contract_error(reason) {
            Some((name, text)) => anyhow::anyhow!("the hub refused: {name} ({code}): {text}"),
            None => error.into(),
        },
        _ => error.into(),
    }
}

/// The name and text in `{"Message": "ErrorCode:Name;text"}`.
fn contract_error(json: &str) -> Option<(String, String)> {
    let document: serde_json::Value = serde_json::from_str(json).ok()?;
    let (name, text) = document["Message"]
        .as_str()?
        .strip_prefix("ErrorCode:")?
        .split_once(';')?;
    Some((name.to_owned(), text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_show_the_contracts_code_and_text() {
        let refused = |reason: &str| ClientError::Refused {
            code: 404_001,
            reason: reason.to_owned(),
            next: 0,
        };
        assert_eq!(
            explain(refused(
                r#"{"Message":"ErrorCode:DeviceNotFound;no such device; really"}"#
            ))
            .to_string(),
            "the hub refused: DeviceNotFound (404001): no such device; really"
        );
        assert_eq!(explain(refused("plain")).to_string(), "the hub refused: plain (404001)");
    }
}
