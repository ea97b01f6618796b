//! The routes of usage and of raw events.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, answer};
use crate::meters::create;

/// Wall time in seconds since the epoch.
pub fn now(api: &Api) -> i64 {
    api.app.clock.now() / 1000
}

/// Ingests an event straight into Amberflo.
pub async fn ingest(api: &Api, record: Value) {
    let url = format!("{}/ingest", api.app.settings.amberflo.amberflo_base_url);
    let request = api.client.post(url).header("x-api-key", "sandbox-key").body(json!([record]).to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{}", response.text().await.unwrap());
}

/// An event of the meter `m` this long ago.
pub fn event(api: &Api, id: &str, tenant: &str, value: f64, seconds_ago: i64, region: &str) -> Value {
    json!({
        "uniqueId": id, "customerId": tenant, "meterApiName": "m", "meterValue": value,
        "meterTimeInMillis": (now(api) - seconds_ago) * 1000, "dimensions": {"region": region}
    })
}

/// An API with some events of the meter `m`, whose id is answered too.
async fn with_events() -> (Api, String) {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    for (unique, tenant, value, seconds_ago, region) in [
        ("1", "t1", 1.0, 0, "eu"),
        ("2", "t1", 2.0, 3_600, "us"),
        ("3", "t2", 4.0, 7_200, "eu"),
        ("4", "t2", 8.0, 10_800, "ap"),
        ("old", "t1", 16.0, 26 * 3_600, "eu"),
    ] {
        ingest(&api, event(&api, unique, tenant, value, seconds_ago, region)).await;
    }
    (api, id)
}

/// The groups' values.
fn totals(usage: &Value) -> Vec<f64> {
    let groups = usage["data"]["clientMeters"].as_array().unwrap_or_else(|| panic!("{usage}"));
    groups.iter().map(|group| group["groupValue"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn usage_is_that_of_the_last_day_unless_the_query_says_otherwise() {
    let (api, id) = with_events().await;
    let two_days = now(&api) - 48 * 3_600;
    let an_hour = now(&api) - 3_660;
    for (query, total) in [
        (String::new(), 15.0),
        (format!("?startTimeInSeconds={two_days}"), 31.0),
        (format!("?endTimeInSeconds={an_hour}"), 12.0),
        (format!("?startTimeInSeconds={two_days}&endTimeInSeconds={an_hour}"), 28.0),
        ("?tenantId=t1".to_owned(), 3.0),
        ("?dimension.region=eu".to_owned(), 5.0),
        ("?dimension.region=eu&dimension.region=us".to_owned(), 7.0),
        ("?dimension.region=eu&tenantId=t2".to_owned(), 4.0),
        ("?aggregation=COUNT".to_owned(), 4.0),
        ("?aggregation=max".to_owned(), 8.0),
        ("?timeGroupingInterval=HOUR".to_owned(), 15.0),
        ("?timeGroupingInterval=month".to_owned(), 15.0),
        ("?meterApiName=m".to_owned(), 15.0),
    ] {
        let (status, usage) = api.get(&format!("/usage/{id}{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {usage}");
        assert_eq!(totals(&usage), [total], "{query}: {usage}");
    }
}

#[tokio::test]
async fn usage_is_grouped() {
    let (api, id) = with_events().await;
    let (_, usage) = api.get(&format!("/usage/{id}?groupBy=customerId")).await;
    assert_eq!(totals(&usage), [3.0, 12.0]);
    assert_eq!(usage["data"]["clientMeters"][1]["group"]["groupInfo"], json!({"customerId": "t2"}));
    let (_, usage) = api.get(&format!("/usage/{id}?groupBy=customerId&groupBy=region&tenantId=t2")).await;
    assert_eq!(totals(&usage), [8.0, 4.0], "{usage}");
    let (_, usage) = api.get(&format!("/usage/{id}?dimension.region=mars")).await;
    assert_eq!(totals(&usage), [0.0; 0]);
}

/// Older SBT has the route `GET /usage/meterId`, letter by letter.
#[tokio::test]
async fn with_a_name_the_id_is_not_looked_up() {
    let (api, _) = with_events().await;
    for path in ["/usage/meterId?meterApiName=m", "/usage/meterId/events?meterApiName=m"] {
        let (status, usage) = api.get(path).await;
        assert_eq!(status, StatusCode::OK, "{usage}");
    }
    for path in ["/usage/meterId", "/usage/meterId/events"] {
        let (status, problem) = api.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
    }
}

#[tokio::test]
async fn a_query_that_is_not_well_formed_is_refused() {
    let (api, id) = with_events().await;
    let asked = api.sandbox.stats().requests;
    let of_both = [
        "startTimeInSeconds=1724630400000",
        "endTimeInSeconds=1724630400000",
        "startTimeInSeconds=10&endTimeInSeconds=10",
        "startTimeInSeconds=11&endTimeInSeconds=10",
        "startTimeInSeconds=9999999999",
        "startTimeInSeconds=-1",
        "startTimeInSeconds=1.5",
        "startTimeInSeconds=yesterday",
        "startTimeInSeconds=",
        "startTimeInSeconds=1&startTimeInSeconds=2",
        "endTimeInSeconds=0",
        "meterApiName=",
        "meterApiName=m&meterApiName=n",
        "tenantId=",
        "tenantId=t1&tenantId=t2",
        "tenantID=t1",
    ];
    let of_usage = [
        "timeGroupingInterval=YEAR",
        "aggregation=AVG",
        "groupBy=",
        "groupby=region",
        "dimension.=eu",
        "dimension.region=",
        "dimension.customerId=t1",
        "dimension=eu",
        "limit=1",
    ];
    let of_events = [
        "isAscending=yes",
        "limit=0",
        "limit=100001",
        "pageSize=0",
        "pageSize=1001",
        "pageSize=ten",
        "groupBy=region",
        "nextPageToken=x",
        "nextPageToken=x&startTimeInSeconds=1",
    ];
    let usage = of_both.iter().chain(&of_usage).map(|query| format!("/usage/{id}?{query}"));
    let events = of_both.iter().chain(&of_events).map(|query| format!("/usage/{id}/events?{query}"));
    for path in usage.chain(events) {
        let (status, problem) = api.get(&path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
    }
    assert_eq!(api.sandbox.stats().requests, asked, "Amberflo was not asked");

    let (_, problem) = api.get(&format!("/usage/{id}?startTimeInSeconds=1724630400000")).await;
    assert!(problem["detail"].as_str().unwrap().contains("milliseconds"), "{problem}");
}

#[tokio::test]
async fn an_event_of_this_second_is_part_of_the_default_range() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    ingest(&api, event(&api, "now", "t1", 1.0, 0, "eu")).await;
    let (_, usage) = api.get(&format!("/usage/{id}")).await;
    assert_eq!(totals(&usage), [1.0], "{usage}");
}

/// The values in the first column.
fn ids(page: &Value) -> Vec<&str> {
    let rows = page["data"]["rows"].as_array().unwrap_or_else(|| panic!("{page}"));
    rows.iter().map(|row| row[0].as_str().unwrap()).collect()
}

#[tokio::test]
async fn raw_events_are_those_of_a_tenant_and_a_range() {
    let (api, id) = with_events().await;
    let two_days = now(&api) - 48 * 3_600;
    for (query, expected) in [
        (String::new(), &["1", "2", "3", "4"][..]),
        ("?isAscending=true".to_owned(), &["4", "3", "2", "1"]),
        ("?tenantId=t2".to_owned(), &["3", "4"]),
        ("?limit=1".to_owned(), &["1"]),
        (format!("?tenantId=t1&startTimeInSeconds={two_days}"), &["1", "2", "old"]),
    ] {
        let (status, page) = api.get(&format!("/usage/{id}/events{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {page}");
        assert_eq!(ids(&page), expected, "{query}");
    }
}

#[tokio::test]
async fn raw_events_come_in_pages() {
    let (api, id) = with_events().await;
    let (_, first) = api.get(&format!("/usage/{id}/events?pageSize=3&tenantId=t1")).await;
    assert_eq!(ids(&first), ["1", "2"]);
    assert_eq!(first["data"]["nextPageToken"], Value::Null);

    let (_, first) = api.get(&format!("/usage/{id}/events?pageSize=3")).await;
    assert_eq!(ids(&first), ["1", "2", "3"]);
    // As a caller does it: the parameters of the page before are in its answer.
    let (query, token) = (&first["data"]["query"], first["data"]["nextPageToken"].as_str().unwrap());
    let (start, end) = (&query["startTimeInSeconds"], &query["endTimeInSeconds"]);
    let path = format!(
        "/usage/{id}/events?pageSize=3&startTimeInSeconds={start}&endTimeInSeconds={end}&nextPageToken={token}"
    );
    let (status, second) = api.get(&path).await;
    assert_eq!((status, ids(&second)), (StatusCode::OK, vec!["4"]), "{second}");

    let (status, problem) = api.get(&format!("{path}x")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "Amberflo's own answer: {problem}");
}

#[tokio::test]
async fn hostile_values_reach_amberflo_as_values() {
    let (api, id) = with_events().await;
    let hostile = "x%26customerId%3Dt1%22%7D%2F..%0A%C3%A4";
    for path in [
        format!("/usage/{id}?tenantId={hostile}"),
        format!("/usage/{id}?dimension.region={hostile}"),
        format!("/usage/{id}?meterApiName={hostile}"),
        format!("/usage/{id}/events?tenantId={hostile}"),
        format!("/usage/{id}/events?meterApiName={hostile}"),
    ] {
        let (status, body) = answer(api.request(Method::GET, &path)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        let found = if path.contains("events") { &body["data"]["rows"] } else { &body["data"]["clientMeters"] };
        assert_eq!(found, &json!([]), "{path}");
    }
}
