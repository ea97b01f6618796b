//! Breaks a deployment by the schedule, and mends it again.

use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use emulators::Stream;
use serde_json::Value;
use shared::service::EXIT_CONFIGURATION;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::arena::{Arena, Namesake, Store};
use super::board::{Board, Done};
use super::kind::Act;
use super::member::{News, PANICKED};
use super::schedule::Step;
use super::{clock, disk};
use crate::service_process::{ServiceProcess, ServiceSettings, free_ports};

const TICK: Duration = Duration::from_millis(100);
/// A redrive works for up to 20 s.
const REDRIVE_TIMEOUT: Duration = Duration::from_secs(40);
/// From the request for a redrive to the end of the control API that works on it, at most, in milliseconds.
const AMID_REDRIVE_MILLIS: u64 = 2000;
/// A worker that found a namesake may end so much later than the namesake.
const NAMESAKE_NOTICED: Duration = Duration::from_secs(30);
const NAMESAKE: &str = "namesake";
/// Where its log is, within its worker's directory.
pub const NAMESAKE_DIR: &str = "namesake";
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
                self.heal(index).await?;
            }
            while let Some(step) = steps.next_if(|step| step.at <= now) {
                let step = step.begun(self.board.now(), length);
                // One that began late may last into the next of its kind.
                if let Some(index) = self.active.iter().position(|active| active.kind.name == step.kind.name) {
                    self.heal(index).await?;
                }
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
        self.store.check()?;
        let now = self.board.now();
        if let Some(namesake) = &mut self.namesake {
            namesake.look(&self.board, now)?;
        }
        for (index, member) in self.workers.iter_mut().chain([&mut self.control_api]).enumerate() {
            let Some(news) = member.look().await? else { continue };
            // Of two with one name both may end.
            let has_namesake = self.namesake.as_ref().is_some_and(|namesake| namesake.explains(index, now));
            let makes_way = |status: ExitStatus| has_namesake && status.code() == Some(EXIT_CONFIGURATION.into());
            let (board, name) = (&self.board, &member.name);
            match news {
                News::Drained(status) => board.note(name, format!("drained: {status}")),
                News::EndedByItself(status) | News::DrainFailed(status) if makes_way(status) => {
                    board.note(name, format!("made way for its namesake ({status})"));
                }
                News::DrainFailed(status) => board.find(name, &format!("the drain ended with {status}")),
                News::EndedByItself(status) => board.find(name, &format!("ended by itself: {status}")),
                News::DidNotStart(status) => board.note(name, format!("did not start ({status}); it is started again")),
                News::Crashed(status) => board.find(name, &format!("crashed: {status}")),
                News::DoesNotEnd => board.find(name, "it does not end after SIGTERM"),
            }
        }
        Ok(())
    }

    async fn inject(&mut self, step: Step) -> anyhow::Result<()> {
        self.active.push(step);
        self.board.state().active.push(step.kind.name);
        // Every change begins another random sequence: the first draws of one would be the same each time.
        self.condition.seed = step.dice;
        self.count(step, true);
        let done = self.begin(step).await?;
        self.board.did(step.kind.name, done);
        Ok(())
    }

    /// Counts the requests to Amberflo that meet a quirk between its two ends.
    fn count(&mut self, step: Step, begins: bool) {
        let Act::Amberflo(quirk) = step.kind.act else { return };
        let Some(count) = quirk.count(&self.sandbox.stats()) else { return };
        if begins {
            self.counts_before.insert(step.kind.name, count);
        } else if let Some(before) = self.counts_before.remove(step.kind.name) {
            *self.board.state().befell.entry(step.kind.name).or_default() += count - before;
        }
    }

    /// Does it, and says what was done.
    async fn begin(&mut self, step: Step) -> anyhow::Result<Done> {
        let worker = &mut self.workers[step.worker];
        let whom = worker.name.clone();
        let done = |is_done, what: &str| match is_done {
            true => Done::Yes(format!("{whom} {what}")),
            false => Done::LeftOut(format!("{whom} is down or ending already")),
        };
        let what = || Done::Yes(step.kind.what.to_owned());
        Ok(match step.kind.act {
            Act::Kill => {
                let is_done = worker.kill().await?;
                self.board.state().kills += u64::from(is_done);
                done(is_done, "killed")
            }
            Act::Pause => done(worker.pause(), "paused"),
            Act::Terminate => done(worker.terminate()?, "is asked to end"),
            Act::Namesake => {
                let settings = worker.settings();
                let dir = settings.dir.join(NAMESAKE_DIR);
                std::fs::create_dir_all(&dir)?;
                std::fs::copy(settings.key_file(), dir.join("api-key"))?;
                let settings = ServiceSettings { dir, ..settings.clone() };
                let process = ServiceProcess::spawn_on(settings, free_ports().await?)?;
                self.namesake = Some(Namesake { worker: step.worker, process: Some(process), ended_at: None });
                Done::Yes(format!("another process works as {whom}"))
            }
            Act::Split | Act::Merge => self.reshard_aside(step),
            Act::Amberflo(quirk) => {
                self.condition.quirks.insert(quirk);
                self.condition.apply_to(&self.sandbox)?;
                what()
            }
            Act::KeyLate => {
                self.condition.key = self.keys.make();
                self.condition.apply_to(&self.sandbox)?;
                Done::Yes("Amberflo takes another key".to_owned())
            }
            Act::KeyEarly => {
                self.keys.make();
                self.keys.publish().await?;
                Done::Yes("workers find another key".to_owned())
            }
            Act::Calls(route, _) => {
                self.links.refresh(&self.active).await;
                if route.is_of_one() { Done::Yes(format!("{}: {whom}", step.kind.what)) } else { what() }
            }
            Act::Redrive => {
                self.redrive_aside();
                Done::Yes("asked for".to_owned())
            }
            Act::RedriveKilled => {
                let redrive = self.redrive_aside();
                sleep(Duration::from_millis(step.dice % AMID_REDRIVE_MILLIS)).await;
                let is_amid = !redrive.is_finished();
                self.redrive_killed_at = Some(self.board.now());
                let name = &self.control_api.name.clone();
                match self.control_api.kill().await? {
                    false => Done::LeftOut(format!("{name} is down already")),
                    true if is_amid => Done::Yes(format!("{name} killed, the redrive was not answered yet")),
                    true => Done::Yes(format!("{name} killed, the redrive had been answered")),
                }
            }
            Act::DiskFull => match self.disk.clone() {
                Some(path) => {
                    tokio::task::spawn_blocking(move || disk::fill(&path)).await??;
                    Done::Yes("no byte is left".to_owned())
                }
                None => Done::LeftOut("no disk of our own".to_owned()),
            },
            Act::ClockJump(seconds) => match self.clock {
                Some(_) => {
                    clock::set(&worker.settings().dir, seconds)?;
                    Done::Yes(format!("the clock of {whom} is moved by {seconds} s"))
                }
                None => Done::LeftOut("no clock that can be moved".to_owned()),
            },
        })
    }

    /// Mends what the step at this place of those in force broke.
    async fn heal(&mut self, index: usize) -> anyhow::Result<()> {
        let step = self.active.remove(index);
        self.count(step, false);
        self.condition.seed = step.dice.rotate_left(32);
        self.mend(step).await.with_context(|| format!("{}: healing {}", self.name, step.kind.name))?;
        self.board.state().active.retain(|name| *name != step.kind.name);
        self.board.note(step.kind.name, "over");
        Ok(())
    }

    async fn mend(&mut self, step: Step) -> anyhow::Result<()> {
        let worker = &mut self.workers[step.worker];
        match step.kind.act {
            Act::Kill => worker.release(),
            Act::Pause => worker.unpause(),
            Act::Namesake => {
                if let Some(namesake) = &mut self.namesake {
                    namesake.end(&self.board).await?;
                }
            }
            Act::Amberflo(quirk) => {
                self.condition.quirks.remove(&quirk);
                self.condition.apply_to(&self.sandbox)?;
            }
            // Also where another change of keys is under way: both end with the newest everywhere.
            Act::KeyLate => self.keys.publish().await?,
            Act::KeyEarly => {
                self.condition.key = self.keys.newest();
                self.condition.apply_to(&self.sandbox)?;
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
            // A worker that was asked to end starts again when it has, and nobody undoes the others.
            Act::Terminate | Act::Split | Act::Merge | Act::Redrive => {}
        }
        Ok(())
    }

    /// Splits or merges, where there are not too many shards or too few. Nobody waits for it: an emulator may be slow.
    fn reshard_aside(&self, step: Step) -> Done {
        let Store::Aws { stream, .. } = &self.store else { return Done::LeftOut("no Kinesis".to_owned()) };
        let (stream, board, is_split) = (stream.clone(), Arc::clone(&self.board), step.kind.act == Act::Split);
        tokio::spawn(async move {
            let work =
                async move { if is_split { split(&stream, step.dice).await } else { merge(&stream, step.dice).await } };
            // The emulator's administrator panics where it is refused.
            let done = tokio::spawn(work).await.unwrap_or_else(|error| Done::LeftOut(format!("refused: {error}")));
            board.did(step.kind.name, done);
        });
        Done::Later
    }

    fn redrive_aside(&self) -> JoinHandle<()> {
        let (board, address) = (Arc::clone(&self.board), self.control_api.addresses().listen);
        tokio::spawn(async move {
            let text = match redrive(address).await {
                Ok(answer) => told(&answer),
                Err(error) => format!("failed: {error:#}"),
            };
            board.note("redrive", text);
        })
    }
}

impl Namesake {
    /// Whether it may be why this worker ended.
    fn explains(&self, worker: usize, now: Duration) -> bool {
        worker == self.worker && self.ended_at.is_none_or(|at| now < at + NAMESAKE_NOTICED)
    }

    /// Notices that it has ended by itself.
    fn look(&mut self, board: &Board, now: Duration) -> anyhow::Result<()> {
        let Some(status) = self.process.as_mut().map(ServiceProcess::ended).transpose()?.flatten() else {
            return Ok(());
        };
        (self.process, self.ended_at) = (None, Some(now));
        match status.code() {
            Some(code) if code != PANICKED => board.note(NAMESAKE, format!("the second process ended: {status}")),
            _ => board.find(NAMESAKE, &format!("the second process crashed: {status}")),
        }
        Ok(())
    }

    /// Kills it, if it still runs.
    async fn end(&mut self, board: &Board) -> anyhow::Result<()> {
        self.look(board, board.now())?;
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
            self.ended_at = Some(board.now());
            board.note(NAMESAKE, "the second process worked until now; killed");
        }
        Ok(())
    }
}

/// What a redrive did, in words.
pub fn told(answer: &Value) -> String {
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    format!("{} redriven, {} left where they are", number("redriven"), number("skipped"))
}

/// Redrives all dead letters that can be, through the control API. Answers its `data`.
async fn redrive(control_api: SocketAddr) -> anyhow::Result<Value> {
    let url = format!("http://{control_api}");
    let http = crate::target::http_client(&url, REDRIVE_TIMEOUT)?;
    let request = http.post(format!("{url}/dead-letters/redrive")).header("content-type", "application/json");
    let answer = request.body("{}").send().await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    let mut body: Value = serde_json::from_slice(&body)?;
    Ok(body["data"].take())
}

async fn split(stream: &Stream, dice: u64) -> Done {
    let open = stream.open_shards().await;
    if open.len() >= MOST_SHARDS {
        return Done::LeftOut(format!("{} shards are enough", open.len()));
    }
    let shard = &open[dice as usize % open.len()];
    let children = stream.split(shard).await;
    Done::Yes(format!("{shard} into {}", children.join(" and ")))
}

async fn merge(stream: &Stream, dice: u64) -> Done {
    let mut open: Vec<(u128, String)> = Vec::new();
    let ids = stream.open_shards().await;
    for shard in stream.shards().await.into_iter().filter(|shard| ids.contains(&shard.shard_id)) {
        let start = shard.hash_key_range().and_then(|range| range.starting_hash_key().parse().ok());
        open.push((start.unwrap_or_default(), shard.shard_id));
    }
    if open.len() <= FEWEST_SHARDS {
        return Done::LeftOut(format!("{} shards are few enough", open.len()));
    }
    open.sort();
    let at = dice as usize % (open.len() - 1);
    let (left, right) = (&open[at].1, &open[at + 1].1);
    let child = stream.merge(left, right).await;
    Done::Yes(format!("{left} and {right} into {child}"))
}
