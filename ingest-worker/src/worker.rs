//! Finds shards, takes their leases, and runs a task for each until it is told to stop.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position, Shard, ShardId};
use shared::service::{ConfigError, Ready, Trouble};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::balance::{Balancer, Plan};
use crate::context::{Common, ShardContext};
use crate::lease::Keeper;
use crate::lineage;
use crate::metrics::SHARD_FAILURES;
use crate::shard::{self, Outcome};
use crate::status::HeldLease;

/// A shard that was missing in the stream's list for so long is gone: the stream's retention has passed.
const GONE_AFTER: Duration = Duration::from_secs(10 * 60);
/// The row of a finished shard is kept for so long after that.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

static UNREAD: Trouble = Trouble::new();
static UNENDED: Trouble = Trouble::new();

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

struct Scan {
    balancer: Balancer,
    /// All rows as they were last seen, should one of them be deleted under its owner.
    checkpoints: HashMap<ShardId, Checkpoint>,
    /// Since when a lease's shard has been missing in the stream's list.
    unlisted: HashMap<ShardId, Instant>,
    /// How many leases there are to share.
    open: usize,
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
            unlisted: HashMap::new(),
            open: 0,
            held: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let mut scans = interval((self.failover / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)));
        scans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut key, limiter) = (self.common.keys.subscribe(), Arc::clone(&self.common.limiter));
        // On its own: a look at the leases takes seconds where DynamoDB is slow, and requests have the new key at once.
        let _key_watch = AbortOnDropHandle::new(tokio::spawn(async move {
            while key.changed().await.is_ok() {
                limiter.key_changed();
            }
        }));
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = scan.tasks.join_next_with_id() => self.ended(&mut scan, ended),
                _ = scans.tick() => {
                    let Some(looked) = stop.run_until_cancelled(self.look(&mut scan)).await else { break };
                    let result = match looked {
                        Ok((plan, _)) if plan.has_namesake => {
                            has_namesake = true;
                            stop.cancel();
                            break;
                        }
                        Ok((plan, family)) => self.act(&mut scan, plan, &family, &stop).await,
                        Err(error) => Err(error),
                    };
                    self.observe(&scan, result);
                }
            }
        }
        self.ready.close();
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

    /// Looks at leases and shards, makes rows for new shards, and decides what to take or ask for.
    /// Answers that, and the family of all shards.
    async fn look(&self, scan: &mut Scan) -> Result<(Plan, Vec<Shard>), BackendError> {
        let mut leases = self.leases.list().await?;
        let shards = self.common.stream.shards().await?;
        if self.create_missing(scan, &leases, &shards).await? {
            leases = self.leases.list().await?;
        }
        scan.checkpoints.extend(leases.iter().map(|lease| (lease.shard.clone(), lease.checkpoint.clone())));
        let listed = shards.iter().map(|shard| &shard.id);
        let known: HashSet<&ShardId> = listed.chain(leases.iter().map(|lease| &lease.shard)).collect();
        scan.checkpoints.retain(|id, _| known.contains(id));
        self.end_unlisted(scan, &leases, &shards).await;
        let held: BTreeSet<ShardId> = scan.held.values().cloned().collect();
        let plan = scan.balancer.plan(&leases, &shards, &held);
        scan.open = plan.open;
        Ok((plan, lineage::family(&shards, &leases)))
    }

    /// Takes and asks for leases. Not to be dropped half way: a claim that lands unseen would leave a lease without a
    /// keeper until it expires.
    async fn act(
        &self,
        scan: &mut Scan,
        plan: Plan,
        family: &[Shard],
        stop: &CancellationToken,
    ) -> Result<(), BackendError> {
        let mut result = Ok(());
        // Before they begin to send.
        self.common.limiter.set_share(scan.held.len() + plan.claim.len(), plan.open);
        for lease in plan.claim {
            if stop.is_cancelled() {
                break;
            }
            let claimed_at = Instant::now();
            let event = if lease.wanted_by.as_ref() == Some(&self.common.worker) { "stolen" } else { "taken" };
            let from = lease.owner.clone();
            match self.leases.claim(&lease, &self.common.worker).await {
                Ok(Some(lease)) => {
                    lease_event(event);
                    let shard = lease.shard.clone();
                    let from = from.as_ref().map(tracing::field::display);
                    tracing::info!(%shard, from, checkpoint = %lease.checkpoint, "lease taken");
                    let task = scan.tasks.spawn(self.shard_task(lease, family, claimed_at, stop.child_token()));
                    scan.held.insert(task.id(), shard);
                }
                Ok(None) => {}
                // One row must not keep the others from being taken.
                Err(error) => result = Err(error),
            }
        }
        self.common.limiter.set_share(scan.held.len(), scan.open);
        if let Some(lease) = plan.ask {
            let owner = lease.owner.as_ref().map(tracing::field::display);
            tracing::info!(shard = %lease.shard, owner, "asking for a lease, to share the load");
            self.leases.ask(&lease, &self.common.worker).await?;
        }
        result
    }

    /// Ends the leases of shards that the stream has forgotten. One list proves nothing: it may be late or incomplete.
    async fn end_unlisted(&self, scan: &mut Scan, leases: &[Lease], shards: &[Shard]) {
        let listed: HashSet<&ShardId> = shards.iter().map(|shard| &shard.id).collect();
        let parents: HashSet<&ShardId> = shards.iter().flat_map(|shard| &shard.parents).collect();
        let mut before = std::mem::take(&mut scan.unlisted);
        for lease in leases.iter().filter(|lease| !listed.contains(&lease.shard)) {
            let since = before.remove(&lease.shard).unwrap_or_else(Instant::now);
            scan.unlisted.insert(lease.shard.clone(), since);
            let is_old = since.elapsed() >= FORGET_AFTER && !shards.is_empty();
            // A shard with children is closed; after an hour it is gone also where they are gone with it.
            let is_gone = is_old || (since.elapsed() >= GONE_AFTER && parents.contains(&lease.shard));
            let result = match lease.checkpoint == Checkpoint::Ended {
                true if is_old => self.leases.forget(lease).await,
                false if is_gone => self.end_gone(lease).await,
                _ => Ok(()),
            };
            if let Err(error) = result
                && let Some(omitted) = UNENDED.again()
            {
                tracing::warn!(shard = %lease.shard, %error, omitted, "its row could not be ended or removed; trying again");
            }
        }
    }

    async fn end_gone(&self, lease: &Lease) -> Result<(), BackendError> {
        // Where the row moved meanwhile, the next scan tries again.
        if self.leases.reset(lease, Checkpoint::Ended).await?.is_some() {
            tracing::error!(shard = %lease.shard, "the stream has forgotten the shard: what was unread in it is lost");
            metrics::counter!("ingest_shards_gone_total").increment(1);
        }
        Ok(())
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
                None => lineage::start_of(shard, leases, shards, &self.initial_position),
            };
            self.leases.create(shard, checkpoint).await?;
        }
        Ok(!missing.is_empty())
    }

    fn shard_task(
        &self,
        lease: Lease,
        family: &[Shard],
        claimed_at: Instant,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shard = lease.shard.clone();
        let lineage = lineage::of(&shard, family);
        let leases = Arc::clone(&self.leases);
        let (mut keeper, fence, checkpoint) =
            Keeper::new(Arc::clone(&leases), lease, claimed_at, self.failover, stop.clone());
        let held =
            HeldLease { since: self.common.clock.now(), checkpoint: checkpoint.subscribe(), fence: fence.clone() };
        let posted = self.common.board.post_lease(shard, held);
        let context = Arc::new(ShardContext::new(lineage, fence, Arc::clone(&self.common)));
        async move {
            let _posted = posted;
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
                }
                Some(Outcome::Ended) => {
                    keeper.end().await;
                    lease_event("released");
                }
            }
        }
    }

    fn ended(&self, scan: &mut Scan, ended: Result<(task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a shard task failed; its lease will expire and be taken again");
                metrics::counter!(SHARD_FAILURES).increment(1);
                error.id()
            }
        };
        scan.held.remove(&id);
        self.common.limiter.set_share(scan.held.len(), scan.open);
        metrics::gauge!("ingest_leases_held").set(scan.held.len() as f64);
    }

    fn observe(&self, scan: &Scan, result: Result<(), BackendError>) {
        match &result {
            Err(error) => {
                if let Some(omitted) = UNREAD.again() {
                    tracing::warn!(%error, omitted, "leases or shards could not be read; trying again");
                }
            }
            Ok(()) => {
                if let Some(over) = UNREAD.over() {
                    tracing::info!(lasted = over.lasted.as_secs(), "leases and shards can be read again");
                }
            }
        }
        match (result, self.common.limiter.observe().pause) {
            (Err(error), _) => self.ready.set_not("leases or shards cannot be read", &error.to_string()),
            (_, Some(pause)) => self.ready.set_not("Amberflo refuses our requests", &pause.cause),
            _ => self.ready.set(),
        }
        metrics::gauge!("ingest_ready").set(f64::from(u8::from(self.ready.get())));
        metrics::gauge!("ingest_leases_held").set(scan.held.len() as f64);
        metrics::gauge!("ingest_shards").set(scan.open as f64);
        crate::metrics::observe(&self.common);
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
