//! The one table of every key. The structs, their defaults, the checks, the environment names and the printed example
//! all come from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::value::{
    Bytes, ConsoleAccess, Durability, EventKind, Host, LogFilter, LogFormat, Range, Raw, Secret, Setting,
};

/// One key as text, for whoever prints or looks for it.
#[derive(Clone, Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub doc: &'static str,
    pub cost: &'static str,
    /// As it would stand in the file.
    pub default: String,
    /// Smallest and largest accepted value, where there is an order.
    pub range: Option<(String, String)>,
}

impl Key {
    pub fn dotted(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    pub fn environment(&self) -> String {
        format!("FOREBAY_{}_{}", self.section, self.name).to_uppercase()
    }
}

macro_rules! table {
    ($($(#[doc = $section_doc:literal])* $section:ident: $Section:ident {
        $($key:ident: $Type:ty = $default:expr, $range:expr, $doc:literal, $cost:literal;)*
    })*) => {
        $(
            $(#[doc = $section_doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $(#[doc = $doc] pub $key: $Type,)*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        /// Everything an operator may choose.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config {
            $(pub $section: $Section,)*
        }

        impl Config {
            /// Sets one key; `origin` is where the value comes from, for the message.
            ///
            /// # Errors
            /// The key is unknown, the value has another form, or lies outside the range.
            pub(super) fn set(&mut self, section: &str, name: &str, raw: Raw<'_>, origin: &str) -> Result<(), ConfigError> {
                match (section, name) {
                    $($((stringify!($section), stringify!($key)) => {
                        let range: Range<$Type> = $range;
                        self.$section.$key = read_checked(&format!("{section}.{name}"), raw, origin, &range)?;
                        Ok(())
                    })*)*
                    _ => Err(super::load::unknown_key(format!("{section}.{name}"), origin)),
                }
            }

            /// Whether one key has the same value there.
            pub(super) fn is_same(&self, other: &Self, section: &str, name: &str) -> bool {
                match (section, name) {
                    $($((stringify!($section), stringify!($key)) => self.$section.$key == other.$section.$key,)*)*
                    _ => unreachable!("{section}.{name} stands in no table"),
                }
            }

            /// Takes one key's value from there.
            pub(super) fn take(&mut self, other: &Self, section: &str, name: &str) {
                match (section, name) {
                    $($((stringify!($section), stringify!($key)) => {
                        self.$section.$key = other.$section.$key.clone();
                    })*)*
                    _ => unreachable!("{section}.{name} stands in no table"),
                }
            }

            /// Every key's value as it would stand in the file, in the order of [`keys`].
            pub fn values(&self) -> Vec<String> {
                vec![$($(self.$section.$key.write(),)*)*]
            }
        }

        /// Name and description of every section.
        pub fn sections() -> Vec<(&'static str, &'static str)> {
            vec![$((stringify!($section), concat!($($section_doc),*)),)*]
        }

        /// Every key, grouped by section.
        pub fn keys() -> Vec<Key> {
            let defaults = Config::default();
            vec![$($(Key {
                section: stringify!($section),
                name: stringify!($key),
                doc: $doc,
                cost: $cost,
                default: defaults.$section.$key.write(),
                range: { let range: Range<$Type> = $range; range.ends() },
            },)*)*]
        }
    };
}

fn read_checked<T: Setting + PartialOrd>(
    key: &str,
    raw: Raw<'_>,
    origin: &str,
    range: &Range<T>,
) -> Result<T, ConfigError> {
    let value = T::read(raw).map_err(|detail| ConfigError::Value {
        key: key.to_owned(),
        origin: origin.to_owned(),
        detail,
    })?;
    if !range.contains(&value) {
        let (min, max) = range.ends().expect("a range without ends contains every value");
        return Err(ConfigError::Range {
            key: key.to_owned(),
            value: value.write(),
            allowed: format!("{min} to {max}"),
        });
    }
    Ok(value)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

const fn kib(kib: u64) -> Bytes {
    Bytes(kib << 10)
}

const fn mib(mib: u64) -> Bytes {
    Bytes(mib << 20)
}

const fn gib(gib: u64) -> Bytes {
    Bytes(gib << 30)
}

table! {
    #[doc = "Fixed when the data directory is created. A start with other values is refused."]
    identity: Identity {
        host_names: Vec<Host> = vec![Host("localhost".into())], Range::Any,
            "Names clients call the hub by; the first stands in connection strings. Tokens for other names are refused.",
            "Nothing.";
        partition_count: u16 = 4, Range::Between(2, 128),
            "Partitions of the log. A device belongs to one of them for ever.",
            "One active segment file, one index and one cursor per consumer group for each.";
        owner_key: Option<Secret> = None, Range::Any,
            "Base64 primary key of the policy `iothubowner`, put in force at every start. Empty: the stored one, at first a random one.",
            "Nothing.";
        owner_key_file: Option<PathBuf> = None, Range::Any,
            "File that holds `owner_key`; a trailing line break is dropped. Empty: none.",
            "Nothing.";
    }
    #[doc = "The process as a whole."]
    process: Process {
        data_dir: PathBuf = PathBuf::from("forebay-data"), Range::Any,
            "Directory of all data; held by one process at a time.",
            "Nothing.";
        shards: u16 = 0, Range::Between(0, 256),
            "Threads that own partitions and connections. 0: one for each core.",
            "More threads than cores cost switches; a shard without a partition only takes connections.";
        durability: Durability = Durability::Sync, Range::Any,
            "When an append is acknowledged: \"sync\" (the disk has it), { interval = \"10ms\" } or \"os\" (both may lose acknowledged messages at power loss).",
            "A longer interval loses more at power loss.";
        sync_gap: Duration = millis(0), Range::Between(millis(0), seconds(1)),
            "Least time between the starts of two sync rounds.",
            "Every acknowledgement waits longer, the disk syncs less often.";
        drain_timeout: Duration = seconds(20), Range::Between(seconds(0), seconds(600)),
            "How long a stop waits for sessions to go and for data to be flushed.",
            "A stop may take this long; keep it below the supervisor's own limit.";
        drain_sessions_per_second: u32 = 1_000, Range::Between(0, u32::MAX),
            "Device sessions that a stop tells to go in a second, so that they do not all come back at once elsewhere; more if half of `drain_timeout` would not be enough. 0: all at once.",
            "A fleet comes back in a shorter rush; a lower rate makes stops take longer.";
    }
    #[doc = "The partition log on disk."]
    log: Log {
        segment_bytes: Bytes = mib(64), Range::Between(mib(1), gib(2)),
            "Size of a segment file. Files are allocated in full when they are opened.",
            "Disk space in steps of this size for each partition, and a longer scan after a crash.";
        retention: Duration = days(1), Range::Between(seconds(60), days(3650)),
            "How long messages are kept. A whole segment is dropped when its newest message is older.",
            "Disk space.";
        retention_bytes: Bytes = Bytes(0), Range::Between(Bytes(0), Bytes(1 << 50)),
            "Most bytes a partition keeps; older segments are dropped first. 0: no limit but the disk.",
            "Disk space.";
        index_interval_bytes: Bytes = kib(64), Range::Between(kib(4), mib(4)),
            "Bytes of log between two entries of the sequence and time index.",
            "Seeking reads up to this much more; lowering it costs memory.";
    }
    #[doc = "Device sessions over QUIC."]
    quic: Quic {
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8883)), Range::Any,
            "UDP address and port.",
            "Nothing.";
        certificate_file: Option<PathBuf> = None, Range::Any,
            "PEM file of the server's certificate chain, leaf first. `serve` needs it, `dev` makes its own.",
            "Nothing.";
        key_file: Option<PathBuf> = None, Range::Any,
            "PEM file of the certificate's private key (PKCS #8, SEC 1 or PKCS #1).",
            "Nothing.";
        sessions_max: u32 = 100_000, Range::Between(1, 10_000_000),
            "Sessions at a time; more are refused with a code that says so.",
            "About 40 KiB of memory for each idle session, and its windows when busy.";
        idle_timeout: Duration = seconds(60), Range::Between(seconds(5), seconds(3600)),
            "A session without a packet for this long has ended. Clients send keep-alives well before.",
            "Dead sessions hold memory and count as connected for longer.";
        handshake_timeout: Duration = seconds(10), Range::Between(seconds(1), seconds(120)),
            "A connection that has not authenticated by then is closed.",
            "Half-open connections hold memory for longer.";
        handshakes_per_second: u32 = 1_000, Range::Between(0, u32::MAX),
            "Handshakes begun in a second; above it an address must first prove itself (QUIC Retry), and waits, in the order it came. 0: no limit.",
            "A fleet that comes back is served sooner, at some 0.5 ms of processor time each; devices that never left wait longer for their acknowledgements meanwhile.";
        udp_payload_bytes_max: u16 = 1452, Range::Between(1200, 65_527),
            "Largest UDP payload that path MTU discovery looks for. 1452 fits every Ethernet; 8952 suits jumbo frames.",
            "32 x 64 receive buffers of this size, once.";
        stream_window_bytes: Bytes = kib(256), Range::Between(kib(16), mib(16)),
            "Bytes a device may have under way on one stream.",
            "Memory for each busy session.";
        connection_window_bytes: Bytes = kib(512), Range::Between(kib(16), mib(64)),
            "Bytes a device may have under way on all streams of its connection.",
            "Memory for each busy session.";
        send_window_bytes: Bytes = kib(64), Range::Between(kib(16), mib(64)),
            "Bytes under way to one device.",
            "Memory for each session that does not read its acknowledgements.";
        consumer_window_bytes: Bytes = mib(4), Range::Between(kib(64), mib(256)),
            "Bytes under way to one service connection, all its cursors together.",
            "What a stalled consumer costs at most.";
        batch_bytes_max: Bytes = mib(1), Range::Between(kib(64), mib(16)),
            "Largest batch a device may send as one frame.",
            "Memory for each session that sends such batches.";
        inflight_bytes_max: Bytes = mib(2), Range::Between(kib(64), mib(256)),
            "Bytes of one session that are received and not yet acknowledged; then it is read no further.",
            "Memory for each busy session.";
        resumptions_max: u32 = 65_536, Range::Between(0, 10_000_000),
            "Former sessions remembered so that they may resume in one flight.",
            "About 1 KiB of memory for each.";
    }
    #[doc = "Devices and services over HTTPS, with the certificate of `quic`."]
    https: Https {
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 443)), Range::Any,
            "TCP address and port. SDKs know no other port than 443.",
            "Nothing.";
        connections_max: u32 = 10_000, Range::Between(1, 1_000_000),
            "Connections at a time; more wait in the kernel.",
            "About 20 KiB of memory for each idle one, and its request's body.";
        head_timeout: Duration = seconds(10), Range::Between(seconds(1), seconds(120)),
            "A connection whose handshake or first request's head takes longer is closed; waiting for its turn does not count.",
            "Slow or hostile clients hold connections for longer.";
        handshakes_per_second: u32 = 1_000, Range::Between(0, u32::MAX),
            "TLS handshakes begun in a second; further ones wait, in the order they came. 0: no limit.",
            "Clients that come back at once are served sooner; devices that never left wait longer for their acknowledgements meanwhile.";
        body_timeout: Duration = seconds(30), Range::Between(seconds(1), seconds(600)),
            "A request whose body takes longer is answered with an error and its connection closed.",
            "Slow or hostile clients hold a body's memory for longer.";
        keep_alive: Duration = seconds(75), Range::Between(seconds(1), seconds(3600)),
            "How long a connection may rest between two requests.",
            "Idle connections hold memory for longer.";
        body_bytes_max: Bytes = mib(1), Range::Between(kib(512), mib(16)),
            "Largest body of a request. A batch of 256 KiB in base64, with its properties, must fit.",
            "Memory for each request that is being read.";
        busy_timeout: Duration = seconds(5), Range::Between(millis(10), seconds(120)),
            "How long a message waits for its shard before the device is told to come back later.",
            "Overload shows to devices as waiting rather than as an error.";
    }
    #[doc = "Devices, services and Event Hubs consumers over AMQP 1.0, with the certificate of `quic`; also through WebSockets on the port of `https`."]
    amqp: Amqp {
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 5671)), Range::Any,
            "TCP address and port. SDKs know no other port than 5671.",
            "Nothing.";
        connections_max: u32 = 20_000, Range::Between(1, 1_000_000),
            "Connections at a time, WebSockets included; more are closed at once.",
            "About 25 KiB of memory for each idle one.";
        handshake_timeout: Duration = seconds(10), Range::Between(seconds(1), seconds(120)),
            "A connection that has not sent its open frame by then is closed; waiting for its turn does not count.",
            "Slow or hostile clients hold connections for longer.";
        handshakes_per_second: u32 = 1_000, Range::Between(0, u32::MAX),
            "TLS handshakes begun in a second; further ones wait, in the order they came. 0: no limit.",
            "Clients that come back at once are served sooner; devices that never left wait longer for their acknowledgements meanwhile.";
        idle_timeout: Duration = seconds(240), Range::Between(seconds(10), seconds(3600)),
            "Told to clients; a connection that says nothing for twice as long is closed. azure-iot-hub looks after its connection every 120 s.",
            "Connections of clients that are gone are noticed later.";
        window_bytes: Bytes = kib(256), Range::Between(kib(64), mib(64)),
            "Bytes of one connection that are received and not yet taken by its links; then it is read no further.",
            "Memory for each busy connection.";
        sessions_max: u32 = 1024, Range::Between(1, 65_535),
            "Sessions of one connection: gateways use one for each device.",
            "Memory that one client may claim.";
        links_max: u32 = 4096, Range::Between(4, 1_000_000),
            "Links of one connection.",
            "Memory that one client may claim.";
    }
    #[doc = "Devices over MQTT 3.1.1 and MQTT 5, with the certificate of `quic`; also through WebSockets on the port of `https`."]
    mqtt: Mqtt {
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8883)), Range::Any,
            "TCP address and port. SDKs know no other port than 8883.",
            "Nothing.";
        connections_max: u32 = 100_000, Range::Between(1, 10_000_000),
            "Connections at a time, WebSockets included; more are closed at once.",
            "About 20 KiB of memory for each idle one.";
        handshake_timeout: Duration = seconds(10), Range::Between(seconds(1), seconds(120)),
            "A connection that has not sent its CONNECT by then is closed; waiting for its turn does not count.",
            "Slow or hostile clients hold connections for longer.";
        handshakes_per_second: u32 = 1_000, Range::Between(0, u32::MAX),
            "TLS handshakes begun in a second; further ones wait, in the order they came. 0: no limit.",
            "A fleet that comes back is served sooner; devices that never left wait longer for their acknowledgements meanwhile.";
        stall_timeout: Duration = seconds(60), Range::Between(seconds(1), seconds(1800)),
            "A client that takes nothing of what is sent for so long is gone.",
            "Slow or hostile clients hold memory for longer.";
        window_bytes: Bytes = kib(256), Range::Between(kib(64), mib(64)),
            "Bytes of telemetry of one connection that are received and not stored yet; then it is read no further.",
            "Memory for each busy connection.";
        inflight_max: u32 = 1024, Range::Between(1, 65_535),
            "Messages of QoS 1 of one connection that are not acknowledged yet: Receive Maximum for MQTT 5; one of MQTT 3.1.1 is read no further.",
            "24 bytes of memory for each.";
        duplicate_window: Duration = seconds(120), Range::Between(seconds(0), seconds(3600)),
            "For how long after its connection a session's last 256 messages are known, so that those sent again are not stored twice. 0: not at all.",
            "About 6 KiB of memory for each device that was cut off in that time.";
    }
    #[doc = "Messages to devices, and feedback about them (the contract's cloudToDevice settings)."]
    commands: Commands {
        default_ttl: Duration = seconds(3600), Range::Between(seconds(60), seconds(172_800)),
            "How long a message waits for its device when the sender set no expiry.",
            "Messages for absent devices stay on disk for longer.";
        delivery_count_max: u32 = 10, Range::Between(1, 100),
            "Abandons that end a message.",
            "A message that a device cannot handle comes back more often.";
        feedback_ttl: Duration = seconds(3600), Range::Between(seconds(60), seconds(172_800)),
            "How long feedback waits for a service.",
            "Feedback that nobody takes stays on disk for longer.";
        feedback_delivery_count_max: u32 = 10, Range::Between(1, 100),
            "Abandons that end a batch of feedback.",
            "A batch that a service cannot handle comes back more often.";
        feedback_lock: Duration = seconds(60), Range::Between(seconds(5), seconds(300)),
            "How long a service holds a batch of feedback.",
            "A batch held by a service that died comes back later.";
    }
    #[doc = "How much may be used (the contract's throttles). What is above a rate waits; what would wait too long is refused."]
    throttles: Throttles {
        wait_max: Duration = seconds(5), Range::Between(millis(0), seconds(60)),
            "A request that would wait longer for its turn is refused at once, with the time to come back.",
            "Throttling shows to clients as waiting rather than as an error.";
        waiters_max: u32 = 256, Range::Between(0, 100_000),
            "Requests that wait for their turn at a time; more are refused.",
            "Memory for the body of each that waits.";
        daily_messages_max: u32 = 0, Range::Between(0, u32::MAX),
            "Messages from and to devices in a day (UTC). Requests above it are refused, sessions wait for the next day. 0: no limit.",
            "Nothing.";
        registry_per_second: u32 = 20_000, Range::Between(0, u32::MAX),
            "Registry operations in a second; each item of a bulk request counts. 0: no limit.",
            "The store's disk is busier with identities.";
        registry_burst: u32 = 100_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        connections_per_second: u32 = 5_000, Range::Between(0, u32::MAX),
            "Device sessions begun in a second. 0: no limit.",
            "More processor time for handshakes at a time.";
        connections_burst: u32 = 50_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        d2c_messages_per_second: u32 = 0, Range::Between(0, u32::MAX),
            "Messages of all devices in a second. Sessions above it are read more slowly. 0: no limit.",
            "The disk is busier.";
        d2c_messages_burst: u32 = 10_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        queries_per_second: u32 = 200, Range::Between(0, u32::MAX),
            "Queries in a second. 0: no limit.",
            "Walks through the registry at a time.";
        queries_burst: u32 = 1_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        c2d_sends_per_second: u32 = 50_000, Range::Between(0, u32::MAX),
            "Messages sent to devices in a second. 0: no limit.",
            "The store's disk is busier with messages.";
        c2d_sends_burst: u32 = 100_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        c2d_receives_per_second: u32 = 50_000, Range::Between(0, u32::MAX),
            "Receives over HTTPS in a second. Sessions are not concerned. 0: no limit.",
            "Polling devices take more of the processor.";
        c2d_receives_burst: u32 = 100_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        method_bytes_per_second: u32 = 33_554_432, Range::Between(0, u32::MAX),
            "Bytes of method requests in a second. 0: no limit.",
            "Memory for requests under way.";
        method_bytes_burst: u32 = 134_217_728, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        twin_reads_per_second: u32 = 50_000, Range::Between(0, u32::MAX),
            "Twins read in a second. 0: no limit.",
            "Processor time.";
        twin_reads_burst: u32 = 100_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        twin_updates_per_second: u32 = 50_000, Range::Between(0, u32::MAX),
            "Twins changed in a second. 0: no limit.",
            "The store's disk is busier with twins.";
        twin_updates_burst: u32 = 100_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        device_messages_per_second: u32 = 0, Range::Between(0, u32::MAX),
            "Messages of one device, or module, in a second. A session above it is read more slowly, over HTTPS it waits. 0: no limit.",
            "One device may take more of the hub.";
        device_messages_burst: u32 = 10_000, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
        device_bytes_per_second: u32 = 0, Range::Between(0, u32::MAX),
            "Bytes of messages of one device, or module, in a second, likewise. 0: no limit.",
            "One device may take more of the hub.";
        device_bytes_burst: u32 = 1_048_576, Range::Between(1, u32::MAX),
            "How many of them go through at once after a rest.",
            "Longer bursts above the rate.";
    }
    #[doc = "What the hub records of itself, for routes and readers: connections, life cycles, changes of twins."]
    events: Events {
        kinds: Vec<EventKind> = vec![EventKind::Connection, EventKind::Lifecycle, EventKind::Twin], Range::Any,
            "Which are recorded: \"connection\", \"lifecycle\", \"twin\". None: an empty list.",
            "A record in the store for each event: some 100 bytes, of a twin what changed, 80 KiB at most.";
        retention: Duration = days(1), Range::Between(seconds(60), days(3650)),
            "How long records are kept.",
            "Disk space.";
        records_max: u32 = 100_000, Range::Between(100, 1_000_000_000),
            "Records kept of each partition; older ones are dropped first.",
            "Disk space.";
        connection_window: Duration = seconds(60), Range::Between(millis(0), seconds(3600)),
            "After a recorded connection or disconnection of a device, its further ones wait this long and collapse to the last.",
            "Flips of a shaky device are told later, and fewer of them; lowering it costs a write for each.";
    }
    #[doc = "The threads that own partitions."]
    shard: Shard {
        inflight_bytes_max: Bytes = mib(64), Range::Between(mib(1), gib(16)),
            "Bytes of all sessions that wait for one shard; then its sessions are read no further.",
            "Memory for each shard.";
        partition_inflight_bytes_max: Bytes = mib(16), Range::Between(kib(256), gib(16)),
            "Bytes of all sessions that wait for one partition; then its sessions are read no further, and those of other partitions are. More than the shard's is as much as that.",
            "A flooded partition leaves the others of its shard less of their budget.";
    }
    #[doc = "Operations: metrics, health, the program's own log lines."]
    ops: Ops {
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9600)), Range::Any,
            "TCP address and port of /metrics, /healthz, /readyz and the console. All but the console is without authentication: keep it private.",
            "Nothing.";
        console: ConsoleAccess = ConsoleAccess::Auto, Range::Any,
            "The console at /console/: \"auto\" (where `listen` is a loopback address), \"on\" or \"off\". Policy keys cross the wire as `listen` has it, without TLS: with \"on\" put TLS in front.",
            "Nothing.";
        log: LogFilter = LogFilter("info".into()), Range::Any,
            "What is logged: error, warn, info, debug, trace, or for each module (\"info,forebay::log=debug\").",
            "Lines, and time to write them.";
        log_format: LogFormat = LogFormat::Text, Range::Any,
            "Form of a log line: \"text\" or \"json\".",
            "Nothing.";
        log_lines_per_second: u32 = 20, Range::Between(0, 1_000_000),
            "Lines that one place in the program may write in a second, errors ten times as many; what is left out is counted and told. 0: no limit.",
            "Peers that provoke lines may fill the disk that holds them sooner.";
    }
    #[doc = "What a client may ask for."]
    limits: Limits {
        message_bytes_max: Bytes = Bytes(262_144), Range::Between(kib(1), kib(256)),
            "Largest message: body, system property values, application property names and values.",
            "The contract ends at 256 KiB.";
    }
}
