//! What `dev` and `serve` share: limits of the process, log lines, signals, the life of a started hub.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::status::{Status, StatusLine};
use crate::config::{Config, LogFormat};
use crate::metrics::{SessionKind, Stage};
use crate::server::Server;

const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Starts the log lines of the process, on standard error.
///
/// # Errors
/// The filter of `ops.log` cannot be read.
pub(super) fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.ops.log.0).context("ops.log")?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.ops.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

/// Lets the process hold as many files as the system allows: segments, connections of the operations port.
pub(super) fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Runs until SIGTERM or SIGINT, then drains. Draws the status line in between if wanted.
///
/// # Errors
/// Signals cannot be waited for, or the drain did not end in time.
pub(super) async fn until_signal(server: Server, status_line: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdout = std::io::stdout();
    let mut line = StatusLine::new(stdout.lock(), stdout.is_terminal());
    let mut tick = tokio::time::interval(STATUS_EVERY);
    let mut latency = server.metrics.latency(Stage::Total);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = tick.tick(), if status_line => {
                let now = server.metrics.latency(Stage::Total);
                let interval = now.since(&latency);
                latency = now;
                let status = Status {
                    messages: server.metrics.acknowledged(),
                    sessions: server.metrics.sessions(SessionKind::Device),
                    ack_p99: (interval.count() > 0).then(|| interval.quantile(0.99)),
                    log_bytes: server.metrics.log_bytes(),
                    consumers: server.consumers() as u64,
                };
                line.draw(Instant::now(), &status)?;
            }
        }
    }
    if status_line {
        line.finish()?;
    }
    tracing::info!("stopping: sessions are told to go");
    let started = Instant::now();
    if server.stop("the hub stops").await {
        tracing::info!(elapsed_ms = started.elapsed().as_millis() as u64, "stopped");
    } else {
        tracing::warn!("stopped at the end of process.drain_timeout; nothing acknowledged is lost");
    }
    Ok(())
}
