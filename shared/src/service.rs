//! What every service needs around its work: logs, traces, metrics, health endpoints, signals, exit codes.

mod logs;
mod server;
pub mod traces;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Parser;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::backend::BackendError;

pub use logs::{LogArgs, LogFormat, Over, Trouble, failed, init_logs};
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

/// Parses a program's arguments.
///
/// # Errors
/// The code to exit with where they are not to be worked with, or ask for help; that is said already.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, ExitCode> {
    C::try_parse_from(args).map_err(|error| {
        let code = if error.use_stderr() { EXIT_CONFIGURATION } else { 0 };
        let _ = error.print();
        code.into()
    })
}

fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(cause.downcast_ref::<BackendError>(), Some(BackendError::Misconfigured(_)))
    })
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

/// Whether the service does its work at the moment.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<ReadyState>);

#[derive(Debug, Default)]
struct ReadyState {
    is_ready: AtomicBool,
    is_closed: AtomicBool,
}

impl Ready {
    /// Sets what /ready answers.
    pub fn set(&self, ready: bool) {
        self.0.is_ready.store(ready, Ordering::Relaxed);
    }

    /// From now on /ready says no, whatever is set: the service drains.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
    }

    /// What /ready answers.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.is_ready.load(Ordering::Relaxed) && !self.0.is_closed.load(Ordering::Relaxed)
    }
}

/// /health (the process runs), /ready (it does its work) and /metrics (Prometheus text).
pub fn admin_router(metrics: PrometheusHandle, ready: Ready) -> Router {
    let process = metrics_process::Collector::default();
    Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route(
            "/ready",
            get(move || async move {
                if ready.get() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                process.collect();
                metrics.render()
            }),
        )
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
