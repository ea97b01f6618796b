//! Splits and merges: parents before children, and copies stay copies across them.

use std::collections::BTreeMap;

use shared::backend::{Checkpoint, ShardId};

use super::{Fleet, Worker, number_of, slow};
use crate::process::eventually;

/// A backlog takes it some seconds, in which it could begin with a child.
async fn slow_worker(fleet: &Fleet, name: &str) -> Worker {
    Worker::start(fleet.site(name).with("MAX_IN_FLIGHT", "2").with("BATCH_MAX_EVENTS", "20")).await
}

/// The events of every shard were billed after all events of its parents.
async fn assert_parents_first(fleet: &Fleet) {
    let billed: BTreeMap<u64, u64> = {
        let records = fleet.amberflo.sandbox.records().into_iter();
        records.map(|record| (record.unique_id.unwrap().parse().unwrap(), record.index)).collect()
    };
    let mut indices: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut met = std::collections::BTreeSet::new();
    // Parents have smaller shard numbers, so the first copy of an event is met first; it is the one that is billed.
    for record in fleet.records().await.0 {
        if let Some(number) = number_of(&record.data).filter(|number| met.insert(*number)) {
            let index = billed[&number];
            let (first, last) = indices.entry(record.shard.0).or_insert((index, index));
            (*first, *last) = ((*first).min(index), (*last).max(index));
        }
    }
    let mut pairs = 0;
    for shard in fleet.stream.shards().await {
        for parent in [shard.parent_shard_id(), shard.adjacent_parent_shard_id()].into_iter().flatten() {
            if let (Some((first, _)), Some((_, last))) = (indices.get(shard.shard_id()), indices.get(parent)) {
                assert!(last < first, "{} was begun before its parent {parent} was settled", shard.shard_id());
                pairs += 1;
            }
        }
    }
    assert!(pairs >= 4, "only {pairs} parents and children had events: nothing is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_come_before_children_and_copies_of_an_event_are_billed_once_across_split_and_merge() {
    let Some(fleet) = Fleet::start("resharding", 2, "10s").await else { return };
    fleet.amberflo.sandbox.set_faults(slow(100..500)).unwrap();
    let workers = [slow_worker(&fleet, "first").await, slow_worker(&fleet, "second").await];
    let old = fleet.put(300).await;
    let [left, right] = fleet.stream.open_shards().await.try_into().unwrap();
    fleet
        .under_load(async {
            let [_, inner] = fleet.stream.split(&left).await.try_into().unwrap();
            // Copies of what may not even be read yet, in new envelopes, in another shard.
            fleet.put_numbers(old.clone()).await;
            let merged = fleet.stream.merge(&inner, &right).await;
            fleet.put_numbers(old.clone()).await;
            fleet.put_invalid().await;
            fleet.stream.split(&merged).await;
            fleet.put_numbers(old.clone()).await;
            // However little the load has put there: without events of their own, children show nothing.
            fleet.put(100).await;
            fleet.until_billed(600).await;
        })
        .await;
    fleet.reconcile_without_copies(&workers).await;
    assert_parents_first(&fleet).await;
    for worker in workers {
        worker.drain().await;
    }
    assert_eq!(fleet.reconcile().await, 0);
}

/// A trap of other consumers: closed shards with a backlog are never claimed after a restart, which loses it silently.
#[tokio::test(flavor = "multi_thread")]
async fn closed_shards_with_a_backlog_are_read_to_their_end_after_a_restart() {
    let Some(fleet) = Fleet::start("closed", 2, "10s").await else { return };
    fleet.amberflo.sandbox.set_faults(slow(300..900)).unwrap();
    let worker = fleet.worker("before").await;
    fleet.put(100).await;
    fleet.reconcile().await;
    worker.drain().await;

    let backlog = fleet.put(200).await;
    fleet.put_invalid().await;
    let [left, right] = fleet.stream.open_shards().await.try_into().unwrap();
    fleet.stream.split(&left).await;
    let [_, right] = <[String; 2]>::try_from(fleet.stream.split(&right).await).unwrap();
    fleet.put(200).await;
    fleet.put_numbers(backlog).await;
    // This one is made, filled and closed while no worker has ever seen it.
    fleet.stream.split(&right).await;
    fleet.put(100).await;

    let workers = [slow_worker(&fleet, "first").await, slow_worker(&fleet, "second").await];
    fleet.reconcile_without_copies(&workers).await;
    assert_parents_first(&fleet).await;
    let rows = fleet.rows().await;
    let ended = [&left, &right].map(|shard| &rows[&ShardId(shard.clone())].checkpoint);
    assert_eq!(ended, [&Checkpoint::Ended; 2]);
    eventually("the leases to be shared", async || fleet.loads().await.get("second").is_some_and(|held| *held >= 2))
        .await;
    for worker in workers {
        worker.drain().await;
    }
    assert_eq!(fleet.reconcile().await, 0);
}
