//! A configuration that is put in force while the hub runs.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::certificate::Files;
use super::drain::Pace;
use super::logging::{LogSettings, Logging};
use super::settings::{event_settings, queue_settings, retention};
use super::{Server, throttles};
use crate::config::{Change, Config, ConfigError};
use crate::hub::{EventSettings, QueueSettings, throttle};
use crate::log::Retention;
use crate::metrics::ConfigReload;

/// What may change under a running hub, in the terms of the parts that hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub throttles: throttle::Config,
    pub queues: QueueSettings,
    pub events: EventSettings,
    pub retention: Retention,
    pub drain: Pace,
    /// Door to its handshakes in a second.
    pub handshakes: BTreeMap<&'static str, u32>,
    /// Of QUIC, MQTT and AMQP: connections at a time. Those that are open stay.
    pub connections_max: [usize; 3],
    /// `None`: the configuration names no files, and those of the start are watched on.
    pub certificate: Option<Files>,
    pub log_lines: LogSettings,
}

impl Live {
    pub fn of(config: &Config) -> Self {
        let files = config.quic.certificate_file.clone().zip(config.quic.key_file.clone());
        Self {
            throttles: throttles::settings(config),
            queues: queue_settings(config),
            events: event_settings(config),
            retention: retention(config),
            drain: Pace::of(config),
            handshakes: BTreeMap::from([
                ("quic", config.quic.handshakes_per_second),
                ("mqtt", config.mqtt.handshakes_per_second),
                ("amqp", config.amqp.handshakes_per_second),
                ("https", config.https.handshakes_per_second),
            ]),
            connections_max: [
                config.quic.sessions_max as usize,
                config.mqtt.connections_max as usize,
                config.amqp.connections_max as usize,
            ],
            certificate: files.map(|(certificate, key)| Files { certificate, key }),
            log_lines: LogSettings::of(config),
        }
    }
}

/// Why nothing was put in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0:#}")]
    LogLines(anyhow::Error),
}

impl Server {
    /// Puts in force what a configuration says otherwise than the present one, as far as a running hub can. What it cannot
    /// is named in the answer and waits for a restart. The certificate's files are read at once, if they have changed.
    ///
    /// # Errors
    /// `ReloadError`; nothing has changed.
    pub async fn reload(&self, wanted: &Config, logging: &Logging) -> Result<Change, ReloadError> {
        let changed = self.change_to(wanted, logging);
        self.metrics.config_reloaded(match &changed {
            Ok(change) if change.waiting.is_empty() => ConfigReload::Applied,
            Ok(_) => ConfigReload::RestartNeeded,
            Err(_) => ConfigReload::Refused,
        });
        self.look_at_certificate().await;
        changed
    }

    /// Reads the certificate's files now, if they have changed, instead of soon.
    pub async fn look_at_certificate(&self) {
        let certificate = self.certificate.clone();
        let _ = tokio::task::spawn_blocking(move || certificate.look(true)).await;
    }

    fn change_to(&self, wanted: &Config, logging: &Logging) -> Result<Change, ReloadError> {
        let mut running = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let change = running.change_to(wanted)?;
        let live = Live::of(&change.config);
        // First, since it alone can fail.
        logging.set(live.log_lines.clone()).map_err(ReloadError::LogLines)?;
        self.apply(live);
        *running = change.config.clone();
        Ok(change)
    }

    fn apply(&self, live: Live) {
        self.throttles.set(live.throttles, Instant::now());
        self.outboxes.set_settings(live.queues.clone());
        self.feedbacks.set_settings(live.queues);
        self.events.set_settings(live.events);
        for partition in self.router.partitions() {
            partition.view.set_retention(live.retention);
        }
        for (door, admission) in &self.admissions {
            admission.set_per_second(live.handshakes[door]);
        }
        for (max, new) in self.connections_max().into_iter().zip(live.connections_max) {
            max.store(new, Ordering::Relaxed);
        }
        if let Some(files) = live.certificate {
            self.certificate.set_files(files);
        }
    }

    /// In the order of `Live::connections_max`.
    fn connections_max(&self) -> [&AtomicUsize; 3] {
        [
            &self.door.sessions_max,
            &self.mqtt.connections_max,
            &self.amqp.connections_max,
        ]
    }

    /// What is in force, as the parts themselves say.
    pub fn live(&self, logging: &Logging) -> Live {
        let running = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = self.outboxes.settings();
        assert_eq!(queues, self.feedbacks.settings(), "they are set together");
        Live {
            throttles: self.throttles.config(),
            queues,
            events: self.events.settings(),
            retention: self.router.partitions()[0].view.retention(),
            drain: Pace::of(&running),
            handshakes: self
                .admissions
                .iter()
                .map(|(door, admission)| (*door, admission.per_second()))
                .collect(),
            connections_max: self.connections_max().map(|max| max.load(Ordering::Relaxed)),
            certificate: Some(self.certificate.files()),
            log_lines: logging.settings(),
        }
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
