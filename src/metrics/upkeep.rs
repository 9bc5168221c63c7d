//! What keeps a hub in service, as metrics: its certificates, its configuration, its log lines.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::exposition::Families;
use super::registry::Metrics;
use super::series;

/// A certificate whose end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The one that the doors serve.
    Server,
    /// The one that a development hub signs with.
    Ca,
}

impl CertificateName {
    const ALL: [Self; 2] = [Self::Server, Self::Ca];

    fn label(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Ca => "ca",
        }
    }
}

/// What became of a configuration that was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigReload {
    Applied,
    /// Some of what changed waits for a restart.
    RestartNeeded,
    Refused,
}

impl ConfigReload {
    const ALL: [Self; 3] = [Self::Applied, Self::RestartNeeded, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::RestartNeeded => "restart_needed",
            Self::Refused => "refused",
        }
    }
}

/// Of the process rather than of a hub: whatever writes lines shares one standard error.
static LOG_LINES_SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// Lines of the log were left out.
pub fn log_lines_suppressed(lines: u64) {
    LOG_LINES_SUPPRESSED.fetch_add(lines, Relaxed);
}

#[derive(Debug, Default)]
pub(super) struct UpkeepCells {
    /// Seconds since 1970; 0: there is none.
    certificates: [AtomicI64; CertificateName::ALL.len()],
    certificates_loaded: AtomicU64,
    certificates_refused: AtomicU64,
    configs: [AtomicU64; ConfigReload::ALL.len()],
}

impl UpkeepCells {
    pub fn render(&self, out: &mut Families) {
        let labelled = |label: &str, value: f64| (vec![label.to_owned()], value);
        let expiries = CertificateName::ALL.iter().filter_map(|&name| {
            let expires = self.certificates[name as usize].load(Relaxed);
            (expires != 0).then(|| labelled(name.label(), expires as f64))
        });
        out.each(&series::CERTIFICATE_EXPIRY, expiries);
        let reloads = [
            ("loaded", &self.certificates_loaded),
            ("refused", &self.certificates_refused),
        ];
        let reloads = reloads.map(|(outcome, count)| labelled(outcome, count.load(Relaxed) as f64));
        out.each(&series::CERTIFICATE_RELOADS, reloads.into_iter());
        let configs = ConfigReload::ALL.iter().map(|&outcome| {
            let count = self.configs[outcome as usize].load(Relaxed);
            labelled(outcome.label(), count as f64)
        });
        out.each(&series::CONFIG_RELOADS, configs);
        let suppressed = LOG_LINES_SUPPRESSED.load(Relaxed);
        out.one(&series::LOG_SUPPRESSED, &[], suppressed as f64);
    }
}

impl Metrics {
    /// When a certificate expires, in seconds since 1970.
    pub fn certificate_expires(&self, name: CertificateName, at: i64) {
        self.upkeep.certificates[name as usize].store(at, Relaxed);
    }

    /// Changed files were read: the certificate is served, or refused.
    pub fn certificate_reloaded(&self, is_loaded: bool) {
        let cells = &self.upkeep;
        let cell = if is_loaded {
            &cells.certificates_loaded
        } else {
            &cells.certificates_refused
        };
        cell.fetch_add(1, Relaxed);
    }

    pub fn config_reloaded(&self, outcome: ConfigReload) {
        self.upkeep.configs[outcome as usize].fetch_add(1, Relaxed);
    }
}
