//! What the worker tells of itself, in paused time.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ingest_worker::context::Common;
use ingest_worker::limiter::{Limiter, Outcome};
use ingest_worker::meters::MeterBudget;
use ingest_worker::worker::Worker;
use shared::backend::local::LocalStore;
use shared::backend::{
    BackendError, Leases as _, NewRecord, Page, Position, Shard, ShardId, ShardReader, Stream, WorkerId,
};
use shared::service::Ready;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::harness::{Counters, MINUTE, Options, SECOND, Verdict, World, answer, usage};

/// A world whose Amberflo takes a minute for an answer, and a worker that has this much in flight.
const IN_FLIGHT: u64 = 200;

fn slow_world() -> World {
    let world = World::new(2);
    world.wire.script(|_| (MINUTE, Verdict::Answer(answer(200, &[], "ok"))));
    world
}

async fn put(world: &World) {
    world.put((0..IN_FLIGHT).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_lease_leaves_is_handed_back() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = slow_world();
    let _worker = world.start().await;
    put(&world).await;
    sleep(2 * SECOND).await;
    assert_eq!(counters.assert_balance(), IN_FLIGHT);
    for lease in world.store.list().await.unwrap() {
        world.store.claim(&lease, &WorkerId("thief".to_owned())).await.unwrap().unwrap();
    }
    // It finds out at its next renewal.
    for _ in 0..40 {
        sleep(SECOND / 10).await;
        counters.assert_balance();
    }
    assert_eq!(counters.assert_balance(), 0);
    assert_eq!(counters.get("ingest_events_total"), IN_FLIGHT);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_leaves_is_handed_back_and_read_again_by_the_next() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = slow_world();
    let worker = world.start().await;
    put(&world).await;
    sleep(2 * SECOND).await;
    assert_eq!(counters.assert_balance(), IN_FLIGHT);
    drop(worker);
    sleep(SECOND).await;
    assert_eq!((counters.assert_balance(), counters.get("ingest_events_total")), (0, IN_FLIGHT));
    world.wire.mend();
    let worker = world.start().await;
    world.settle_within(5 * MINUTE).await;
    assert_eq!((counters.assert_balance(), counters.get("ingest_events_total")), (0, 2 * IN_FLIGHT));
    worker.drain().await;
    assert_eq!((counters.assert_balance(), counters.get("ingest_events_total")), (0, 2 * IN_FLIGHT));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_limit_is_counted_while_it_goes_on_and_to_the_fraction() {
    let waited = |counters: &Counters| counters.get("ingest_limiter_wait_seconds_total");
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let limiter = Limiter::new(NonZeroU32::MIN, 0.0);
    Arc::clone(&limiter).acquire().await.report(Outcome::SlowDown(Some(5 * MINUTE)));
    let waiting = timeout(Duration::from_millis(3_400), Arc::clone(&limiter).acquire());
    assert!(waiting.await.is_err());
    assert_eq!(waited(&counters), 3);
    // The rest of the one that was given up counts as well: 3.4 s and 0.7 s.
    assert!(timeout(Duration::from_millis(700), Arc::clone(&limiter).acquire()).await.is_err());
    assert_eq!(waited(&counters), 4);

    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let limiter = Limiter::new(NonZeroU32::MIN, 4.0);
    for _ in 0..11 {
        drop(Arc::clone(&limiter).acquire().await);
    }
    assert_eq!(waited(&counters), 2, "ten waits of a quarter of a second");
}

#[tokio::test(start_paused = true)]
async fn a_pause_shows_at_once_and_ends() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = World::new(1);
    world.wire.answer_all(401, &[], "no");
    let _worker = world.start().await;
    put(&world).await;
    sleep(SECOND).await;
    assert_eq!((counters.gauge("ingest_paused"), counters.gauge("ingest_shards")), (1.0, 1.0));
    world.wire.mend();
    world.settle_within(MINUTE).await;
    assert_eq!((counters.gauge("ingest_paused"), counters.gauge("ingest_ready")), (0.0, 1.0));
}

/// A stream of which nothing can be read while the flag is set: a permission, a key of KMS.
struct Unreadable(LocalStore, Arc<AtomicBool>);

#[async_trait]
impl Stream for Unreadable {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.0.shards().await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let reader = self.0.reader(shard, from).await?;
        Ok(Box::new(UnreadableShard(reader, Arc::clone(&self.1))))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        self.0.publish(records).await
    }
}

struct UnreadableShard(Box<dyn ShardReader>, Arc<AtomicBool>);

#[async_trait]
impl ShardReader for UnreadableShard {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        if self.1.load(Ordering::Relaxed) {
            return Err(BackendError::Unavailable("AccessDeniedException".to_owned()));
        }
        self.0.next(max_bytes).await
    }
}

/// Nothing of it is in flight, and the last that was heard is that there is nothing more: no other metric would tell.
#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_be_read_is_lag() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = World::new(1);
    let is_unreadable = Arc::new(AtomicBool::new(false));
    let stream = Arc::new(Unreadable(world.store.clone(), Arc::clone(&is_unreadable)));
    let common = Common { stream, ..world.common(Options::default()).await };
    let worker = Worker {
        common: Arc::new(common),
        leases: Arc::new(world.store.clone()),
        failover: 10 * SECOND,
        initial_position: Position::TrimHorizon,
        is_alone: false,
        ready: Ready::default(),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    let lag = || counters.gauge("ingest_shard_lag_seconds");
    put(&world).await;
    world.settle_within(MINUTE).await;
    sleep(10 * MINUTE).await;
    assert_eq!(lag(), 0.0, "idle");

    is_unreadable.store(true, Ordering::Relaxed);
    sleep(5 * MINUTE).await;
    assert!((295.0..=301.0).contains(&lag()), "{} s", lag());
    assert_eq!(counters.gauge("ingest_ready"), 1.0);
    sleep(60 * MINUTE).await;
    assert!((3895.0..=3901.0).contains(&lag()), "{} s", lag());

    is_unreadable.store(false, Ordering::Relaxed);
    sleep(MINUTE).await;
    assert_eq!(lag(), 0.0, "read again");
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_budget_of_the_last_hour_does_not_stay() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let budget = MeterBudget::new(100);
    budget.count(&HashMap::from([("calls".to_owned(), 90)]), 1_800_000);
    assert_eq!(counters.gauge("ingest_meter_budget_max_ratio"), 0.9);
    budget.observe(3_599_999);
    assert_eq!(counters.gauge("ingest_meter_budget_max_ratio"), 0.9);
    budget.observe(3_600_000);
    assert_eq!(counters.gauge("ingest_meter_budget_max_ratio"), 0.0);
    MeterBudget::new(0).observe(3_600_000);
    assert_eq!(counters.gauge("ingest_meter_budget_max_ratio"), 0.0);
}
