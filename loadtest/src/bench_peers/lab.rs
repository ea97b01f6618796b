//! What all runs share: the sink, the stand-ins for AWS, the programs, and how each peer is started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use tempfile::TempDir;

use super::contender::Contender;
use super::inputs::{Events, copy};
use super::process::Peer;
use super::programs::PROGRAM;
use super::sink::Sink;
use crate::bench::fleet::{Fleet, Place};
use crate::service_process::{ServiceProcess, ServiceSettings};

/// Bytes of a log in an error.
const LOG_TAIL: usize = 2000;

/// How the names of runs, and of their directories, begin.
const RUN: &str = "peers-";
/// At a rate the same events come again and again.
const RATE_EVENTS: usize = 10_000;
/// Instances of the original, each with one event at a time, where it has to keep a rate.
const INSTANCES: &str = "8";

/// What stays up from the first run to the last.
pub struct Lab {
    /// Takes what is delivered, except in runs with faults.
    pub sink: Sink,
    /// Python with the peers' packages, where it is installed.
    pub python: Result<PathBuf, String>,
    /// DynamoDB and SQS, where they are installed.
    pub fleet: Result<Fleet, String>,
    /// For all files.
    pub dir: TempDir,
    runs: AtomicUsize,
}

/// What a contender is to do.
pub struct Job<'a> {
    /// Where it delivers.
    pub target: SocketAddr,
    /// What it delivers.
    pub events: &'a Events,
    /// Where Kinesis is.
    pub kinesis: Option<&'a str>,
    /// How.
    pub mode: Mode,
}

/// How a contender works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As fast as it can, this many events.
    Drain(usize),
    /// So many a second, open-loop, until it is killed. Ours and `kcl-rs` are fed from outside.
    Rate(u32),
    /// From the place where its users' program would go on after a kill.
    Resumable {
        /// So many events.
        limit: usize,
        /// Not faster than this.
        rate: Option<u32>,
    },
}

/// A program with all its settings: it can be started again.
pub enum Launch {
    /// Ours.
    Service(ServiceSettings),
    /// Another.
    Program {
        /// With arguments and environment.
        command: Box<dyn Fn() -> Command + Send + Sync>,
        /// Where its errors go.
        errors: PathBuf,
    },
}

/// A contender at work. Dropping it kills it.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Running {
    /// Ours.
    Service(ServiceProcess),
    /// Another.
    Program(Peer),
}

impl Lab {
    /// Starts what all runs share.
    pub async fn open() -> anyhow::Result<Self> {
        Ok(Self {
            sink: Sink::start().await?,
            python: installed(),
            fleet: Fleet::start().await,
            dir: tempfile::tempdir()?,
            runs: AtomicUsize::new(0),
        })
    }

    /// Why this contender cannot be measured here.
    pub fn missing(&self, contender: Contender) -> Option<String> {
        let python = contender.is_python().then(|| self.python.as_ref().err().cloned()).flatten();
        let kinesis = contender.reads_kinesis().then(|| self.fleet.as_ref().err().cloned()).flatten();
        python.or(kinesis)
    }

    /// A name that no other run has.
    pub fn fresh(&self) -> String {
        format!("{RUN}{}", self.runs.fetch_add(1, Ordering::Relaxed))
    }

    /// Sets a contender up in a directory of its own; `name` is its stream's and its lease table's.
    pub fn launch(&self, contender: Contender, name: &str, job: &Job<'_>) -> anyhow::Result<Launch> {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir)?;
        let settings = contender.settings();
        if contender.is_ours() {
            if contender.reads_kinesis() {
                let fleet = self.fleet.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
                let kinesis =
                    job.kinesis.with_context(|| format!("{contender:?} needs a stream, and there is none"))?;
                let place = Place { kinesis, dynamodb: &fleet.moto.url, stream: name };
                return Ok(Launch::Service(fleet.settings(place, job.target, settings)?));
            }
            let env = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            let settings = ServiceSettings { env, ..ServiceSettings::ingest_worker(&dir, job.target) };
            fs::write(settings.key_file(), "sandbox-key")?;
            if !matches!(job.mode, Mode::Rate(_)) {
                copy(job.events.store(job.mode), &settings.stream_dir())?;
            }
            return Ok(Launch::Service(settings));
        }
        let (program, args) = self.program(contender, name, &dir, job)?;
        let kinesis = job.kinesis.unwrap_or_default().to_owned();
        let mut aws =
            self.fleet.as_ref().map(|fleet| emulators::environment(&kinesis, &fleet.moto.url)).unwrap_or_default();
        // It publishes metrics to CloudWatch, for which there is no stand-in: nobody listens there.
        aws.push(("AWS_ENDPOINT_URL_CLOUDWATCH", "http://127.0.0.1:1".to_owned()));
        let command = move || {
            let mut command = Command::new(&program);
            // Nothing of the caller's shell is meant for it, a proxy least of all; and no compiled files beside the source.
            command.env_clear().args(&args).envs(aws.iter().cloned());
            command.env("PYTHONDONTWRITEBYTECODE", "1").env("RUST_LOG", "error");
            command
        };
        Ok(Launch::Program { command: Box::new(command), errors: dir.join("errors.log") })
    }

    fn program(
        &self,
        contender: Contender,
        name: &str,
        dir: &Path,
        job: &Job<'_>,
    ) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let url = format!("http://{}", job.target);
        let path = |path: &Path| path.display().to_string();
        let events = &job.events.lines;
        let limit = match job.mode {
            Mode::Drain(limit) | Mode::Resumable { limit, .. } => limit,
            Mode::Rate(_) => job.events.count.min(RATE_EVENTS),
        };
        if let Some(program) = contender.own_program() {
            let mut args = vec![PROGRAM.to_owned(), program.to_owned(), path(events), url];
            if contender == Contender::OnePerEventRust {
                args.push(limit.to_string());
            }
            if let Mode::Rate(rate) = job.mode {
                args.push(rate.to_string());
            }
            return Ok((std::env::current_exe()?, args));
        }
        let (script, own) = contender.script().with_context(|| format!("{contender:?} has no script"))?;
        let mut args = vec![path(&scripts().join(script)), "--url".to_owned(), url];
        args.extend(own.iter().map(|arg| (*arg).to_owned()));
        if contender.reads_kinesis() {
            args.extend(["--stream", name, "--application", &format!("app-{name}")].map(str::to_owned));
        } else {
            let input = if contender.is_sdk() {
                job.events.parsed.as_ref().context("the SDK's events have not been parsed")?
            } else {
                events
            };
            args.extend(["--input".to_owned(), path(input), "--limit".to_owned(), limit.to_string()]);
            if let Mode::Rate(rate) | Mode::Resumable { rate: Some(rate), .. } = job.mode {
                args.extend(["--rate".to_owned(), rate.to_string()]);
            }
            if let (Contender::OnePerEventPython, Mode::Rate(_)) = (contender, job.mode) {
                args.extend(["--threads", INSTANCES].map(str::to_owned));
            }
            if let Mode::Resumable { .. } = job.mode {
                args.extend(["--cursor".to_owned(), path(&dir.join("cursor"))]);
            }
        }
        Ok((self.python.clone().map_err(|reason| anyhow::anyhow!("{reason}"))?, args))
    }

    /// Throws away what a run left behind.
    pub fn clean(&self, name: &str) -> anyhow::Result<()> {
        Ok(fs::remove_dir_all(self.dir.path().join(name))?)
    }

    /// Throws away what runs that failed have left behind. No run may be under way.
    pub fn sweep(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.dir.path())? {
            let name = entry?.file_name();
            if name.to_string_lossy().starts_with(RUN) {
                fs::remove_dir_all(self.dir.path().join(name))?;
            }
        }
        Ok(())
    }
}

impl Launch {
    /// Starts it.
    pub async fn start(&self) -> anyhow::Result<Running> {
        Ok(match self {
            Self::Service(settings) => {
                let process = ServiceProcess::start(settings.clone()).await;
                Running::Service(process.with_context(|| self.errors())?)
            }
            Self::Program { command, errors } => Running::Program(Peer::start(&mut command(), errors)?),
        })
    }

    /// What it said last, for an error.
    pub fn errors(&self) -> String {
        let text = match self {
            Self::Service(settings) => settings.log_tail(),
            Self::Program { errors, .. } => fs::read_to_string(errors).unwrap_or_default(),
        };
        let start = text.char_indices().rev().nth(LOG_TAIL).map_or(0, |(index, _)| index);
        format!("its log ends with:\n{}", &text[start..])
    }
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> anyhow::Result<u32> {
        match self {
            Self::Service(process) => process.id().context("the worker has ended"),
            Self::Program(peer) => Ok(peer.id()),
        }
    }

    /// Kills it with SIGKILL.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Service(process) => process.kill().await,
            Self::Program(peer) => peer.kill(),
        }
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// The Python of the peers.
fn installed() -> Result<PathBuf, String> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/peers");
    match tools.canonicalize() {
        // Its copy is made last.
        Ok(tools) if tools.join("requirements.txt").exists() => Ok(tools.join("bin/python")),
        _ => Err("target/tools/peers is missing: run loadtest/peers/setup.sh".to_owned()),
    }
}

/// Runs one of the scripts to its end.
pub async fn run_script(python: &Path, script: &str, args: [&Path; 2]) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(python);
    command.arg(scripts().join(script)).args(args).env_clear().env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let status = command.status().await.with_context(|| script.to_owned())?;
    anyhow::ensure!(status.success(), "{script} ended: {status}");
    Ok(())
}
