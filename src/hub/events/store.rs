//! Reads records in their order, and drops old ones.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::record::Head;
use super::{Event, EventError, EventKind};
use crate::model::{PartitionId, UtcMillis};
use crate::state::{Entry, Scan, State, StateError, Table, WriteBatch, appended};

/// Bytes of one answer, after which no further record is begun; the body of a full twin is some 80 KiB.
const READ_BYTES_MAX: usize = 512 * 1024;
/// Records looked at in one step, and dropped in one batch.
const PAGE: usize = 64;
/// From 1601, as Windows counts, to 1970.
const FILETIME_EPOCH_MILLIS: i64 = 11_644_473_600_000;

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSettings {
    pub retention: Duration,
    /// Of each partition.
    pub records_max: u64,
}

/// The records of all partitions. Cloning shares them.
#[derive(Clone)]
pub struct Events {
    state: Arc<dyn State>,
    settings: Arc<ArcSwap<EventSettings>>,
    partition_count: u16,
    hub_name: Arc<str>,
    created: UtcMillis,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// `created` is when the data directory was made: one made later in its place has greater sequence numbers.
    pub fn new(
        state: Arc<dyn State>,
        settings: EventSettings,
        partition_count: u16,
        host_name: &str,
        created: UtcMillis,
    ) -> Self {
        Self {
            state,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            partition_count,
            hub_name: hub_name(host_name).into(),
            created,
            dropped: Arc::default(),
        }
    }

    pub fn settings(&self) -> EventSettings {
        **self.settings.load()
    }

    /// What is kept from now on; what is too much then goes with the next look.
    pub fn set_settings(&self, settings: EventSettings) {
        self.settings.store(Arc::new(settings));
    }

    /// Records behind `after` (0: from the oldest kept), at most `count_max` and about half a megabyte.
    ///
    /// # Errors
    /// `NoPartition`, or the store's.
    pub fn read(&self, partition: PartitionId, after: u64, count_max: usize) -> Result<Vec<Event>, EventError> {
        if partition.0 >= self.partition_count {
            return Err(EventError::NoPartition(partition.0));
        }
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        let mut after = after;
        while events.len() < count_max && bytes < READ_BYTES_MAX {
            let limit = PAGE.min(count_max - events.len());
            let page = self.page(partition, after, limit)?;
            let is_last = page.len() < limit;
            for (key, record) in page {
                after = sequence(&key);
                bytes += record.len();
                events.push(self.event(partition, after, &record)?);
                if bytes >= READ_BYTES_MAX {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        Ok(events)
    }

    /// The sequence number of the newest record, also if it was dropped since; 0 before the first.
    ///
    /// # Errors
    /// `NoPartition`, or the store's.
    pub fn last(&self, partition: PartitionId) -> Result<u64, EventError> {
        if partition.0 >= self.partition_count {
            return Err(EventError::NoPartition(partition.0));
        }
        let last = self.state.get(Table::Events, &partition.0.to_be_bytes())?;
        Ok(appended(last.as_deref()))
    }

    /// Drops the oldest records of a partition that are too old or too many; how many. Again until it is 0.
    pub fn sweep(
        &self,
        partition: PartitionId,
        now: UtcMillis,
        done: impl FnOnce(Result<usize, EventError>) + Send + 'static,
    ) {
        let batch = match self.too_many(partition, now) {
            Ok(keys) if keys.is_empty() => return done(Ok(0)),
            Ok(keys) => keys,
            Err(error) => return done(Err(error)),
        };
        let count = batch.len();
        let deletes = batch
            .into_iter()
            .fold(WriteBatch::new(), |deletes, key| deletes.delete(Table::Events, key));
        let dropped = Arc::clone(&self.dropped);
        let committed = move |result: Result<(), StateError>| {
            done(result.map_err(EventError::from).map(|()| {
                dropped.fetch_add(count as u64, Ordering::Relaxed);
                count
            }));
        };
        self.state.commit(deletes, Box::new(committed));
    }

    /// Records dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn too_many(&self, partition: PartitionId, now: UtcMillis) -> Result<Vec<Vec<u8>>, EventError> {
        let last = self.last(partition)?;
        let settings = self.settings();
        let oldest = now
            .0
            .saturating_sub(i64::try_from(settings.retention.as_millis()).unwrap_or(i64::MAX));
        let must_go = |(key, record): &Entry| -> Result<bool, StateError> {
            let is_too_many = sequence(key).saturating_add(settings.records_max) <= last;
            Ok(is_too_many || Head::split(record)?.0.at < oldest)
        };
        // Most of the time nothing has to go: then one record is read and no more.
        let mut keys = Vec::new();
        for limit in [1, PAGE] {
            keys.clear();
            for entry in self.page(partition, 0, limit)? {
                if !must_go(&entry)? {
                    return Ok(keys);
                }
                keys.push(entry.0);
            }
        }
        Ok(keys)
    }

    fn page(&self, partition: PartitionId, after: u64, limit: usize) -> Result<Vec<Entry>, StateError> {
        let prefix = partition.0.to_be_bytes();
        let after = [&prefix[..], &after.to_be_bytes()].concat();
        let scan = Scan {
            prefix: &prefix,
            after: Some(&after),
            limit,
        };
        self.state.scan(Table::Events, scan)
    }

    fn event(&self, partition: PartitionId, sequence: u64, record: &[u8]) -> Result<Event, EventError> {
        let (head, body) = Head::split(record)?;
        let body = match head.operation.kind() {
            EventKind::Connection => self.connection_body(partition, sequence),
            EventKind::LifeCycle | EventKind::Twin => String::from_utf8_lossy(body).into_owned(),
        };
        Ok(Event {
            partition,
            sequence,
            operation: head.operation,
            identity: head.name().ok_or_else(damaged)?,
            at: UtcMillis(head.at),
            body,
            hub_name: Arc::clone(&self.hub_name),
        })
    }

    // IoT Hub, events section 3: 256 bits, strictly increasing per device; larger means newer. A partition's numbers are,
    // over restarts and whatever the clock does, and a device does not leave its partition.
    fn connection_body(&self, partition: PartitionId, sequence: u64) -> String {
        let created = self
            .created
            .0
            .saturating_add(FILETIME_EPOCH_MILLIS)
            .saturating_mul(10_000);
        let number = format!("{:016X}{created:016X}{:08X}{sequence:024X}", 0, partition.0);
        format!(r#"{{"sequenceNumber":"{number}"}}"#)
    }
}

fn sequence(key: &[u8]) -> u64 {
    let number = key
        .last_chunk()
        .expect("keys behind `after` are a partition and a number");
    u64::from_be_bytes(*number)
}

// IoT Hub: the hub's name is the first label of its host name.
fn hub_name(host_name: &str) -> &str {
    match host_name.parse::<IpAddr>() {
        Ok(_) => host_name,
        Err(_) => host_name.split('.').next().unwrap_or(host_name),
    }
}

fn damaged() -> StateError {
    StateError::Failed(Arc::new(std::io::Error::from(std::io::ErrorKind::InvalidData)))
}
