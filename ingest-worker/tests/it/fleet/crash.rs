//! SIGKILL and SIGSTOP.

use std::time::Duration;

use tokio::time::sleep;

use super::front::Front;
use super::{Fleet, Worker, slow};
use crate::process::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_and_doubles_nothing() {
    let Some(fleet) = Fleet::start("sigkill", 6, "5s").await else { return };
    fleet.amberflo.sandbox.set_faults(slow(50..300)).unwrap();
    fleet.put_invalid().await;
    let survivors = [fleet.worker("first").await, fleet.worker("second").await];
    let mut victim = fleet.worker("victim").await;
    let rows = fleet
        .under_load(async {
            fleet.until_loads(&[("first", 2), ("second", 2), ("victim", 2)]).await;
            let sent = victim.metrics().await.sum("ingest_events_total{outcome=\"delivered\"}");
            let is_under_way = async || {
                let metrics = victim.metrics().await;
                metrics.sum("ingest_events_total{outcome=\"delivered\"}") >= sent + 20.0
                    && metrics.sum("ingest_in_flight_requests") > 0.0
            };
            eventually("requests of the victim to be in flight", is_under_way).await;
            victim.signal("KILL").await;
            assert_eq!(victim.ended().await.code(), None);
            let rows = fleet.rows().await;
            fleet.until_loads(&[("first", 3), ("second", 3)]).await;
            rows
        })
        .await;
    let absorbed = fleet.reconcile().await;
    fleet.assert_absorbed_only_behind(&rows, "victim").await;
    for worker in survivors {
        worker.drain().await;
    }
    assert_eq!(fleet.reconcile().await, absorbed, "the drain sent copies");
}

/// A trap of other consumers: a paused worker (GC, a stalled machine) still posts after it has lost its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_begins_no_request_for_a_shard_that_it_lost() {
    let Some(fleet) = Fleet::start("sigstop", 4, "5s").await else { return };
    fleet.amberflo.sandbox.set_faults(slow(200..600)).unwrap();
    let front = Front::start(&fleet, "paused").await;
    // It has read much more than it can send, so it would have something to begin with.
    let site = fleet.site("paused").with("MAX_IN_FLIGHT", "2").with("BATCH_MAX_EVENTS", "20");
    let paused = Worker::start(site.with("AMBERFLO_BASE_URL", &front.url)).await;
    let other = fleet.worker("other").await;
    let (rows, attempted) = fleet
        .under_load(async {
            fleet.until_loads(&[("other", 2), ("paused", 2)]).await;
            fleet.put(600).await;
            let is_busy = async || {
                let metrics = paused.metrics().await;
                metrics.sum("ingest_in_flight_records") >= 100.0 && metrics.sum("ingest_in_flight_requests") >= 2.0
            };
            eventually("much to be in flight", is_busy).await;
            paused.signal("STOP").await;
            let rows = fleet.rows().await;
            // Twice the failover time, and until the other has all.
            sleep(Duration::from_secs(10)).await;
            fleet.until_loads(&[("other", 4)]).await;
            let attempted = front.seen();
            front.check_owners();
            paused.signal("CONT").await;
            // It lives again, and gets its share again by asking.
            fleet.until_loads(&[("other", 2), ("paused", 2)]).await;
            let before = front.seen().len();
            eventually("it to send again", async || front.seen().len() > before + 3).await;
            (rows, attempted)
        })
        .await;
    fleet.reconcile().await;
    assert_eq!(front.violations(), Vec::<String>::new());
    fleet.assert_absorbed_only_behind(&rows, "paused").await;
    let attempted: Vec<String> = attempted.concat();
    for (id, _) in fleet.amberflo.sandbox.absorbed_copies() {
        assert!(attempted.contains(&id), "{id} was sent twice although the paused worker had not begun with it");
    }
    // What it held of the shards that it lost counts as handed back: every scrape balances.
    assert!(paused.lease_events("lost").await >= 1.0);
    assert!(paused.metrics().await.sum("ingest_events_total{outcome=\"released\"}") >= 1.0);
    for worker in [paused, other] {
        worker.drain().await;
    }
}
