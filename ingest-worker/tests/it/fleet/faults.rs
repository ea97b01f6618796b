//! Services that fail while workers run.

use std::time::Duration;

use amberflo_sandbox::{Faults, Trigger};
use emulators::{Fault, THROUGHPUT_EXCEEDED, Throttle, put_secret};
use serde_json::json;
use shared::backend::{Checkpoint, Leases as _};
use tokio::time::sleep;

use super::{Fleet, Worker, slow};
use crate::process::{KEY, eventually};

const NEW_KEY: &str = "n3w-key-that-must-stay-secret";

async fn until_read(worker: &Worker, records: f64) {
    let is_read = async || worker.metrics().await.sum("ingest_records_read_total") >= records;
    eventually(&format!("{records} records to be read"), is_read).await;
}

/// A trap of other consumers: reading resumes at the newest record, which loses the ones in between, or at the
/// checkpoint, while the window already holds what is in flight.
#[tokio::test(flavor = "multi_thread")]
async fn an_iterator_that_expires_in_an_outage_is_renewed_after_the_last_fetched_record() {
    let Some(fleet) = Fleet::start("iterator", 1, "10s").await else { return };
    let proxy = Throttle::start(fleet.kinesis).await;
    let worker = Worker::start(fleet.site("worker").with("AWS_ENDPOINT_URL_KINESIS", &proxy.url)).await;
    fleet.put(100).await;
    fleet.until_billed(100).await;
    let outage = Faults { fail_before: Trigger::rate(1.0), ..Faults::default() };
    fleet.amberflo.sandbox.set_faults(outage).unwrap();
    fleet.put(100).await;
    until_read(&worker, 200.0).await;
    for round in 1..=3 {
        proxy.set([Fault::refuse("ExpiredIteratorException").on("GetRecords").times(5)]);
        fleet.put(50).await;
        eventually("the faults to be met", async || proxy.calls("GetRecords").faulted >= 5 * round).await;
        until_read(&worker, 200.0 + 50.0 * round as f64).await;
    }
    fleet.put_invalid().await;
    assert_eq!(fleet.amberflo.sandbox.ledger().events, 100);
    fleet.amberflo.sandbox.set_faults(Faults::default()).unwrap();
    fleet.reconcile_without_copies(std::slice::from_ref(&worker)).await;
    let metrics = worker.metrics().await;
    assert_eq!(metrics.sum("ingest_records_read_total"), 353.0, "each once");
    assert_eq!(metrics.sum("ingest_events_total{outcome=\"duplicate\"}"), 0.0);
    worker.drain().await;
}

/// A trap of other consumers: throttling of the lease table turns into lost leases, and those into copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_lease_table_loses_no_lease() {
    let Some(fleet) = Fleet::start("throttled", 4, "10s").await else { return };
    fleet.amberflo.sandbox.set_faults(slow(20..200)).unwrap();
    let proxy = Throttle::start(fleet.moto).await;
    let behind = |name: &str| fleet.site(name).with("AWS_ENDPOINT_URL_DYNAMODB", &proxy.url);
    let workers = [Worker::start(behind("first")).await, Worker::start(behind("second")).await];
    fleet
        .under_load(async {
            fleet.until_loads(&[("first", 2), ("second", 2)]).await;
            let mut taken = Vec::new();
            for worker in &workers {
                taken.push(worker.lease_events("taken").await + worker.lease_events("stolen").await);
            }
            let refuse = || Fault::refuse(THROUGHPUT_EXCEEDED).on("UpdateItem").share(0.4);
            let lose = || Fault::lose(THROUGHPUT_EXCEEDED).on("UpdateItem").share(0.4);
            proxy.set([refuse(), lose()]);
            // Longer than the failover time: without a renewal every lease would go.
            sleep(Duration::from_secs(15)).await;
            eventually("many writes to fail", async || proxy.calls("UpdateItem").faulted >= 40).await;
            proxy.clear();
            for (worker, taken) in workers.iter().zip(taken) {
                assert_eq!(worker.lease_events("lost").await, 0.0, "{}", worker.logs());
                assert_eq!(worker.lease_events("taken").await + worker.lease_events("stolen").await, taken);
            }
        })
        .await;
    assert_eq!(fleet.loads().await, [("first".to_owned(), 2), ("second".to_owned(), 2)].into());
    fleet.put_invalid().await;
    fleet.reconcile_without_copies(&workers).await;
    for worker in workers {
        worker.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_queue_stalls_the_shard_and_loses_nothing() {
    let Some(fleet) = Fleet::start("sqs-down", 1, "10s").await else { return };
    let proxy = Throttle::start(fleet.moto).await;
    let worker = Worker::start(fleet.site("worker").with("AWS_ENDPOINT_URL_SQS", &proxy.url)).await;
    fleet.put(50).await;
    fleet.reconcile().await;
    let checkpoint = async || fleet.rows().await.into_values().next().unwrap().checkpoint;
    let before = checkpoint().await;
    assert!(matches!(before, Checkpoint::Settled { .. }));

    proxy.down().await;
    fleet.put_invalid().await;
    fleet.put(100).await;
    let is_noticed = async || worker.logs().contains("dead letters could not be stored");
    eventually("the failure to be logged", is_noticed).await;
    // Several times as long as a checkpoint takes.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(checkpoint().await, before, "the checkpoint has passed what is not stored");
    assert_eq!(fleet.take_letters().await.len(), 0);

    proxy.up().await;
    fleet.reconcile_without_copies(std::slice::from_ref(&worker)).await;
    assert_eq!(worker.metrics().await.sum("ingest_dead_letters_total"), 3.0);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_takes_effect_without_a_restart_or_a_lost_event() {
    let Some(fleet) = Fleet::start("rotation", 2, "10s").await else { return };
    let secret = |key: &str| json!({"other": 1, "ApiKey": key}).to_string();
    put_secret(fleet.moto, "rotation/amberflo", &secret(KEY)).await;
    let site = |name: &str, refresh: &str| {
        fleet
            .site(name)
            .with("AMBERFLO_API_KEY", "")
            .with("API_KEY_SECRET_NAME", "rotation/amberflo")
            .with("API_KEY_SECRET_ID", "ApiKey")
            .with("API_KEY_REFRESH", refresh)
    };
    // One hears of the new key from its timer, the other only by a 401.
    let workers = [Worker::start(site("timer", "1s")).await, Worker::start(site("refused", "1h")).await];
    fleet
        .under_load(async {
            fleet.until_loads(&[("timer", 1), ("refused", 1)]).await;
            put_secret(fleet.moto, "rotation/amberflo", &secret(NEW_KEY)).await;
            let valid_keys = Some([NEW_KEY.to_owned()].into());
            fleet.amberflo.sandbox.set_faults(Faults { valid_keys, ..Faults::default() }).unwrap();
            let before = fleet.amberflo.sandbox.ledger().events;
            fleet.until_billed(before + 100).await;
        })
        .await;
    fleet.put_invalid().await;
    fleet.reconcile_without_copies(&workers).await;
    for worker in workers {
        assert_eq!(worker.admin_status("ready").await, Some(200));
        let logs = worker.drain().await;
        assert!(logs.contains("the API key changed") && !logs.contains(NEW_KEY), "{logs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_deleted_under_a_live_worker_is_made_anew_with_its_last_checkpoint() {
    let Some(fleet) = Fleet::start("deleted", 2, "5s").await else { return };
    let workers = [fleet.worker("first").await, fleet.worker("second").await];
    let old = fleet.put(200).await;
    fleet.put_invalid().await;
    fleet.until_loads(&[("first", 1), ("second", 1)]).await;
    fleet.reconcile().await;
    // Every worker has seen the row as it is now; a scan is due once in a fifth of the failover time.
    sleep(Duration::from_secs(3)).await;

    fleet.amberflo.sandbox.set_faults(slow(100..400)).unwrap();
    fleet
        .under_load(async {
            fleet.until_billed(300).await;
            let (shard, row) = fleet.rows().await.pop_first().unwrap();
            let counter = row.counter;
            let is_new = async || {
                let row = fleet.rows().await.remove(&shard);
                // Its owner may have renewed it just now, then it is not deleted: again.
                if let Some(row) = row.as_ref().filter(|row| row.counter >= counter) {
                    fleet.leases.forget(row).await.unwrap();
                }
                row.is_some_and(|row| row.counter < counter && row.owner.is_some())
            };
            eventually("the row to be made anew", is_new).await;
        })
        .await;
    fleet.reconcile().await;
    for (id, _) in fleet.amberflo.sandbox.absorbed_copies() {
        assert!(!old.contains(&id.parse().unwrap()), "{id} was settled long before the row was deleted");
    }
    let mut logs = String::new();
    for worker in workers {
        logs += &worker.drain().await;
    }
    assert!(logs.contains("its lease row was deleted: made anew, with its last checkpoint"), "{logs}");
}
