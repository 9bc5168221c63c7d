//! `forebay runbook`: what to do when an alert fires. The pages of `deploy/runbooks/` are part of the program, so that they
//! are at hand where it runs.

use std::io::Write;

use anyhow::bail;
use clap::Args;

macro_rules! pages {
    ($($name:literal),* $(,)?) => {
        /// Name of the alert, and its page.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../deploy/runbooks/", $name, ".md")))),*];
    };
}

pages! {
    "ForebayAckSlow",
    "ForebayBackpressure",
    "ForebayCertificateExpired",
    "ForebayCertificateExpiring",
    "ForebayConsumerLagging",
    "ForebayCredentialsRefused",
    "ForebayDiskFilling",
    "ForebayDiskFull",
    "ForebayDown",
    "ForebayFilesNearLimit",
    "ForebayHandshakeStorm",
    "ForebayHandshakesFailing",
    "ForebayIdentityContested",
    "ForebayLoadSpike",
    "ForebayLogDamaged",
    "ForebayMemoryNearLimit",
    "ForebayPartitionPoisoned",
    "ForebayRecoverySlow",
    "ForebayReloadRefused",
    "ForebayRequestsFailing",
    "ForebayRestarting",
    "ForebaySessionsLost",
    "ForebaySessionsRefused",
    "ForebaySyncFailing",
    "ForebaySyncSlow",
    "ForebayThrottling",
    "ForebayUncleanStart",
}

#[derive(Args, Clone, Debug)]
pub struct RunbookArgs {
    /// Name of the alert; without it all are listed
    pub alert: Option<String>,
}

impl RunbookArgs {
    /// Writes the page, or a line for each, to `out`.
    ///
    /// # Errors
    /// There is no such alert, or `out` is closed.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<()> {
        let Some(alert) = self.alert else {
            for (name, page) in PAGES {
                // The head is followed by what the alert says, in a line.
                let says = page.lines().nth(2).unwrap_or_default();
                writeln!(out, "{name:28} {says}")?;
            }
            return Ok(());
        };
        match PAGES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&alert)) {
            Some((_, page)) => out.write_all(page.as_bytes())?,
            None => bail!("no alert is called `{alert}`; `forebay runbook` lists them"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(alert: Option<&str>) -> anyhow::Result<String> {
        let mut out = Vec::new();
        let alert = alert.map(str::to_owned);
        RunbookArgs { alert }.run(&mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn every_page_is_part_of_the_program() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/runbooks")).unwrap();
        let mut files: Vec<_> = folder
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let pages: Vec<_> = PAGES.iter().map(|(name, _)| format!("{name}.md")).collect();
        assert_eq!(files, pages);
    }

    #[test]
    fn lists_all_or_prints_one() {
        let list = run(None).unwrap();
        assert_eq!(list.lines().count(), PAGES.len());
        assert!(
            list.contains("ForebayDown                  The operations port does not answer"),
            "{list}"
        );
        assert!(run(Some("forebaydiskfull")).unwrap().starts_with("# ForebayDiskFull\n"));
        let error = run(Some("Nothing")).unwrap_err().to_string();
        assert!(error.contains("`Nothing`"), "{error}");
    }
}
