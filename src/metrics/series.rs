//! The table of every series: what it says, the values of its labels, and what an operator does when it moves. The
//! scrape's help texts and the metrics page both come from it. Dashboards and alerts may name only what stands here.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A label and what its values are; a closed set, or one that is bounded by the configuration.
#[derive(Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: &'static str,
}

/// One metric.
#[derive(Debug)]
pub struct Series {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [Label],
    /// What it says; also the scrape's help text.
    pub help: &'static str,
    /// What its moving means, and what to do then.
    pub action: &'static str,
}

/// Series that are read together.
#[derive(Debug)]
pub struct Group {
    pub title: &'static str,
    pub series: &'static [&'static Series],
}

macro_rules! series {
    ($($title:literal {
        $($constant:ident = $kind:ident $name:literal { $($label:ident: $values:literal),* }
            $help:literal
            $action:literal;)*
    })*) => {
        $($(pub const $constant: Series = Series {
            name: $name,
            kind: Kind::$kind,
            labels: &[$(Label { name: stringify!($label), values: $values }),*],
            help: $help,
            action: $action,
        };)*)*

        /// Every series, in the order of the scrape.
        pub const ALL: &[&Series] = &[$($(&$constant),*),*];

        /// The same, as the metrics page shows them.
        pub const GROUPS: &[Group] = &[$(Group { title: $title, series: &[$(&$constant),*] }),*];
    };
}

series! {
    "What runs" {
        INFO = Gauge "forebay_info" { version: "of the program", durability: "`sync`, `interval` or `os`: when an append is acknowledged" }
            "Always 1; says what runs and when an append is acknowledged."
            "A version other than the rollout's: an instance was left behind. Any level but `sync` loses acknowledged messages at power loss: make sure that somebody chose it.";
        START = Gauge "forebay_start_timestamp_seconds" { }
            "When the process started, in seconds since 1970."
            "A jump is a restart. Read the log lines before it and forebay_start_unclean for its kind; several in half an hour are a crash loop.";
        UNCLEAN = Gauge "forebay_start_unclean" { }
            "1 if the process before this one did not stop in order, else 0."
            "1 after kill -9, an out-of-memory kill or power loss: nothing that was acknowledged is lost at the level `sync`, but find out what ended it. Also 1 after a drain that ran out of process.drain_timeout.";
        RECOVERY = Gauge "forebay_recovery_seconds" { }
            "Time from start until every partition was open."
            "Grows with the size of the active segments after a crash. Above the start probe's limit the orchestrator kills the hub for ever: raise the limit, or lower log.segment_bytes.";
    }
    "Telemetry in" {
        ACCEPTED = Counter "forebay_messages_accepted_total" { }
            "Messages taken from devices, before they are stored."
            "The load. Falling to nothing while sessions stay open: devices are silent or held back, see forebay_backpressure_seconds_total. Rising well above the usual: a spike, which the disk takes; watch forebay_ack_latency_seconds.";
        ACCEPTED_BYTES = Counter "forebay_accepted_bytes_total" { }
            "Bytes of accepted messages."
            "Divided by forebay_messages_accepted_total it is the mean size of a message: a jump is a changed firmware.";
        APPENDED = Counter "forebay_messages_appended_total" { }
            "Messages appended to the log."
            "Follows forebay_messages_accepted_total, duplicates apart. Falling behind it for minutes: the shards do not keep up, see forebay_queue_commands.";
        APPENDED_BYTES = Counter "forebay_appended_bytes_total" { }
            "Bytes appended to the log."
            "The rate times log.retention is the disk space that the log will need.";
        ACKNOWLEDGED = Counter "forebay_messages_acknowledged_total" { }
            "Messages acknowledged to their device at the durability level of forebay_info."
            "What devices were promised. Standing still while forebay_messages_appended_total moves: the disk does not sync, see forebay_sync_seconds.";
        DUPLICATES = Counter "forebay_messages_duplicate_total" { }
            "Repeated messages that were acknowledged and not appended."
            "Rises after reconnects, which is what it is for. A steady rate: devices do not get their acknowledgements in time, or a client forgets what it sent.";
        REFUSED = Counter "forebay_messages_refused_total" { reason: "close code that told the device, as of forebay_connections_closed_total" }
            "Messages refused, by the close code that told the device."
            "message_too_large, invalid_message and sequence_gap are faults of a client: find its version. internal: a partition is closed, see forebay_log_refusing_partitions.";
        ACK_LATENCY = Histogram "forebay_ack_latency_seconds" { stage: "`door` read and checked, `queue` waiting for the home shard, `append` written, `sync` waiting for the disk, `total` all of them", durability: "as in forebay_info" }
            "Time of a batch in each stage on its way to the acknowledgement."
            "Look for the stage that grew. queue: too little processor, or one partition has most of the load. sync: the disk, see forebay_sync_seconds. append: pages of new segments are not ready, the disk is slow or memory is short.";
        QUEUE = Gauge "forebay_queue_commands" { }
            "Commands, mostly batches, that wait for a shard."
            "Some under load. Hundreds for minutes: shards do not keep up. Give the hub more cores, or spread devices over more hubs.";
        INFLIGHT = Gauge "forebay_inflight_bytes" { }
            "Bytes received and not in the log yet."
            "Bounded by shard.inflight_bytes_max for each shard. At the bound sessions are no longer read: see forebay_backpressure_seconds_total.";
        INFLIGHT_OF = Gauge "forebay_partition_inflight_bytes" { partition: "number" }
            "Bytes received for a partition and not in its log yet."
            "Bounded by shard.partition_inflight_bytes_max. One partition at the bound and the others near nothing: a few devices send most; the others are served all the same.";
        BACKPRESSURE = Counter "forebay_backpressure_seconds_total" { cause: "`session_inflight`: as much as a session may have was not acknowledged; `partition_inflight`: a partition's budget of bytes was used up; `shard_inflight`: the shard's was; `disk_full`: partitions had no room to append" }
            "Time for which sessions were not read, by cause, summed over sessions; a wait counts while it lasts."
            "Nothing is lost: devices wait, and buffer. Its rate is how many wait at a time. session_inflight: these devices send faster than the disk syncs; a few in a spike are normal. partition_inflight: one partition has most of the load. shard_inflight: more comes than the disk or the processor takes; if it lasts beyond a spike, add disk speed or hubs. disk_full: make room.";
    }
    "Consumers" {
        DELIVERED = Counter "forebay_messages_delivered_total" { }
            "Messages sent to consumers."
            "Follows forebay_messages_appended_total times the number of consumer groups. Standing still: no consumer is connected or reads.";
        DELIVERED_BYTES = Counter "forebay_delivered_bytes_total" { }
            "Bytes sent to consumers."
            "A consumer that catches up reads at the speed of the disk: expect the network to be busy meanwhile.";
        READERS_DISPLACED = Counter "forebay_readers_displaced_total" { }
            "Event Hubs readers that lost their partition to one with an owner level as high."
            "A few when processors balance. A steady rate: two programs use the same consumer group against each other; give one its own.";
        CHECKPOINTS = Counter "forebay_checkpoints_stored_total" { }
            "Consumers' checkpoints made durable."
            "Standing still while messages are delivered: a consumer does not store where it is and will read everything again after a restart. Event Hubs clients keep theirs elsewhere.";
        LAG = Gauge "forebay_consumer_lag_messages" { group: "consumer group; at most 20", partition: "number" }
            "Messages of a partition that a consumer group has not read yet; known once the group has read it since the start of the hub."
            "Rises while the group reads slower than devices send, or does not read. Messages wait on disk until log.retention ends: bring the consumer back or add readers before. One partition alone: one reader hangs.";
    }
    "Log and disk" {
        LOG_BYTES = Gauge "forebay_log_bytes" { partition: "number" }
            "Bytes of messages that a partition keeps."
            "Levels off once log.retention is reached. Uneven over the partitions: few devices send most.";
        LOG_SEGMENTS = Gauge "forebay_log_segments" { partition: "number" }
            "Segment files of a partition."
            "Follows forebay_log_bytes. Each open file and its index costs a little memory.";
        LOG_NEXT = Gauge "forebay_log_next_sequence_number" { partition: "number" }
            "Sequence number the next record of a partition gets."
            "Only grows. Its rate is the load of the partition; one that stands still while others move may be closed.";
        LOG_STATE = Gauge "forebay_log_refusing_partitions" { cause: "`poisoned`: closed after an I/O error or damage until the hub is started again; `disk_full`: waiting for room" }
            "Partitions that refuse appends, by cause."
            "poisoned: devices of these partitions are refused. Look into the log lines, repair the disk, run `forebay log verify`, start again. disk_full: make room; the hub goes on by itself.";
        LOG_DAMAGED = Gauge "forebay_log_damaged_partitions" { }
            "Partitions whose log was found damaged at this start, beyond what a crash leaves."
            "Not 0: stored messages cannot be read. Stop the hub, copy the directory, run `forebay log verify`, which names file, position and sequence numbers; suspect the disk.";
        SYNC = Histogram "forebay_sync_seconds" { }
            "Time of one sync round."
            "Acknowledgements at the level `sync` wait for it. A slower disk shows here first: look for neighbours, throttled volumes, snapshots. `forebay-bench latency` measures what it does to devices.";
        SYNC_FAILED = Counter "forebay_sync_failures_total" { }
            "Sync rounds that failed."
            "Each closes partitions, see forebay_log_refusing_partitions. The disk lies or is broken: replace it before starting again.";
        VOLUME_FREE = Gauge "forebay_data_volume_free_bytes" { }
            "Bytes that are free to the hub on the volume of process.data_dir."
            "Falls until log.retention is reached. Towards 0: lower log.retention or set log.retention_bytes, or enlarge the volume. At 0 devices wait and nothing that was acknowledged is lost.";
        VOLUME_SIZE = Gauge "forebay_data_volume_size_bytes" { }
            "Size of the volume of process.data_dir in bytes."
            "Changes when the volume is enlarged; otherwise something else is mounted there.";
    }
    "Sessions and handshakes" {
        SESSIONS = Gauge "forebay_sessions" { kind: "`device` over any protocol, `service` over QUIC" }
            "Open sessions."
            "A sudden fall: the network, the certificate, or a hub that closed them, see forebay_connections_closed_total. At quic.sessions_max newcomers are refused.";
        DRAINED = Counter "forebay_sessions_drained_total" { }
            "Device sessions that a stop of the hub has told to go."
            "Rises at process.drain_sessions_per_second while the hub drains; with forebay_sessions it says how far that is.";
        QUIC_CONNECTIONS = Gauge "forebay_quic_connections" { }
            "Open QUIC connections of devices, services and consumers, handshakes included."
            "Near quic.sessions_max newcomers are refused. Far above forebay_sessions: handshakes that do not end, see forebay_handshakes_total.";
        CLOSED = Counter "forebay_connections_closed_total" { reason: "close code of the native protocol: `normal`, `draining`, `malformed_frame`, `unsupported_version`, `frame_too_large`, `message_too_large`, `unexpected_frame`, `sequence_gap`, `stale_epoch`, `invalid_message`, `unauthorized`, `device_disabled`, `device_deleted`, `token_expired`, `taken_over`, `forbidden`, `busy`, `too_slow`, `internal`" }
            "Connections the hub closed, by close code."
            "taken_over steadily: two devices share one identity. busy: limits are reached. token_expired: clients renew too late. internal: a partition is closed. The others are faults of clients.";
        HANDSHAKES = Counter "forebay_handshakes_total" { outcome: "`full`, `resumed`, `retried` (told to prove its address first), `refused` (over quic.sessions_max), `unauthorized`, `timed_out`, `failed`" }
            "Handshakes of the native protocol, by outcome."
            "A storm of full and retried ones: the fleet comes back, at quic.handshakes_per_second; wait. failed: a certificate that devices do not trust, or hostile traffic. timed_out: too little processor or a bad network.";
        ADMISSION_WAITING = Gauge "forebay_admission_waiting" { door: "`quic`, `mqtt`, `amqp`, `https`" }
            "Connections that wait for the turn of their handshake."
            "A fleet comes back; it is let in at the door's handshakes_per_second so that those who stayed are served. Divided by that rate it is how long the last one waits: above some 10 s clients give up and come again. Raise the rate if the processor has room.";
        ADMITTED = Counter "forebay_admitted_total" { door: "as of forebay_admission_waiting" }
            "Connections whose handshake got its turn."
            "Its rate at the door's handshakes_per_second for long, without a fleet that comes back: clients connect for every message. Let them keep their connections.";
        ADMISSION_LEFT = Counter "forebay_admission_left_total" { door: "as of forebay_admission_waiting" }
            "Connections that got no turn: they gave up, or the line was too long."
            "They come again. Steadily: the door's handshakes_per_second is too low for the fleet, or somebody opens connections and leaves.";
        ADMISSION_WAIT = Counter "forebay_admission_wait_seconds_total" { door: "as of forebay_admission_waiting" }
            "Time that connections waited for the turn of their handshake."
            "Divided by forebay_admitted_total it is the mean wait of a newcomer.";
        AUTH_REFUSED = Counter "forebay_credentials_refused_total" { reason: "`missing`, `malformed`, `expired`, `scope`, `signature`, `unknown_policy`, `unknown_identity`, `wrong_kind`, `certificate_malformed`, `certificate_expired`, `thumbprint`, `common_name`, `chain`, `unknown_host`, `not_permitted`, `device_not_found`, `module_not_found`, `disabled`, `unavailable`" }
            "Refused credentials, by reason."
            "expired: clocks of devices, or tokens that are not renewed. signature and thumbprint: keys were changed on one side. unknown_identity: devices that nobody created, or somebody guesses. unknown_host: identity.host_names lacks a name.";
    }
    "HTTPS and WebSockets" {
        HTTP_REQUESTS = Counter "forebay_http_requests_total" { route: "what the request is for, as in /openapi.json; `none` for unknown paths", status: "HTTP status, or `other`" }
            "Requests answered over HTTPS."
            "429: see forebay_throttled_total. 503: a partition is closed or the hub drains. 401 and 403: see forebay_credentials_refused_total. Route none: somebody scans, or a client of another API.";
        UPGRADES = Counter "forebay_websockets_opened_total" { protocol: "`amqp`, `mqtt`" }
            "WebSockets opened on the HTTPS port, by what goes through them."
            "Follows the clients behind firewalls. A high rate: they do not stay connected, see the proxy between.";
        UPGRADES_REFUSED = Counter "forebay_websockets_refused_total" { reason: "`not_websocket`, `version`, `key`, `protocol`" }
            "Requests on the paths of WebSockets that opened none, by reason."
            "not_websocket: a proxy drops the Upgrade header. protocol: a client offers none that the hub speaks.";
    }
    "AMQP" {
        AMQP_CONNECTIONS = Gauge "forebay_amqp_connections" { transport: "`tls`, `websocket`, `plain` (development only)" }
            "Open AMQP connections, handshakes included."
            "At amqp.connections_max newcomers are closed at once: raise it, about 25 KiB each.";
        AMQP_LINKS = Gauge "forebay_amqp_links" { }
            "Open AMQP links, of devices, services and consumers."
            "Grows with connections. Alone: a client opens links and forgets them; amqp.links_max bounds each connection.";
        AMQP_HANDSHAKES_FAILED = Counter "forebay_amqp_handshakes_failed_total" { }
            "AMQP connections that ended before their open frame, or found no room."
            "Load balancers that probe the port count here. More: devices do not trust the certificate, or amqp.connections_max is reached.";
        AMQP_ENDED = Counter "forebay_amqp_ended_total" { condition: "AMQP error condition, from a closed set; appears when first given" }
            "AMQP links, sessions and connections that the hub refused or ended, by the condition it gave."
            "unauthorized-access: see forebay_credentials_refused_total. resource-limit-exceeded: a client beyond amqp.sessions_max or amqp.links_max. internal-error: a partition is closed. decode and framing errors: a broken client.";
    }
    "MQTT" {
        MQTT_CONNECTIONS = Gauge "forebay_mqtt_connections" { transport: "`tls`, `websocket`" }
            "Open MQTT connections, handshakes included."
            "At mqtt.connections_max newcomers are closed at once: raise it, about 20 KiB each.";
        MQTT_HANDSHAKES_FAILED = Counter "forebay_mqtt_handshakes_failed_total" { }
            "MQTT connections that ended before their CONNECT, or found no room."
            "Load balancers that probe the port count here. More: devices do not trust the certificate, are slower than mqtt.handshake_timeout, or mqtt.connections_max is reached.";
        MQTT_CONNECTS_REFUSED = Counter "forebay_mqtt_connects_refused_total" { reason: "`malformed`, `protocol`, `version`, `client_id`, `user_name`, `will`, `auth_method`, `busy`, `stopping`, `throttled`, `unavailable`; and those of forebay_credentials_refused_total, which appear when first given" }
            "CONNECT packets refused, by reason."
            "client_id, user_name and will: a client that is set up wrongly. Credentials: see forebay_credentials_refused_total. throttled: above throttles.connections_per_second.";
        MQTT_ENDED = Counter "forebay_mqtt_ended_total" { reason: "`malformed`, `protocol`, `too_large`, `topic`, `property`, `qos`, `receive_maximum`, `keep_alive`, `stalled`, `taken_over`, `expired`, `revoked`, `stopping`, `failed`" }
            "MQTT connections that the hub ended, by reason."
            "keep_alive: bad networks or sleeping devices. taken_over steadily: two devices share one identity. expired: tokens are renewed too late. stalled: devices that do not read. The packet faults: a broken client.";
        MQTT_MESSAGES_REFUSED = Counter "forebay_mqtt_messages_refused_total" { reason: "`topic`, `too_large`, `property`, `qos`" }
            "Messages refused to MQTT 5 clients, whose connections go on, by reason."
            "A client that is set up wrongly: its messages are lost on its side. Find the firmware.";
        MQTT_DUPLICATES = Counter "forebay_mqtt_duplicates_total" { }
            "Messages that came again over MQTT, were acknowledged and not stored again."
            "Rises after reconnects. A steady rate: acknowledgements come later than clients wait for.";
        MQTT_WILLS = Counter "forebay_mqtt_wills_total" { }
            "Wills stored as telemetry."
            "Devices that were lost without a goodbye. A burst: the network, or the hub was cut off.";
    }
    "Commands and methods" {
        COMMANDS_QUEUED = Counter "forebay_commands_queued_total" { }
            "Messages that services queued for devices."
            "The load of services. forebay_commands_ended_total should follow it within the messages' time to live: if not, devices do not take them.";
        COMMANDS_DELIVERED = Counter "forebay_commands_delivered_total" { }
            "Messages handed to devices, again after each abandon."
            "Well above forebay_commands_queued_total: devices abandon, or do not settle in time, and get the same message again.";
        COMMANDS_ENDED = Counter "forebay_commands_ended_total" { outcome: "`success`: completed; `expired`; `delivery_count_exceeded`; `rejected`; `purged`" }
            "Messages to devices that ended, by what became of them."
            "expired: devices are away longer than commands.default_ttl or the sender's expiry. delivery_count_exceeded and rejected: devices that cannot handle what they get: a firmware.";
        METHODS = Counter "forebay_methods_invoked_total" { outcome: "`answered`, `not_online`, `timed_out`, `refused` (too many under way), `bad_answer`" }
            "Calls of direct methods, by how they ended."
            "not_online: the device is away or does not listen for methods. timed_out: it has the call and is slow or hangs. refused: a back end calls more than devices answer.";
    }
    "Console" {
        CONSOLE_SIGN_INS = Counter "forebay_console_sign_ins_total" { outcome: "`accepted`, `refused`, or `slowed`: not looked at, because too many were wrong at the same time" }
            "Attempts to sign in to the console."
            "`refused` now and then is somebody who mistyped. A steady rate, and any `slowed`, is somebody who guesses: find out who reaches the operations port, and close it to them.";
        CONSOLE_REFUSED = Counter "forebay_console_refused_total" { reason: "`host`, `origin`, `session`, `permission`, `path`, `body`, `busy` or `hub`" }
            "Requests that the console refused, by reason."
            "`origin` and `host`: a page of another site tries to use an operator's browser; ask who had which page open. `permission`: a policy with fewer rights than its user wants. `busy`: as many live tails as there may be. `session` and `hub` are everyday.";
    }
    "Throttles" {
        THROTTLED = Counter "forebay_throttled_total" { limit: "`registry`, `connections`, `d2c_messages`, `queries`, `c2d_sends`, `c2d_receives`, `method_bytes`, `twin_reads`, `twin_updates`, `device`, `daily_messages`", outcome: "`delayed`: made to wait; `refused`: told to come back later" }
            "Requests and batches above a rate: delayed, or refused with the advice to come back later."
            "A limit of [throttles] works. Raise it if the machine has room, else find the client. Limit device: one device sends more than it may, the others are unharmed.";
        THROTTLE_WAIT = Counter "forebay_throttle_wait_seconds_total" { limit: "as of forebay_throttled_total" }
            "Time that requests and batches were made to wait for their turn."
            "Its rate is how many wait at a time. Near throttles.waiters_max for requests: refusals follow.";
    }
    "The hub's own events" {
        EVENTS = Counter "forebay_events_recorded_total" { kind: "`connection`, `lifecycle`, `twin`" }
            "Events of the hub itself that were recorded, by kind."
            "connection in masses: devices flap. Lower its cost with events.connection_window or events.kinds.";
        EVENTS_DROPPED = Counter "forebay_events_dropped_total" { }
            "Recorded events that retention dropped."
            "Normal once events.retention is reached. Fast: events.records_max is small for the rate, readers miss events.";
    }
    "The process" {
        CPU = Counter "forebay_process_cpu_seconds_total" { mode: "`user`, `system`" }
            "Processor time of the process."
            "Its rate is cores in use. Near the cores it has: latencies grow, handshakes first. Compare with forebay_messages_accepted_total.";
        RESIDENT = Gauge "forebay_process_resident_bytes" { }
            "Memory of the process that is in RAM, mapped log pages included."
            "Mapped pages are the kernel's to take back, so that this may fill the memory without harm. Watch forebay_process_anonymous_bytes.";
        ANONYMOUS = Gauge "forebay_process_anonymous_bytes" { }
            "Memory of the process that only it can give back: heap and stacks, without mapped log pages."
            "Follows the README's formula: sessions, windows, partitions. Near forebay_process_memory_limit_bytes the kernel kills the hub: lower sessions_max, connections_max or shard.inflight_bytes_max, or raise the limit.";
        MEMORY_LIMIT = Gauge "forebay_process_memory_limit_bytes" { }
            "Memory the process may use: the least of its cgroups' limits and the machine's memory."
            "Changes with the container's limits. Size it by the README's formula.";
        FDS = Gauge "forebay_process_open_fds" { }
            "Open file descriptors of the process."
            "One for each TCP connection and some for each partition. Near forebay_process_fds_limit: connections are refused.";
        FDS_LIMIT = Gauge "forebay_process_fds_limit" { }
            "Open file descriptors the process may have."
            "Set by `ulimit -n` or LimitNOFILE; keep it well above the connections_max of all doors.";
    }
    "Upkeep" {
        CERTIFICATE_EXPIRY = Gauge "forebay_certificate_expiry_timestamp_seconds" { certificate: "`server` (the one in service), `ca` (that of a development hub)" }
            "When a certificate expires, in seconds since 1970."
            "Near: write a new chain and key over quic.certificate_file and quic.key_file. The hub serves them within seconds, without a restart. Past: clients refuse the hub.";
        CERTIFICATE_RELOADS = Counter "forebay_certificate_reloads_total" { outcome: "`loaded`, `refused`" }
            "Changed certificate files that were read while the hub ran."
            "refused: the new files are no good and the old certificate is served on until it expires. The log says why; so does `forebay doctor`.";
        CONFIG_RELOADS = Counter "forebay_config_reloads_total" { outcome: "`applied`, `restart_needed`, `refused`" }
            "Configurations read anew on SIGHUP."
            "restart_needed: the log names the keys that changed and wait for a restart. refused: the file is wrong and nothing has changed; `forebay config check` says where.";
        LOG_SUPPRESSED = Counter "forebay_log_lines_suppressed_total" { }
            "Lines of the log that were left out, since one place in the program wrote more of them in a second than ops.log_lines_per_second."
            "Some peer or fault floods the log. Every few seconds a line names the places; the lines that were written show what happens there.";
    }
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
            assert!(
                series.labels.iter().all(|label| !label.name.contains("device")),
                "{name}"
            );
            assert_eq!(ALL.iter().filter(|other| other.name == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn everything_is_explained() {
        for series in ALL {
            let name = series.name;
            assert!(series.help.ends_with('.') && series.help.len() > 10, "{name}");
            // `promtool` takes a help text that repeats the name for a forgotten one.
            assert!(!series.help.contains(name), "{name}");
            assert!(series.action.ends_with('.') && series.action.len() > 30, "{name}");
            assert!(series.labels.iter().all(|label| !label.values.is_empty()), "{name}");
        }
    }

    #[test]
    fn texts_name_only_series_and_keys_that_exist() {
        let keys: Vec<_> = crate::config::keys::keys().iter().map(|key| key.dotted()).collect();
        let is_word = |c: char| c.is_ascii_lowercase() || "_.".contains(c);
        for series in ALL {
            let labels = series.labels.iter().map(|label| label.values);
            for text in labels.chain([series.help, series.action]) {
                for word in text.split(|c| !is_word(c)) {
                    let word = word.trim_matches('.');
                    let is_series = word.starts_with("forebay_");
                    if is_series {
                        assert!(ALL.iter().any(|other| other.name == word), "{}: {word}", series.name);
                    } else if word.contains('.') && word != "openapi.json" {
                        assert!(keys.iter().any(|key| key == word), "{}: {word}", series.name);
                    }
                }
            }
        }
    }
}
