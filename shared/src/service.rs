//! What every service needs around its work: logs, metrics, health endpoints, signals, exit codes.

mod admin;
mod server;
pub mod status;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::backend::BackendError;
use status::Setting;

pub use admin::{NotReady, Ready, admin_router};
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

/// Installs the process's metrics registry.
///
/// # Errors
/// When one is installed already.
pub fn init_metrics(service: &'static str) -> anyhow::Result<PrometheusHandle> {
    let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
    let events = [1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 10_000.0];
    let bytes = [1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 524_288.0, 1_048_576.0, 4_194_304.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), &events)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &bytes)?
        .install_recorder()?;
    metrics_process::Collector::default().describe();
    metrics::gauge!("build_info", "service" => service, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
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

/// Keeps the metrics registry's memory bounded; never returns.
pub async fn metrics_upkeep(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        metrics.run_upkeep();
    }
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
