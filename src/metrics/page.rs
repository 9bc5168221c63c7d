//! The table of series as a page for people.

use std::fmt::Write as _;

use super::series::{GROUPS, Kind, Series};

const HEAD: &str = "\
# Metrics

Every series of `/metrics`, what it says, and what to do when it moves. `forebay metrics` prints this page, and with a
word the part about it: `forebay metrics sync`. No label ever holds a device id, so that the number of series does not
grow with the fleet.
";

/// The whole page, as Markdown.
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    for group in GROUPS {
        write!(text, "\n## {}\n", group.title).expect("writing to a String cannot fail");
        for series in group.series {
            text.push_str(&entry(series));
        }
    }
    text
}

/// The entries whose name contains `word`; empty if there is none.
pub fn entries_with(word: &str) -> String {
    let series = GROUPS.iter().flat_map(|group| group.series);
    let found = series.filter(|series| series.name.contains(word));
    found.map(|series| entry(series)).collect()
}

fn entry(series: &Series) -> String {
    let kind = match series.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let mut text = format!("\n### {}\n\n{} ({kind})\n\n", series.name, series.help);
    for label in series.labels {
        writeln!(text, "- `{}`: {}", label.name, label.values).expect("writing to a String cannot fail");
    }
    if !series.labels.is_empty() {
        text.push('\n');
    }
    writeln!(text, "**When it moves:** {}", series.action).expect("writing to a String cannot fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_deploy_is_the_table() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics.md")).unwrap();
        assert!(
            text == page(),
            "deploy/metrics.md differs; write it anew with `forebay metrics`"
        );
    }

    #[test]
    fn a_word_finds_its_series() {
        let found = entries_with("sync_seconds");
        assert!(found.starts_with("\n### forebay_sync_seconds\n"), "{found}");
        assert!(found.contains("**When it moves:**"), "{found}");
        assert!(entries_with("lag").contains("- `group`: "));
        assert_eq!(entries_with("no such thing"), "");
    }
}
