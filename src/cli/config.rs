//! `forebay config`: prints and checks configurations.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{ConfigError, Sources, default_toml, load};

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
}

/// Why `config` failed; the process ends with 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigCommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
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
                load(&Sources::of_process(Some(file.clone()), set))?;
                writeln!(out, "{}: correct", file.display())?;
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
        assert!(
            check(&["log.segment_bytes=1"])
                .unwrap_err()
                .to_string()
                .contains("`log.segment_bytes`")
        );
        std::fs::remove_file(&path).unwrap();
    }
}
