//! `forebay device`: creates, shows and changes device identities.

use clap::{Args, Subcommand};

use super::endpoints::HubArgs;
use crate::model::DeviceId;

#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    #[command(subcommand)]
    pub command: DeviceCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum DeviceCommand {
    /// Create a device and print its connection string
    Create(CreateArgs),
    /// List all devices
    List,
    /// Show one device, its connection string included
    Show {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
    /// Refuse a device from now on and end its session
    Disable {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
        /// Why, for whoever looks later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let a disabled device in again
    Enable {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
    /// Delete a device; its messages stay in the log
    Delete {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
}

#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Device id: 1 to 128 letters, digits and - . + % _ # * ? ! ( ) , = @ $ '
    #[arg(value_parser = device_id)]
    pub device: DeviceId,
    /// Base64 key of 16 to 64 bytes; without it one is made
    #[arg(long, value_name = "BASE64", conflicts_with = "thumbprint")]
    pub key: Option<String>,
    /// The device shows a certificate with this SHA-1 or SHA-256 thumbprint instead of a key
    #[arg(long, value_name = "HEX", value_parser = thumbprint)]
    pub thumbprint: Option<String>,
    /// Create it disabled
    #[arg(long)]
    pub disabled: bool,
}

/// For clap: a device id from the command line.
pub(super) fn device_id(text: &str) -> Result<DeviceId, String> {
    DeviceId::new(text).map_err(|error| format!("the device id {error}"))
}

fn thumbprint(text: &str) -> Result<String, String> {
    // IoT Hub, X.509: SHA-1 or SHA-256, no separators, compared without case.
    if matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a thumbprint has 40 (SHA-1) or 64 (SHA-256) hex digits".to_owned())
    }
}
