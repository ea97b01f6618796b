//! Log lines: their settings, their form, and what keeps repeats from flooding them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::mem;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use super::{ConfigError, EXIT_CONFIGURATION, EXIT_FAILURE, is_configuration, traces};

/// Lets audit lines through.
const AUDIT: &str = "audit=info";
/// How often one trouble is told of while it lasts.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings of logs, the same for every service.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct LogArgs {
    /// What to log: a level, or targets with levels as in `info,ingest_worker=debug`. Unset, RUST_LOG counts.
    #[arg(long, env, value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look.
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
}

/// Sends logs to standard error, one line each; what panics too.
///
/// # Errors
/// When the filter cannot be read.
pub fn init_logs(args: &LogArgs) -> Result<(), ConfigError> {
    init(args, None)
}

/// As [`init_logs`]; spans of traces go to the tracer.
pub(super) fn init(args: &LogArgs, tracer: Option<SdkTracer>) -> Result<(), ConfigError> {
    let filter = filter(args)?;
    let lines = fmt::layer().with_writer(OneLine::stderr);
    let lines = match args.log_format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = tracer.map(|tracer| {
        let only_traces = Targets::new().with_target(traces::TARGET, LevelFilter::TRACE);
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_target(false);
        layer.with_filter(only_traces)
    });
    tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).init();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| if is_logging() { log_panic(panic) } else { default(panic) }));
    Ok(())
}

fn filter(args: &LogArgs) -> Result<EnvFilter, ConfigError> {
    #[expect(clippy::disallowed_methods, reason = "RUST_LOG is a fallback that clap cannot express")]
    let fallback = || std::env::var("RUST_LOG").ok();
    let filter = args.log.clone().or_else(fallback).filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or_else(|| "info".to_owned());
    let mut parsed = EnvFilter::try_new(&filter)
        .map_err(|error| ConfigError(format!("LOG: {filter:?} is not a log filter ({error}); try info or debug")))?;
    // Audit lines are records, not diagnostics: a filter that does not name them does not drop them.
    if !filter.split(',').any(names_audit) {
        parsed = parsed.add_directive(AUDIT.parse().map_err(|error| ConfigError(format!("{AUDIT}: {error}")))?);
    }
    // Where nobody takes traces, their spans are never made.
    let no_spans = format!("{}=off", traces::TARGET);
    Ok(parsed.add_directive(no_spans.parse().map_err(|error| ConfigError(format!("{no_spans}: {error}")))?))
}

/// Whether a directive of a log filter is about audit lines.
fn names_audit(directive: &str) -> bool {
    directive.trim().split(['=', '[']).next() == Some("audit")
}

fn is_logging() -> bool {
    tracing::enabled!(tracing::Level::ERROR)
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    // Taken where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(panic = panic.payload_as_str().unwrap_or("of another type"), location, backtrace, "panicked");
}

/// Says in one line why the program ends: a log line where those are JSON, and plain text elsewhere.
pub fn failed(program: &str, error: &anyhow::Error, logs: &LogArgs) -> ExitCode {
    let text = format!("{error:#}");
    let code = if is_configuration(error) { EXIT_CONFIGURATION } else { EXIT_FAILURE };
    if logs.log_format == LogFormat::Json && is_logging() {
        tracing::error!(program, error = text, exit_code = code, "ended");
    } else {
        eprintln!("{program}: {text}");
    }
    code.into()
}

/// Writes every event as one line, whatever line breaks are in it: a name or an answer that somebody else has chosen
/// cannot look like another line.
struct OneLine<W>(W);

impl OneLine<io::Stderr> {
    fn stderr() -> Self {
        Self(io::stderr())
    }
}

impl<W: io::Write> io::Write for OneLine<W> {
    /// Takes one event, which `fmt` writes as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(event)?;
            return Ok(event.len());
        }
        let mut line = Vec::with_capacity(event.len() + 16);
        for byte in text {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A trouble that repeats, such as an outage that every request meets: told of at once, then at most once a minute, and
/// when it is over. One stands beside each line that may repeat, for the whole process: then a line is one, however many
/// shards there are.
#[derive(Debug)]
pub struct Trouble {
    /// Spares those that go well the lock.
    is_on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    times: u64,
    is_told: bool,
    told_at: Option<Instant>,
    omitted: u64,
}

/// What a trouble was that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// From its first time on.
    pub lasted: Duration,
    /// How often it showed itself.
    pub times: u64,
}

impl Trouble {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        let state = State { since: None, times: 0, is_told: false, told_at: None, omitted: 0 };
        Self { is_on: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// It shows itself. Where it is to be told of now: how often it was not, since it was last.
    pub fn again(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state();
        self.is_on.store(true, Ordering::Relaxed);
        state.since.get_or_insert(now);
        state.times += 1;
        if state.told_at.is_some_and(|at| now.saturating_duration_since(at) < REPEAT_INTERVAL) {
            state.omitted += 1;
            return None;
        }
        state.told_at = Some(now);
        state.is_told = true;
        Some(mem::take(&mut state.omitted))
    }

    /// It does not show itself any more. The end of what was never told of is not told either.
    pub fn over(&self) -> Option<Over> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state();
        self.is_on.store(false, Ordering::Relaxed);
        let (since, times) = (state.since.take()?, mem::take(&mut state.times));
        mem::take(&mut state.is_told).then(|| Over { lasted: since.elapsed(), times })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Trouble {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trouble_is_told_of_at_once_then_each_minute_and_at_its_end() {
        let trouble = Trouble::new();
        assert_eq!(trouble.over(), None, "none began");
        assert_eq!(trouble.again(), Some(0));
        let mut told = Vec::new();
        for _ in 0..3600 {
            advance(Duration::from_secs(1)).await;
            told.extend(trouble.again());
        }
        assert_eq!(told, [59; 60], "once a minute, with what was left out");
        assert_eq!(trouble.over(), Some(Over { lasted: Duration::from_secs(3600), times: 3601 }));
        assert_eq!(trouble.over(), None, "its end is told once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_goes_is_told_of_once_a_minute() {
        let trouble = Trouble::new();
        let (mut begins, mut ends) = (0, 0);
        for _ in 0..600 {
            begins += u32::from(trouble.again().is_some());
            ends += u32::from(trouble.over().is_some());
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!((begins, ends), (10, 10));
        advance(REPEAT_INTERVAL).await;
        assert_eq!(trouble.again(), Some(59), "nothing is left uncounted");
    }

    #[test]
    fn an_event_is_one_line() {
        let mut out = OneLine(Vec::new());
        for event in ["plain\n", "a\nb\r\nc\n", "without an end", "ü\n\n"] {
            assert_eq!(out.write(event.as_bytes()).unwrap(), event.len());
        }
        assert_eq!(String::from_utf8(out.0).unwrap(), "plain\na\\nb\\r\\nc\nwithout an endü\\n\n");
    }
}
