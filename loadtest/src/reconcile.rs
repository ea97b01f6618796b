//! `loadtest audit`: the manifests of load runs against what was billed and what lies in the dead letters.

mod amberflo;
mod dead_letters;
mod outcome;
mod sandbox;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use amberflo_sandbox::Total;
use anyhow::{Context as _, ensure};
use shared::service::{self, EXIT_CONFIGURATION, EXIT_FAILURE};
use shared::settings::{AmberfloArgs, Secret, check_url, duration};
use tokio::time::{Instant, sleep};

use crate::audit::{Audit, Bill, Scope};
use crate::manifest::{self, Manifest};
use crate::report::Speed;
use crate::report_dir;
use crate::truth::Truth;
use amberflo::Amberflo;
use dead_letters::Place;
use outcome::{Outcome, Verdict};
use sandbox::SandboxLedger;

const INTERRUPTED: u8 = 130;
/// Between two looks at a ledger that is not settled yet.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Tells whether every event of some load runs was billed once: manifests against a ledger and the dead letters.
///
/// For each tenant and meter: events lost, billed twice, billed wrongly, late, in the dead letters without need, missing
/// there, and totals. Nothing is changed by it. Exit codes: 0 all is well, 1 there are differences, 2 the audit could not
/// be carried out or not all dead letters could be read, 130 a signal ended it.
#[derive(Clone, Debug, clap::Args)]
pub struct AuditArgs {
    /// What a load run wrote. May be given for each of several runs that went on at the same time.
    #[arg(long, value_name = "FILE", required = true)]
    manifest: Vec<PathBuf>,
    /// What was billed: `sandbox=URL` of a stand-in, or `amberflo` with the API key of the settings below.
    #[arg(long, value_name = "sandbox=URL | amberflo")]
    ledger: Ledger,
    /// Where dead letters lie: `local:DIR` of a worker's STREAM, `sqs:QUEUE-URL`, or `control-api:URL`. Looking removes
    /// none; those in SQS are hidden from others meanwhile.
    #[arg(long, value_name = "local:DIR | sqs:URL | control-api:URL")]
    dead_letters: Place,
    /// The control API's bearer token, where it wants one.
    #[arg(long, env = "LOADTEST_API_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    api_token: Option<Secret>,
    /// How long to wait for events that are still under way. Where all is well and nothing changes any more it ends
    /// before.
    #[arg(long, default_value = "60s", value_parser = duration, overrides_with = "settle")]
    settle: Duration,
    /// An event billed so long after the call that put it is late. The clocks of this machine and the ledger's count.
    #[arg(long, value_parser = duration)]
    late_after: Option<Duration>,
    /// Write a report into this directory: report.md and result.json.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print the result as one JSON object, the last line of standard output; everything else goes to standard error.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    amberflo: AmberfloArgs,
}

/// What is audited.
#[derive(Clone, Debug)]
enum Ledger {
    Sandbox(String),
    Amberflo,
}

impl std::str::FromStr for Ledger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "amberflo" => Ok(Self::Amberflo),
            Some(("sandbox", url)) => {
                check_url("sandbox", url).map(|()| Self::Sandbox(url.to_owned())).map_err(|error| error.to_string())
            }
            _ => Err("allowed is sandbox=URL or amberflo".to_owned()),
        }
    }
}

/// A ledger that can be asked.
enum Source {
    Sandbox(SandboxLedger),
    Amberflo(Box<Amberflo>),
}

/// What a ledger shows, and what it cannot show.
struct Shown {
    bill: Bill,
    blind_spots: Vec<String>,
    /// Whether records say when they were accepted.
    has_times: bool,
}

/// Audits, and tells; exit codes as [`AuditArgs`] says.
pub async fn run(args: AuditArgs) -> ExitCode {
    let audit = async {
        let mut signals = service::signals()?;
        tokio::select! {
            outcome = carry_out(&args) => outcome.map(Some),
            _ = signals.recv() => Ok(None),
        }
    };
    match audit.await {
        Ok(Some(Verdict::Passed)) => ExitCode::SUCCESS,
        Ok(Some(Verdict::Failed)) => EXIT_FAILURE.into(),
        Ok(Some(Verdict::Incomplete)) => EXIT_CONFIGURATION.into(),
        Ok(None) => {
            eprintln!("loadtest: a signal ended it before there was a result");
            INTERRUPTED.into()
        }
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            EXIT_CONFIGURATION.into()
        }
    }
}

async fn carry_out(args: &AuditArgs) -> anyhow::Result<Verdict> {
    let say = |text: &str| if args.json { eprintln!("{text}") } else { println!("{text}") };
    args.report.as_deref().map_or(Ok(()), report_dir::prepare)?;
    let source = args.source().await?;
    let (headers, truth, mut notes) = read(&args.manifest)?;
    notes.iter().for_each(|note| say(&format!("note: {note}")));
    let runs: Vec<_> = headers.iter().map(|header| header.run.clone()).collect();
    let started = Instant::now();
    let (mut before, mut hidden) = (None, 0);
    let (audit, shown, unread) = loop {
        let shown = source.show(&truth).await?;
        let mut letters = args.dead_letters.letters(args.api_token.as_ref(), &truth).await?;
        letters.follow(hidden);
        hidden = letters.hidden;
        let late_after = args.late_after.filter(|_| shown.has_times);
        let audit = Audit::within(&Scope { runs: runs.clone(), late_after }, &truth, &shown.bill, &letters.letters);
        // What is billed twice may come after all else.
        let seen = Seen::of(&shown.bill, &audit);
        let is_quiet = before.replace(seen) == Some(seen);
        if (audit.passed() && is_quiet && letters.unread.is_none()) || started.elapsed() >= args.settle {
            notes.extend(letters.notes);
            if audit.lost + audit.underbilled + audit.missing_dead_letters > 0 {
                notes.push(
                    "what is missing may still be under way: where a worker has lag, audit again later; the manifest \
                     stays good"
                        .to_owned(),
                );
            }
            break (audit, shown, letters.unread);
        }
        sleep(LOOK_EVERY.min(args.settle)).await;
    };
    notes.extend(shown.blind_spots);
    if args.late_after.is_some() && !shown.has_times {
        notes.push("--late-after was not judged".to_owned());
    }
    let speed = shown.has_times.then(|| Speed::of(&truth, &shown.bill.records));
    let copies = shown.has_times.then_some(shown.bill.ledger.absorbed_copies);
    let outcome = Outcome::new(headers, audit, speed.as_ref(), copies, unread, notes);
    say(&outcome.text());
    if let Some(dir) = &args.report {
        outcome.report(dir)?;
        say(&format!("report       {}", dir.join("report.md").display()));
    }
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(outcome.verdict())
}

/// What changes while events are under way.
#[derive(Clone, Copy, PartialEq)]
struct Seen {
    records: usize,
    /// Of all customers and meters: where records are not shown it is all that changes.
    total: Total,
    absorbed_copies: u64,
    dead_lettered: u64,
}

impl Seen {
    fn of(bill: &Bill, audit: &Audit) -> Self {
        let mut total = Total::default();
        for line in &bill.ledger.lines {
            total.integers += line.total.integers;
            total.decimals += line.total.decimals;
        }
        let (records, absorbed_copies) = (bill.records.len(), bill.ledger.absorbed_copies);
        Self { records, total, absorbed_copies, dead_lettered: audit.dead_lettered }
    }
}

/// All manifests together.
fn read(paths: &[PathBuf]) -> anyhow::Result<(Vec<manifest::Header>, Truth, Vec<String>)> {
    let (mut headers, mut truth, mut notes) = (Vec::<manifest::Header>::new(), Truth::default(), Vec::new());
    for path in paths {
        let Manifest { header, truth: more, warnings } = manifest::read(path)?;
        let is_new = headers.iter().all(|known| known.run != header.run);
        ensure!(is_new, "the manifest {} is of run {}, which was given already", path.display(), header.run);
        notes.extend(warnings.into_iter().map(|warning| format!("{}: {warning}", path.display())));
        headers.push(header);
        truth.valid.extend(more.valid);
        truth.malformed.extend(more.malformed);
    }
    let is_acknowledged = truth.valid.iter().any(|event| event.acknowledged() > 0)
        || truth.malformed.iter().any(|event| event.acknowledged > 0);
    // It would pass whatever became of the events.
    ensure!(is_acknowledged, "the manifests tell of no acknowledged event: there is nothing to audit");
    Ok((headers, truth, notes))
}

impl AuditArgs {
    async fn source(&self) -> anyhow::Result<Source> {
        Ok(match &self.ledger {
            Ledger::Sandbox(url) => Source::Sandbox(SandboxLedger::open(url)?),
            Ledger::Amberflo => {
                let amberflo = Amberflo::open(&self.amberflo).await;
                Source::Amberflo(Box::new(amberflo.context("--ledger amberflo")?))
            }
        })
    }
}

impl Source {
    async fn show(&self, truth: &Truth) -> anyhow::Result<Shown> {
        match self {
            Self::Sandbox(sandbox) => sandbox.show().await,
            Self::Amberflo(amberflo) => amberflo.show(truth).await,
        }
    }
}

#[cfg(test)]
mod tests;
