//! Keeps a worker's requests inside what Amberflo accepts: requests per second, requests in flight, a `Retry-After`
//! that holds for everyone, and a pause while the key or the address is wrong.

mod observed;
mod paused;
mod rate;
mod waited;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

pub use observed::{Cut, Observed, Pause};
use paused::Paused;
use rate::Rate;
pub use waited::LIMITS;
use waited::{Limit, WaitTime};

/// How often one batch tries whether a pause can end.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// The window of the concurrency limit: at most one cut, and +1 only after one without a cut.
const WINDOW: Duration = Duration::from_secs(1);
const CUT_ON_429: f64 = 0.5;
const CUT_ON_FAILURE: f64 = 0.9;

/// A long wait is counted in parts, while it goes on.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// What became of a request, as far as limits care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Delivered,
    /// 429, with the `Retry-After` that came with it.
    SlowDown(Option<Duration>),
    /// 5xx, timeout or connection failure, with the `Retry-After` that may come with it.
    Failed(Option<Duration>),
    /// The key or the address is wrong.
    Refused,
    /// Amberflo does not like what this request holds; most likely it has looked at the key before.
    Answered,
    /// It says nothing about the key: 403 to a request that may be the only one to meet it, 413, or a refusal of a key that
    /// has been replaced meanwhile.
    Inconclusive,
}

/// The limits of one worker, shared by its shards.
pub struct Limiter {
    max_in_flight: f64,
    account_rate: f64,
    state: Mutex<State>,
    /// Held by the one task that waits at the head of the queue: permits are given first come, first served.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

struct State {
    rate: Option<Rate>,
    share: f64,
    /// Shards owned by this worker, and all.
    shards: (usize, usize),
    concurrency: f64,
    in_flight: u32,
    window_ends: Instant,
    was_cut: bool,
    last_cut: Option<(Instant, Cut)>,
    limit_reached: bool,
    retry_after: Option<Instant>,
    paused: Option<Paused>,
    last_delivery_began: Option<Instant>,
    /// When the key changed, or failures were found to have been everybody's.
    fresh_start: Option<Instant>,
    waited: WaitTime,
}

/// What is known of all requests, to judge one by.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    last_delivery_began: Option<Instant>,
    fresh_start: Option<Instant>,
    /// The key or the address is wrong, as far as is known.
    pub is_paused: bool,
}

/// The right to send one request, now.
pub struct Permit {
    limiter: Arc<Limiter>,
    given_at: Instant,
}

impl Limiter {
    /// A limiter that starts at `max_in_flight` and owns the whole of the account's `rate` (requests per second; 0:
    /// unlimited) until [`set_share`](Self::set_share) says otherwise.
    #[must_use]
    pub fn new(max_in_flight: NonZeroU32, rate: f64) -> Arc<Self> {
        let max_in_flight = f64::from(max_in_flight.get());
        Arc::new(Self {
            max_in_flight,
            account_rate: rate,
            state: Mutex::new(State {
                rate: Rate::new(rate, None),
                share: 1.0,
                shards: (1, 1),
                concurrency: max_in_flight,
                in_flight: 0,
                window_ends: Instant::now() + WINDOW,
                was_cut: false,
                last_cut: None,
                limit_reached: false,
                retry_after: None,
                paused: None,
                last_delivery_began: None,
                fresh_start: None,
                waited: WaitTime::default(),
            }),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
        })
    }

    /// Sets this worker's share of the account's rate.
    pub fn set_share(&self, owned_shards: usize, all_shards: usize) {
        let share = (owned_shards.max(1) as f64 / all_shards.max(1) as f64).min(1.0);
        let mut state = self.state();
        state.shards = (owned_shards, all_shards);
        if state.share != share {
            state.share = share;
            state.rate = Rate::new(self.account_rate * share, state.rate.take());
            self.changed.notify_one();
        }
    }

    /// Waits until a request may be sent. Cancel-safe: a dropped call takes nothing with it but its place in the queue.
    pub async fn acquire(self: Arc<Self>) -> Permit {
        let turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            let (wait, limit) = match self.try_acquire() {
                Ok(()) => break,
                Err(wait) => wait,
            };
            let waiting = Waiting { limiter: &self, limit, since: Instant::now() };
            let count_at = waiting.since + COUNT_INTERVAL;
            tokio::select! {
                () = changed => {}
                () = sleep_until(wait.map_or(count_at, |until| until.min(count_at))) => {}
            }
        }
        drop(turn);
        Permit { limiter: self, given_at: Instant::now() }
    }

    /// Shows the limits as they are.
    pub fn set_gauges(&self) {
        let state = self.state();
        metrics::gauge!("ingest_concurrency_limit").set(state.concurrency.floor());
        metrics::gauge!("ingest_in_flight_requests").set(state.in_flight);
        metrics::gauge!("ingest_rate_limit_requests_per_second").set(self.account_rate * state.share);
        state.show_pause();
    }

    /// Whether sending is paused because the key or the address is wrong.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.state().paused.is_some()
    }

    /// Whether nothing is under way and nothing will be sent for a while: a pause, or a `Retry-After` that is not over.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        let state = self.state();
        let next_probe = state.paused.as_ref().map(|paused| paused.next_probe);
        let is_held = next_probe.max(state.retry_after).is_some_and(|until| until > Instant::now());
        is_held && state.in_flight == 0
    }

    /// What was refused, or failed, was delivered unchanged: it was not to blame, and others may not be either.
    pub fn begin_anew(&self) {
        self.state().fresh_start = Some(Instant::now());
    }

    /// The key has changed: a batch may try at once whether a pause can end.
    pub fn key_changed(&self) {
        let mut state = self.state();
        state.fresh_start = Some(Instant::now());
        if let Some(paused) = &mut state.paused {
            paused.probe_in(Duration::ZERO);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// What is known of all requests, to judge one by.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        let state = self.state();
        Evidence {
            last_delivery_began: state.last_delivery_began,
            fresh_start: state.fresh_start,
            is_paused: state.paused.is_some(),
        }
    }

    /// The present limit of requests in flight.
    #[must_use]
    pub fn concurrency(&self) -> u32 {
        self.state().concurrency as u32
    }

    /// Takes a place, or says until when to wait (`None`: until something changes) and for what.
    fn try_acquire(&self) -> Result<(), (Option<Instant>, Limit)> {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        if let Some(until) = state.retry_after.filter(|until| *until > now) {
            return Err((Some(until), Limit::RetryAfter));
        }
        if let Some(paused) = state.paused.as_ref().filter(|paused| paused.next_probe > now) {
            return Err((Some(paused.next_probe), Limit::RetryAfter));
        }
        if state.in_flight >= state.concurrency as u32 {
            state.limit_reached = true;
            return Err((None, Limit::Concurrency));
        }
        if let Some(rate) = &mut state.rate {
            rate.check(now).map_err(|until| (Some(until), Limit::Requests))?;
        }
        if let Some(paused) = &mut state.paused {
            paused.probe_in(PROBE_INTERVAL);
        }
        state.in_flight += 1;
        state.limit_reached |= state.in_flight >= state.concurrency as u32;
        metrics::gauge!("ingest_in_flight_requests").set(state.in_flight);
        Ok(())
    }

    fn report(&self, outcome: Outcome, cause: &str, began: Instant) {
        let now = Instant::now();
        let mut state = self.state();
        self.end_window(&mut state, now);
        match outcome {
            Outcome::Delivered => {
                state.last_delivery_began = state.last_delivery_began.max(Some(began));
                state.end_pause_if(|paused| paused.delivered(began));
            }
            Outcome::SlowDown(wait) => {
                cut(&mut state, CUT_ON_429, cause, now);
                state.hold_for(now, wait);
            }
            Outcome::Failed(wait) => {
                cut(&mut state, CUT_ON_FAILURE, cause, now);
                state.hold_for(now, wait);
            }
            Outcome::Refused => {
                // A late answer from before a delivery says nothing about now.
                let is_outdated = state.last_delivery_began > Some(began);
                match &mut state.paused {
                    Some(paused) => paused.refused(began),
                    None if is_outdated => {}
                    paused @ None => {
                        tracing::error!(
                            "sending is paused: Amberflo's answer says that the API key or the URL is wrong"
                        );
                        *paused = Some(Paused::new(began, cause));
                    }
                }
            }
            Outcome::Answered => state.end_pause_if(|paused| paused.answered(began)),
            Outcome::Inconclusive => {
                if let Some(paused) = &mut state.paused {
                    paused.inconclusive();
                }
            }
        }
        metrics::gauge!("ingest_concurrency_limit").set(state.concurrency.floor());
        state.show_pause();
    }

    /// Additive increase: one more after a window that was clean and used all there was.
    fn end_window(&self, state: &mut State, now: Instant) {
        if now < state.window_ends {
            return;
        }
        if state.limit_reached && !state.was_cut {
            state.concurrency = (state.concurrency + 1.0).min(self.max_in_flight);
        }
        state.window_ends = now + WINDOW;
        state.was_cut = false;
        state.limit_reached = state.in_flight >= state.concurrency as u32;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock; a poisoned one is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evidence {
    /// Whether a request that began after `then` was delivered: proof that Amberflo worked after that.
    #[must_use]
    pub fn is_delivered_since(&self, then: Instant) -> bool {
        self.last_delivery_began > Some(then)
    }

    /// Whether the key has changed after `then`, or failures were found to have been everybody's: what failed before says nothing
    /// of now.
    #[must_use]
    pub fn has_begun_anew_since(&self, then: Instant) -> bool {
        self.fresh_start > Some(then)
    }
}

impl Permit {
    /// When it was given: the request began then.
    #[must_use]
    pub const fn given_at(&self) -> Instant {
        self.given_at
    }

    /// Says what became of the request.
    pub fn report(self, outcome: Outcome) {
        self.report_because(outcome, "");
    }

    /// The same, with what was answered, for people.
    pub fn report_because(self, outcome: Outcome, cause: &str) {
        self.limiter.report(outcome, cause, self.given_at);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        state.in_flight -= 1;
        metrics::gauge!("ingest_in_flight_requests").set(state.in_flight);
        drop(state);
        self.limiter.changed.notify_one();
    }
}

impl State {
    fn show_pause(&self) {
        metrics::gauge!("ingest_paused").set(f64::from(u8::from(self.paused.is_some())));
    }

    fn end_pause_if(&mut self, is_over: impl FnOnce(&mut Paused) -> bool) {
        if let Some(paused) = self.paused.take_if(is_over) {
            let lasted = paused.since.elapsed().as_secs();
            tracing::info!(lasted, "Amberflo accepts requests again");
        }
    }

    /// Nobody sends until the `Retry-After` is over; of several, the longest counts.
    fn hold_for(&mut self, now: Instant, wait: Option<Duration>) {
        self.retry_after = self.retry_after.max(wait.map(|wait| now + wait));
    }
}

/// Multiplicative decrease, at most once a window, never below one.
fn cut(state: &mut State, factor: f64, cause: &str, now: Instant) {
    if !state.was_cut {
        state.was_cut = true;
        state.concurrency = (state.concurrency * factor).max(1.0);
        state.last_cut =
            Some((now, Cut { ago: Duration::ZERO, cause: cause.to_owned(), to: state.concurrency as u32 }));
    }
}

/// A task at the head of the queue that waits; counted also where it is dropped.
struct Waiting<'a> {
    limiter: &'a Limiter,
    limit: Limit,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.limiter.state().waited.add(self.limit, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests;
