//! Which leases a worker takes, and which one it asks for. Every worker decides for itself, from the same table.
//!
//! A worker takes free and expired leases up to its share. One that holds at least two fewer than another asks that
//! one for a lease; the owner settles what it has in flight, gives the lease up, and it goes to who asked. So nothing
//! is sent twice when workers come and go. (The KCL's workers steal; its victim notices only at the next renewal.)

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use shared::backend::{Checkpoint, Lease, Shard, ShardId, WorkerId};
use tokio::time::Instant;

/// An owner that renews a lease for this many failover times after it was asked for it does not know how to hand it
/// over: the lease is taken from it.
const PATIENCE: u32 = 6;
/// A lease that lies about for this many failover times is taken by whoever sees it, whatever its share.
const OVERDUE: u32 = 3;

/// A lease row as it was last seen to change, by this worker's own clock.
struct Observed {
    counter: u64,
    since: Instant,
}

/// One worker's view of the table over time.
pub struct Balancer {
    me: WorkerId,
    failover: Duration,
    /// No other worker can live: leases of others are taken without waiting for them to expire.
    is_alone: bool,
    observed: HashMap<ShardId, Observed>,
    asked: Option<(ShardId, Instant)>,
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Plan {
    /// Leases to claim.
    pub claim: Vec<Lease>,
    /// The lease to ask its owner for.
    pub ask: Option<Lease>,
    /// How many leases there are to share among all workers.
    pub open: usize,
}

impl Balancer {
    /// A balancer that has seen nothing yet.
    #[must_use]
    pub fn new(me: WorkerId, failover: Duration, is_alone: bool) -> Self {
        Self { me, failover, is_alone, observed: HashMap::new(), asked: None }
    }

    /// Decides from the present table and the shards of the stream; `held` are the leases that this worker holds.
    pub fn plan(&mut self, leases: &[Lease], shards: &[Shard], held: &BTreeSet<ShardId>) -> Plan {
        self.observe(leases);
        let rows: HashMap<&ShardId, &Lease> = leases.iter().map(|lease| (&lease.shard, lease)).collect();
        let listed: HashMap<&ShardId, &Shard> = shards.iter().map(|shard| (&shard.id, shard)).collect();
        let open: Vec<&Lease> = leases.iter().filter(|lease| may_start(lease, &rows, &listed)).collect();
        let mut plan = Plan { open: open.len(), ..Plan::default() };
        let me = self.me.clone();
        let loads = self.loads(&me, &open, held);
        let share = open.len().div_ceil(loads.len());
        let mine = open.iter().filter(|lease| held.contains(&lease.shard)).count();

        let mut free: Vec<&Lease> =
            open.iter().copied().filter(|lease| !held.contains(&lease.shard) && self.is_free(lease)).collect();
        // Workers that look at the same time had better not all try the same one first.
        fastrand::shuffle(&mut free);
        let (overdue, free): (Vec<&Lease>, Vec<&Lease>) =
            free.into_iter().partition(|lease| self.is_alone || self.quiet(lease) >= OVERDUE * self.failover);
        let room = share.saturating_sub(mine + overdue.len());
        plan.claim.extend(overdue.into_iter().chain(free.into_iter().take(room)).cloned());

        let asked = self.asked.take();
        if let Some((shard, since)) = asked
            && let Some(lease) = open.iter().find(|lease| lease.shard == shard && self.is_awaited(lease))
        {
            let is_unheard = lease.owner.is_some() && since.elapsed() >= PATIENCE * self.failover;
            plan.claim.extend(is_unheard.then(|| (*lease).clone()));
            self.asked = Some((shard, since));
        } else if plan.claim.is_empty() && !self.is_alone {
            plan.ask = busiest(&loads, mine + 2).cloned();
            self.asked = plan.ask.as_ref().map(|lease| (lease.shard.clone(), Instant::now()));
        }
        plan
    }

    /// Expiry is judged by this worker's clock since it saw the row change. A row that is seen for the first time is
    /// fresh: only one's own observation proves that it stands still.
    fn observe(&mut self, leases: &[Lease]) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.observed);
        for lease in leases {
            let seen = before.remove(&lease.shard).filter(|seen| seen.counter == lease.counter);
            let seen = seen.unwrap_or(Observed { counter: lease.counter, since: now });
            self.observed.insert(lease.shard.clone(), seen);
        }
    }

    /// How long the row has stood still.
    fn quiet(&self, lease: &Lease) -> Duration {
        self.observed.get(&lease.shard).map_or(Duration::ZERO, |seen| seen.since.elapsed())
    }

    fn is_expired(&self, lease: &Lease) -> bool {
        self.quiet(lease) >= self.failover
    }

    /// A lease that was given up because another worker asked for it is left to that one for a while.
    fn is_free(&self, lease: &Lease) -> bool {
        let is_ours_to_take = lease.owner.is_none() && lease.wanted_by.as_ref().is_none_or(|worker| *worker == self.me);
        is_ours_to_take || self.is_alone || self.is_expired(lease)
    }

    /// The leases of every live worker, this one included. Who asks for a lease lives too; the owner of an expired
    /// lease does not.
    fn loads<'a>(
        &self,
        me: &'a WorkerId,
        open: &[&'a Lease],
        held: &BTreeSet<ShardId>,
    ) -> BTreeMap<&'a WorkerId, Vec<&'a Lease>> {
        let mut loads: BTreeMap<&WorkerId, Vec<&Lease>> = BTreeMap::from([(me, Vec::new())]);
        for lease in open.iter().copied().filter(|lease| !self.is_expired(lease)) {
            if let Some(worker) = &lease.wanted_by {
                loads.entry(worker).or_default();
            }
            match &lease.owner {
                _ if held.contains(&lease.shard) => loads.entry(me).or_default().push(lease),
                Some(owner) => loads.entry(owner).or_default().push(lease),
                None => {}
            }
        }
        loads
    }

    /// Whether this worker has asked for the lease and its owner may still hand it over.
    fn is_awaited(&self, lease: &Lease) -> bool {
        lease.wanted_by.as_ref() == Some(&self.me) && lease.owner.as_ref() != Some(&self.me)
    }
}

/// A lease of the worker that holds most of them, if those are at least `minimum`.
fn busiest<'a>(loads: &BTreeMap<&WorkerId, Vec<&'a Lease>>, minimum: usize) -> Option<&'a Lease> {
    let most = loads.values().max_by_key(|leases| leases.len()).filter(|leases| leases.len() >= minimum)?;
    let unasked: Vec<&Lease> = most.iter().copied().filter(|lease| lease.wanted_by.is_none()).collect();
    fastrand::choice(unasked)
}

/// Whether there is something to do for the lease: its shard is not finished, and all that its parents held is settled,
/// so that a key's records keep their order.
fn may_start(lease: &Lease, rows: &HashMap<&ShardId, &Lease>, listed: &HashMap<&ShardId, &Shard>) -> bool {
    let is_settled = |parent: &ShardId| match rows.get(parent) {
        Some(row) => row.checkpoint == Checkpoint::Ended,
        // Without a row it is not begun yet, or was finished and forgotten long ago.
        None => !listed.contains_key(parent),
    };
    let shard = listed.get(&lease.shard);
    lease.checkpoint != Checkpoint::Ended && shard.is_none_or(|shard| shard.parents.iter().all(is_settled))
}
