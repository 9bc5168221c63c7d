//! What a hub of this configuration holds in memory, by the README's formula: so that limits are computed, not guessed.
//!
//! Two sums. `quiet`: every session that is allowed is there and rests. `busy`: a share of them has its windows full at
//! the same moment, and every pool is. Pages of the log that is being written come on top: the kernel may take them back,
//! but then the log waits for the disk, and a supervisor counts them.

use std::fmt;

use super::keys::Config;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Code, runtime, TLS material and what the allocator keeps.
const PROCESS_BYTES: u64 = 32 * MIB;
/// Pages of the store that are kept in memory.
const STORE_CACHE_BYTES: u64 = 64 * MIB;
const QUIC_SESSION_BYTES: u64 = 32 * KIB;
const RESUMPTION_BYTES: u64 = KIB;
const MQTT_CONNECTION_BYTES: u64 = 15 * KIB;
/// One packet that has not all come.
const MQTT_PACKET_BYTES: u64 = 384 * KIB;
const MQTT_INFLIGHT_BYTES: u64 = 24;
const MQTT_DUPLICATES_BYTES: u64 = 6 * KIB;
const AMQP_CONNECTION_BYTES: u64 = 17 * KIB;
const AMQP_LINK_BYTES: u64 = KIB;
/// Links of an ordinary client: telemetry, messages, methods, twins.
const AMQP_LINKS: u64 = 4;
/// Waits to be sent on a connection over MQTT or AMQP.
const OUTPUT_BYTES: u64 = 256 * KIB;
const HTTPS_CONNECTION_BYTES: u64 = 20 * KIB;
/// A device in the registry.
const DEVICE_BYTES: u64 = 110;
/// A device that sent since the last snapshot of the duplicate filter.
const FILTER_BYTES: u64 = 150;
const PARTITION_BYTES: u64 = 400 * KIB;
const SHARD_BYTES: u64 = 800 * KIB;
const ENDPOINT_BYTES: u64 = 3 * MIB;
/// The active segment of a partition, and the next one that is made ready.
const WRITTEN_SEGMENTS: u64 = 2;

/// How a hub is used, where the configuration does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Threads that own partitions, where `process.shards` is 0.
    pub cores: u64,
    /// Sessions of a hundred whose windows are full at the same moment, 0 to 100.
    pub busy_percent: u64,
    /// Connections of native consumers.
    pub consumers: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            cores: 1,
            busy_percent: 10,
            consumers: 16,
        }
    }
}

/// One line of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    pub what: &'static str,
    pub count: u64,
    /// Bytes of one that rests.
    pub quiet: u64,
    /// What comes on top for one that has its windows full.
    pub busy: u64,
    /// How many of `count` are busy.
    pub busy_count: u64,
}

/// The formula with a configuration's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub terms: Vec<Term>,
    /// Pages of the segments that are being written.
    pub log_pages: u64,
}

impl Memory {
    /// The README's formula. A configuration that [`super::load`] returned cannot make it overflow.
    pub fn of(config: &Config, usage: &Usage) -> Self {
        let shards = match config.process.shards {
            0 => usage.cores,
            shards => u64::from(shards),
        };
        let partitions = u64::from(config.identity.partition_count);
        let (quic, mqtt, amqp, https) = (&config.quic, &config.mqtt, &config.amqp, &config.https);
        let (quic_sessions, mqtt_connections) = (u64::from(quic.sessions_max), u64::from(mqtt.connections_max));
        let of_sessions = |what, count: u64, quiet, busy| Term {
            what,
            count,
            quiet,
            busy,
            busy_count: (count * usage.busy_percent).div_ceil(100),
        };
        let always = |what, count, quiet| of_sessions(what, count, quiet, 0);
        let pool = |what, count, busy| Term {
            busy_count: count,
            ..of_sessions(what, count, 0, busy)
        };
        let cut_off = if mqtt.duplicate_window.is_zero() {
            0
        } else {
            mqtt_connections
        };
        let mqtt_busy =
            mqtt.window_bytes.0 + OUTPUT_BYTES + MQTT_PACKET_BYTES + u64::from(mqtt.inflight_max) * MQTT_INFLIGHT_BYTES;
        let amqp_busy = amqp.window_bytes.0 + OUTPUT_BYTES + AMQP_LINKS * config.limits.message_bytes_max.0;
        let terms = vec![
            always("process and store", 1, PROCESS_BYTES + STORE_CACHE_BYTES),
            always("shards", shards, SHARD_BYTES),
            always("UDP endpoint", 1, ENDPOINT_BYTES),
            always("partitions", partitions, PARTITION_BYTES),
            of_sessions(
                "QUIC sessions",
                quic_sessions,
                QUIC_SESSION_BYTES,
                quic.connection_window_bytes.0,
            ),
            always(
                "QUIC sessions to resume",
                u64::from(quic.resumptions_max),
                RESUMPTION_BYTES,
            ),
            of_sessions("MQTT connections", mqtt_connections, MQTT_CONNECTION_BYTES, mqtt_busy),
            always("MQTT devices cut off", cut_off, MQTT_DUPLICATES_BYTES),
            of_sessions(
                "AMQP connections",
                u64::from(amqp.connections_max),
                AMQP_CONNECTION_BYTES + AMQP_LINKS * AMQP_LINK_BYTES,
                amqp_busy,
            ),
            of_sessions(
                "HTTPS connections",
                u64::from(https.connections_max),
                HTTPS_CONNECTION_BYTES,
                https.body_bytes_max.0,
            ),
            always("devices", quic_sessions + mqtt_connections, DEVICE_BYTES + FILTER_BYTES),
            pool("batches on their way", shards, config.shard.inflight_bytes_max.0),
            pool("native consumers", usage.consumers, quic.consumer_window_bytes.0),
        ];
        Self {
            terms,
            log_pages: partitions * WRITTEN_SEGMENTS * config.log.segment_bytes.0,
        }
    }

    /// Bytes when all that is allowed is connected and rests.
    pub fn quiet(&self) -> u64 {
        self.terms.iter().map(|term| term.count * term.quiet).sum()
    }

    /// Bytes when the busy share has its windows full and every pool is.
    pub fn busy(&self) -> u64 {
        self.quiet() + self.terms.iter().map(|term| term.busy_count * term.busy).sum::<u64>()
    }

    /// What a supervisor should set aside: quiet, and the log's pages.
    pub fn request(&self) -> u64 {
        self.quiet() + self.log_pages
    }

    /// What a supervisor may end the process at: busy, and the log's pages.
    pub fn limit(&self) -> u64 {
        self.busy() + self.log_pages
    }
}

/// A table for people; a term that is busy in part shows how many are.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        writeln!(
            f,
            "{:<24} {:>9} {:>10} {:>12} {:>9} {:>10}",
            "", "count", "KiB each", "quiet MiB", "busy", "more MiB"
        )?;
        for term in &self.terms {
            let (quiet, busy) = (term.count * term.quiet, term.busy_count * term.busy);
            let each = term.quiet as f64 / KIB as f64;
            write!(
                f,
                "{:<24} {:>9} {each:>10.1} {:>12.1}",
                term.what,
                term.count,
                mib(quiet)
            )?;
            match term.busy {
                0 => writeln!(f)?,
                _ => writeln!(f, " {:>9} {:>10.1}", term.busy_count, mib(busy))?,
            }
        }
        writeln!(
            f,
            "{:<24} {:>9} {:>10} {:>12.1}",
            "pages of the log",
            "",
            "",
            mib(self.log_pages)
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "set aside (request)  {:>10.0} MiB   everybody is connected and rests",
            mib(self.request())
        )?;
        write!(
            f,
            "end at (limit)       {:>10.0} MiB   the busy ones have their windows full, every pool is",
            mib(self.limit())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        super::super::parse(text).unwrap()
    }

    #[test]
    fn what_an_operator_raises_costs_what_its_key_says() {
        let base = Memory::of(&Config::default(), &Usage::default());
        for (text, quiet, busy) in [
            (
                "[quic]\nsessions_max = 101000",
                1000 * (32 * KIB + 260),
                1000 * (32 * KIB + 260) + 100 * 512 * KIB,
            ),
            ("[quic]\nconnection_window_bytes = \"1MiB\"", 0, 10_000 * 512 * KIB),
            ("[quic]\nconsumer_window_bytes = \"5MiB\"", 0, 16 * MIB),
            ("[mqtt]\nwindow_bytes = \"512KiB\"", 0, 10_000 * 256 * KIB),
            ("[mqtt]\nduplicate_window = \"0ms\"\nconnections_max = 100000", 0, 0),
            ("[shard]\ninflight_bytes_max = \"128MiB\"", 0, 64 * MIB),
            ("[process]\nshards = 3", 2 * 800 * KIB, 2 * (800 * KIB + 64 * MIB)),
            ("[identity]\npartition_count = 8", 4 * 400 * KIB, 4 * 400 * KIB),
        ] {
            let more = Memory::of(&config(text), &Usage::default());
            let cut_off = if text.contains("duplicate") {
                100_000 * 6 * KIB
            } else {
                0
            };
            assert_eq!(more.quiet(), base.quiet() + quiet - cut_off, "{text}");
            assert_eq!(more.busy(), base.busy() + busy - cut_off, "{text}");
        }
    }

    #[test]
    fn pages_of_the_log_are_those_being_written() {
        let memory = Memory::of(&config("[log]\nsegment_bytes = \"16MiB\""), &Usage::default());
        assert_eq!(memory.log_pages, 4 * 2 * 16 * MIB);
        assert_eq!(memory.request(), memory.quiet() + memory.log_pages);
        assert_eq!(memory.limit(), memory.busy() + memory.log_pages);
    }

    #[test]
    fn nobody_busy_leaves_the_pools() {
        let usage = Usage {
            busy_percent: 0,
            cores: 2,
            consumers: 1,
        };
        let memory = Memory::of(&Config::default(), &usage);
        assert_eq!(memory.busy() - memory.quiet(), 2 * 64 * MIB + 4 * MIB);
    }
}
