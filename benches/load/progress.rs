//! A bar on a terminal; nothing where nobody watches.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

const DRAW_EVERY: Duration = Duration::from_millis(100);
const BAR_CHARACTERS: usize = 32;

/// Drawn on standard error, so that results on standard output stay clean. Dropping it clears the line.
pub struct Progress {
    label: &'static str,
    done: u64,
    total: u64,
    is_shown: bool,
    drawn: Option<Instant>,
}

impl Progress {
    pub fn new(label: &'static str, total: u64) -> Self {
        Self {
            label,
            done: 0,
            total: total.max(1),
            is_shown: stderr().is_terminal(),
            drawn: None,
        }
    }

    pub fn add(&mut self, done: u64) {
        self.set(self.done + done);
    }

    pub fn set(&mut self, done: u64) {
        self.done = done;
        if self.is_shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            self.drawn = Some(Instant::now());
            let _ = write!(stderr(), "\r{}", line(self.label, self.done, self.total));
        }
    }

    /// Sleeps and shows how much of it is over.
    pub async fn sleep(label: &'static str, time: Duration) {
        let mut progress = Self::new(label, time.as_millis() as u64);
        let start = tokio::time::Instant::now();
        if progress.is_shown {
            while start.elapsed() < time {
                progress.set(start.elapsed().as_millis() as u64);
                tokio::time::sleep_until((start + time).min(tokio::time::Instant::now() + DRAW_EVERY)).await;
            }
        } else {
            tokio::time::sleep(time).await;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(label: &str, done: u64, total: u64) -> String {
    let share = (done as f64 / total as f64).min(1.0);
    let filled = (share * BAR_CHARACTERS as f64) as usize;
    format!(
        "{label:>8} [{}{}] {:>3.0} %",
        "#".repeat(filled),
        " ".repeat(BAR_CHARACTERS - filled),
        share * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_leaves_its_frame() {
        assert_eq!(line("fill", 0, 10), format!("    fill [{}]   0 %", " ".repeat(32)));
        assert_eq!(
            line("fill", 5, 10),
            format!("    fill [{}{}]  50 %", "#".repeat(16), " ".repeat(16))
        );
        assert_eq!(line("fill", 30, 10), format!("    fill [{}] 100 %", "#".repeat(32)));
    }
}
