//! A real service in a process of its own, so that it can be killed as a real one would be.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use shared::service::EXIT_CONFIGURATION;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::scrape::Scraper;

/// Starts are tried so often: a port that was free a moment ago may be taken.
const START_ATTEMPTS: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
/// Longer than a service's own limit for a drain.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 40;

/// A program of the pipeline. This program is each of them under a hidden subcommand of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The worker.
    IngestWorker,
    /// The admin API.
    ControlApi,
}

impl Service {
    /// The program's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IngestWorker => "ingest-worker",
            Self::ControlApi => "control-api",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a service is set up; a restart uses the same.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// Which program it is.
    pub service: Service,
    /// A directory for the stream, the log and the key; services that work together share it.
    pub dir: PathBuf,
    /// Where it finds Amberflo.
    pub amberflo: SocketAddr,
    /// Further settings, as environment variables.
    pub env: Vec<(&'static str, String)>,
}

impl ServiceSettings {
    /// A worker on the stream in `dir`, with default settings.
    #[must_use]
    pub fn ingest_worker(dir: &Path, amberflo: SocketAddr) -> Self {
        Self { service: Service::IngestWorker, dir: dir.to_owned(), amberflo, env: Vec::new() }
    }

    /// A control API beside the worker whose bus is `bus`, open to whoever reaches its loopback address.
    #[must_use]
    pub fn control_api(dir: &Path, amberflo: SocketAddr, bus: SocketAddr) -> Self {
        let env = vec![
            ("AUTH", "none".to_owned()),
            ("AWS_ENDPOINT_URL_EVENTBRIDGE", format!("http://{bus}")),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "local".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "local".to_owned()),
        ];
        Self { service: Service::ControlApi, dir: dir.to_owned(), amberflo, env }
    }

    /// The directory of the local stream.
    #[must_use]
    pub fn stream_dir(&self) -> PathBuf {
        self.dir.join("stream")
    }

    /// The file that holds the API key.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("api-key")
    }

    /// The file to which it logs.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.service))
    }

    /// Runs a command of the program, such as `dead-letters list`, and answers what it printed.
    ///
    /// # Errors
    /// When it fails, or has not ended after `limit`.
    pub async fn run(&self, args: &[&str], limit: Duration) -> anyhow::Result<String> {
        let what = || format!("{} {}", self.service, args.join(" "));
        let output = timeout(limit, self.command()?.args(args).output()).await;
        let output = output.with_context(|| format!("{} still runs after {limit:?}", what()))?.with_context(what)?;
        let told = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {}: {}", what(), output.status, told.trim_end());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self) -> anyhow::Result<Command> {
        let path = |path: &Path| path.display().to_string();
        // A key from elsewhere, such as Secrets Manager, takes the file's place: both would be one too many.
        let has_secret = self.env.iter().any(|(name, _)| *name == "API_KEY_SECRET_NAME");
        let key_file = (!has_secret).then(|| ("AMBERFLO_API_KEY_FILE", path(&self.key_file())));
        let mut command = Command::new(std::env::current_exe().context("this program does not know where it is")?);
        command
            .arg(self.service.name())
            // A proxy or a key in the caller's shell is none of the service's business.
            .env_clear()
            .env("STREAM", format!("local:{}", path(&self.stream_dir())))
            .env("AMBERFLO_BASE_URL", format!("http://{}", self.amberflo))
            .envs(key_file)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // Ctrl-C in the terminal is for us; we end the service when its time has come.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// What it logged last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Where a service answers.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Its work: PutEvents, or the API.
    pub listen: SocketAddr,
    /// Its health and metrics.
    pub admin: SocketAddr,
}

/// A running service. Dropping it kills the process.
pub struct ServiceProcess {
    settings: ServiceSettings,
    addresses: Addresses,
    scraper: Scraper,
    child: Child,
}

enum StartError {
    /// Exit code 2: most likely a port was taken.
    Configuration,
    Other(anyhow::Error),
}

impl ServiceProcess {
    /// Starts it on free ports and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn start(settings: ServiceSettings) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            let addresses = free_ports().await?;
            match launch(&settings, addresses).await {
                Ok((child, scraper)) => return Ok(Self { settings, addresses, scraper, child }),
                Err(StartError::Configuration) if attempt < START_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.told(settings.service)),
            }
        }
    }

    /// Starts it on these ports and waits until it is ready.
    ///
    /// # Errors
    /// As for [`ServiceProcess::start`].
    pub async fn start_on(settings: ServiceSettings, addresses: Addresses) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            match launch(&settings, addresses).await {
                Ok((child, scraper)) => return Ok(Self { settings, addresses, scraper, child }),
                // The old socket, or another program that was lent the port for a moment.
                Err(StartError::Configuration) if attempt < START_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.told(settings.service)),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Starts it on these ports and does not wait: amid faults it may take its time, or end again.
    ///
    /// # Errors
    /// When there can be no such process.
    pub fn spawn_on(settings: ServiceSettings, addresses: Addresses) -> anyhow::Result<Self> {
        let scraper = Scraper::new(addresses.admin)?;
        let child = spawn(&settings, addresses)?;
        Ok(Self { settings, addresses, scraper, child })
    }

    /// Starts it again on the same directory and ports, once it has ended.
    ///
    /// # Errors
    /// As for [`ServiceProcess::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::start_on(self.settings.clone(), self.addresses).await?;
        Ok(())
    }

    /// How it was set up.
    #[must_use]
    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// Where it does its work: the worker's bus answers PutEvents there.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.addresses.listen
    }

    /// Where it shows its metrics.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// Reads its metrics.
    #[must_use]
    pub fn scraper(&self) -> Scraper {
        self.scraper.clone()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended by itself before.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        self.child.kill().await.with_context(|| format!("the {} cannot be killed", self.settings.service))
    }

    /// Asks it to end with SIGTERM, and answers how it did.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.check()?;
        let service = self.settings.service;
        self.signal(Signal::TERM)?;
        let ended = timeout(END_TIMEOUT, self.child.wait()).await;
        ended.with_context(|| format!("the {service} still runs {END_TIMEOUT:?} after SIGTERM"))?.context("wait")
    }

    /// Sends it this signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.with_context(|| format!("the {} has no pid", self.settings.service))?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} cannot be sent"))
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// # Errors
    /// When it has ended although nobody asked it to.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(ended_by_itself(self.settings.service, status)),
        }
    }

    /// Waits for it to end although nobody asked it to, and answers how it did.
    pub async fn failure(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => ended_by_itself(self.settings.service, status),
            Err(error) => error.into(),
        }
    }
}

fn ended_by_itself(service: Service, status: ExitStatus) -> anyhow::Error {
    anyhow::anyhow!("the {service} ended by itself: {status}")
}

impl StartError {
    fn told(self, service: Service) -> anyhow::Error {
        match self {
            Self::Configuration => {
                anyhow::anyhow!("the {service} refuses its settings (exit code {EXIT_CONFIGURATION})")
            }
            Self::Other(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

async fn launch(settings: &ServiceSettings, addresses: Addresses) -> Result<(Child, Scraper), StartError> {
    let service = settings.service;
    let scraper = Scraper::new(addresses.admin)?;
    let mut child = spawn(settings, addresses)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Err(match status.code() {
                Some(code) if code == i32::from(EXIT_CONFIGURATION) => StartError::Configuration,
                _ => StartError::Other(anyhow::anyhow!("the {service} ended while it started: {status}")),
            });
        }
        if scraper.is_ready().await {
            return Ok((child, scraper));
        }
        if Instant::now() > deadline {
            return Err(StartError::Other(anyhow::anyhow!("the {service} is not ready after {START_TIMEOUT:?}")));
        }
        sleep(POLL).await;
    }
}

fn spawn(settings: &ServiceSettings, addresses: Addresses) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(settings.log_file());
    let log = log.with_context(|| format!("the log {}", settings.log_file().display()))?;
    settings
        .command()?
        .env("LISTEN", addresses.listen.to_string())
        .env("ADMIN_LISTEN", addresses.admin.to_string())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("the {} cannot be started", settings.service))
}

/// Ports that are free now.
///
/// # Errors
/// When there are none.
pub async fn free_ports() -> anyhow::Result<Addresses> {
    // Both held at once, so that they differ.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (listen, admin) = (bind().await?, bind().await?);
    Ok(Addresses { listen: listen.local_addr()?, admin: admin.local_addr()? })
}

/// The service's side of its hidden subcommand.
pub async fn child_main(service: Service, args: Vec<OsString>) -> ExitCode {
    die_with_parent(service.name());
    let args = std::iter::once(service.name().into()).chain(args);
    match service {
        Service::IngestWorker => ingest_worker::app::main(args).await,
        Service::ControlApi => control_api::app::main(args).await,
    }
}

/// However the parent ends, no process that it started is left behind.
pub fn die_with_parent(name: &str) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("the {name} may outlive its parent: {error}");
    }
}
