//! What the pipeline costs, as tables. Nothing here passes or fails on a time: machines differ.
//!
//! Throughput is given per second of CPU time (user and system, all threads of the process), which a busy machine
//! changes less than wall time. Where two things are compared they run in turns, and medians are shown.

pub mod bare_loop;
mod control_api;
mod dedup;
pub mod fleet;
pub mod flow;
mod gzip;
mod idle_shards;
mod kinesis_path;
mod lambda_start;
mod lease_writes;
pub mod measure;
mod path;
pub mod payload;
mod put_events;
mod stages;
mod takeover;
mod worker_process;

use std::time::Duration;

use crate::machine::{self, Machine};
use payload::Payload;

/// Arguments of `loadtest bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// Smaller sizes: all of it in about three minutes, with less certain numbers.
    #[arg(long)]
    quick: bool,
    /// Runs only this one.
    #[arg(long, value_enum)]
    only: Option<Bench>,
}

/// The benchmarks, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Bench {
    /// Memory of the dedup window; first, while the heap is small.
    Dedup,
    /// The worker's path beside a bare loop.
    Path,
    /// The path behind the Kinesis client.
    KinesisPath,
    /// Where the path's time goes.
    Stages,
    /// Levels of gzip.
    Gzip,
    /// Durable PutEvents.
    PutEvents,
    /// A worker's memory under full load.
    Memory,
    /// A worker's throughput with default limits.
    Limits,
    /// How long a shard waits for another worker.
    Takeover,
    /// Calls to the lease table.
    LeaseWrites,
    /// A worker's memory with many idle shards.
    IdleShards,
    /// The control API: what it adds to Amberflo's latency, requests per CPU-second, its start as a Lambda function, sizes.
    ControlApi,
}

/// How much is done.
struct Sizes {
    events: usize,
    rounds: usize,
    put_events_seconds: u64,
    dedup_keys: &'static [u32],
    backlog: usize,
    limited_backlog: usize,
    kinesis_rounds: usize,
    takeover_window: Duration,
    lease_writes: Duration,
    api_calls: usize,
    api_load: Duration,
    lambda_starts: usize,
}

const FULL: Sizes = Sizes {
    events: 400_000,
    rounds: 7,
    put_events_seconds: 5,
    dedup_keys: &[10_000, 100_000, 1_000_000, 5_000_000],
    backlog: 1_000_000,
    limited_backlog: 200_000,
    kinesis_rounds: 3,
    // The default of the setting.
    takeover_window: Duration::from_secs(120),
    lease_writes: Duration::from_secs(60),
    api_calls: 5000,
    api_load: Duration::from_secs(5),
    lambda_starts: 20,
};
const QUICK: Sizes = Sizes {
    events: 100_000,
    rounds: 3,
    put_events_seconds: 2,
    dedup_keys: &[10_000, 100_000, 1_000_000],
    backlog: 150_000,
    limited_backlog: 50_000,
    kinesis_rounds: 1,
    takeover_window: Duration::from_secs(5),
    lease_writes: Duration::from_secs(20),
    api_calls: 1000,
    api_load: Duration::from_secs(2),
    lambda_starts: 5,
};

/// Runs the benchmarks and prints their tables.
///
/// # Errors
/// When something cannot run at all, or a path under measurement loses an event.
pub async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let sizes = if args.quick { QUICK } else { FULL };
    let is_wanted = |bench| args.only.is_none_or(|only| only == bench);
    print_context(args.quick);
    if is_wanted(Bench::Dedup) {
        dedup::run(sizes.dedup_keys);
    }
    if [Bench::Path, Bench::KinesisPath, Bench::Stages, Bench::Gzip].into_iter().any(is_wanted) {
        let payload = Payload::generate(sizes.events);
        if is_wanted(Bench::Path) {
            path::run(&payload, sizes.rounds).await?;
        }
        if is_wanted(Bench::KinesisPath) {
            kinesis_path::run(&payload, sizes.kinesis_rounds).await?;
        }
        if is_wanted(Bench::Stages) {
            stages::run(&payload, sizes.rounds).await?;
        }
        if is_wanted(Bench::Gzip) {
            gzip::run(&payload, sizes.rounds)?;
        }
    }
    if is_wanted(Bench::PutEvents) {
        put_events::run(sizes.put_events_seconds).await?;
    }
    if is_wanted(Bench::Memory) {
        worker_process::memory(sizes.backlog).await?;
    }
    if is_wanted(Bench::Limits) {
        worker_process::limits(sizes.limited_backlog).await?;
    }
    // At once: they wait for time to pass, and leave the CPU almost idle.
    let takeover =
        async { if is_wanted(Bench::Takeover) { takeover::run(sizes.takeover_window).await } else { Ok(()) } };
    let lease_writes =
        async { if is_wanted(Bench::LeaseWrites) { lease_writes::run(sizes.lease_writes).await } else { Ok(()) } };
    tokio::try_join!(takeover, lease_writes)?;
    if is_wanted(Bench::IdleShards) {
        idle_shards::run().await?;
    }
    if is_wanted(Bench::ControlApi) {
        control_api::run(sizes.api_calls, sizes.api_load).await?;
        lambda_start::run(sizes.lambda_starts).await?;
    }
    Ok(())
}

fn print_context(quick: bool) {
    print!("{}", context());
    println!("sizes    {}", if quick { "quick" } else { "full" });
    println!("cpu time CLOCK_PROCESS_CPUTIME_ID: user and system, all threads");
}

/// The machine and how this program was built, a line each.
pub fn context() -> String {
    let Machine { cores, cpu, os, rustc, profile } = Machine::here();
    let profile = if profile == "debug" { "debug: the numbers mean nothing" } else { profile };
    let commit = machine::commit().unwrap_or_else(|| "unknown".to_owned());
    format!(
        "machine  {cores} cores, {cpu}, {os}
rustc    {rustc}
profile  {profile}
commit   {commit}
"
    )
}
