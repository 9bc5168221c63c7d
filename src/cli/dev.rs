use std::path::PathBuf;

use clap::Args;

/// Makes what it needs on the first start (a CA, a server certificate, keys, demo devices), prints how to connect, and
/// sends this machine's own readings as telemetry. A second start finds its data again. Everything a client needs is
/// written to DATA/endpoints.json.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Folder of all data
    #[arg(long, value_name = "DIR", default_value = "forebay-data")]
    pub data: PathBuf,
    /// Name clients call this hub by; repeat for several. The certificate gets each, and localhost
    #[arg(long = "host", value_name = "NAME", default_value = "localhost")]
    pub hosts: Vec<String>,
    /// Demo devices that send this machine's readings; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub fleet: u16,
    /// UDP port for devices over QUIC [default: 8883]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub quic_port: Option<u16>,
    /// TCP port for metrics and health [default: 9600]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub ops_port: Option<u16>,
    /// Take free ports, so that several hubs run side by side
    #[arg(long)]
    pub any_ports: bool,
    /// When a message is acknowledged: sync, interval=10ms or os [default: sync]
    #[arg(long, value_name = "LEVEL")]
    pub durability: Option<String>,
    /// Set any key of the configuration; see `forebay config default`
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// No status line
    #[arg(long)]
    pub quiet: bool,
}
