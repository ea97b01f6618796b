//! What callers get when Amberflo fails.

use std::time::Duration;

use amberflo_sandbox::{Faults, Operation, Trigger};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Api;
use crate::meters::create;

/// Faults for all that these endpoints ask of Amberflo.
fn faults() -> Faults {
    use Operation::{FilteringRules, Meters, Usage, UsageEvents};
    Faults { operations: [FilteringRules, Meters, Usage, UsageEvents].into(), ..Faults::default() }
}

fn meter() -> Value {
    json!({"label": "l", "meterApiName": "m", "meterType": "sum_of_all_usage"})
}

fn rule() -> Value {
    json!({
        "id": "r", "meterApiName": "m",
        "ingestionTimeRange": {"startTimeInSeconds": 1_724_367_600, "endTimeInSeconds": 1_724_371_200}
    })
}

type Request = (Method, String, Value);

/// Every endpoint that may ask Amberflo again, for the meter with this id.
fn repeatable(id: &str) -> Vec<Request> {
    vec![
        (Method::GET, "/meters".to_owned(), Value::Null),
        (Method::GET, format!("/meters/{id}"), Value::Null),
        (Method::PUT, format!("/meters/{id}"), meter()),
        (Method::GET, format!("/usage/{id}"), Value::Null),
        (Method::GET, format!("/usage/{id}/events"), Value::Null),
        (Method::DELETE, "/usage".to_owned(), rule()),
        (Method::DELETE, "/usage?dryRun=true".to_owned(), rule()),
    ]
}

/// Those, and the ones with rules of their own.
fn all(id: &str) -> Vec<Request> {
    let mut all = repeatable(id);
    all.push((Method::DELETE, format!("/meters/{id}"), Value::Null));
    all.push((Method::POST, "/meters".to_owned(), meter()));
    all
}

/// How many calls met a fault.
fn failed_calls(api: &Api) -> u64 {
    api.sandbox.stats().operations.values().flat_map(|operation| operation.by_fault.values()).sum()
}

#[tokio::test]
async fn what_may_be_repeated_is() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let once = Trigger::next(1);
    for fault in [Faults { fail_before: once, ..faults() }, Faults { fail_after: once, ..faults() }] {
        for (method, path, body) in repeatable(&id) {
            let failed = failed_calls(&api);
            api.sandbox.set_faults(fault.clone()).unwrap();
            let (status, body) = api.send(method.clone(), &path, body).await;
            assert_eq!(status, StatusCode::OK, "{method} {path}: {body}");
            assert_eq!(failed_calls(&api), failed + 1, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_is_not_repeated() {
    let api = Api::start().await;
    api.sandbox.set_faults(Faults { fail_after: Trigger::next(1), ..faults() }).unwrap();
    let (status, problem) = api.send(Method::POST, "/meters", meter()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(problem["detail"].as_str().unwrap().contains("may have been carried out"), "{problem}");
    assert_eq!(api.sandbox.stats().operations[&Operation::Meters].by_method["POST"], 1);
    let (_, all) = api.get("/meters?meterApiName=m").await;
    assert_eq!(all["data"].as_array().unwrap().len(), 1, "{all}");
}

#[tokio::test]
async fn a_refused_key_is_ours_to_mend() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    assert!(api.ready.get());
    for (method, path, body) in all(&id) {
        api.sandbox.set_faults(Faults { revoked_keys: ["sandbox-key".to_owned()].into(), ..faults() }).unwrap();
        let (status, problem) = api.send(method, &path, body).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{path}: {problem}");
        let text = problem.to_string();
        assert!(text.contains("our API key") && !text.contains("sandbox-key"), "{text}");
        assert!(!api.ready.get());
        api.sandbox.set_faults(faults()).unwrap();
        api.get("/meters").await;
        assert!(api.ready.get());
    }
}

#[tokio::test]
async fn too_many_requests_are_the_callers_to_slow_down() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let wait = Some(Duration::from_secs(17));
    api.sandbox.set_faults(Faults { throttle: Trigger::rate(1.0), retry_after: wait, ..faults() }).unwrap();
    for (method, path, body) in all(&id) {
        let request = api.request(method, &path).header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(response.headers()["retry-after"], "17", "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}

#[tokio::test]
async fn a_page_is_no_answer() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    for faults in [Faults { html: Trigger::rate(1.0), ..faults() }, Faults { redirect: Trigger::rate(1.0), ..faults() }]
    {
        api.sandbox.set_faults(faults).unwrap();
        for (method, path, body) in all(&id) {
            let (status, problem) = api.send(method, &path, body).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{path}: {problem}");
        }
    }
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let api = Api::start_with(&["--request-timeout=3s"]).await;
    let id = create(&api, "m").await;
    api.sandbox.set_faults(Faults { hang_before: Trigger::rate(1.0), ..faults() }).unwrap();
    let started = tokio::time::Instant::now();
    let requests = all(&id).into_iter().map(async |(method, path, body)| {
        let (status, problem) = api.send(method, &path, body).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{path}: {problem}");
    });
    futures_util::future::join_all(requests).await;
    // With some room for a busy machine.
    assert!(started.elapsed() < Duration::from_millis(3500), "{:?}", started.elapsed());
}
