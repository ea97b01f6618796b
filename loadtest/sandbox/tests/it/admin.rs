use amberflo_sandbox::{Faults, LedgerSnapshot, Sandbox, SandboxConfig, StoredRecord, Trigger};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{Answer, batch, call, event, sandbox, send};

async fn get(sandbox: &Sandbox, path: &str) -> Value {
    let answer = call(sandbox, "GET", path, &[], "").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

async fn put_faults(sandbox: &Sandbox, faults: &Value) -> Answer {
    call(sandbox, "PUT", "/sandbox/faults", &[], faults.to_string()).await
}

#[tokio::test]
async fn ledger_is_filtered_and_events_are_found() {
    let sandbox = sandbox(Faults::default());
    send(&sandbox, batch(&["1", "2", "2"])).await;
    send(&sandbox, event("3").replace("\"c\"", "\"d\"")).await;
    let ledger = get(&sandbox, "/sandbox/ledger").await;
    assert_eq!((&ledger["events"], ledger["lines"].as_array().unwrap().len()), (&json!(3), 2));
    let ledger = get(&sandbox, "/sandbox/ledger?customerId=c&meterApiName=m").await;
    let total = json!({"integers": 4, "decimals": 0.0});
    let line = json!({"customer_id": "c", "meter_api_name": "m", "events": 2, "total": total, "absorbed_copies": 1});
    assert_eq!(ledger["lines"], json!([line]));
    let events = get(&sandbox, "/sandbox/events?uniqueId=2").await;
    assert_eq!((&events[0]["copies"], &events[0]["dimensions"]["region"]), (&json!(1), &json!("eu")));
    assert_eq!(get(&sandbox, "/sandbox/events?customerId=d").await.as_array().unwrap().len(), 1);
    let answer = call(&sandbox, "GET", "/sandbox/ledger?customer=c", &[], "").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn events_need_kept_records() {
    let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    let answer = call(&sandbox, "GET", "/sandbox/events", &[], "").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.body.contains("--keep-records"));
}

#[tokio::test]
async fn records_are_paged_in_order_of_acceptance_and_can_be_read_back() {
    let sandbox = sandbox(Faults::default());
    send(&sandbox, batch(&["1", "2", "2", "3"])).await;
    let page = get(&sandbox, "/sandbox/records?limit=2").await;
    assert_eq!((&page["total"], &page["next_offset"]), (&json!(3), &json!(2)));
    assert!(page["started_at_ms"].as_f64().unwrap() > 1e12, "{page}");
    let read = |page: &Value| serde_json::from_value::<Vec<StoredRecord>>(page["items"].clone()).unwrap();
    let mut records = read(&page);
    records.extend(read(&get(&sandbox, "/sandbox/records?limit=2&offset=2").await));
    let ids: Vec<_> = records.iter().map(|record| record.unique_id.as_deref().unwrap()).collect();
    assert_eq!((ids, records[1].copies), (vec!["1", "2", "3"], 1));
    assert_eq!(records[0].raw, sandbox.records()[0].raw);
    let ledger: LedgerSnapshot = serde_json::from_value(get(&sandbox, "/sandbox/ledger").await).unwrap();
    assert_eq!(ledger, sandbox.ledger());
    let none = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    assert_eq!(call(&none, "GET", "/sandbox/records", &[], "").await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn double_billed_is_paged() {
    let sandbox = sandbox(Faults::default());
    for unique_id in ["1", "2", "3"] {
        send(&sandbox, event(unique_id)).await;
        send(&sandbox, event(unique_id).replace("eu", "us")).await;
    }
    let page = get(&sandbox, "/sandbox/double-billed?limit=2").await;
    assert_eq!((&page["total"], &page["next_offset"]), (&json!(3), &json!(2)));
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let page = get(&sandbox, "/sandbox/double-billed?limit=2&offset=2").await;
    assert_eq!((&page["next_offset"], &page["items"][0]["unique_id"]), (&Value::Null, &json!("3")));
}

#[tokio::test]
async fn faults_are_replaced_and_cleared() {
    let sandbox = sandbox(Faults { html: Trigger::rate(1.0), ..Faults::default() });
    let answer = put_faults(&sandbox, &json!({"throttle": {"count": 1}, "hang_for": "90s"})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!((sandbox.faults().throttle, sandbox.faults().html), (Trigger::next(1), Trigger::NEVER));
    assert_eq!(get(&sandbox, "/sandbox/faults").await["hang_for"], "1m 30s");
    assert_eq!(send(&sandbox, event("1")).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(call(&sandbox, "DELETE", "/sandbox/faults", &[], "").await.status, StatusCode::OK);
    assert_eq!(sandbox.faults(), Faults::default());
}

#[tokio::test]
async fn wrong_faults_are_named_and_change_nothing() {
    let set = Faults { html: Trigger::rate(0.5), ..Faults::default() };
    let sandbox = sandbox(set.clone());
    for (faults, says) in [
        (json!({"throtle": {}}), vec!["throtle", "throttle"]),
        (json!({"throttle": {"rat": 1}}), vec!["throttle", "rat", "rate"]),
        (json!({"throttle": {"rate": 2}}), vec!["throttle.rate", "2", "0 to 1"]),
        (json!({"throttle": {"rate": "high"}}), vec!["throttle.rate", "high", "f64"]),
        (json!({"hang_for": "soon"}), vec!["hang_for", "soon", "250ms"]),
        (json!({"requests_per_second": 0}), vec!["requests_per_second", "0", "nonzero"]),
        (json!({"retry_after_format": "iso"}), vec!["retry_after_format", "iso", "http-date"]),
        (json!({"poison": [{"status": 200, "customer_ids": ["c"]}]}), vec!["poison[0].status", "200", "400 to 599"]),
    ] {
        let answer = put_faults(&sandbox, &faults).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{faults}");
        assert!(says.iter().all(|text| answer.body.contains(text)), "{faults}: {}", answer.body);
        assert_eq!(sandbox.faults(), set);
    }
}

#[tokio::test]
async fn stats_requests_reset_and_health_answer() {
    let sandbox = sandbox(Faults::default());
    send(&sandbox, event("1")).await;
    send(&sandbox, "x").await;
    let stats = get(&sandbox, "/sandbox/stats").await;
    assert_eq!((&stats["requests"], &stats["by_status"]), (&json!(2), &json!({"200": 1, "400": 1})));
    let requests = get(&sandbox, "/sandbox/requests?limit=1").await;
    assert_eq!((&requests["total"], &requests["items"][0]["status"]), (&json!(2), &json!(400)));
    assert!(requests["items"][0]["took_ms"].is_number());
    assert_eq!(call(&sandbox, "POST", "/sandbox/reset", &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(get(&sandbox, "/sandbox/stats").await["requests"], 0);
    assert_eq!(call(&sandbox, "GET", "/health", &[], "").await.status, StatusCode::OK);
}
