//! What the workers of the deployment say of themselves while a run goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::scrape::{Sample, Scraper};

const EVERY: Duration = Duration::from_secs(1);

/// The workers to look at.
pub struct Workers {
    scrapers: Vec<Scraper>,
}

/// What was seen so far.
pub struct Samples {
    seen: Arc<Mutex<Vec<Look>>>,
    _task: Option<AbortOnDropHandle<()>>,
}

/// All workers at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Look {
    /// Seconds since the run began.
    pub seconds: f64,
    /// Workers that answered.
    pub workers: usize,
    /// The slowest shard's lag, in seconds.
    pub lag_seconds: f64,
    /// Records in a batch, on average since the look before; `None` where none was sent.
    pub batch_events: Option<f64>,
    /// Requests that may be in flight, of all workers.
    pub concurrency_limit: f64,
    /// Requests in flight.
    pub in_flight: f64,
    /// Requests answered with 429 since the look before.
    pub throttled: u64,
    /// Requests that failed with 5xx, by timeout or without an answer since the look before.
    pub failed: u64,
}

impl Workers {
    /// The workers whose /metrics have these URLs.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn open(urls: &[String]) -> anyhow::Result<Self> {
        Ok(Self { scrapers: urls.iter().map(|url| Scraper::of(url)).collect::<Result<_, _>>()? })
    }

    /// Looks every second from now on.
    #[must_use]
    pub fn watch(self) -> Samples {
        let seen = Arc::<Mutex<Vec<Look>>>::default();
        let is_idle = self.scrapers.is_empty();
        let task = (!is_idle).then(|| AbortOnDropHandle::new(tokio::spawn(watch(self.scrapers, Arc::clone(&seen)))));
        Samples { seen, _task: task }
    }
}

impl Samples {
    /// The lag when it was last looked at; `None` where no worker answered.
    #[must_use]
    pub fn lag(&self) -> Option<Duration> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last().filter(|look| look.workers > 0).map(|look| Duration::from_secs_f64(look.lag_seconds))
    }

    /// Ends, and answers what was seen.
    #[must_use]
    pub fn take(self) -> Vec<Look> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn watch(scrapers: Vec<Scraper>, seen: Arc<Mutex<Vec<Look>>>) {
    let started = Instant::now();
    let mut before: Vec<Option<Sample>> = vec![None; scrapers.len()];
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut now = Vec::with_capacity(scrapers.len());
        for scraper in &scrapers {
            now.push(scraper.sample().await);
        }
        let look = look(started.elapsed().as_secs_f64(), &before, &now);
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(look);
        for (before, now) in before.iter_mut().zip(now) {
            *before = now.or(*before);
        }
    }
}

fn look(seconds: f64, before: &[Option<Sample>], now: &[Option<Sample>]) -> Look {
    let mut look = Look { seconds, ..Look::default() };
    let (mut batches, mut batched) = (0, 0);
    for (before, now) in before.iter().zip(now) {
        let Some(now) = now else { continue };
        look.workers += 1;
        look.lag_seconds = look.lag_seconds.max(now.lag.as_secs_f64());
        look.concurrency_limit += now.concurrency_limit;
        look.in_flight += now.in_flight;
        // What was counted before the first look is not of this run; a counter that fell began again with its process.
        let Some(before) = before else { continue };
        let since = |count: fn(&Sample) -> u64| match count(now).checked_sub(count(before)) {
            Some(news) => news,
            None => count(now),
        };
        batches += since(|sample| sample.batches);
        batched += since(|sample| sample.batched);
        look.throttled += since(|sample| sample.throttled);
        look.failed += since(|sample| sample.failed);
    }
    look.batch_events = (batches > 0).then(|| batched as f64 / batches as f64);
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_what_came_since() {
        let sample = |batches, throttled, lag| {
            let lag = Duration::from_secs(lag);
            Some(Sample { batches, batched: batches * 10, throttled, lag, concurrency_limit: 4.0, ..Sample::default() })
        };
        // The first goes on, the second was started again, the third is new, and the fourth is down.
        let before = [sample(5, 1, 1), sample(100, 9, 1), None, sample(1, 1, 1)];
        let now = [sample(7, 2, 3), sample(3, 1, 0), sample(50, 5, 0), None];
        let look = look(2.0, &before, &now);
        assert_eq!((look.workers, look.lag_seconds, look.concurrency_limit), (3, 3.0, 12.0));
        assert_eq!((look.throttled, look.batch_events), (2, Some(10.0)));
    }

    #[test]
    fn a_worker_that_does_not_answer_has_no_lag() {
        let lag = |workers| {
            let seen = Arc::new(Mutex::new(vec![Look { workers, ..Look::default() }]));
            Samples { seen, _task: None }.lag()
        };
        assert_eq!((lag(0), lag(1)), (None, Some(Duration::ZERO)));
    }
}
