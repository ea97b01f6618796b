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
mod targets;
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use contender::Contender;
use inputs::Events;
use lab::Lab;
use process::Peer;
pub use programs::{PROGRAM, Program, main};
use report::Results;
use shared::service;
use turns::{Turn, Turns};

/// Shards of the stand-in for Kinesis in speed runs: each gives 2 MB/s.
const SHARDS: usize = 32;
/// A signal ended it.
const INTERRUPTED: u8 = 130;

/// Compares the pipeline with what its users would pick instead, and prints Markdown tables. Linux only.
///
/// Needs `loadtest/peers/setup.sh` and `loadtest/emulators/setup.sh`; a contender whose tools are missing is left out.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchPeersArgs {
    /// Events of a speed run; the slow contenders get fewer.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    events: u64,
    /// How often each contender runs; with faults at most 5 times, and those of kcl-rs once.
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
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "part"])]
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

impl Part {
    const ALL: [Self; 3] = [Self::Speed, Self::Latency, Self::Faults];

    const fn contenders(self) -> &'static [Contender] {
        match self {
            Self::Speed => &Contender::SPEED,
            Self::Latency => &Contender::LATENCY,
            Self::Faults => &Contender::FAULTS,
        }
    }
}

/// How much is done.
#[derive(Clone, Copy)]
struct Sizes {
    events: usize,
    rounds: usize,
    latency: Duration,
    fault_rounds: usize,
    faults: usize,
}

impl BenchPeersArgs {
    fn sizes(&self) -> Sizes {
        let seconds = Duration::from_secs;
        if self.quick {
            return Sizes { events: 50_000, rounds: 1, latency: seconds(3), fault_rounds: 1, faults: 20_000 };
        }
        let (events, rounds) = (self.events as usize, self.rounds as usize);
        let (fault_rounds, faults) = (rounds.min(5), events.min(100_000));
        Sizes { events, rounds, latency: seconds(20), fault_rounds, faults }
    }

    /// The contenders that are asked for in this part.
    fn asked(&self, part: Part) -> Vec<Contender> {
        let wants_part = self.part.is_empty() || self.part.contains(&part);
        let wants = |contender: &Contender| self.only.is_empty() || self.only.contains(contender);
        part.contenders().iter().copied().filter(|contender| wants_part && wants(contender)).collect()
    }
}

/// Runs the benchmark and prints its tables, until a signal ends it: exit code 130.
///
/// # Errors
/// When nothing ran. When a contender that is there cannot run, or does not deliver as many events as it was given in
/// a run without faults: only after the others have run, and the tables are printed.
pub async fn run(args: &BenchPeersArgs) -> anyhow::Result<ExitCode> {
    args.report.as_deref().map_or(Ok(()), report::check)?;
    let parts: Vec<_> = Part::ALL.into_iter().filter(|part| !args.asked(*part).is_empty()).collect();
    anyhow::ensure!(!parts.is_empty(), "nothing to run: none of --only {:?} has --part {:?}", args.only, args.part);
    let mut signals = service::signals()?;
    // Dropping what runs kills all processes and removes their files.
    tokio::select! {
        result = perform(args, parts) => result.map(|()| ExitCode::SUCCESS),
        _ = signals.recv() => Ok(INTERRUPTED.into()),
    }
}

async fn perform(args: &BenchPeersArgs, parts: Vec<Part>) -> anyhow::Result<()> {
    let sizes = args.sizes();
    let lab = Lab::open().await?;
    let results = Results::new(sizes.events, args.quick, lab.python.as_deref().ok());
    let mut bench = Bench { lab, sizes, results };
    let there: Vec<_> = parts.into_iter().map(|part| (part, bench.there(args.asked(part)))).collect();
    // Of all parts but that with faults.
    let mut events = None;
    for (part, there) in there.iter().filter(|(_, there)| !there.is_empty()) {
        if events.is_none() && *part != Part::Faults {
            let small = Contender::OursDefault.share(sizes.events);
            eprintln!("{} events are made", sizes.events);
            events = Some(Events::make(&bench.lab, "events", sizes.events, small, false).await?);
        }
        let done = match (part, &events) {
            (Part::Speed, Some(events)) => bench.speed(there, events).await,
            (Part::Latency, Some(events)) => bench.latency(there, events).await,
            _ => bench.faults(there).await,
        };
        if let Err(error) = done {
            bench.failed(format!("{part:?}"), &error);
        }
    }

    let results = bench.results;
    let tables = results.tables();
    println!("{tables}");
    anyhow::ensure!(
        !results.is_empty() || !results.failed.is_empty(),
        "nothing ran: all that was asked for is left out"
    );
    if let Some(file) = args.report.as_deref().filter(|_| !results.is_empty()) {
        report::write(file, &tables)?;
    }
    let failed: Vec<_> = results.failed.iter().map(|(what, reason)| format!("{what}: {reason}")).collect();
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

struct Bench {
    lab: Lab,
    sizes: Sizes,
    results: Results,
}

impl Bench {
    /// Those that can run here; the others are noted once.
    fn there(&mut self, asked: Vec<Contender>) -> Vec<Contender> {
        let mut there = Vec::new();
        for contender in asked {
            match self.lab.missing(contender) {
                None => there.push(contender),
                Some(_) if self.results.missing.iter().any(|(one, _)| *one == contender) => {}
                Some(reason) => self.results.missing.push((contender, reason)),
            }
        }
        there
    }

    async fn speed(&mut self, there: &[Contender], events: &Events) -> anyhow::Result<()> {
        let stream = Stream::of(events, there).await?;
        let mut turns = Turns::new("speed", there, |_| self.sizes.rounds);
        while let Some(turn) = turns.next() {
            match speed::run(&self.lab, turn.contender, events, stream.url()).await {
                Ok(speed) => {
                    let (pace, cost) = (speed.pace.per_second, speed.per_cpu_second);
                    eprintln!("{pace:>9.0} events/s, {cost:>9.0} per CPU-second   {turn}");
                    self.results.speed(turn.contender, speed);
                }
                Err(error) => self.given_up(&mut turns, &turn, &error),
            }
        }
        Ok(())
    }

    async fn latency(&mut self, there: &[Contender], events: &Events) -> anyhow::Result<()> {
        let mut turns = Turns::new("latency", there, |_| self.sizes.rounds);
        while let Some(turn) = turns.next() {
            match latency::run(&self.lab, turn.contender, events, self.sizes.latency).await {
                Ok(latency) => {
                    eprintln!("p50 {:.0} ms, p99 {:.0} ms   {turn}", latency.p50, latency.p99);
                    self.results.latency(turn.contender, latency);
                }
                Err(error) => self.given_up(&mut turns, &turn, &error),
            }
        }
        Ok(())
    }

    async fn faults(&mut self, there: &[Contender]) -> anyhow::Result<()> {
        let events = Events::make(&self.lab, "numbered", self.sizes.faults, 0, true).await?;
        let stream = Stream::of(&events, there).await?;
        // `kcl-rs` takes minutes, most of them waiting.
        let rounds = |contender: Contender| if contender.is_kcl() { 1 } else { self.sizes.fault_rounds };
        let mut turns = Turns::new("faults", there, rounds);
        while let Some(turn) = turns.next() {
            match faults::run(&self.lab, &turn, &events, stream.url()).await {
                Ok(damage) => {
                    eprintln!("{} lost, {} doubled   {turn}", damage.lost, damage.doubled);
                    self.results.damage(turn.contender, damage);
                }
                Err(error) => self.given_up(&mut turns, &turn, &error),
            }
        }
        Ok(())
    }

    /// A contender whose run has failed has no further turns in this part; the others go on.
    fn given_up(&mut self, turns: &mut Turns, turn: &Turn, error: &anyhow::Error) {
        turns.give_up(turn.contender);
        self.failed(turn.to_string(), error);
        if let Err(error) = self.lab.sweep() {
            self.failed("the files of a run that failed".to_owned(), &error);
        }
    }

    fn failed(&mut self, what: String, error: &anyhow::Error) {
        eprintln!("failed   {what}: {error:#}");
        // Without the log that may go with it.
        let reason = error.root_cause().to_string();
        self.results.failed.push((what, reason.lines().next().unwrap_or_default().to_owned()));
    }
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
