//! SIGKILL and SIGSTOP: what Amberflo bills is what it would have billed without them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Trigger};
use serde_json::{Value, json};
use shared::backend::Leases as _;
use tokio::time::sleep;

use super::{Amberflo, Process, Site, entry, eventually, usage, usages};

/// Puts events until told to stop, as a producer with retries: an event without an answer is put again, with the same
/// idempotency key and time. Answers how many events were accepted.
async fn produce(worker: &Process, numbers: &AtomicU64, stop: &AtomicBool) -> Vec<Value> {
    let mut unanswered = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let first = numbers.fetch_add(10, Ordering::Relaxed);
        let details: Vec<Value> = (first..first + 10).map(timed).collect();
        let entries: Vec<_> = details.iter().map(|detail| entry(&detail.to_string())).collect();
        match worker.put_entries(&json!(entries)).await {
            Ok((status, body)) => assert!(status.is_success() && body["FailedEntryCount"] == 0, "{body}"),
            Err(_) => {
                unanswered.extend(details);
                break;
            }
        }
    }
    unanswered
}

/// A usage event whose time is its own, so that its copies are the same event however late they come.
fn timed(n: u64) -> Value {
    #[expect(clippy::disallowed_methods, reason = "the producers of this test have a clock of their own")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let mut detail = usage(n);
    detail["meterTimeInMillis"] = json!(u64::try_from(now).unwrap());
    detail
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_under_load_changes_nothing_in_the_ledger() {
    let amberflo = Amberflo::start().await;
    let faults = Faults {
        slow: Trigger::rate(1.0),
        latency: Latency { min: Duration::from_millis(1), max: Duration::from_millis(80) },
        fail_after: Trigger::rate(0.1),
        ..Faults::default()
    };
    amberflo.sandbox.set_faults(faults).unwrap();
    let site = Site::new(&amberflo).with("BATCH_MAX_EVENTS", "50").with("BATCH_LINGER", "10ms");
    let (numbers, mut unanswered) = (AtomicU64::new(0), Vec::new());
    for round in 0..5 {
        let mut worker = site.start().await;
        worker.put(&unanswered).await;
        let billed_before = amberflo.sandbox.ledger().events;
        let stop = AtomicBool::new(false);
        let kill = async {
            let wanted = billed_before + 100;
            eventually("some to be billed", async || amberflo.sandbox.ledger().events > wanted).await;
            sleep(Duration::from_millis(30 * round)).await;
            worker.signal("KILL").await;
            stop.store(true, Ordering::Relaxed);
        };
        let (left, others, ()) =
            tokio::join!(produce(&worker, &numbers, &stop), produce(&worker, &numbers, &stop), kill);
        unanswered = [left, others].concat();
        assert_eq!(worker.ended().await.code(), None, "killed in round {round}");
    }
    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    let worker = site.start().await;
    worker.put(&unanswered).await;
    let events = numbers.load(Ordering::Relaxed);
    amberflo.billed(events).await;
    worker.drain().await;
    amberflo.assert_billed_once(events);
    let mut times = BTreeMap::new();
    for record in amberflo.sandbox.records() {
        *times.entry(record.unique_id.unwrap()).or_insert(0) += 1;
    }
    assert!(times.len() as u64 == events && times.values().all(|&times| times == 1));
    assert!(site.letters().await.is_empty());
}

/// The worker that was killed still stands in the leases; the lock on the directory proves that it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_sigkill_does_not_wait_for_the_failover_time() {
    let amberflo = Amberflo::start().await;
    // Much longer than the test may take: whoever waits for it fails.
    let site = Site::new(&amberflo).with("FAILOVER_TIME", "1h");
    let mut worker = site.start().await;
    worker.put(&usages(0..100)).await;
    amberflo.billed(100).await;
    worker.signal("KILL").await;
    worker.ended().await;
    let owned = site.store().list().await.unwrap().into_iter().filter(|lease| lease.owner.is_some()).count();
    assert_eq!(owned, 4);
    let again = site.start().await;
    again.put(&usages(100..200)).await;
    amberflo.billed(200).await;
    again.drain().await;
    amberflo.assert_billed_once(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigstop_for_longer_than_the_failover_time_and_sigcont() {
    let amberflo = Amberflo::start().await;
    let faults = Faults {
        slow: Trigger::rate(1.0),
        latency: Latency { min: Duration::from_millis(50), max: Duration::from_millis(500) },
        ..Faults::default()
    };
    amberflo.sandbox.set_faults(faults).unwrap();
    let site = Site::new(&amberflo).with("FAILOVER_TIME", "1s").with("BATCH_MAX_EVENTS", "20");
    let worker = site.start().await;
    for round in 0..3 {
        worker.put(&usages(round * 300..round * 300 + 300)).await;
        let wanted = round * 300 + 20;
        eventually("some to be billed", async || amberflo.sandbox.ledger().events > wanted).await;
        worker.signal("STOP").await;
        sleep(Duration::from_millis(2500)).await;
        worker.signal("CONT").await;
        amberflo.billed(round * 300 + 300).await;
    }
    eventually("the worker to be ready", async || worker.admin_status("ready").await == Some(200)).await;
    worker.put(&usages(900..910)).await;
    amberflo.billed(910).await;
    worker.drain().await;
    amberflo.assert_billed_once(910);
    assert!(site.letters().await.is_empty());
}
