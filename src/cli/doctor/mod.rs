//! `forebay doctor`: whether this machine can run the hub of a configuration, and what to do where it cannot.
//!
//! Each check says what it found and, unless that is fine, what to do. Nothing is changed: a file that measures the disk is
//! removed again. It may be run beside the hub itself, whose ports, lock and files it then knows.

mod certificate;
mod clock;
mod data;
mod limits;
mod owner;
mod ports;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::endpoints::Endpoints;
use super::serve::certificate_files;
use crate::config::{Config, ConfigError, Sources, load};
use crate::server::certificate::Files;
use crate::server::tls::DevFiles;

/// Checks configuration, limits, ports, buffers, disk, clock and certificate, and says what to do about what is wrong. Takes
/// about two seconds. Ends with 1 if something keeps the hub from running or its clients from coming in.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Configuration file of `forebay serve`
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub config: Option<PathBuf>,
    /// Data folder of `forebay dev`
    #[arg(long, value_name = "DIR", default_value = "forebay-data")]
    pub data: PathBuf,
    /// Set one key over file and environment; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It runs, worse than it could or not for long.
    Warn,
    /// It does not run, loses what it promised to keep, or nobody gets in.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub text: String,
    /// What to do; empty if nothing is.
    pub advice: String,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            text: text.into(),
            advice: String::new(),
        }
    }

    fn warn(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            advice: advice.into(),
            ..Self::ok(check, text)
        }
    }

    fn fail(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            advice: advice.into(),
            ..Self::ok(check, text)
        }
    }
}

/// What is looked at.
struct Patient {
    config: Config,
    data: PathBuf,
    /// Where the server's certificate is. `Err`: what to set.
    certificate: Result<Files, String>,
    /// `forebay dev` makes a certificate where there is none.
    is_dev: bool,
    /// The process that has the data directory, if one has.
    hub: Option<owner::Process>,
}

impl DoctorArgs {
    /// # Errors
    /// At least one check failed.
    pub fn run(self) -> anyhow::Result<()> {
        let findings = self.findings();
        let mut out = io::stdout().lock();
        if self.json {
            let count = |level| findings.iter().filter(|finding| finding.level == level).count();
            let document = serde_json::json!({
                "findings": findings,
                "ok": count(Level::Ok),
                "warnings": count(Level::Warn),
                "failures": count(Level::Fail),
            });
            writeln!(out, "{document}")?;
        } else {
            out.write_all(render(&findings).as_bytes())?;
        }
        out.flush()?;
        match findings.iter().filter(|finding| finding.level == Level::Fail).count() {
            0 => Ok(()),
            1 => bail!("1 check failed"),
            failed => bail!("{failed} checks failed"),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let clock = clock::Clock::start();
        let patient = match self.patient() {
            Ok(patient) => patient,
            // Everything else follows from it.
            Err(error) => {
                let advice = "`forebay config default` prints a configuration with every key explained";
                return vec![Finding::fail("config", error.to_string(), advice)];
            }
        };
        let origin = match &self.config {
            Some(file) => format!("{} is correct", file.display()),
            None => format!("that of `forebay dev` with {}", self.data.display()),
        };
        let mut findings = vec![Finding::ok("config", origin)];
        findings.extend(data::check(&patient));
        findings.extend(limits::check(&patient));
        findings.extend(ports::check(&patient));
        findings.push(ports::udp_buffers());
        findings.extend(certificate::check(&patient));
        findings.extend(clock.check(&patient));
        findings
    }

    fn patient(&self) -> Result<Patient, ConfigError> {
        let is_dev = self.config.is_none();
        let mut set = if is_dev { dev_settings(&self.data) } else { Vec::new() };
        set.extend(self.set.iter().cloned());
        let config = load(&Sources::of_process(self.config.clone(), set))?;
        let data = config.process.data_dir.clone();
        let certificate = if is_dev {
            Ok(DevFiles::in_directory(&data).server())
        } else {
            certificate_files(&config).map_err(|error| error.to_string())
        };
        Ok(Patient {
            hub: owner::of_lock(&data.join("log/lock")),
            config,
            data,
            certificate,
            is_dev,
        })
    }
}

/// What `forebay dev` sets; where it has run, the ports that it took.
fn dev_settings(data: &Path) -> Vec<String> {
    let mut set = vec![
        format!("process.data_dir={}", data.display()),
        "log.segment_bytes=16MiB".to_owned(),
    ];
    let address = |key: &str, port: u16| format!("{key}.listen=127.0.0.1:{port}");
    match Endpoints::read(data) {
        Ok(known) => {
            set.push(format!("identity.host_names={}", known.hub_host));
            set.push(address("quic", known.quic_port));
            set.push(address("mqtt", known.mqtt_port));
            set.push(address("amqp", known.amqps_port));
            set.push(address("https", known.https_port));
            set.push(address("ops", known.ops_port));
        }
        Err(_) => {
            set.push(address("quic", 8883));
            set.push(address("mqtt", 8883));
            set.push(address("amqp", 5671));
            set.push(address("https", super::dev::https_port("127.0.0.1")));
            set.push(address("ops", 9600));
        }
    }
    set
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        text += &format!("{level}  {:<12}  {}\n", finding.check, finding.text);
        if !finding.advice.is_empty() {
            text += &format!("      {:<12}  -> {}\n", "", finding.advice);
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    text += &format!(
        "\n{} ok, {} to look at, {} failed\n",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_with_what_to_do() {
        let text = render(&[
            Finding::ok("config", "fine"),
            Finding::fail("disk", "broken", "mend it"),
            Finding::warn("clock", "odd", "set it"),
        ]);
        assert!(
            text.contains("FAIL  disk          broken\n                    -> mend it\n"),
            "{text}"
        );
        assert!(text.ends_with("\n1 ok, 1 to look at, 1 failed\n"), "{text}");
    }
}
