//! When a shard may be asked again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A shard allows five GetRecords a second.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// The longest wait at the tip.
const MAX_IDLE: Duration = Duration::from_secs(1);
/// A shard allows 2 MB of reads a second, and refuses calls until a larger response is paid off.
const BYTES_PER_SECOND: f64 = 2e6;
/// The budgets of a shard are per second: after a refusal at least one passes.
const THROTTLED: Duration = Duration::from_secs(1);
const MAX_THROTTLED: Duration = Duration::from_secs(8);

/// The waits between the calls of one reader. Other consumers of the shard share its budgets, so they alone do not
/// prevent refusals.
#[derive(Debug)]
pub(super) struct Pace {
    last_call: Instant,
    next_call: Instant,
    /// Grows while the shard has nothing new.
    idle: Duration,
    /// Grows with refusals in a row.
    throttled: Duration,
}

impl Pace {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { last_call: now, next_call: now, idle: MIN_INTERVAL, throttled: THROTTLED }
    }

    /// Waits until a call may be made.
    pub(super) async fn ready(&self) {
        sleep_until(self.next_call).await;
    }

    /// As [`ready`](Self::ready), and notes that the call is made.
    pub(super) async fn wait(&mut self) {
        self.ready().await;
        self.last_call = Instant::now();
        self.next_call = self.last_call + MIN_INTERVAL;
    }

    /// The call returned `bytes` of payload.
    pub(super) fn answered(&mut self, bytes: usize, is_tip: bool) {
        self.idle = if is_tip { (2 * self.idle).min(MAX_IDLE) } else { MIN_INTERVAL };
        self.throttled = THROTTLED;
        let paid_off = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
        self.next_call = self.last_call + self.idle.max(paid_off);
    }

    /// The call was refused because a budget is used up.
    pub(super) fn throttled(&mut self) {
        self.next_call = Instant::now() + THROTTLED + self.throttled.mul_f64(fastrand::f64());
        self.throttled = (2 * self.throttled).min(MAX_THROTTLED);
    }
}
