//! Whether memory and file descriptors are enough for what the configuration allows.

use rustix::process::{Resource, getrlimit};

use super::{Finding, Patient};
use crate::cli::status::size;
use crate::config::memory::{Memory, Usage};
use crate::config::{Bytes, Config};
use crate::metrics::process;

/// Of the process itself: standard streams, the store, event queues, the operations port.
const OWN_FILES: u64 = 256;
/// Of a partition: segments that are mapped keep none open, but files are opened and synced.
const PARTITION_FILES: u64 = 8;
/// A hub with fewer cannot even open its data and a few connections.
const FILES_MIN: u64 = 1024;

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    // The hub raises the soft limit to the hard one by itself.
    let files = getrlimit(Resource::Nofile).maximum;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    vec![
        files_finding(&patient.config, files),
        memory_finding(&patient.config, cores, process::read().memory_limit_bytes),
    ]
}

/// `limit`: `None` for none.
fn files_finding(config: &Config, limit: Option<u64>) -> Finding {
    const CHECK: &str = "open files";
    let connections = [
        config.mqtt.connections_max,
        config.amqp.connections_max,
        config.https.connections_max,
    ];
    let connections: u64 = connections.iter().map(|count| u64::from(*count)).sum();
    let needed = connections + u64::from(config.identity.partition_count) * PARTITION_FILES + OWN_FILES;
    let Some(limit) = limit else {
        return Finding::ok(CHECK, format!("no limit; {needed} are needed when every door is full"));
    };
    let text = format!("{limit} allowed, {needed} needed when every door is full");
    let advice = format!(
        "raise the hard limit (systemd: LimitNOFILE={needed}; shell: ulimit -Hn), or lower mqtt.connections_max, \
         amqp.connections_max and https.connections_max, so that newcomers are refused in order"
    );
    match limit {
        limit if limit >= needed => Finding::ok(CHECK, text),
        FILES_MIN.. => Finding::warn(CHECK, text, advice),
        _ => Finding::fail(CHECK, text, advice),
    }
}

/// `available`: 0 if the kernel does not tell.
fn memory_finding(config: &Config, cores: u64, available: u64) -> Finding {
    const CHECK: &str = "memory";
    let memory = Memory::of(
        config,
        &Usage {
            cores,
            ..Usage::default()
        },
    );
    let (quiet, busy) = (memory.request(), memory.limit());
    let text = format!(
        "{} available; {} for all that may connect when it rests, {} when a tenth is busy",
        size(Bytes(available)),
        size(Bytes(quiet)),
        size(Bytes(busy))
    );
    let advice = "`forebay config memory` shows the sum: lower sessions_max and connections_max of the doors or their \
                  windows, or give the hub more; a hub that is let take more than there is, is killed by the kernel";
    match available {
        0 => Finding::ok(
            CHECK,
            format!(
                "the kernel does not tell how much there is; {}",
                &text[text.find(';').map_or(0, |at| at + 2)..]
            ),
        ),
        available if available >= busy => Finding::ok(CHECK, text),
        _ => Finding::warn(CHECK, text, advice),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn files_are_held_against_the_doors() {
        let mut config = Config::default();
        config.mqtt.connections_max = 5_000;
        config.amqp.connections_max = 1_000;
        config.https.connections_max = 1_000;
        for (limit, level) in [
            (None, Level::Ok),
            (Some(7_288), Level::Ok),
            (Some(7_287), Level::Warn),
            (Some(1_024), Level::Warn),
            (Some(1_023), Level::Fail),
        ] {
            let found = files_finding(&config, limit);
            assert_eq!(found.level, level, "{found:?}");
        }
        assert!(files_finding(&config, Some(2_000)).advice.contains("LimitNOFILE=7288"));
    }

    #[test]
    fn memory_is_held_against_the_formula() {
        let config = Config::default();
        let needed = Memory::of(&config, &Usage::default()).limit();
        for (available, level) in [(0, Level::Ok), (needed, Level::Ok), (needed - 1, Level::Warn)] {
            let found = memory_finding(&config, 1, available);
            assert_eq!(found.level, level, "{found:?}");
        }
    }
}
