//! What `dev` and `serve` share: limits of the process, signals, the life of a started hub.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::status::{Status, StatusLine};
use crate::config::Config;
use crate::metrics::{ConfigReload, SessionKind, Stage};
use crate::server::Server;
use crate::server::logging::Logging;

const STATUS_EVERY: Duration = Duration::from_secs(1);

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

/// Runs until SIGTERM or SIGINT, then drains. In between it draws the status line, if wanted, and SIGHUP looks at the
/// certificate's files at once and puts in force what `reread` says otherwise than the present configuration.
///
/// # Errors
/// Signals cannot be waited for, or the drain did not end in time.
pub(super) async fn until_signal(
    server: Server,
    logging: &Logging,
    status_line: bool,
    reread: impl Fn() -> anyhow::Result<Config>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stdout = std::io::stdout();
    let mut line = StatusLine::new(stdout.lock(), stdout.is_terminal());
    let mut tick = tokio::time::interval(STATUS_EVERY);
    let mut latency = server.metrics.latency(Stage::Total);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(&server, logging, &reread).await,
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

/// Tells what became of it in the log: nobody waits for an answer.
async fn reload(server: &Server, logging: &Logging, reread: &impl Fn() -> anyhow::Result<Config>) {
    let wanted = match reread() {
        Ok(wanted) => wanted,
        Err(error) => {
            server.metrics.config_reloaded(ConfigReload::Refused);
            server.look_at_certificate().await;
            let error = format!("{error:#}");
            return tracing::error!(error, "the configuration is refused: the one in force stays");
        }
    };
    match server.reload(&wanted, logging).await {
        Ok(change) => {
            if !change.waiting.is_empty() {
                let keys = change.waiting.join(", ");
                tracing::warn!(keys, "keys that changed and need a restart");
            }
            let applied = change.applied.join(", ");
            tracing::info!(applied, "the configuration was read anew");
        }
        Err(error) => tracing::error!(%error, "the configuration is refused: the one in force stays"),
    }
}
