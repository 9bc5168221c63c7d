//! `forebay authority`: the certificate authorities that vouch for devices.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{self, explain};
use super::endpoints::HubArgs;
use crate::client::service::Service;
use crate::client::tls::read_certificates;

/// A device of type `certificateAuthority` is let in by a certificate in its name that leads to a verified authority.
#[derive(Args, Clone, Debug)]
pub struct AuthorityArgs {
    #[command(subcommand)]
    pub command: AuthorityCommand,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum AuthorityCommand {
    /// List all authorities; with --json one object a line
    List,
    /// Register an authority; it vouches for nobody until it is verified
    Create {
        /// A name of your choice
        name: String,
        /// PEM file of its certificate (X.509 version 3)
        certificate: PathBuf,
        /// It is yours, no proof is needed: it vouches from now on
        #[arg(long)]
        verified: bool,
    },
    /// Ask for the common name of the certificate that proves who holds the authority's key
    Challenge {
        /// Name of the authority
        name: String,
    },
    /// Verify an authority by a certificate it signed for the name of its challenge
    Prove {
        /// Name of the authority
        name: String,
        /// PEM file of that certificate
        certificate: PathBuf,
    },
    /// Remove an authority: its devices are not let in any more; sessions stay until their certificates end
    Delete {
        /// Name of the authority
        name: String,
    },
}

impl AuthorityArgs {
    /// # Errors
    /// A file cannot be read; the hub cannot be found or reached, or refuses.
    pub fn run(self) -> anyhow::Result<()> {
        let hub = self.hub.clone();
        connect::with_service(&hub, async |service| self.answer(service).await)
    }

    async fn answer(self, service: &Service) -> anyhow::Result<()> {
        let ask = async |operation: &str, document: Value| service.request(operation, &document).await.map_err(explain);
        let mut out = io::stdout();
        let answer = match &self.command {
            AuthorityCommand::List => {
                let authorities = ask("authority.list", json!({})).await?;
                for authority in authorities.as_array().into_iter().flatten() {
                    match self.json {
                        true => writeln!(out, "{authority}")?,
                        false => writeln!(out, "{}", line(authority))?,
                    }
                }
                return Ok(());
            }
            AuthorityCommand::Create {
                name,
                certificate,
                verified,
            } => {
                let wanted = json!({ "name": name, "certificate": read(certificate)?, "isVerified": verified });
                ask("authority.create", wanted).await?
            }
            AuthorityCommand::Challenge { name } => {
                let answer = ask("authority.challenge", json!({ "name": name })).await?;
                if !self.json {
                    // As it is, for a script.
                    writeln!(out, "{}", text(&answer, "challenge"))?;
                    return Ok(());
                }
                answer
            }
            AuthorityCommand::Prove { name, certificate } => {
                let proof = json!({ "name": name, "certificate": read(certificate)? });
                ask("authority.prove", proof).await?
            }
            AuthorityCommand::Delete { name } => {
                ask("authority.delete", json!({ "name": name })).await?;
                if !self.json {
                    writeln!(out, "{name} is deleted")?;
                    return Ok(());
                }
                json!({ "name": name, "deleted": true })
            }
        };
        match self.json {
            true => writeln!(out, "{answer}")?,
            false => writeln!(out, "{}", line(&answer))?,
        }
        Ok(())
    }
}

/// The first certificate of a PEM file, as requests carry it.
fn read(path: &Path) -> anyhow::Result<String> {
    let chain = read_certificates("certificate", path)?;
    Ok(STANDARD.encode(&chain[0]))
}

fn text<'a>(document: &'a Value, name: &str) -> &'a str {
    document[name].as_str().unwrap_or_default()
}

fn line(authority: &Value) -> String {
    let state = match authority["isVerified"].as_bool() {
        Some(true) => "verified",
        Some(false) | None => "unverified",
    };
    format!(
        "{:<20} {state:<10}  {}",
        text(authority, "name"),
        text(authority, "subject")
    )
}
