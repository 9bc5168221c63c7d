//! `forebay policy`: shared access policies, what they permit and the keys that prove them.

use std::io::{self, Write as _};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{self, explain};
use super::endpoints::{Endpoints, HubArgs};
use crate::client::service::Service;
use crate::hub::connection_string::ConnectionString;
use crate::hub::policy::{Permissions, Policy};

#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    #[command(subcommand)]
    pub command: PolicyCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// List all policies and their rights; with --json one object a line, keys included
    List,
    /// Show a policy with its keys, and what to connect with
    Show {
        /// Name of the policy
        name: String,
    },
    /// Create a policy and print its connection string
    Create {
        /// Name: 1 to 64 letters, digits and - . _ $
        name: String,
        /// Some of RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect
        #[arg(long, value_name = "RIGHTS", value_parser = rights)]
        rights: Permissions,
    },
    /// Give a policy other rights; its keys stay
    Update {
        /// Name of the policy
        name: String,
        /// Some of RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect
        #[arg(long, value_name = "RIGHTS", value_parser = rights)]
        rights: Permissions,
    },
    /// Replace one key by a new one: whoever uses the other goes on
    Rotate {
        /// Name of the policy
        name: String,
        /// Which key
        #[arg(long, value_enum)]
        key: Key,
    },
    /// Delete a policy: its tokens are refused from now on
    Delete {
        /// Name of the policy
        name: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Key {
    Primary,
    Secondary,
}

impl Key {
    /// As management requests name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Primary => "primaryKey",
            Self::Secondary => "secondaryKey",
        }
    }
}

fn rights(text: &str) -> Result<Permissions, String> {
    let known =
        || "some of RegistryRead, RegistryWrite, ServiceConnect and DeviceConnect, with commas between".to_owned();
    Permissions::parse(text)
        .filter(|rights| *rights != Permissions::NONE)
        .ok_or_else(known)
}

impl PolicyArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        let hub = self.hub.clone();
        connect::with_service(&hub, async |service| self.answer(service).await)
    }

    async fn answer(self, service: &Service) -> anyhow::Result<()> {
        let host_name = self.hub.service()?.connection_string.host_name;
        let ask = async |operation: &str, document: Value| service.request(operation, &document).await.map_err(explain);
        let one = async |operation: &str, document: Value| -> anyhow::Result<Policy> {
            Ok(serde_json::from_value(ask(operation, document).await?)?)
        };
        let mut out = io::stdout();
        match self.command {
            PolicyCommand::List => {
                let policies: Vec<Policy> = serde_json::from_value(ask("policy.list", json!({})).await?)?;
                for policy in policies {
                    match self.json {
                        true => writeln!(out, "{}", json!(policy))?,
                        false => writeln!(out, "{:<20} {}", policy.key_name.as_str(), policy.rights)?,
                    }
                }
            }
            PolicyCommand::Show { name } => {
                let policy = one("policy.get", json!({ "keyName": name })).await?;
                if self.json {
                    writeln!(out, "{}", json!(policy))?;
                } else {
                    writeln!(out, "policy             {}", policy.key_name)?;
                    writeln!(out, "rights             {}", policy.rights)?;
                    for (label, key) in ["connection string", "with the other key"]
                        .iter()
                        .zip(policy.keys.iter())
                    {
                        let text = ConnectionString::for_policy(&host_name, policy.key_name.as_str(), key);
                        writeln!(out, "{label:<18} {text}")?;
                    }
                }
            }
            PolicyCommand::Create { name, rights } => {
                let wanted = json!({ "keyName": name, "rights": rights });
                self::print(&mut out, self.json, &host_name, &one("policy.create", wanted).await?)?;
            }
            PolicyCommand::Update { name, rights } => {
                let policy = one("policy.update", json!({ "keyName": name, "rights": rights })).await?;
                match self.json {
                    true => writeln!(out, "{}", json!(policy))?,
                    false => writeln!(out, "{}: {}", policy.key_name, policy.rights)?,
                }
            }
            PolicyCommand::Rotate { name, key } => {
                let wanted = json!({ "keyName": name, "policyKey": key.name() });
                let policy = one("policy.regenerate", wanted).await?;
                note_new_key(&self.hub, &policy)?;
                self::print(&mut out, self.json, &host_name, &policy)?;
            }
            PolicyCommand::Delete { name } => {
                ask("policy.delete", json!({ "keyName": name })).await?;
                match self.json {
                    true => writeln!(out, "{}", json!({ "keyName": name, "deleted": true }))?,
                    false => writeln!(out, "{name} is deleted")?,
                }
            }
        }
        Ok(())
    }
}

/// Only the connection string, so that a script can take it as it is.
fn print(out: &mut impl io::Write, json: bool, host_name: &str, policy: &Policy) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", json!(policy));
    }
    let key = policy.keys.primary_key.as_deref().unwrap_or_default();
    writeln!(
        out,
        "{}",
        ConnectionString::for_policy(host_name, policy.key_name.as_str(), key)
    )
}

/// The endpoints file of a hub on this machine has a key of this policy, perhaps the one that is gone.
fn note_new_key(hub: &HubArgs, policy: &Policy) -> anyhow::Result<()> {
    if hub.connection_string.is_some() {
        return Ok(());
    }
    let mut endpoints = Endpoints::read(&hub.hub)?;
    let texts = [
        &mut endpoints.iothub_connection_string,
        &mut endpoints.eventhub_connection_string,
    ];
    let mut is_changed = false;
    for text in texts {
        let mut parsed = ConnectionString::parse(text)?;
        if parsed.shared_access_key_name.as_deref() == Some(policy.key_name.as_str())
            && parsed.shared_access_key != policy.keys.primary_key
        {
            parsed.shared_access_key.clone_from(&policy.keys.primary_key);
            *text = parsed.to_string();
            is_changed = true;
        }
    }
    if is_changed {
        endpoints.write(&hub.hub)?;
    }
    Ok(())
}
