//! Finds shards, takes their leases, and runs a task for each until it is told to stop.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position, Shard, ShardId};
use shared::service::{ConfigError, Ready};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::balance::Balancer;
use crate::context::{Common, ShardContext};
use crate::lease::Keeper;
use crate::lineage;
use crate::shard::{self, Outcome};

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

/// What a scan came upon.
enum Found {
    Leases,
    /// Another process works under this worker's name.
    Namesake,
}

struct Scan {
    balancer: Balancer,
    /// The rows as they were last seen, should one of them be deleted under its owner.
    checkpoints: HashMap<ShardId, Checkpoint>,
    held: HashMap<task::Id, ShardId>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Works until `stop`, then drains: settles what is in flight, within the drain time of the settings, and gives all
    /// leases up. Dropping the future ends everything at once, as a crash would.
    ///
    /// # Errors
    /// When another process works under the same name.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ConfigError> {
        let mut has_namesake = false;
        let mut scan = Scan {
            balancer: Balancer::new(self.common.worker.clone(), self.failover, self.is_alone),
            checkpoints: HashMap::new(),
            held: HashMap::new(),
            tasks: JoinSet::new(),
        };
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
                        has_namesake = matches!(result, Ok(Found::Namesake));
                        self.observe(&mut scan, result.map(|_| ()));
                        if has_namesake {
                            stop.cancel();
                        }
                    }
                }
            }
        }
        self.ready.set(false);
        metrics::gauge!("ingest_ready").set(0.0);
        while let Some(ended) = scan.tasks.join_next_with_id().await {
            self.ended(&mut scan, ended);
        }
        if has_namesake {
            return Err(ConfigError(format!(
                "WORKER_ID: another process works as {:?}; every process needs a name of its own, and has one by default",
                self.common.worker.0
            )));
        }
        Ok(())
    }

    /// Creates missing leases, forgets those of shards long gone, and takes or asks for what is this worker's share.
    async fn scan(&self, scan: &mut Scan, stop: &CancellationToken) -> Result<Found, BackendError> {
        let mut leases = self.leases.list().await?;
        let shards = self.common.stream.shards().await?;
        if self.create_missing(scan, &leases, &shards).await? {
            leases = self.leases.list().await?;
        }
        scan.checkpoints.clear();
        scan.checkpoints.extend(leases.iter().map(|lease| (lease.shard.clone(), lease.checkpoint.clone())));
        for lease in leases.iter().filter(|lease| lineage::is_forgotten(lease, &shards)) {
            self.leases.forget(lease).await?;
        }

        let held: BTreeSet<ShardId> = scan.held.values().cloned().collect();
        let plan = scan.balancer.plan(&leases, &shards, &held);
        if plan.has_namesake {
            return Ok(Found::Namesake);
        }
        for lease in plan.claim {
            let claimed_at = Instant::now();
            let event = if lease.wanted_by.as_ref() == Some(&self.common.worker) { "stolen" } else { "taken" };
            if let Some(lease) = self.leases.claim(&lease, &self.common.worker).await? {
                lease_event(event);
                let shard = lease.shard.clone();
                let task = scan.tasks.spawn(self.shard_task(lease, &shards, claimed_at, stop.child_token()));
                scan.held.insert(task.id(), shard);
            }
        }
        if let Some(lease) = plan.ask {
            let owner = lease.owner.as_ref().map(tracing::field::display);
            tracing::info!(shard = %lease.shard, owner, "asking for a lease, to share the load");
            self.leases.ask(&lease, &self.common.worker).await?;
        }
        self.common.limiter.set_share(scan.held.len(), plan.open);
        Ok(Found::Leases)
    }

    /// Makes a row for every shard that has none; answers whether there were any.
    async fn create_missing(&self, scan: &Scan, leases: &[Lease], shards: &[Shard]) -> Result<bool, BackendError> {
        let missing = lineage::missing(leases, shards);
        for shard in &missing {
            let checkpoint = match scan.checkpoints.get(&shard.id) {
                Some(last) => {
                    tracing::error!(shard = %shard.id, "its lease row was deleted: made anew, with its last checkpoint");
                    last.clone()
                }
                None => Checkpoint::Start(lineage::start_of(shard, leases, shards, &self.initial_position)),
            };
            self.leases.create(shard, checkpoint).await?;
        }
        Ok(!missing.is_empty())
    }

    fn shard_task(
        &self,
        lease: Lease,
        shards: &[Shard],
        claimed_at: Instant,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shard = lease.shard.clone();
        tracing::info!(%shard, checkpoint = %lease.checkpoint, "lease taken");
        let lineage = lineage::of(&shard, shards);
        let leases = Arc::clone(&self.leases);
        let (mut keeper, fence, checkpoint) =
            Keeper::new(Arc::clone(&leases), lease, claimed_at, self.failover, stop.clone());
        let context = Arc::new(ShardContext::new(lineage, fence, Arc::clone(&self.common)));
        async move {
            let outcome = tokio::select! {
                biased;
                () = keeper.keep() => None,
                outcome = work(context, &*leases, &checkpoint, stop) => Some(outcome),
            };
            match outcome {
                None => lease_event("lost"),
                Some(Outcome::GivenUp) => {
                    keeper.release().await;
                    lease_event("released");
                    tracing::info!(%shard, "lease released");
                }
                Some(Outcome::Ended) => {
                    keeper.end().await;
                    lease_event("released");
                    tracing::info!(%shard, "the shard has ended, and all its records are settled");
                }
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
        scan.held.remove(&id);
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

/// Runs the shard; where it ended, its children have leases before its own lease says so.
async fn work(
    shard: Arc<ShardContext>,
    leases: &dyn Leases,
    checkpoint: &tokio::sync::watch::Sender<Checkpoint>,
    stop: CancellationToken,
) -> Outcome {
    let outcome = shard::run(Arc::clone(&shard), checkpoint, stop.clone()).await;
    if outcome == Outcome::GivenUp {
        return outcome;
    }
    match stop.run_until_cancelled(lineage::create_children(&shard.id, &*shard.stream, leases)).await {
        Some(()) => Outcome::Ended,
        // The next owner finds the end again.
        None => Outcome::GivenUp,
    }
}

fn lease_event(event: &'static str) {
    metrics::counter!("ingest_lease_events_total", "event" => event).increment(1);
}
