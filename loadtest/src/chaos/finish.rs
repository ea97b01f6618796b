//! The end of a run: everything is mended, everything settles, and every event is accounted for.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use shared::reason::Reason;
use tokio::time::{Instant, sleep};

use super::arena::Arena;
use super::board::{Board, Note, Point};
use super::inject::{NAMESAKE_DIR, told};
use super::invariants::Invariants;
use super::kind::ArenaName;
use super::watch::Watching;
use crate::audit::{Audit, Bill};
use crate::log_watch;
use crate::producer::Plane;
use crate::scrape::Sample;
use crate::service_process::ServiceSettings;
use crate::truth::Truth;

/// How long producers may take to be rid of their last events.
const PRODUCERS_LIMIT: Duration = Duration::from_secs(90);
/// How long the fleet may take to settle all there is, once nothing is broken.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
/// It has settled when it was idle for so long: longer than its gauges are old, and a page takes.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// So many looks in a row must find all of the stream behind checkpoints: the first may have begun before.
const SETTLED_LOOKS: u64 = 2;
const POLL: Duration = Duration::from_millis(250);
const REDRIVE_LIMIT: Duration = Duration::from_secs(120);
/// Letters that a control API had in hand when it was killed are hidden for a minute.
const HIDDEN_FOR: Duration = Duration::from_secs(65);
const REDRIVE_PAUSE: Duration = Duration::from_secs(5);
/// A drain, its grace included.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// What became of a deployment.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Which.
    pub arena: ArenaName,
    /// Whether every promise was kept.
    pub passed: bool,
    /// What was not, in words: of the run as a whole, then of the checks during it, then of the audit.
    pub failures: Vec<String>,
    /// The reconciliation of all events at the end.
    pub audit: Audit,
    /// Records of the bill that were checked while the run went on.
    pub records_checked: usize,
    /// Events behind checkpoints that were looked for on the bill.
    pub checkpoints_checked: u64,
    /// Workers killed with SIGKILL by the schedule.
    pub kills: u64,
    /// How often each kind of fault was carried out.
    pub done: BTreeMap<&'static str, u64>,
    /// How many calls met each kind of fault, where that can be counted.
    pub befell: BTreeMap<&'static str, u64>,
    /// Whether the run came to its end, so that all was checked.
    pub is_complete: bool,
    /// Identical copies that only Amberflo's deduplication absorbed.
    pub absorbed_by_amberflo: u64,
    /// Calls of producers that failed and were made again.
    pub failed_calls: u64,
    /// From the end of the emission until nothing was under way, in seconds.
    pub settled_after: f64,
    /// The run as it was seen.
    #[serde(skip)]
    pub points: Vec<Point>,
    /// The timeline.
    #[serde(skip)]
    pub notes: Vec<Note>,
}

impl Outcome {
    /// Of a run that could not go on: what was seen until then, and why.
    #[must_use]
    pub fn aborted(board: &Board, error: &anyhow::Error) -> Self {
        board.find("run", &format!("it could not go on: {error:#}"));
        let state = board.state();
        let last = state.points.last().copied().unwrap_or_default();
        Self {
            arena: board.arena(),
            passed: false,
            failures: state.findings.clone(),
            audit: Audit::default(),
            records_checked: 0,
            checkpoints_checked: 0,
            kills: state.kills,
            done: state.done.clone(),
            befell: state.befell.clone(),
            is_complete: false,
            absorbed_by_amberflo: last.absorbed,
            failed_calls: 0,
            settled_after: 0.0,
            points: state.points.clone(),
            notes: state.notes.clone(),
        }
    }
}

impl Arena {
    /// From the last fault to the outcome.
    ///
    /// # Errors
    /// When the audit cannot be made; that something did not settle is part of the outcome.
    pub async fn finish(&mut self, mut plane: Plane, watching: Watching) -> anyhow::Result<Outcome> {
        self.board.note("run", "emission and faults are over");
        let over = Instant::now();
        if let Err(error) = self.while_supervised(plane.finish(PRODUCERS_LIMIT)).await? {
            self.board.find("producers", &format!("{error:#}"));
        }
        self.settle(&watching, "after the run").await?;
        let settled_after = over.elapsed().as_secs_f64();
        // What Amberflo refused is mended, so that every event has to be billed in the end.
        self.condition.has_poison = false;
        self.condition.apply_to(&self.sandbox)?;
        self.board.note("run", "Amberflo refuses nothing any more; dead letters are redriven");
        self.redrive_all().await?;
        self.settle(&watching, "after the redrive").await?;
        let invariants = watching.stop().await?;
        self.drain().await?;
        self.look_for_panics()?;

        let (letters, hidden) = self.store.letters().await.context("the dead letters")?;
        if hidden > 0 {
            self.board.find("dead letters", &format!("{hidden} remain hidden at the end"));
        }
        let truth = std::mem::take(&mut *plane.truth.lock().unwrap_or_else(PoisonError::into_inner));
        let bill = Bill::of(&self.sandbox);
        let audit = Audit::of(&mended(truth), &bill, &letters);
        self.board.note("run", "audited");
        let mut state = self.board.state();
        state.befell.extend(self.links.befell());
        let failures = failures(&state.findings, &invariants, &audit);
        Ok(Outcome {
            arena: self.name,
            passed: failures.is_empty(),
            failures,
            records_checked: invariants.records(),
            checkpoints_checked: invariants.passed(),
            kills: state.kills,
            done: state.done.clone(),
            befell: state.befell.clone(),
            is_complete: true,
            absorbed_by_amberflo: bill.ledger.absorbed_copies,
            failed_calls: plane.emission.failed_calls.load(Ordering::Relaxed),
            settled_after,
            points: state.points.clone(),
            notes: state.notes.clone(),
            audit,
        })
    }

    async fn while_supervised<T>(&mut self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = sleep(POLL) => self.supervise().await?,
            }
        }
    }

    /// Waits until every worker runs and none has anything to do.
    async fn settle(&mut self, watching: &Watching, when: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let mut idle = Idle::default();
        // What was found settled before says nothing of what came since.
        watching.settled.store(0, Ordering::Relaxed);
        loop {
            self.supervise().await?;
            let samples = latest(&watching.samples);
            let is_settled = watching.settled.load(Ordering::Relaxed) >= SETTLED_LOOKS;
            if idle.look(Instant::now(), &samples) && is_settled {
                self.board.note("run", format!("settled {when}"));
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.board.find("run", &format!("not settled {SETTLE_LIMIT:?} {when}: {samples:?}"));
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// Until no letter is left of an event that Amberflo refused. (Of the others some can be redriven too, and come back.)
    /// By the worker's command: the control API's time may be too short to get past all the others.
    async fn redrive_all(&mut self) -> anyhow::Result<()> {
        if let Some(killed) = self.redrive_killed_at {
            let wait = (killed + HIDDEN_FOR).saturating_sub(self.board.now());
            self.while_supervised(sleep(wait)).await?;
        }
        let command = self.workers[0].settings().clone();
        let arguments = ["dead-letters", "redrive", "--reason", Reason::Rejected.as_str()];
        let deadline = Instant::now() + REDRIVE_LIMIT;
        let (mut last, mut without) = ("not asked".to_owned(), 0);
        while Instant::now() < deadline {
            match self.while_supervised(command.run(&arguments, REDRIVE_LIMIT)).await? {
                Ok(printed) => {
                    let report: Value = serde_json::from_str(&printed).context("what a redrive did")?;
                    last = told(&report);
                    self.board.note("redrive", last.clone());
                    without = if report["redriven"] == 0 { without + 1 } else { 0 };
                    // Once more, should one have come back.
                    if without == 2 {
                        return Ok(());
                    }
                }
                Err(error) => last = format!("failed: {error:#}"),
            }
            self.while_supervised(sleep(REDRIVE_PAUSE)).await?;
        }
        self.board.find("redrive", &format!("not complete after {REDRIVE_LIMIT:?}: {last}"));
        Ok(())
    }

    /// Ends the workers as a deployment would.
    async fn drain(&mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            let ended = worker.end(DRAIN_LIMIT).await?;
            if !ended.is_some_and(|status| status.success()) {
                self.board.find(&worker.name, &format!("the last drain ended with {ended:?} instead of exit code 0"));
            }
        }
        Ok(())
    }

    /// Sees whether a log tells of a panic, also of one that its process outlived.
    fn look_for_panics(&self) -> anyhow::Result<()> {
        for member in self.workers.iter().chain([&self.control_api]) {
            let log = member.settings().log_file();
            let mut lines = log_watch::panics(&log).with_context(|| log.display().to_string())?;
            // Most have no namesake.
            let namesake =
                ServiceSettings { dir: member.settings().dir.join(NAMESAKE_DIR), ..member.settings().clone() };
            lines.extend(log_watch::panics(&namesake.log_file()).unwrap_or_default());
            lines.iter().for_each(|line| self.board.find(&member.name, &format!("its log tells of a panic: {line}")));
        }
        Ok(())
    }
}

fn latest(samples: &Mutex<Vec<Option<Sample>>>) -> Vec<Option<Sample>> {
    samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What was refused for a while is good now.
fn mended(mut truth: Truth) -> Truth {
    truth.valid.iter_mut().for_each(|event| event.is_poison = false);
    truth
}

fn failures(findings: &[String], invariants: &Invariants, audit: &Audit) -> Vec<String> {
    let mut failures = findings.to_vec();
    // Nothing is found where nothing is looked at.
    let looked_at = [
        ("events emitted", audit.unique_valid),
        ("events billed", audit.delivered),
        ("records of the bill checked while it ran", invariants.records() as u64),
        ("events behind checkpoints checked while it ran", invariants.passed()),
    ];
    let nothing = looked_at.iter().filter(|(_, count)| *count == 0);
    failures.extend(nothing.map(|(what, _)| format!("nothing to judge by: 0 {what}")));
    failures.extend(invariants.findings().iter().map(|finding| format!("while it ran: {finding}")));
    let untold = invariants.count() - invariants.findings().len() as u64;
    failures.extend((untold > 0).then(|| format!("while it ran: {untold} more")));
    if !audit.passed() {
        let Audit { lost, double_billed, misbilled, underbilled, missing_dead_letters, unexpected, .. } = audit;
        failures.push(format!(
            "audit: lost {lost}, double-billed {double_billed}, misbilled {misbilled}, underbilled {underbilled}, \
             missing dead letters {missing_dead_letters}, unexpected {unexpected}"
        ));
    }
    failures.extend(audit.findings.iter().map(|finding| format!("audit: {finding}")));
    failures
}

/// Sees when nothing has moved for a while.
#[derive(Default)]
struct Idle(Option<(Instant, u64)>);

impl Idle {
    /// Whether all have answered, had nothing to do and read nothing for [`IDLE_FOR`].
    fn look(&mut self, now: Instant, samples: &[Option<Sample>]) -> bool {
        let read = samples.iter().map(|sample| sample.filter(Sample::is_idle).map(|sample| sample.read)).sum();
        self.0 = match (read, self.0) {
            (Some(read), Some((since, before))) if read == before => Some((since, before)),
            (Some(read), _) if !samples.is_empty() => Some((now, read)),
            _ => None,
        };
        self.0.is_some_and(|(since, _)| now - since >= IDLE_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_idle_when_all_of_it_is_for_a_while() {
        let sample = |read, ended| Some(Sample { read, ended, ..Sample::default() });
        let start = Instant::now();
        let mut idle = Idle::default();
        let mut look =
            |seconds: u64, samples: &[Option<Sample>]| idle.look(start + Duration::from_secs(seconds), samples);
        assert!(!look(0, &[]));
        assert!(!look(10, &[sample(5, 5), sample(7, 7)]));
        assert!(!look(13, &[sample(5, 5), sample(7, 7)]));
        assert!(look(14, &[sample(5, 5), sample(7, 7)]));
        for disturbed in [vec![sample(5, 5), sample(8, 7)], vec![sample(5, 5), None], vec![sample(5, 5), sample(9, 9)]]
        {
            assert!(!look(20, &disturbed), "{disturbed:?}");
            assert!(!look(21, &[sample(5, 5), sample(7, 7)]));
            assert!(look(25, &[sample(5, 5), sample(7, 7)]));
        }
    }

    #[test]
    fn every_kind_of_failure_is_told() {
        let (mut invariants, mut audit) = (Invariants::default(), Audit::default());
        let nothing = failures(&[], &invariants, &audit);
        assert_eq!(nothing.len(), 4, "{nothing:?}");
        assert!(nothing.iter().all(|text| text.contains(": 0 ")));
        (0..30).for_each(|number| invariants.find(format!("number {number}")));
        audit.lost = 1;
        audit.findings.push("lost: x".to_owned());
        let told = failures(&["worker-1: gone".to_owned()], &invariants, &audit);
        assert_eq!(told.len(), 4 + 1 + 20 + 1 + 2, "{told:?}");
        assert!(told.iter().any(|text| text.ends_with("10 more")) && told.iter().any(|text| text.contains("lost 1")));
    }
}
