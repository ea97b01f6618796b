//! Keeps one lease: the single writer of its row, and the fence that stops deliveries before the lease can be lost.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{Checkpoint, Lease, Leases};
use shared::service::Trouble;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long before the failover time the fence falls, at most a fifth of it. Source: the design of the KCL's leases.
const FENCE_MARGIN: Duration = Duration::from_secs(2);
/// A row is written this often where nothing is settled, as the KCL does.
const RENEWALS_PER_FAILOVER: u32 = 3;
/// And this often where something is. What was delivered since the last checkpoint is sent again after a crash, but
/// every write of the table costs.
const CHECKPOINTS_PER_FAILOVER: u32 = 5;
/// Between tries of one write: a throttled table must not be pressed by all shards at once.
const RETRY_DELAYS: RangeInclusive<u64> = 100..=400;
/// How long the release of a lease may take.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

static UNRENEWED: Trouble = Trouble::new();

/// Says how long this worker may act for a shard.
///
/// Another worker may take the lease once it has seen no renewal for the failover time, so nothing is begun for the
/// shard from a margin before that: not even by a process that was stopped meanwhile and does not know it.
///
/// A fence that anybody saw fall stays down, also where a renewal that was under way turns out to have come in time:
/// work that was dropped for it is not taken up again, so the shard must be read again.
#[derive(Clone, Debug)]
pub struct Fence {
    deadline: watch::Receiver<Instant>,
    fell: CancellationToken,
}

impl Fence {
    /// A fence that falls at `deadline` and is never moved.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self::new(watch::channel(deadline).1)
    }

    fn new(deadline: watch::Receiver<Instant>) -> Self {
        Self { deadline, fell: CancellationToken::new() }
    }

    /// How long this worker may still act.
    #[must_use]
    pub fn left(&self) -> Duration {
        if self.fell.is_cancelled() {
            return Duration::ZERO;
        }
        self.deadline.borrow().saturating_duration_since(Instant::now())
    }

    /// Resolves when this worker may no longer act.
    pub async fn fallen(&self) {
        let mut until = self.deadline.clone();
        while !self.fell.is_cancelled() {
            let deadline = *until.borrow_and_update();
            if Instant::now() >= deadline {
                self.fell.cancel();
                return;
            }
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = self.fell.cancelled() => {}
                // A closed channel: the keeper is gone, nothing extends the fence any more.
                Err(_) = until.changed() => sleep_until(deadline).await,
            }
        }
    }

    /// Runs `work` while the fence stands; once it has fallen, `work` is dropped and this never resolves, so that
    /// nothing after it happens. The shard task ends meanwhile.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.fallen() => std::future::pending().await,
            result = work => result,
        }
    }
}

/// The single writer of one lease's row.
pub struct Keeper {
    leases: Arc<dyn Leases>,
    lease: Lease,
    failover: Duration,
    renewed_at: Instant,
    fence: watch::Sender<Instant>,
    checkpoint: watch::Receiver<Checkpoint>,
    hand_over: CancellationToken,
}

impl Keeper {
    /// A keeper for a lease whose claim began at `claimed_at`, its fence, and where to put checkpoints. `hand_over` is
    /// cancelled when another worker asks for the lease.
    #[must_use]
    pub fn new(
        leases: Arc<dyn Leases>,
        lease: Lease,
        claimed_at: Instant,
        failover: Duration,
        hand_over: CancellationToken,
    ) -> (Self, Fence, watch::Sender<Checkpoint>) {
        let (checkpoint, checkpoints) = watch::channel(lease.checkpoint.clone());
        let (fence, fence_receiver) = watch::channel(fence_after(claimed_at, failover));
        let keeper =
            Self { leases, lease, failover, renewed_at: claimed_at, fence, checkpoint: checkpoints, hand_over };
        (keeper, Fence::new(fence_receiver), checkpoint)
    }

    /// Renews the lease and writes checkpoints until the lease is lost.
    pub async fn keep(&mut self) {
        loop {
            let renew_at = self.renewed_at + self.failover / RENEWALS_PER_FAILOVER;
            let checkpoint_at = self.renewed_at + self.failover / CHECKPOINTS_PER_FAILOVER;
            tokio::select! {
                () = sleep_until(renew_at) => {}
                Ok(()) = self.checkpoint.changed() => sleep_until(checkpoint_at).await,
            }
            if !self.renew().await {
                return;
            }
        }
    }

    /// One write, repeated unchanged until its result is known: a repeat with another checkpoint could not be
    /// recognised as ours if the first had landed.
    async fn renew(&mut self) -> bool {
        let checkpoint = self.checkpoint.borrow_and_update().clone();
        let wanted = Lease { checkpoint, ..self.lease.clone() };
        let deadline = *self.fence.borrow();
        let mut has_failed = false;
        loop {
            let started = Instant::now();
            match timeout_at(deadline, self.leases.renew(&wanted)).await {
                Ok(Ok(Some(row))) => {
                    count_checkpoint("ok");
                    if has_failed && let Some(over) = UNRENEWED.over() {
                        tracing::info!(shard = %row.shard, lasted = over.lasted.as_secs(), "leases are renewed again");
                    }
                    if let Some(worker) = &row.wanted_by
                        && !self.hand_over.is_cancelled()
                    {
                        tracing::info!(shard = %row.shard, %worker, "handing the lease over, to share the load");
                        self.hand_over.cancel();
                    }
                    self.lease = row;
                    self.renewed_at = started;
                    self.fence.send_replace(fence_after(started, self.failover));
                    return true;
                }
                Ok(Ok(None)) => {
                    tracing::warn!(shard = %self.lease.shard, "the lease was lost: another worker took it, or an operator set it back");
                    return false;
                }
                Ok(Err(error)) => {
                    count_checkpoint("error");
                    has_failed = true;
                    if let Some(omitted) = UNRENEWED.again() {
                        let shard = &self.lease.shard;
                        tracing::warn!(%shard, %error, omitted, "the lease could not be renewed; trying again");
                    }
                    sleep(Duration::from_millis(fastrand::u64(RETRY_DELAYS))).await;
                }
                Err(_) => {
                    tracing::error!(shard = %self.lease.shard, "the lease could not be renewed in time: giving it up");
                    return false;
                }
            }
        }
    }

    /// Gives the lease up with its newest checkpoint, so that another worker can take it at once.
    pub async fn release(self) {
        let checkpoint = self.checkpoint.borrow().clone();
        self.give_up(checkpoint, "lease released").await;
    }

    /// Gives the lease up for good: all records of its shard are settled, and there will be no more.
    pub async fn end(self) {
        self.give_up(Checkpoint::Ended, "the shard has ended, and all its records are settled").await;
    }

    async fn give_up(mut self, checkpoint: Checkpoint, message: &'static str) {
        self.lease.checkpoint = checkpoint;
        let result = timeout(RELEASE_TIMEOUT, self.leases.release(&self.lease)).await;
        let Lease { shard, checkpoint, .. } = &self.lease;
        match result {
            Ok(Ok(())) => tracing::info!(%shard, %checkpoint, "{message}"),
            _ => tracing::warn!(%shard, "the lease could not be released; it will expire"),
        }
    }
}

fn fence_after(renewed_at: Instant, failover: Duration) -> Instant {
    renewed_at + failover - FENCE_MARGIN.min(failover / 5)
}

fn count_checkpoint(result: &'static str) {
    metrics::counter!("ingest_checkpoints_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    /// A process that was stopped goes on: one submit sees that the deadline has passed and is dropped, and then the
    /// answer to a renewal comes that was under way all the time. Were the fence up again, nobody would end the shard's
    /// task, and that submit's batch would never be settled.
    #[tokio::test(start_paused = true)]
    async fn a_fence_that_was_seen_down_does_not_stand_up_again() {
        let (deadline, receiver) = watch::channel(Instant::now() + Duration::from_secs(1));
        let fence = Fence::new(receiver);
        let waits = fence.clone();
        let mut fallen = Box::pin(waits.fallen());
        assert!(fallen.as_mut().now_or_never().is_none());
        assert_eq!(fence.guard(async { 7 }).now_or_never(), Some(7));
        deadline.send_replace(Instant::now() + Duration::from_secs(2));
        advance(Duration::from_secs(3)).await;
        assert_eq!(fence.guard(async { 7 }).now_or_never(), None);
        deadline.send_replace(Instant::now() + Duration::from_secs(9));
        assert!(fallen.now_or_never().is_some());
        assert!(fence.fallen().now_or_never().is_some());
        assert_eq!(fence.left(), Duration::ZERO);
    }
}
