//! The program's own log lines: their form, which of them are written, and how many.
//!
//! ```text
//!   event ── filter (ops.log) ── limit of its place in the program ──> a line on standard error
//!                                      └── above it: counted; told every few seconds
//! ```
//!
//! Peers cause lines, so that without a limit whoever wants to could fill the disk that holds them. Each place in the
//! program has its own: a flood of one kind hides no other. Places are part of the program, hence their number is bounded;
//! and so is the length of a line, since lines quote what peers say.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Config, LogFormat};
use crate::metrics::log_lines_suppressed;

/// How often it is told what was left out.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Errors are what the log is for.
const ERRORS_FACTOR: u32 = 10;
/// Of the lines that tell what was left out, which nothing may leave out.
const REPORT_TARGET: &str = "forebay::log_limit";

/// What an operator says about log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub filter: String,
    /// Of one place in the program; errors ten times as many. 0: no limit.
    pub lines_per_second: u32,
}

impl LogSettings {
    pub fn of(config: &Config) -> Self {
        Self {
            filter: config.ops.log.0.clone(),
            lines_per_second: config.ops.log_lines_per_second,
        }
    }
}

/// The log lines of this process. Dropping it tells what is still to be told; lines are written on.
pub struct Logging {
    settings: Mutex<LogSettings>,
    filter: reload::Handle<EnvFilter, Registry>,
    limiter: Arc<Limiter>,
    stop: Option<mpsc::Sender<()>>,
    reports: Option<JoinHandle<()>>,
}

impl Logging {
    /// Starts them, on standard error, for all of the process.
    ///
    /// # Errors
    /// The filter cannot be read, or they were started before.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let (logging, subscriber) = Self::new(config)?;
        tracing::dispatcher::set_global_default(subscriber).context("log lines")?;
        Ok(logging)
    }

    pub(super) fn new(config: &Config) -> anyhow::Result<(Self, tracing::Dispatch)> {
        let settings = LogSettings::of(config);
        let (filter, handle) = reload::Layer::new(filter(&settings)?);
        let limiter = Arc::new(Limiter::new(settings.lines_per_second));
        let form = config.ops.log_format;
        let lines = fmt::layer().with_writer(move || Bounded(std::io::stderr(), form));
        let base = tracing_subscriber::registry().with(filter).with(Limit(limiter.clone()));
        let subscriber = match form {
            LogFormat::Text => base.with(lines.with_ansi(std::io::stderr().is_terminal())).into(),
            LogFormat::Json => base.with(lines.json()).into(),
        };
        let (stop, stopped) = mpsc::channel();
        let reported = limiter.clone();
        let reports = std::thread::Builder::new().name("log-limit".into()).spawn(move || {
            while stopped.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
                reported.report();
            }
        })?;
        let logging = Self {
            settings: Mutex::new(settings),
            filter: handle,
            limiter,
            stop: Some(stop),
            reports: Some(reports),
        };
        Ok((logging, subscriber))
    }

    /// # Errors
    /// The filter cannot be read; nothing has changed.
    pub fn set(&self, settings: LogSettings) -> anyhow::Result<()> {
        self.filter.reload(filter(&settings)?).context("ops.log")?;
        self.limiter
            .lines_per_second
            .store(settings.lines_per_second, Ordering::Relaxed);
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        Ok(())
    }

    pub fn settings(&self) -> LogSettings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(reports) = self.reports.take() {
            let _ = reports.join();
        }
        self.limiter.report();
    }
}

fn filter(settings: &LogSettings) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&settings.filter).context("ops.log")
}

/// Writes lines, of which each comes in one piece, and of one that is too long the beginning.
struct Bounded<W>(W, LogFormat);

/// Of one line. The longest that the hub has reason to write is a tenth of it.
const LINE_BYTES_MAX: usize = 8 * 1024;

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.len() <= LINE_BYTES_MAX {
            return self.0.write(line);
        }
        let begins = String::from_utf8_lossy(&line[..LINE_BYTES_MAX / 8]).into_owned();
        let bytes = line.len();
        let cut = match self.1 {
            LogFormat::Text => format!("{begins} ... ({bytes} bytes, cut)\n"),
            LogFormat::Json => {
                let fields = serde_json::json!({ "message": "a line was too long", "bytes": bytes, "begins": begins });
                format!(
                    "{}\n",
                    serde_json::json!({ "level": "WARN", "target": REPORT_TARGET, "fields": fields })
                )
            }
        };
        self.0.write_all(cut.as_bytes())?;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Limiter {
    lines_per_second: AtomicU32,
    /// Where seconds are counted from.
    origin: Instant,
    places: Mutex<HashMap<Identifier, Place>>,
}

/// One place in the program that writes lines.
struct Place {
    metadata: &'static Metadata<'static>,
    /// The second that `lines` counts.
    second: u64,
    lines: u32,
    /// Left out and not told yet.
    suppressed: u64,
}

impl Limiter {
    fn new(lines_per_second: u32) -> Self {
        Self {
            lines_per_second: AtomicU32::new(lines_per_second),
            origin: Instant::now(),
            places: Mutex::default(),
        }
    }

    /// Whether a line may be written now.
    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let lines_max = match self.lines_per_second.load(Ordering::Relaxed) {
            0 => return true,
            lines if *metadata.level() == Level::ERROR => lines.saturating_mul(ERRORS_FACTOR),
            lines => lines,
        };
        if metadata.target() == REPORT_TARGET {
            return true;
        }
        let second = now.saturating_duration_since(self.origin).as_secs();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(metadata.callsite()).or_insert(Place {
            metadata,
            second,
            lines: 0,
            suppressed: 0,
        });
        if place.second != second {
            (place.second, place.lines) = (second, 0);
        }
        let is_admitted = place.lines < lines_max;
        if is_admitted {
            place.lines += 1;
        } else {
            place.suppressed += 1;
            log_lines_suppressed(1);
        }
        is_admitted
    }

    /// What was left out since the last time, place by place.
    fn take_suppressed(&self) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let suppressed = places.values_mut().filter(|place| place.suppressed > 0);
        suppressed
            .map(|place| (place.metadata, std::mem::take(&mut place.suppressed)))
            .collect()
    }

    fn report(&self) {
        // Not while the places are held: a line asks for its own.
        for (metadata, lines) in self.take_suppressed() {
            let (file, line) = (metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
            let place = format!("{file}:{line}");
            // As loud as what was left out, so that a filter that shows the one shows the other.
            if *metadata.level() == Level::ERROR {
                tracing::error!(target: REPORT_TARGET, lines, place, "lines were left out");
            } else {
                tracing::warn!(target: REPORT_TARGET, lines, place, "lines were left out");
            }
        }
    }
}

struct Limit(Arc<Limiter>);

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct Counted(Arc<Mutex<Vec<(Level, String)>>>);

    impl<S: Subscriber> Layer<S> for Counted {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut text = String::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                text += &format!("{}={value:?} ", field.name());
            });
            self.0.lock().unwrap().push((*event.metadata().level(), text));
        }
    }

    impl Counted {
        fn take(&self) -> Vec<(Level, String)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn observed(limiter: &Arc<Limiter>, what: impl FnOnce()) -> Vec<(Level, String)> {
        let counted = Counted::default();
        let subscriber = tracing_subscriber::registry()
            .with(Limit(limiter.clone()))
            .with(counted.clone());
        tracing::subscriber::with_default(subscriber, what);
        counted.take()
    }

    #[test]
    fn each_place_has_its_own_limit_and_errors_a_larger_one() {
        // Two seconds at most pass meanwhile, on the busiest machine.
        let limiter = Arc::new(Limiter::new(3));
        let written = observed(&limiter, || {
            for number in 0..1_000 {
                tracing::info!(number, "one place");
                tracing::warn!(number, "another");
                tracing::error!(number, "broken");
            }
        });
        let count = |level: Level| written.iter().filter(|(of, _)| *of == level).count();
        let (infos, warnings, errors) = (count(Level::INFO), count(Level::WARN), count(Level::ERROR));
        assert!(
            (3..=9).contains(&infos) && (3..=9).contains(&warnings),
            "{infos} {warnings}"
        );
        assert!((30..=90).contains(&errors), "{errors}");
        let told = observed(&limiter, || {
            limiter.report();
            limiter.report();
        });
        assert_eq!(told.len(), 3, "{told:?}");
        for (level, left_out) in [(Level::WARN, 1_000 - infos), (Level::ERROR, 1_000 - errors)] {
            let is_told = |(of, text): &(Level, String)| *of == level && text.contains(&format!("lines={left_out} "));
            assert!(told.iter().any(is_told), "{left_out} {level} in {told:?}");
        }
        assert!(
            told.iter().all(|(_, text)| text.contains("src/server/logging.rs:")),
            "{told:?}"
        );
    }

    #[test]
    fn a_new_second_has_new_lines_and_zero_is_no_limit() {
        let limiter = Limiter::new(2);
        let metadata = {
            let place = Arc::new(Mutex::new(None));
            struct Place(Arc<Mutex<Option<&'static Metadata<'static>>>>);
            impl<S: Subscriber> Layer<S> for Place {
                fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                    *self.0.lock().unwrap() = Some(event.metadata());
                }
            }
            let subscriber = tracing_subscriber::registry().with(Place(place.clone()));
            tracing::subscriber::with_default(subscriber, || tracing::info!("here"));
            place.lock().unwrap().expect("the event was seen")
        };
        let start = limiter.origin;
        let admits = |millis: u64| limiter.admits(metadata, start + Duration::from_millis(millis));
        assert_eq!([0, 10, 20, 999].map(admits), [true, true, false, false]);
        assert_eq!([1_000, 1_001, 1_002].map(admits), [true, true, false]);
        assert_eq!(limiter.take_suppressed()[0].1, 3);
        assert!(limiter.take_suppressed().is_empty());
        limiter.lines_per_second.store(0, Ordering::Relaxed);
        assert!((1_003..1_100).all(admits));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_stays_one_line() {
        let written = |form: LogFormat, line: &str| {
            let mut writer = Bounded(Vec::new(), form);
            writer.write_all(line.as_bytes()).unwrap();
            String::from_utf8(writer.0).unwrap()
        };
        for form in [LogFormat::Text, LogFormat::Json] {
            let short = format!("{}\n", "x".repeat(LINE_BYTES_MAX - 1));
            assert_eq!(written(form, &short), short);
            let cut = written(form, &format!("{}\n", "\u{e4}\"".repeat(LINE_BYTES_MAX)));
            assert!(cut.len() < LINE_BYTES_MAX && cut.ends_with('\n'), "{} bytes", cut.len());
            assert_eq!(cut.matches('\n').count(), 1);
            assert!(cut.contains("24577"), "{cut}");
            if form == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(&cut).unwrap();
                assert_eq!(line["fields"]["bytes"], 24_577);
            }
        }
    }

    #[test]
    fn a_filter_is_changed_under_way_and_a_wrong_one_is_refused() {
        let config = Config::default();
        let (logging, subscriber) = Logging::new(&config).unwrap();
        tracing::dispatcher::with_default(&subscriber, || {
            assert!(tracing::enabled!(Level::INFO) && !tracing::enabled!(Level::DEBUG));
            let debug = LogSettings {
                filter: "debug".to_owned(),
                lines_per_second: 1,
            };
            logging.set(debug.clone()).unwrap();
            assert!(tracing::enabled!(Level::DEBUG));
            let wrong = LogSettings {
                filter: "forebay=loud".to_owned(),
                ..debug.clone()
            };
            assert!(logging.set(wrong).is_err());
            assert_eq!(logging.settings(), debug);
        });
    }
}
