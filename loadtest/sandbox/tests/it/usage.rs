use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use serde_json::{Value, json};

use crate::{api, sandbox, send};

/// 2024-08-26T00:00:00Z, a Monday.
const MONDAY: i64 = 1_724_630_400;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

async fn ingest(sandbox: &Sandbox, customer: &str, region: &str, second: i64, value: Value) {
    let unique_id = sandbox.ledger().events.to_string();
    let event = json!({"customerId": customer, "meterApiName": "m", "meterTimeInMillis": second * 1000 + 999,
        "meterValue": value, "uniqueId": unique_id, "dimensions": {"region": region}});
    assert_eq!(send(sandbox, event.to_string()).await.status, 200);
}

/// Usage of `m` by day over two days, with these properties on top.
fn query(properties: Value) -> Value {
    let range = json!({"startTimeInSeconds": MONDAY, "endTimeInSeconds": MONDAY + 2 * DAY});
    let mut query = json!({"meterApiName": "m", "timeGroupingInterval": "DAY", "timeRange": range});
    query.as_object_mut().unwrap().extend(properties.as_object().unwrap().clone());
    query
}

async fn usage(sandbox: &Sandbox, properties: Value) -> Value {
    api(sandbox, "POST", "/usage", query(properties)).await.json()
}

/// Group, value of the group and values of its intervals, of each group.
fn groups(usage: &Value) -> Vec<(Value, f64, Vec<f64>)> {
    let group = |meter: &Value| {
        let values = meter["values"].as_array().unwrap().iter().map(|value| value["value"].as_f64().unwrap()).collect();
        (meter["group"]["groupInfo"].clone(), meter["groupValue"].as_f64().unwrap(), values)
    };
    usage["clientMeters"].as_array().unwrap().iter().map(group).collect()
}

async fn four_events() -> Sandbox {
    let sandbox = sandbox(Faults::default());
    ingest(&sandbox, "c", "eu", MONDAY, json!(5)).await;
    ingest(&sandbox, "c", "us", MONDAY + DAY, json!(2)).await;
    ingest(&sandbox, "d", "eu", MONDAY + DAY - 1, json!(1.5)).await;
    ingest(&sandbox, "d", "eu", MONDAY + 2 * DAY - 1, json!(4)).await;
    sandbox
}

#[tokio::test]
async fn sums_are_by_the_time_of_the_event_with_gaps_filled() {
    let sandbox = four_events().await;
    ingest(&sandbox, "c", "eu", MONDAY - 1, json!(100)).await;
    ingest(&sandbox, "c", "eu", MONDAY + 2 * DAY, json!(100)).await;
    let answer = usage(&sandbox, json!({})).await;
    assert_eq!(answer["secondsSinceEpochIntervals"], json!([MONDAY, MONDAY + DAY]));
    let values = json!([
        {"percentageFromPrevious": 0.0, "value": 6.5, "secondsSinceEpochUtc": MONDAY},
        {"percentageFromPrevious": (6.0 - 6.5) / 6.5 * 100.0, "value": 6.0, "secondsSinceEpochUtc": MONDAY + DAY},
    ]);
    assert_eq!(answer["clientMeters"], json!([{"group": {"groupInfo": {}}, "groupValue": 12.5, "values": values}]));
    let range = json!({"startTimeInSeconds": MONDAY, "endTimeInSeconds": MONDAY + 2 * DAY});
    let metadata = json!({"account": null, "meterApiName": "m", "aggregation": "SUM", "timeGroupingInterval": "DAY",
        "timeRange": range});
    assert_eq!(answer["metadata"], metadata);
    let other = usage(&sandbox, json!({"meterApiName": "nothing"})).await;
    assert_eq!(other["clientMeters"], json!([]));
}

#[tokio::test]
async fn a_copy_counts_once() {
    let sandbox = sandbox(Faults::default());
    let event = json!({"customerId": "c", "meterApiName": "m", "meterTimeInMillis": MONDAY * 1000, "meterValue": 3,
        "uniqueId": "u"});
    send(&sandbox, event.to_string()).await;
    send(&sandbox, event.to_string()).await;
    assert_eq!(groups(&usage(&sandbox, json!({})).await), [(json!({}), 3.0, vec![3.0, 0.0])]);
}

#[tokio::test]
async fn groups_filters_and_aggregations() {
    let sandbox = four_events().await;
    let by_customer = json!({"groupBy": ["customerId"]});
    let expected =
        [(json!({"customerId": "c"}), 7.0, vec![5.0, 2.0]), (json!({"customerId": "d"}), 5.5, vec![1.5, 4.0])];
    assert_eq!(groups(&usage(&sandbox, by_customer).await), expected);
    let by_both = groups(&usage(&sandbox, json!({"groupBy": ["region", "customerId"]})).await);
    assert_eq!(by_both.len(), 3);
    assert_eq!(by_both[2], (json!({"customerId": "c", "region": "us"}), 2.0, vec![0.0, 2.0]));
    let absent = groups(&usage(&sandbox, json!({"groupBy": ["zone"]})).await);
    assert_eq!(absent, [(json!({"zone": ""}), 12.5, vec![6.5, 6.0])]);

    let filtered = async |filter| groups(&usage(&sandbox, json!({"filter": filter})).await);
    assert_eq!(filtered(json!({"customerId": ["d"]})).await[0].1, 5.5);
    assert_eq!(filtered(json!({"customerId": ["c", "d"], "region": ["eu"]})).await[0].1, 10.5);
    assert_eq!(filtered(json!({"zone": ["eu"]})).await, []);

    for (aggregation, whole, values) in
        [("COUNT", 4.0, [2.0, 2.0]), ("min", 1.5, [1.5, 2.0]), ("MAX", 5.0, [5.0, 4.0]), ("Sum", 12.5, [6.5, 6.0])]
    {
        let found = groups(&usage(&sandbox, json!({"aggregation": aggregation})).await);
        assert_eq!(found, [(json!({}), whole, values.to_vec())], "{aggregation}");
    }
}

#[tokio::test]
async fn take_keeps_the_greatest_or_the_least() {
    let sandbox = four_events().await;
    let names = async |take| {
        let answer = usage(&sandbox, json!({"groupBy": ["customerId"], "take": take})).await;
        let customer = |(group, ..): &(Value, f64, Vec<f64>)| group["customerId"].as_str().unwrap().to_owned();
        groups(&answer).iter().map(customer).collect::<String>()
    };
    assert_eq!(names(json!({"limit": 1})).await, "c");
    assert_eq!(names(json!({"limit": 1, "isAscending": true})).await, "d");
    assert_eq!(names(json!({"limit": 9, "isAscending": true})).await, "dc");
}

#[tokio::test]
async fn intervals_of_every_length() {
    let sandbox = four_events().await;
    let range = json!({"startTimeInSeconds": MONDAY + 1, "endTimeInSeconds": MONDAY + 8 * DAY});
    for (interval, count, first) in
        [("HOUR", 8 * 24, MONDAY), ("Day", 8, MONDAY), ("WEEK", 2, MONDAY), ("month", 2, MONDAY - 25 * DAY)]
    {
        let answer = usage(&sandbox, json!({"timeGroupingInterval": interval, "timeRange": range})).await;
        let intervals = answer["secondsSinceEpochIntervals"].as_array().unwrap();
        assert_eq!((intervals.len(), &intervals[0]), (count, &json!(first)), "{interval}");
        // The event of the first second is outside, whatever the interval.
        assert_eq!(groups(&answer)[0].1, 7.5, "{interval}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_is_now_by_default() {
    let started_at = Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(MONDAY as u64 + 90));
    let sandbox = Sandbox::new(SandboxConfig { started_at, ..SandboxConfig::default() });
    tokio::time::advance(std::time::Duration::from_secs(30)).await;
    for end in [json!({"startTimeInSeconds": MONDAY}), json!({"startTimeInSeconds": MONDAY, "endTimeInSeconds": null})]
    {
        let answer = usage(&sandbox, json!({"timeRange": end})).await;
        assert_eq!(answer["metadata"]["timeRange"]["endTimeInSeconds"], MONDAY + 120);
    }
}

#[tokio::test]
async fn each_meter_of_a_record_with_values_counts() {
    let sandbox = sandbox(Faults::default());
    let event = json!({"customerId": "c", "meterTimeInMillis": MONDAY * 1000, "values": {"m": 3, "n": 0.5}});
    send(&sandbox, event.to_string()).await;
    assert_eq!(groups(&usage(&sandbox, json!({})).await)[0].1, 3.0);
    assert_eq!(groups(&usage(&sandbox, json!({"meterApiName": "n"})).await)[0].1, 0.5);
}

#[tokio::test]
async fn what_does_not_belong_into_a_query_is_refused() {
    let sandbox = sandbox(Faults::default());
    for (properties, says) in [
        (json!({"startTimeInSeconds": "1724630400"}), "startTimeInSeconds"),
        (json!({"timeRange": {"startTimeInSeconds": "1724630400"}}), "string \"1724630400\""),
        (json!({"timeRange": {"startTimeInSeconds": MONDAY, "end": 1}}), "unknown field `end`"),
        (json!({"timeRange": {"startTimeInSeconds": MONDAY, "endTimeInSeconds": MONDAY}}), "invalid timeRange"),
        (json!({"timeRange": {"startTimeInSeconds": i64::MIN}}), "invalid timeRange"),
        (json!({"timeGroupingInterval": "YEAR"}), "unknown variant `YEAR`"),
        (json!({"timeGroupingInterval": null}), "null"),
        (json!({"aggregation": "AVG"}), "unknown variant `AVG`"),
        (json!({"groupBy": "customerId"}), "expected a sequence"),
        (json!({"filter": {"customerId": "c"}}), "expected a sequence"),
        (json!({"take": {"limit": 0}}), "nonzero"),
        (json!({"timeGroupingInterval": "HOUR", "timeRange": {"startTimeInSeconds": 0}}), "more than 100000 rows"),
    ] {
        let answer = api(&sandbox, "POST", "/usage", query(properties.clone())).await;
        assert!(answer.status == 400 && answer.body.contains(says), "{properties}: {}", answer.body);
    }
    assert_eq!(api(&sandbox, "POST", "/usage", json!({"meterApiName": "m"})).await.status, 400);
    assert_eq!(sandbox.stats().operations.values().map(|stats| stats.by_status[&400]).sum::<u64>(), 13);
}

#[tokio::test]
async fn usage_needs_kept_records() {
    let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    let answer = api(&sandbox, "POST", "/usage", query(json!({}))).await;
    assert_eq!(answer.refusal(), (409, "this sandbox keeps no records: start it with --keep-records"));
}
