//! A real ingest worker in a process of its own, so that it can be killed as a real one would be.

use std::ffi::OsString;
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

/// The hidden subcommand under which this program is the worker.
pub const SUBCOMMAND: &str = "ingest-worker";

/// Starts are tried so often: a port that was free a moment ago may be taken.
const START_ATTEMPTS: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
/// Longer than the worker's own limit for a drain.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 40;

/// How the worker is set up; a restart uses the same.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// A directory for its stream, its log and its key.
    pub dir: PathBuf,
    /// Where it finds Amberflo.
    pub amberflo: SocketAddr,
    /// Further settings, as environment variables.
    pub env: Vec<(&'static str, String)>,
}

impl WorkerSettings {
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

    /// What the worker logged last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("worker.log")
    }
}

/// A running worker. Dropping it kills the process.
pub struct WorkerProcess {
    settings: WorkerSettings,
    listen: SocketAddr,
    admin: SocketAddr,
    scraper: Scraper,
    child: Child,
}

enum StartError {
    /// Exit code 2: most likely a port was taken.
    Configuration,
    Other(anyhow::Error),
}

impl WorkerProcess {
    /// Starts a worker on free ports and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn start(settings: WorkerSettings) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            let (listen, admin) = free_ports().await?;
            match launch(&settings, listen, admin).await {
                Ok((child, scraper)) => return Ok(Self { settings, listen, admin, scraper, child }),
                Err(StartError::Configuration) if attempt < START_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.told()),
            }
        }
    }

    /// Where its bus answers PutEvents.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where it shows its metrics.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
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
        self.child.kill().await.context("the worker cannot be killed")
    }

    /// Starts it again on the same directory and ports, once it has ended.
    ///
    /// # Errors
    /// As for [`WorkerProcess::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let mut attempt = 1;
        loop {
            match launch(&self.settings, self.listen, self.admin).await {
                Ok((child, scraper)) => {
                    (self.child, self.scraper) = (child, scraper);
                    return Ok(());
                }
                // The old socket, or another program that was lent the port for a moment.
                Err(StartError::Configuration) if attempt < START_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.told()),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks it to end with SIGTERM, and answers how it did.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.check()?;
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("the worker has no pid")?;
        kill_process(pid, Signal::TERM).context("SIGTERM cannot be sent")?;
        let ended = timeout(END_TIMEOUT, self.child.wait()).await;
        ended.with_context(|| format!("the worker still runs {END_TIMEOUT:?} after SIGTERM"))?.context("wait")
    }

    /// # Errors
    /// When it has ended although nobody asked it to.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the worker ended by itself: {status}"),
        }
    }
}

impl StartError {
    fn told(self) -> anyhow::Error {
        match self {
            Self::Configuration => anyhow::anyhow!("the worker refuses its settings (exit code {EXIT_CONFIGURATION})"),
            Self::Other(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

async fn launch(
    settings: &WorkerSettings,
    listen: SocketAddr,
    admin: SocketAddr,
) -> Result<(Child, Scraper), StartError> {
    let scraper = Scraper::new(admin)?;
    let mut child = spawn(settings, listen, admin)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Err(match status.code() {
                Some(code) if code == i32::from(EXIT_CONFIGURATION) => StartError::Configuration,
                _ => StartError::Other(anyhow::anyhow!("the worker ended while it started: {status}")),
            });
        }
        if scraper.is_ready().await {
            return Ok((child, scraper));
        }
        if Instant::now() > deadline {
            return Err(StartError::Other(anyhow::anyhow!("the worker is not ready after {START_TIMEOUT:?}")));
        }
        sleep(POLL).await;
    }
}

fn spawn(settings: &WorkerSettings, listen: SocketAddr, admin: SocketAddr) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(settings.log_file()).context("the worker's log")?;
    let path = |path: &Path| path.display().to_string();
    Command::new(std::env::current_exe().context("this program does not know where it is")?)
        .arg(SUBCOMMAND)
        // A proxy or an API key in the caller's shell is none of the worker's business.
        .env_clear()
        .env("STREAM", format!("local:{}", path(&settings.stream_dir())))
        .env("LISTEN", listen.to_string())
        .env("ADMIN_LISTEN", admin.to_string())
        .env("AMBERFLO_BASE_URL", format!("http://{}", settings.amberflo))
        .env("AMBERFLO_API_KEY_FILE", path(&settings.key_file()))
        .envs(settings.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is for us; we end the worker when its time has come.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("the worker cannot be started")
}

async fn free_ports() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    // Both held at once, so that they differ.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (one, other) = (bind().await?, bind().await?);
    Ok((one.local_addr()?, other.local_addr()?))
}

/// The worker's side of the hidden subcommand.
pub async fn child_main(args: Vec<OsString>) -> ExitCode {
    // However the parent ends, no worker is left behind.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("the worker may outlive its parent: {error}");
    }
    ingest_worker::app::main(std::iter::once(SUBCOMMAND.into()).chain(args)).await
}
