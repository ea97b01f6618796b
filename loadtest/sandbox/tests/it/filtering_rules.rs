use std::time::{Duration, UNIX_EPOCH};

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use serde_json::{Value, json};
use tokio::time::advance;

use crate::{api, sandbox, send};

const START: u64 = 1_700_000_000;
const PATH: &str = "/ingest-snapshot/custom-filtering-rules";

/// A rule over seconds after [`START`], with these properties on top.
fn rule(seconds: std::ops::Range<u64>, properties: Value) -> Value {
    let range = json!({"startTimeInSeconds": START + seconds.start, "endTimeInSeconds": START + seconds.end});
    let mut rule = json!({"id": "r", "meterApiName": "m", "ingestionTimeRange": range});
    rule.as_object_mut().unwrap().extend(properties.as_object().unwrap().clone());
    rule
}

/// One event of value 1 ingested at each of these seconds after [`START`], all of the same far earlier time.
async fn ingested_at(seconds: &[u64]) -> Sandbox {
    let started_at = Some(UNIX_EPOCH + Duration::from_secs(START));
    let sandbox = Sandbox::new(SandboxConfig { started_at, ..SandboxConfig::default() });
    let mut now = 0;
    for second in seconds {
        advance(Duration::from_secs(second - now)).await;
        now = *second;
        let event = json!({"customerId": "c", "meterApiName": "m", "meterTimeInMillis": 5000, "meterValue": 1,
            "uniqueId": second.to_string()});
        send(&sandbox, event.to_string()).await;
    }
    sandbox
}

/// What the ids of the events left are, having checked that `/usage` counts as many.
async fn left(sandbox: &Sandbox) -> Vec<String> {
    let events = api(sandbox, "GET", "/usage/events?isAscending=true", Value::Null).await.json();
    let ids: Vec<_> =
        events["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap().to_owned()).collect();
    let query = json!({"meterApiName": "m", "timeGroupingInterval": "DAY",
        "timeRange": {"startTimeInSeconds": 0, "endTimeInSeconds": 10}});
    let usage = api(sandbox, "POST", "/usage", query).await.json();
    assert_eq!(usage["clientMeters"][0]["groupValue"].as_f64().unwrap_or_default(), ids.len() as f64);
    ids
}

#[tokio::test(start_paused = true)]
async fn events_ingested_in_the_range_vanish_but_the_ledger_stays() {
    let sandbox = ingested_at(&[9, 10, 19, 20]).await;
    assert_eq!(left(&sandbox).await.len(), 4);
    // The time of the events themselves is of no account.
    let sent = rule(10..20, json!({"type": "by_property_filter_out", "propertyFilter": {"any": "thing"}}));
    assert_eq!(api(&sandbox, "POST", PATH, sent.clone()).await.json(), sent);
    assert_eq!(left(&sandbox).await, ["9", "20"]);
    assert_eq!(sandbox.ledger().events, 4);
    let shown = api(&sandbox, "GET", "/sandbox/filtering-rules", Value::Null).await.json();
    assert_eq!(shown, json!([sent]));
}

#[tokio::test(start_paused = true)]
async fn a_rule_is_replaced_by_its_id_and_is_for_its_own_meter() {
    let sandbox = ingested_at(&[1, 2, 3]).await;
    let post = async |rule| api(&sandbox, "POST", PATH, rule).await.json();
    post(rule(1..3, json!({}))).await;
    assert_eq!(left(&sandbox).await, ["3"]);
    post(rule(1..2, json!({}))).await;
    assert_eq!(left(&sandbox).await, ["2", "3"]);
    post(rule(3..4, json!({"id": "other"}))).await;
    assert_eq!(left(&sandbox).await, ["2"]);
    post(rule(0..9, json!({"meterApiName": "n"}))).await;
    assert_eq!(left(&sandbox).await, ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn events_sent_again_later_count() {
    let sandbox = ingested_at(&[1]).await;
    api(&sandbox, "POST", PATH, rule(0..2, json!({}))).await.json();
    assert!(left(&sandbox).await.is_empty());
    advance(Duration::from_secs(9)).await;
    let event = |unique_id| {
        json!({"customerId": "c", "meterApiName": "m", "meterTimeInMillis": 5000, "meterValue": 1,
        "uniqueId": unique_id})
    };
    // Under its old id it is a copy of the cancelled one.
    send(&sandbox, event("1").to_string()).await;
    assert!(left(&sandbox).await.is_empty());
    send(&sandbox, event("1-corrected").to_string()).await;
    assert_eq!(left(&sandbox).await, ["1-corrected"]);
}

#[tokio::test]
async fn a_rule_that_is_not_right_is_refused() {
    let sandbox = sandbox(Faults::default());
    for (properties, says) in [
        (json!({"id": null}), "id is missing"),
        (json!({"meterApiName": ""}), "meterApiName is not a non-empty string"),
        (json!({"ingestionTimeRange": {"startTimeInSeconds": 1}}), "missing field `endTimeInSeconds`"),
        (json!({"ingestionTimeRange": {"startTimeInSeconds": "1", "endTimeInSeconds": 2}}), "string \"1\""),
        (json!({"ingestionTimeRange": {"startTimeInSeconds": 2, "endTimeInSeconds": 2}}), "ends before it starts"),
        (json!({"type": "by_property_filter_in"}), "Invalid filtering rule type"),
    ] {
        let answer = api(&sandbox, "POST", PATH, rule(0..1, properties.clone())).await;
        assert!(answer.status == 400 && answer.body.contains(says), "{properties}: {}", answer.body);
    }
    let answer = api(&sandbox, "POST", PATH, json!({"id": "r", "meterApiName": "m"})).await;
    assert_eq!(answer.refusal(), (400, "ingestionTimeRange is missing"));
    assert_eq!(api(&sandbox, "GET", "/sandbox/filtering-rules", Value::Null).await.json(), json!([]));
}
