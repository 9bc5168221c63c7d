//! What a person types: the subcommands, their flags and their help.
//!
//! One file a subcommand: what it takes, and a `run` that does it. Answers go to standard output, all else to standard
//! error; an error ends the process with 1.

mod as_device;
pub mod authority;
pub mod c2d;
pub mod config;
mod connect;
pub mod dev;
pub mod device;
pub mod doctor;
pub mod endpoints;
pub mod events;
pub mod feedback;
pub mod group;
mod lines;
pub mod listen;
pub mod log;
pub mod method;
pub mod metrics;
pub mod module;
pub mod policy;
pub mod runbook;
mod running;
pub mod send;
pub mod serve;
pub mod status;
pub mod tail;
pub mod token;
mod transfer;
pub mod twin;

use clap::{Parser, Subcommand};

pub use authority::AuthorityArgs;
pub use c2d::C2dArgs;
pub use config::ConfigArgs;
pub use dev::DevArgs;
pub use device::DeviceArgs;
pub use doctor::DoctorArgs;
pub use endpoints::{Endpoints, HubArgs};
pub use events::EventsArgs;
pub use feedback::FeedbackArgs;
pub use group::GroupArgs;
pub use listen::ListenArgs;
pub use log::LogArgs;
pub use method::MethodArgs;
pub use metrics::MetricsArgs;
pub use module::ModuleArgs;
pub use policy::PolicyArgs;
pub use runbook::RunbookArgs;
pub use send::SendArgs;
pub use serve::ServeArgs;
pub use status::StatusArgs;
pub use tail::TailArgs;
pub use token::TokenArgs;
pub use twin::TwinArgs;

/// A self-hosted IoT hub: telemetry in, stored before it is acknowledged, and commands out.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a hub on this machine, with certificates, keys and a demo fleet made for you
    Dev(DevArgs),
    /// Start a hub from a configuration file, for production
    Serve(ServeArgs),
    /// Check whether this machine can run a hub, and say what to do where it cannot
    Doctor(DoctorArgs),
    /// Show what a running hub does now
    Status(StatusArgs),
    /// Check a configuration file, or print one with every key explained
    Config(ConfigArgs),
    /// Create, list, show, enable, disable, import, export and delete devices, and rotate their keys
    Device(DeviceArgs),
    /// Create, list, show and delete modules of devices
    Module(ModuleArgs),
    /// Create, list, show, change and delete shared access policies, and rotate their keys
    Policy(PolicyArgs),
    /// Register certificate authorities that vouch for devices
    Authority(AuthorityArgs),
    /// Create, list and delete consumer groups
    Group(GroupArgs),
    /// Send messages as a device: one from the command line, or one for each line of standard input
    Send(SendArgs),
    /// Queue messages for devices, and remove queued ones
    C2d(C2dArgs),
    /// Be a device: show what comes to it, settle messages, answer methods
    Listen(ListenArgs),
    /// Follow what became of messages to devices
    Feedback(FeedbackArgs),
    /// Show twins, and change their tags and desired properties
    Twin(TwinArgs),
    /// Call direct methods of devices
    Method(MethodArgs),
    /// Make a SAS token
    Token(TokenArgs),
    /// Follow the messages of a hub
    Tail(TailArgs),
    /// Follow what the hub tells of itself: devices created, connected, changed, deleted
    Events(EventsArgs),
    /// Look into the log files of a stopped hub
    Log(LogArgs),
    /// Print what each metric means and what to do when it moves
    Metrics(MetricsArgs),
    /// Print what to do when an alert fires, or list the alerts
    Runbook(RunbookArgs),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// A text for the person who typed; the process ends with 1.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Dev(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Config(args) => Ok(args.run(&mut std::io::stdout().lock())?),
            Command::Device(args) => args.run(),
            Command::Module(args) => args.run(),
            Command::Policy(args) => args.run(),
            Command::Authority(args) => args.run(),
            Command::Group(args) => args.run(),
            Command::Send(args) => args.run(),
            Command::C2d(args) => args.run(),
            Command::Listen(args) => args.run(),
            Command::Feedback(args) => args.run(),
            Command::Twin(args) => args.run(),
            Command::Method(args) => args.run(),
            Command::Token(args) => args.run(),
            Command::Tail(args) => args.run(),
            Command::Events(args) => args.run(),
            Command::Log(args) => args.run(),
            Command::Metrics(args) => args.run(&mut std::io::stdout().lock()),
            Command::Runbook(args) => args.run(&mut std::io::stdout().lock()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn definitions_are_consistent_and_explained() {
        fn explained(command: &clap::Command) {
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{}", sub.get_name());
                explained(sub);
            }
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
        Cli::command().debug_assert();
        explained(&Cli::command());
    }

    #[test]
    fn every_command_of_the_manual_parses() {
        for line in [
            "forebay dev",
            "forebay dev --fleet 0 --data d --host hub.local --host 10.0.0.1 --any-ports",
            "forebay dev --quic-port 1 --https-port 3 --ops-port 2 --durability os --set quic.idle_timeout=30s",
            "forebay serve --config f.toml --set process.shards=2 --set ops.log=debug",
            "forebay config check f.toml",
            "forebay doctor",
            "forebay doctor --config f.toml --set mqtt.listen=0.0.0.0:1883 --json",
            "forebay doctor --data d",
            "forebay status",
            "forebay status --hub d --json --interval 0.5",
            "forebay status --ops hub.example:9600",
            "forebay config default",
            "forebay metrics",
            "forebay metrics sync",
            "forebay runbook",
            "forebay runbook ForebayDown",
            "forebay device create dev-1",
            "forebay device create dev-1 --key AAECAwQFBgcICQoLDA0ODw== --disabled",
            "forebay device create dev-1 --thumbprint 00112233445566778899aabbccddeeff00112233",
            "forebay device list --json --hub d",
            "forebay device show dev-1",
            "forebay device disable dev-1 --reason lost",
            "forebay device enable dev-1",
            "forebay device delete dev-1",
            "forebay send dev-1 hello --property a=b --property c=d=e --content-type text/plain",
            "forebay send --connection-string x --ca ca.pem --port 1 --lines",
            "forebay c2d send dev-1 on --message-id m-1 --ack full -p a=b --expiry 2030-01-01T00:00:00Z",
            "forebay c2d purge dev-1 --json",
            "forebay c2d send dev-1/m on",
            "forebay device create dev-1 --thumbprint 00112233445566778899aabbccddeeff00112233 --thumbprint 10112233445566778899aabbccddeeff00112233",
            "forebay device create dev-1 --authority",
            "forebay device rotate dev-1/m --key secondary",
            "forebay module create dev-1/m",
            "forebay module list dev-1",
            "forebay policy list --json",
            "forebay policy create report --rights RegistryRead,ServiceConnect",
            "forebay policy rotate report --key primary --hub d",
            "forebay authority create root ca.pem --verified",
            "forebay authority prove root proof.pem",
            "forebay group create cg3",
            "forebay listen dev-1/m --certificate c.pem --certificate-key k.pem",
            "forebay send dev-1 hello --certificate c.pem --certificate-key k.pem",
            "forebay tail",
            "forebay tail --partition 1 --from sequence:5 --json --count 3",
            "forebay events tail",
            "forebay events tail --json --earliest --partition 1 --count 3 --hub d",
            "forebay log verify d",
            "forebay log dump d --partition 1 --from 5 --count 2 --json",
            "forebay log stat d --json",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "forebay",
            "forebay serve",
            "forebay doctor --config f --data d",
            "forebay status --hub d --ops h:1",
            "forebay status --interval 0",
            "forebay dev --any-ports --quic-port 1",
            "forebay device create dev/1",
            "forebay device create dev-1 --key AA== --thumbprint 00112233445566778899aabbccddeeff00112233",
            "forebay device create dev-1 --thumbprint 0011",
            "forebay c2d send dev-1 on --ack full",
            "forebay c2d send dev-1 on --ack perhaps",
            "forebay module create dev-1",
            "forebay policy create report",
            "forebay policy create report --rights Everything",
            "forebay policy rotate report --key both",
            "forebay device create dev-1 --authority --key AA==",
            "forebay send dev-1 hello --certificate c.pem",
            "forebay send",
            "forebay send dev-1 hello --lines",
            "forebay send dev-1 --lines --message-id one",
            "forebay send dev-1 hello --property a",
            "forebay tail --from yesterday-ish",
            "forebay tail --hub d --connection-string x",
            "forebay tail --connection-string x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
