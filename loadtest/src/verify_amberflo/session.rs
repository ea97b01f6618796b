//! One run: the throwaway meter, the probes side by side, and cleaning up however it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::client::Unclear;
use super::exchange::Log;
use super::probe::{Evidence, Finding, Probe};
use super::probing::{Probing, Run};
use super::report::{Outcome, Report, Verdict};
use super::usage::total;

/// How far back a meter's usage is looked for.
const LOOK_BACK_SECONDS: i64 = 90 * 86_400;

/// Runs the probes until all have a verdict, or until a signal comes; a second one ends cleaning up, too.
///
/// # Errors
/// Why no probe could run; what was created is then removed again.
pub async fn perform(
    run: &Arc<Run>,
    probes: &[&'static Probe],
    signals: &mut UnboundedReceiver<&'static str>,
    on_outcome: impl Fn(&Outcome),
) -> Result<Report, String> {
    let at = Probing { run: Arc::clone(run), id: "preparation", log: Log::default() };
    let (mut outcomes, mut is_interrupted) = (Vec::new(), false);
    let prepared = tokio::select! {
        prepared = at.prepare_meter() => prepared,
        _ = signals.recv() => {
            is_interrupted = true;
            Ok(())
        }
    };
    if prepared.is_ok() && !is_interrupted {
        is_interrupted = probe(run, probes, signals, |outcome| {
            on_outcome(&outcome);
            outcomes.push(outcome);
        })
        .await;
    }
    let left = clean_up(run, signals, is_interrupted).await;
    if let Err(Unclear(reason)) = prepared {
        let shown = at.log.take().last().map(|exchange| format!("\n{exchange}")).unwrap_or_default();
        let left: String = left.iter().map(|left| format!("\nstays behind: {left}")).collect();
        return Err(format!("{reason}{shown}{left}"));
    }
    for probe in probes {
        if !outcomes.iter().any(|outcome| outcome.id == probe.id) {
            outcomes.push(Outcome::of(probe, Verdict::Unclear, "interrupted".to_owned(), Vec::new()));
        }
    }
    let place = |outcome: &Outcome| probes.iter().position(|probe| probe.id == outcome.id);
    outcomes.sort_by_key(place);
    Ok(report(run, outcomes, left, is_interrupted))
}

/// All probes side by side; whether a signal came first.
async fn probe(
    run: &Arc<Run>,
    probes: &[&'static Probe],
    signals: &mut UnboundedReceiver<&'static str>,
    mut on_outcome: impl FnMut(Outcome),
) -> bool {
    let mut running = JoinSet::new();
    let mut of_task = HashMap::new();
    for probe in probes {
        let probe: &'static Probe = probe;
        let at = Arc::new(Probing { run: Arc::clone(run), id: probe.id, log: Log::default() });
        let task = running.spawn((probe.run)(Arc::clone(&at)));
        of_task.insert(task.id(), (probe, at));
    }
    loop {
        let ended = tokio::select! {
            ended = running.join_next_with_id() => ended,
            _ = signals.recv() => {
                // Waits until nothing is under way any more that could still create something.
                running.shutdown().await;
                return true;
            }
        };
        let (task, finding) = match ended {
            None => return false,
            Some(Ok(ended)) => ended,
            Some(Err(error)) => (error.id(), Err(Unclear("the probe itself failed".to_owned()))),
        };
        let Some((probe, at)) = of_task.get(&task) else { continue };
        on_outcome(outcome(probe, at, finding));
    }
}

fn outcome(probe: &Probe, at: &Probing, finding: Finding) -> Outcome {
    let (verdict, text) = match finding {
        Ok(Evidence::Confirmed(text)) => (Verdict::Confirmed, text),
        Ok(Evidence::Refuted(text)) => (Verdict::Refuted, text),
        Err(Unclear(text)) => (Verdict::Unclear, text),
    };
    Outcome::of(probe, verdict, text, at.log.take())
}

async fn clean_up(run: &Arc<Run>, signals: &mut UnboundedReceiver<&'static str>, is_interrupted: bool) -> Vec<String> {
    run.client.lift_bound();
    let at = Probing { run: Arc::clone(run), id: "cleaning-up", log: Log::default() };
    tokio::select! {
        left = at.clean_up(is_interrupted) => left,
        _ = signals.recv() => {
            let names = run.account.names();
            names.into_iter().map(|name| format!("{name}: perhaps, cleaning up was interrupted")).collect()
        }
    }
}

impl Probing {
    /// Creates the meter of the run. One that is there already is taken only if it has no usage.
    async fn prepare_meter(&self) -> Result<(), Unclear> {
        let name = &self.run.meter;
        let Some(meter) = self.find_meter(name).await? else {
            return self.create_meter(name).await.map(|_| ());
        };
        if meter.get("lockingStatus").is_some_and(|status| status == "deprecated") {
            return Err(Unclear(format!(
                "--meter: {name} is deprecated; allowed is a new name, or a meter without usage"
            )));
        }
        let used = self.usage(name, None, self.run.started_seconds() - LOOK_BACK_SECONDS).await;
        match used.and_then(|answer| total(&answer, None)) {
            Ok(0.0) => Ok(()),
            Ok(_) => Err(Unclear(format!(
                "--meter: {name} has usage already; allowed is a new name, or a meter without usage"
            ))),
            Err(Unclear(reason)) => Err(Unclear(format!("--meter: whether {name} has usage cannot be seen: {reason}"))),
        }
    }
}

fn report(run: &Run, outcomes: Vec<Outcome>, left: Vec<String>, is_interrupted: bool) -> Report {
    let observed = &run.client.observed;
    Report {
        version: env!("CARGO_PKG_VERSION"),
        started: jiff::Timestamp::from_millisecond(run.started).unwrap_or_default().to_string(),
        base_url: run.base_url.clone(),
        ingest_url: run.ingest_url.clone(),
        meter: run.meter.clone(),
        patience: humantime::format_duration(run.settings.patience).to_string(),
        settle: humantime::format_duration(run.settings.settle).to_string(),
        is_interrupted,
        requests: observed.requests.load(Ordering::Relaxed),
        throttled: observed.throttled.load(Ordering::Relaxed),
        throttled_with_retry_after: observed.retry_after.load(Ordering::Relaxed),
        failed_requests: observed.failed.load(Ordering::Relaxed),
        outcomes,
        left,
    }
}
