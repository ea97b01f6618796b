//! What a contender loses or doubles when Amberflo fails after it has accepted, and the process is killed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig, Trigger};
use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::contender::Contender;
use super::inputs::Events;
use super::lab::{Job, Lab, Mode, Running};
use super::process::has_ended;
use super::turns::Turn;

/// The share of requests that are accepted whole and answered 500, 502 or 503.
pub const FAIL_AFTER: f64 = 0.05;
/// Events a second of the SDK's application: its README promises hundreds.
pub const SDK_RATE: u32 = 1000;
/// From half of the events to the kill: not just after a request, when those who hold events back have none.
const KILL_AFTER: Duration = Duration::from_millis(50);
const POLL: Duration = Duration::from_millis(2);
/// Without a new request for this long, a daemon has nothing left to deliver. A worker takes over a killed one's leases
/// after 10 s.
const QUIET: Duration = Duration::from_secs(45);
/// `kcl-rs` needs half a minute to start, and may wait as long for its old leases.
const QUIET_KCL: Duration = Duration::from_secs(100);
/// Once all is billed: for copies that are still to come. The SDK's longest pause is 6 s, after two failures.
const SETTLE: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(300);

/// What one run showed.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// Events that were to be billed once.
    pub events: usize,
    /// Events that were never billed.
    pub lost: usize,
    /// Billings of events that had been billed.
    pub doubled: usize,
    /// Copies that Amberflo recognised.
    pub absorbed: u64,
    /// Requests that were answered with a failure after they had been accepted.
    pub failed: u64,
}

/// Kills a contender when half of the events are billed, restarts it, and audits the sandbox's ledger at the end. Other
/// requests fail in each round.
pub async fn run(lab: &Lab, turn: &Turn, events: &Events, kinesis: Option<&str>) -> anyhow::Result<Damage> {
    let contender = turn.contender;
    let (sandbox, target, _server) = sandbox(turn.round as u64).await?;
    let name = lab.fresh();
    let count = contender.share_of_faults(events.count);
    let rate = contender.is_sdk().then_some(SDK_RATE);
    let job = Job { target, events, kinesis, mode: Mode::Resumable { limit: count, rate } };
    let launch = lab.launch(contender, &name, &job)?;

    let mut running = launch.start().await?;
    let is_half = || sandbox.ledger().events >= count as u64 / 2;
    wait(&running, "half of the events are billed", is_half).await.with_context(|| launch.errors())?;
    anyhow::ensure!(!has_ended(running.id()?), "it ended before half of the events were billed; {}", launch.errors());
    sleep(KILL_AFTER).await;
    running.kill().await?;
    drop(running);

    let at_restart = sandbox.stats().requests;
    let running = launch.start().await?;
    let quiet = if contender.is_kcl() { QUIET_KCL } else { QUIET };
    let mut latest = (at_restart, Instant::now());
    wait(&running, "all is delivered", || {
        let requests = sandbox.stats().requests;
        if requests > latest.0 {
            latest = (requests, Instant::now());
        }
        let is_complete = sandbox.ledger().events >= count as u64 && latest.1.elapsed() > SETTLE;
        contender.is_daemon() && (is_complete || latest.1.elapsed() > quiet)
    })
    .await
    .with_context(|| launch.errors())?;
    if contender.is_daemon() {
        anyhow::ensure!(!has_ended(running.id()?), "it ended by itself after its restart; {}", launch.errors());
        // All but one checkpoint what was accepted: what is not billed yet is still in the stream. The threaded
        // producer may have had all of it in its queue, and then has nothing left to send.
        let is_silent = sandbox.stats().requests == at_restart && sandbox.ledger().events < count as u64;
        anyhow::ensure!(
            contender == Contender::KclRsQueue || !is_silent,
            "nothing was delivered within {quiet:?} of its restart, though the stream holds more; {}",
            launch.errors()
        );
    }
    if let Running::Program(peer) = running
        && !contender.is_daemon()
    {
        peer.printed().with_context(|| launch.errors())?;
    }
    lab.clean(&name)?;

    let mut times = HashMap::<String, usize>::new();
    for record in sandbox.records() {
        *times.entry(record.value.context("a record without a value")?).or_default() += 1;
    }
    let billed: usize = times.values().sum();
    let failed = sandbox.stats().by_fault.get("fail_after").copied().unwrap_or_default();
    Ok(Damage {
        events: count,
        lost: count.saturating_sub(times.len()),
        doubled: billed - times.len(),
        absorbed: sandbox.ledger().absorbed_copies,
        failed,
    })
}

async fn sandbox(seed: u64) -> anyhow::Result<(Sandbox, SocketAddr, AbortOnDropHandle<std::io::Result<()>>)> {
    let sandbox = Sandbox::new(SandboxConfig::default());
    let faults = Faults { fail_after: Trigger::rate(FAIL_AFTER), seed, ..Faults::default() };
    sandbox.set_faults(faults)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let serve = amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending());
    Ok((sandbox, address, AbortOnDropHandle::new(tokio::spawn(serve))))
}

/// Until it is so, or the process has ended.
async fn wait(running: &Running, what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let process = running.id()?;
    let deadline = Instant::now() + LIMIT;
    while !is_so() && !has_ended(process) {
        anyhow::ensure!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        sleep(POLL).await;
    }
    Ok(())
}
