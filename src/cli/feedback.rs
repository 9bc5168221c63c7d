//! `forebay feedback`: what became of messages to devices.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, Lasting};
use super::endpoints::HubArgs;
use crate::client::ClientError;

/// IoT Hub, errors: DeviceMessageLockLost.
const LOCK_LOST: u32 = 412_002;
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
    /// The hub cannot be found or reached at first, or refuses. Later losses of the connection are waited out.
    pub fn run(self) -> anyhow::Result<()> {
        let FeedbackCommand::Tail { count, json } = self.command;
        connect::block_on(async {
            let (mut hub, mut service) = Lasting::open(&self.hub).await?;
            let mut left = count.unwrap_or(u64::MAX);
            while left > 0 {
                let wait = json!({ "waitSeconds": WAIT_SECONDS });
                let batch = hub.request(&mut service, "feedback.receive", &wait).await?;
                let Some(token) = batch["lockToken"].as_str() else {
                    continue;
                };
                print(&batch, json, &mut left)?;
                // Taken off only now that it stands where it was printed to.
                let lock = json!({ "lockToken": token });
                loop {
                    match service.request("feedback.complete", &lock).await {
                        Ok(_) => break,
                        // Done by a request whose answer was lost; or the lock ran out, and the batch comes again.
                        Err(ClientError::Refused { code: LOCK_LOST, .. }) => break,
                        Err(error) => service = hub.again(error).await?,
                    }
                }
            }
            service.close();
            hub.endpoint.wait_idle().await;
            Ok(())
        })
    }
}

fn print(batch: &Value, json: bool, left: &mut u64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for record in batch["records"].as_array().into_iter().flatten() {
        match json {
            true => writeln!(out, "{record}")?,
            false => writeln!(out, "{}", line(record))?,
        }
        *left = left.saturating_sub(1);
    }
    out.flush()
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
