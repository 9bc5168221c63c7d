//! `forebay feedback`: what became of messages to devices.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, explain};
use super::endpoints::HubArgs;

/// One request waits so long for feedback.
const WAIT_SECONDS: u32 = 30;

#[derive(Args, Clone, Debug)]
pub struct FeedbackArgs {
    #[command(subcommand)]
    pub command: FeedbackCommand,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum FeedbackCommand {
    /// Print records as they come, and take them off the queue once they are printed
    Tail {
        /// End after so many records
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

impl FeedbackArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses.
    pub fn run(self) -> anyhow::Result<()> {
        let FeedbackCommand::Tail { count, json } = self.command;
        connect::with_service(&self.hub, async |service| {
            let mut left = count.unwrap_or(u64::MAX);
            while left > 0 {
                let wait = json!({ "waitSeconds": WAIT_SECONDS });
                let batch = service.request("feedback.receive", &wait).await.map_err(explain)?;
                let Some(token) = batch["lockToken"].as_str() else {
                    continue;
                };
                let mut out = io::stdout().lock();
                for record in batch["records"].as_array().into_iter().flatten() {
                    match json {
                        true => writeln!(out, "{record}")?,
                        false => writeln!(out, "{}", line(record))?,
                    }
                    left = left.saturating_sub(1);
                }
                // Taken off only when it stands where it was printed to.
                out.flush()?;
                let lock = json!({ "lockToken": token });
                service.request("feedback.complete", &lock).await.map_err(explain)?;
            }
            Ok(())
        })
    }
}

fn line(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {} {}",
        text("enqueuedTimeUtc"),
        text("deviceId"),
        text("statusCode"),
        text("originalMessageId")
    )
}
