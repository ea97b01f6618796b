//! The main job, what it tells about itself, and its end by signals.

use std::time::Duration;

use amberflo_sandbox::{Faults, Trigger};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Amberflo, KEY, Site, client, entry, eventually, usages};

#[tokio::test(flavor = "multi_thread")]
async fn events_put_over_http_are_billed_and_counted() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("LOG", "trace");
    let worker = site.start().await;
    worker.put(&usages(0..500)).await;
    // Copies, a conflict, and one that is no usage event at all.
    worker.put(&usages(0..50)).await;
    let conflict = json!({"tenantId": "tenant-3", "meterApiName": "calls", "meterValue": 4, "uniqueId": "3"});
    worker.put(&[conflict, json!({"tenantId": "tenant-3"})]).await;
    amberflo.billed(500).await;
    let read = 552.0;
    let settled = async || {
        let metrics = worker.metrics().await;
        metrics.sum("ingest_events_total") >= read
    };
    eventually("everything to be settled", settled).await;

    let metrics = worker.metrics().await;
    assert_eq!(metrics.sum("ingest_records_read_total"), read);
    assert_eq!(metrics.sum("ingest_events_total"), read);
    for (outcome, events) in [("delivered", 500.0), ("duplicate", 50.0), ("dead_lettered", 2.0), ("released", 0.0)] {
        assert_eq!(metrics.sum(&format!("ingest_events_total{{outcome=\"{outcome}\"}}")), events, "{outcome}");
    }
    assert_eq!(metrics.sum("ingest_dead_letters_total{reason=\"conflict\"}"), 1.0);
    assert_eq!(metrics.sum("ingest_dead_letters_total{reason=\"missing_field\"}"), 1.0);
    assert_eq!(metrics.sum("ingest_leases_held"), 4.0);
    assert_eq!(metrics.sum("ingest_ready"), 1.0);
    assert_eq!(metrics.sum("ingest_in_flight_requests"), 0.0);
    assert_eq!(metrics.sum("amberflo_count_mismatches_total"), 0.0);
    assert_eq!(metrics.sum("ingest_batch_events_sum"), 500.0);
    assert_eq!(metrics.sum("ingest_delivery_latency_seconds_count"), 500.0);
    let requests = amberflo.sandbox.stats().requests as f64;
    assert_eq!(metrics.sum("amberflo_requests_total"), requests);
    for name in ["process_resident_memory_bytes", "build_info", "ingest_concurrency_limit"] {
        assert!(metrics.0.contains(name), "{name} is missing");
    }
    assert!(!metrics.0.contains("tenant-") && !metrics.0.contains("calls"), "a producer can choose a label");
    assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0);

    let secret = format!("http://{}/metrics", worker.admin);
    assert!(!client().get(secret).send().await.unwrap().text().await.unwrap().contains(KEY));
    // drain() also looks for the key in everything it logged, at trace level.
    let logs = worker.drain().await;
    assert!(logs.lines().count() > 100, "LOG=trace logs little: {logs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_drain() {
    for signal in ["TERM", "INT"] {
        let amberflo = Amberflo::start().await;
        // They would linger for a minute: only the drain sends them.
        let site = Site::new(&amberflo).with("BATCH_LINGER", "60s");
        let mut worker = site.start().await;
        worker.put(&usages(0..200)).await;
        eventually("them to be read", async || worker.metrics().await.sum("ingest_records_read_total") == 200.0).await;
        assert_eq!(amberflo.sandbox.ledger().events, 0);
        worker.signal(signal).await;
        assert_eq!(worker.ended().await.code(), Some(0), "{}", worker.logs());
        amberflo.assert_billed_once(200);

        let again = site.start().await;
        again.put(&usages(200..210)).await;
        // What is not read yet when the signal comes stays in the stream.
        eventually("them to be read", async || again.metrics().await.sum("ingest_records_read_total") == 10.0).await;
        again.drain().await;
        amberflo.assert_billed_once(210);
        assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0, "the checkpoints were not written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_stuck_drain_and_loses_nothing() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("SHUTDOWN_GRACE", "30m").with("REQUEST_TIMEOUT", "10m");
    // Accepted, but the answer does not come: the worst case.
    amberflo.sandbox.set_faults(Faults { hang_after: Trigger::rate(1.0), ..Faults::default() }).unwrap();
    let mut worker = site.start().await;
    worker.put(&usages(0..200)).await;
    eventually("requests to hang", async || amberflo.sandbox.stats().in_flight >= 4).await;
    worker.signal("TERM").await;
    eventually("the drain to begin", async || worker.logs().contains("draining")).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(worker.admin_status("health").await, Some(200), "a drain answers");
    assert_eq!(worker.admin_status("ready").await, Some(503), "a drain takes no new work");
    worker.signal("INT").await;
    assert_eq!(worker.ended().await.code(), Some(1), "{}", worker.logs());

    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    let again = site.start().await;
    amberflo.billed(200).await;
    again.put(&usages(200..210)).await;
    amberflo.billed(210).await;
    again.drain().await;
    amberflo.assert_billed_once(210);
    assert!(site.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_amberflo_is_down_ends_cleanly_and_loses_nothing() {
    for faults in [
        Faults { fail_before: Trigger::rate(1.0), ..Faults::default() },
        Faults { fail_after: Trigger::rate(1.0), ..Faults::default() },
        Faults { revoked_keys: [KEY.to_owned()].into(), ..Faults::default() },
        Faults { throttle: Trigger::rate(1.0), retry_after: Some(Duration::from_secs(300)), ..Faults::default() },
        Faults { hang_before: Trigger::rate(1.0), ..Faults::default() },
    ] {
        let amberflo = Amberflo::start().await;
        let site = Site::new(&amberflo).with("SHUTDOWN_GRACE", "3s");
        amberflo.sandbox.set_faults(faults.clone()).unwrap();
        let worker = site.start().await;
        worker.put(&usages(0..200)).await;
        // One is sure: a pause or a Retry-After lets no second one through.
        eventually("a request", async || amberflo.sandbox.stats().requests >= 1).await;
        assert_eq!(worker.admin_status("health").await, Some(200));
        worker.drain().await;
        amberflo.sandbox.set_faults(Faults::default()).unwrap();
        // FAILOVER_TIME is 10 s: leases that were not released would be waited for by a worker that is not alone.
        let again = site.start().await;
        amberflo.billed(200).await;
        again.drain().await;
        amberflo.assert_billed_once(200);
        assert!(site.letters().await.is_empty(), "{faults:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_shows_in_ready_and_a_replaced_file_mends_it() {
    let amberflo = Amberflo::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "an-older-key\n").unwrap();
    let site = Site::new(&amberflo)
        .with("AMBERFLO_API_KEY", "")
        .with("AMBERFLO_API_KEY_FILE", file.to_str().unwrap())
        .with("API_KEY_REFRESH", "1s");
    let worker = site.start().await;
    worker.put(&usages(0..20)).await;
    eventually("not ready", async || worker.admin_status("ready").await == Some(503)).await;
    assert_eq!(worker.admin_status("health").await, Some(200));
    assert_eq!(worker.metrics().await.sum("ingest_ready"), 0.0);
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    amberflo.billed(20).await;
    eventually("ready again", async || worker.admin_status("ready").await == Some(200)).await;
    let logs = worker.drain().await;
    assert!(!logs.contains("an-older-key"), "{logs}");
    assert!(site.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_where_asked_and_rust_log_is_a_fallback() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("LOG_FORMAT", "json").with("RUST_LOG", "debug");
    let worker = site.start().await;
    worker.put(&usages(0..10)).await;
    worker.put(&[json!({"tenantId": "a \"quoted\"\nname"})]).await;
    amberflo.billed(10).await;
    let lines = {
        let worker_lines = worker.log_lines();
        worker.drain().await;
        worker_lines
    };
    assert!(!lines.is_empty());
    let mut levels = std::collections::BTreeSet::new();
    for line in &lines {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed["timestamp"].is_string() && parsed["message"].is_string(), "{line}");
        levels.insert(parsed["level"].as_str().unwrap().to_owned());
    }
    assert!(levels.contains("INFO") && levels.contains("DEBUG"), "RUST_LOG=debug has no effect: {levels:?}");

    let site = Site::new(&amberflo).with("LOG", "warn").with("RUST_LOG", "trace");
    let worker = site.start().await;
    worker.put(&usages(100..110)).await;
    amberflo.billed(20).await;
    let logs = worker.drain().await;
    assert_eq!(logs, "", "LOG goes before RUST_LOG");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_events_and_goes_on_delivering() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("LOCAL_MAX_BYTES", "1MiB");
    amberflo.sandbox.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() }).unwrap();
    let worker = site.start().await;
    let mut accepted = 0;
    loop {
        let detail = |n: u64| json!({"tenantId": "t", "meterApiName": "m", "meterValue": 1, "uniqueId": n.to_string(), "pad": "x".repeat(20_000)});
        let entries: Vec<_> = (0..5).map(|n| entry(&detail(accepted + n).to_string())).collect();
        let (status, body) = worker.put_entries(&json!(entries)).await.unwrap();
        if status.as_u16() != 200 {
            assert_eq!(body["__type"], "ThrottlingException", "{body}");
            break;
        }
        accepted += 5;
        assert!(accepted < 1000, "it is never full");
    }
    assert!(accepted >= 20, "full after {accepted} events of 20 kB");
    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    amberflo.billed(accepted).await;
    worker.drain().await;
}
