//! Breaks a deployment by the schedule, and mends it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use emulators::Stream;
use rustix::process::Signal;
use serde_json::{Value, json};
use shared::reason::Reason;
use shared::service::EXIT_CONFIGURATION;
use tokio::time::sleep;

use super::amberflo::Quirk;
use super::arena::{Arena, Store};
use super::kind::Act;
use super::member::News;
use super::schedule::Step;
use super::{clock, disk};
use crate::service_process::{ServiceProcess, ServiceSettings, free_ports};

const TICK: Duration = Duration::from_millis(100);
/// A redrive works for up to 20 s.
const REDRIVE_TIMEOUT: Duration = Duration::from_secs(40);
/// From the request for a redrive to the end of the control API that works on it.
const AMID_REDRIVE: Duration = Duration::from_millis(60);
/// A worker that found a namesake may end so much later than the namesake.
const NAMESAKE_NOTICED: Duration = Duration::from_secs(10);
const MOST_SHARDS: usize = 5;
const FEWEST_SHARDS: usize = 2;

impl Arena {
    /// Carries out the steps, and keeps everything running that should, until `length` has passed.
    ///
    /// # Errors
    /// When that is not possible.
    pub async fn misbehave(&mut self, steps: Vec<Step>, length: Duration) -> anyhow::Result<()> {
        let mut steps = steps.into_iter().peekable();
        loop {
            let now = self.board.now();
            while let Some(index) = self.active.iter().position(|step| step.until <= now) {
                let step = self.active.remove(index);
                self.heal(step).await.with_context(|| format!("{}: healing {}", self.name, step.kind.name))?;
            }
            while let Some(step) = steps.next_if(|step| step.at <= now) {
                self.inject(step).await.with_context(|| format!("{}: {}", self.name, step.kind.name))?;
            }
            self.supervise().await?;
            if steps.peek().is_none() && self.active.is_empty() && now >= length {
                return Ok(());
            }
            sleep(TICK).await;
        }
    }

    /// Looks after the processes.
    ///
    /// # Errors
    /// When one cannot be started.
    pub async fn supervise(&mut self) -> anyhow::Result<()> {
        // Of two with one name both may end.
        if self.namesake.is_some() {
            self.namesake_until = self.board.now() + NAMESAKE_NOTICED;
        }
        let has_namesake = self.board.now() < self.namesake_until;
        for member in self.workers.iter_mut().chain([&mut self.control_api]) {
            let Some(news) = member.look().await? else { continue };
            match news {
                News::Drained(how) => self.board.note(&member.name, format!("drained: {how}")),
                News::DoesNotEnd => self.board.find(&member.name, "it does not end after SIGTERM"),
                News::EndedByItself { how, was_ready: false } => {
                    self.board.note(&member.name, format!("did not start ({how}); it is started again"));
                }
                News::EndedByItself { how, was_ready: true } => {
                    let is_namesake = how.ends_with(&format!(": {EXIT_CONFIGURATION}")) && has_namesake;
                    match is_namesake {
                        true => self.board.note(&member.name, format!("made way for its namesake ({how})")),
                        false => self.board.find(&member.name, &format!("ended by itself: {how}")),
                    }
                }
            }
        }
        Ok(())
    }

    async fn inject(&mut self, step: Step) -> anyhow::Result<()> {
        self.active.push(step);
        self.board.state().active.push(step.kind.name);
        let done = self.begin(step).await?;
        self.board.note(step.kind.name, done);
        Ok(())
    }

    /// Does it, and says what was done.
    async fn begin(&mut self, step: Step) -> anyhow::Result<String> {
        let worker = &mut self.workers[step.worker];
        let whom = worker.name.clone();
        let done =
            |is_done, what: &str| if is_done { format!("{whom} {what}") } else { format!("{whom} is down already") };
        Ok(match step.kind.act {
            Act::Kill => {
                let is_done = worker.kill().await?;
                self.board.state().kills += u64::from(is_done);
                done(is_done, "killed")
            }
            Act::Pause => done(worker.signal(Signal::STOP), "paused"),
            Act::Terminate => done(worker.terminate(), "is asked to end"),
            Act::Namesake => {
                let settings = worker.settings();
                let dir = settings.dir.join("namesake");
                std::fs::create_dir_all(&dir)?;
                std::fs::copy(settings.key_file(), dir.join("api-key"))?;
                let settings = ServiceSettings { dir, ..settings.clone() };
                self.namesake = Some(ServiceProcess::spawn_on(settings, free_ports().await?)?);
                format!("another process works as {whom}")
            }
            Act::Split | Act::Merge => self.reshard_aside(step),
            Act::Amberflo(quirk) => {
                self.condition.quirks.insert(quirk);
                self.misbehave_as_amberflo(Some(quirk))?;
                step.kind.what.to_owned()
            }
            Act::KeyLate => {
                self.condition.key = self.keys.make();
                self.misbehave_as_amberflo(None)?;
                "Amberflo takes another key".to_owned()
            }
            Act::KeyEarly => {
                self.keys.make();
                self.keys.publish().await?;
                "workers find another key".to_owned()
            }
            Act::Calls(route, _) => {
                self.links.refresh(&self.active).await;
                if route.is_of_one() { format!("{}: {whom}", step.kind.what) } else { step.kind.what.to_owned() }
            }
            Act::Redrive => {
                self.redrive_aside();
                "asked for".to_owned()
            }
            Act::RedriveKilled => {
                self.redrive_aside();
                sleep(AMID_REDRIVE).await;
                self.redrive_killed_at = Some(self.board.now());
                done(self.control_api.kill().await?, "killed").replace(&whom, &self.control_api.name)
            }
            Act::DiskFull => match self.disk.clone() {
                Some(path) => {
                    tokio::task::spawn_blocking(move || disk::fill(&path)).await??;
                    "no byte is left".to_owned()
                }
                None => "left out: no disk of our own".to_owned(),
            },
            Act::ClockJump(seconds) => match self.clock {
                Some(_) => {
                    clock::set(&worker.settings().dir, seconds)?;
                    format!("the clock of {whom} is moved by {seconds} s")
                }
                None => "left out: libfaketime is not installed".to_owned(),
            },
        })
    }

    async fn heal(&mut self, step: Step) -> anyhow::Result<()> {
        let worker = &mut self.workers[step.worker];
        match step.kind.act {
            Act::Kill => worker.release(),
            Act::Pause => {
                worker.signal(Signal::CONT);
            }
            Act::Namesake => {
                if let Some(mut namesake) = self.namesake.take()
                    && namesake.ended()?.is_none()
                {
                    namesake.kill().await?;
                }
            }
            Act::Amberflo(quirk) => {
                self.condition.quirks.remove(&quirk);
                self.misbehave_as_amberflo(None)?;
            }
            // Also where another change of keys is under way: both end with the newest everywhere.
            Act::KeyLate => self.keys.publish().await?,
            Act::KeyEarly => {
                self.condition.key = self.keys.newest();
                self.misbehave_as_amberflo(None)?;
            }
            Act::Calls(..) => self.links.refresh(&self.active).await,
            Act::RedriveKilled => self.control_api.release(),
            Act::DiskFull => {
                if let Some(path) = &self.disk {
                    disk::empty(path)?;
                }
            }
            Act::ClockJump(_) => {
                if self.clock.is_some() {
                    clock::set(&worker.settings().dir, 0)?;
                }
            }
            Act::Terminate | Act::Split | Act::Merge | Act::Redrive => {}
        }
        self.board.state().active.retain(|name| *name != step.kind.name);
        self.board.note(step.kind.name, "over");
        Ok(())
    }

    /// Lets the stand-in for Amberflo do what its condition says.
    ///
    /// # Errors
    /// When it does not know the fault.
    pub fn misbehave_as_amberflo(&self, injected: Option<Quirk>) -> anyhow::Result<()> {
        Ok(self.sandbox.set_faults(self.condition.faults(injected))?)
    }

    /// Splits or merges, where there are not too many shards or too few. Nobody waits for it: an emulator may be slow.
    fn reshard_aside(&self, step: Step) -> String {
        let Store::Aws { stream, .. } = &self.store else { return "left out: no Kinesis".to_owned() };
        let (stream, board, is_split) = (stream.clone(), Arc::clone(&self.board), step.kind.act == Act::Split);
        tokio::spawn(async move {
            let work =
                async move { if is_split { split(&stream, step.dice).await } else { merge(&stream, step.dice).await } };
            // The emulator's administrator panics where it is refused.
            let done = tokio::spawn(work).await.unwrap_or_else(|error| format!("refused: {error}"));
            board.note(step.kind.name, done);
        });
        "asked for".to_owned()
    }

    fn redrive_aside(&self) {
        let (board, address) = (Arc::clone(&self.board), self.control_api.addresses().listen);
        tokio::spawn(async move {
            let text = match redrive(address, None).await {
                Ok(answer) => told(&answer),
                Err(error) => format!("failed: {error:#}"),
            };
            board.note("redrive", text);
        });
    }
}

/// What a redrive did, in words.
pub fn told(answer: &Value) -> String {
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    format!("{} redriven, {} left where they are", number("redriven"), number("skipped"))
}

/// Redrives dead letters through the control API: those of this reason, or all that can be. Answers its `data`.
///
/// # Errors
/// When it does not answer 200.
pub async fn redrive(control_api: SocketAddr, reason: Option<Reason>) -> anyhow::Result<Value> {
    let url = format!("http://{control_api}");
    let http = crate::target::http_client(&url, REDRIVE_TIMEOUT)?;
    let request = http.post(format!("{url}/dead-letters/redrive")).header("content-type", "application/json");
    let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason.as_str() }));
    let answer = request.body(body.to_string()).send().await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    let mut body: Value = serde_json::from_slice(&body)?;
    Ok(body["data"].take())
}

async fn split(stream: &Stream, dice: u64) -> String {
    let open = stream.open_shards().await;
    if open.len() >= MOST_SHARDS {
        return format!("left out: {} shards are enough", open.len());
    }
    let shard = &open[dice as usize % open.len()];
    let children = stream.split(shard).await;
    format!("{shard} into {}", children.join(" and "))
}

async fn merge(stream: &Stream, dice: u64) -> String {
    let mut open: Vec<(u128, String)> = Vec::new();
    let ids = stream.open_shards().await;
    for shard in stream.shards().await.into_iter().filter(|shard| ids.contains(&shard.shard_id)) {
        let start = shard.hash_key_range().and_then(|range| range.starting_hash_key().parse().ok());
        open.push((start.unwrap_or_default(), shard.shard_id));
    }
    if open.len() <= FEWEST_SHARDS {
        return format!("left out: {} shards are few enough", open.len());
    }
    open.sort();
    let at = dice as usize % (open.len() - 1);
    let (left, right) = (&open[at].1, &open[at + 1].1);
    let child = stream.merge(left, right).await;
    format!("{left} and {right} into {child}")
}
