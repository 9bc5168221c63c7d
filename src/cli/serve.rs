//! `forebay serve`: a hub from a configuration file.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::running;
use crate::config::{Sources, load};
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
        let config = load(&Sources::of_process(Some(self.config), self.set))?;
        running::start_log(&config)?;
        running::raise_limits();
        let quic = &config.quic;
        let certificate = quic
            .certificate_file
            .as_deref()
            .context("quic.certificate_file is not set: `serve` needs it")?;
        let key = quic
            .key_file
            .as_deref()
            .context("quic.key_file is not set: `serve` needs it")?;
        let tls = tls::DoorTls::new(tls::load_identity(certificate, key)?, &config)?;
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
            running::until_signal(server, false).await
        })
    }
}
