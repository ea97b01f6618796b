//! Records read = outcomes + in flight, in every scrape of a real worker: [`Process::metrics`] checks each.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Poison, Trigger};
use serde_json::json;
use tokio::time::timeout;

use super::{Amberflo, PATIENCE, Process, Site, eventually, usages};

const EVENTS: u64 = 1000;
const SLOW: Duration = Duration::from_millis(200);

fn trouble() -> Faults {
    Faults {
        slow: Trigger::rate(1.0),
        latency: Latency { min: Duration::from_millis(1), max: Duration::from_millis(60) },
        fail_before: Trigger::rate(0.1),
        throttle: Trigger::rate(0.05),
        poison: vec![Poison { unique_id_prefixes: vec!["7".to_owned()], ..Poison::default() }],
        ..Faults::default()
    }
}

async fn until_at_rest(worker: &Process, ended: f64) {
    let is_at_rest = async || {
        let metrics = worker.metrics().await;
        metrics.sum("ingest_in_flight_records") == 0.0 && metrics.sum("ingest_events_total") >= ended
    };
    eventually("everything to be settled", is_at_rest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flow_balances_under_load_and_across_a_drain_and_a_kill() {
    let amberflo = Amberflo::start().await;
    amberflo.sandbox.set_faults(trouble()).unwrap();
    let site = Site::new(&amberflo).with("BATCH_MAX_EVENTS", "20").with("BATCH_LINGER", "10ms");
    let mut worker = site.start().await;

    // Events are put until scrapes have seen very different numbers in flight.
    let (next, is_enough) = (Cell::new(0), Cell::new(false));
    let put = async {
        while !is_enough.get() {
            let first = next.replace(next.get() + 200);
            worker.put(&usages(first..first + 200)).await;
        }
    };
    let scrape = async {
        let mut in_flight = BTreeSet::new();
        while in_flight.len() < 12 {
            in_flight.insert(worker.metrics().await.sum("ingest_in_flight_records") as u64);
        }
        is_enough.set(true);
    };
    timeout(PATIENCE, async { tokio::join!(put, scrape) }).await.expect("hardly anything was in flight");
    let first = next.get();
    worker.put(&usages(0..50)).await;
    let malformed = |n| json!({"tenantId": format!("tenant-{n}"), "meterValue": 1});
    worker.put(&(0..20).map(malformed).collect::<Vec<_>>()).await;
    until_at_rest(&worker, (first + 70) as f64).await;

    // A drain while much is in flight: /metrics answers to its end.
    let slow = Latency { min: SLOW / 4, max: SLOW };
    amberflo.sandbox.set_faults(Faults { latency: slow, ..trouble() }).unwrap();
    worker.put(&usages(first..first + EVENTS)).await;
    worker.signal("TERM").await;
    let mut seen = 0;
    while worker.metrics_while_it_runs().await.is_some() {
        seen += 1;
    }
    assert_eq!(worker.ended().await.code(), Some(0), "{}", worker.logs());
    assert!(seen > 0, "no scrape during the drain");

    let mut worker = site.start().await;
    worker.put(&usages(first + EVENTS..first + EVENTS + 100)).await;
    until_at_rest(&worker, 100.0).await;
    // So slow that they are in flight for long.
    let slow = Latency { min: 10 * SLOW, max: 20 * SLOW };
    amberflo.sandbox.set_faults(Faults { latency: slow, ..trouble() }).unwrap();
    worker.put(&usages(first + EVENTS + 100..first + 2 * EVENTS)).await;
    eventually("much to be in flight", async || worker.metrics().await.sum("ingest_in_flight_records") > 50.0).await;
    worker.signal("KILL").await;
    worker.ended().await;

    amberflo.sandbox.set_faults(trouble()).unwrap();
    let worker = site.start().await;
    worker.put(&usages(first + 2 * EVENTS..first + 2 * EVENTS + 100)).await;
    until_at_rest(&worker, 100.0).await;
    let metrics = worker.metrics().await;
    // What only fills the dedup window is not among the records read.
    assert!(metrics.sum("ingest_dedup_rebuild_records_total") > 0.0);
    assert_eq!(metrics.sum("ingest_events_total{outcome=\"released\"}"), 0.0);
    worker.drain().await;
    let all = first + 2 * EVENTS + 100;
    let refused = (0..all).filter(|n| n.to_string().starts_with('7')).count() as u64;
    amberflo.assert_billed_once(all - refused);
}
