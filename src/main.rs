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
