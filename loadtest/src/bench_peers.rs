//! What the pipeline costs beside what its users would pick instead, in one run on one machine.
//!
//! Every contender is a process of its own and delivers the same events to the same sink, which is a process too. They
//! run in turns, so that a machine which gets slower for a while is unfair to nobody, and medians are shown.
//! `loadtest/BENCHMARK.md` says what each contender is, and what is fair about it.

mod contender;
mod faults;
pub mod inputs;
pub mod lab;
mod latency;
pub mod process;
mod programs;
pub mod report;
pub mod sink;
pub mod speed;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use contender::Contender;
use inputs::Events;
use lab::Lab;
use process::Peer;
pub use programs::{PROGRAM, Program, main};
use report::Results;

/// Shards of the stand-in for Kinesis in speed runs: each gives 2 MB/s.
const SHARDS: usize = 32;

/// Compares the pipeline with what its users would pick instead, and prints Markdown tables. Linux only.
///
/// Needs `loadtest/peers/setup.sh` and `loadtest/emulators/setup.sh`; a contender whose tools are missing is left out.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchPeersArgs {
    /// Events of a speed run; the slow contenders get fewer.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    events: u64,
    /// How often each contender runs; of latency runs at most 3.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// Only these contenders; may be given more than once.
    #[arg(long, value_enum)]
    only: Vec<Contender>,
    /// Only these parts; may be given more than once.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// 50,000 events, one round, short runs: shows that it works, and little else.
    #[arg(long)]
    quick: bool,
    /// Also writes the tables into this file, between its two lines `<!-- bench-peers -->`.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Events a second, and what they cost.
    Speed,
    /// How long an event is under way.
    Latency,
    /// What is lost or doubled.
    Faults,
}

/// How much is done.
#[derive(Clone, Copy)]
struct Sizes {
    events: usize,
    rounds: usize,
    latency_rounds: usize,
    latency: Duration,
    faults: usize,
}

impl BenchPeersArgs {
    fn sizes(&self) -> Sizes {
        let seconds = Duration::from_secs;
        if self.quick {
            return Sizes { events: 50_000, rounds: 1, latency_rounds: 1, latency: seconds(3), faults: 20_000 };
        }
        let (events, rounds) = (self.events as usize, self.rounds as usize);
        Sizes { events, rounds, latency_rounds: rounds.min(3), latency: seconds(20), faults: events.min(100_000) }
    }

    fn wants(&self, part: Part) -> bool {
        self.part.is_empty() || self.part.contains(&part)
    }
}

/// Runs the benchmark and prints its tables.
///
/// # Errors
/// When a contender that is there cannot run, or does not deliver everything in a run without faults.
pub async fn run(args: &BenchPeersArgs) -> anyhow::Result<()> {
    let sizes = args.sizes();
    let lab = Lab::open().await?;
    let mut results = Results::new(sizes.events, args.quick, lab.python.as_deref().ok());
    let mut contenders = |all: &[Contender]| {
        let wanted = all.iter().copied().filter(|one| args.only.is_empty() || args.only.contains(one));
        let (there, missing): (Vec<_>, Vec<_>) = wanted.partition(|one| lab.missing(*one).is_none());
        let reason = |one: Contender| Some((one, lab.missing(one)?));
        results.missing.extend(missing.into_iter().filter_map(reason));
        there
    };
    let (fast, timed, killed) =
        (contenders(&Contender::SPEED), contenders(&Contender::LATENCY), contenders(&Contender::FAULTS));

    let small = Contender::OursDefault.share(sizes.events);
    eprintln!("{} events are made", sizes.events);
    let events = Events::make(&lab, "events", sizes.events, small, false).await?;
    if args.wants(Part::Speed) {
        let stream = Stream::of(&events, &fast).await?;
        for round in 1..=sizes.rounds {
            for &contender in &fast {
                let speed = speed::run(&lab, contender, &events, stream.url()).await;
                let speed = speed.with_context(|| contender.title().to_owned())?;
                let told = format!("{:>9.0} events/s, {:>9.0} per CPU-second", speed.per_second, speed.per_cpu_second);
                eprintln!("speed {round}/{}   {told}   {}", sizes.rounds, contender.title());
                results.speed(contender, speed);
            }
        }
    }
    if args.wants(Part::Latency) {
        for round in 1..=sizes.latency_rounds {
            for &contender in &timed {
                let latency = latency::run(&lab, contender, &events, sizes.latency).await;
                let latency = latency.with_context(|| contender.title().to_owned())?;
                let told = format!("p50 {:.0} ms, p99 {:.0} ms", latency.p50, latency.p99);
                eprintln!("latency {round}/{}   {told}   {}", sizes.latency_rounds, contender.title());
                results.latency(contender, latency);
            }
        }
    }
    if args.wants(Part::Faults) {
        let events = Events::make(&lab, "numbered", sizes.faults, 0, true).await?;
        let stream = Stream::of(&events, &killed).await?;
        for &contender in &killed {
            let damage = faults::run(&lab, contender, &events, stream.url()).await;
            let damage = damage.with_context(|| contender.title().to_owned())?;
            eprintln!("faults   {} lost, {} doubled   {}", damage.lost, damage.doubled, contender.title());
            results.damage(contender, damage);
        }
    }

    let tables = results.tables();
    println!("{tables}");
    args.report.as_deref().map_or(Ok(()), |file| report::write(file, &tables))
}

/// A stand-in for Kinesis in a process of its own, where a contender needs one.
struct Stream(Option<(Peer, String)>);

impl Stream {
    async fn of(events: &Events, contenders: &[Contender]) -> anyhow::Result<Self> {
        if !contenders.iter().any(|contender| contender.reads_kinesis()) {
            return Ok(Self(None));
        }
        let args = ["canned-kinesis".into(), events.lines.clone().into(), SHARDS.to_string().into()];
        let (process, address) = Peer::announcing(&args).await.context("the stand-in for Kinesis")?;
        Ok(Self(Some((process, format!("http://{address}")))))
    }

    fn url(&self) -> Option<&str> {
        self.0.as_ref().map(|(_, url)| url.as_str())
    }
}
