//! The program itself: the real binary as a child process, against a sandbox on a real socket.

mod browser;
mod configuration;
mod crash;
mod health;
mod hostile;
mod logs;
mod metrics;
pub mod redrive;
mod service;
mod status;
mod traces;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use reqwest::StatusCode;
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::dead_letter::DeadLetter;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Generous: the machine may be busy with the other tests. Nothing here asserts that something is fast.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Never to be seen in any output.
pub const KEY: &str = "k3y-that-must-stay-secret";

/// A sandbox on a free port of the loopback interface.
pub struct Amberflo {
    pub sandbox: Sandbox,
    pub url: String,
    server: JoinHandle<()>,
}

impl Amberflo {
    pub async fn start() -> Self {
        let api_keys = [KEY.to_owned()].into();
        let sandbox = Sandbox::new(SandboxConfig { api_keys, request_log: 100_000, ..SandboxConfig::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending());
        let server = tokio::spawn(async { serving.await.unwrap() });
        Self { sandbox, url, server }
    }

    /// Waits until `events` are billed, and checks that each was billed once.
    pub async fn billed(&self, events: u64) {
        eventually("the ledger to be complete", async || self.sandbox.ledger().events >= events).await;
        self.assert_billed_once(events);
    }

    pub fn assert_billed_once(&self, events: u64) {
        let ledger = self.sandbox.ledger();
        assert_eq!(ledger.events, events);
        let wrong = [ledger.absorbed_with_other_bytes, ledger.conflicting_copies, ledger.billed_again];
        assert_eq!(wrong, [0; 3], "billed twice, or copies with other bytes");
    }
}

impl Drop for Amberflo {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The command with nothing of the developer's environment, and this directory's files.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingest-worker"));
    command.env_clear().current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end.
pub async fn run(command: &mut Command) -> Output {
    timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running worker on a directory.
pub struct Process {
    pub bus: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    log: PathBuf,
}

/// A directory for a store, and what a worker on it is told.
pub struct Site {
    pub dir: TempDir,
    environment: Vec<(String, String)>,
    starts: std::cell::Cell<u32>,
}

impl Site {
    pub fn new(amberflo: &Amberflo) -> Self {
        let dir = TempDir::new().unwrap();
        let site = Self { dir, environment: Vec::new(), starts: std::cell::Cell::new(0) };
        site.with("AMBERFLO_BASE_URL", &amberflo.url)
            .with("AMBERFLO_API_KEY", KEY)
            .with("STREAM", "local:store")
            .with("BATCH_LINGER", "50ms")
            .with("RATE_REQUESTS_PER_SECOND", "0")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A second handle on the store.
    pub fn store(&self) -> LocalStore {
        LocalStore::open(&self.store_dir(), LocalOptions::default()).unwrap()
    }

    pub async fn letters(&self) -> Vec<DeadLetter> {
        let letters = self.store().peek_dead_letters(0, 100_000).await.unwrap();
        letters.into_iter().map(|(_, letter)| letter).collect()
    }

    pub fn command(&self) -> Command {
        let mut command = command(self.dir.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a worker and waits until it is ready.
    pub async fn start(&self) -> Process {
        let process = self.start_unready().await;
        eventually("the worker to be ready", async || process.admin_status("ready").await == Some(200)).await;
        process
    }

    /// Starts a worker and waits until it answers.
    pub async fn start_unready(&self) -> Process {
        self.start_at(free_address().await, free_address().await).await
    }

    /// Starts a worker that listens there, and waits until it answers.
    pub async fn start_at(&self, bus: SocketAddr, admin: SocketAddr) -> Process {
        self.starts.set(self.starts.get() + 1);
        let log = self.dir.path().join(format!("log-{}", self.starts.get()));
        let child = self
            .command()
            .env("LISTEN", bus.to_string())
            .env("ADMIN_LISTEN", admin.to_string())
            .stdout(std::fs::File::create(log.with_extension("out")).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut process = Process { bus, admin, child, log };
        let since = Instant::now();
        while process.admin_status("health").await != Some(200) {
            let ended = process.child.try_wait().unwrap();
            if ended.is_some() && process.logs().contains("cannot listen on") {
                // Another process of the machine was faster to take a port that was free: again, with others.
                return Box::pin(self.start_unready()).await;
            }
            assert!(ended.is_none() && since.elapsed() < PATIENCE, "{ended:?}\n{}", process.logs());
            sleep(Duration::from_millis(20)).await;
        }
        process
    }
}

impl Process {
    /// What it wrote to standard error and standard output.
    pub fn logs(&self) -> String {
        let read = |path: &Path| text(&std::fs::read(path).unwrap());
        read(&self.log) + &read(&self.log.with_extension("out"))
    }

    /// The lines it wrote to standard error.
    pub fn log_lines(&self) -> Vec<String> {
        text(&std::fs::read(&self.log).unwrap()).lines().map(str::to_owned).collect()
    }

    pub async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it has ended").to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap();
        assert!(status.success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let status = timeout(PATIENCE, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("it does not end\n{}", self.logs())).unwrap()
    }

    /// SIGTERM and the end, which must be a clean one.
    pub async fn drain(mut self) -> String {
        self.signal("TERM").await;
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.logs());
        let logs = self.logs();
        assert!(!logs.contains("panicked"), "{logs}");
        assert!(!logs.contains(KEY), "the API key is in the logs");
        logs
    }

    pub async fn admin_status(&self, path: &str) -> Option<u16> {
        client().get(format!("http://{}/{path}", self.admin)).send().await.ok().map(|answer| answer.status().as_u16())
    }

    /// A scrape, in which the flow balances, whatever goes on.
    pub async fn metrics(&self) -> Metrics {
        self.metrics_while_it_runs().await.expect("it does not answer")
    }

    /// `None` once it has ended.
    pub async fn metrics_while_it_runs(&self) -> Option<Metrics> {
        let answer = client().get(format!("http://{}/metrics", self.admin)).send().await.ok()?;
        let metrics = Metrics(answer.text().await.ok()?);
        let ended = metrics.sum("ingest_events_total") + metrics.sum("ingest_in_flight_records");
        assert_eq!(metrics.sum("ingest_records_read_total"), ended, "the flow does not balance\n{}", metrics.0);
        Some(metrics)
    }

    /// Puts events, ten a request, as an SDK does: what is not accepted is put again.
    pub async fn put(&self, details: &[Value]) {
        for chunk in details.chunks(10) {
            let entries: Vec<_> = chunk.iter().map(|detail| entry(&detail.to_string())).collect();
            let (status, body) = self.put_entries(&json!(entries)).await.unwrap();
            assert_eq!((status, &body["FailedEntryCount"]), (StatusCode::OK, &json!(0)), "{body}");
        }
    }

    pub async fn put_entries(&self, entries: &Value) -> reqwest::Result<(StatusCode, Value)> {
        let request = client()
            .post(format!("http://{}/", self.bus))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "AWSEvents.PutEvents")
            .body(json!({ "Entries": entries }).to_string());
        let answer = request.send().await?;
        let status = answer.status();
        Ok((status, serde_json::from_slice(&answer.bytes().await?).unwrap()))
    }
}

/// Prometheus text.
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all series of this name, which may have labels given.
    pub fn sum(&self, name: &str) -> f64 {
        let matches = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| name.contains('{') || rest.starts_with(['{', ' ']))
        };
        self.0.lines().filter(matches).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// How many series there are in all.
    pub fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count()
    }
}

pub fn entry(detail: &str) -> Value {
    json!({"Source": "app", "DetailType": "ingestUsage", "Detail": detail})
}

/// A usage event; `n` is its idempotency key and its value.
pub fn usage(n: u64) -> Value {
    json!({"tenantId": format!("tenant-{}", n % 7), "meterApiName": "calls", "meterValue": n, "uniqueId": n.to_string()})
}

pub fn usages(numbers: std::ops::Range<u64>) -> Vec<Value> {
    numbers.map(usage).collect()
}

pub fn client() -> reqwest::Client {
    // reqwest wants one even where nothing is encrypted; a second installation fails and is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap()
}

/// An address that was free a moment ago.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(25)).await;
    }
}
