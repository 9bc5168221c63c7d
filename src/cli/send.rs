//! `forebay send`: sends messages as a device.

use clap::Args;

use super::device::device_id;
use super::endpoints::HubArgs;
use crate::model::DeviceId;

/// Each message is acknowledged when the hub has stored it; the command ends when all are.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    /// Device to send as; not needed with --connection-string, which names one
    #[arg(value_parser = device_id, required_unless_present = "connection_string")]
    pub device: Option<DeviceId>,
    /// Body of the message
    #[arg(required_unless_present = "lines", conflicts_with = "lines")]
    pub body: Option<String>,
    /// Send each line of standard input as a message
    #[arg(long)]
    pub lines: bool,
    /// Application property; repeatable
    #[arg(long = "property", short = 'p', value_name = "NAME=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
    /// Content type, for example application/json
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Content encoding, for example utf-8
    #[arg(long, value_name = "ENCODING")]
    pub content_encoding: Option<String>,
    /// Message id
    #[arg(long, value_name = "ID")]
    pub message_id: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a property has the form NAME=VALUE".to_owned()),
    }
}
