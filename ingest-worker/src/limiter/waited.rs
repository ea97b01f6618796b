//! How long requests waited, and for what.

use std::time::Duration;

/// Prometheus counters of the `metrics` crate are whole numbers: fractions of a second wait here for the next one.
#[derive(Default)]
pub struct WaitTime([Duration; 3]);

impl WaitTime {
    /// Adds a wait.
    pub fn add(&mut self, limit: Limit, waited: Duration) {
        let total = &mut self.0[limit as usize];
        *total += waited;
        let label = LIMITS[limit as usize];
        metrics::counter!("ingest_limiter_wait_seconds_total", "limit" => label).increment(total.as_secs());
        *total -= Duration::from_secs(total.as_secs());
    }
}

/// The labels of what a request waits for, in the order of `Limit`.
pub const LIMITS: [&str; 3] = ["requests", "retry_after", "concurrency"];

/// What a request waits for.
#[derive(Clone, Copy)]
pub enum Limit {
    /// The rate of requests.
    Requests,
    /// A `Retry-After`, or a pause.
    RetryAfter,
    /// Requests in flight.
    Concurrency,
}
