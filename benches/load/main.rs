//! `forebay-bench`: drives a whole hub and says what it cost.
//!
//! The figure is the server's CPU seconds per million acknowledged messages, read from outside by its process id; rates
//! and latencies stand beside it, and every result names the durability level it was measured at. The client runs on one
//! thread, sends prebuilt incompressible bodies and counts acknowledgements.
//!
//! One file a scenario; beside them [`hub`] (which hub), [`fleet`] (its devices), [`saturate`] and [`pace`] (how they
//! send), [`measure`] (what is read before and after) and [`report`] (what is printed).

mod amqp;
mod bare;
mod c2d;
mod catchup;
mod cpu;
mod events;
mod fleet;
mod https;
mod hub;
mod idle;
mod ingest;
mod latency;
mod measure;
mod method;
mod mqtt;
mod open_loop;
mod pace;
mod plot;
mod progress;
mod protocol;
mod registry;
mod report;
mod saturate;
mod spike;
mod storm;
mod telemetry;
mod timeline;
mod twin;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};

use crate::hub::{Hub, HubArgs};
use crate::protocol::{DeviceProtocol, Protocol};
use crate::report::{Report, Run};

/// Measures a Forebay hub: its CPU per message, rates, latencies, memory per session.
#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
struct Common {
    #[command(flatten)]
    hub: HubArgs,
    /// Repeat and report median, least and most. A started hub is a fresh one each time
    #[arg(long, value_name = "N", default_value_t = 1, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// One JSON object on standard output instead of a table
    #[arg(long, global = true)]
    json: bool,
    /// Write the latency distribution of all runs as HdrHistogram percentile text
    #[arg(long, value_name = "FILE", global = true)]
    hdr: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Measure(Scenario),
    /// The server that `https` measures beside the hub
    #[command(hide = true)]
    BareHttps(bare::BareArgs),
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Devices send as fast as acknowledgements allow, or each at a set rate
    Ingest(ingest::IngestArgs),
    /// Open loop: messages leave at set times whatever the hub does; latency counts from the intended time
    Latency(latency::LatencyArgs),
    /// Fill a backlog, then read all of it; with --kill9 the hub is killed in between
    Catchup(catchup::CatchupArgs),
    /// Fill a backlog, then read all of it over AMQP as Event Hubs clients do
    Events(events::EventsArgs),
    /// Short for ingest --protocol amqp; with --plain also without TLS
    Amqp(telemetry::AmqpArgs),
    /// Short for ingest --protocol mqtt
    Mqtt(telemetry::TelemetryArgs),
    /// Many quiet sessions: memory of the server for each
    Idle(idle::IdleArgs),
    /// A multiple of the load for a while, with every reader stopped: losses, memory, latencies, time to catch up
    Spike(spike::SpikeArgs),
    /// All sessions are lost at once and come back: handshakes a second and their cost
    Storm(storm::StormArgs),
    /// Devices post over HTTPS, one message a request, beside a bare server of the same stack
    Https(https::HttpsArgs),
    /// Messages are queued for devices that are offline: rate, cost, memory of full queues
    C2d(c2d::C2dArgs),
    /// A message's way to a device that listens, on a quiet hub
    Deliver(method::QuietArgs),
    /// A direct method's way to a device and back, on a quiet hub
    Method(method::QuietArgs),
    /// Devices are imported, and the hub is killed and started with them
    Registry(registry::RegistryArgs),
    /// Devices report properties, each one patch at a time
    Twin(twin::TwinArgs),
}

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Self::Ingest(_) => "ingest",
            Self::Latency(_) => "latency",
            Self::Catchup(_) => "catchup",
            Self::Events(_) => "events",
            Self::Amqp(_) => "amqp",
            Self::Mqtt(_) => "mqtt",
            Self::Idle(_) => "idle",
            Self::Spike(_) => "spike",
            Self::Storm(_) => "storm",
            Self::Https(_) => "https",
            Self::C2d(_) => "c2d",
            Self::Deliver(_) => "deliver",
            Self::Method(_) => "method",
            Self::Registry(_) => "registry",
            Self::Twin(_) => "twin",
        }
    }

    /// Whether it measures MQTT alone, which other brokers speak as well.
    fn is_mqtt(&self) -> bool {
        match self {
            Self::Ingest(args) => args.protocol == Protocol::Mqtt,
            Self::Latency(args) => args.protocol == Protocol::Mqtt,
            Self::Idle(args) => args.protocol == Protocol::Mqtt,
            Self::Storm(args) => args.protocol == DeviceProtocol::Mqtt,
            Self::Mqtt(_) => true,
            Self::Catchup(_)
            | Self::Events(_)
            | Self::Spike(_)
            | Self::Amqp(_)
            | Self::Https(_)
            | Self::C2d(_)
            | Self::Deliver(_)
            | Self::Method(_)
            | Self::Registry(_)
            | Self::Twin(_) => false,
        }
    }

    fn parameters(&self) -> serde_json::Value {
        let json = match self {
            Self::Ingest(args) => serde_json::to_value(args),
            Self::Latency(args) => serde_json::to_value(args),
            Self::Catchup(args) => serde_json::to_value(args),
            Self::Events(args) => serde_json::to_value(args),
            Self::Amqp(args) => serde_json::to_value(args),
            Self::Mqtt(args) => serde_json::to_value(args),
            Self::Idle(args) => serde_json::to_value(args),
            Self::Spike(args) => serde_json::to_value(args),
            Self::Storm(args) => serde_json::to_value(args),
            Self::Https(args) => serde_json::to_value(args),
            Self::C2d(args) => serde_json::to_value(args),
            Self::Deliver(args) | Self::Method(args) => serde_json::to_value(args),
            Self::Registry(args) => serde_json::to_value(args),
            Self::Twin(args) => serde_json::to_value(args),
        };
        json.expect("arguments are numbers and texts")
    }

    async fn run(&self, hub: &mut Hub) -> anyhow::Result<Run> {
        match self {
            Self::Ingest(args) => args.run(hub).await,
            Self::Latency(args) => args.run(hub).await,
            Self::Catchup(args) => args.run(hub).await,
            Self::Events(args) => args.run(hub).await,
            Self::Amqp(args) => args.run(hub).await,
            Self::Mqtt(args) => args.run(hub).await,
            Self::Idle(args) => args.run(hub).await,
            Self::Spike(args) => args.run(hub).await,
            Self::Storm(args) => args.run(hub).await,
            Self::Https(args) => args.run(hub).await,
            Self::C2d(args) => args.run(hub).await,
            Self::Deliver(args) => args.run_deliver(hub).await,
            Self::Method(args) => args.run_method(hub).await,
            Self::Registry(args) => args.run(hub).await,
            Self::Twin(args) => args.run(hub).await,
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let scenario = match &cli.action {
        Action::Measure(scenario) => scenario,
        Action::BareHttps(args) => return args.serve(),
    };
    // One thread: what the client takes from the server's cores is then known and small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime")?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = measure_all(&cli.common, scenario) => report,
            // Leaving through here stops a started hub and removes its folder.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    });
    runtime.shutdown_background();
    let report = report?;
    if let Some(file) = &cli.common.hdr {
        report.write_hdr(file)?;
    }
    if cli.common.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

async fn measure_all(common: &Common, scenario: &Scenario) -> anyhow::Result<Report> {
    ensure!(
        scenario.is_mqtt() || !common.hub.is_other_broker(),
        "another broker is measured by ingest, latency, idle and storm with --protocol mqtt"
    );
    let mut report = None;
    for _ in 0..common.runs {
        let mut hub = Hub::open(&common.hub).await?;
        let report = report.get_or_insert_with(|| {
            Report::new(scenario.name(), scenario.parameters(), hub.durability(), hub.settings())
        });
        report.add(scenario.run(&mut hub).await?);
        hub.close().await?;
    }
    Ok(report.expect("there is at least one run"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_explained() {
        Cli::command().debug_assert();
        for scenario in Cli::command().get_subcommands() {
            for argument in scenario.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    scenario.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn settings_are_for_started_hubs_only() {
        let check = |line: &str| match Cli::try_parse_from(line.split(' ')) {
            Ok(cli) => cli.common.hub.check().is_ok(),
            Err(_) => false,
        };
        assert!(check("forebay-bench ingest --hub d"));
        assert!(check(
            "forebay-bench ingest --start --durability os --set log.segment_bytes=16MiB"
        ));
        assert!(check("forebay-bench ingest --host h --owner-key-file k --ca c"));
        assert!(!check("forebay-bench ingest --host h --ca c"));
        assert!(!check(
            "forebay-bench ingest --start --host h --owner-key-file k --ca c"
        ));
        assert!(!check("forebay-bench ingest --hub d --address a"));
        assert!(!check("forebay-bench ingest"));
        assert!(!check("forebay-bench ingest --start --hub d"));
        assert!(!check("forebay-bench ingest --hub d --durability os"));
        assert!(!check("forebay-bench ingest --hub d --dir x"));
        assert!(check("forebay-bench mqtt --broker 1883 --broker-pid 7"));
        assert!(!check("forebay-bench mqtt --broker 1883"));
        assert!(!check("forebay-bench mqtt --start --broker 1883 --broker-pid 7"));
        assert!(!check("forebay-bench mqtt --hub d --broker-ca ca.pem"));
    }

    #[test]
    fn another_broker_is_measured_over_mqtt_alone() {
        let is_mqtt = |line: &str| match Cli::try_parse_from(line.split(' ')).expect("a command line").action {
            Action::Measure(scenario) => scenario.is_mqtt(),
            Action::BareHttps(_) => false,
        };
        for scenario in ["ingest", "latency", "idle", "storm"] {
            assert!(!is_mqtt(&format!("forebay-bench {scenario}")), "{scenario}");
            let line = format!("forebay-bench {scenario} --protocol mqtt");
            assert!(is_mqtt(&line), "{scenario}");
        }
        assert!(is_mqtt("forebay-bench mqtt") && !is_mqtt("forebay-bench twin --protocol mqtt"));
    }
}
