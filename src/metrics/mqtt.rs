//! The MQTT door's facts as metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::cells::{SessionKind, ShardCell};
use super::exposition::Families;
use super::registry::Metrics;
use super::series;
use crate::session::mqtt::observer::{Began, Observer};

/// Counts by a label of a closed set.
type Labelled = Mutex<BTreeMap<&'static str, u64>>;

/// Reasons of the door itself for refusing a CONNECT; those of credentials come when they happen.
const CONNECT_REASONS: [&str; 11] = [
    "malformed",
    "protocol",
    "version",
    "client_id",
    "user_name",
    "will",
    "auth_method",
    "busy",
    "stopping",
    "throttled",
    "unavailable",
];
const ENDED_REASONS: [&str; 14] = [
    "malformed",
    "protocol",
    "too_large",
    "topic",
    "property",
    "qos",
    "receive_maximum",
    "keep_alive",
    "stalled",
    "taken_over",
    "expired",
    "revoked",
    "stopping",
    "failed",
];
const MESSAGE_REASONS: [&str; 4] = ["topic", "too_large", "property", "qos"];

#[derive(Debug)]
pub(super) struct MqttCells {
    connections: [AtomicU64; Began::ALL.len()],
    handshakes_failed: AtomicU64,
    connects_refused: Labelled,
    ended: Labelled,
    messages_refused: Labelled,
    duplicates: AtomicU64,
    wills: AtomicU64,
}

impl Default for MqttCells {
    fn default() -> Self {
        // All from the start: a rate over a series that appears with its first count would miss that one.
        let zeros = |reasons: &[&'static str]| Mutex::new(reasons.iter().map(|&reason| (reason, 0)).collect());
        Self {
            connections: Default::default(),
            handshakes_failed: AtomicU64::default(),
            connects_refused: zeros(&CONNECT_REASONS),
            ended: zeros(&ENDED_REASONS),
            messages_refused: zeros(&MESSAGE_REASONS),
            duplicates: AtomicU64::default(),
            wills: AtomicU64::default(),
        }
    }
}

impl MqttCells {
    pub fn open(&self, began: Began) -> u64 {
        self.connections[began as usize].load(Relaxed)
    }

    pub fn render(&self, out: &mut Families) {
        out.each(
            &series::MQTT_CONNECTIONS,
            Began::ALL.iter().map(|&began| {
                let count = self.connections[began as usize].load(Relaxed);
                (vec![began.label().to_owned()], count as f64)
            }),
        );
        let one = |cell: &AtomicU64| cell.load(Relaxed) as f64;
        out.one(&series::MQTT_HANDSHAKES_FAILED, &[], one(&self.handshakes_failed));
        out.each(&series::MQTT_CONNECTS_REFUSED, counts(&self.connects_refused));
        out.each(&series::MQTT_ENDED, counts(&self.ended));
        out.each(&series::MQTT_MESSAGES_REFUSED, counts(&self.messages_refused));
        out.one(&series::MQTT_DUPLICATES, &[], one(&self.duplicates));
        out.one(&series::MQTT_WILLS, &[], one(&self.wills));
    }
}

fn count(cell: &Labelled, label: &'static str) {
    *cell
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(label)
        .or_default() += 1;
}

fn counts(cell: &Labelled) -> impl Iterator<Item = (Vec<String>, f64)> + use<> {
    let counts = cell.lock().unwrap_or_else(PoisonError::into_inner).clone();
    counts
        .into_iter()
        .map(|(label, count)| (vec![label.to_owned()], count as f64))
}

/// What the MQTT door states, as metrics.
#[derive(Clone, Debug)]
pub struct MqttFacts {
    pub cell: Arc<ShardCell>,
    pub metrics: Arc<Metrics>,
}

impl Observer for MqttFacts {
    fn connection_opened(&self, began: Began) {
        self.metrics.mqtt.connections[began as usize].fetch_add(1, Relaxed);
    }

    fn connection_closed(&self, began: Began) {
        self.metrics.mqtt.connections[began as usize].fetch_sub(1, Relaxed);
    }

    fn handshake_failed(&self) {
        self.metrics.mqtt.handshakes_failed.fetch_add(1, Relaxed);
    }

    fn auth_refused(&self, label: &'static str) {
        self.metrics.auth_refused(label);
    }

    fn connect_refused(&self, label: &'static str) {
        count(&self.metrics.mqtt.connects_refused, label);
    }

    fn session_opened(&self) {
        self.cell.session_opened(SessionKind::Device);
    }

    fn session_closed(&self) {
        self.cell.session_ended(SessionKind::Device);
    }

    fn ended(&self, label: &'static str) {
        count(&self.metrics.mqtt.ended, label);
    }

    fn message_refused(&self, label: &'static str) {
        count(&self.metrics.mqtt.messages_refused, label);
    }

    fn duplicate(&self) {
        self.metrics.mqtt.duplicates.fetch_add(1, Relaxed);
    }

    fn will_published(&self) {
        self.metrics.mqtt.wills.fetch_add(1, Relaxed);
    }
}
