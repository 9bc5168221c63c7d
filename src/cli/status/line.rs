//! One line that says what the hub does: redrawn in place on a terminal, printed now and then elsewhere.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::figures::{amount, duration, size};
use crate::config::Bytes;

/// How often a redirected output gets a line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// The figures at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Messages acknowledged since the start.
    pub messages: u64,
    pub sessions: u64,
    /// None while nothing was acknowledged in the last interval.
    pub ack_p99: Option<Duration>,
    pub log_bytes: u64,
    pub consumers: u64,
}

/// Draws `Status`. Call `draw` about once a second.
pub struct StatusLine<W> {
    out: W,
    is_terminal: bool,
    last: Option<(Instant, u64)>,
    printed: Option<Instant>,
}

impl<W: Write> StatusLine<W> {
    pub fn new(out: W, is_terminal: bool) -> Self {
        Self {
            out,
            is_terminal,
            last: None,
            printed: None,
        }
    }

    /// Shows `status`; the rate is counted from the call before.
    ///
    /// # Errors
    /// The output's.
    pub fn draw(&mut self, now: Instant, status: &Status) -> io::Result<()> {
        let is_due = self.printed.is_none_or(|at| now.duration_since(at) >= PLAIN_INTERVAL);
        if !self.is_terminal && !is_due {
            return Ok(());
        }
        let rate = self.last.map_or(0.0, |(at, messages)| {
            let seconds = now.duration_since(at).as_secs_f64();
            if seconds > 0.0 {
                status.messages.saturating_sub(messages) as f64 / seconds
            } else {
                0.0
            }
        });
        self.last = Some((now, status.messages));
        self.printed = Some(now);
        let line = render(rate, status);
        if self.is_terminal {
            // Carriage return and "erase to the end of the line", so that a shorter line leaves nothing of a longer one.
            write!(self.out, "\r{line}\x1b[K")?;
        } else {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    /// Leaves the line on the screen and goes to the next, before something else is printed.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.is_terminal && self.printed.is_some() {
            writeln!(self.out)?;
        }
        self.out.flush()
    }
}

fn render(rate: f64, status: &Status) -> String {
    let ack = status.ack_p99.map_or_else(|| "-".to_owned(), duration);
    format!(
        "{}/s  {} messages  {} sessions  ack p99 {ack}  log {}  {} consumers",
        amount(rate),
        amount(status.messages as f64),
        status.sessions,
        size(Bytes(status.log_bytes)),
        status.consumers,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(messages: u64) -> Status {
        Status {
            messages,
            sessions: 5,
            ack_p99: Some(Duration::from_micros(1_234)),
            log_bytes: 3 << 20,
            consumers: 1,
        }
    }

    #[test]
    fn a_terminal_is_redrawn_in_place() {
        let mut out = Vec::new();
        let mut line = StatusLine::new(&mut out, true);
        let start = Instant::now();
        line.draw(start, &status(0)).unwrap();
        line.draw(start + Duration::from_secs(2), &status(25_000)).unwrap();
        line.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        let last = "\r12.5k/s  25.0k messages  5 sessions  ack p99 1.2 ms  log 3.0 MiB  1 consumers\x1b[K\n";
        assert!(text.ends_with(last), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn a_file_gets_a_line_every_ten_seconds() {
        let mut out = Vec::new();
        let mut line = StatusLine::new(&mut out, false);
        let start = Instant::now();
        for second in 0..=20 {
            line.draw(start + Duration::from_secs(second), &status(second * 100))
                .unwrap();
        }
        line.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        let rates: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(rates, ["0/s", "100/s", "100/s"]);
        assert!(!text.contains('\r'));
    }
}
