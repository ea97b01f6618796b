//! The one retry delay: exponential, capped, with full jitter.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

const FIRST: Duration = Duration::from_millis(200);
/// The longest delay.
pub const MAX_DELAY: Duration = Duration::from_secs(30);

/// Delays for one thing that keeps failing; it never runs out.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

impl Default for Backoff {
    fn default() -> Self {
        let builder = ExponentialBuilder::new().with_min_delay(FIRST).with_max_delay(MAX_DELAY).without_max_times();
        Self(builder.build())
    }
}

impl Backoff {
    /// The next delay: anything up to the present step, so that many who failed together do not return together.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next().unwrap_or(MAX_DELAY).mul_f64(fastrand::f64())
    }
}
