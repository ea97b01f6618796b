//! How the worker's cost grows with its work, one curve for each thing that can grow.
//!
//! Every point is a worker process of its own that has to deliver a known number of events to a sink in another process: a
//! run in which they are fewer or more fails. `loadtest/GROWTH.md` says where the curves bend, and why.

mod batch_size;
mod dedup_keys;
mod live_outage;
mod outage;
mod plan;
mod results;
mod shards;
mod sink_latency;
mod steady;
mod tenants;
mod worker;

use std::path::PathBuf;

use anyhow::Context as _;

use crate::bench;
use crate::bench_peers::lab::Lab;
use results::{Results, Taken};

/// Measures how the worker's cost grows with its work, and writes charts and tables. Linux only.
///
/// Needs `loadtest/emulators/setup.sh` for shards, dedup keys and outages, whose leases lie in an emulated DynamoDB. Curves
/// that are not measured are kept as they are in the report's `result.json`.
#[derive(Clone, Debug, clap::Args)]
pub struct GrowthArgs {
    /// Only these curves; may be given more than once.
    #[arg(long, value_enum)]
    only: Vec<Curve>,
    /// Fewer points, fewer events, one round: shows that it works, and little else.
    #[arg(long)]
    quick: bool,
    /// The directory of the report. Default: loadtest/reports/growth, or target/growth with --quick.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// For tests: the least that makes a curve.
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Curve {
    /// Shards of one worker.
    Shards,
    /// Tenants of the same number of events.
    Tenants,
    /// Keys in the deduplication window.
    DedupKeys,
    /// Events in a request, at most.
    BatchSize,
    /// Time that Amberflo takes to answer.
    SinkLatency,
    /// Time in which nothing was delivered: the worker was off, or Amberflo refused.
    Outage,
}

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// For tests.
    Tiny,
    /// To see it work.
    Quick,
    /// What the report is made of.
    Full,
}

impl Size {
    /// The one of this size.
    fn pick<T>(self, tiny: T, quick: T, full: T) -> T {
        match self {
            Self::Tiny => tiny,
            Self::Quick => quick,
            Self::Full => full,
        }
    }

    /// How often a point is measured, where that takes seconds; medians are shown.
    fn rounds(self) -> usize {
        self.pick(1, 1, 3)
    }
}

/// Measures the curves and writes the report.
///
/// # Errors
/// When a worker cannot run, or does not deliver as many events as there are.
pub async fn run(args: &GrowthArgs) -> anyhow::Result<()> {
    let size = match args {
        GrowthArgs { tiny: true, .. } => Size::Tiny,
        GrowthArgs { quick: true, .. } => Size::Quick,
        _ => Size::Full,
    };
    let wanted = |curve| args.only.is_empty() || args.only.contains(&curve);
    // Now: the report is written into this tree, which is then another.
    let context = bench::context();
    let default = if size == Size::Full { "loadtest/reports/growth" } else { "target/growth" };
    let report = args.report.clone().unwrap_or_else(|| default.into());
    let mut results = Results::read(&report)?;
    let lab = Lab::open().await?;
    if wanted(Curve::Tenants) {
        results.tenants = Some(Taken::new(&context, size, tenants::measure(&lab, size).await.context("tenants")?));
        results.write(&report)?;
    }
    if wanted(Curve::BatchSize) {
        results.batch_size =
            Some(Taken::new(&context, size, batch_size::measure(&lab, size).await.context("batch size")?));
        results.write(&report)?;
    }
    if wanted(Curve::SinkLatency) {
        results.sink_latency =
            Some(Taken::new(&context, size, sink_latency::measure(&lab, size).await.context("sink latency")?));
        results.write(&report)?;
    }
    if wanted(Curve::DedupKeys) {
        results.dedup_keys =
            Some(Taken::new(&context, size, dedup_keys::measure(&lab, size).await.context("dedup keys")?));
        results.write(&report)?;
    }
    if wanted(Curve::Shards) {
        results.shards = Some(Taken::new(&context, size, shards::measure(&lab, size).await.context("shards")?));
        results.write(&report)?;
    }
    if wanted(Curve::Outage) {
        results.outage = Some(Taken::new(&context, size, outage::measure(&lab, size).await.context("outage")?));
        results.write(&report)?;
        let live = live_outage::measure(&lab, size).await.context("outage of Amberflo")?;
        results.live_outage = Some(Taken::new(&context, size, live));
        results.write(&report)?;
    }
    eprintln!("written: {}", report.join("report.md").display());
    Ok(())
}
