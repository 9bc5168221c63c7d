//! A configuration as commented TOML.

use std::fmt::Write;

use super::keys::{Config, keys, sections};

const HEAD: &str = "\
# Forebay's configuration: every key with its default.
#
# Each key can also be set in the environment as FOREBAY_<SECTION>_<KEY> and by the flag --set section.key=value; flags
# win over the environment, the environment over this file, this file over the defaults. Unknown keys are refused.
# What is marked \"Live.\" a running hub takes on SIGHUP; the rest waits for a restart.
# Durations are texts (\"10ms\", \"30s\", \"5m\", \"1h\", \"7d\"), sizes are bytes or texts (\"64KiB\", \"256MiB\", \"1GiB\").
";

/// What stands in the table for keys that are names, addresses or choices rather than amounts.
const NO_COST: &str = "Nothing.";

/// The example file: all keys at their defaults.
pub fn default_toml() -> String {
    to_toml(&Config::default())
}

/// `config` in the form of the example file. Secrets are replaced by a placeholder.
pub fn to_toml(config: &Config) -> String {
    let keys: Vec<_> = keys().into_iter().zip(config.values()).collect();
    let mut text = HEAD.to_owned();
    for (section, doc) in sections() {
        write!(text, "\n# {doc}\n[{section}]\n").expect("writing to a String cannot fail");
        for (key, value) in keys.iter().filter(|(key, _)| key.section == section) {
            let mut comment = format!("{} Default {}", key.doc, key.default);
            if let Some((min, max)) = &key.range {
                write!(comment, ", from {min} to {max}").expect("writing to a String cannot fail");
            }
            comment.push('.');
            if key.is_live() {
                comment.push_str(" Live.");
            }
            if key.cost != NO_COST {
                write!(comment, " Raising it costs: {}", key.cost).expect("writing to a String cannot fail");
            }
            text.push('\n');
            for line in wrapped(&comment, 110) {
                writeln!(text, "# {line}").expect("writing to a String cannot fail");
            }
            writeln!(text, "{} = {value}", key.name).expect("writing to a String cannot fail");
        }
    }
    text
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("starts with one line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn the_example_file_is_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/forebay.toml");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text == default_toml(),
            "deploy/forebay.toml differs; write it anew with `forebay config default`"
        );
        let loaded = load(&Sources {
            file: Some(path.into()),
            ..Sources::default()
        });
        assert_eq!(loaded.unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_described() {
        for key in keys() {
            assert!(key.doc.ends_with('.') && key.doc.len() > 10, "{}", key.dotted());
            assert!(key.cost.ends_with('.'), "{}", key.dotted());
            assert!(key.default.len() < 60, "{}", key.dotted());
        }
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        let table: toml::Table = default_toml().parse().unwrap();
        for key in keys() {
            let value = &table[key.section][key.name];
            let set = Config::default().set(key.section, key.name, crate::config::value::Raw::Toml(value), "test");
            assert!(set.is_ok(), "{set:?}");
        }
    }

    #[test]
    fn a_printed_configuration_hides_secrets() {
        let mut config = Config::default();
        config.identity.owner_key = Some(crate::config::Secret("hush".into()));
        assert!(!to_toml(&config).contains("hush"));
    }
}
