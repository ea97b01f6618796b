//! Worker processes with default settings on stand-ins for AWS: leases and dead letters in moto, a stream of ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use anyhow::Context as _;
use emulators::{Moto, create_queue};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::service_process::{ServiceProcess, ServiceSettings};

const POLL: Duration = Duration::from_millis(5);

/// What the workers share.
pub struct Fleet {
    /// Where DynamoDB answers.
    pub moto: Moto,
    queue: String,
    directory: TempDir,
}

/// Where a worker works.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Where Kinesis answers.
    pub kinesis: &'a str,
    /// Where DynamoDB answers.
    pub dynamodb: &'a str,
    /// The stream; its leases have a table of their own.
    pub stream: &'a str,
}

/// A worker with an Amberflo for itself, which tells its deliveries from those of others.
pub struct FleetWorker {
    /// The process.
    pub process: ServiceProcess,
    sandbox: Sandbox,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

impl Fleet {
    /// Starts moto.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn start() -> Result<Self, String> {
        let moto = Moto::start().await?;
        let queue = create_queue(&moto.url, "dead-letters").await;
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        Ok(Self { moto, queue, directory })
    }

    /// Starts a worker and waits until it is ready: it then has looked at the leases, and taken those that it can.
    pub async fn worker(&self, place: Place<'_>, settings: &[(&'static str, &str)]) -> anyhow::Result<FleetWorker> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let amberflo = listener.local_addr()?;
        let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
        let serve = amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending());
        let server = AbortOnDropHandle::new(tokio::spawn(serve));
        let settings = self.settings(place, amberflo, settings)?;
        let process = ServiceProcess::start(settings.clone()).await;
        let process = process.with_context(|| format!("the worker's log ends with:\n{}", settings.log_tail()))?;
        Ok(FleetWorker { process, sandbox, _server: server })
    }

    /// How a worker is set up that delivers to `amberflo`.
    pub fn settings(
        &self,
        place: Place<'_>,
        amberflo: SocketAddr,
        settings: &[(&'static str, &str)],
    ) -> anyhow::Result<ServiceSettings> {
        let mut env = emulators::environment(place.kinesis, &self.moto.url);
        env.extend([
            ("AWS_ENDPOINT_URL_DYNAMODB", place.dynamodb.to_owned()),
            ("STREAM", format!("kinesis:{}", place.stream)),
            ("LEASE_TABLE", format!("leases-{}", place.stream)),
            ("CREATE_LEASE_TABLE", "true".to_owned()),
            ("DEAD_LETTER_QUEUE", self.queue.clone()),
        ]);
        env.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let dir = tempfile::tempdir_in(self.directory.path())?.keep();
        let settings = ServiceSettings { env, ..ServiceSettings::ingest_worker(&dir, amberflo) };
        std::fs::write(settings.key_file(), "sandbox-key")?;
        Ok(settings)
    }
}

impl FleetWorker {
    /// Whether it has begun to deliver.
    pub fn has_delivered(&self) -> bool {
        self.sandbox.stats().requests > 0
    }

    /// Events that were billed.
    pub fn delivered(&self) -> u64 {
        self.sandbox.ledger().events
    }
}

/// Asks until there is an answer.
pub async fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(POLL).await;
    }
}
