//! Everything that a developer needs to try the pipeline, kept running on this machine.

mod guide;
mod ports;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;
use shared::service::{self, EXIT_CONFIGURATION};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::log_watch::LogWatch;
use crate::service_process::{ServiceProcess, ServiceSettings};
use ports::{PortArgs, Ports};

const SANDBOX_KEY: &str = "sandbox-key";
const LOGS_EVERY: Duration = Duration::from_millis(200);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a local bus, a worker, a stand-in for Amberflo and the control API until Ctrl-C, and says how to use them.
///
/// Exit codes: 0 stopped after a signal, 2 a port is taken, 1 anything else.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    /// Where stream, dead letters and logs are kept, for the next run too. (The stand-in for Amberflo forgets its meters
    /// and its bill all the same.) Default: a temporary directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    ports: PortArgs,
}

/// Runs until a signal, or until something ends by itself.
///
/// # Errors
/// When something could not be started, ended by itself, or did not stop in time.
pub async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    let mut signals = service::signals()?;
    let ports = match Ports::reserve(&args.ports).await {
        Ok(ports) => ports,
        Err(taken) => {
            eprintln!("loadtest: {taken}");
            return Ok(EXIT_CONFIGURATION.into());
        }
    };
    let directory = Directory::open(args.dir.as_deref())?;
    // Dropping what runs kills it. Nobody has used it yet.
    let stage = tokio::select! {
        stage = Stage::set(&directory, ports) => stage,
        _ = signals.recv() => return Ok(ExitCode::SUCCESS),
    };
    let result = match stage {
        Ok(stage) => stage.run(&directory, &mut signals).await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        directory.keep();
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Where everything is kept.
enum Directory {
    Given(PathBuf),
    Temporary(TempDir),
}

impl Directory {
    fn open(given: Option<&Path>) -> anyhow::Result<Self> {
        let Some(given) = given else {
            let directory = tempfile::Builder::new().prefix("metering-dev-").tempdir();
            return Ok(Self::Temporary(directory.context("no temporary directory")?));
        };
        let directory = std::path::absolute(given)?;
        std::fs::create_dir_all(&directory).with_context(|| format!("--dir {}", directory.display()))?;
        Ok(Self::Given(directory))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }

    /// Leaves the logs to whoever wants to know what went wrong.
    fn keep(self) {
        if let Self::Temporary(directory) = self {
            eprintln!("stream and logs are left in {}", directory.keep().display());
        }
    }
}

/// All that runs. In order of dropping: what uses another goes before it.
struct Stage {
    control_api: ServiceProcess,
    worker: ServiceProcess,
    sandbox: SandboxServer,
    logs: [LogWatch; 2],
}

struct SandboxServer {
    address: SocketAddr,
    server: JoinHandle<std::io::Result<()>>,
    stop: CancellationToken,
}

impl Stage {
    async fn set(directory: &Directory, ports: Ports) -> anyhow::Result<Self> {
        let Ports { sandbox, worker, control_api } = ports;
        let sandbox = SandboxServer::start(sandbox)?;
        let (directory, bus) = (directory.path(), worker.addresses()?.listen);
        let worker_settings = ServiceSettings::ingest_worker(directory, sandbox.address);
        let control_api_settings = ServiceSettings::control_api(directory, sandbox.address, bus);
        std::fs::write(worker_settings.key_file(), SANDBOX_KEY)?;
        let logs = [&worker_settings, &control_api_settings].map(LogWatch::new);
        let worker = start(worker_settings, worker).await?;
        let control_api = start(control_api_settings, control_api).await?;
        create_meter(control_api.listen()).await?;
        Ok(Self { control_api, worker, sandbox, logs })
    }

    /// Shows what the logs say until a signal comes, then stops everything.
    async fn run(mut self, directory: &Directory, signals: &mut UnboundedReceiver<&'static str>) -> anyhow::Result<()> {
        println!("{}", self.guide(directory));
        let mut tick = interval(LOGS_EVERY);
        let failure = loop {
            tokio::select! {
                _ = tick.tick() => self.show_logs(),
                _ = signals.recv() => break None,
                failure = self.worker.failure() => break Some(told(failure, self.worker.settings())),
                failure = self.control_api.failure() => break Some(told(failure, self.control_api.settings())),
                ended = &mut self.sandbox.server => bail!("the sandbox ended by itself: {ended:?}"),
            }
        };
        println!("\nstopping; a second Ctrl-C ends everything at once");
        let stopped = tokio::select! {
            stopped = self.stop() => stopped,
            _ = signals.recv() => bail!("second signal: ended at once"),
        };
        self.show_logs();
        match failure {
            // The others may not have stopped well because of it.
            Some(failure) => Err(failure),
            None => stopped.inspect(|()| println!("stopped")),
        }
    }

    /// In this order nothing loses what it still needs.
    async fn stop(&mut self) -> anyhow::Result<()> {
        let control_api = stop(&mut self.control_api).await;
        let worker = stop(&mut self.worker).await;
        self.sandbox.stop.cancel();
        (&mut self.sandbox.server).await.context("the sandbox failed")?.context("the sandbox failed")?;
        control_api.and(worker)
    }

    fn show_logs(&mut self) {
        for line in self.logs.iter_mut().flat_map(LogWatch::news) {
            eprintln!("{line}");
        }
    }

    fn guide(&self, directory: &Directory) -> String {
        guide::Guide {
            bus: self.worker.listen(),
            worker_admin: self.worker.admin(),
            sandbox: self.sandbox.address,
            control_api: self.control_api.listen(),
            control_api_admin: self.control_api.admin(),
            directory: directory.path(),
            is_removed: matches!(directory, Directory::Temporary(_)),
            logs: [self.worker.settings().log_file(), self.control_api.settings().log_file()],
        }
        .to_string()
    }
}

impl SandboxServer {
    fn start(listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let sandbox = Sandbox::new(SandboxConfig::default());
        let serve = amberflo_sandbox::serve(listener, sandbox, stop.clone().cancelled_owned());
        Ok(Self { address, server: tokio::spawn(serve), stop })
    }
}

/// Usage of a meter that nobody has defined cannot be asked for.
async fn create_meter(control_api: SocketAddr) -> anyhow::Result<()> {
    let meter = json!({ "label": "API calls", "meterApiName": guide::METER, "meterType": "sum_of_all_usage" });
    let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
    let request = http.post(format!("http://{control_api}/meters")).header(CONTENT_TYPE, "application/json");
    let answer = request.body(meter.to_string()).send().await.context("the meter cannot be created")?;
    let status = answer.status();
    ensure!(status == StatusCode::CREATED, "the meter cannot be created: {status} {}", answer.text().await?);
    Ok(())
}

async fn start(settings: ServiceSettings, reserved: ports::Pair) -> anyhow::Result<ServiceProcess> {
    let addresses = reserved.addresses()?;
    drop(reserved);
    let process = ServiceProcess::start_on(settings.clone(), addresses).await;
    process.map_err(|error| told(error, &settings))
}

async fn stop(process: &mut ServiceProcess) -> anyhow::Result<()> {
    let status = process.terminate().await?;
    ensure!(status.success(), "the {} drained with {status} instead of exit code 0", process.settings().service);
    Ok(())
}

fn told(error: anyhow::Error, settings: &ServiceSettings) -> anyhow::Error {
    anyhow::anyhow!("{error:#}\n{} ends with:\n{}", settings.log_file().display(), settings.log_tail())
}
