//! What every service needs around its work: logs, traces, metrics, health endpoints, signals, exit codes.

mod admin;
mod embedded_metrics;
mod logs;
pub mod metrics;
mod server;
pub mod status;
pub mod traces;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;

use crate::backend::BackendError;
use status::Setting;

pub use admin::{NotReady, Ready, admin_router};
pub use embedded_metrics::{EmbeddedMetrics, EmbeddedMetricsArgs};
pub use logs::{LogArgs, LogFormat, Over, Trouble, failed, init_logs};
pub use metrics::{Metrics, init_metrics, metrics_upkeep};
pub use server::serve;
pub use traces::{TraceArgs, Traces, init_logs_and_traces, warn_of_no_traces};

/// Exit code of a service that stopped for a reason other than a signal.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of a service that was given settings it cannot work with.
pub const EXIT_CONFIGURATION: u8 = 2;

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

fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(cause.downcast_ref::<BackendError>(), Some(BackendError::Misconfigured(_)))
    })
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
