//! `forebay log`: what a stopped hub has on disk.
//!
//! Holds the directory lock meanwhile and changes nothing. `verify` ends with 1 for damage: stored messages that cannot
//! be read back. Records that were begun above the last mark and are not whole are shown and are no damage: an end of the
//! process or of the power may leave some, and from the files alone they cannot be told from it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::lines::{self, Lines};
use crate::client::service::events_of;
use crate::log::verify::{self, Filter, PartitionReport, Torn};
use crate::log::{Damage, DiskStorage, Record, Storage as _};
use crate::model::{PartitionId, SequenceNumber};

/// The hub that owns the files must be stopped.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    #[command(subcommand)]
    pub command: LogCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum LogCommand {
    /// Read everything, check every checksum, and say exactly what is wrong and where; changes nothing
    Verify {
        /// Data folder of the hub
        directory: PathBuf,
        /// Answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print stored messages
    Dump(DumpArgs),
    /// Show sizes, sequence numbers and times of every partition
    Stat {
        /// Data folder of the hub
        directory: PathBuf,
        /// Answer as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Clone, Debug)]
pub struct DumpArgs {
    /// Data folder of the hub
    pub directory: PathBuf,
    /// Only this partition; all without it
    #[arg(long, value_name = "N")]
    pub partition: Option<u16>,
    /// First sequence number
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    pub from: u64,
    /// Most messages of each partition
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

impl LogArgs {
    /// # Errors
    /// There is no log, a hub has it open, it cannot be read, or `verify` found damage.
    pub fn run(self) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = match self.command {
            LogCommand::Verify { directory, json } => verify(&directory, json, &mut out),
            LogCommand::Dump(args) => dump(&args, &mut out),
            LogCommand::Stat { directory, json } => stat(&directory, json, &mut out),
        };
        match done.and_then(|is_whole| Ok(out.flush().map(|()| is_whole)?)) {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the log is damaged"),
            // `dump | head`: who does not read on has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The log under a hub's data folder, taken so that no hub starts while it is looked at. Released when dropped.
fn open(directory: &Path) -> anyhow::Result<DiskStorage> {
    // Either folder is what somebody may mean, and `lock` would make one that is not there.
    let log = directory.join("log");
    let folder = [log.as_path(), directory]
        .into_iter()
        .find(|folder| folder.join("format").is_file());
    let Some(folder) = folder else {
        bail!(
            "{} is not a hub's data folder: it has no log/format",
            directory.display()
        );
    };
    let storage = DiskStorage::new(folder);
    match storage.lock() {
        Ok(()) => Ok(storage),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("a hub is running with {}: stop it first", directory.display())
        }
        // No hub can write to it either.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(storage),
        Err(error) => Err(error).with_context(|| format!("{} cannot be locked", folder.display())),
    }
}

fn verify(directory: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let storage = open(directory)?;
    let report = verify::verify(&storage)?;
    if json {
        let partitions: Vec<_> = report.partitions.iter().map(partition_document).collect();
        writeln!(
            out,
            "{}",
            json!({ "whole": report.is_whole(), "partitions": partitions })
        )?;
        return Ok(report.is_whole());
    }
    let sum = |of: fn(&PartitionReport) -> u64| report.partitions.iter().map(of).sum::<u64>();
    for partition in &report.partitions {
        for damage in &partition.damage {
            writeln!(out, "{damage}")?;
        }
        if let Some(torn) = &partition.torn {
            writeln!(
                out,
                "partition {}: {} at position {}: unfinished from sequence number {} on: {}; cut off at the next start",
                partition.partition, torn.file, torn.position, torn.sequence, torn.fault
            )?;
        }
        for file in &partition.stale_indexes {
            writeln!(
                out,
                "partition {}: the index {file} is missing or stale; made again at the next start",
                partition.partition
            )?;
        }
    }
    let damaged: u64 = sum(|partition| partition.damage.len() as u64);
    writeln!(
        out,
        "{} partitions, {} segments, {} batches, {} messages: {}",
        report.partitions.len(),
        sum(|partition| partition.segments),
        sum(|partition| partition.batches),
        sum(messages),
        match damaged {
            0 => "no damage".to_owned(),
            1 => "1 damaged place".to_owned(),
            count => format!("{count} damaged places"),
        }
    )?;
    Ok(report.is_whole())
}

/// Sequence numbers that were given out and are retained; those in damaged places count.
fn messages(partition: &PartitionReport) -> u64 {
    partition.next.0 - partition.first.0
}

fn partition_document(partition: &PartitionReport) -> Value {
    let damage = |damage: &Damage| {
        json!({
            "file": damage.file,
            "position": damage.position,
            "first": damage.first.0,
            "next": damage.next.0,
            "reason": damage.fault.to_string(),
        })
    };
    let torn = |torn: &Torn| {
        json!({
            "file": torn.file,
            "position": torn.position,
            "sequence": torn.sequence.0,
            "reason": torn.fault.to_string(),
        })
    };
    let mut document = stat_document(partition);
    document["damage"] = partition.damage.iter().map(damage).collect();
    document["torn"] = partition.torn.as_ref().map_or(Value::Null, torn);
    document["staleIndexes"] = partition.stale_indexes.clone().into();
    document
}

fn stat(directory: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let storage = open(directory)?;
    let partitions = verify::stat(&storage)?;
    if json {
        let partitions: Vec<_> = partitions.iter().map(stat_document).collect();
        writeln!(out, "{}", json!({ "partitions": partitions }))?;
        return Ok(true);
    }
    writeln!(
        out,
        "{:>9} {:>8} {:>6} {:>14} {:>10} {:>14} {:>14} {:>14}  {:<24}  LAST",
        "PARTITION", "SEGMENTS", "SPARES", "BYTES", "BATCHES", "MESSAGES", "FIRST", "NEXT", "FROM"
    )?;
    for partition in &partitions {
        let is_empty = messages(partition) == 0;
        let date = |time| if is_empty { "-".to_owned() } else { lines::time(time) };
        writeln!(
            out,
            "{:>9} {:>8} {:>6} {:>14} {:>10} {:>14} {:>14} {:>14}  {:<24}  {}",
            partition.partition,
            partition.segments,
            partition.spare_segments,
            partition.bytes,
            partition.batches,
            messages(partition),
            partition.first,
            partition.next,
            date(partition.first_time),
            date(partition.last_time)
        )?;
    }
    Ok(true)
}

fn stat_document(partition: &PartitionReport) -> Value {
    let mut document = json!({
        "partition": partition.partition.0,
        "segments": partition.segments,
        "spareSegments": partition.spare_segments,
        "bytes": partition.bytes,
        "batches": partition.batches,
        "messages": messages(partition),
        "first": partition.first.0,
        "next": partition.next.0,
    });
    if messages(partition) > 0 {
        document["timeFrom"] = lines::time(partition.first_time).into();
        document["timeLast"] = lines::time(partition.last_time).into();
    }
    document
}

fn dump(args: &DumpArgs, out: &mut impl Write) -> anyhow::Result<bool> {
    let storage = open(&args.directory)?;
    let filter = Filter {
        partition: args.partition.map(PartitionId),
        from: Some(SequenceNumber(args.from)),
        ..Filter::default()
    };
    let lines = Lines { json: args.json };
    let count_max = args.count.unwrap_or(u64::MAX);
    let (mut partition, mut printed) = (None, 0);
    for dumped in verify::dump(&storage, filter)? {
        let dumped = dumped?;
        if partition != Some(dumped.partition) {
            (partition, printed) = (Some(dumped.partition), 0);
        }
        if printed == count_max && args.partition.is_some() {
            break;
        }
        let record = Record {
            header: dumped.header,
            stamp: &dumped.stamp,
            payload: &dumped.payload,
            bytes: &[],
        };
        for event in events_of(&record) {
            let event = event.with_context(|| format!("{} at position {}", dumped.file, dumped.position))?;
            // A batch may begin before what is wanted.
            if event.sequence.0 >= args.from && printed < count_max {
                writeln!(out, "{}", lines.line(dumped.partition, &event))?;
                printed += 1;
            }
        }
    }
    Ok(true)
}
