//! How fast a contender delivers, and what that costs.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::contender::Contender;
use super::inputs::Events;
use super::lab::{Job, Lab, Mode, Running};
use super::process::{SAMPLE_EVERY, Usage, has_ended, watch};
use super::sink::{Pace, Times};

/// The sink is asked rarely: that costs time too.
pub const ASK_EVERY: Duration = Duration::from_millis(100);
/// Longer without a delivery: something is wrong. `kcl-rs` needs half a minute for its first.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// For our worker to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What one run showed.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Events that were delivered.
    pub events: usize,
    /// Events per second amid the run, and how busy the sink was meanwhile.
    pub pace: Pace,
    /// Events per second of user and system time, from the start of the process to its end.
    pub per_cpu_second: f64,
    /// Bytes of requests, headers included.
    pub bytes_per_event: f64,
    /// The kernel's own peak of resident memory, in bytes.
    pub peak_resident: u64,
}

/// What a Python program says at its end: the seconds of its CPU time that are the benchmark's.
#[derive(Default, Deserialize)]
struct Excluded {
    excluded_cpu: f64,
}

/// Lets a contender deliver its share of the events.
pub async fn run(lab: &Lab, contender: Contender, events: &Events, kinesis: Option<&str>) -> anyhow::Result<Speed> {
    let share = contender.share(events.count);
    let name = lab.fresh();
    let job = Job { target: lab.sink.address, events, kinesis, mode: Mode::Drain(share) };
    let launch = lab.launch(contender, &name, &job)?;
    lab.sink.reset(Times::default()).await?;
    let mut running = launch.start().await?;
    let mut usage = Usage::default();
    watch_until_delivered(lab, contender, &running, share as u64, &mut usage).await.with_context(|| launch.errors())?;
    if contender.is_daemon() {
        anyhow::ensure!(!has_ended(running.id()?), "it ended by itself; {}", launch.errors());
        end(&mut running, &mut usage).await?;
    }
    let excluded = match running {
        Running::Program(peer) if !contender.is_daemon() => {
            let printed = peer.printed().with_context(|| launch.errors())?;
            printed.lines().last().map(serde_json::from_str).transpose()?.unwrap_or_default()
        }
        _ => Excluded::default(),
    };
    let seen = lab.sink.seen().await?;
    anyhow::ensure!(seen.records == share as u64, "{} of {share} events were delivered", seen.records);
    let pace = lab.sink.pace(seen.records).await?;
    lab.clean(&name)?;
    Ok(Speed {
        events: share,
        pace: pace.with_context(|| format!("{share} events came in one request: more are needed for a rate"))?,
        per_cpu_second: share as f64 / (usage.cpu.as_secs_f64() - excluded.excluded_cpu),
        bytes_per_event: seen.wire_bytes as f64 / share as f64,
        peak_resident: usage.peak_resident,
    })
}

/// Until all is delivered or, where it ends by itself, until it has ended.
async fn watch_until_delivered(
    lab: &Lab,
    contender: Contender,
    running: &Running,
    delivers: u64,
    usage: &mut Usage,
) -> anyhow::Result<()> {
    let mut asked = Instant::now();
    let mut latest = (0, asked);
    watch(running.id()?, usage, async || {
        if asked.elapsed() < ASK_EVERY {
            return Ok(false);
        }
        asked = Instant::now();
        let records = lab.sink.seen().await?.records;
        if records > latest.0 {
            latest = (records, asked);
        }
        anyhow::ensure!(latest.1.elapsed() < PATIENCE, "{records} events delivered, then no more");
        Ok(contender.is_daemon() && records >= delivers)
    })
    .await
}

/// Ends one that would not: ours with SIGTERM, as its users do.
pub async fn end(running: &mut Running, usage: &mut Usage) -> anyhow::Result<()> {
    let process = running.id()?;
    match running {
        Running::Service(service) => service.signal(rustix::process::Signal::TERM)?,
        Running::Program(peer) => peer.kill()?,
    }
    let deadline = Instant::now() + END_TIMEOUT;
    while !has_ended(process) {
        anyhow::ensure!(Instant::now() < deadline, "it still runs {END_TIMEOUT:?} after it was asked to end");
        sleep(SAMPLE_EVERY).await;
    }
    watch(process, usage, async || Ok(true)).await
}
