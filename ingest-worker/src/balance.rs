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

/// A lease under this worker's name that it does not hold may move once more after it was lost; what moves so often is
/// renewed by another process.
const MOVES_OF_A_NAMESAKE: u32 = 3;

/// A lease row as it was last seen to change, by this worker's own clock.
struct Observed {
    counter: u64,
    since: Instant,
    /// How often it moved under this worker's name while this worker did not hold it.
    moved_by_namesake: u32,
}

/// One worker's view of the table over time.
pub struct Balancer {
    me: WorkerId,
    failover: Duration,
    /// No other worker can live: leases of others are taken without waiting for them to expire.
    is_alone: bool,
    observed: HashMap<ShardId, Observed>,
    asked: Option<(ShardId, Instant)>,
    /// What the last plan was to claim: such a row may have moved by a claim whose answer was lost.
    claimed: BTreeSet<ShardId>,
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
    /// Another process works under this worker's name. No one can tell the two apart, so neither may work.
    pub has_namesake: bool,
}

impl Balancer {
    /// A balancer that has seen nothing yet.
    #[must_use]
    pub fn new(me: WorkerId, failover: Duration, is_alone: bool) -> Self {
        Self { me, failover, is_alone, observed: HashMap::new(), asked: None, claimed: BTreeSet::new() }
    }

    /// Decides from the present table and the shards of the stream; `held` are the leases that this worker holds.
    pub fn plan(&mut self, leases: &[Lease], shards: &[Shard], held: &BTreeSet<ShardId>) -> Plan {
        self.observe(leases, held);
        let rows: HashMap<&ShardId, &Lease> = leases.iter().map(|lease| (&lease.shard, lease)).collect();
        let listed: HashMap<&ShardId, &Shard> = shards.iter().map(|shard| (&shard.id, shard)).collect();
        let open: Vec<&Lease> = leases.iter().filter(|lease| may_start(lease, &rows, &listed)).collect();
        let has_namesake = self.observed.values().any(|seen| seen.moved_by_namesake >= MOVES_OF_A_NAMESAKE);
        let mut plan = Plan { open: open.len(), has_namesake, ..Plan::default() };
        let me = self.me.clone();
        let loads = self.loads(&me, &open, held);
        let share = open.len().div_ceil(loads.len());
        let mine = open.iter().filter(|lease| held.contains(&lease.shard)).count();

        let mut free: Vec<&Lease> =
            open.iter().copied().filter(|lease| !held.contains(&lease.shard) && self.is_free(lease)).collect();
        // Workers that look at the same time had better not all try the same one first.
        fastrand::shuffle(&mut free);
        // What this worker has asked for nobody else takes, also where its share has become smaller since.
        let (meant, free): (Vec<&Lease>, Vec<&Lease>) = free
            .into_iter()
            .partition(|lease| self.is_alone || self.is_awaited(lease) || self.quiet(lease) >= OVERDUE * self.failover);
        let room = share.saturating_sub(mine + meant.len());
        plan.claim.extend(meant.into_iter().chain(free.into_iter().take(room)).cloned());

        let asked = self.asked.take();
        if let Some((shard, since)) = asked
            && let Some(lease) = open.iter().find(|lease| lease.shard == shard && self.is_awaited(lease))
        {
            let is_unheard = lease.owner.is_some() && since.elapsed() >= PATIENCE * self.failover;
            plan.claim.extend(is_unheard.then(|| (*lease).clone()));
            self.asked = Some((shard, since));
        } else if plan.claim.is_empty() && !self.is_alone {
            plan.ask = busiest(&loads, &me, mine + 2).cloned();
            self.asked = plan.ask.as_ref().map(|lease| (lease.shard.clone(), Instant::now()));
        }
        self.claimed = plan.claim.iter().map(|lease| lease.shard.clone()).collect();
        plan
    }

    /// Expiry is judged by this worker's clock since it saw the row change. A row that is seen for the first time is
    /// fresh: only one's own observation proves that it stands still.
    fn observe(&mut self, leases: &[Lease], held: &BTreeSet<ShardId>) {
        let mut before = std::mem::take(&mut self.observed);
        for lease in leases {
            let is_ours = held.contains(&lease.shard) || self.claimed.contains(&lease.shard);
            let is_namesakes = lease.owner.as_ref() == Some(&self.me) && !is_ours;
            let fresh = Observed { counter: lease.counter, since: Instant::now(), moved_by_namesake: 0 };
            let mut seen = match before.remove(&lease.shard) {
                Some(seen) if seen.counter == lease.counter => seen,
                Some(seen) => Observed { moved_by_namesake: seen.moved_by_namesake + 1, ..fresh },
                None => fresh,
            };
            if !is_namesakes {
                seen.moved_by_namesake = 0;
            }
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

/// A lease of the other worker that holds most of them, if those are at least `minimum`. What it was asked for does not
/// count, for it will hand that over: of two leases only one is asked for, however many workers have none.
fn busiest<'a>(loads: &BTreeMap<&WorkerId, Vec<&'a Lease>>, me: &WorkerId, minimum: usize) -> Option<&'a Lease> {
    let others = loads.iter().filter(|(worker, _)| **worker != me);
    let unasked = others.map(|(_, leases)| leases.iter().copied().filter(|lease| lease.wanted_by.is_none()));
    let most = unasked.map(Iterator::collect::<Vec<_>>).max_by_key(Vec::len)?;
    if most.len() >= minimum { fastrand::choice(most) } else { None }
}

/// Whether there is something to do for the lease: its shard is not finished, and all that its parents held is settled,
/// so that a key's records keep their order.
///
/// A shard that is not listed is not begun: it is younger than the list, and its lineage is not known.
fn may_start(lease: &Lease, rows: &HashMap<&ShardId, &Lease>, listed: &HashMap<&ShardId, &Shard>) -> bool {
    let is_settled = |parent: &ShardId| match rows.get(parent) {
        Some(row) => row.checkpoint == Checkpoint::Ended,
        // Without a row it is not begun yet, or was finished and forgotten long ago.
        None => !listed.contains_key(parent),
    };
    let Some(shard) = listed.get(&lease.shard) else { return false };
    lease.checkpoint != Checkpoint::Ended && shard.parents.iter().chain(&lease.parents).all(is_settled)
}

#[cfg(test)]
mod tests {
    use shared::backend::{Position, SequenceNumber};

    use super::*;

    const FAILOVER: Duration = Duration::from_secs(10);

    fn worker(name: &str) -> WorkerId {
        WorkerId(name.to_owned())
    }

    fn lease(number: usize, owner: Option<&str>) -> Lease {
        let checkpoint = Checkpoint::Settled { sequence_number: SequenceNumber("1".to_owned()), arrived_at: 1 };
        let shard = ShardId(format!("shard-{number}"));
        Lease { shard, owner: owner.map(worker), counter: 1, checkpoint, parents: vec![], wanted_by: None }
    }

    fn leases(owners: &[Option<&str>]) -> Vec<Lease> {
        owners.iter().enumerate().map(|(number, owner)| lease(number, *owner)).collect()
    }

    fn shards(leases: &[Lease]) -> Vec<Shard> {
        let shard = |lease: &Lease| Shard { id: lease.shard.clone(), parents: Vec::new(), hashes: 0..=u128::MAX };
        leases.iter().map(shard).collect()
    }

    fn balancer(name: &str) -> Balancer {
        Balancer::new(worker(name), FAILOVER, false)
    }

    fn held(leases: &[Lease], name: &str) -> BTreeSet<ShardId> {
        let mine = |lease: &&Lease| lease.owner.as_ref() == Some(&worker(name));
        leases.iter().filter(mine).map(|lease| lease.shard.clone()).collect()
    }

    /// Lets workers act on one table by turns, each every two seconds, until nobody wants anything; answers their loads.
    async fn settle(leases: &mut [Lease], names: &[&str], rounds: usize) -> Vec<usize> {
        let shards = shards(leases);
        let mut balancers: Vec<Balancer> = names.iter().map(|name| balancer(name)).collect();
        for _ in 0..rounds {
            for (balancer, name) in balancers.iter_mut().zip(names) {
                // The others go on renewing, and hand over what they were asked for.
                for lease in leases.iter_mut().filter(|lease| lease.owner.is_some()) {
                    lease.counter += 1;
                    if lease.wanted_by.is_some() {
                        lease.owner = None;
                    }
                }
                let plan = balancer.plan(leases, &shards, &held(leases, name));
                for claimed in plan.claim {
                    let row = leases.iter_mut().find(|lease| lease.shard == claimed.shard).unwrap();
                    *row = Lease { owner: Some(worker(name)), counter: row.counter + 1, wanted_by: None, ..claimed };
                }
                if let Some(asked) = plan.ask {
                    leases.iter_mut().find(|lease| lease.shard == asked.shard).unwrap().wanted_by = Some(worker(name));
                }
                tokio::time::advance(Duration::from_millis(700)).await;
            }
        }
        names.iter().map(|name| held(leases, name).len()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn every_table_becomes_even() {
        for (count, names) in [(1, &["a", "b"][..]), (3, &["a", "b"]), (4, &["a", "b", "c"]), (20, &["a", "b", "c"])] {
            let mut table = leases(&vec![None; count]);
            assert_eq!(settle(&mut table, &names[..1], 3).await, [count], "alone, it takes all");
            let loads = settle(&mut table, names, 3 * count + 10).await;
            let (most, fewest) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
            assert!(loads.iter().sum::<usize>() == count && most - fewest <= 1, "{count} leases: {loads:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_even_table_is_left_alone() {
        let table = leases(&[Some("a"), Some("a"), Some("b")]);
        let mut balancer = balancer("b");
        for _ in 0..100 {
            let plan = balancer.plan(&table, &shards(&table), &held(&table, "b"));
            assert!(plan.claim.is_empty() && plan.ask.is_none(), "{plan:?}");
            tokio::time::advance(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_of_two_that_hands_one_over_is_asked_for_no_other() {
        let mut table = leases(&[Some("a"), Some("a")]);
        table[0].wanted_by = Some(worker("b"));
        let plan = balancer("c").plan(&table, &shards(&table), &BTreeSet::new());
        assert!(plan.ask.is_none(), "or the owner would be left with none: {plan:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_stood_still_for_the_failover_time_is_expired() {
        let mut table = leases(&[Some("dead"), Some("b")]);
        let mut balancer = balancer("b");
        let shards = shards(&table);
        let mut plan = |table: &[Lease]| balancer.plan(table, &shards, &held(table, "b")).claim.len();
        assert_eq!(plan(&table), 0, "seen for the first time: fresh, whatever its age");
        tokio::time::advance(FAILOVER - Duration::from_millis(1)).await;
        assert_eq!(plan(&table), 0);
        table[0].counter += 1;
        assert_eq!(plan(&table), 0, "renewed");
        table[1].counter += 1;
        tokio::time::advance(FAILOVER).await;
        table[1].counter += 1;
        assert_eq!(plan(&table), 1);
    }

    /// A trap of other consumers: an exited worker still counted as live when balancing.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_gone_has_no_share() {
        let table = leases(&[Some("gone"), Some("gone"), None, None]);
        let mut balancer = balancer("b");
        assert_eq!(balancer.plan(&table, &shards(&table), &BTreeSet::new()).claim.len(), 2, "half: it may live");
        tokio::time::advance(FAILOVER).await;
        assert_eq!(balancer.plan(&table, &shards(&table), &BTreeSet::new()).claim.len(), 4, "all");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_is_kept_for_who_asked() {
        let mut table = leases(&[Some("a"), None]);
        table[1].wanted_by = Some(worker("c"));
        let shards = shards(&table);
        let (mut owner, mut asker) = (balancer("a"), balancer("c"));
        assert!(owner.plan(&table, &shards, &held(&table, "a")).claim.is_empty());
        assert_eq!(asker.plan(&table, &shards, &BTreeSet::new()).claim.len(), 1);
        tokio::time::advance(FAILOVER).await;
        table[0].counter += 1;
        assert_eq!(owner.plan(&table, &shards, &held(&table, "a")).claim.len(), 1, "but not for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_is_taken_also_where_the_share_has_become_smaller() {
        let mut table = leases(&[Some("a"), Some("a"), None, Some("b"), Some("c"), Some("d")]);
        let shards = shards(&table);
        table[2].wanted_by = Some(worker("a"));
        let plan = balancer("a").plan(&table, &shards, &held(&table, "a"));
        assert_eq!(plan.claim.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_asks_himself() {
        let table = leases(&[Some("a"), Some("a"), Some("a")]);
        let plan = balancer("a").plan(&table, &shards(&table), &BTreeSet::new());
        assert!(plan.ask.is_none(), "they are of a life before this one: {plan:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_does_not_hear_loses_the_lease() {
        let mut table = leases(&[Some("deaf"), Some("deaf")]);
        let (shards, mut balancer) = (shards(&table), balancer("b"));
        let asked = balancer.plan(&table, &shards, &BTreeSet::new()).ask.unwrap();
        let index = table.iter().position(|lease| lease.shard == asked.shard).unwrap();
        table[index].wanted_by = Some(worker("b"));
        for second in 0..62_u64 {
            table.iter_mut().for_each(|lease| lease.counter += 1);
            let plan = balancer.plan(&table, &shards, &BTreeSet::new());
            assert!(plan.ask.is_none(), "one at a time");
            assert_eq!(plan.claim.len(), usize::from(second >= 60), "{second}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_namesake_is_noticed_and_a_life_before_this_one_is_not() {
        let (mut table, mut balancer) = (leases(&[Some("a"), Some("a")]), balancer("a"));
        let (shards, mine) = (shards(&table), BTreeSet::from([ShardId("shard-1".to_owned())]));
        let mut scan = |table: &[Lease]| balancer.plan(table, &shards, &mine).has_namesake;
        for _ in 0..5 {
            table[1].counter += 1;
            assert!(!scan(&table), "its own renewals, and the rows of a process that has ended");
        }
        table[0].counter += 1;
        assert!(!scan(&table), "a write of its own that landed late");
        for n in 0..2 {
            table[0].counter += 1;
            assert_eq!(scan(&table), n == 1, "renewed again and again");
        }
    }

    /// Traps of other consumers: a closed shard with a backlog is never claimed after a restart; a child begins before
    /// its parents.
    #[tokio::test(start_paused = true)]
    async fn parents_come_before_children_also_after_a_restart() {
        let mut table = leases(&[None, None, None]);
        let mut shards = shards(&table);
        shards[2].parents = vec![shards[0].id.clone(), shards[1].id.clone(), ShardId("long gone".to_owned())];
        let claims = |table: &[Lease]| {
            let plan = balancer("a").plan(table, &shards, &BTreeSet::new());
            let mut claims: Vec<String> = plan.claim.into_iter().map(|lease| lease.shard.0).collect();
            claims.sort();
            claims
        };
        assert_eq!(claims(&table), ["shard-0", "shard-1"]);
        table[0].checkpoint = Checkpoint::Ended;
        assert_eq!(claims(&table), ["shard-1"]);
        table[1].checkpoint = Checkpoint::Start(Position::TrimHorizon);
        assert_eq!(claims(&table), ["shard-1"]);
        table[1].checkpoint = Checkpoint::Ended;
        assert_eq!(claims(&table), ["shard-2"]);
        assert_eq!(claims(&table[2..]), Vec::<String>::new(), "its parents' rows are yet to be made");

        table[0].checkpoint = Checkpoint::Start(Position::TrimHorizon);
        table[2].parents = vec![table[0].shard.clone()];
        let plan = balancer("a").plan(&table, &shards[1..2], &BTreeSet::new());
        assert!(plan.claim.is_empty(), "rows may be newer than the list of shards: {plan:?}");
    }
}
