//! `forebay device import` and `export`: identities by file, one JSON object (ExportImportDevice) a line.
//!
//! An import that was broken off is started again from the beginning: what is there as its line asks for counts as done,
//! so nothing about the first attempt has to be kept. An export is a file only once it is whole.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::connect::explain;
use crate::client::ClientError;
use crate::client::service::Service;

/// Lines of one request: enough to make a sync cheap for each.
const LINES_MAX: usize = 500;
/// Text of one request; a frame has twice the room.
const BYTES_MAX: usize = 512 * 1024;
/// Requests under way at a time, so that the hub parses one while it stores another.
const REQUESTS_MAX: usize = 4;
/// How often a terminal, and how often anything else, is told how far it is.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Lines for one request, with the devices they concern.
#[derive(Default)]
struct Batch {
    numbers: Vec<u64>,
    entries: Vec<Value>,
    ids: HashSet<String>,
    bytes: usize,
}

/// The hub's answer to an import request.
#[derive(Deserialize)]
struct Answer {
    created: u64,
    changed: u64,
    unchanged: u64,
    errors: Vec<AnswerError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerError {
    index: usize,
    error_code: String,
    error_status: String,
}

#[derive(Default)]
struct Sums {
    created: u64,
    changed: u64,
    unchanged: u64,
    errors: u64,
}

/// # Errors
/// The file cannot be read, the hub is gone or refuses the whole, or single lines were refused: those are in
/// FILE.errors.
pub(super) async fn import(service: &Arc<Service>, file: &Path, as_json: bool) -> anyhow::Result<()> {
    let input = File::open(file).with_context(|| file.display().to_string())?;
    let mut import = Import {
        service: Arc::clone(service),
        running: JoinSet::new(),
        ids: BTreeMap::new(),
        next: 0,
        sums: Sums::default(),
        errors: ErrorFile::new(file)?,
        progress: Progress::new(input.metadata()?.len()),
    };
    let mut input = BufReader::with_capacity(1 << 20, input);
    let mut batch = Batch::default();
    let (mut line, mut number, mut position) = (String::new(), 0, 0);
    loop {
        line.clear();
        let bytes = input.read_line(&mut line).with_context(|| file.display().to_string())?;
        if bytes == 0 {
            break;
        }
        position += bytes as u64;
        number += 1;
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        let (entry, id) = match read(text) {
            Ok(read) => read,
            Err(reason) => {
                import.sums.errors += 1;
                import.errors.add(number, "", "ArgumentInvalid", &reason)?;
                continue;
            }
        };
        // Lines of one device that follow each other stay together, so that the requests need not wait for each other.
        let is_full = batch.entries.len() >= LINES_MAX && !batch.ids.contains(&id);
        let is_over = batch.bytes + text.len() > BYTES_MAX || batch.entries.len() >= 2 * LINES_MAX;
        if !batch.entries.is_empty() && (is_full || is_over) {
            import.send(std::mem::take(&mut batch)).await?;
            import.progress.show(position, number, "imported")?;
        }
        batch.bytes += text.len();
        batch.numbers.push(number);
        batch.entries.push(entry);
        batch.ids.insert(id);
    }
    if !batch.entries.is_empty() {
        import.send(batch).await?;
    }
    while !import.running.is_empty() {
        import.finish_one().await?;
    }
    import.progress.end(number, "imported")?;
    import.report(file, as_json)
}

/// A line's object and its device.
fn read(text: &str) -> Result<(Value, String), String> {
    if text.len() > BYTES_MAX {
        return Err(format!("the line has {} bytes, allowed are {BYTES_MAX}", text.len()));
    }
    let entry: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match entry["id"].as_str().map(str::to_owned) {
        Some(id) => Ok((entry, id)),
        None => Err("the line is no object with a text \"id\"".into()),
    }
}

struct Import {
    service: Arc<Service>,
    running: JoinSet<(u64, Batch, Result<Value, ClientError>)>,
    /// The devices of each request under way.
    ids: BTreeMap<u64, HashSet<String>>,
    next: u64,
    sums: Sums,
    errors: ErrorFile,
    progress: Progress,
}

impl Import {
    async fn send(&mut self, mut batch: Batch) -> anyhow::Result<()> {
        let ids = std::mem::take(&mut batch.ids);
        // The hub keeps the order of lines within a request, not between requests.
        while self.running.len() >= REQUESTS_MAX || self.ids.values().any(|other| !other.is_disjoint(&ids)) {
            self.finish_one().await?;
        }
        let number = self.next;
        self.next += 1;
        self.ids.insert(number, ids);
        let service = Arc::clone(&self.service);
        self.running.spawn(async move {
            let document = json!({ "entries": std::mem::take(&mut batch.entries) });
            let answer = service.request("device.import", &document).await;
            let mut entries = document;
            if let Value::Array(entries) = entries["entries"].take() {
                batch.entries = entries;
            }
            (number, batch, answer)
        });
        Ok(())
    }

    async fn finish_one(&mut self) -> anyhow::Result<()> {
        let Some(finished) = self.running.join_next().await else {
            return Ok(());
        };
        let (number, batch, answer) = finished.context("a request")?;
        self.ids.remove(&number);
        let answer = answer
            .map_err(explain)
            .context("the import stopped; run it again, it goes on from what is there")?;
        let answer: Answer = serde_json::from_value(answer).context("the hub's answer is not one to an import")?;
        self.sums.created += answer.created;
        self.sums.changed += answer.changed;
        self.sums.unchanged += answer.unchanged;
        for error in answer.errors {
            let (Some(number), Some(entry)) = (batch.numbers.get(error.index), batch.entries.get(error.index)) else {
                bail!("the hub's answer names a line that was not sent");
            };
            self.sums.errors += 1;
            let id = entry["id"].as_str().unwrap_or_default();
            self.errors.add(*number, id, &error.error_code, &error.error_status)?;
        }
        Ok(())
    }

    fn report(mut self, file: &Path, as_json: bool) -> anyhow::Result<()> {
        let Sums {
            created,
            changed,
            unchanged,
            errors,
        } = self.sums;
        let mut out = io::stdout().lock();
        if as_json {
            let sums = json!({ "created": created, "changed": changed, "unchanged": unchanged, "errors": errors });
            writeln!(out, "{sums}")?;
        } else {
            writeln!(
                out,
                "{}: {created} created, {changed} changed, {unchanged} as they were, {errors} refused",
                file.display()
            )?;
        }
        self.errors.flush()?;
        if errors > 0 {
            bail!("{errors} lines were refused, see {}", self.errors.path.display());
        }
        Ok(())
    }
}

/// FILE.errors: one JSON object a refused line; there is none if none was refused.
struct ErrorFile {
    path: PathBuf,
    out: Option<BufWriter<File>>,
}

impl ErrorFile {
    /// Removes what an earlier import left.
    fn new(file: &Path) -> anyhow::Result<Self> {
        let path = with_suffix(file, ".errors");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            Ok(()) | Err(_) => Ok(Self { path, out: None }),
        }
    }

    fn add(&mut self, line: u64, id: &str, code: &str, status: &str) -> anyhow::Result<()> {
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let file = File::create(&self.path).with_context(|| self.path.display().to_string())?;
                self.out.insert(BufWriter::new(file))
            }
        };
        let error = json!({ "line": line, "id": id, "errorCode": code, "errorStatus": status });
        writeln!(out, "{error}").with_context(|| self.path.display().to_string())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// # Errors
/// The file cannot be written, or the hub is gone or refuses.
pub(super) async fn export(service: &Service, file: &Path, as_json: bool) -> anyhow::Result<()> {
    let partial = with_suffix(file, ".partial");
    // It holds the keys of all devices.
    let out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial);
    let mut out = BufWriter::with_capacity(1 << 20, out.with_context(|| partial.display().to_string())?);
    let mut progress = Progress::new(0);
    let (mut after, mut count) = (Value::Null, 0);
    loop {
        let wanted = json!({ "after": after, "limit": LINES_MAX });
        let mut page = service.request("device.export", &wanted).await.map_err(explain)?;
        let Value::Array(entries) = page["entries"].take() else {
            bail!("the hub's answer is not a page of an export");
        };
        if entries.is_empty() {
            break;
        }
        for entry in &entries {
            serde_json::to_writer(&mut out, entry)?;
            out.write_all(b"\n")?;
        }
        count += entries.len() as u64;
        progress.show(0, count, "exported")?;
        after = page["next"].take();
    }
    let out = out.into_inner().map_err(|error| error.into_error())?;
    out.sync_all()?;
    fs::rename(&partial, file).with_context(|| file.display().to_string())?;
    progress.end(count, "exported")?;
    let mut stdout = io::stdout().lock();
    if as_json {
        writeln!(stdout, "{}", json!({ "exported": count }))?;
    } else {
        writeln!(stdout, "{}: {count} devices and modules", file.display())?;
    }
    Ok(())
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How far it is, on standard error: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    /// Of the file, 0 if that is not known.
    bytes: u64,
    is_terminal: bool,
    started: Instant,
    shown: Instant,
}

impl Progress {
    fn new(bytes: u64) -> Self {
        let now = Instant::now();
        Self {
            bytes,
            is_terminal: io::stderr().is_terminal(),
            started: now,
            shown: now,
        }
    }

    fn show(&mut self, position: u64, lines: u64, done: &str) -> io::Result<()> {
        let interval = if self.is_terminal { BAR_INTERVAL } else { LINE_INTERVAL };
        if self.shown.elapsed() < interval {
            return Ok(());
        }
        self.shown = Instant::now();
        let text = render(position, self.bytes, lines, self.started.elapsed(), done);
        let mut err = io::stderr().lock();
        if self.is_terminal {
            // Carriage return, and "erase to the end of the line" behind.
            write!(err, "\r{text}\x1b[K")?;
            err.flush()
        } else {
            writeln!(err, "{text}")
        }
    }

    fn end(&mut self, lines: u64, done: &str) -> io::Result<()> {
        let text = render(self.bytes, self.bytes, lines, self.started.elapsed(), done);
        let mut err = io::stderr().lock();
        if self.is_terminal {
            writeln!(err, "\r{text}\x1b[K")
        } else {
            writeln!(err, "{text}")
        }
    }
}

fn render(position: u64, bytes: u64, lines: u64, elapsed: Duration, done: &str) -> String {
    const WIDTH: u64 = 30;
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { lines as f64 / seconds } else { 0.0 };
    let text = format!("{lines} {done}, {rate:.0} a second");
    if bytes == 0 {
        return text;
    }
    let filled = (position * WIDTH / bytes).min(WIDTH);
    let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
    let left = match position {
        0 => String::new(),
        _ if position >= bytes => String::new(),
        _ => format!(", {:.0} s left", seconds * (bytes - position) as f64 / position as f64),
    };
    format!("[{bar}] {:3}%  {text}{left}", position * 100 / bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_how_far_how_fast_and_how_long() {
        let second = Duration::from_secs(1);
        assert_eq!(
            render(50, 200, 1000, second, "imported"),
            "[#######.......................]  25%  1000 imported, 1000 a second, 3 s left"
        );
        assert_eq!(
            render(200, 200, 4000, 2 * second, "imported"),
            "[##############################] 100%  4000 imported, 2000 a second"
        );
        assert_eq!(render(0, 0, 7, Duration::ZERO, "exported"), "7 exported, 0 a second");
    }

    #[test]
    fn lines_that_are_no_entry_are_told_by_their_reason() {
        assert_eq!(read(r#"{"id":"a"}"#).unwrap().1, "a");
        for text in ["{", "[]", r#"{"id":7}"#, r#"{"deviceId":"a"}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
