//! Records on their way into the batch of the change they tell of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{EventKind, Operation};
use crate::hub::decide::{Answer, encode};
use crate::hub::identity::IdentityName;
use crate::hub::json;
use crate::hub::twin::{ChangeEvent, Twin, TwinChanged};
use crate::model::time::Clock;
use crate::model::{DeviceId, ModuleId, PartitionId, UtcMillis};
use crate::state::{StateError, Table, WriteBatch};

/// What stands before the body: one line of JSON, which has no line breaks.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    #[serde(rename = "op")]
    pub operation: Operation,
    #[serde(rename = "device", with = "json::device_id")]
    pub device: DeviceId,
    #[serde(rename = "module", default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    pub at: i64,
}

impl Head {
    /// Head and body of a stored record.
    pub(super) fn split(record: &[u8]) -> Result<(Self, &[u8]), StateError> {
        let end = record.iter().position(|&byte| byte == b'\n').unwrap_or(record.len());
        let head = crate::hub::decide::decode(&record[..end])?;
        Ok((head, record.get(end + 1..).unwrap_or_default()))
    }

    pub(super) fn name(&self) -> Option<IdentityName> {
        let module = self.module.as_deref().map(ModuleId::new).transpose().ok()?;
        Some(IdentityName {
            device: self.device.clone(),
            module,
        })
    }
}

/// Which kinds are recorded, and how many were. Cloning shares the counts. The default records nothing.
#[derive(Clone, Default)]
pub struct Recorder {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    kinds: [bool; EventKind::ALL.len()],
    clock: Arc<dyn Clock>,
    recorded: [AtomicU64; EventKind::ALL.len()],
}

/// How many records of each kind a batch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u32; EventKind::ALL.len()]);

impl Recorder {
    /// The clock is asked when a change has no time of its own.
    pub fn new(kinds: &[EventKind], clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            kinds: EventKind::ALL.map(|kind| kinds.contains(&kind)),
            clock,
            recorded: Default::default(),
        };
        Self {
            shared: Some(Arc::new(shared)),
        }
    }

    pub fn is_recorded(&self, kind: EventKind) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.kinds[kind as usize])
    }

    /// Records that became durable since the start.
    pub fn recorded(&self) -> [u64; EventKind::ALL.len()] {
        let counts = self.shared.as_ref().map(|shared| &shared.recorded);
        EventKind::ALL.map(|kind| counts.map_or(0, |counts| counts[kind as usize].load(Ordering::Relaxed)))
    }

    pub(in crate::hub) fn draft(&self, partition: PartitionId) -> Draft<'_> {
        Draft {
            recorder: self,
            partition,
            records: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Counts what a batch recorded once it is durable, then answers.
    pub(in crate::hub) fn counted<R: 'static, E: 'static>(&self, done: Answer<R, E>) -> Answer<(Tally, R), E> {
        let recorder = self.clone();
        Box::new(move |decided| {
            done(decided.map(|(tally, answer)| {
                recorder.count(tally);
                answer
            }));
        })
    }

    pub(in crate::hub) fn count(&self, Tally(counts): Tally) {
        if let Some(shared) = &self.shared {
            for (total, count) in shared.recorded.iter().zip(counts) {
                total.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        }
    }
}

/// The records of one batch, all of one partition.
pub struct Draft<'a> {
    recorder: &'a Recorder,
    partition: PartitionId,
    records: Vec<Vec<u8>>,
    tally: Tally,
}

impl Draft<'_> {
    /// Created (`at`), or deleted (now). On deletion with the last twin known.
    pub(in crate::hub) fn life_cycle(
        &mut self,
        operation: Operation,
        name: &IdentityName,
        twin: &Twin,
        at: Option<UtcMillis>,
    ) {
        let Some(shared) = &self.recorder.shared else { return };
        let at = at.unwrap_or_else(|| shared.clock.now());
        self.push(operation, name, at, || encode(&ChangeEvent::of_life(name, twin)));
    }

    /// Connected or disconnected. The body follows from the record's place.
    pub(in crate::hub) fn connection(&mut self, is_connected: bool, name: &IdentityName, at: Option<UtcMillis>) {
        let Some(shared) = &self.recorder.shared else { return };
        let at = at.unwrap_or_else(|| shared.clock.now());
        let operation = match is_connected {
            true => Operation::Connect,
            false => Operation::Disconnect,
        };
        self.push(operation, name, at, Vec::new);
    }

    pub(in crate::hub) fn twin(&mut self, changed: &TwinChanged) {
        let operation = changed.change.operation();
        self.push(operation, &changed.identity, changed.at, || {
            encode(&ChangeEvent::of(changed))
        });
    }

    /// The change together with what tells of it.
    pub(in crate::hub) fn add_to(self, mut batch: WriteBatch) -> (WriteBatch, Tally) {
        for record in self.records {
            batch = batch.append(Table::Events, self.partition.0.to_be_bytes(), record);
        }
        (batch, self.tally)
    }

    fn push(&mut self, operation: Operation, name: &IdentityName, at: UtcMillis, body: impl FnOnce() -> Vec<u8>) {
        let kind = operation.kind();
        if !self.recorder.is_recorded(kind) {
            return;
        }
        let mut record = encode(&Head {
            operation,
            device: name.device.clone(),
            module: name.module.as_ref().map(|module| module.as_str().to_owned()),
            at: at.0,
        });
        record.push(b'\n');
        record.append(&mut body());
        self.records.push(record);
        self.tally.0[kind as usize] += 1;
    }
}
