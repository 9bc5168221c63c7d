//! `forebay method`: calls a direct method of a device and prints its answer.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, Target, explain};
use super::endpoints::HubArgs;

#[derive(Args, Clone, Debug)]
pub struct MethodArgs {
    #[command(subcommand)]
    pub command: MethodCommand,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum MethodCommand {
    /// Call a method and wait for the device's answer
    Invoke(InvokeArgs),
}

#[derive(Args, Clone, Debug)]
pub struct InvokeArgs {
    /// Device id, or DEVICE/MODULE
    pub target: Target,
    /// Name of the method
    pub name: String,
    /// JSON for the method [default: none]
    pub payload: Option<String>,
    /// How long the device may take to answer, 5 to 300 seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u32,
    /// How long to wait for a device that is not connected, 0 to 300 seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub connect_timeout: u32,
}

impl MethodArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the device is not online or does not answer in time.
    pub fn run(self) -> anyhow::Result<()> {
        let MethodCommand::Invoke(args) = self.command;
        let mut document = args.target.document();
        document["methodName"] = json!(args.name);
        document["responseTimeoutInSeconds"] = json!(args.timeout);
        document["connectTimeoutInSeconds"] = json!(args.connect_timeout);
        if let Some(payload) = &args.payload {
            document["payload"] = serde_json::from_str::<Value>(payload).context("the payload is no JSON")?;
        }
        connect::with_service(&self.hub, async |service| {
            let answer = service.request("method.invoke", &document).await.map_err(explain)?;
            writeln!(io::stdout(), "{answer}")?;
            Ok(())
        })
    }
}
