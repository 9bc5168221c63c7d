//! `forebay twin`: shows what a device's twin holds, and changes its tags and desired properties.

use std::io::{self, Read as _, Write as _};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, Target, explain};
use super::endpoints::HubArgs;

#[derive(Args, Clone, Debug)]
pub struct TwinArgs {
    #[command(subcommand)]
    pub command: TwinCommand,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum TwinCommand {
    /// Print a twin
    Show {
        /// Device id, or DEVICE/MODULE
        target: Target,
    },
    /// Change tags and desired properties; a device that is connected is told at once
    Patch(PatchArgs),
}

#[derive(Args, Clone, Debug)]
pub struct PatchArgs {
    /// Device id, or DEVICE/MODULE
    pub target: Target,
    /// JSON to merge: {"tags": {..}, "properties": {"desired": {..}}}; null deletes. `-` reads it from standard input
    pub json: String,
    /// Only if the twin has this etag
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// Replace the sections that are given instead of merging into them
    #[arg(long)]
    pub replace: bool,
}

impl TwinArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        let (operation, document) = match self.command {
            TwinCommand::Show { target } => ("twin.get", target.document()),
            TwinCommand::Patch(args) => {
                let text = match args.json.as_str() {
                    "-" => {
                        let mut text = String::new();
                        io::stdin().read_to_string(&mut text).context("standard input")?;
                        text
                    }
                    text => text.to_owned(),
                };
                let update: Value = serde_json::from_str(&text).context("the change is no JSON")?;
                let mut document = args.target.document();
                document["twin"] = update;
                if let Some(etag) = args.if_match {
                    document["etag"] = json!(etag);
                }
                let operation = if args.replace { "twin.replace" } else { "twin.patch" };
                (operation, document)
            }
        };
        connect::with_service(&self.hub, async |service| {
            let twin = service.request(operation, &document).await.map_err(explain)?;
            writeln!(io::stdout(), "{twin:#}")?;
            Ok(())
        })
    }
}
