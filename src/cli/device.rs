//! `forebay device`: creates, shows and changes device identities, one at a time or by file.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::as_device;
use super::connect::{self, Target, explain};
use super::endpoints::HubArgs;
use super::transfer;
use crate::client::service::Service;
use crate::hub::connection_string::ConnectionString;
use crate::hub::identity::{Authentication, AuthenticationKind, Status};
use crate::hub::{DeviceIdentity, ModuleIdentity};
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
    /// List all devices; with --json one object a line
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
    /// Replace keys of a device or module by new ones, and print its connection string
    Rotate {
        /// Device id, or DEVICE/MODULE
        target: Target,
        /// Which key; whoever uses the other goes on
        #[arg(long, value_enum)]
        key: Slot,
    },
    /// Create, change and delete devices and modules by file: one JSON object a line; run again what was broken off
    Import {
        /// Lines as exported, `importMode` in each (`create` without); refused lines go to FILE.errors
        file: PathBuf,
    },
    /// Write all devices and modules with their keys and twins to a file, one JSON object a line
    Export {
        /// Replaced once the export is whole
        file: PathBuf,
    },
    /// Delete a device; its messages stay in the log
    Delete {
        /// Device id
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Slot {
    Primary,
    Secondary,
    Both,
}

impl Slot {
    /// As management requests name it.
    fn name(self) -> &'static str {
        match self {
            Self::Primary => "primaryKey",
            Self::Secondary => "secondaryKey",
            Self::Both => "both",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Device id: 1 to 128 letters, digits and - . + % _ # * ? ! ( ) , = @ $ '
    #[arg(value_parser = device_id)]
    pub device: DeviceId,
    /// Base64 key of 16 to 64 bytes, for both keys; without it two are made
    #[arg(long, value_name = "BASE64", conflicts_with = "thumbprint")]
    pub key: Option<String>,
    /// The device shows a certificate with this SHA-1 or SHA-256 thumbprint instead of a key; a second one for its successor
    #[arg(long, value_name = "HEX", value_parser = thumbprint)]
    pub thumbprint: Vec<String>,
    /// The device shows a certificate in its name that an authority of the hub vouches for (`forebay authority`)
    #[arg(long, conflicts_with_all = ["key", "thumbprint"])]
    pub authority: bool,
    /// Create it disabled
    #[arg(long)]
    pub disabled: bool,
}

/// Identities of one page of a list.
const PAGE: usize = 1000;

impl DeviceArgs {
    /// # Errors
    /// The hub cannot be found or reached, or refuses; the text has the contract's code.
    pub fn run(self) -> anyhow::Result<()> {
        connect::block_on(self.answer())
    }

    async fn answer(self) -> anyhow::Result<()> {
        let target = self.hub.service()?;
        let endpoint = connect::endpoint(&target.ca_file)?;
        let service = Arc::new(connect::service(&endpoint, &target).await?);
        let printer = Printer {
            host_name: target.connection_string.host_name,
            json: self.json,
        };
        // Not locked: some commands print by themselves.
        let mut out = io::stdout();
        match self.command {
            DeviceCommand::Create(args) => {
                anyhow::ensure!(args.thumbprint.len() <= 2, "a device has at most two thumbprints");
                let wanted = serde_json::to_value(args.identity())?;
                let created = connect::identity(&service, "device.create", &wanted).await?;
                printer.created(&mut out, &created)?;
            }
            DeviceCommand::Rotate { target, key } => {
                let mut wanted = target.document();
                wanted["policyKey"] = key.name().into();
                let keys = service.request("device.regenerate", &wanted).await.map_err(explain)?;
                match printer.json {
                    true => writeln!(out, "{keys}")?,
                    false => {
                        let own = as_device::of_registry(&service, &printer.host_name, &target).await?;
                        writeln!(out, "{own}")?;
                    }
                }
            }
            DeviceCommand::Import { file } => {
                let outcome = transfer::import(&service, &file, self.json).await;
                service.close();
                endpoint.wait_idle().await;
                return outcome;
            }
            DeviceCommand::Export { file } => transfer::export(&service, &file, self.json).await?,
            DeviceCommand::List => list(&service, &printer, &mut out).await?,
            DeviceCommand::Show { device } => {
                printer.shown(&mut out, &connect::get_device(&service, &device).await?)?;
            }
            DeviceCommand::Disable { device, reason } => {
                let changed = set_status(&service, &device, Status::Disabled, reason).await?;
                printer.changed(&mut out, &changed, "disabled")?;
            }
            DeviceCommand::Enable { device } => {
                let changed = set_status(&service, &device, Status::Enabled, None).await?;
                printer.changed(&mut out, &changed, "enabled")?;
            }
            DeviceCommand::Delete { device } => {
                let name = json!({ "deviceId": device.as_str() });
                service.request("device.delete", &name).await.map_err(explain)?;
                printer.deleted(&mut out, &device)?;
            }
        }
        out.flush()?;
        service.close();
        endpoint.wait_idle().await;
        Ok(())
    }
}

/// Prints page after page, so that a long list needs no memory. The order is the hub's: by partition, then by id.
async fn list(service: &Service, printer: &Printer, out: &mut impl Write) -> anyhow::Result<()> {
    let mut after: Option<DeviceId> = None;
    printer.list_head(out)?;
    loop {
        let page = json!({ "after": after.as_ref().map(DeviceId::as_str), "limit": PAGE });
        let page = service.request("device.list", &page).await.map_err(explain)?;
        let page: Vec<DeviceIdentity> = serde_json::from_value(page)?;
        for identity in &page {
            printer.list_line(out, identity)?;
        }
        if page.len() < PAGE {
            return Ok(());
        }
        after = page.last().map(|identity| identity.device_id.clone());
    }
}

/// Changes the identity as it was read: a change by somebody else in between is refused by its etag, not overwritten.
async fn set_status(
    service: &Service,
    device: &DeviceId,
    status: Status,
    reason: Option<String>,
) -> anyhow::Result<DeviceIdentity> {
    let mut identity = connect::get_device(service, device).await?;
    identity.status = status;
    identity.status_reason = reason;
    connect::identity(service, "device.update", &serde_json::to_value(identity)?).await
}

impl CreateArgs {
    fn identity(self) -> DeviceIdentity {
        let mut identity = DeviceIdentity::new(self.device);
        if self.disabled {
            identity.status = Status::Disabled;
        }
        // IoT Hub, identity registry: a key that is not given is made by the hub.
        if let Some(key) = self.key {
            // Both or neither, says the registry.
            identity.authentication.symmetric_key.primary_key = Some(key.clone());
            identity.authentication.symmetric_key.secondary_key = Some(key);
        }
        let mut thumbprints = self.thumbprint.into_iter();
        if let Some(primary) = thumbprints.next() {
            identity.authentication.kind = AuthenticationKind::SelfSigned;
            identity.authentication.x509_thumbprint.primary_thumbprint = Some(primary);
            identity.authentication.x509_thumbprint.secondary_thumbprint = thumbprints.next();
        }
        if self.authority {
            identity.authentication.kind = AuthenticationKind::CertificateAuthority;
        }
        identity
    }
}

/// How answers look.
struct Printer {
    host_name: String,
    json: bool,
}

impl Printer {
    /// Only the connection string, so that a script can take it as it is.
    fn created(&self, out: &mut impl Write, identity: &DeviceIdentity) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", self.document(identity));
        }
        writeln!(out, "{}", connection_string(&self.host_name, identity))
    }

    fn shown(&self, out: &mut impl Write, identity: &DeviceIdentity) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", self.document(identity));
        }
        writeln!(out, "device             {}", identity.device_id)?;
        writeln!(out, "status             {}", status_text(identity))?;
        writeln!(out, "authentication     {}", kind_text(identity.authentication.kind))?;
        writeln!(out, "generation         {}", identity.generation_id)?;
        writeln!(out, "etag               {}", identity.etag)?;
        writeln!(
            out,
            "connection string  {}",
            connection_string(&self.host_name, identity)
        )
    }

    fn changed(&self, out: &mut impl Write, identity: &DeviceIdentity, what: &str) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", self.document(identity));
        }
        writeln!(out, "{} is {what}", identity.device_id)
    }

    fn deleted(&self, out: &mut impl Write, device: &DeviceId) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", json!({ "deviceId": device.as_str(), "deleted": true }));
        }
        writeln!(out, "{device} is deleted")
    }

    fn list_head(&self, out: &mut impl Write) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(out, "{:<32} {:<20} STATUS", "DEVICE", "AUTHENTICATION")
    }

    fn list_line(&self, out: &mut impl Write, identity: &DeviceIdentity) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{}", self.document(identity));
        }
        let kind = kind_text(identity.authentication.kind);
        writeln!(
            out,
            "{:<32} {kind:<20} {}",
            identity.device_id.as_str(),
            status_text(identity)
        )
    }

    /// The identity as the contract has it, and the connection string.
    fn document(&self, identity: &DeviceIdentity) -> Value {
        let mut document =
            serde_json::to_value(identity).expect("an identity has text keys and no failing serializers");
        document["connectionString"] = connection_string(&self.host_name, identity).to_string().into();
        document
    }
}

pub(super) fn connection_string(host_name: &str, identity: &DeviceIdentity) -> ConnectionString {
    own_connection_string(host_name, identity.device_id.as_str(), None, &identity.authentication)
}

pub(super) fn module_connection_string(host_name: &str, identity: &ModuleIdentity) -> ConnectionString {
    let module = Some(identity.module_id.as_str());
    own_connection_string(host_name, identity.device_id.as_str(), module, &identity.authentication)
}

fn own_connection_string(
    host_name: &str,
    device: &str,
    module: Option<&str>,
    authentication: &Authentication,
) -> ConnectionString {
    let key = match authentication.kind {
        AuthenticationKind::Sas => authentication.symmetric_key.primary_key.clone(),
        AuthenticationKind::SelfSigned | AuthenticationKind::CertificateAuthority | AuthenticationKind::None => None,
    };
    ConnectionString {
        host_name: host_name.to_owned(),
        device_id: Some(device.to_owned()),
        module_id: module.map(str::to_owned),
        x509: key.is_none(),
        shared_access_key: key,
        ..ConnectionString::default()
    }
}

fn status_text(identity: &DeviceIdentity) -> String {
    let status = match identity.status {
        Status::Enabled => "enabled",
        Status::Disabled => "disabled",
    };
    match &identity.status_reason {
        Some(reason) if !reason.is_empty() => format!("{status} ({reason})"),
        _ => status.to_owned(),
    }
}

fn kind_text(kind: AuthenticationKind) -> &'static str {
    match kind {
        AuthenticationKind::Sas => "key",
        AuthenticationKind::SelfSigned => "thumbprint",
        AuthenticationKind::CertificateAuthority => "CA",
        AuthenticationKind::None => "none",
    }
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
