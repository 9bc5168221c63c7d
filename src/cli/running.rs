//! What `dev` and `serve` share: limits of the process, signals, the life of a started hub.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::status::{Status, StatusLine};
use crate::metrics::{SessionKind, Stage};
use crate::server::Server;

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
/// certificate's files at once.
///
/// # Errors
/// Signals cannot be waited for, or the drain did not end in time.
pub(super) async fn until_signal(server: Server, status_line: bool) -> anyhow::Result<()> {
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
            _ = hangup.recv() => server.look_at_certificate().await,
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
