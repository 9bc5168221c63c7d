//! Import and export of identities, many to a request.
//!
//! An import's entries take effect in the order they have for each device. What has no order among itself goes together:
//! all new devices of a round in one batch of the store, all else at the same time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::door::Door;
use super::management::{QueueName, Refused, invalid, json, wait};
use crate::hub::ErrorCode;
use crate::hub::bulk::{self, Entry, EntryError, Mode, Outcome};
use crate::hub::registry::Imported;
use crate::model::UtcMillis;

/// Entries of one request, either way.
const ENTRIES_MAX: usize = 1000;
/// After so many bytes of records an exported page is full: it and the largest twin stay within a frame.
const EXPORT_BYTES_MAX: usize = 256 * 1024;
/// Operations under way at a time, beside those of new devices: some of the places in the store's queue.
const TOGETHER_MAX: usize = 64;
/// How long an import waits before it asks a busy store again, and how often.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_TRIES_MAX: usize = 250;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Import {
    entries: Vec<serde_json::Value>,
}

#[derive(Default, Serialize)]
struct ImportResult {
    created: usize,
    changed: usize,
    /// What was already as the entry asks for.
    unchanged: usize,
    errors: Vec<ImportError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImportError {
    /// Which entry, from 0.
    index: usize,
    error_code: &'static str,
    error_status: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    after: Option<QueueName>,
    limit: Option<usize>,
}

impl ImportResult {
    fn add_error(&mut self, index: usize, error: EntryError) {
        self.errors.push(ImportError {
            index,
            error_code: error.code.name,
            error_status: error.reason,
        });
    }
}

pub(super) async fn import(door: &Arc<Door>, document: &str) -> Result<String, Refused> {
    let document = document.to_owned();
    // Milliseconds of parsing: not where sessions are served.
    let entries = off_thread(move || parse(&document)).await??;
    let mut result = ImportResult::default();
    let mut rounds: Vec<Vec<(usize, Entry)>> = Vec::new();
    let mut order = Order::default();
    for (index, entry) in entries.into_iter().enumerate() {
        match entry {
            Ok(entry) => {
                let round = order.round(&entry);
                rounds.resize_with(rounds.len().max(round + 1), Vec::new);
                rounds[round].push((index, entry));
            }
            Err(error) => result.add_error(index, error),
        }
    }
    let now = door.clock.now();
    for round in rounds {
        run(door, round, now, &mut result).await?;
    }
    result.errors.sort_by_key(|error| error.index);
    Ok(json(&result))
}

fn parse(document: &str) -> Result<Vec<Result<Entry, EntryError>>, Refused> {
    let import: Import = serde_json::from_str(document).map_err(invalid)?;
    if import.entries.len() > ENTRIES_MAX {
        let reason = format!("{} entries exceed {ENTRIES_MAX}", import.entries.len());
        return Err(Refused {
            code: ErrorCode::TOO_MANY_DEVICES,
            reason,
        });
    }
    let read = |value| {
        let entry: Entry = serde_json::from_value(value).map_err(|error| EntryError {
            code: ErrorCode::ARGUMENT_INVALID,
            reason: error.to_string(),
        })?;
        entry.name()?;
        Ok(entry)
    };
    Ok(import.entries.into_iter().map(read).collect())
}

/// Which entries must wait for which: those of one device for each other, except modules of it that differ.
#[derive(Default)]
struct Order {
    devices: HashMap<String, (usize, HashSet<String>)>,
}

impl Order {
    fn round(&mut self, entry: &Entry) -> usize {
        let module = entry.module_id.clone().filter(|id| !id.is_empty());
        let Some((round, modules)) = self.devices.get_mut(&entry.id) else {
            self.devices.insert(entry.id.clone(), (0, module.into_iter().collect()));
            return 0;
        };
        let joins = module
            .as_ref()
            .is_some_and(|module| !modules.is_empty() && !modules.contains(module));
        if !joins {
            *round += 1;
            modules.clear();
        }
        modules.extend(module);
        *round
    }
}

/// Entries of which none concerns what another does.
async fn run(
    door: &Arc<Door>,
    round: Vec<(usize, Entry)>,
    now: UtcMillis,
    result: &mut ImportResult,
) -> Result<(), Refused> {
    let is_new_device =
        |entry: &Entry| entry.mode() == Mode::Create && entry.name().is_ok_and(|name| name.module.is_none());
    let (new, other): (Vec<_>, Vec<_>) = round.into_iter().partition(|(_, entry)| is_new_device(entry));
    create(door, new, now, result).await?;
    let mut waiting = other;
    let mut tries = 0;
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(TOGETHER_MAX));
        let mut busy = Vec::new();
        let mut started = Vec::new();
        for (index, entry) in waiting {
            let (sender, outcome) = oneshot::channel::<Outcome>();
            let done = move |outcome| drop(sender.send(outcome));
            entry.clone().start(&door.registry, &door.twins, now, done);
            started.push((index, entry, outcome));
        }
        for (index, entry, outcome) in started {
            match outcome.await {
                Ok(Ok(change)) => {
                    match entry.mode() {
                        Mode::Create => result.created += 1,
                        _ => result.changed += 1,
                    }
                    if let Some(change) = change {
                        door.router.identity_changed(&change).await;
                    }
                }
                Ok(Err(error)) if error.code == ErrorCode::SERVER_BUSY && tries < BUSY_TRIES_MAX => {
                    busy.push((index, entry));
                }
                Ok(Err(error)) if entry.is_done(&door.registry, error.code) => result.unchanged += 1,
                Ok(Err(error)) => result.add_error(index, error),
                Err(_) => return Err(closed()),
            }
        }
        if !busy.is_empty() {
            tries += 1;
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        waiting = busy;
        waiting.extend(rest);
    }
    Ok(())
}

/// New devices, in one batch.
async fn create(
    door: &Arc<Door>,
    new: Vec<(usize, Entry)>,
    now: UtcMillis,
    result: &mut ImportResult,
) -> Result<(), Refused> {
    if new.is_empty() {
        return Ok(());
    }
    let mut indexes = Vec::with_capacity(new.len());
    let mut devices = Vec::with_capacity(new.len());
    for (index, entry) in new {
        let name = entry.name().expect("names were checked when the entries were read");
        indexes.push(index);
        devices.push(entry.into_device(name.device));
    }
    let mut tries = 0;
    let outcomes = loop {
        let (registry, devices) = (door.registry.clone(), devices.clone());
        // Keys are made and records written down there.
        let outcome = wait(|done| {
            let start = move || registry.create_devices(devices, now, done);
            drop(tokio::task::spawn_blocking(start));
        });
        match outcome.await? {
            Ok(outcomes) => break outcomes,
            Err(error) if error.code() == ErrorCode::SERVER_BUSY && tries < BUSY_TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    for (index, outcome) in indexes.into_iter().zip(outcomes) {
        match outcome {
            Ok(Imported::Created(changed)) => {
                result.created += 1;
                door.router.identity_changed(&changed.change).await;
            }
            Ok(Imported::Unchanged) => result.unchanged += 1,
            Err(error) => result.add_error(index, error.into()),
        }
    }
    Ok(())
}

pub(super) async fn export(door: &Arc<Door>, wanted: Export) -> Result<String, Refused> {
    let after = wanted.after.map(|name| name.read()).transpose()?;
    let limit = wanted.limit.unwrap_or(ENTRIES_MAX).clamp(1, ENTRIES_MAX);
    let registry = door.registry.clone();
    off_thread(move || {
        let entries = bulk::export(&registry, after.as_ref(), limit, EXPORT_BYTES_MAX).map_err(|_| Refused {
            code: ErrorCode::SERVER_ERROR,
            reason: "the registry cannot be read".into(),
        })?;
        let next = entries
            .last()
            .map(|last| serde_json::json!({ "deviceId": last.id, "moduleId": last.module_id }));
        Ok(json(&serde_json::json!({ "entries": entries, "next": next })))
    })
    .await?
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|_| closed())
}

fn closed() -> Refused {
    Refused {
        code: ErrorCode::SERVER_ERROR,
        reason: "the hub is closing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_device_wait_for_each_other_and_its_modules_do_not() {
        let mut order = Order::default();
        let mut check = |id: &str, module: &str, round: usize| {
            let entry = Entry {
                id: id.into(),
                module_id: Some(module.into()),
                ..Entry::default()
            };
            assert_eq!(order.round(&entry), round, "{id} {module}");
        };
        check("a", "", 0);
        check("b", "", 0);
        check("a", "m", 1);
        check("a", "n", 1);
        check("a", "m", 2);
        check("a", "", 3);
        check("a", "m", 4);
        check("c", "m", 0);
        check("c", "n", 0);
        check("c", "", 1);
    }

    #[test]
    fn one_bad_entry_spoils_no_other() {
        let document =
            r#"{"entries":[{"id":"a"},{"id":"a/b"},{"id":"c","importMode":"destroy"},7,{"id":"d","tags":{}}]}"#;
        let entries = parse(document).ok().expect("a list of entries");
        assert_eq!(
            entries.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, false, false, false, true]
        );
        let many = format!(r#"{{"entries":[{}7]}}"#, "7,".repeat(ENTRIES_MAX));
        assert!(parse(&many).is_err_and(|refused| refused.code == ErrorCode::TOO_MANY_DEVICES));
    }
}
