use std::path::PathBuf;

use clap::Args;

/// Everything is checked before the first port opens. Values come from the file, then from FOREBAY_SECTION_KEY in
/// the environment, then from --set; the last one wins. SIGTERM drains and stops.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Configuration file; `forebay config default` prints one to start from
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Set one key over file and environment; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}
