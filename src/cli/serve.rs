//! `forebay serve`: a hub from a configuration file.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::running;
use crate::config::{Config, Sources, load};
use crate::server::certificate::Files;
use crate::server::logging::Logging;
use crate::server::{Server, tls};

/// Everything is checked before the first port opens. Values come from the file, then from FOREBAY_SECTION_KEY in
/// the environment, then from --set; the last one wins. SIGTERM drains and stops.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Configuration file; `forebay config default` prints one to start from
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Set one key over file and environment; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl ServeArgs {
    /// Runs the hub until it is told to stop.
    ///
    /// # Errors
    /// Whatever keeps it from starting, with the file, port or key it concerns.
    pub fn run(self) -> anyhow::Result<()> {
        let reread = || Ok(load(&Sources::of_process(Some(self.config.clone()), self.set.clone()))?);
        let config: Config = reread()?;
        let logging = Logging::start(&config)?;
        running::raise_limits();
        if config.identity.owner_key.is_none() {
            tracing::warn!(
                "identity.owner_key and identity.owner_key_file are not set: a new hub's policies have keys that nobody knows"
            );
        }
        let tls = tls::DoorTls::load(certificate_files(&config)?, &config)?;
        actix_rt::System::new().block_on(async {
            let server = Server::start(&config, tls, None).await?;
            tracing::info!(
                quic = %server.quic_address,
                https = %server.https_address,
                amqp = %server.amqp_address,
                mqtt = %server.mqtt_address,
                ops = %server.ops_address,
                durability = config.process.durability.name(),
                recovery_ms = server.recovery.as_millis() as u64,
                "ready"
            );
            running::until_signal(server, &logging, false, reread).await
        })
    }
}

/// Where `serve` finds its certificate.
///
/// # Errors
/// A key is not set.
pub(super) fn certificate_files(config: &Config) -> anyhow::Result<Files> {
    let set = |path: &Option<PathBuf>, key| {
        path.clone()
            .with_context(|| format!("{key} is not set: `serve` needs it"))
    };
    Ok(Files {
        certificate: set(&config.quic.certificate_file, "quic.certificate_file")?,
        key: set(&config.quic.key_file, "quic.key_file")?,
    })
}
