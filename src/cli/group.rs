//! `forebay group`: the consumer groups that readers of the hub share.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use serde_json::json;

use super::connect::{self, explain};
use super::endpoints::HubArgs;

#[derive(Args, Clone, Debug)]
pub struct GroupArgs {
    #[command(subcommand)]
    pub command: GroupCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum GroupCommand {
    /// List all consumer groups
    List,
    /// Create a consumer group, for Event Hubs clients and the native protocol; at most 20 with $Default
    Create {
        /// Name: 1 to 50 letters, digits and - . _ $
        name: String,
    },
    /// Delete a consumer group with its checkpoints
    Delete {
        /// Name of the group
        name: String,
    },
}

impl GroupArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        connect::with_service(&self.hub, async |service| {
            let mut out = io::stdout();
            let (name, operation, done) = match &self.command {
                GroupCommand::List => {
                    let groups = service.request("group.list", &json!({})).await.map_err(explain)?;
                    if self.json {
                        writeln!(out, "{groups}")?;
                        return Ok(());
                    }
                    for group in groups.as_array().into_iter().flatten() {
                        writeln!(out, "{}", group.as_str().unwrap_or_default())?;
                    }
                    return Ok(());
                }
                GroupCommand::Create { name } => (name, "group.create", "created"),
                GroupCommand::Delete { name } => (name, "group.delete", "deleted"),
            };
            let request = json!({ "name": name });
            service.request(operation, &request).await.map_err(explain)?;
            match self.json {
                true => writeln!(out, "{}", json!({ "name": name, done: true }))?,
                false => writeln!(out, "{name} is {done}")?,
            }
            Ok(())
        })
    }
}
