//! What every service needs around its work: logs, metrics, health endpoints, signals, exit codes.

mod admin;
mod embedded_metrics;
pub mod metrics;
mod server;
pub mod status;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::backend::BackendError;
use status::Setting;

pub use admin::{NotReady, Ready, admin_router};
pub use embedded_metrics::{EmbeddedMetrics, EmbeddedMetricsArgs};
pub use metrics::{Metrics, init_metrics, metrics_upkeep};
pub use server::serve;

/// Exit code of a service that stopped for a reason other than a signal.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of a service that was given settings it cannot work with.
pub const EXIT_CONFIGURATION: u8 = 2;

/// Lets audit lines through.
const AUDIT: &str = "audit=info";

/// Whether a directive of a log filter is about audit lines.
fn names_audit(directive: &str) -> bool {
    directive.trim().split(['=', '[']).next() == Some("audit")
}

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

/// A setting that cannot work: the message names it, what was given and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Parses a program's arguments; answers also every setting of theirs, for people to look at.
///
/// # Errors
/// The code to exit with where they are not to be worked with, or ask for help; that is said already.
pub fn parse_told<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<(C, Vec<Setting>), ExitCode> {
    let mut command = C::command();
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| {
        let settings = Setting::all(&command, &matches);
        C::from_arg_matches(&matches).map(|parsed| (parsed, settings)).map_err(|error| error.format(&mut command))
    });
    parsed.map_err(|error| {
        let code = if error.use_stderr() { EXIT_CONFIGURATION } else { 0 };
        let _ = error.print();
        code.into()
    })
}

/// Parses a program's arguments.
///
/// # Errors
/// As [`parse_told`].
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, ExitCode> {
    parse_told(args).map(|(parsed, _)| parsed)
}

/// Says in one line why the program ends.
pub fn failed(program: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{program}: {error:#}");
    if is_configuration(error) { EXIT_CONFIGURATION.into() } else { EXIT_FAILURE.into() }
}

fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(cause.downcast_ref::<BackendError>(), Some(BackendError::Misconfigured(_)))
    })
}

/// Sends logs to standard error.
///
/// # Errors
/// When the filter cannot be read.
pub fn init_logs(args: &LogArgs) -> Result<(), ConfigError> {
    #[expect(clippy::disallowed_methods, reason = "RUST_LOG is a fallback that clap cannot express")]
    let fallback = || std::env::var("RUST_LOG").ok();
    let filter = args.log.clone().or_else(fallback).filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or_else(|| "info".to_owned());
    let parsed = EnvFilter::try_new(&filter)
        .map_err(|error| ConfigError(format!("LOG: {filter:?} is not a log filter ({error}); try info or debug")))?;
    // Audit lines are records, not diagnostics: a filter that does not name them does not drop them.
    let parsed = match AUDIT.parse() {
        Ok(audit) if !filter.split(',').any(names_audit) => parsed.add_directive(audit),
        _ => parsed,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Listens on `address`; `setting` is named where that fails.
///
/// # Errors
/// A line that names the setting and the address.
pub async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| ConfigError(format!("{setting}: cannot listen on {address}: {error}; choose a free port")))
}

/// Receives the name of every SIGTERM and SIGINT from now on.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn signals() -> std::io::Result<tokio::sync::mpsc::UnboundedReceiver<&'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            if sender.send(name).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}
