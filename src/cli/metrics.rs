//! `forebay metrics`: what each series of `/metrics` means, and what to do when it moves.

use std::io::Write;

use anyhow::ensure;
use clap::Args;

use crate::metrics::page;

#[derive(Args, Clone, Debug)]
pub struct MetricsArgs {
    /// Only series whose name contains this; all without it
    pub word: Option<String>,
}

impl MetricsArgs {
    /// Writes the page, or a part of it, to `out`.
    ///
    /// # Errors
    /// No series has such a name, or `out` is closed.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<()> {
        let text = match &self.word {
            None => page::page(),
            Some(word) => page::entries_with(word),
        };
        ensure!(
            !text.is_empty(),
            "no series has a name with `{}` in it; `forebay metrics` prints all",
            self.word.unwrap_or_default()
        );
        out.write_all(text.trim_start().as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(word: Option<&str>) -> anyhow::Result<String> {
        let mut out = Vec::new();
        let word = word.map(str::to_owned);
        MetricsArgs { word }.run(&mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn prints_all_or_what_was_asked_for() {
        assert_eq!(run(None).unwrap(), page::page());
        assert!(
            run(Some("lag"))
                .unwrap()
                .starts_with("### forebay_consumer_lag_messages\n")
        );
        let error = run(Some("nothing")).unwrap_err().to_string();
        assert!(error.contains("`nothing`"), "{error}");
    }
}
