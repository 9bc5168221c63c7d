//! `forebay token`: makes SAS tokens, for clients that cannot.

use std::io::{self, Write as _};
use std::time::SystemTime;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::as_device;
use super::connect::{self, Target};
use super::endpoints::HubArgs;
use crate::hub::sas;

#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// Device id, or DEVICE/MODULE: a token for its own routes. Without one: for all that the policy permits
    pub target: Option<Target>,
    /// Seconds until it expires
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub ttl: u64,
    #[command(flatten)]
    pub hub: HubArgs,
}

impl TokenArgs {
    /// # Errors
    /// The hub cannot be found; for a device's token also: it cannot be reached, or the device has no key.
    pub fn run(self) -> anyhow::Result<()> {
        let target = self.hub.service()?;
        let owner = &target.connection_string;
        let host = &owner.host_name;
        let (resource, key, policy) = match &self.target {
            // A device's own connection string makes a token for the device.
            None if owner.device_id.is_some() => {
                let key = owner
                    .shared_access_key
                    .clone()
                    .context("the connection string has no key")?;
                let device = owner.device_id.as_deref().unwrap_or_default();
                let module = owner.module_id.as_ref().map(|module| format!("/modules/{module}"));
                (
                    format!("{host}/devices/{device}{}", module.unwrap_or_default()),
                    key,
                    None,
                )
            }
            None => {
                let key = owner
                    .shared_access_key
                    .clone()
                    .context("the connection string has no key")?;
                (host.clone(), key, owner.shared_access_key_name.clone())
            }
            Some(target) => {
                let mut own = None;
                connect::with_service(&self.hub, async |service| {
                    own = Some(as_device::of_registry(service, host, target).await?);
                    Ok(())
                })?;
                let key = own.and_then(|own| own.shared_access_key);
                let key = key.context("it has no key: it proves itself by certificate")?;
                let mut resource = format!("{host}/devices/{}", target.device);
                if let Some(module) = &target.module {
                    resource = format!("{resource}/modules/{module}");
                }
                (resource, key, None)
            }
        };
        let key = STANDARD.decode(key).context("the key is not base64")?;
        let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let token = sas::generate(&resource, &key, now.saturating_add(self.ttl), policy.as_deref());
        writeln!(io::stdout(), "{token}")?;
        Ok(())
    }
}
