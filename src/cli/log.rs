//! `forebay log`: what a stopped hub has on disk.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
