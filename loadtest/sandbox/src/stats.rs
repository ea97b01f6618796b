//! Counts, and a log of the latest requests.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use http::Method;
use serde::Serialize;

use crate::operation::Operation;

/// How many unknown top-level keys are counted by name; the rest count as [`OTHER_KEYS`].
const UNKNOWN_KEYS_MAX: usize = 100;
const OTHER_KEYS: &str = "(other)";

/// The window of request rates.
const SECOND: Duration = Duration::from_secs(1);

/// Counts since the start or the last reset. All but [`Stats::operations`] count `POST /ingest` only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that arrived.
    pub requests: u64,
    /// Requests answered, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests whose client went away before the answer.
    pub abandoned: u64,
    /// Faults shown, by their field's name in `Faults`; a request may meet several.
    pub by_fault: BTreeMap<&'static str, u64>,
    /// Requests refused because of `requests_per_second`.
    pub rate_violations: u64,
    /// Requests refused because of `max_concurrent`.
    pub concurrency_violations: u64,
    /// Requests that arrived while the `Retry-After` of an earlier answer was still running.
    pub early_requests: u64,
    /// Requests in progress now.
    pub in_flight: usize,
    /// The most requests in progress at once.
    pub max_concurrent: usize,
    /// The most requests that arrived in any one second.
    pub max_requests_in_one_second: usize,
    /// Body bytes received, before decompression.
    pub bytes_received: u64,
    /// Body bytes of requests that were read, after decompression.
    pub bytes_decompressed: u64,
    /// Records in requests that were read to the end and valid, copies included, whether accepted or not.
    pub records_received: u64,
    /// Top-level keys that Amberflo would silently ignore, by name (the first 100 names; the rest as `(other)`).
    pub unknown_keys: BTreeMap<String, u64>,
    /// The operations other than `POST /ingest` that were asked for.
    pub operations: BTreeMap<Operation, OperationStats>,
}

/// Counts of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationStats {
    /// Requests that arrived.
    pub requests: u64,
    /// The same by method.
    pub by_method: BTreeMap<String, u64>,
    /// Requests answered, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests whose client went away before the answer.
    pub abandoned: u64,
    /// Faults shown, by their field's name in `Faults`.
    pub by_fault: BTreeMap<&'static str, u64>,
}

/// One request, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggedRequest {
    /// Arrival, since the sandbox started.
    #[serde(rename = "at_ms", serialize_with = "crate::human::millis")]
    pub at: Duration,
    /// From arrival to answer.
    #[serde(rename = "took_ms", serialize_with = "crate::human::millis")]
    pub took: Duration,
    /// The status answered; `None` when the client went away first.
    pub status: Option<u16>,
    /// How many records it held; `None` when it was answered before its body was read, or the body was not valid.
    pub records: Option<usize>,
    /// How many of them reached the ledger (billed or absorbed).
    pub accepted: usize,
    /// The faults it met, in order.
    pub faults: Vec<&'static str>,
}

/// A ceiling that refuses a request on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ceiling {
    Rate,
    Concurrency,
}

#[derive(Debug)]
pub(crate) struct Journal {
    stats: Stats,
    log: VecDeque<LoggedRequest>,
    log_max: usize,
    arrivals: LastSecond,
    admitted: LastSecond,
    retry_after_until: Duration,
}

impl Journal {
    pub(crate) fn new(log_max: usize) -> Self {
        Self {
            stats: Stats::default(),
            log: VecDeque::new(),
            log_max,
            arrivals: LastSecond::default(),
            admitted: LastSecond::default(),
            retry_after_until: Duration::ZERO,
        }
    }

    /// Counts a request that arrives `now`, and says which ceiling it breaks.
    pub(crate) fn arrive(&mut self, now: Duration, rate: Option<usize>, concurrent: Option<usize>) -> Option<Ceiling> {
        let stats = &mut self.stats;
        stats.requests += 1;
        stats.in_flight += 1;
        stats.max_concurrent = stats.max_concurrent.max(stats.in_flight);
        self.arrivals.push(now);
        stats.max_requests_in_one_second = stats.max_requests_in_one_second.max(self.arrivals.count(now));
        stats.early_requests += u64::from(now < self.retry_after_until);
        if rate.is_some_and(|rate| self.admitted.count(now) >= rate) {
            stats.rate_violations += 1;
            return Some(Ceiling::Rate);
        }
        if concurrent.is_some_and(|most| stats.in_flight > most) {
            stats.concurrency_violations += 1;
            return Some(Ceiling::Concurrency);
        }
        self.admitted.push(now);
        None
    }

    /// Counts the end of a request.
    pub(crate) fn end(&mut self, request: LoggedRequest) {
        self.stats.in_flight -= 1;
        match request.status {
            Some(status) => *self.stats.by_status.entry(status).or_default() += 1,
            None => self.stats.abandoned += 1,
        }
        if self.log_max == 0 {
            return;
        }
        if self.log.len() == self.log_max {
            self.log.pop_front();
        }
        self.log.push_back(request);
    }

    /// Counts the arrival of a request other than `POST /ingest`.
    pub(crate) fn operation_arrives(&mut self, operation: Operation, method: &Method) {
        let stats = self.stats.operations.entry(operation).or_default();
        stats.requests += 1;
        *stats.by_method.entry(method.to_string()).or_default() += 1;
    }

    /// Counts its end; without a status its client went away first.
    pub(crate) fn operation_ends(&mut self, operation: Operation, status: Option<u16>) {
        let stats = self.stats.operations.entry(operation).or_default();
        match status {
            Some(status) => *stats.by_status.entry(status).or_default() += 1,
            None => stats.abandoned += 1,
        }
    }

    pub(crate) fn fault(&mut self, operation: Operation, name: &'static str) {
        let by_fault = match operation {
            Operation::Ingest => &mut self.stats.by_fault,
            other => &mut self.stats.operations.entry(other).or_default().by_fault,
        };
        *by_fault.entry(name).or_default() += 1;
    }

    pub(crate) fn retry_after_until(&mut self, until: Duration) {
        self.retry_after_until = self.retry_after_until.max(until);
    }

    pub(crate) fn body(&mut self, received: usize) {
        self.stats.bytes_received += received as u64;
    }

    pub(crate) fn batch(&mut self, decompressed: usize, records: usize, unknown_keys: &[Cow<'_, str>]) {
        self.stats.bytes_decompressed += decompressed as u64;
        self.stats.records_received += records as u64;
        for key in unknown_keys {
            let counts = &mut self.stats.unknown_keys;
            let known = counts.len() < UNKNOWN_KEYS_MAX || counts.contains_key(key.as_ref());
            *counts.entry(if known { key.to_string() } else { OTHER_KEYS.to_owned() }).or_default() += 1;
        }
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(crate) fn requests(&self) -> impl DoubleEndedIterator<Item = &LoggedRequest> {
        self.log.iter()
    }

    pub(crate) fn reset(&mut self) {
        let in_flight = self.stats.in_flight;
        *self = Self::new(self.log_max);
        self.stats.in_flight = in_flight;
        self.stats.max_concurrent = in_flight;
    }
}

/// The times of the last second.
#[derive(Debug, Default)]
struct LastSecond(VecDeque<Duration>);

impl LastSecond {
    fn push(&mut self, now: Duration) {
        self.0.push_back(now);
    }

    fn count(&mut self, now: Duration) -> usize {
        while self.0.front().is_some_and(|&first| first + SECOND <= now) {
            self.0.pop_front();
        }
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn end(journal: &mut Journal) {
        let (at, took) = (Duration::ZERO, Duration::ZERO);
        journal.end(LoggedRequest { at, took, status: Some(200), records: None, accepted: 0, faults: Vec::new() });
    }

    #[test]
    fn the_window_slides_and_refusals_do_not_use_it_up() {
        let mut journal = Journal::new(2);
        let mut arrive = |at: u32| {
            let ceiling = journal.arrive(MS * at, Some(2), None);
            end(&mut journal);
            ceiling
        };
        assert_eq!([arrive(0), arrive(500), arrive(999)], [None, None, Some(Ceiling::Rate)]);
        assert_eq!([arrive(1000), arrive(1499), arrive(1500)], [None, Some(Ceiling::Rate), None]);
        assert_eq!(journal.stats().rate_violations, 2);
        assert_eq!(journal.stats().max_requests_in_one_second, 4);
        assert_eq!(journal.requests().count(), 2);
    }

    #[test]
    fn concurrency_counts_requests_that_have_not_ended() {
        let mut journal = Journal::new(0);
        assert_eq!(journal.arrive(MS, None, Some(1)), None);
        assert_eq!(journal.arrive(MS, None, Some(1)), Some(Ceiling::Concurrency));
        end(&mut journal);
        end(&mut journal);
        assert_eq!(journal.arrive(MS, None, Some(1)), None);
        assert_eq!((journal.stats().in_flight, journal.stats().max_concurrent), (1, 2));
    }

    #[test]
    fn unknown_keys_are_bounded() {
        let mut journal = Journal::new(0);
        let keys: Vec<Cow<'_, str>> = (0..150).map(|n| Cow::Owned(format!("k{n}"))).collect();
        journal.batch(0, 0, &keys);
        assert_eq!(journal.stats().unknown_keys.len(), 101);
        assert_eq!(journal.stats().unknown_keys[OTHER_KEYS], 50);
    }
}
