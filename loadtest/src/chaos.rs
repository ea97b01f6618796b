//! Chaos: two deployments of real processes under everything that can go wrong, at random and overlapping, while their
//! bill is audited all the time.

mod amberflo;
mod arena;
mod board;
mod clock;
mod disk;
mod finish;
mod inject;
mod invariants;
mod keys;
mod kind;
mod links;
mod live;
mod member;
mod report;
mod schedule;
mod tail;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use shared::service;
use tokio::task::JoinSet;
use tokio::time::Instant;

use arena::{Arena, Aws, Setting};
use board::Board;
use clock::FakeClock;
use finish::Outcome;
use kind::ArenaName;
use report::Report;
use schedule::Step;
use watch::{Seen, Watch};

use crate::machine::{self, Machine};
use crate::mix::Mix;
use crate::producer::{Load, Plane};
use crate::report_dir;

/// How often the plane makes what is due.
const TICK: Duration = Duration::from_millis(100);
/// The emulator of Kinesis takes a time for a call that is as long as the call and as the shard.
const CALL: usize = 10;
/// The emulator of SQS takes the longer for a letter the more there are, until a pass over all of them takes longer than they
/// stay hidden, and never comes to the last. So many entries have enough of them.
const LETTERS_OF: f64 = 20_000.0;
const INTERRUPTED: u8 = 130;
/// Everything is kept in memory for the audit, about two kilobytes an event.
const EVENTS_MAX: f64 = 1e6;

/// Breaks two deployments at random for some minutes, and accounts for every event.
///
/// One deployment has three workers on emulated Kinesis, DynamoDB, SQS and Secrets Manager, the other one worker on its
/// local store. Processes are killed, paused and restarted, shards split and merged, keys changed, disks filled, clocks
/// moved; Amberflo and every service misbehave in every way they can, several at a time. Meanwhile it is checked that
/// no event is billed twice, or otherwise than it was emitted, and that no checkpoint passes an event that is not
/// settled; at the end, that nothing is lost. Exit code 0: all of that was so.
#[derive(Clone, Debug, clap::Args)]
pub struct ChaosArgs {
    /// For how long events are emitted and things go wrong; the settling afterwards takes a minute or so more.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=24 * 60))]
    minutes: u32,
    /// Where all random sequences start: the same seed gives the same faults at the same times.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Entries per second on the local store.
    #[arg(long, default_value = "200")]
    rate: NonZeroU32,
    /// Entries per second on emulated Kinesis. The more records its shards hold, the longer it takes for another: some tens
    /// a second is what it keeps up with for long.
    #[arg(long, default_value = "30")]
    kinesis_rate: NonZeroU32,
    /// Run only this deployment.
    #[arg(long, value_enum)]
    only: Option<ArenaName>,
    /// Print what would go wrong when, and end.
    #[arg(long)]
    plan: bool,
    /// Where report.md, its charts and result.json go. Default: target/chaos/seed-SEED of this source tree.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Keep the logs and the local store also of a run that passed.
    #[arg(long)]
    keep: bool,
    /// A small disk for the local store: how the program tells itself, once it has one.
    #[arg(long, hide = true, value_name = "DIR")]
    disk: Option<PathBuf>,
}

/// Runs until the verdict, or until a signal ends it.
///
/// # Errors
/// When the run could not be carried out; a broken promise is not an error, but exit code 1.
pub async fn run(args: ChaosArgs) -> anyhow::Result<ExitCode> {
    let length = Duration::from_secs(60 * u64::from(args.minutes));
    let events: f64 = args.arenas().map(|arena| length.as_secs_f64() * f64::from(args.rate_of(arena))).sum();
    ensure!(
        events <= EVENTS_MAX,
        "{events} events do not fit into memory, {EVENTS_MAX} do: lower --minutes, --rate or --kinesis-rate"
    );
    let mut steps = schedule::plan(args.seed, length);
    steps.retain(|step| args.arenas().any(|arena| arena == step.arena));
    if args.plan {
        steps.iter().for_each(|step| println!("{}", planned(step)));
        return Ok(ExitCode::SUCCESS);
    }
    report_dir::prepare(&args.report_dir())?;
    if args.disk.is_none() && args.has(ArenaName::Local) {
        // Every run mounts its own there, which others do not see.
        let dir = output().join("disk");
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        if disk::is_possible(&dir) {
            let mut again: Vec<OsString> = std::env::args_os().skip(1).collect();
            again.extend(["--disk".into(), dir.clone().into()]);
            return Err(disk::restart(&dir, &again).context("a disk that can be filled"));
        }
    }
    // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(match perform(&args, steps, length).await? {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => INTERRUPTED.into(),
    })
}

impl ChaosArgs {
    fn arenas(&self) -> impl Iterator<Item = ArenaName> {
        ArenaName::ALL.into_iter().filter(|arena| self.only.is_none_or(|only| only == *arena))
    }

    fn has(&self, arena: ArenaName) -> bool {
        self.arenas().any(|one| one == arena)
    }

    fn report_dir(&self) -> PathBuf {
        self.report.clone().unwrap_or_else(|| output().join(format!("seed-{}", self.seed)))
    }

    fn rate_of(&self, arena: ArenaName) -> u32 {
        match arena {
            ArenaName::Kinesis => self.kinesis_rate.get(),
            ArenaName::Local => self.rate.get(),
        }
    }

    /// What repeats this run.
    fn command(&self) -> String {
        let only = self.only.map(|arena| format!(" --only {arena}")).unwrap_or_default();
        let Self { minutes, seed, rate, kinesis_rate, .. } = self;
        let options = format!("--minutes {minutes} --seed {seed} --rate {rate} --kinesis-rate {kinesis_rate}{only}");
        format!("make chaos ARGS='{options}'")
    }
}

fn planned(step: &Step) -> String {
    let (at, lasts) = (step.at.as_secs_f64(), (step.until - step.at).as_secs_f64());
    format!(
        "{at:>7.1} s  {:<8}{:<20}{lasts:>5.1} s  worker-{}  {}",
        step.arena,
        step.kind.name,
        step.worker + 1,
        step.kind.what
    )
}

/// Where results go unless a run says otherwise.
fn output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/chaos")
}

/// Which deployment, and what became of it.
type Ended = (ArenaName, anyhow::Result<Outcome>);

/// Runs, and keeps what is needed to look into a failure. `None`: a signal came first.
async fn perform(args: &ChaosArgs, steps: Vec<Step>, length: Duration) -> anyhow::Result<Option<bool>> {
    let mut signals = service::signals()?;
    let dir = tempfile::Builder::new().prefix("metering-chaos-").tempdir().context("no temporary directory")?;
    let mut running = JoinSet::new();
    let result = tokio::select! {
        result = play(args, steps, length, dir.path(), &mut running) => result.map(Some),
        _ = signals.recv() => Ok(None),
    };
    // Kills the workers.
    running.shutdown().await;
    if args.keep || !matches!(result, Ok(Some(true))) {
        let dir = dir.keep();
        if let Some(disk) = &args.disk
            && let Err(error) = arena::save_store(disk, &dir.join(ArenaName::Local.to_string()))
        {
            println!("the local store cannot be kept: {error:#}");
        }
        println!("logs and local store are kept: {}", dir.display());
    }
    result
}

async fn play(
    args: &ChaosArgs,
    steps: Vec<Step>,
    length: Duration,
    dir: &Path,
    running: &mut JoinSet<Ended>,
) -> anyhow::Result<bool> {
    let commit = machine::commit();
    let mut left_out = Vec::new();
    let mut leave_out = |what: &str, why: &str| {
        emulators::skip(&format!("chaos: {what}"), why);
        left_out.push(format!("{what} ({why})"));
    };
    let clock = FakeClock::find(dir);
    if let Err(why) = &clock {
        leave_out("clock jumps", why);
    }
    if args.has(ArenaName::Local) && args.disk.is_none() {
        leave_out("a full disk", "this system gives no mount namespace");
    }
    let mut aws = None;
    let mut names: Vec<ArenaName> = args.arenas().collect();
    if names.contains(&ArenaName::Kinesis) {
        match emulators::check_installed() {
            Ok(()) => aws = Some(Aws::start().await?),
            Err(reason) => {
                leave_out("all on emulated Kinesis", &reason);
                names.retain(|name| *name != ArenaName::Kinesis);
            }
        }
    }
    let clock = clock.ok();
    ensure!(!names.is_empty(), "no deployment is left to run: see above why");
    println!("{}\nlogs: {}", args.command(), dir.display());
    let mut arenas = Vec::new();
    for name in names {
        let setting =
            Setting { dir: dir.join(name.to_string()), seed: args.seed, clock: clock.clone(), disk: args.disk.clone() };
        let board = Arc::new(Board::new(name));
        let aws = aws.take_if(|_| name == ArenaName::Kinesis);
        arenas.push(Arena::start(setting, board, aws).await.with_context(|| format!("the deployment {name}"))?);
    }

    let origin = Instant::now();
    let boards: Vec<_> = arenas.iter().map(|arena| Arc::clone(&arena.board)).collect();
    boards.iter().for_each(|board| board.start(origin));
    let live = live::Live::start(boards.clone(), length);
    for mut arena in arenas {
        let own: Vec<Step> = steps.iter().copied().filter(|step| step.arena == arena.name).collect();
        let load = Load { duration: length, rate: args.rate_of(arena.name), seed: args.seed, tick: TICK, call: CALL };
        running.spawn(async move { (arena.name, carry_out(&mut arena, own, load, origin).await) });
    }
    let mut ends = BTreeMap::new();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((name, outcome)) => drop(ends.insert(name, outcome)),
            // The one whose end is missing.
            Err(error) => eprintln!("loadtest: {error}"),
        }
    }
    drop(live);
    let outcomes: Vec<Outcome> = boards
        .iter()
        .map(|board| match ends.remove(&board.arena()) {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Outcome::aborted(board, &error),
            None => Outcome::aborted(board, &anyhow::anyhow!("the run panicked")),
        })
        .collect();
    let mut planned = BTreeMap::<ArenaName, BTreeMap<&'static str, u64>>::new();
    for step in steps.iter().filter(|step| outcomes.iter().any(|outcome| outcome.arena == step.arena)) {
        *planned.entry(step.arena).or_default().entry(step.kind.name).or_default() += 1;
    }
    let report = Report {
        passed: outcomes.iter().all(|outcome| outcome.passed),
        command: args.command(),
        commit,
        seed: args.seed,
        minutes: f64::from(args.minutes),
        rates: args.arenas().map(|arena| (arena, args.rate_of(arena))).collect(),
        left_out,
        patience: watch::patience(schedule::calm(length)).map(|patience| patience.as_secs_f64()),
        machine: Machine::here(),
        planned,
        outcomes,
    };
    let into = args.report_dir();
    report.write(&into)?;
    println!("{}", report.summary());
    println!("report: {}", into.join("report.md").display());
    Ok(report.passed)
}

async fn carry_out(arena: &mut Arena, steps: Vec<Step>, load: Load, origin: Instant) -> anyhow::Result<Outcome> {
    // Refusals of single records are rare, but a short run has some.
    let demo = Mix::demo();
    let entries = load.duration.as_secs_f64() * f64::from(load.rate);
    let share = if arena.name == ArenaName::Kinesis { (LETTERS_OF / entries).min(1.0) } else { 1.0 };
    let (malformed, conflicts) = (share * demo.malformed, share * demo.conflicts);
    let mix = Mix { poison: 1.0 / 5_000.0, malformed, conflicts, ..demo };
    let plane = Plane::start_on(arena.entrance().await?, mix, load, origin);
    let (stream, leases) = arena.store.open().await?;
    let seen = Seen {
        board: Arc::clone(&arena.board),
        sandbox: arena.sandbox.clone(),
        emission: Arc::clone(&plane.emission),
        truth: Arc::clone(&plane.truth),
        workers: arena.workers.iter().map(|worker| (worker.name.clone(), worker.scraper())).collect(),
        length: load.duration,
    };
    let watching = Watch { seen, tail: tail::Tail::new(stream, leases) }.start();
    arena.misbehave(steps, load.duration).await?;
    arena.finish(plane, watching).await
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ChaosArgs,
    }

    #[test]
    fn the_command_that_repeats_a_run_is_what_a_user_types() {
        let args = Cli::parse_from(["chaos", "--minutes", "2", "--seed", "11", "--only", "local"]).args;
        let expected = "make chaos ARGS='--minutes 2 --seed 11 --rate 200 --kinesis-rate 30 --only local'";
        assert_eq!(args.command(), expected);
    }
}
