//! Which keys may change while a hub runs, and what a configuration that was read anew comes to.

use super::error::ConfigError;
use super::keys::{Config, Key, keys};

/// Keys whose new value is put in force when the hub is told to read its configuration anew. All others are fixed while it
/// runs: they are handed out when doors, threads and files are opened.
const LIVE: &[&str] = &[
    "process.drain_timeout",
    "process.drain_sessions_per_second",
    "log.retention",
    "log.retention_bytes",
    "quic.certificate_file",
    "quic.key_file",
    "quic.sessions_max",
    "quic.handshakes_per_second",
    "https.handshakes_per_second",
    "amqp.connections_max",
    "amqp.handshakes_per_second",
    "mqtt.connections_max",
    "mqtt.handshakes_per_second",
    "events.retention",
    "events.records_max",
    "ops.log",
    "ops.log_lines_per_second",
];

/// Sections of which every key is.
const LIVE_SECTIONS: &[&str] = &["commands", "throttles"];

impl Key {
    /// Whether a running hub takes another value, without a restart.
    pub fn is_live(&self) -> bool {
        LIVE_SECTIONS.contains(&self.section) || LIVE.contains(&&*self.dotted())
    }
}

/// What becomes of a configuration that was read while another one is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// To be put in force: the present one with the new values of live keys.
    pub config: Config,
    /// Keys with a new value that is put in force.
    pub applied: Vec<String>,
    /// Keys with a new value that waits for a restart.
    pub waiting: Vec<String>,
}

impl Config {
    /// What becomes of `wanted`, where `self` is in force.
    ///
    /// # Errors
    /// The live keys' values contradict those that wait for a restart.
    pub fn change_to(&self, wanted: &Self) -> Result<Change, ConfigError> {
        let mut change = Change {
            config: self.clone(),
            applied: Vec::new(),
            waiting: Vec::new(),
        };
        for key in keys() {
            if self.is_same(wanted, key.section, key.name) {
                continue;
            }
            if key.is_live() {
                change.config.take(wanted, key.section, key.name);
                change.applied.push(key.dotted());
            } else {
                change.waiting.push(key.dotted());
            }
        }
        change.config.check()?;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bytes, Secret, parse};

    #[test]
    fn the_lists_name_keys_and_sections() {
        let keys = keys();
        for name in LIVE {
            assert!(keys.iter().any(|key| key.dotted() == *name), "{name}");
        }
        for name in LIVE_SECTIONS {
            assert!(keys.iter().any(|key| key.section == *name), "{name}");
        }
        // What the data was made with is never changed under way.
        assert!(keys.iter().all(|key| key.section != "identity" || !key.is_live()));
    }

    #[test]
    fn what_changed_is_applied_or_waits() {
        let running = parse("[throttles]\nqueries_per_second = 5").unwrap();
        let mut wanted = parse("[log]\nretention = \"2d\"\nsegment_bytes = \"32MiB\"").unwrap();
        wanted.identity.owner_key = Some(Secret("a".into()));
        let change = running.change_to(&wanted).unwrap();
        assert_eq!(change.applied, ["log.retention", "throttles.queries_per_second"]);
        assert_eq!(change.waiting, ["identity.owner_key", "log.segment_bytes"]);
        assert_eq!(change.config.log.retention, wanted.log.retention);
        assert_eq!(change.config.log.segment_bytes, Bytes(64 << 20));
        assert_eq!(change.config.throttles, wanted.throttles);
        assert_eq!(change.config.identity.owner_key, None);
        // What waits, waits until the restart.
        let again = change.config.change_to(&wanted).unwrap();
        assert_eq!((again.applied.len(), again.waiting.len()), (0, 2));
        let same = change.config.change_to(&change.config).unwrap();
        assert!(same.applied.is_empty() && same.waiting.is_empty());
    }
}
