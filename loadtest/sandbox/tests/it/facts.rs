//! What the sandbox takes for true of Amberflo, turned round. What each fact changes for a client is tested by
//! `loadtest verify-amberflo`, whose probes depend on them one by one.

use std::time::Duration;

use amberflo_sandbox::{Facts, Faults, Sandbox};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::advance;

use crate::{Answer, api, batch, call, event, sandbox, send};

async fn facts(sandbox: &Sandbox, method: &str, body: &str) -> Answer {
    call(sandbox, method, "/sandbox/facts", &[], body.to_owned()).await
}

fn with(facts: Facts) -> Sandbox {
    let sandbox = sandbox(Faults::default());
    sandbox.set_facts(facts).unwrap();
    sandbox
}

async fn usage(sandbox: &Sandbox) -> Value {
    let range = json!({"startTimeInSeconds": 0, "endTimeInSeconds": 86_400});
    let query = json!({"meterApiName": "m", "timeGroupingInterval": "DAY", "timeRange": range});
    let usage = api(sandbox, "POST", "/usage", query).await.json();
    usage["clientMeters"][0]["groupValue"].clone()
}

#[tokio::test]
async fn facts_are_replaced_kept_over_a_reset_and_cleared() {
    let sandbox = sandbox(Faults::default());
    assert_eq!(facts(&sandbox, "GET", "").await.json(), serde_json::to_value(Facts::default()).unwrap());
    let answer = facts(&sandbox, "PUT", r#"{"absorbs_copies": false, "usage_visible_after": "2s"}"#).await.json();
    assert_eq!((&answer["usage_visible_after"], &answer["takes_gzip"]), (&json!("2s"), &json!(true)));
    sandbox.reset();
    assert!(!sandbox.facts().absorbs_copies);
    for (wrong, expected) in
        [(r#"{"absorbs": true}"#, "absorbs"), (r#"{"bad_key_status": 200}"#, "bad_key_status is 200")]
    {
        let answer = facts(&sandbox, "PUT", wrong).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.body.contains(expected), "{}", answer.body);
    }
    assert!(!sandbox.facts().absorbs_copies, "as before");
    facts(&sandbox, "DELETE", "").await.json();
    assert_eq!(sandbox.facts(), Facts::default());
}

#[tokio::test(start_paused = true)]
async fn copies_are_remembered_for_a_time() {
    let sandbox = with(Facts { remembers_copies_for: Some(Duration::from_secs(60)), ..Facts::default() });
    for (later, billed) in [(0, 1), (59, 1), (1, 2), (59, 2)] {
        advance(Duration::from_secs(later)).await;
        send(&sandbox, event("1")).await;
        assert_eq!(sandbox.ledger().events, billed, "{later}");
    }
}

#[tokio::test(start_paused = true)]
async fn usage_shows_late() {
    let sandbox = with(Facts { usage_visible_after: Duration::from_secs(5), ..Facts::default() });
    send(&sandbox, event("1")).await;
    advance(Duration::from_secs(4)).await;
    assert_eq!(usage(&sandbox).await, Value::Null);
    assert_eq!(sandbox.ledger().events, 1, "billed all the same");
    advance(Duration::from_secs(1)).await;
    assert_eq!(usage(&sandbox).await, 2.0);
}

#[tokio::test]
async fn an_event_is_cancelled_by_one_like_it() {
    let cancelling = event("1").replace(r#""region""#, r#""aflo.cancel_previous_resource_event":"true","region""#);
    for (cancels, left) in [(true, 2.0), (false, 6.0)] {
        let sandbox = with(Facts { cancels_previous_events: cancels, ..Facts::default() });
        send(&sandbox, batch(&["1", "2"])).await;
        send(&sandbox, cancelling.clone()).await;
        assert_eq!(usage(&sandbox).await, left);
    }
}

#[tokio::test]
async fn the_valid_records_of_a_request_can_be_taken_alone() {
    let sandbox = with(Facts { refuses_whole_requests: false, ..Facts::default() });
    let answer = send(&sandbox, format!("[{},{{}},{}]", event("1"), event("2"))).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "2 records were ingested"));
    assert_eq!(send(&sandbox, "[{}]").await.status, StatusCode::BAD_REQUEST, "nothing of it is valid");
    assert_eq!(sandbox.ledger().events, 2);
}

#[tokio::test]
async fn copies_within_a_request_can_count() {
    let sandbox = with(Facts { absorbs_copies_within_a_request: false, ..Facts::default() });
    send(&sandbox, batch(&["1", "1"])).await;
    send(&sandbox, batch(&["1"])).await;
    let ledger = sandbox.ledger();
    assert_eq!((ledger.events, ledger.absorbed_copies), (2, 1));
}
