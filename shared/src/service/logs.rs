//! Log lines: their settings, their form, and what keeps repeats from flooding them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Debug, Write as _};
use std::io::{self, Write as _};
use std::mem;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tokio::time::Instant;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::{ConfigError, EXIT_CONFIGURATION, EXIT_FAILURE, is_configuration, traces};

/// Lets audit lines through.
const AUDIT: &str = "audit=info";
/// How often one trouble is told of while it lasts.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// A trouble that has not shown itself for longer is another one when it does: whoever was to see its end may be gone.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

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
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Text => {
            let fields = debug_fn(write_field).delimited(" ");
            lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).fmt_fields(fields).boxed()
        }
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
        // Where nobody reads it the exit code has to tell.
        let _ = writeln!(io::stderr(), "{program}: {text}");
    }
    code.into()
}

/// Writes a field, with every control character escaped: a name or an answer that somebody else has chosen cannot look
/// like another line, or repaint a terminal.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    match field.name() {
        "message" => {}
        name if writer.has_ansi_escapes() => write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
        name => write!(writer, "{name}=")?,
    }
    write!(Escaping(writer), "{value:?}")
}

struct Escaping<W>(W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (before, control) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut following = control.chars();
            for escaped in following.next().into_iter().flat_map(char::escape_default) {
                self.0.write_char(escaped)?;
            }
            rest = following.as_str();
        }
        self.0.write_str(rest)
    }
}

/// A trouble that repeats, such as an outage that every request meets: told of at once, then at most once a minute, and
/// when it is over. One stands beside each line that may repeat, for the whole process: then a line is one, however many
/// shards there are. Its end is to be told by who met it: others may never have been in trouble.
#[derive(Debug)]
pub struct Trouble {
    /// Spares those that go well the lock.
    is_on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    shown_at: Option<Instant>,
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
        let state = State { since: None, shown_at: None, times: 0, is_told: false, told_at: None, omitted: 0 };
        Self { is_on: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// It shows itself. Where it is to be told of now: how often it was not, since it was last.
    pub fn again(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state();
        self.is_on.store(true, Ordering::Relaxed);
        if state.shown_at.replace(now).is_some_and(|at| now.saturating_duration_since(at) > FORGET_AFTER) {
            (state.since, state.times, state.is_told) = (None, 0, false);
        }
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
    use std::fmt::Write as _;

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

    #[tokio::test(start_paused = true)]
    async fn a_trouble_whose_end_nobody_saw_does_not_last_for_ever() {
        let trouble = Trouble::new();
        trouble.again();
        advance(24 * FORGET_AFTER).await;
        assert_eq!(trouble.again(), Some(0));
        advance(REPEAT_INTERVAL).await;
        assert_eq!(trouble.over(), Some(Over { lasted: REPEAT_INTERVAL, times: 1 }));
    }

    /// Logs are the process's: this one is the child of the test below.
    #[test]
    #[ignore = "run by a_panic_is_a_line_of_the_log"]
    fn child_that_panics() {
        init_logs(&LogArgs { log: None, log_format: LogFormat::Json }).unwrap();
        let failed_before = std::thread::spawn(|| panic!("first\nforged")).join();
        assert!(failed_before.is_err());
        tracing::info!("after it");
    }

    #[test]
    fn a_panic_is_a_line_of_the_log() {
        let name = "service::logs::tests::child_that_panics";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--ignored", "--exact", name]).env("RUST_BACKTRACE", "1").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<serde_json::Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [panic, after] = &lines[..] else { panic!("{stderr}") };
        assert_eq!((&panic["message"], &panic["panic"]), (&"panicked".into(), &"first\nforged".into()));
        assert!(panic["location"].as_str().unwrap().contains("logs.rs:"), "{panic}");
        assert!(panic["backtrace"].as_str().unwrap().contains("child_that_panics"), "{panic}");
        assert_eq!(after["message"], "after it");
    }

    #[test]
    fn a_value_is_one_line_and_paints_nothing() {
        let mut line = String::new();
        write!(Escaping(&mut line), "a\nb\r\tc \u{1b}[31m ü \u{85}\u{0}").unwrap();
        assert_eq!(line, r"a\nb\r\tc \u{1b}[31m ü \u{85}\u{0}");
    }
}
