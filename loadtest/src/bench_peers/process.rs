//! A peer's process: what it costs from its start to its end.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{sleep, timeout};

use super::programs::PROGRAM;
use super::sink::ANNOUNCEMENT;
use crate::bench::measure::{Memory, cpu_time_of, memory_of};

/// How often memory is looked at. The kernel keeps the peak, so that only what grows after the last look is missed.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// For a process of the benchmark to listen. The stand-in for Kinesis reads all events before.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a whole process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all its threads, from its start.
    pub cpu: Duration,
    /// The kernel's own peak of its resident memory, in bytes.
    pub peak_resident: u64,
}

/// A process of a peer. Dropping it kills it.
pub struct Peer {
    child: Child,
    /// Not while another thread reads it.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts this program under one of its hidden subcommands, and waits until it says where it listens.
    pub async fn announcing(args: &[std::ffi::OsString]) -> anyhow::Result<(Self, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PROGRAM).args(args);
        let mut peer = Self::spawn(command.stderr(Stdio::inherit()))?;
        let mut stdout = peer.stdout.take().context("a pipe")?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| (stdout, line))
        });
        // The runtime waits for the thread at its end. Whoever stops waiting here kills the process: that ends it.
        let read = timeout(START_LIMIT, reading).await;
        let (stdout, line) = read.with_context(|| format!("it does not listen after {START_LIMIT:?}"))???;
        peer.stdout = Some(stdout);
        let url = line.trim_end().strip_prefix(ANNOUNCEMENT);
        let address = url.context("it ended at its start")?.trim_start_matches("http://").parse()?;
        Ok((peer, address))
    }

    /// Starts a command whose errors go to a file.
    pub fn start(command: &mut Command, errors: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(errors)?;
        let named = format!("{} cannot be started", command.get_program().display());
        Self::spawn(command.stderr(log)).context(named)
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        // Ctrl-C in the terminal is for us: a peer that it ended would look like one that failed.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { child, stdout })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL, unless it has ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill()?)
    }

    /// What it printed, once it has ended.
    pub fn printed(mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.stdout.as_mut().context("a pipe")?.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "ended: {status}");
        Ok(text)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Errors mean that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says where this process listens, to [`Peer::announcing`].
pub fn announced(address: SocketAddr) {
    println!("{ANNOUNCEMENT}http://{address}");
}

/// Whether the process has ended and nobody has waited for it yet: its CPU time can still be read, its memory cannot.
pub fn has_ended(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Looks at a process until it has ended, or `is_over`, and answers what it used until then.
pub async fn watch(
    process: u32,
    usage: &mut Usage,
    mut is_over: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    loop {
        let ended = has_ended(process);
        look(process, usage)?;
        if ended || is_over().await? {
            return look(process, usage);
        }
        sleep(SAMPLE_EVERY).await;
    }
}

fn look(process: u32, usage: &mut Usage) -> anyhow::Result<()> {
    usage.cpu = cpu_time_of(process).context("this benchmark reads /proc, which only Linux has")?;
    let peak = memory_of(process).map_or(0, |Memory { peak, .. }| peak);
    usage.peak_resident = usage.peak_resident.max(peak);
    Ok(())
}
