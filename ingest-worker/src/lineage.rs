//! Shards that were split and merged: which came from which, and where each begins.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position, Shard, ShardId, Stream};
use shared::clock::UnixMillis;
use shared::service::Trouble;
use tokio::time::sleep;

use crate::backoff::Backoff;

/// Empty pages before the search for a shard's first record is given up.
const FIRST_ARRIVAL_PAGES: usize = 20;

static CHILDLESS: Trouble = Trouble::new();

/// A shard, and the shards whose records went on in it.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// The shard.
    pub id: ShardId,
    /// It takes records whose partition key has its hash in here.
    pub hashes: RangeInclusive<u128>,
    /// Its parents.
    pub parents: Vec<ShardId>,
    /// Its ancestors that the stream may still have, parents included, oldest first.
    pub ancestors: Vec<Shard>,
}

/// The shards of the stream and those that have a lease, since a list may be incomplete; parents before their children.
#[must_use]
pub fn family(shards: &[Shard], leases: &[Lease]) -> Vec<Shard> {
    let listed: BTreeSet<&ShardId> = shards.iter().map(|shard| &shard.id).collect();
    let unlisted = leases.iter().filter(|lease| !listed.contains(&lease.shard));
    let unlisted =
        unlisted.map(|lease| Shard { id: lease.shard.clone(), parents: lease.parents.clone(), hashes: 0..=u128::MAX });
    let known: Vec<Shard> = shards.iter().cloned().chain(unlisted).collect();
    parents_first(&known).into_iter().cloned().collect()
}

/// The lineage of `id` in its [`family`].
#[must_use]
pub fn of(id: &ShardId, family: &[Shard]) -> Lineage {
    let known: HashMap<&ShardId, &Shard> = family.iter().map(|shard| (&shard.id, shard)).collect();
    let hashes = known.get(id).map_or(0..=u128::MAX, |shard| shard.hashes.clone());
    let parents = known.get(id).map(|shard| shard.parents.clone()).unwrap_or_default();
    let mut ancestors = BTreeSet::new();
    let mut next = vec![id];
    while let Some(id) = next.pop() {
        let parents = known.get(id).into_iter().flat_map(|shard| &shard.parents);
        next.extend(parents.filter(|parent| known.contains_key(parent) && ancestors.insert(*parent)));
    }
    let ancestors = family.iter().filter(|shard| ancestors.contains(&shard.id));
    Lineage { id: id.clone(), hashes, parents, ancestors: ancestors.cloned().collect() }
}

/// When the oldest record arrived that the stream still has of a shard; `None`: it has none, or none that is found soon.
/// (A shard that was empty for long after its birth answers many empty pages first.)
///
/// # Errors
/// When the stream cannot be read.
pub async fn first_arrival(stream: &dyn Stream, shard: &ShardId) -> Result<Option<UnixMillis>, BackendError> {
    let mut reader = stream.reader(shard, Position::TrimHorizon).await?;
    for _ in 0..FIRST_ARRIVAL_PAGES {
        let page = reader.next(1).await?;
        match page.records.first() {
            Some(record) => return Ok(Some(record.arrived_at)),
            None if page.is_end || page.millis_behind_latest == 0 => break,
            None => {}
        }
    }
    Ok(None)
}

/// The shards without a lease row, children before their parents: where only some rows are made before a crash, a child
/// is not taken for one that was born while its parent was being read.
#[must_use]
pub fn missing<'a>(leases: &[Lease], shards: &'a [Shard]) -> Vec<&'a Shard> {
    let known: BTreeSet<&ShardId> = leases.iter().map(|lease| &lease.shard).collect();
    if shards.iter().all(|shard| known.contains(&shard.id)) {
        return Vec::new();
    }
    let mut missing = parents_first(shards);
    missing.retain(|shard| !known.contains(&shard.id));
    missing.reverse();
    missing
}

fn parents_first(shards: &[Shard]) -> Vec<&Shard> {
    let mut waiting: Vec<&Shard> = shards.iter().collect();
    let mut sorted = Vec::new();
    while !waiting.is_empty() {
        let ids: BTreeSet<&ShardId> = waiting.iter().map(|shard| &shard.id).collect();
        let (later, next): (Vec<_>, Vec<_>) =
            waiting.iter().partition(|shard| shard.parents.iter().any(|parent| ids.contains(parent)));
        let is_stuck = next.is_empty();
        sorted.extend(if is_stuck { waiting } else { next });
        waiting = if is_stuck { Vec::new() } else { later };
    }
    sorted
}

/// How far a shard without a row is: finished if one of its children was begun, because that comes after; at its first
/// record if one of its ancestors is or was being read, because then all of it is new; otherwise where the settings say.
#[must_use]
pub fn start_of(shard: &Shard, leases: &[Lease], shards: &[Shard], initial: &Position) -> Checkpoint {
    let row = |id: &ShardId| leases.iter().find(|lease| lease.shard == *id);
    let mut children =
        shards.iter().filter(|child| child.parents.contains(&shard.id)).filter_map(|child| row(&child.id));
    if children.any(|child| !matches!(child.checkpoint, Checkpoint::Start(_))) {
        return Checkpoint::Ended;
    }
    let mut ancestors: Vec<&ShardId> = shard.parents.iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(ancestor) = ancestors.pop() {
        if row(ancestor).is_some() {
            return Checkpoint::Start(Position::TrimHorizon);
        }
        if seen.insert(ancestor) {
            ancestors.extend(shards.iter().filter(|shard| shard.id == *ancestor).flat_map(|shard| &shard.parents));
        }
    }
    // A shard of ours may have been forgotten before its end, and with it what links it to this one.
    let is_listed = |id: &ShardId| shards.iter().any(|shard| shard.id == *id);
    let is_orphan = !shard.parents.is_empty() && !shard.parents.iter().any(is_listed);
    if is_orphan && leases.iter().any(|lease| lease.checkpoint != Checkpoint::Ended && !is_listed(&lease.shard)) {
        return Checkpoint::Start(Position::TrimHorizon);
    }
    Checkpoint::Start(initial.clone())
}

/// Makes leases for the children of a shard that has ended; tries until it is done.
///
/// It must be done before the shard counts as ended: otherwise a child that nobody lists for longer than the stream's
/// retention would be taken for a new shard, and begin where the settings say.
pub async fn create_children(parent: &ShardId, stream: &dyn Stream, leases: &dyn Leases) {
    let mut backoff = Backoff::default();
    loop {
        match try_create_children(parent, stream, leases).await {
            Ok(()) => return,
            Err(error) => {
                if let Some(omitted) = CHILDLESS.again() {
                    tracing::warn!(shard = %parent, %error, omitted, "no leases for its children yet; trying again");
                }
            }
        }
        sleep(backoff.next_delay().max(Duration::from_millis(100))).await;
    }
}

async fn try_create_children(parent: &ShardId, stream: &dyn Stream, leases: &dyn Leases) -> Result<(), BackendError> {
    let shards = stream.shards().await?;
    let children: Vec<&Shard> = shards.iter().filter(|shard| shard.parents.contains(parent)).collect();
    if children.is_empty() {
        return Err(BackendError::Unavailable("the stream does not list them".to_owned()));
    }
    for child in children {
        leases.create(child, Checkpoint::Start(Position::TrimHorizon)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(name: &str, parents: &[&str]) -> Shard {
        let parents = parents.iter().map(|parent| ShardId((*parent).to_owned())).collect();
        Shard { id: ShardId(name.to_owned()), parents, hashes: 0..=u128::MAX }
    }

    fn row(name: &str, checkpoint: Checkpoint) -> Lease {
        Lease {
            shard: ShardId(name.to_owned()),
            owner: None,
            counter: 0,
            checkpoint,
            parents: Vec::new(),
            wanted_by: None,
        }
    }

    /// a was split into b and c; b and c were merged into d, which was split into e and f.
    fn generations() -> Vec<Shard> {
        let mut shards = vec![shard("f", &["d"]), shard("e", &["d"]), shard("d", &["b", "c"])];
        shards.extend([shard("c", &["a"]), shard("b", &["a"]), shard("a", &["older"])]);
        shards
    }

    #[test]
    fn ancestors_come_oldest_first() {
        let names = |name: &str| {
            let lineage = of(&ShardId(name.to_owned()), &family(&generations(), &[]));
            lineage.ancestors.into_iter().map(|shard| shard.id.0).collect::<Vec<_>>().join("")
        };
        assert_eq!([names("a"), names("b"), names("d"), names("f"), names("unknown")], ["", "a", "acb", "acbd", ""]);
    }

    #[test]
    fn a_parent_that_the_list_lacks_is_known_from_its_row() {
        let child = shard("b", &["a"]);
        let rows = [Lease { parents: vec![ShardId("older".to_owned())], ..row("a", Checkpoint::Ended) }];
        let ancestors = of(&child.id, &family(std::slice::from_ref(&child), &rows)).ancestors;
        assert_eq!(ancestors.iter().map(|shard| &*shard.id.0).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn rows_are_made_for_children_first() {
        let shards = generations();
        let names = |leases: &[Lease]| -> String { missing(leases, &shards).iter().map(|s| s.id.0.clone()).collect() };
        let all = names(&[]);
        assert!(["fd", "ed", "db", "dc", "ba", "ca"].iter().all(|pair| all.find(&pair[..1]) < all.find(&pair[1..])));
        assert_eq!(names(&[row("d", Checkpoint::Ended), row("e", Checkpoint::Ended)]).len(), 4);
    }

    #[test]
    fn a_shard_whose_ancestor_is_being_read_begins_at_its_first_record() {
        let latest = Position::AtTime(1_000);
        let start = |name: &str, rows: &[&str]| {
            let begun = Checkpoint::Start(Position::TrimHorizon);
            let leases: Vec<Lease> = rows.iter().map(|name| row(name, begun.clone())).collect();
            let shards = generations();
            let shard = shards.iter().find(|shard| shard.id.0 == name).unwrap();
            match start_of(shard, &leases, &shards, &latest) {
                Checkpoint::Start(position) => position,
                other => panic!("{other}"),
            }
        };
        assert_eq!(start("f", &[]), latest);
        assert_eq!(start("f", &["e"]), latest, "a sibling says nothing");
        assert_eq!(start("f", &["d"]), Position::TrimHorizon);
        assert_eq!(start("f", &["a"]), Position::TrimHorizon, "also where rows in between are missing");
        assert_eq!(start("a", &["older"]), Position::TrimHorizon, "also where the stream has forgotten the parent");
    }

    /// The fleet was down for longer than the retention, and the stream was split and merged meanwhile.
    #[test]
    fn an_orphan_begins_at_its_first_record_where_a_shard_was_forgotten_before_its_end() {
        let latest = Position::AtTime(1_000);
        let orphan = shard("g", &["c1", "c2"]);
        let start = |leases: &[Lease]| start_of(&orphan, leases, std::slice::from_ref(&orphan), &latest);
        let unread = row("p", Checkpoint::Rewound(1));
        assert_eq!(start(&[unread]), Checkpoint::Start(Position::TrimHorizon));
        assert_eq!(start(&[row("p", Checkpoint::Ended)]), Checkpoint::Start(latest.clone()));
        assert_eq!(start(&[]), Checkpoint::Start(latest.clone()));
    }

    #[test]
    fn a_shard_whose_child_was_begun_is_finished() {
        let shards = generations();
        let start = |name: &str, checkpoint: Checkpoint| {
            start_of(&shards[4], &[row(name, checkpoint)], &shards, &Position::TrimHorizon)
        };
        assert_eq!(shards[4].id.0, "b");
        assert_eq!(start("d", Checkpoint::Rewound(1)), Checkpoint::Ended);
        assert_eq!(start("d", Checkpoint::Ended), Checkpoint::Ended);
        let unbegun = Checkpoint::Start(Position::TrimHorizon);
        assert_eq!(start("d", unbegun.clone()), unbegun, "its row alone says nothing");
    }

    #[test]
    fn many_generations_of_splits_and_merges_take_no_time() {
        let mut shards = vec![shard("merged-0", &[])];
        for generation in 1..300 {
            let parent = format!("merged-{}", generation - 1);
            let halves = [format!("left-{generation}"), format!("right-{generation}")];
            shards.extend(halves.iter().map(|half| shard(half, &[&parent])));
            shards.push(shard(&format!("merged-{generation}"), &[&halves[0], &halves[1]]));
        }
        assert_eq!(missing(&[], &shards).len(), shards.len());
        let youngest = &shards[shards.len() - 1];
        assert_eq!(of(&youngest.id, &family(&shards, &[])).ancestors.len(), shards.len() - 1);
        let start = Position::AtTime(1);
        assert_eq!(start_of(youngest, &[], &shards, &start), Checkpoint::Start(start));
    }
}
