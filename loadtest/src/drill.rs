//! The drill: deployments with one fault each, watched through Prometheus, page for the right reasons.

mod dashboards;
mod load;
mod prometheus;
mod rescale;
mod runbook;
mod scenarios;
mod stack;
mod verdict;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use shared::clock::Clock;
use shared::service;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use prometheus::{Prometheus, Target};
use runbook::Runbook;
use scenarios::Scenario;
use stack::{Aws, Stack};
use watch::Watch;

pub use prometheus::{SUBCOMMAND as PROMETHEUS, child_main as become_prometheus};

const INTERRUPTED: u8 = 130;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LEASES_TIMEOUT: Duration = Duration::from_secs(60);
/// Deployments whose leases are not taken or not shared yet.
const RESTLESS: &str = "max by (cluster) (ingest_shards) - sum by (cluster) (ingest_leases_held) != 0 \
    or min by (cluster) (ingest_leases_held) == 0";
/// Scrapes of services that ran, and did not answer within a second.
const MISSED: &str = "sum by (cluster) (count_over_time((up == 0)[30m:1s]))";
/// Before anything goes wrong: alerts on a change need to know what is usual.
const CALM: Duration = Duration::from_secs(30);
/// From the injection to the verdict, at most.
const OBSERVATION: Duration = Duration::from_secs(170);
/// How long nothing unexpected may come once everything expected has.
const SETTLED_FOR: Duration = Duration::from_secs(15);

/// Runs small deployments side by side, breaks one thing in each, and checks what a real Prometheus makes of it.
///
/// Rules and dashboards are those of infra/observability, with every duration divided, so that hours pass in minutes.
/// Exactly the right alerts must fire; each must lead by its section of the runbook to the cause that was injected; and
/// every query of every dashboard must have an answer. Takes about 4 minutes. Exit code 0: all of that was so.
#[derive(Debug, clap::Args)]
pub struct DrillArgs {
    /// The Prometheus to run. Default: what infra/observability/setup.sh installed, or else the one on the PATH.
    #[arg(long, value_name = "PATH")]
    prometheus: Option<PathBuf>,
    /// Where rules/, dashboards/ and RUNBOOK.md are. Default: infra/observability of this source tree.
    #[arg(long, value_name = "DIR")]
    observability: Option<PathBuf>,
    /// By what every duration of rules, dashboards and runbook is divided.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60))]
    factor: u64,
    /// Run only these deployments, without the dashboards.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave everything running afterwards, and say where Prometheus is. Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
}

/// Runs until the verdict, or until a signal ends it.
///
/// # Errors
/// When the drill could not be carried out; an alert too many or too few is not an error, but exit code 1.
pub async fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut signals = service::signals()?;
    // Dropping what runs kills all processes and removes the directory.
    tokio::select! {
        result = perform(&args) => Ok(if result? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        _ = signals.recv() => Ok(INTERRUPTED.into()),
    }
}

async fn perform(args: &DrillArgs) -> anyhow::Result<bool> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/observability");
    let observability = args.observability.as_deref().unwrap_or(&default);
    let runbook = Runbook::read(&observability.join("RUNBOOK.md"))?;
    let dir = tempfile::Builder::new().prefix("metering-drill-").tempdir().context("no temporary directory")?;

    let mut stacks = start(chosen(&args.only)?, dir.path()).await?;
    let scenarios: Vec<Scenario> = stacks.iter().map(|stack| stack.scenario.clone()).collect();
    let targets: Vec<Target> = stacks.iter().flat_map(Stack::targets).cloned().collect();
    let program = prometheus::program(args.prometheus.as_deref());
    let started = seconds_now();
    let mut prometheus = Prometheus::start(&program, dir.path(), targets.clone()).await?;
    wait_for_leases(&prometheus).await?;
    prometheus.follow(&observability.join("rules"), args.factor).await?;
    println!("{} deployments, {} targets; Prometheus: {}", stacks.len(), targets.len(), prometheus.base());

    let mut watch = Watch::new(&prometheus, &runbook, args.factor, &scenarios);
    observe(&mut watch, &mut stacks).await?;
    println!("\n{}\n", watch.verdict.table());
    let mut problems = watch.verdict.problems();
    problems.extend(prometheus.broken_rules().await?);
    problems.extend(runbook.broken_queries(&prometheus, args.factor).await);
    if args.only.is_empty() {
        let times = (started, seconds_now());
        let dashboards = observability.join("dashboards");
        let found = dashboards::check(&dashboards, &prometheus, times, args.factor).await?;
        let unanswered = found.errors.len() + found.empty.len();
        println!("{} queries of dashboards, {unanswered} without an answer", found.queries);
        problems.extend(found.errors);
        // Some panels are about what only Kinesis has.
        if scenarios.iter().any(|scenario| scenario.is_on_kinesis) {
            problems.extend(found.empty);
        }
    }
    prometheus.check()?;
    for problem in &problems {
        println!("FAILED  {problem}");
    }
    if problems.is_empty() {
        println!("exactly the right alerts fired, and each led to its cause");
    } else {
        explain(&prometheus, &stacks, &problems).await?;
    }
    if args.keep {
        println!("Prometheus is left running at {}; Ctrl-C ends it", prometheus.base());
        std::future::pending::<()>().await;
    }
    Ok(problems.is_empty())
}

/// What a failure is looked into with: logs, and whether the machine could do what a drill asks of it.
async fn explain(prometheus: &Prometheus, stacks: &[Stack], problems: &[String]) -> anyhow::Result<()> {
    let missed = prometheus.query(MISSED).await?;
    for stack in stacks {
        let name = stack.scenario.name;
        if problems.iter().any(|problem| problem.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))) {
            eprintln!("{}", stack.logs());
        }
        let missed = missed.iter().find(|series| series.labels.get("cluster").is_some_and(|label| label == name));
        if let Some(missed) = missed.filter(|_| stack.scenario.fault.leaves_all_running()) {
            let count = missed.values.first().copied().unwrap_or_default();
            eprintln!("{name}: {count} scrapes of services that run had no answer in time: is the machine too busy?");
        }
    }
    eprintln!("the log of Prometheus ends with:\n{}", prometheus.log_tail());
    Ok(())
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = scenarios::all();
    if let Some(unknown) = only.iter().find(|name| scenarios.iter().all(|scenario| scenario.name != *name)) {
        let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name).collect();
        bail!("--only {unknown}: there are {}", names.join(", "));
    }
    scenarios.retain(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name));
    Ok(scenarios)
}

/// Starts all deployments at once; those on Kinesis are left out where its emulators are not installed.
async fn start(mut scenarios: Vec<Scenario>, dir: &Path) -> anyhow::Result<Vec<Stack>> {
    let mut aws = None;
    if scenarios.iter().any(|scenario| scenario.is_on_kinesis) {
        match Aws::start().await {
            Ok(started) => aws = Some(Arc::new(started)),
            Err(reason) => {
                emulators::skip("drill on emulated Kinesis", &reason);
                scenarios.retain(|scenario| !scenario.is_on_kinesis);
            }
        }
    }
    let mut starting = JoinSet::new();
    for scenario in scenarios {
        let (dir, aws) = (dir.to_owned(), aws.clone().filter(|_| scenario.is_on_kinesis));
        starting.spawn(async move { Stack::start(scenario, &dir, aws).await });
    }
    let mut stacks = Vec::new();
    while let Some(stack) = starting.join_next().await {
        stacks.push(stack??);
    }
    ensure!(!stacks.is_empty(), "nothing to run");
    Ok(stacks)
}

/// Waits until every shard has a worker, and every worker a shard: with that the deployments are at rest.
async fn wait_for_leases(prometheus: &Prometheus) -> anyhow::Result<()> {
    let deadline = Instant::now() + LEASES_TIMEOUT;
    loop {
        let restless = prometheus.query(RESTLESS).await?;
        if restless.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "leases are not shared after {LEASES_TIMEOUT:?}: {restless:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Calm, injection, healing, and some time for what nobody expects.
async fn observe(watch: &mut Watch<'_>, stacks: &mut [Stack]) -> anyhow::Result<()> {
    println!("{} s without faults", CALM.as_secs());
    let injection = Instant::now() + CALM;
    look_until(watch, injection).await?;
    for stack in &mut *stacks {
        stack.inject().await?;
    }
    watch.injected();
    println!("faults injected");
    let mut heals: Vec<(Instant, &Stack)> = Vec::new();
    for stack in &*stacks {
        heals.extend(stack.scenario.heals_after.map(|after| (injection + after, stack)));
    }
    heals.sort_by_key(|(at, _)| *at);
    for (at, stack) in heals {
        look_until(watch, at).await?;
        stack.heal()?;
        println!("{}: the fault is over", stack.scenario.name);
    }
    let end = injection + OBSERVATION;
    let mut complete_since = None;
    while Instant::now() < end {
        look_until(watch, Instant::now() + LOOK_EVERY).await?;
        complete_since = watch.verdict.problems().is_empty().then(|| complete_since.unwrap_or_else(Instant::now));
        if complete_since.is_some_and(|since| since.elapsed() >= SETTLED_FOR) {
            break;
        }
    }
    Ok(())
}

async fn look_until(watch: &mut Watch<'_>, end: Instant) -> anyhow::Result<()> {
    loop {
        let next = (Instant::now() + LOOK_EVERY).min(end);
        watch.look().await?;
        sleep_until(next).await;
        if next >= end {
            return Ok(());
        }
    }
}

fn seconds_now() -> f64 {
    Clock::system().now() as f64 / 1000.0
}
