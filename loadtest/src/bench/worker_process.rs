//! A worker in a process of its own, with a backlog in its local store and the sandbox behind a socket in ours.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use anyhow::Context as _;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{NewRecord, Stream as _};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::measure::{cpu_time_of, grouped, heading, mebibytes, memory_of, row};
use super::payload::Generator;
use crate::service_process::Service;

const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// Longer without a delivery: something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const PUBLISH_AT_ONCE: usize = 2000;

/// Prints a worker's memory while it works as fast as it can.
pub async fn memory(backlog: usize) -> anyhow::Result<()> {
    let seen = drain(backlog, &["--rate-requests-per-second", "0"]).await?;
    heading(
        "Worker process under full load: memory",
        &[
            &format!("{} events waiting in the local store; default settings, but no request rate limit", seen.backlog),
            "sandbox over a loopback socket, in the process of the benchmark, on the same cores",
        ],
    );
    let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), mebibytes);
    row("VmRSS, most of all samples", [bytes(seen.most_resident)]);
    row("VmHWM (the kernel's own peak)", [bytes(seen.peak_resident)]);
    row("VmRSS before the first delivery", [bytes(seen.idle_resident)]);
    seen.print_speed();
    Ok(())
}

/// Prints how fast a worker is with default settings.
pub async fn limits(backlog: usize) -> anyhow::Result<()> {
    let seen = drain(backlog, &[]).await?;
    heading(
        "Worker process with default limits: throughput",
        &[&format!(
            "{} events waiting; 10 requests/s, batches of 1000, 8 in flight: at most 10,000 events/s",
            seen.backlog
        )],
    );
    seen.print_speed();
    row("requests", [grouped(seen.requests as f64)]);
    row("most requests in one second", [grouped(seen.most_requests_in_a_second as f64)]);
    Ok(())
}

/// What was seen of a worker from its first delivery to its last.
struct Seen {
    backlog: usize,
    delivered: u64,
    elapsed: Duration,
    cpu: Option<Duration>,
    idle_resident: Option<u64>,
    most_resident: Option<u64>,
    peak_resident: Option<u64>,
    requests: u64,
    most_requests_in_a_second: usize,
}

impl Seen {
    fn print_speed(&self) {
        let each = |time: Duration| format!("{} events/s", grouped(self.delivered as f64 / time.as_secs_f64()));
        row("delivered", [each(self.elapsed)]);
        row("delivered per CPU second of the worker", [self.cpu.map_or("-".to_owned(), each)]);
    }
}

/// Lets a worker drain `backlog` events.
async fn drain(backlog: usize, settings: &[&str]) -> anyhow::Result<Seen> {
    let directory = tempfile::tempdir()?;
    publish(directory.path(), backlog).await?;
    let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), stop.clone().cancelled_owned()));
    let mut worker = start(directory.path(), &url, settings)?;
    let seen = watch(&mut worker, &sandbox, backlog).await;
    // It is done, or it is broken: a drain would show nothing more.
    worker.kill().await?;
    stop.cancel();
    server.await??;
    seen
}

fn start(directory: &Path, url: &str, settings: &[&str]) -> anyhow::Result<Child> {
    let stream = format!("local:{}", directory.display());
    Command::new(std::env::current_exe()?)
        .arg(Service::IngestWorker.name())
        .args(["--stream", &stream, "--amberflo-base-url", url, "--amberflo-api-key", "sandbox-key"])
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log", "error"])
        .args(settings)
        // Settings in our environment are not meant for it, but for those of traces: it is measured what they cost.
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("the worker could not be started")
}

async fn watch(worker: &mut Child, sandbox: &Sandbox, backlog: usize) -> anyhow::Result<Seen> {
    let process = worker.id().context("the worker has ended")?;
    let resident = || memory_of(process).map(|memory| memory.now);
    let (mut idle_resident, mut most_resident) = (None, None);
    let mut first = None;
    let mut latest = (0, Instant::now());
    loop {
        let delivered = sandbox.ledger().events;
        if delivered > latest.0 {
            latest = (delivered, Instant::now());
            first = first.or(Some((delivered, latest.1, cpu_time_of(process))));
        }
        most_resident = most_resident.max(resident());
        if first.is_none() {
            idle_resident = resident();
        }
        if delivered >= backlog as u64 {
            break;
        }
        if let Some(status) = worker.try_wait()? {
            anyhow::bail!("the worker ended: {status}");
        }
        anyhow::ensure!(latest.1.elapsed() < PATIENCE, "{delivered} of {backlog} events delivered, then no more");
        sleep(SAMPLE_EVERY).await;
    }
    let (before, since, cpu_before) = first.context("nothing was delivered")?;
    let stats = sandbox.stats();
    Ok(Seen {
        backlog,
        delivered: latest.0 - before,
        elapsed: latest.1 - since,
        cpu: cpu_time_of(process).zip(cpu_before).map(|(now, before)| now - before),
        idle_resident,
        most_resident,
        peak_resident: memory_of(process).map(|memory| memory.peak),
        requests: stats.requests,
        most_requests_in_a_second: stats.max_requests_in_one_second,
    })
}

async fn publish(directory: &Path, events: usize) -> anyhow::Result<()> {
    let store = LocalStore::open(directory, LocalOptions::default())?;
    let mut generator = Generator::new();
    let mut left = events;
    while left > 0 {
        let count = left.min(PUBLISH_AT_ONCE);
        left -= count;
        let record = |generator: &mut Generator| {
            let event = generator.event();
            NewRecord { data: generator.envelope(&event), partition_key: event.tenant }
        };
        store.publish((0..count).map(|_| record(&mut generator)).collect()).await?;
    }
    Ok(())
}
