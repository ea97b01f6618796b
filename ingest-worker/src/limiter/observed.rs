//! What the limits are at one moment and what set them, for people.

use std::time::Duration;

use tokio::time::Instant;

use super::Limiter;

/// The limits at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Requests per second of the whole account; 0: unlimited.
    pub account_rate: f64,
    /// This worker's share of it.
    pub rate: f64,
    /// Shards owned by this worker, and all shards that are shared.
    pub shards: (usize, usize),
    /// Requests that may be in flight.
    pub concurrency: u32,
    /// Their ceiling.
    pub max_in_flight: u32,
    /// Requests in flight.
    pub in_flight: u32,
    /// What last lowered the concurrency.
    pub last_cut: Option<Cut>,
    /// How long nobody sends because of a `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Why sending is paused.
    pub pause: Option<Pause>,
}

/// A lowering of the concurrency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How long ago.
    pub ago: Duration,
    /// What was answered.
    pub cause: String,
    /// What it became.
    pub to: u32,
}

/// A pause because the key or the address is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// How long it has lasted.
    pub lasted: Duration,
    /// What was answered.
    pub cause: String,
    /// How long until one batch tries whether it can end.
    pub next_probe: Duration,
}

impl Limiter {
    /// The limits as they are now.
    #[must_use]
    pub fn observe(&self) -> Observed {
        let (now, state) = (Instant::now(), self.state());
        let left = |until: Instant| until.saturating_duration_since(now);
        Observed {
            account_rate: self.account_rate,
            rate: self.account_rate * state.share,
            shards: state.shards,
            concurrency: state.concurrency as u32,
            max_in_flight: self.max_in_flight as u32,
            in_flight: state.in_flight,
            last_cut: state.last_cut.as_ref().map(|(at, cut)| Cut { ago: at.elapsed(), ..cut.clone() }),
            retry_after: state.retry_after.map(left).filter(|left| !left.is_zero()),
            pause: state.paused.as_ref().map(|paused| Pause {
                lasted: paused.since.elapsed(),
                cause: paused.cause.clone(),
                next_probe: left(paused.next_probe),
            }),
        }
    }
}
