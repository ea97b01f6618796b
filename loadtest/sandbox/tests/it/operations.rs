//! What all operations but ingest have in common: the key, faults, statistics, reset.

use std::collections::BTreeSet;
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Operation, Sandbox, Trigger};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{Answer, api, call, event, sandbox, send};

/// One request of each operation, all of which succeed.
fn requests() -> [(Operation, &'static str, &'static str, Value); 5] {
    let range = json!({"startTimeInSeconds": 0, "endTimeInSeconds": 10});
    let rule = json!({"id": "r", "meterApiName": "m", "ingestionTimeRange": range});
    let query = json!({"meterApiName": "m", "timeGroupingInterval": "DAY", "timeRange": range});
    [
        (Operation::Meters, "POST", "/meters", meter()),
        (Operation::Usage, "POST", "/usage", query),
        (Operation::UsageEvents, "GET", "/usage/events", Value::Null),
        (Operation::FilteringRules, "POST", "/ingest-snapshot/custom-filtering-rules", rule),
        (Operation::Customers, "POST", "/customers", json!({"customerId": "t1", "customerName": "One"})),
    ]
}

fn meter() -> Value {
    json!({"meterApiName": "m", "label": "l", "meterType": "sum_of_all_usage"})
}

fn on_meters(faults: Faults) -> Sandbox {
    sandbox(Faults { operations: BTreeSet::from([Operation::Meters]), ..faults })
}

async fn create(sandbox: &Sandbox) -> Answer {
    api(sandbox, "POST", "/meters", meter()).await
}

async fn meters(sandbox: &Sandbox) -> usize {
    api(sandbox, "GET", "/meters", Value::Null).await.json().as_array().unwrap().len()
}

#[tokio::test]
async fn every_operation_checks_the_key() {
    let sandbox = sandbox(Faults::default());
    for (operation, method, path, body) in requests() {
        let with =
            async |headers: &[(&str, &str)]| call(&sandbox, method, path, headers, body.to_string()).await.refusal().0;
        assert_eq!([with(&[]).await, with(&[("x-api-key", "no")]).await], [401, 401], "{operation:?}");
        assert_eq!(with(&[("X-API-KEY", "sandbox-key")]).await, 200, "{operation:?}");
        assert_eq!(sandbox.stats().operations[&operation].by_status[&401], 2);
    }
    let revoked_keys = BTreeSet::from(["sandbox-key".to_owned()]);
    sandbox.set_faults(Faults { revoked_keys, ..Faults::default() }).unwrap();
    for (operation, method, path, body) in requests() {
        assert_eq!(api(&sandbox, method, path, body).await.refusal(), (401, "Unauthorized"));
        assert_eq!(sandbox.stats().operations[&operation].by_fault["revoked_keys"], 1);
    }
}

#[tokio::test]
async fn faults_hit_the_operations_they_name_and_no_other() {
    for (named, ..) in requests() {
        let operations = BTreeSet::from([named]);
        let sandbox = sandbox(Faults { operations, throttle: Trigger::rate(1.0), ..Faults::default() });
        for (operation, method, path, body) in requests() {
            let status = if operation == named { 429 } else { 200 };
            assert_eq!(api(&sandbox, method, path, body).await.status, status, "{named:?} {operation:?}");
        }
        assert_eq!(send(&sandbox, event("1")).await.status, 200);
        assert_eq!(sandbox.stats().operations[&named].by_fault["throttle"], 1);
        assert!(sandbox.stats().by_fault.is_empty());
    }
    let sandbox = sandbox(Faults { throttle: Trigger::rate(1.0), ..Faults::default() });
    for (_, method, path, body) in requests() {
        assert_eq!(api(&sandbox, method, path, body).await.status, 200);
    }
    assert_eq!(send(&sandbox, event("1")).await.status, 429);
}

#[tokio::test]
async fn faults_can_be_kept_to_a_method() {
    let methods = BTreeSet::from(["PUT".to_owned()]);
    let sandbox = on_meters(Faults { methods, fail_before: Trigger::next(1), ..Faults::default() });
    let created = create(&sandbox).await.json();
    assert_eq!(meters(&sandbox).await, 1);
    assert!(api(&sandbox, "PUT", "/meters", created.clone()).await.status.is_server_error());
    assert_eq!(api(&sandbox, "PUT", "/meters", created).await.status, 200);
}

#[tokio::test]
async fn faults_before_carry_nothing_out_and_faults_after_everything() {
    let one = Trigger::next(1);
    for (faults, status, carried_out) in [
        (Faults { throttle: one, ..Faults::default() }, 429, 0),
        (Faults { fail_before: one, fail_statuses: vec![503], ..Faults::default() }, 503, 0),
        (Faults { redirect: one, ..Faults::default() }, 302, 0),
        (Faults { html: one, ..Faults::default() }, 200, 0),
        (Faults { fail_after: one, fail_statuses: vec![502], ..Faults::default() }, 502, 1),
    ] {
        let sandbox = on_meters(faults);
        assert_eq!(create(&sandbox).await.status, status);
        assert_eq!(meters(&sandbox).await, carried_out, "{status}");
    }
    let sandbox = on_meters(Faults { throttle: one, retry_after: Some(Duration::from_secs(7)), ..Faults::default() });
    assert_eq!(create(&sandbox).await.header("retry-after"), "7");
    // Each endpoint has a patience of its own.
    send(&sandbox, event("1")).await;
    assert_eq!(sandbox.stats().early_requests, 0);
}

#[tokio::test(start_paused = true)]
async fn hangs_and_delays() {
    for (faults, carried_out) in [
        (Faults { hang_before: Trigger::next(1), ..Faults::default() }, 0),
        (Faults { hang_after: Trigger::next(1), ..Faults::default() }, 1),
    ] {
        let sandbox = on_meters(faults);
        timeout(Duration::from_secs(60), create(&sandbox)).await.unwrap_err();
        assert_eq!(sandbox.stats().operations[&Operation::Meters].abandoned, 1);
        assert_eq!(meters(&sandbox).await, carried_out);
    }
    let latency = Latency { min: Duration::from_secs(2), max: Duration::from_secs(2) };
    let sandbox = on_meters(Faults { slow: Trigger::next(1), latency, ..Faults::default() });
    let start = Instant::now();
    create(&sandbox).await.json();
    assert!(start.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn requests_that_faults_do_not_hit_leave_the_random_sequence_alone() {
    let statuses = async |between: bool| {
        let sandbox = sandbox(Faults { throttle: Trigger::rate(0.5), ..Faults::default() });
        let mut statuses = Vec::new();
        for n in 0..50 {
            if between {
                meters(&sandbox).await;
            }
            statuses.push(send(&sandbox, event(&n.to_string())).await.status);
        }
        statuses
    };
    assert_eq!(statuses(true).await, statuses(false).await);
}

#[tokio::test]
async fn operations_are_counted_apart_and_reset() {
    let sandbox = sandbox(Faults::default());
    for (_, method, path, body) in requests() {
        api(&sandbox, method, path, body).await;
    }
    create(&sandbox).await;
    meters(&sandbox).await;
    let stats = api(&sandbox, "GET", "/sandbox/stats", Value::Null).await.json();
    let counts = json!({"requests": 3, "by_method": {"GET": 1, "POST": 2}, "by_status": {"200": 2, "400": 1},
        "abandoned": 0, "by_fault": {}});
    assert_eq!(stats["operations"]["meters"], counts);
    assert_eq!(stats["operations"].as_object().unwrap().len(), 5);
    assert_eq!((&stats["requests"], &stats["by_status"]), (&json!(0), &json!({})));

    sandbox.reset();
    assert!(sandbox.stats().operations.is_empty());
    assert_eq!(meters(&sandbox).await, 0);
    assert_eq!(api(&sandbox, "GET", "/customers/t1", Value::Null).await.body, "");
    assert_eq!(api(&sandbox, "GET", "/sandbox/filtering-rules", Value::Null).await.json(), json!([]));
}
