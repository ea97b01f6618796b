use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use serde_json::{Value, json};

use crate::{api, sandbox, send};

async fn ingest(sandbox: &Sandbox, unique_id: &str, customer: &str, second: i64, dimensions: Value) {
    let event = json!({"customerId": customer, "meterApiName": "m", "meterTimeInMillis": second * 1000 + 1,
        "meterValue": 2, "uniqueId": unique_id, "dimensions": dimensions});
    assert_eq!(send(sandbox, event.to_string()).await.status, 200);
}

async fn get(sandbox: &Sandbox, query: &str) -> Value {
    api(sandbox, "GET", &format!("/usage/events{query}"), Value::Null).await.json()
}

/// The first column of each row.
fn unique_ids(page: &Value) -> Vec<&str> {
    page["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect()
}

async fn five_events() -> Sandbox {
    let sandbox = sandbox(Faults::default());
    for (at, unique_id) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let customer = if at % 2 == 0 { "even" } else { "odd" };
        ingest(&sandbox, unique_id, customer, at as i64, json!({})).await;
    }
    sandbox
}

#[tokio::test]
async fn rows_are_strings_and_an_absent_dimension_is_null() {
    let sandbox = sandbox(Faults::default());
    ingest(&sandbox, "a", "c", 1, json!({"zone": "z"})).await;
    let event = r#"{"customerId":"d","meterTimeInMillis":2000,"values":{"n":12345678901234567890123},"dimensions":{"area":"x"}}"#;
    send(&sandbox, event).await;
    let page = get(&sandbox, "?isAscending=true&dimensions=zone").await;
    let columns = ["uniqueId", "customerId", "meterApiName", "meterValue", "meterTimeInMillis", "area", "zone"];
    assert_eq!(page["columns"], json!(columns));
    let rows = json!([
        ["a", "c", "m", "2", "1001", null, "z"],
        [null, "d", "n", "12345678901234567890123", "2000", "x", null],
    ]);
    assert_eq!((&page["rows"], &page["nextPageToken"]), (&rows, &Value::Null));
    assert_eq!((&page["query"]["isAscending"], &page["query"]["customerId"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn events_are_selected_and_ordered_by_their_time() {
    let sandbox = five_events().await;
    for (query, expected) in [
        ("", "edcba"),
        ("?isAscending=true", "abcde"),
        ("?customerId=odd", "db"),
        ("?meterApiName=m&startTimeInSeconds=1&endTimeInSeconds=3&isAscending=true", "bc"),
        ("?meterApiName=other", ""),
        ("?limit=2", "ed"),
    ] {
        assert_eq!(unique_ids(&get(&sandbox, query).await).concat(), expected, "{query}");
    }
}

#[tokio::test]
async fn pages_follow_each_other_whatever_comes_in_between() {
    let sandbox = five_events().await;
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let page = get(&sandbox, &format!("?limit=4&pageSize=3{token}")).await;
        pages.push(unique_ids(&page).concat());
        let Some(next) = page["nextPageToken"].as_str() else { break };
        token = format!("&nextPageToken={next}");
        ingest(&sandbox, "late", "even", 99, json!({})).await;
    }
    assert_eq!(pages, ["edc", "b"]);
    assert_eq!(unique_ids(&get(&sandbox, "?pageSize=1").await), ["late"]);
}

#[tokio::test]
async fn a_token_is_good_for_its_own_query_only() {
    let sandbox = five_events().await;
    let page = get(&sandbox, "?pageSize=1&customerId=even").await;
    let token = page["nextPageToken"].as_str().unwrap();
    assert_eq!(unique_ids(&get(&sandbox, &format!("?customerId=even&nextPageToken={token}")).await), ["c", "a"]);
    for wrong in [
        format!("?nextPageToken={token}"),
        format!("?customerId=odd&nextPageToken={token}"),
        format!("?customerId=even&nextPageToken={token}0x"),
        "?customerId=even&nextPageToken=1".to_owned(),
        "?nextPageToken=".to_owned(),
    ] {
        let answer = api(&sandbox, "GET", &format!("/usage/events{wrong}"), Value::Null).await;
        assert_eq!(answer.refusal(), (400, "Invalid nextPageToken"), "{wrong}");
    }
}

#[tokio::test]
async fn wrong_parameters_are_refused() {
    let sandbox = five_events().await;
    for (query, says) in [
        ("tenantId=c", "unknown field `tenantId`"),
        ("startTimeInSeconds=soon", "startTimeInSeconds"),
        ("pageSize=0", "pageSize"),
        ("pageSize=1001", "pageSize is 1001, at most 1000"),
        ("isAscending=yes", "isAscending"),
    ] {
        let answer = api(&sandbox, "GET", &format!("/usage/events?{query}"), Value::Null).await;
        assert!(answer.status == 400 && answer.body.contains(says), "{query}: {}", answer.body);
    }
}

#[tokio::test]
async fn events_need_kept_records() {
    let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    let answer = api(&sandbox, "GET", "/usage/events", Value::Null).await;
    assert_eq!(answer.refusal(), (409, "this sandbox keeps no records: start it with --keep-records"));
}
