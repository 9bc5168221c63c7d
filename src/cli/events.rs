//! `forebay events`: what the hub tells of itself, as it happens.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, Lasting};
use super::endpoints::HubArgs;

/// How soon a new event is shown.
const POLL_EVERY: Duration = Duration::from_millis(500);

#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    #[command(subcommand)]
    pub command: EventsCommand,
    #[command(flatten)]
    pub hub: HubArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum EventsCommand {
    /// Follow the hub's events: devices created, connected, changed, disconnected, deleted
    Tail(EventsTailArgs),
}

#[derive(Args, Clone, Debug)]
pub struct EventsTailArgs {
    /// Show those that are kept too, not only what comes from now on
    #[arg(long)]
    pub earliest: bool,
    /// Only this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<u16>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// One JSON document a line, with all properties and the body
    #[arg(long)]
    pub json: bool,
}

impl EventsArgs {
    /// # Errors
    /// The hub cannot be found or reached at first, or refuses. Later losses of the connection are waited out.
    pub fn run(self) -> anyhow::Result<()> {
        let EventsCommand::Tail(args) = self.command;
        connect::block_on(args.follow(self.hub))
    }
}

impl EventsTailArgs {
    async fn follow(self, hub: HubArgs) -> anyhow::Result<()> {
        let (mut hub, mut service) = Lasting::open(&hub).await?;
        let partitions = match self.partition {
            Some(partition) => partition..partition.saturating_add(1),
            None => 0..service.partition_count(),
        };
        let page =
            |partition: u16, after: u64, limit: u64| json!({ "partition": partition, "after": after, "limit": limit });
        let mut positions = Vec::new();
        for partition in partitions {
            let after = match self.earliest {
                true => 0,
                false => {
                    let newest = page(partition, u64::MAX, 0);
                    number(&hub.request(&mut service, "event.list", &newest).await?["last"])
                }
            };
            positions.push((partition, after));
        }
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut out = io::stdout().lock();
        while left > 0 {
            let mut is_more = false;
            for (partition, after) in &mut positions {
                let next = page(*partition, *after, left.min(256));
                let answer = hub.request(&mut service, "event.list", &next).await?;
                for event in answer["events"].as_array().into_iter().flatten() {
                    *after = number(&event["sequenceNumber"]);
                    match self.json {
                        true => writeln!(out, "{event}")?,
                        false => writeln!(out, "{}", line(event))?,
                    }
                    left = left.saturating_sub(1);
                }
                is_more |= *after < number(&answer["last"]);
            }
            out.flush()?;
            if left > 0 && !is_more {
                tokio::time::sleep(POLL_EVERY).await;
            }
        }
        service.close();
        hub.endpoint.wait_idle().await;
        Ok(())
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Time, what, who; of twins also what of it changed.
fn line(event: &Value) -> String {
    let properties = &event["properties"];
    let text = |name: &str| properties[name].as_str().unwrap_or_default().to_owned();
    let mut line = format!(
        "{}  {:<20}  {}",
        text("operationTimestamp"),
        text("opType"),
        text("deviceId")
    );
    if properties["moduleId"].is_string() {
        line = format!("{line}/{}", text("moduleId"));
    }
    if text("iothub-message-schema").starts_with("twin") {
        line = format!("{line}  {}", event["body"]);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_what_and_who() {
        let event = |module: Value, schema: &str| {
            json!({
                "properties": {
                    "operationTimestamp": "2026-01-01T00:00:00.0000000Z",
                    "opType": "updateTwin",
                    "deviceId": "d",
                    "moduleId": module,
                    "iothub-message-schema": schema,
                },
                "body": { "version": 3 },
            })
        };
        assert_eq!(
            line(&event(json!("m"), "twinChangeNotification")),
            "2026-01-01T00:00:00.0000000Z  updateTwin            d/m  {\"version\":3}"
        );
        assert_eq!(
            line(&event(Value::Null, "other")),
            "2026-01-01T00:00:00.0000000Z  updateTwin            d"
        );
    }
}
