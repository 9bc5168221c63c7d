//! `forebay module`: identities of the parts of a device that connect for themselves.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, Target, explain};
use super::device::{device_id, module_connection_string};
use super::endpoints::HubArgs;
use crate::client::service::Service;
use crate::hub::ModuleIdentity;
use crate::model::DeviceId;

#[derive(Args, Clone, Debug)]
pub struct ModuleArgs {
    #[command(subcommand)]
    pub command: ModuleCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ModuleCommand {
    /// Create a module and print its connection string
    Create {
        /// DEVICE/MODULE
        #[arg(value_parser = module)]
        target: Target,
        /// It shows a certificate in its name (DEVICE/MODULE) that an authority vouches for, instead of a key
        #[arg(long)]
        authority: bool,
    },
    /// List the modules of a device; with --json one object a line
    List {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
    /// Show one module, its connection string included
    Show {
        /// DEVICE/MODULE
        #[arg(value_parser = module)]
        target: Target,
    },
    /// Delete a module with its twin and what waits for it
    Delete {
        /// DEVICE/MODULE
        #[arg(value_parser = module)]
        target: Target,
    },
}

/// For clap: `DEVICE/MODULE`.
fn module(text: &str) -> Result<Target, String> {
    let target: Target = text.parse()?;
    match target.module {
        Some(_) => Ok(target),
        None => Err("a module is named DEVICE/MODULE".to_owned()),
    }
}

impl ModuleArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        let hub = self.hub.clone();
        connect::with_service(&hub, async |service| self.answer(service).await)
    }

    async fn answer(self, service: &Service) -> anyhow::Result<()> {
        let host_name = self.hub.service()?.connection_string.host_name;
        let ask = async |operation: &str, document: Value| service.request(operation, &document).await.map_err(explain);
        let mut out = io::stdout();
        match self.command {
            ModuleCommand::Create { target, authority } => {
                let mut wanted = target.document();
                if authority {
                    wanted["authentication"] = json!({ "type": "certificateAuthority" });
                }
                let made: ModuleIdentity = serde_json::from_value(ask("module.create", wanted).await?)?;
                match self.json {
                    true => writeln!(out, "{}", document(&host_name, &made))?,
                    false => writeln!(out, "{}", module_connection_string(&host_name, &made))?,
                }
            }
            ModuleCommand::List { device } => {
                let all = ask("module.list", json!({ "deviceId": device.as_str() })).await?;
                let all: Vec<ModuleIdentity> = serde_json::from_value(all)?;
                for module in &all {
                    match self.json {
                        true => writeln!(out, "{}", document(&host_name, module))?,
                        false => writeln!(out, "{}/{}", module.device_id, module.module_id)?,
                    }
                }
            }
            ModuleCommand::Show { target } => {
                let found: ModuleIdentity = serde_json::from_value(ask("module.get", target.document()).await?)?;
                if self.json {
                    writeln!(out, "{}", document(&host_name, &found))?;
                } else {
                    writeln!(out, "module             {}/{}", found.device_id, found.module_id)?;
                    writeln!(out, "generation         {}", found.generation_id)?;
                    writeln!(out, "etag               {}", found.etag)?;
                    writeln!(
                        out,
                        "connection string  {}",
                        module_connection_string(&host_name, &found)
                    )?;
                }
            }
            ModuleCommand::Delete { target } => {
                ask("module.delete", target.document()).await?;
                match self.json {
                    true => writeln!(out, "{}", json!({ "target": target.to_string(), "deleted": true }))?,
                    false => writeln!(out, "{target} is deleted")?,
                }
            }
        }
        Ok(())
    }
}

/// The identity as the contract has it, and the connection string.
fn document(host_name: &str, module: &ModuleIdentity) -> Value {
    let mut document = json!(module);
    document["connectionString"] = module_connection_string(host_name, module).to_string().into();
    document
}
