//! Requests per second.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// Timers have a resolution of a millisecond, and tasks wait for their turn.
const TIMER_SLACK: Duration = Duration::from_millis(5);

/// Evenly spaced requests, no bursts: any second then holds at most one more than the rate.
pub struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, PlannedClock, NoOpMiddleware<Duration>>,
    clock: PlannedClock,
    started: Instant,
    period: Duration,
    /// When the request that waits at the head may be sent.
    due: Option<Instant>,
    /// For when the last one was planned.
    last: Option<Instant>,
}

impl Rate {
    /// A rate that follows `previous`, whose last request counts; `None` for no limit.
    pub fn new(per_second: f64, previous: Option<Self>) -> Option<Self> {
        if per_second <= 0.0 {
            return None;
        }
        let period = Duration::from_secs_f64(1.0 / per_second);
        let (quota, clock) = (Quota::with_period(period)?.allow_burst(NonZeroU32::MIN), PlannedClock::default());
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        let last = previous.and_then(|previous| previous.last);
        let started = last.unwrap_or_else(Instant::now);
        let mut rate = Self { limiter, clock, started, period, due: None, last };
        if let Some(last) = last {
            // It has one to give at its start: that request.
            let _ = rate.check(last);
        }
        Some(rate)
    }

    /// Takes a cell, or says when there will be one.
    ///
    /// Timers wake up to some milliseconds late. Who does counts as in time, or each delay would put off all requests after
    /// it: at 100 a second up to a tenth would be missing. As this is less than a period, a second still holds at most
    /// one more than the rate.
    pub fn check(&mut self, now: Instant) -> Result<(), Instant> {
        let slack = TIMER_SLACK.min(self.period / 2);
        let planned = self.due.take().filter(|due| *due <= now && now - *due <= slack).unwrap_or(now);
        let planned = planned - self.started;
        self.clock.set(planned);
        match self.limiter.check() {
            Ok(()) => {
                self.last = Some(self.started + planned);
                Ok(())
            }
            Err(until) => Err(*self.due.insert(self.started + planned + until.wait_time_from(planned))),
        }
    }
}

/// Says what it was told last: requests are spaced by when they were due.
#[derive(Clone, Debug, Default)]
struct PlannedClock(Arc<AtomicU64>);

impl PlannedClock {
    fn set(&self, since_start: Duration) {
        self.0.store(u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for PlannedClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
