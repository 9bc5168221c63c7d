//! `forebay c2d`: queues messages for devices, and removes what is queued.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use serde_json::json;

use super::connect::{self, Target, explain};
use super::endpoints::HubArgs;
use super::send::property;
use crate::client::service::Service;
use crate::model::SystemKey;

#[derive(Args, Clone, Debug)]
pub struct C2dArgs {
    #[command(subcommand)]
    pub command: C2dCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum C2dCommand {
    /// Queue a message for a device; it is stored when the command ends, and waits until the device takes it or it expires
    Send(C2dSendArgs),
    /// Remove all messages that wait for a device, locked ones too
    Purge {
        /// Device id, or DEVICE/MODULE
        target: Target,
    },
}

#[derive(Args, Clone, Debug)]
pub struct C2dSendArgs {
    /// Device id, or DEVICE/MODULE
    pub target: Target,
    /// Body of the message
    pub body: String,
    /// Application property; repeatable
    #[arg(long = "property", short = 'p', value_name = "NAME=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
    /// Message id, by which feedback names the message
    #[arg(long, value_name = "ID")]
    pub message_id: Option<String>,
    /// Which outcomes are reported as feedback
    #[arg(long, value_name = "WHICH", value_parser = ["none", "positive", "negative", "full"], default_value = "none", requires_if("full", "message_id"), requires_if("positive", "message_id"), requires_if("negative", "message_id"))]
    pub ack: String,
    /// When the message expires, in UTC (2030-01-31T12:00:00Z); at most 2 days ahead
    #[arg(long, value_name = "TIME")]
    pub expiry: Option<String>,
}

impl C2dArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        let hub = self.hub.clone();
        connect::with_service(&hub, async |service| self.answer(service).await)
    }

    async fn answer(self, service: &Service) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match self.command {
            C2dCommand::Send(args) => {
                let system = [
                    (SystemKey::MessageId, args.message_id),
                    (SystemKey::AbsoluteExpiryTime, args.expiry),
                    (SystemKey::Ack, Some(args.ack)),
                ];
                let system = system.into_iter().filter_map(|(key, value)| Some((key.name(), value?)));
                let mut message = args.target.document();
                message["body"] = json!(args.body);
                message["properties"] = json!(args.properties.into_iter().collect::<BTreeMap<_, _>>());
                message["system"] = json!(system.collect::<BTreeMap<_, _>>());
                let queued = service.request("c2d.send", &message).await.map_err(explain)?;
                match self.json {
                    true => writeln!(out, "{queued}")?,
                    false => writeln!(
                        out,
                        "queued as number {} until {}",
                        queued["sequenceNumber"],
                        text(&queued["expiryTimeUtc"])
                    )?,
                }
            }
            C2dCommand::Purge { target } => {
                let purged = service
                    .request("c2d.purge", &target.document())
                    .await
                    .map_err(explain)?;
                match self.json {
                    true => writeln!(out, "{purged}")?,
                    false => writeln!(out, "{} removed", purged["totalMessagesPurged"])?,
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
