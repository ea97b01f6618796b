//! The program: settings in, a worker until a signal, a drain with a deadline, an exit code out.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shared::amberflo::{Client, HttpTransport};
use shared::api_key::ApiKeys;
use shared::backend::local::LocalStore;
use shared::backend::{DeadLetters, Stream};
use shared::backends::{Kind, api_keys};
use shared::clock::Clock;
use shared::service::status::{Setting, StatusPage};
use shared::service::{self, EXIT_FAILURE, Ready};
use shared::settings::{StreamName, warn_of_clear_text};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::backends;
use crate::config::{Cli, Command, Settings};
use crate::context::Common;
use crate::dedup::KeyBudget;
use crate::lease::RELEASE_TIMEOUT;
use crate::limiter::Limiter;
use crate::meters::MeterBudget;
use crate::reader::Buffer;
use crate::submit::BodyLimit;
use crate::worker::Worker;
use crate::{bus, health, metrics, operator, status};

const PRUNE_INTERVAL: Duration = Duration::from_secs(30);
/// Settled batches wait for older ones: room for this many keeps a shard going while one of its batches is searched for
/// a bad record.
const IN_ORDER_PER_IN_FLIGHT: usize = 4;

/// Runs the program with these arguments, the first of which is its name.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (cli, told): (Cli, Vec<Setting>) = match service::parse_told(args) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let logs = cli.settings.logs.clone();
    let result = match cli.command {
        Some(Command::DeadLetters(command)) => operator::dead_letters(&cli.settings, command).await,
        Some(Command::Leases(command)) => operator::leases(&cli.settings, command).await,
        Some(Command::Health) => health::check(cli.settings.admin_listen).await.map(|()| {
            // It is the exit code that is asked for: nobody has to read this.
            let _ = writeln!(io::stdout(), "healthy");
            ExitCode::SUCCESS
        }),
        None => work(&cli.settings, told).await,
    };
    result.unwrap_or_else(|error| service::failed("ingest-worker", &error, &logs))
}

async fn work(settings: &Settings, told: Vec<Setting>) -> anyhow::Result<ExitCode> {
    let traces = service::init_logs_and_traces(&settings.logs, &settings.traces, "ingest-worker")?;
    let result = run(settings, told).await;
    traces.end().await;
    result
}

/// The worker, from its first check to its last release.
async fn run(settings: &Settings, told: Vec<Setting>) -> anyhow::Result<ExitCode> {
    settings.check()?;
    if matches!(settings.backends.stream, StreamName::Kinesis(_)) {
        settings.backends.queue()?;
    }
    let key = settings.amberflo.key()?;
    let registry = service::init_metrics("ingest-worker", metrics::STEPPED)?;
    metrics::describe();
    let mut signals = service::signals()?;

    let keys = api_keys(key).await?;
    let _lock = match &settings.backends.stream {
        StreamName::Local(directory) => Some(
            LocalStore::try_lock_worker(directory).with_context(|| format!("STREAM: {}", settings.backends.stream))?,
        ),
        StreamName::Kinesis(_) => None,
    };
    let backends = backends::open(settings).await?;
    let dead_letters = backends.dead_letters(&settings.backends).await?;
    let leases = backends::leases(&backends, settings).await?;
    let (store, stream_arn) = match &backends.kind {
        Kind::Local(store) => (Some(store.clone()), None),
        Kind::Aws { stream, .. } => (None, Some(stream.arn().to_owned())),
    };
    let bus_listener = match &store {
        Some(_) => Some(service::bind("LISTEN", settings.listen).await?),
        None => None,
    };
    let admin_listener = service::bind("ADMIN_LISTEN", settings.admin_listen).await?;
    let queue = Arc::clone(&dead_letters);
    let common = Arc::new(common(settings, backends.stream, dead_letters, keys.clone())?);
    let bus_address = bus_listener.as_ref().map(TcpListener::local_addr).transpose()?;
    log_start(settings, &common, stream_arn, bus_address, admin_listener.local_addr()?);

    let ready = Ready::default();
    let status = StatusPage::new(status::view(Arc::clone(&common), admin_listener.local_addr()?, told));
    let worker = Worker {
        common,
        leases,
        failover: settings.failover_time,
        initial_position: settings.initial_position.resolve(Clock::system()),
        // The lock on the directory proves it.
        is_alone: store.is_some(),
        ready: ready.clone(),
    };
    let stop = CancellationToken::new();
    // Ends after the worker: while a drain runs, /health and /metrics still answer.
    let end = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut background = JoinSet::new();
    background.spawn(status.keep_history(registry.clone()));
    let admin = service::admin_router(registry.clone(), ready, status);
    servers.spawn(service::serve(admin_listener, admin, end.clone().cancelled_owned()));
    background.spawn(service::metrics_upkeep(registry));
    background.spawn(metrics::watch_dead_letters(queue));
    if let (Some(listener), Some(store)) = (bus_listener, store) {
        let bus = bus::router(Arc::new(store.clone()), Clock::system());
        servers.spawn(service::serve(listener, bus, stop.clone().cancelled_owned()));
        background.spawn(async move { store.keep_pruned(PRUNE_INTERVAL).await });
    }
    let refresh = settings.amberflo.api_key_refresh;
    background.spawn(async move { keys.refresh_every(refresh).await });

    let mut worker = tokio::spawn(worker.run(stop.clone()));
    tokio::select! {
        Some(signal) = signals.recv() => tracing::info!(signal, "draining"),
        Some(ended) = servers.join_next() => {
            ended.context("a server failed")?.context("a server failed")?;
            anyhow::bail!("a server ended by itself");
        }
        Some(ended) = background.join_next() => anyhow::bail!("a background task ended by itself: {ended:?}"),
        ended = &mut worker => {
            ended.context("the worker failed")??;
            anyhow::bail!("the worker ended by itself");
        }
    }
    stop.cancel();
    tokio::select! {
        drained = timeout(settings.shutdown_grace.max(RELEASE_TIMEOUT) + RELEASE_TIMEOUT, worker) => {
            drained.context("the drain took longer than SHUTDOWN_GRACE")?.context("the worker failed")??;
        }
        Some(signal) = signals.recv() => {
            tracing::warn!(signal, "second signal: ending at once; what is in flight is read again");
            return Ok(EXIT_FAILURE.into());
        }
    }
    end.cancel();
    // Clients that keep a connection open do not hold the process.
    let _ = timeout(Duration::from_millis(500), async { while servers.join_next().await.is_some() {} }).await;
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}

/// What all shards share, by these settings.
pub(crate) fn common(
    settings: &Settings,
    stream: Arc<dyn Stream>,
    dead_letters: Arc<dyn DeadLetters>,
    keys: ApiKeys,
) -> anyhow::Result<Common> {
    let transport = HttpTransport::new(settings.request_timeout).context("the HTTP client cannot start")?;
    let clock = Clock::system();
    Ok(Common {
        worker: settings.worker_id(),
        stream_name: settings.backends.stream.to_string(),
        stream,
        dead_letters,
        client: Client::new(Box::new(transport), &settings.ingest_url(), keys.subscribe(), clock),
        keys,
        limiter: Limiter::new(settings.max_in_flight, settings.rate_requests_per_second),
        body_limit: BodyLimit::default(),
        meters: MeterBudget::new(settings.meter_hourly_budget),
        dedup_keys: KeyBudget::new(settings.dedup_max_keys.get()),
        buffer: Buffer::new(usize::try_from(settings.buffer_max_bytes.as_u64()).unwrap_or(usize::MAX)),
        rules: settings.events.rules(),
        batch: settings.batch_limits(),
        max_in_flight: settings.max_in_flight.get() as usize,
        max_in_order: IN_ORDER_PER_IN_FLIGHT * settings.max_in_flight.get() as usize,
        dedup_window: settings.dedup_window,
        // A worker that has asked for a lease waits for six failover times, and then takes it.
        drain: settings.shutdown_grace.saturating_sub(RELEASE_TIMEOUT).min(5 * settings.failover_time),
        board: status::Board::default(),
        clock,
    })
}

fn log_start(
    settings: &Settings,
    common: &Common,
    stream_arn: Option<String>,
    bus: Option<SocketAddr>,
    admin: SocketAddr,
) {
    let per_second = settings.rate_requests_per_second * settings.batch_max_events.get() as f64;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        worker = %common.worker,
        pid = std::process::id(),
        stream = %settings.backends.stream,
        stream_arn,
        lease_table = stream_arn.as_ref().map(|_| &settings.lease_table),
        dead_letter_queue = settings.backends.dead_letter_queue,
        failover = ?settings.failover_time,
        dedup_window = ?settings.dedup_window,
        ingest_url = settings.ingest_url(),
        put_events = bus.map(|bus| format!("http://{bus}")),
        admin = format!("http://{admin}"),
        events_per_second_ceiling = if per_second > 0.0 { per_second.to_string() } else { "none".to_owned() },
        "started"
    );
    warn_of_clear_text(&settings.ingest_url());
}
