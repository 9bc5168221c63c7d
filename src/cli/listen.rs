//! `forebay listen`: is a device, and shows what comes to it: messages, changes of its desired properties, methods.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::as_device::{CertificateArgs, connect_device};
use super::connect::{self, Target};
use super::endpoints::HubArgs;
use crate::client::device::Device;
use crate::client::streams::{Command, MethodAnswer, Outcome};

#[derive(Args, Clone, Debug)]
pub struct ListenArgs {
    /// Device id, or DEVICE/MODULE
    pub target: Target,
    /// What to do with each message
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Settlement::Complete)]
    pub commands: Settlement,
    /// Status that methods are answered with; their payload comes back
    #[arg(long, value_name = "STATUS", default_value_t = 200)]
    pub status: i32,
    /// End after so many messages, changes and calls
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Settlement {
    Complete,
    Reject,
    Abandon,
    /// Leave it locked: it comes again
    Keep,
}

impl Settlement {
    fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Complete => Some(Outcome::Complete),
            Self::Reject => Some(Outcome::Reject),
            Self::Abandon => Some(Outcome::Abandon),
            Self::Keep => None,
        }
    }
}

impl ListenArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses the device.
    pub fn run(self) -> anyhow::Result<()> {
        connect::block_on(self.listen())
    }

    async fn listen(self) -> anyhow::Result<()> {
        let (device, endpoint) = connect_device(&self.hub, Some(&self.target), &self.certificate).await?;
        let (calls, mut called) = tokio::sync::mpsc::unbounded_channel();
        let status = self.status;
        let serving = tokio::spawn(device.methods(10).serve(move |call| {
            let _ = calls.send(json!({ "method": call.name, "payload": parsed(&call.payload) }));
            async move { MethodAnswer::new(status, &call.payload) }
        }));
        let mut commands = device.commands(10);
        let mut twin = device.twin(0);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let mut taken = None;
            let line = tokio::select! {
                command = commands.next() => line(taken.insert(command?)),
                change = twin.changed() => {
                    let change = change?;
                    let what = if change.is_complete { "desired" } else { "desiredPatch" };
                    json!({ what: parsed(&change.json) })
                }
                Some(call) = called.recv() => call,
                _ = tokio::signal::ctrl_c() => break,
            };
            // Settled only when it stands where it was printed to.
            writeln!(io::stdout(), "{line}")?;
            if let (Some(command), Some(outcome)) = (taken, self.commands.outcome())
                && let Err(error) = commands.settle(&command, outcome).await
            {
                eprintln!(
                    "forebay: message {} is not settled and comes again: {error}",
                    command.sequence
                );
            }
            left -= 1;
        }
        say_farewell(device).await;
        serving.abort();
        endpoint.wait_idle().await;
        Ok(())
    }
}

fn line(command: &Command) -> Value {
    let message = &command.message;
    let system = message
        .system
        .iter()
        .map(|(key, value)| (key.name().to_owned(), json!(value)));
    let properties = message
        .properties
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)));
    json!({
        "command": String::from_utf8_lossy(&message.body),
        "sequenceNumber": command.sequence,
        "deliveryCount": command.delivery_count,
        "system": system.collect::<serde_json::Map<_, _>>(),
        "properties": properties.collect::<serde_json::Map<_, _>>(),
    })
}

/// What the last answers need to get out.
async fn say_farewell(device: Device) {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    device.close().await;
}

/// JSON as it is, nothing as null.
fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or(Value::Null)
}
