//! Finds shards, takes their leases, and runs a task for each until it is told to stop.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position, Shard, ShardId};
use shared::service::Ready;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::context::{Common, ShardContext};
use crate::lease::Keeper;
use crate::shard;

/// One ingest worker.
pub struct Worker {
    /// What its shards share.
    pub common: Arc<Common>,
    /// The leases of the stream.
    pub leases: Arc<dyn Leases>,
    /// A lease not renewed for this long may be taken.
    pub failover: Duration,
    /// Where a shard without a checkpoint starts.
    pub initial_position: Position,
    /// Whether no other worker can live: leases of others are then taken without waiting for them to expire.
    pub is_alone: bool,
    /// What /ready answers.
    pub ready: Ready,
}

/// A lease row as it was last seen to change, by this worker's own clock.
struct Observed {
    counter: u64,
    since: Instant,
}

#[derive(Default)]
struct Scan {
    observed: HashMap<ShardId, Observed>,
    held: HashMap<task::Id, ShardId>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Works until `stop`, then drains: settles what is in flight, within the drain time of the settings, and gives all
    /// leases up. Dropping the future ends everything at once, as a crash would.
    pub async fn run(self, stop: CancellationToken) {
        let mut scan = Scan::default();
        let mut scans = interval((self.failover / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)));
        scans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut key = self.common.keys.subscribe();
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = key.changed() => self.common.limiter.probe_now(),
                Some(ended) = scan.tasks.join_next_with_id() => self.ended(&mut scan, ended),
                _ = scans.tick() => {
                    if let Some(result) = stop.run_until_cancelled(self.scan(&mut scan, &stop)).await {
                        self.observe(&mut scan, result);
                    }
                }
            }
        }
        self.ready.set(false);
        metrics::gauge!("ingest_ready").set(0.0);
        while let Some(ended) = scan.tasks.join_next_with_id().await {
            self.ended(&mut scan, ended);
        }
    }

    /// Creates missing leases, and takes those that are free or expired.
    async fn scan(&self, scan: &mut Scan, stop: &CancellationToken) -> Result<(), BackendError> {
        let mut leases = self.leases.list().await?;
        let shards = self.common.stream.shards().await?;
        let known: HashSet<&ShardId> = leases.iter().map(|lease| &lease.shard).collect();
        let missing: Vec<Shard> = shards.iter().filter(|shard| !known.contains(&shard.id)).cloned().collect();
        for shard in &missing {
            self.leases.create(shard, self.initial_position.clone()).await?;
        }
        if !missing.is_empty() {
            leases = self.leases.list().await?;
        }
        let total = leases.len();
        for lease in leases {
            if scan.held.values().any(|held| *held == lease.shard) || !self.is_claimable(scan, &lease) {
                continue;
            }
            let claimed_at = Instant::now();
            if let Some(lease) = self.leases.claim(&lease, &self.common.worker).await? {
                lease_event("taken");
                let shard = lease.shard.clone();
                let task = scan.tasks.spawn(self.shard_task(lease, claimed_at, stop.clone()));
                scan.held.insert(task.id(), shard);
            }
        }
        self.common.limiter.set_share(scan.held.len(), total);
        Ok(())
    }

    /// A lease is free when nobody owns it, and expired when its row has not changed for the failover time. A row seen
    /// for the first time counts as fresh: only this worker's own observation proves that it stands still.
    fn is_claimable(&self, scan: &mut Scan, lease: &Lease) -> bool {
        if lease.owner.is_none() || self.is_alone {
            return true;
        }
        let seen = scan.observed.entry(lease.shard.clone()).or_insert(Observed { counter: 0, since: Instant::now() });
        if seen.counter != lease.counter {
            *seen = Observed { counter: lease.counter, since: Instant::now() };
        }
        seen.since.elapsed() >= self.failover
    }

    fn shard_task(
        &self,
        lease: Lease,
        claimed_at: Instant,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shard = lease.shard.clone();
        let resumes_at = match &lease.checkpoint {
            Checkpoint::Start(position) => format!("{position:?}"),
            Checkpoint::Settled { sequence_number, .. } => format!("after {sequence_number}"),
            Checkpoint::Rewound(time) => format!("at {time}"),
            Checkpoint::Ended => "end".to_owned(),
        };
        tracing::info!(%shard, resumes_at, "lease taken");
        let (mut keeper, fence, checkpoint) = Keeper::new(Arc::clone(&self.leases), lease, claimed_at, self.failover);
        let context = Arc::new(ShardContext::new(shard.clone(), fence, Arc::clone(&self.common)));
        async move {
            let is_lost = tokio::select! {
                biased;
                () = keeper.keep() => true,
                () = shard::run(context, &checkpoint, stop) => false,
            };
            if is_lost {
                lease_event("lost");
            } else {
                keeper.release().await;
                lease_event("released");
                tracing::info!(%shard, "lease released");
            }
        }
    }

    fn ended(&self, scan: &mut Scan, ended: Result<(task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a shard task failed; its lease will expire and be taken again");
                error.id()
            }
        };
        if let Some(shard) = scan.held.remove(&id) {
            scan.observed.remove(&shard);
        }
        metrics::gauge!("ingest_leases_held").set(scan.held.len() as f64);
    }

    fn observe(&self, scan: &mut Scan, result: Result<(), BackendError>) {
        if let Err(error) = &result {
            tracing::warn!(%error, "leases or shards could not be read; trying again");
        }
        let ready = result.is_ok() && !self.common.limiter.is_paused();
        self.ready.set(ready);
        metrics::gauge!("ingest_ready").set(f64::from(u8::from(ready)));
        metrics::gauge!("ingest_concurrency_limit").set(self.common.limiter.concurrency());
        metrics::gauge!("ingest_leases_held").set(scan.held.len() as f64);
    }
}

fn lease_event(event: &'static str) {
    metrics::counter!("ingest_lease_events_total", "event" => event).increment(1);
}
