//! Puts a configuration together: defaults, then the file, then the environment, then flags.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::keys::{Config, keys, sections};
use super::value::{Raw, Secret};

/// Where values come from, later ones win. Nothing else is read, so that a test decides what the environment is.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Environment variables; those that are not Forebay's are passed over.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`, from `--set`.
    pub flags: Vec<String>,
}

impl Sources {
    /// The file, the environment of this process, and flags.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<String>) -> Self {
        let text = |os: std::ffi::OsString| os.into_string().ok();
        Self {
            file,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
                .collect(),
            flags,
        }
    }
}

/// A configuration from a file's text alone.
///
/// # Errors
/// As `load`.
#[cfg(any(test, feature = "testing"))]
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    apply_text(&mut config, text, Path::new("text"))?;
    config.check()?;
    Ok(config)
}

/// Reads, merges and checks everything.
///
/// # Errors
/// The first thing that is wrong, by key. Nothing was changed or opened.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    if let Some(path) = &sources.file {
        apply_file(&mut config, path)?;
    }
    apply_environment(&mut config, &sources.environment)?;
    for flag in &sources.flags {
        let parts = flag
            .split_once('=')
            .and_then(|(key, value)| Some((key.trim().split_once('.')?, value)));
        let ((section, name), value) = parts.ok_or_else(|| ConfigError::Flag(flag.clone()))?;
        config.set(section, name, Raw::Text(value), "--set")?;
    }
    read_secrets(&mut config)?;
    config.check()?;
    Ok(config)
}

fn apply_file(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        what: "configuration",
        path: path.to_owned(),
        source,
    })?;
    apply_text(config, &text, path)
}

fn apply_text(config: &mut Config, text: &str, path: &Path) -> Result<(), ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    let origin = path.display().to_string();
    for (section, values) in &table {
        if !sections().iter().any(|(known, _)| known == section) {
            return Err(unknown_key(section.clone(), &origin));
        }
        let Some(values) = values.as_table() else {
            return Err(ConfigError::Value {
                key: section.clone(),
                origin,
                detail: format!("is a {}, wanted is a table: [{section}]", values.type_str()),
            });
        };
        for (name, value) in values {
            config.set(section, name, Raw::Toml(value), &origin)?;
        }
    }
    Ok(())
}

/// A variable that differs from a key's in at most this many letters is a typo.
const TYPO_LETTERS_MAX: usize = 2;

fn apply_environment(config: &mut Config, environment: &[(String, String)]) -> Result<(), ConfigError> {
    let keys: Vec<_> = keys().into_iter().map(|key| (key.environment(), key)).collect();
    for (variable, value) in environment.iter().filter(|(name, _)| name.starts_with("FOREBAY_")) {
        if let Some((_, key)) = keys.iter().find(|(name, _)| name == variable) {
            config.set(
                key.section,
                key.name,
                Raw::Text(value),
                &format!("environment {variable}"),
            )?;
            continue;
        }
        // Other programs own names of this form too (Kubernetes: FOREBAY_SERVICE_HOST for a service called forebay), so
        // a foreign one is passed over unless it can only be a typo.
        let near = keys
            .iter()
            .find(|(name, _)| distance(name, variable) <= TYPO_LETTERS_MAX);
        if let Some((name, _)) = near {
            return Err(ConfigError::UnknownKey {
                key: variable.clone(),
                origin: "the environment".to_owned(),
                suggestion: Some(name.clone()),
            });
        }
    }
    Ok(())
}

fn read_secrets(config: &mut Config) -> Result<(), ConfigError> {
    let identity = &mut config.identity;
    let Some(path) = &identity.owner_key_file else {
        return Ok(());
    };
    if identity.owner_key.is_some() {
        return Err(ConfigError::Conflict(
            "`identity.owner_key` and `identity.owner_key_file` are both set: set one".to_owned(),
        ));
    }
    let secret = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        what: "`identity.owner_key_file`",
        path: path.clone(),
        source,
    })?;
    identity.owner_key = Some(Secret(secret.trim_end_matches(['\r', '\n']).to_owned()));
    Ok(())
}

/// The error for a key or section that does not exist, with the known one nearest to it.
pub(super) fn unknown_key(key: String, origin: &str) -> ConfigError {
    let known: Vec<String> = match key.split_once('.') {
        Some(_) => keys().iter().map(|key| key.dotted()).collect(),
        None => sections().iter().map(|(name, _)| (*name).to_owned()).collect(),
    };
    // A third of the letters may be wrong; the right name in another section counts as near too.
    let name_of = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let suggestion = known
        .iter()
        .min_by_key(|candidate| distance(candidate, &key))
        .filter(|candidate| distance(candidate, &key) <= key.len().max(3) / 3)
        .or_else(|| known.iter().find(|candidate| name_of(candidate) == name_of(&key)))
        .cloned();
    ConfigError::UnknownKey {
        key,
        origin: origin.to_owned(),
        suggestion,
    }
}

/// Levenshtein: letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Bytes, Durability, Host};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("forebay-config-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn load_text(name: &str, text: &str) -> Result<Config, ConfigError> {
        let folder = Folder::new(name);
        load(&Sources {
            file: Some(folder.file("forebay.toml", text)),
            ..Sources::default()
        })
    }

    fn load_env(variable: &str, value: &str) -> Result<Config, ConfigError> {
        load(&Sources {
            environment: vec![(variable.to_owned(), value.to_owned())],
            ..Sources::default()
        })
    }

    fn load_flag(flag: &str) -> Result<Config, ConfigError> {
        load(&Sources {
            flags: vec![flag.to_owned()],
            ..Sources::default()
        })
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        assert_eq!(load(&Sources::default()).unwrap(), Config::default());
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let folder = Folder::new("precedence");
        let mut sources = Sources {
            file: Some(folder.file(
                "f.toml",
                "[process]\nshards = 1\ndrain_timeout = \"1s\"\n[ops]\nlog = \"warn\"\n",
            )),
            environment: vec![
                ("FOREBAY_PROCESS_SHARDS".into(), "2".into()),
                ("FOREBAY_PROCESS_DRAIN_TIMEOUT".into(), "2s".into()),
                ("HOME".into(), "/root".into()),
            ],
            flags: vec!["process.shards=3".into()],
        };
        let config = load(&sources).unwrap();
        assert_eq!(config.process.shards, 3);
        assert_eq!(config.process.drain_timeout, Duration::from_secs(2));
        assert_eq!(config.ops.log.0, "warn");
        sources.flags.clear();
        assert_eq!(load(&sources).unwrap().process.shards, 2);
    }

    #[test]
    fn every_key_can_be_set_by_environment_and_by_flag() {
        for (key, value) in keys().iter().zip(Config::default().values()) {
            // The default as text: quotes and brackets belong to TOML.
            let text = value.replace(['[', ']', '"'], "");
            let by_environment = load_env(&key.environment(), &text);
            assert_eq!(by_environment.unwrap(), Config::default(), "{}", key.environment());
            let by_flag = load_flag(&format!("{}={text}", key.dotted()));
            assert_eq!(by_flag.unwrap(), Config::default(), "{}", key.dotted());
            // That the variable is read at all shows in a value no key takes (texts without a form excepted).
            let free_text = [
                "owner_key",
                "owner_key_file",
                "certificate_file",
                "key_file",
                "data_dir",
            ];
            if !free_text.contains(&key.name) {
                assert!(load_env(&key.environment(), "!?").is_err(), "{}", key.environment());
            }
        }
        let config = load_env("FOREBAY_PROCESS_DATA_DIR", "/srv/x").unwrap();
        assert_eq!(config.process.data_dir, PathBuf::from("/srv/x"));
    }

    #[test]
    fn typed_values_are_read() {
        let config = load_text(
            "typed",
            "[identity]\nhost_names = [\"Hub.Example.net\", \"10.0.0.1\"]\n[process]\ndurability = { interval = \"20ms\" }\n\
             [log]\nsegment_bytes = 1048576\nretention = \"2d\"\n[quic]\nbatch_bytes_max = \"512KiB\"\nlisten = \"[::]:1\"\n",
        )
        .unwrap();
        assert_eq!(
            config.identity.host_names,
            [Host("hub.example.net".into()), Host("10.0.0.1".into())]
        );
        assert_eq!(
            config.process.durability,
            Durability::Interval(Duration::from_millis(20))
        );
        assert_eq!(config.log.segment_bytes, Bytes(1 << 20));
        assert_eq!(config.log.retention, Duration::from_secs(172_800));
        assert_eq!(config.quic.listen.port(), 1);
        let by_flag = load_flag("process.durability=interval=10ms").unwrap();
        assert_eq!(
            by_flag.process.durability,
            Durability::Interval(Duration::from_millis(10))
        );
        assert_eq!(
            load_env("FOREBAY_PROCESS_DURABILITY", "os").unwrap().process.durability,
            Durability::Os
        );
        let names = load_env("FOREBAY_IDENTITY_HOST_NAMES", "a.b, c")
            .unwrap()
            .identity
            .host_names;
        assert_eq!(names, [Host("a.b".into()), Host("c".into())]);
    }

    #[test]
    fn unknown_keys_are_refused_by_name_with_a_suggestion() {
        for (name, text, key, near) in [
            (
                "u1",
                "[quic]\nlissten = \"0.0.0.0:1\"\n",
                "`quic.lissten`",
                Some("`quic.listen`"),
            ),
            ("u2", "[quik]\nlisten = \"0.0.0.0:1\"\n", "`quik`", Some("`quic`")),
            (
                "u3",
                "[ops]\nidle_timeout = \"5s\"\n",
                "`ops.idle_timeout`",
                Some("`quic.idle_timeout`"),
            ),
            (
                "u4",
                "[process]\nzzzzzzzzzzzzzzz = 1\n",
                "`process.zzzzzzzzzzzzzzz`",
                None,
            ),
            ("u5", "listen = \"0.0.0.0:1\"\n", "`listen`", None),
        ] {
            let error = load_text(name, text).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown key {key}")), "{error}");
            match near {
                Some(near) => assert!(error.contains(&format!("did you mean {near}?")), "{error}"),
                None => assert!(!error.contains("did you mean"), "{error}"),
            }
        }
        let error = load_flag("proces.shards=1").unwrap_err().to_string();
        assert!(
            error.contains("`proces.shards` in --set; did you mean `process.shards`?"),
            "{error}"
        );
        assert!(matches!(load_flag("shards=1"), Err(ConfigError::Flag(_))));
        assert!(matches!(load_flag("process.shards"), Err(ConfigError::Flag(_))));
    }

    #[test]
    fn a_mistyped_variable_is_refused_and_a_foreign_one_passed_over() {
        let error = load_env("FOREBAY_PROCESS_SHARD", "1").unwrap_err().to_string();
        assert!(error.contains("FOREBAY_PROCESS_SHARDS"), "{error}");
        for foreign in [
            "FOREBAY_SERVICE_HOST",
            "FOREBAY_QUIC_PORT",
            "FOREBAY_OPS_PORT",
            "FOREBAY_HUB_HOST",
            "FOREBAY_VENV",
        ] {
            assert_eq!(load_env(foreign, "x").unwrap(), Config::default(), "{foreign}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_with_key_value_and_range() {
        for (flag, parts) in [
            (
                "identity.partition_count=1",
                ["`identity.partition_count`", "1 ", "2 to 128"],
            ),
            (
                "identity.partition_count=129",
                ["`identity.partition_count`", "129", "2 to 128"],
            ),
            (
                "log.segment_bytes=3GiB",
                ["`log.segment_bytes`", "\"3GiB\"", "\"1MiB\" to \"2GiB\""],
            ),
            (
                "quic.idle_timeout=1s",
                ["`quic.idle_timeout`", "\"1s\"", "\"5s\" to \"1h\""],
            ),
            (
                "limits.message_bytes_max=262145",
                ["`limits.message_bytes_max`", "262145B", "\"256KiB\""],
            ),
            (
                "process.durability=interval=2m",
                ["`process.durability`", "\"2m\"", "\"1ms\" to \"1m\""],
            ),
        ] {
            let error = load_flag(flag).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{flag}: {error}");
        }
    }

    #[test]
    fn both_ends_of_every_range_are_accepted_by_the_key() {
        for key in keys() {
            let Some((min, max)) = &key.range else { continue };
            for end in [min, max] {
                let value: toml::Table = format!("x = {end}").parse().unwrap();
                let set = Config::default().set(key.section, key.name, Raw::Toml(&value["x"]), "test");
                assert!(set.is_ok(), "{} = {end}: {set:?}", key.dotted());
            }
        }
    }

    #[test]
    fn wrong_types_and_broken_files_are_refused() {
        for (name, text, part) in [
            ("w1", "[process]\nshards = \"two\"\n", "`process.shards`"),
            ("w2", "[process]\ndrain_timeout = 20\n", "`process.drain_timeout`"),
            (
                "w3",
                "[process]\ndurability = { every = \"1s\" }\n",
                "`process.durability`",
            ),
            ("w4", "[ops]\nlisten = \"9600\"\n", "`ops.listen`"),
            ("w5", "[ops]\nlog = \"forebay=loud\"\n", "`ops.log`"),
            ("w6", "[ops]\nlog_format = \"xml\"\n", "`ops.log_format`"),
            ("w7", "process = 1\n", "`process`"),
            ("w8", "[process\n", "not valid TOML"),
            ("w9", "[identity]\nhost_names = []\n", "`identity.host_names` is empty"),
            ("w10", "[log]\nsegment_bytes = -1\n", "`log.segment_bytes`"),
        ] {
            let error = load_text(name, text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let missing = load(&Sources {
            file: Some("/nonexistent/forebay.toml".into()),
            ..Sources::default()
        });
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/forebay.toml"));
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        for (name, text, part) in [
            ("c1", "[quic]\ncertificate_file = \"c.pem\"\n", "`quic.key_file`"),
            (
                "c2",
                "[quic]\nbatch_bytes_max = \"64KiB\"\n",
                "`limits.message_bytes_max` = 256KiB exceeds",
            ),
            (
                "c3",
                "[quic]\ninflight_bytes_max = \"64KiB\"\n",
                "`quic.batch_bytes_max` = 1MiB exceeds",
            ),
            (
                "c4",
                "[quic]\nstream_window_bytes = \"1MiB\"\n",
                "`quic.connection_window_bytes`",
            ),
            (
                "c5",
                "[shard]\ninflight_bytes_max = \"1MiB\"\n",
                "`shard.inflight_bytes_max`",
            ),
        ] {
            let error = load_text(name, text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_comes_from_its_file_without_the_line_break() {
        let folder = Folder::new("secret");
        let path = folder.file("key", "AAECAwQFBgcICQoLDA0ODw==\n");
        let flag = format!("identity.owner_key_file={}", path.display());
        let config = load_flag(&flag).unwrap();
        assert_eq!(
            config.identity.owner_key,
            Some(Secret("AAECAwQFBgcICQoLDA0ODw==".into()))
        );
        let short = load_flag("identity.owner_key=c2VjcmV0").unwrap_err().to_string();
        assert!(short.contains("`identity.owner_key` is not the base64"), "{short}");
        let both = load(&Sources {
            flags: vec![flag, "identity.owner_key=eA==".into()],
            ..Sources::default()
        });
        assert!(matches!(both, Err(ConfigError::Conflict(_))));
        let error = load_flag("identity.owner_key_file=/nonexistent/key")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("identity.owner_key_file") && error.contains("/nonexistent/key"),
            "{error}"
        );
    }

    #[test]
    fn distance_counts_letters() {
        for (a, b, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("abc", "abd", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
