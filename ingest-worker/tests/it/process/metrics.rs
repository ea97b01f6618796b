//! Records read = outcomes + in flight, in every scrape of a real worker: [`Process::metrics`] checks each.

use std::collections::BTreeSet;
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Poison, Trigger};
use serde_json::json;

use super::{Amberflo, Process, Site, eventually, usages};

const EVENTS: u64 = 1500;

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

    let mut all = usages(0..EVENTS);
    all.extend(usages(0..50));
    all.extend((0..20).map(|n| json!({"tenantId": format!("tenant-{n}"), "meterValue": 1})));
    let (mut scrapes, mut in_flight) = (0, BTreeSet::new());
    let put = async {
        let chunks = all.chunks(all.len() / 4);
        for part in chunks {
            worker.put(part).await;
        }
    };
    let scrape = async {
        while in_flight.len() < 20 {
            in_flight.insert(worker.metrics().await.sum("ingest_in_flight_records") as u64);
            scrapes += 1;
            assert!(scrapes < 10_000, "hardly anything was in flight: {in_flight:?}");
        }
    };
    tokio::join!(put, scrape);
    until_at_rest(&worker, all.len() as f64).await;

    // A drain while much is in flight: /metrics answers to its end.
    let slow = Latency { min: Duration::from_millis(100), max: Duration::from_millis(500) };
    amberflo.sandbox.set_faults(Faults { latency: slow, ..trouble() }).unwrap();
    worker.put(&usages(EVENTS..2 * EVENTS)).await;
    worker.signal("TERM").await;
    let mut seen = 0;
    while worker.metrics_while_it_runs().await.is_some() {
        seen += 1;
    }
    assert_eq!(worker.ended().await.code(), Some(0), "{}", worker.logs());
    assert!(seen > 0, "no scrape during the drain");

    let mut worker = site.start().await;
    worker.put(&usages(2 * EVENTS..2 * EVENTS + 100)).await;
    until_at_rest(&worker, 100.0).await;
    worker.put(&usages(2 * EVENTS + 100..3 * EVENTS)).await;
    eventually("much to be in flight", async || worker.metrics().await.sum("ingest_in_flight_records") > 50.0).await;
    worker.signal("KILL").await;
    worker.ended().await;

    amberflo.sandbox.set_faults(trouble()).unwrap();
    let worker = site.start().await;
    until_at_rest(&worker, 50.0).await;
    let metrics = worker.metrics().await;
    // What only fills the dedup window is not among the records read.
    assert!(metrics.sum("ingest_dedup_rebuild_records_total") > 0.0);
    assert_eq!(metrics.sum("ingest_events_total{outcome=\"released\"}"), 0.0);
    worker.drain().await;
    let refused = (0..3 * EVENTS).filter(|n| n.to_string().starts_with('7')).count() as u64;
    amberflo.assert_billed_once(3 * EVENTS - refused);
}
