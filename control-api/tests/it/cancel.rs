//! The route that cancels usage.

use amberflo_sandbox::{Faults, Operation};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, answer};
use crate::meters::create;
use crate::usage::{event, ingest, now};

fn rule(start: i64, end: i64) -> Value {
    json!({
        "id": "rule-1", "meterApiName": "m",
        "ingestionTimeRange": {"startTimeInSeconds": start, "endTimeInSeconds": end}
    })
}

/// How many rules were created, or replaced.
fn created(api: &Api) -> u64 {
    api.sandbox.stats().operations.get(&Operation::FilteringRules).map_or(0, |stats| stats.requests)
}

/// How many rules are in force.
async fn rules(api: &Api) -> usize {
    let url = api.app.settings.amberflo.amberflo_base_url.as_str();
    let (_, rules) = answer(api.client.get(format!("{url}/sandbox/filtering-rules"))).await;
    rules.as_array().unwrap().len()
}

async fn usage(api: &Api, id: &str) -> Value {
    let (status, usage) = api.get(&format!("/usage/{id}")).await;
    assert_eq!(status, StatusCode::OK, "{usage}");
    usage["data"]["clientMeters"].clone()
}

#[tokio::test]
async fn a_rule_cancels_what_the_dry_run_estimated() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    ingest(&api, event(&api, "1", "t1", 1.5, 0, "eu")).await;
    ingest(&api, event(&api, "2", "t2", 2.0, 600, "eu")).await;
    let rule = rule(now(&api) - 3_600, now(&api) + 30);

    let (status, estimate) = api.send(Method::DELETE, "/usage?dryRun=true", rule.clone()).await;
    assert_eq!(status, StatusCode::OK, "{estimate}");
    let estimate = &estimate["data"];
    assert_eq!((&estimate["eventCount"], &estimate["sum"]), (&json!(2), &json!(3.5)));
    assert_eq!((&estimate["dryRun"], &estimate["exact"]), (&json!(true), &json!(false)));
    assert_eq!(estimate["byTenant"][1], json!({"tenantId": "t2", "eventCount": 1, "sum": 2}), "{estimate}");
    assert_eq!(estimate["meterExists"], true);
    assert!(estimate["basis"].as_str().unwrap().contains("ingestion time"), "{estimate}");
    assert_eq!(created(&api), 0);
    assert_eq!(usage(&api, &id).await[0]["groupValue"], 3.5);

    let (status, answer) = api.send(Method::DELETE, "/usage", rule.clone()).await;
    let mut expected = rule;
    expected["type"] = json!("by_property_filter_out");
    assert_eq!((status, answer), (StatusCode::OK, json!({"data": expected})));
    assert_eq!(usage(&api, &id).await, json!([]));
}

#[tokio::test]
async fn an_estimate_over_years_is_possible() {
    let api = Api::start().await;
    let start = now(&api) - 15 * 366 * 86_400;
    let (status, estimate) = api.send(Method::DELETE, "/usage?dryRun=true", rule(start, now(&api))).await;
    assert_eq!(status, StatusCode::OK, "{estimate}");
    assert_eq!((&estimate["data"]["eventCount"], &estimate["data"]["sum"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn other_properties_and_another_type_pass() {
    let api = Api::start().await;
    let mut rule = rule(1_724_367_600, 1_724_371_200);
    rule["filter"] = json!({"customerId": ["t1"], "n": 18_446_744_073_709_551_615_u64});
    rule["type"] = json!("by_property_filter_out");
    let (status, answer) = api.send(Method::DELETE, "/usage?dryRun=false", rule.clone()).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"data": rule})));
    rule["type"] = json!("of_tomorrow");
    let (status, problem) = api.send(Method::DELETE, "/usage", rule.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(problem["message"].as_str().unwrap().starts_with("Amberflo: "), "its own to refuse: {problem}");
    rule["type"] = Value::Null;
    let (status, answer) = api.send(Method::DELETE, "/usage", rule).await;
    assert_eq!((status, &answer["data"]["type"]), (StatusCode::OK, &json!("by_property_filter_out")));
}

#[tokio::test]
async fn a_rule_that_is_not_well_formed_is_refused() {
    let api = Api::start().await;
    let good = rule(1_724_367_600, 1_724_371_200);
    let with = |name: &str, value: Value| {
        let mut bad = good.clone();
        bad[name] = value;
        bad
    };
    let range = |start: Value, end: Value| {
        with("ingestionTimeRange", json!({"startTimeInSeconds": start, "endTimeInSeconds": end}))
    };
    let without = |name: &str| {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(name);
        bad
    };
    let (start, end) = (json!(1_724_367_600), json!(1_724_371_200));
    for bad in [
        json!(null),
        json!([good]),
        without("id"),
        without("meterApiName"),
        without("ingestionTimeRange"),
        with("id", json!("")),
        with("id", json!(1)),
        with("meterApiName", Value::Null),
        with("type", json!("")),
        with("type", json!(1)),
        with("ingestionTimeRange", Value::Null),
        with("ingestionTimeRange", json!("today")),
        with("ingestionTimeRange", json!([1_724_367_600, 1_724_371_200])),
        with("tenantId", json!("acme")),
        with("ingestionTimeRange", json!({"startTimeInSeconds": start})),
        with("ingestionTimeRange", json!({"startTimeInSeconds": start, "endTimeInSeconds": end, "customer": 1})),
        range(end.clone(), start.clone()),
        range(start.clone(), start.clone()),
        range(json!(-1), end.clone()),
        range(json!(1.5), end.clone()),
        range(json!("1724367600"), end.clone()),
        range(json!(1_724_367_600_000_u64), json!(1_724_371_200_000_u64)),
        range(start.clone(), json!(now(&api) + 3_600)),
    ] {
        for path in ["/usage", "/usage?dryRun=true"] {
            let (status, problem) = api.send(Method::DELETE, path, bad.clone()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {bad}: {problem}");
        }
    }
    assert_eq!(api.sandbox.stats().requests, 0);
}

#[tokio::test]
async fn a_dry_run_that_is_not_understood_creates_nothing() {
    let api = Api::start().await;
    let good = rule(1_724_367_600, 1_724_371_200);
    for query in [
        "dryrun=true",
        "dry_run=true",
        "DryRun=true",
        "dryRun",
        "dryRun=",
        "dryRun=1",
        "dryRun=yes",
        "dryRun=TRUE",
        "dryRun=true&dryRun=false",
        "dryRun=false&dryRun=false",
        "dryRun%20=true",
        "dryRun=true;",
        "?dryRun=true",
        "=true",
    ] {
        let (status, problem) = api.send(Method::DELETE, &format!("/usage?{query}"), good.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {problem}");
    }
    for name in ["dryRun", "dryrun", "dry_run"] {
        let mut rule = good.clone();
        rule[name] = json!(true);
        let (status, problem) = api.send(Method::DELETE, "/usage", rule).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {problem}");
    }
    assert_eq!(created(&api), 0);
}

#[tokio::test]
async fn there_is_no_estimate_for_a_narrower_rule() {
    let api = Api::start().await;
    let good = rule(1_724_367_600, 1_724_371_200);
    for (name, value) in
        [("filter", json!({"customerId": ["t1"]})), ("label", json!("x")), ("type", json!("of_tomorrow"))]
    {
        let mut rule = good.clone();
        rule[name] = value;
        let (status, problem) = api.send(Method::DELETE, "/usage?dryRun=true", rule).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {problem}");
    }
    let mut rule = good;
    rule["filter"] = Value::Null;
    rule["type"] = json!("by_property_filter_out");
    let (status, estimate) = api.send(Method::DELETE, "/usage?dryRun=true", rule).await;
    assert_eq!(status, StatusCode::OK, "{estimate}");
    assert_eq!(created(&api), 0);
}

/// The first attempt is carried out and its answer lost; the last one is refused. The rule is in force all the same.
#[tokio::test]
async fn a_cancellation_that_may_be_in_force_is_not_called_refused() {
    let api = Api::start().await;
    let faults = r#"{"operations": ["filtering_rules"], "fail_after": {"count": 1}, "throttle": {"rate": 0.5}, "seed": SEED,
        "retry_after": "7s"}"#;
    let mut seen = Vec::new();
    for seed in 0..12 {
        api.sandbox.reset();
        let faults = faults.replace("SEED", &seed.to_string());
        api.sandbox.set_faults(Faults::from_json(faults.as_bytes()).unwrap()).unwrap();
        let (status, answer) = api.send(Method::DELETE, "/usage", rule(1_724_367_600, 1_724_371_200)).await;
        let is_in_force = rules(&api).await > 0;
        match status {
            StatusCode::OK => assert!(is_in_force, "{seed}"),
            StatusCode::TOO_MANY_REQUESTS => assert!(!is_in_force, "{seed}: {answer}"),
            _ => {
                assert_eq!(status, StatusCode::BAD_GATEWAY, "{seed}: {answer}");
                assert!(answer["detail"].as_str().unwrap().contains("may have been carried out"), "{seed}: {answer}");
            }
        }
        seen.push((status, is_in_force));
    }
    assert!(seen.contains(&(StatusCode::BAD_GATEWAY, true)), "{seen:?}");
}

#[tokio::test]
async fn a_name_given_twice_says_two_things() {
    let api = Api::start().await;
    let body = r#"{"id": "r", "meterApiName": "a", "meterApiName": "b",
        "ingestionTimeRange": {"startTimeInSeconds": 1, "endTimeInSeconds": 2}}"#;
    let request = api.request(Method::DELETE, "/usage").header("content-type", "application/json").body(body);
    let (status, problem) = answer(request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    assert_eq!(created(&api), 0);
}
