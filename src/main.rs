//! The program: reads the command line and runs what it says.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match forebay::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
