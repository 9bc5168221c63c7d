//! Why a configuration is refused, in words for whoever wrote it.

use std::io;
use std::path::PathBuf;

/// Why a configuration was refused. The text names the key, the value and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file, or a file that a `*_file` key names.
    #[error("{what} {} cannot be read: {source}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid TOML: {detail}", path.display())]
    Syntax { path: PathBuf, detail: String },
    /// A key no version knows; the suggestion is the known key nearest to it.
    #[error("unknown key `{key}` in {origin}{}", suggestion.as_ref().map_or(String::new(), |near| format!("; did you mean `{near}`?")))]
    UnknownKey {
        key: String,
        origin: String,
        suggestion: Option<String>,
    },
    #[error("`{key}` in {origin}: {detail}")]
    Value {
        key: String,
        origin: String,
        detail: String,
    },
    #[error("`{key}` = {value} is out of range; allowed are {allowed}")]
    Range {
        key: String,
        value: String,
        allowed: String,
    },
    /// Two keys that are each right and wrong together.
    #[error("{0}")]
    Conflict(String),
    #[error("`{0}` is not of the form section.key=value")]
    Flag(String),
}
