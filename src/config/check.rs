//! What must hold between keys, after each holds for itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::ConfigError;
use super::keys::Config;

impl Config {
    /// # Errors
    /// `Conflict` names the keys that contradict each other.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        if self.identity.host_names.is_empty() {
            return conflict("`identity.host_names` is empty; the hub needs at least one name".to_owned());
        }
        if self.quic.certificate_file.is_some() != self.quic.key_file.is_some() {
            return conflict("`quic.certificate_file` and `quic.key_file` go together: set both or none".to_owned());
        }
        if let Some(key) = &self.identity.owner_key
            && !STANDARD.decode(&key.0).is_ok_and(|key| (16..=64).contains(&key.len()))
        {
            return conflict("`identity.owner_key` is not the base64 of 16 to 64 bytes".to_owned());
        }
        // Each left side must fit into its right side, or one legal message could wait for ever.
        let quic = &self.quic;
        let ordered = [
            (
                "limits.message_bytes_max",
                self.limits.message_bytes_max,
                "quic.batch_bytes_max",
                quic.batch_bytes_max,
            ),
            (
                "quic.batch_bytes_max",
                quic.batch_bytes_max,
                "quic.inflight_bytes_max",
                quic.inflight_bytes_max,
            ),
            (
                "quic.inflight_bytes_max",
                quic.inflight_bytes_max,
                "shard.inflight_bytes_max",
                self.shard.inflight_bytes_max,
            ),
            (
                "quic.batch_bytes_max",
                quic.batch_bytes_max,
                "log.segment_bytes",
                self.log.segment_bytes,
            ),
            (
                "quic.stream_window_bytes",
                quic.stream_window_bytes,
                "quic.connection_window_bytes",
                quic.connection_window_bytes,
            ),
            (
                "https.body_bytes_max",
                self.https.body_bytes_max,
                "log.segment_bytes",
                self.log.segment_bytes,
            ),
            (
                "log.index_interval_bytes",
                self.log.index_interval_bytes,
                "log.segment_bytes",
                self.log.segment_bytes,
            ),
        ];
        for (small_key, small, large_key, large) in ordered {
            if small > large {
                return conflict(format!("`{small_key}` = {small} exceeds `{large_key}` = {large}"));
            }
        }
        Ok(())
    }
}
