//! What a run counts while it goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

/// A second's percentiles are made when no event of it can come any more; this much later than patience says.
const SLACK: Duration = Duration::from_secs(60);
/// Different texts of errors that are told apart.
const ERRORS_MAX: usize = 50;
const OTHER: &str = "other errors";
/// Microseconds, from one to a day, with three digits.
const MAX_MICROS: u64 = 86_400_000_000;
const DIGITS: u8 = 3;

/// Counts of a run, by the second in which events were to be sent.
pub struct Tally {
    started: Instant,
    /// After this long an event is settled or given up.
    settled_after: Duration,
    counts: Mutex<Counts>,
}

struct Counts {
    totals: Totals,
    latency: Histogram<u64>,
    /// Seconds whose percentiles are made.
    closed: Vec<Second>,
    open: VecDeque<(Second, Histogram<u64>)>,
}

/// Counts of the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Events that were to be sent, copies included: all of the following, and those that are still under way.
    pub arrived: u64,
    /// Events that the target acknowledged.
    pub acknowledged: u64,
    /// Events that the target refused for good.
    pub refused: u64,
    /// The same by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Events for which no call succeeded while patience lasted. The target may have some of them all the same.
    pub given_up: u64,
    /// Events that had no place in the backlog.
    pub not_sent: u64,
    /// Calls that settled all their events.
    pub good_calls: u64,
    /// Calls that failed or settled only some of their events, by error.
    pub failed_calls: BTreeMap<String, u64>,
    /// From the time at which events were to be sent until the target had answered for them, or they were given up. What
    /// was not sent is not in it.
    pub latency: Latency,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// Maximum.
    pub max_ms: f64,
}

/// One second of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Its number, from 0.
    pub second: u64,
    /// Events that were to be sent in it.
    pub arrived: u64,
    /// Events whose acknowledgement came in it.
    pub acknowledged: u64,
    /// Calls that failed in it.
    pub failed_calls: u64,
    /// Events to be sent in it that had no place in the backlog.
    pub not_sent: u64,
    /// Latencies of the events that were to be sent in it; `None` where none were.
    pub latency: Option<Latency>,
}

impl Tally {
    /// Begins now, for events that are settled or given up after `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let (latency, closed, open) = (histogram(), Vec::new(), VecDeque::new());
        let counts = Mutex::new(Counts { totals: Totals::default(), latency, closed, open });
        Self { started: Instant::now(), settled_after: patience + SLACK, counts }
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// An event was to be sent.
    pub fn arrived(&self, intended: Instant) {
        let mut counts = self.counts();
        counts.totals.arrived += 1;
        self.second(&mut counts, intended, |second, _| second.arrived += 1);
    }

    /// An event that was to be sent had no place in the backlog.
    pub fn not_sent(&self, intended: Instant) {
        let mut counts = self.counts();
        counts.totals.not_sent += 1;
        self.second(&mut counts, intended, |second, _| second.not_sent += 1);
    }

    /// The target acknowledged an event.
    pub fn acknowledged(&self, intended: Instant, now: Instant) {
        let mut counts = self.counts();
        counts.totals.acknowledged += 1;
        self.second(&mut counts, now, |second, _| second.acknowledged += 1);
        self.took(&mut counts, intended, now);
    }

    /// The target refused an event for good.
    pub fn refused(&self, intended: Instant, now: Instant, reason: &str) {
        let mut counts = self.counts();
        counts.totals.refused += 1;
        count(&mut counts.totals.refusals, reason);
        self.took(&mut counts, intended, now);
    }

    /// Patience with an event is at its end.
    pub fn given_up(&self, intended: Instant, now: Instant) {
        let mut counts = self.counts();
        counts.totals.given_up += 1;
        self.took(&mut counts, intended, now);
    }

    /// A call settled all its events.
    pub fn good_call(&self) {
        self.counts().totals.good_calls += 1;
    }

    /// A call did not.
    pub fn failed_call(&self, error: &str) {
        let mut counts = self.counts();
        count(&mut counts.totals.failed_calls, error);
        self.second(&mut counts, Instant::now(), |second, _| second.failed_calls += 1);
    }

    /// The counts so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let counts = self.counts();
        Totals { latency: Latency::of(&counts.latency).unwrap_or_default(), ..counts.totals.clone() }
    }

    /// Every second so far, in order.
    #[must_use]
    pub fn seconds(&self) -> Vec<Second> {
        let counts = self.counts();
        let open = counts.open.iter().map(|(second, latency)| close(second, latency));
        counts.closed.iter().cloned().chain(open).collect()
    }

    fn took(&self, counts: &mut Counts, intended: Instant, now: Instant) {
        let micros = now.saturating_duration_since(intended).as_micros().try_into().unwrap_or(MAX_MICROS);
        record(&mut counts.latency, micros);
        self.second(counts, intended, |_, latency| record(latency, micros));
    }

    /// Changes the second of this moment, and closes those that are long over.
    fn second(&self, counts: &mut Counts, at: Instant, change: impl FnOnce(&mut Second, &mut Histogram<u64>)) {
        let number = at.saturating_duration_since(self.started).as_secs();
        while counts.closed.len() as u64 + counts.open.len() as u64 <= number {
            let second = (counts.closed.len() + counts.open.len()) as u64;
            counts.open.push_back((Second { second, ..Second::default() }, histogram()));
        }
        while counts.open.len() as u64 > self.settled_after.as_secs()
            && let Some((second, latency)) = counts.open.pop_front()
        {
            counts.closed.push(close(&second, &latency));
        }
        let first = counts.closed.len() as u64;
        // Of a second that is closed, the totals know.
        if let Some(index) = number.checked_sub(first)
            && let Some((second, latency)) = counts.open.get_mut(index as usize)
        {
            change(second, latency);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(second: &Second, latency: &Histogram<u64>) -> Second {
    Second { latency: Latency::of(latency), ..second.clone() }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let quantile = |share| histogram.value_at_quantile(share) as f64 / 1000.0;
        let max_ms = histogram.max() as f64 / 1000.0;
        let [p50_ms, p90_ms, p99_ms, p999_ms] = [0.5, 0.9, 0.99, 0.999].map(quantile);
        (!histogram.is_empty()).then_some(Self { p50_ms, p90_ms, p99_ms, p999_ms, max_ms })
    }
}

#[expect(clippy::expect_used, reason = "the bounds are constants that a histogram takes")]
fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 1000, DIGITS).expect("valid bounds");
    // It grows with what it is given, and most seconds see little.
    histogram.auto(true);
    histogram
}

fn record(histogram: &mut Histogram<u64>, micros: u64) {
    // A histogram that may grow takes everything up to here.
    let _ = histogram.record(micros.min(MAX_MICROS));
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    let name = if counts.len() < ERRORS_MAX || counts.contains_key(name) { name } else { OTHER };
    *counts.entry(name.to_owned()).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn seconds_are_those_of_the_intended_time() {
        let tally = Tally::new(Duration::from_secs(1));
        let intended = tally.started() + Duration::from_millis(500);
        tally.arrived(intended);
        tally.acknowledged(intended, intended + Duration::from_secs(3));
        let seconds = tally.seconds();
        assert_eq!((seconds.len(), seconds[0].arrived, seconds[3].acknowledged), (4, 1, 1));
        let latency = seconds[0].latency.unwrap();
        assert!((2999.0..3003.0).contains(&latency.max_ms), "{latency:?}");
        assert_eq!((seconds[3].latency, seconds[0].acknowledged), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_run_keeps_few_histograms() {
        let tally = Tally::new(Duration::from_secs(1));
        for second in 0..1000 {
            let intended = tally.started() + Duration::from_secs(second);
            tally.arrived(intended);
            tally.acknowledged(intended, intended);
        }
        let open = tally.counts().open.len();
        assert!(open < 100, "{open}");
        let seconds = tally.seconds();
        assert!(seconds.len() == 1000 && seconds.iter().all(|second| second.latency.is_some()));
        assert_eq!(seconds.iter().map(|second| second.arrived).sum::<u64>(), 1000);
        // Far too late for its second, and counted all the same.
        tally.given_up(tally.started(), tally.started() + Duration::from_secs(1000));
        assert_eq!(tally.totals().given_up, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_errors_are_not_told_apart_for_ever() {
        let tally = Tally::new(Duration::from_secs(1));
        (0..1000).for_each(|number| tally.failed_call(&format!("error {number}")));
        let failed = tally.totals().failed_calls;
        assert_eq!((failed.len(), failed.values().sum::<u64>()), (ERRORS_MAX + 1, 1000));
    }
}
