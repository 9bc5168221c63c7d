//! The table of every series. Dashboards and alerts may name only what stands here.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric: its name, what it says, and the labels it carries.
#[derive(Debug)]
pub struct Series {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
}

macro_rules! series {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $constant: Series = Series {
            name: $name,
            help: $help,
            kind: Kind::$kind,
            labels: &[$($label),*],
        };)*
        /// Every series, in the order of the scrape.
        pub const ALL: &[&Series] = &[$(&$constant),*];
    };
}

series! {
    INFO = Gauge "forebay_info" ["version", "durability"] "Always 1; says what runs and when an append is acknowledged.";
    START = Gauge "forebay_start_timestamp_seconds" [] "When the process started, in seconds since 1970.";
    ACCEPTED = Counter "forebay_messages_accepted_total" [] "Messages taken from devices, before they are stored.";
    ACCEPTED_BYTES = Counter "forebay_accepted_bytes_total" [] "Bytes of accepted messages.";
    APPENDED = Counter "forebay_messages_appended_total" [] "Messages appended to the log.";
    APPENDED_BYTES = Counter "forebay_appended_bytes_total" [] "Bytes appended to the log.";
    ACKNOWLEDGED = Counter "forebay_messages_acknowledged_total" [] "Messages acknowledged to their device at the durability level of forebay_info.";
    DUPLICATES = Counter "forebay_messages_duplicate_total" [] "Repeated messages that were acknowledged and not appended.";
    REFUSED = Counter "forebay_messages_refused_total" ["reason"] "Messages refused, by the close code that told the device.";
    DELIVERED = Counter "forebay_messages_delivered_total" [] "Messages sent to consumers.";
    DELIVERED_BYTES = Counter "forebay_delivered_bytes_total" [] "Bytes sent to consumers.";
    ACK_LATENCY = Histogram "forebay_ack_latency_seconds" ["stage", "durability"] "Time of a batch in each stage on its way to the acknowledgement.";
    QUEUE = Gauge "forebay_queue_commands" [] "Commands, mostly batches, that wait for a shard.";
    INFLIGHT = Gauge "forebay_inflight_bytes" [] "Bytes received and not yet acknowledged.";
    BACKPRESSURE = Counter "forebay_backpressure_seconds_total" ["cause"] "Time for which sessions were not read, by cause.";
    SESSIONS = Gauge "forebay_sessions" ["kind"] "Open sessions.";
    CLOSED = Counter "forebay_connections_closed_total" ["reason"] "Connections the hub closed, by close code.";
    HANDSHAKES = Counter "forebay_handshakes_total" ["outcome"] "Handshakes, by outcome.";
    AUTH_REFUSED = Counter "forebay_credentials_refused_total" ["reason"] "Refused credentials, by reason.";
    HTTP_REQUESTS = Counter "forebay_http_requests_total" ["route", "status"] "Requests answered over HTTPS.";
    UPGRADES = Counter "forebay_websockets_opened_total" ["protocol"] "WebSockets opened on the HTTPS port, by what goes through them.";
    UPGRADES_REFUSED = Counter "forebay_websockets_refused_total" ["reason"] "Requests on the paths of WebSockets that opened none, by reason.";
    AMQP_CONNECTIONS = Gauge "forebay_amqp_connections" ["transport"] "Open AMQP connections, handshakes included.";
    AMQP_LINKS = Gauge "forebay_amqp_links" [] "Open AMQP links, of devices, services and consumers.";
    AMQP_HANDSHAKES_FAILED = Counter "forebay_amqp_handshakes_failed_total" [] "AMQP connections that ended before their open frame, or found no room.";
    AMQP_ENDED = Counter "forebay_amqp_ended_total" ["condition"] "AMQP links, sessions and connections that the hub refused or ended, by the condition it gave.";
    MQTT_CONNECTIONS = Gauge "forebay_mqtt_connections" ["transport"] "Open MQTT connections, handshakes included.";
    MQTT_HANDSHAKES_FAILED = Counter "forebay_mqtt_handshakes_failed_total" [] "MQTT connections that ended before their CONNECT, or found no room.";
    MQTT_CONNECTS_REFUSED = Counter "forebay_mqtt_connects_refused_total" ["reason"] "CONNECT packets refused, by reason.";
    MQTT_ENDED = Counter "forebay_mqtt_ended_total" ["reason"] "MQTT connections that the hub ended, by reason.";
    MQTT_MESSAGES_REFUSED = Counter "forebay_mqtt_messages_refused_total" ["reason"] "Messages refused to MQTT 5 clients, whose connections go on, by reason.";
    MQTT_DUPLICATES = Counter "forebay_mqtt_duplicates_total" [] "Messages that came again over MQTT, were acknowledged and not stored again.";
    MQTT_WILLS = Counter "forebay_mqtt_wills_total" [] "Wills stored as telemetry.";
    READERS_DISPLACED = Counter "forebay_readers_displaced_total" [] "Event Hubs readers that lost their partition to one with an owner level as high.";
    THROTTLED = Counter "forebay_throttled_total" ["limit", "outcome"] "Requests and batches above a rate: delayed, or refused with the advice to come back later.";
    THROTTLE_WAIT = Counter "forebay_throttle_wait_seconds_total" ["limit"] "Time that requests and batches were made to wait for their turn.";
    CHECKPOINTS = Counter "forebay_checkpoints_stored_total" [] "Consumers' checkpoints made durable.";
    EVENTS = Counter "forebay_events_recorded_total" ["kind"] "Events of the hub itself that were recorded, by kind.";
    EVENTS_DROPPED = Counter "forebay_events_dropped_total" [] "Recorded events that retention dropped.";
    LOG_BYTES = Gauge "forebay_log_bytes" ["partition"] "Bytes of messages that a partition keeps.";
    LOG_SEGMENTS = Gauge "forebay_log_segments" ["partition"] "Segment files of a partition.";
    LOG_NEXT = Gauge "forebay_log_next_sequence_number" ["partition"] "Sequence number the next record of a partition gets.";
    LOG_STATE = Gauge "forebay_log_refusing_partitions" ["cause"] "Partitions that refuse appends, by cause.";
    SYNC = Histogram "forebay_sync_seconds" [] "Time of one sync round.";
    SYNC_FAILED = Counter "forebay_sync_failures_total" [] "Sync rounds that failed.";
    RECOVERY = Gauge "forebay_recovery_seconds" [] "Time from start until every partition was open.";
    LAG = Gauge "forebay_consumer_lag_messages" ["group", "partition"] "Messages of a partition that a consumer group has not read yet.";
    CPU = Counter "forebay_process_cpu_seconds_total" ["mode"] "Processor time of the process.";
    RESIDENT = Gauge "forebay_process_resident_bytes" [] "Memory of the process that is in RAM, mapped log pages included.";
    FDS = Gauge "forebay_process_open_fds" [] "Open file descriptors of the process.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for series in ALL {
            let name = series.name;
            assert!(name.starts_with("forebay_"), "{name}");
            assert_eq!(name.ends_with("_total"), series.kind == Kind::Counter, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(series.help.ends_with('.'), "{name}");
            assert!(series.labels.iter().all(|label| !label.contains("device")), "{name}");
            assert_eq!(ALL.iter().filter(|other| other.name == name).count(), 1, "{name}");
        }
    }
}
