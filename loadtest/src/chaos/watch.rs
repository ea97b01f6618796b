//! Watches a deployment while it is being broken: numbers for the charts, and the invariants.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amberflo_sandbox::Sandbox;
use shared::backend::BackendError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::board::{Board, Point};
use super::invariants::{Invariants, Watchdog};
use super::schedule::calm;
use super::tail::Tail;
use crate::producer::Emission;
use crate::scrape::{Sample, Scraper};
use crate::truth::Truth;

const EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the checkpoints and the bill.
const AUDIT_EVERY: Duration = Duration::from_secs(4);
/// Between two answers of stream and leases, the pause between two looks included.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);
/// How long nothing may be delivered while nothing is broken, at most: longer than a refused sender waits before it asks
/// again.
const PATIENCE: Duration = Duration::from_secs(45);
/// Less would take a slow machine for a standstill.
const PATIENCE_MIN: Duration = Duration::from_secs(20);
/// So much of a calm is left for the first look after the last fault.
const CALM_MARGIN: Duration = Duration::from_secs(5);

/// How long nothing may be delivered in calms of this length; `None` where they are too short to tell.
#[must_use]
pub fn patience(calm: Duration) -> Option<Duration> {
    Some(PATIENCE.min(calm.saturating_sub(CALM_MARGIN))).filter(|patience| *patience >= PATIENCE_MIN)
}

/// What is watched.
pub struct Watch {
    /// What can be seen at once.
    pub seen: Seen,
    /// The stream, and the checkpoints.
    pub tail: Tail,
}

/// What can be seen of a deployment without waiting.
pub struct Seen {
    pub board: Arc<Board>,
    pub sandbox: Sandbox,
    pub emission: Arc<Emission>,
    pub truth: Arc<Mutex<Truth>>,
    /// The workers' names and metrics.
    pub workers: Vec<(String, Scraper)>,
    /// How long events are emitted.
    pub length: Duration,
}

/// A watch under way.
pub struct Watching {
    stop: CancellationToken,
    task: JoinHandle<Invariants>,
    /// How many looks at the checkpoints there were in a row that found the whole stream settled.
    pub settled: Arc<AtomicU64>,
    /// What each worker said last; `None` where it did not answer.
    pub samples: Arc<Mutex<Vec<Option<Sample>>>>,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn start(self) -> Watching {
        let (stop, samples, settled) = (CancellationToken::new(), Arc::default(), Arc::<AtomicU64>::default());
        let task = tokio::spawn(self.run(stop.clone(), Arc::clone(&samples), Arc::clone(&settled)));
        Watching { stop, task, settled, samples }
    }

    async fn run(
        self,
        stop: CancellationToken,
        samples: Arc<Mutex<Vec<Option<Sample>>>>,
        settled: Arc<AtomicU64>,
    ) -> Invariants {
        let (sender, mut passed) = mpsc::unbounded_channel();
        // Aside: a stream that does not answer must not hide the rest.
        let following = AbortOnDropHandle::new(tokio::spawn(follow(self.tail, sender, settled, stop.clone())));
        let mut answered = Instant::now();
        let seen = self.seen;
        let mut invariants = Invariants::default();
        let mut watchdog = patience(calm(seen.length)).map(Watchdog::new);
        let mut audits = interval(AUDIT_EVERY);
        audits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ids) = passed.recv() => {
                    answered = Instant::now();
                    seen.audit(&mut invariants, &ids);
                }
                // Also while nobody can read the checkpoints.
                _ = audits.tick() => seen.audit(&mut invariants, &[]),
                _ = ticks.tick() => {
                    let latest = sample(&seen.workers, &mut invariants).await;
                    let point = seen.point(&latest);
                    *samples.lock().unwrap_or_else(PoisonError::into_inner) = latest;
                    // An emulator that does not answer us either, on a machine that is too busy, is a fault as well.
                    let is_broken = point.faults > 0 || answered.elapsed() > ANSWER_LIMIT;
                    let is_owed = !is_broken && seen.board.now() < seen.length;
                    let look = |watchdog: &mut Watchdog| watchdog.look(seen.board.now(), is_owed, point.delivered);
                    if let Some(standstill) = watchdog.as_mut().and_then(look) {
                        invariants.find(standstill);
                    }
                    seen.board.state().points.push(point);
                }
            }
            let news = invariants.findings().iter().skip(told);
            news.for_each(|finding| seen.board.note("audit", format!("FAILED: {finding}")));
            told = invariants.findings().len();
        }
        while let Some(ids) = passed.recv().await {
            seen.audit(&mut invariants, &ids);
        }
        match following.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => invariants.find(format!("the checkpoints cannot be read at the end: {error}")),
            Err(error) => invariants.find(format!("the checkpoints were not followed to the end: {error}")),
        }
        invariants
    }
}

/// Tells of the events that checkpoints pass, at least once after `stop`.
async fn follow(
    mut tail: Tail,
    passed: mpsc::UnboundedSender<Vec<String>>,
    settled: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Result<(), BackendError> {
    loop {
        let is_last = stop.is_cancelled();
        match tail.look().await {
            Ok(ids) => {
                match tail.is_settled() {
                    true => settled.fetch_add(1, Ordering::Relaxed),
                    false => settled.swap(0, Ordering::Relaxed),
                };
                // Nobody listens any more only where the run is given up.
                let _ = passed.send(ids);
            }
            Err(error) if is_last => return Err(error),
            // Out of reach for a moment is what a run is about; the next look makes up for it.
            Err(_) => {}
        }
        if is_last {
            return Ok(());
        }
        stop.run_until_cancelled(sleep(AUDIT_EVERY)).await;
    }
}

impl Seen {
    fn point(&self, seen: &[Option<Sample>]) -> Point {
        let ledger = self.sandbox.ledger();
        let answers = || seen.iter().flatten();
        Point {
            at: self.board.now().as_secs_f64(),
            emitted: self.emission.acknowledged.load(Ordering::Relaxed),
            delivered: ledger.events,
            absorbed: ledger.absorbed_copies,
            lag: answers().map(|sample| sample.lag.as_secs_f64()).reduce(f64::max),
            alive: answers().count(),
            faults: self.board.state().active.len(),
        }
    }

    /// Checks the bill, and that these events are on it.
    fn audit(&self, invariants: &mut Invariants, passed: &[String]) {
        let records = self.sandbox.records_after(invariants.records());
        let truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        invariants.emitted(&truth);
        invariants.billed(&records, &truth);
        invariants.ledger(&self.sandbox.ledger());
        for id in passed {
            invariants.behind_checkpoint(id, &truth);
        }
    }
}

impl Watching {
    /// Looks a last time, and answers what was found.
    ///
    /// # Errors
    /// When the watch itself failed.
    pub async fn stop(self) -> anyhow::Result<Invariants> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn sample(workers: &[(String, Scraper)], invariants: &mut Invariants) -> Vec<Option<Sample>> {
    // All at once: one that is paused does not answer for two seconds.
    let ask = |(_, scraper): &(String, Scraper)| {
        let scraper = scraper.clone();
        tokio::spawn(async move { scraper.sample().await })
    };
    let asking: Vec<_> = workers.iter().map(ask).collect();
    let mut seen = Vec::new();
    for (asked, (name, _)) in asking.into_iter().zip(workers) {
        let sample = asked.await.ok().flatten();
        if let Some(sample) = &sample {
            invariants.metrics(name, sample);
        }
        seen.push(sample);
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_before_the_calm_or_there_is_none() {
        let minutes = |minutes: u64| patience(calm(Duration::from_secs(60 * minutes)));
        assert_eq!(minutes(1), None);
        assert_eq!(minutes(2), Some(Duration::from_secs(35)));
        assert_eq!(minutes(5), Some(PATIENCE));
        for length in 2..200 {
            // A refused sender waits for half a minute.
            assert!(minutes(length).is_some_and(|patience| patience > Duration::from_secs(32)), "{length}");
        }
    }
}
