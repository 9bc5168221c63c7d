//! `forebay config`: prints and checks configurations, and computes what they cost.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::client::tls::TlsError;
use crate::config::memory::{Memory, Usage};
use crate::config::{ConfigError, Sources, default_toml, load};
use crate::server::tls::load_identity;

#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file as `serve` would, environment included, and say what is wrong
    Check {
        /// Configuration file
        file: PathBuf,
        /// Set one key over file and environment; repeatable
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print a configuration with every key at its default, explained
    Default,
    /// Compute what a hub of this configuration holds in memory: what to set aside for it, and what to end it at
    Memory {
        /// Configuration file; without one, the defaults
        file: Option<PathBuf>,
        /// Set one key over file and environment; repeatable
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        set: Vec<String>,
        /// Sessions of a hundred that have their windows full at the same moment
        #[arg(long, value_name = "PERCENT", default_value_t = Usage::default().busy_percent, value_parser = clap::value_parser!(u64).range(..=100))]
        busy: u64,
        /// Connections of native consumers
        #[arg(long, value_name = "N", default_value_t = Usage::default().consumers, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
        consumers: u64,
        /// Cores of the machine it will run on, where process.shards is 0 [default: those of this one]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
        cores: Option<u64>,
        /// One JSON object of bytes instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Why `config` failed; the process ends with 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigCommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl ConfigArgs {
    /// Does the work and writes the answer to `out`.
    ///
    /// # Errors
    /// The configuration is not right, or `out` is closed.
    pub fn run(self, out: &mut impl Write) -> Result<(), ConfigCommandError> {
        match self.command {
            ConfigCommand::Check { file, set } => {
                let config = load(&Sources::of_process(Some(file.clone()), set))?;
                match (&config.quic.certificate_file, &config.quic.key_file) {
                    (Some(certificate), Some(key)) => match load_identity(certificate, key) {
                        Ok(_) => {}
                        // Checked on another machine than it is for.
                        Err(TlsError::Read { path, source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                            writeln!(
                                out,
                                "{}: `serve` needs {}, which is not here",
                                file.display(),
                                path.display()
                            )?;
                        }
                        Err(error) => return Err(error.into()),
                    },
                    // The two go together.
                    (_, _) => writeln!(
                        out,
                        "{}: `serve` also needs `quic.certificate_file` and `quic.key_file`",
                        file.display()
                    )?,
                }
                writeln!(out, "{}: correct", file.display())?;
            }
            ConfigCommand::Memory {
                file,
                set,
                busy,
                consumers,
                cores,
                json,
            } => {
                let here = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
                let usage = Usage {
                    cores: cores.unwrap_or_else(here),
                    busy_percent: busy,
                    consumers,
                };
                let memory = Memory::of(&load(&Sources::of_process(file, set))?, &usage);
                if json {
                    let sums = serde_json::json!({
                        "quiet_bytes": memory.quiet(),
                        "busy_bytes": memory.busy(),
                        "log_pages_bytes": memory.log_pages,
                        "request_bytes": memory.request(),
                        "limit_bytes": memory.limit(),
                    });
                    writeln!(out, "{sums}")?;
                } else {
                    writeln!(out, "{memory}")?;
                }
            }
            ConfigCommand::Default => out.write_all(default_toml().as_bytes())?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: ConfigCommand) -> Result<String, ConfigCommandError> {
        let mut out = Vec::new();
        ConfigArgs { command }.run(&mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_printed_default_passes_the_check() {
        let path = std::env::temp_dir().join(format!("forebay-cli-config-{}.toml", std::process::id()));
        std::fs::write(&path, run(ConfigCommand::Default).unwrap()).unwrap();
        let check = |set: &[&str]| {
            run(ConfigCommand::Check {
                file: path.clone(),
                set: set.iter().map(|&flag| flag.to_owned()).collect(),
            })
        };
        assert!(check(&[]).unwrap().ends_with(": correct\n"));
        let folder = path.with_extension("tls");
        let identity = |name: &str| {
            let files = crate::server::tls::ensure_dev_certificates(
                &folder.join(name),
                &["localhost".to_owned()],
                std::time::SystemTime::now(),
            )
            .unwrap();
            [files.server_certificate, files.server_key].map(|file| file.display().to_string())
        };
        let ([one, own], [_, other]) = (identity("one"), identity("other"));
        let check_tls = |certificate: &str, key: &str| {
            check(&[
                &format!("quic.certificate_file={certificate}"),
                &format!("quic.key_file={key}"),
            ])
        };
        assert!(check(&[]).unwrap().contains("also needs `quic.certificate_file`"));
        let both = check_tls(&one, &own).unwrap();
        assert!(both.ends_with(": correct\n") && both.lines().count() == 1, "{both}");
        let mixed = check_tls(&one, &other).unwrap_err().to_string();
        assert!(mixed.contains("do not belong together"), "{mixed}");
        let key_for_certificate = check_tls(&own, &own).unwrap_err().to_string();
        assert!(
            key_for_certificate.contains("has no certificate"),
            "{key_for_certificate}"
        );
        assert!(
            check_tls("/nonexistent/c.pem", &own)
                .unwrap()
                .contains("/nonexistent/c.pem, which is not here")
        );
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(
            check(&["log.segment_bytes=1"])
                .unwrap_err()
                .to_string()
                .contains("`log.segment_bytes`")
        );
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn memory_is_computed_for_what_is_configured() {
        let memory = |set: &[&str], json| {
            run(ConfigCommand::Memory {
                file: None,
                set: set.iter().map(|&flag| flag.to_owned()).collect(),
                busy: 10,
                consumers: 16,
                cores: Some(2),
                json,
            })
            .unwrap()
        };
        let limit = |set: &[&str]| -> u64 {
            let sums: serde_json::Value = serde_json::from_str(&memory(set, true)).unwrap();
            sums["limit_bytes"].as_u64().unwrap()
        };
        assert!(limit(&["quic.sessions_max=1000"]) < limit(&[]));
        assert!(memory(&["quic.sessions_max=1234"], false).contains("1234"));
    }
}
