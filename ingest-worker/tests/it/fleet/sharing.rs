//! Workers come and go in good order: no copy of anything is sent.

use super::{Fleet, KEY};

/// A trap of other consumers: a lease that is stolen from a live worker has what it was sending sent again.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_shards_and_hand_over_without_a_copy() {
    let Some(fleet) = Fleet::start("sharing", 4, "10s").await else { return };
    fleet.amberflo.sandbox.set_faults(super::slow(20..200)).unwrap();
    fleet.put(100).await;
    let first = fleet.worker("first").await;
    let workers = fleet
        .under_load(async {
            fleet.until_loads(&[("first", 4)]).await;
            let second = fleet.worker("second").await;
            fleet.until_loads(&[("first", 2), ("second", 2)]).await;
            fleet.put_invalid().await;
            [first, second]
        })
        .await;
    fleet.reconcile_without_copies(&workers).await;
    assert_eq!(fleet.loads().await, [("first".to_owned(), 2), ("second".to_owned(), 2)].into());
    assert!(workers[1].metrics().await.sum("ingest_events_total{outcome=\"delivered\"}") > 0.0);
    for worker in workers {
        worker.drain().await;
    }
    assert!(fleet.rows().await.values().all(|row| row.owner.is_none() && row.wanted_by.is_none()));
    assert_eq!(fleet.reconcile().await, 0);
}

/// A rolling deployment. The failover time is much longer than the test may take: whoever waits for it fails.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_over_without_waiting_for_the_failover_time() {
    let Some(fleet) = Fleet::start("sigterm", 4, "1h").await else { return };
    fleet.amberflo.sandbox.set_faults(super::slow(20..200)).unwrap();
    let mut old = fleet.worker("worker-0").await;
    fleet.until_loads(&[("worker-0", 4)]).await;
    for n in 1..4 {
        let name = format!("worker-{n}");
        let new = fleet
            .under_load(async {
                let before = fleet.amberflo.sandbox.ledger().events;
                let new = fleet.worker(&name).await;
                fleet.until_billed(before + 100).await;
                let logs = old.drain().await;
                assert!(!logs.contains(KEY) && logs.contains("lease released"), "{logs}");
                fleet.until_loads(&[(&name, 4)]).await;
                new
            })
            .await;
        old = new;
    }
    fleet.put_invalid().await;
    let events = fleet.valid.borrow().len() as u64;
    fleet.until_billed(events).await;
    // A checkpoint is due once in many minutes here: the last drain writes it.
    crate::process::eventually("the letters", async || fleet.take_letters().await.len() == 3).await;
    old.drain().await;
    assert_eq!(fleet.reconcile().await, 0, "copies were sent");
}
