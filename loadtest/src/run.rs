//! A load run: events put on a deployment at a rate, and how long it took to be rid of them.

mod args;
mod outcome;
mod workers;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::HumanCount;
use shared::clock::Clock;
use shared::service::{self, EXIT_CONFIGURATION, EXIT_FAILURE};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::generator::Generator;
use crate::load::{self, Plan, Tally};
use crate::manifest::{self, Header, Lines, Writer};
use crate::mix::Mix;
use crate::progress::Teller;
use crate::report_dir;
use args::Opened;
pub use args::RunArgs;
use outcome::Outcome;
use workers::{Samples, Workers};

const INTERRUPTED: u8 = 130;
const SHOW_EVERY: Duration = Duration::from_millis(250);
/// How long events that wait are still sent after Ctrl-C.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs until the plan is carried out, and tells how it went; exit codes as [`RunArgs`] says.
pub async fn run(args: RunArgs) -> ExitCode {
    match carry_out(args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            EXIT_CONFIGURATION.into()
        }
    }
}

async fn carry_out(args: RunArgs) -> anyhow::Result<ExitCode> {
    args.check()?;
    let teller = Teller::new(args.json);
    let workers = Workers::open(&args.worker_metrics)?;
    let opened = args.open().await?;
    if !may_begin(&args, &opened, &teller)? {
        teller.say("nothing was sent");
        return Ok(EXIT_CONFIGURATION.into());
    }
    args.report.as_deref().map_or(Ok(()), report_dir::prepare)?;
    // From here on a signal is an orderly end.
    let mut signals = service::signals()?;
    let mix = args.mix(Mix::new_run());
    let header = Header {
        version: manifest::VERSION,
        run: mix.run.clone(),
        seed: args.seed,
        target: opened.name.clone(),
        started_at: Clock::system().now(),
        mix,
    };
    let path = manifest_path(&args, &header.run);
    let (writer, written) = Writer::create(&path, &header)?;
    let plan = args.plan();
    teller.say(&format!(
        "run {}: {} events/s for {} on {}\nmanifest {}",
        header.run,
        plan.rate,
        humantime::format_duration(plan.duration),
        opened.name,
        path.display()
    ));

    let tally = Arc::new(Tally::new(plan.patience));
    let stop = CancellationToken::new();
    let generator = Generator::new(header.mix.clone(), header.seed, Lines::default());
    let load = load::run(opened.target, plan.clone(), generator, writer.clone(), Arc::clone(&tally), stop.clone());
    let samples = workers.watch();
    teller.begin(plan.duration);
    let ended = tokio::select! {
        ended = until_end(load, &stop, &mut signals, &teller) => ended,
        () = show(&teller, &tally, &plan, &samples) => return Ok(EXIT_FAILURE.into()),
    };
    teller.end();
    if matches!(ended, Ok(End::Complete)) {
        writer.ended().await;
    }
    drop(writer);
    if let Err(error) = written.await? {
        // What was seen until then is told all the same; a report may have no room either.
        let outcome = Outcome::new(header, &plan, &tally, samples.take(), &path, false);
        if let Err(report) = tell(&args, &teller, &outcome) {
            eprintln!("loadtest: {report:#}");
        }
        return Err(error);
    }
    let interrupted = match ended? {
        End::Complete => stop.is_cancelled(),
        End::Late => true,
        End::AtOnce => {
            teller.say(&format!("ended at once; the manifest {} tells what was sent", path.display()));
            return Ok(INTERRUPTED.into());
        }
    };
    let outcome = Outcome::new(header, &plan, &tally, samples.take(), &path, interrupted);
    tell(&args, &teller, &outcome)?;
    Ok(match (interrupted, outcome.is_complete()) {
        (true, _) => INTERRUPTED.into(),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => EXIT_FAILURE.into(),
    })
}

/// How a load ended.
enum End {
    /// Every event was settled or given up.
    Complete,
    /// After a signal, with events that still waited.
    Late,
    /// After two signals.
    AtOnce,
}

/// Waits for the end of the load, or ends it as signals want; it is gone when this returns.
async fn until_end(
    load: impl Future<Output = anyhow::Result<()>>,
    stop: &CancellationToken,
    signals: &mut UnboundedReceiver<&'static str>,
    teller: &Teller,
) -> anyhow::Result<End> {
    let mut load = std::pin::pin!(load);
    tokio::select! {
        ended = &mut load => return ended.map(|()| End::Complete),
        _ = signals.recv() => {}
    }
    stop.cancel();
    teller.say("ending; a second Ctrl-C ends at once");
    tokio::select! {
        ended = &mut load => ended.map(|()| End::Complete),
        () = sleep(LAST_WORDS) => Ok(End::Late),
        _ = signals.recv() => Ok(End::AtOnce),
    }
}

/// Shows how it goes, for ever.
async fn show(teller: &Teller, tally: &Tally, plan: &Plan, samples: &Samples) {
    let mut ticks = interval(SHOW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut next_line, mut before) = (Duration::from_secs(1), (Duration::ZERO, 0));
    let mut rate = 0.0;
    loop {
        ticks.tick().await;
        let (elapsed, totals) = (tally.started().elapsed(), tally.totals());
        if elapsed >= before.0 + Duration::from_secs(1) {
            rate = (totals.acknowledged - before.1) as f64 / (elapsed - before.0).as_secs_f64();
            before = (elapsed, totals.acknowledged);
        }
        let waiting = totals.arrived - totals.acknowledged - totals.refused - totals.given_up - totals.not_sent;
        let mut text = format!(
            "asked {}  acknowledged {} ({rate:.0}/s of {:.0})  waiting {}  failed calls {}  p99 {:.1} ms",
            HumanCount(totals.arrived),
            HumanCount(totals.acknowledged),
            plan.rate,
            HumanCount(waiting),
            HumanCount(totals.failed_calls.values().sum()),
            totals.latency.p99_ms,
        );
        for (name, count) in [("refused", totals.refused), ("not sent", totals.not_sent), ("given up", totals.given_up)]
        {
            if count > 0 {
                text += &format!("  {name} {}", HumanCount(count));
            }
        }
        if let Some(lag) = samples.lag() {
            text += &format!("  lag {:.1}s", lag.as_secs_f64());
        }
        teller.show(elapsed, &mut next_line, text);
    }
}

/// Says what a run on a real deployment costs, and asks; nothing on this machine needs a question.
fn may_begin(args: &RunArgs, opened: &Opened, teller: &Teller) -> anyhow::Result<bool> {
    if opened.is_on_this_machine {
        return Ok(true);
    }
    teller.say(&format!(
        "This puts about {} events on {}.\n\
         AWS bills EventBridge and Kinesis for them, and whatever Amberflo account that deployment delivers to gets\n\
         BILLABLE USAGE: {} new customers named tenant-<run>-NN, on the meters {}.",
        HumanCount(args.plan().events()),
        opened.name,
        args.tenants,
        args.meters.join(", "),
    ));
    if args.yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to be asked: say --yes if that is what you want");
    }
    eprint!("Begin? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn manifest_path(args: &RunArgs, run: &str) -> PathBuf {
    if let Some(path) = &args.manifest {
        return path.clone();
    }
    args.report.as_deref().unwrap_or(Path::new(".")).join(format!("{run}.manifest.jsonl"))
}

fn tell(args: &RunArgs, teller: &Teller, outcome: &Outcome) -> anyhow::Result<()> {
    teller.say(&outcome.text());
    if let Some(dir) = &args.report {
        outcome.report(dir)?;
        teller.say(&format!("report       {}", dir.join("report.md").display()));
    }
    if args.json {
        println!("{}", serde_json::to_string(outcome)?);
    }
    Ok(())
}
