//! Traps that other Kinesis consumers fell into, each by its name. Those that need more are elsewhere: paused workers, rows
//! deleted under their owner, throttled tables, iterators that expire and closed shards with a backlog in `fleet`,
//! expired iterators on shards that are gone in `shared/tests/it/kinesis/resuming.rs`, workers that are gone but still
//! counted in `balance.rs`, empty records and such that are not JSON in `process/hostile.rs`.

use std::sync::Arc;
use std::time::Duration;

use ingest_worker::context::Common;
use ingest_worker::worker::Worker;
use serde_json::json;
use shared::backend::{Checkpoint, Leases as _, Position, ShardId};
use shared::clock::Clock;
use shared::service::Ready;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::harness::{MINUTE, Options, SECOND, Verdict, World, usage};
use crate::simulation::stream::{Resharding, SimulatedStream};

#[tokio::test(start_paused = true)]
async fn a_checkpoint_does_not_pass_an_undelivered_record_when_requests_finish_out_of_order() {
    let world = World::new(1);
    let _worker = world.start_with(Options { batch_max_events: 1, ..Options::default() }).await;
    // The first takes long, the others are done before it.
    world.wire.script(|sent| {
        let is_first = sent.records()[0]["uniqueId"] == "0";
        (if is_first { 20 * SECOND } else { SECOND / 10 }, Verdict::Pass)
    });
    world.put((0..5).map(|n| usage("tenant", n))).await;
    sleep(10 * SECOND).await;
    assert_eq!(world.sandbox.ledger().events, 4, "the others are billed");
    let lease = world.store.list().await.unwrap().remove(0);
    assert_eq!(lease.checkpoint, Checkpoint::Start(Position::TrimHorizon), "the first is not");
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(5);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_only_duplicates_or_only_rejects_moves_the_checkpoint() {
    let world = World::new(1);
    let _worker = world.start().await;
    world.put([usage("tenant", 1)]).await;
    world.settle_within(MINUTE).await;
    world.put([usage("tenant", 1), usage("tenant", 1)]).await;
    world.settle_within(MINUTE).await;
    world.put([json!({"tenantId": "tenant"}), json!({"tenantId": "tenant"})]).await;
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(1);
    assert_eq!(world.letters().await.len(), 2);
}

/// A shard whose retention has passed is not asked for for ever, but one list without it proves nothing.
#[tokio::test(start_paused = true)]
async fn a_shard_that_the_stream_forgot_is_ended_after_a_while_and_its_children_go_on() {
    let world = World::new(1);
    let stream = Resharding::new(1, Clock::following_tokio(0));
    let simulated = SimulatedStream::Resharding(stream.clone());
    let common = Common { stream: Arc::new(simulated.clone()), ..world.common(Options::default()).await };
    stream.reshard(&mut fastrand::Rng::with_seed(1));
    let parent = ShardId("shardId-000000000000".to_owned());
    for shard in simulated.shards_before(Duration::ZERO) {
        world.store.create(&shard, Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    }
    stream.forget(&parent);

    let worker = Worker {
        common: Arc::new(common),
        leases: Arc::new(world.store.clone()),
        failover: 10 * SECOND,
        initial_position: Position::TrimHorizon,
        is_alone: false,
        ready: Ready::default(),
    };
    let (stop, owner) = (CancellationToken::new(), worker.common.worker.clone());
    let running = tokio::spawn(worker.run(stop.clone()));
    sleep(9 * MINUTE).await;
    let leases = world.store.list().await.unwrap();
    assert!(
        leases.iter().all(|lease| lease.owner.is_none()),
        "nobody knows whether the parent is finished: {leases:?}"
    );
    sleep(2 * MINUTE).await;
    for lease in world.store.list().await.unwrap() {
        match lease.shard == parent {
            true => assert_eq!(lease.checkpoint, Checkpoint::Ended),
            false => assert_eq!(lease.owner.as_ref(), Some(&owner)),
        }
    }
    sleep(60 * MINUTE).await;
    assert_eq!(world.store.list().await.unwrap().len(), 2, "the row is removed at last");
    stop.cancel();
    running.await.unwrap().unwrap();
}
