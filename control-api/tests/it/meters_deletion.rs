//! The deletion of a meter: its steps, and what each one's failure leaves behind.

use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Operation, Trigger};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, answer};
use crate::meters::create;

/// Faults for the meters only, and of them for this method.
fn faults(method: &str) -> Faults {
    Faults { operations: [Operation::Meters].into(), methods: [method.to_owned()].into(), ..Faults::default() }
}

async fn delete(api: &Api, id: &str) -> (StatusCode, Value) {
    answer(api.request(Method::DELETE, &format!("/meters/{id}"))).await
}

async fn locking_status(api: &Api, id: &str) -> Value {
    api.sandbox.set_faults(Faults::default()).unwrap();
    api.get(&format!("/meters/{id}")).await.1["data"]["lockingStatus"].clone()
}

fn calls(api: &Api, method: &str) -> u64 {
    api.sandbox.stats().operations[&Operation::Meters].by_method.get(method).copied().unwrap_or_default()
}

#[tokio::test]
async fn a_meter_is_deprecated_and_deleted() {
    let api = Api::start().await;
    let (one, other) = (create(&api, "one").await, create(&api, "other").await);
    let (status, deleted) = delete(&api, &one).await;
    assert_eq!((status, deleted), (StatusCode::OK, json!({"data": {}})));
    assert_eq!(api.get(&format!("/meters/{one}")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(delete(&api, &one).await.0, StatusCode::NOT_FOUND, "twice");
    assert_eq!(locking_status(&api, &other).await, "open");
}

#[tokio::test]
async fn a_deprecated_meter_is_not_deprecated_again() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let meter = json!({
        "label": "m", "meterApiName": "m", "meterType": "sum_of_all_usage", "lockingStatus": "deprecated"
    });
    assert_eq!(api.send(Method::PUT, &format!("/meters/{id}"), meter).await.0, StatusCode::OK);
    let before = calls(&api, "PUT");
    assert_eq!(delete(&api, &id).await.0, StatusCode::OK);
    assert_eq!(calls(&api, "PUT"), before);
}

#[tokio::test]
async fn without_deprecation_an_active_meter_stays_as_it_is() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let (status, problem) = answer(api.request(Method::DELETE, &format!("/meters/{id}?deprecate=false"))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "Amberflo's own answer: {problem}");
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("delete"), &json!("unchanged")));
    assert_eq!(locking_status(&api, &id).await, "open");
    assert_eq!(calls(&api, "PUT"), 0);
}

#[tokio::test]
async fn the_deprecation_changes_nothing_else() {
    let api = Api::start().await;
    let meter = json!({
        "label": "l", "meterApiName": "m", "meterType": "active_users", "dimensions": ["user"],
        "unheardOf": {"n": 18_446_744_073_709_551_615_u64}
    });
    let (_, created) = api.send(Method::POST, "/meters", meter).await;
    let id = created["data"]["id"].as_str().unwrap();
    api.sandbox.set_faults(Faults { fail_before: Trigger::rate(1.0), ..faults("DELETE") }).unwrap();
    let (status, problem) = delete(&api, id).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("delete"), &json!("deprecated")));
    api.sandbox.set_faults(Faults::default()).unwrap();
    let (_, mut read) = api.get(&format!("/meters/{id}")).await;
    assert_eq!(read["data"]["lockingStatus"], "deprecated");
    for changed in ["lockingStatus", "updateTime"] {
        read["data"][changed] = created["data"][changed].clone();
    }
    assert_eq!(read, created);
    assert_eq!(delete(&api, id).await.0, StatusCode::OK, "deleting again goes on");
}

#[tokio::test]
async fn a_failed_read_or_deprecation_says_so() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    api.sandbox.set_faults(Faults { fail_before: Trigger::rate(1.0), ..faults("GET") }).unwrap();
    let (status, problem) = delete(&api, &id).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("read"), &json!("unchanged")), "{problem}");

    api.sandbox.set_faults(Faults { throttle: Trigger::rate(1.0), ..faults("PUT") }).unwrap();
    let (status, problem) = delete(&api, &id).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("deprecate"), &json!("unchanged")), "{problem}");
    assert_eq!(locking_status(&api, &id).await, "open");

    api.sandbox.set_faults(Faults { fail_after: Trigger::rate(1.0), ..faults("PUT") }).unwrap();
    let (status, problem) = delete(&api, &id).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("deprecate"), &json!("unknown")), "{problem}");
    assert_eq!(calls(&api, "DELETE"), 0);
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_looked_after() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    api.sandbox.set_faults(Faults { fail_after: Trigger::rate(1.0), ..faults("DELETE") }).unwrap();
    let (status, deleted) = delete(&api, &id).await;
    assert_eq!((status, deleted), (StatusCode::OK, json!({"data": {}})));
}

#[tokio::test]
async fn a_deletion_without_an_answer_tells_what_it_knows() {
    let api = Api::start_with(&["--request-timeout=3s"]).await;
    let id = create(&api, "m").await;
    api.sandbox.set_faults(Faults { hang_before: Trigger::rate(1.0), ..faults("DELETE") }).unwrap();
    let (status, problem) = delete(&api, &id).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("delete"), &json!("deprecated")), "{problem}");

    api.sandbox.set_faults(Faults { hang_after: Trigger::rate(1.0), ..faults("DELETE") }).unwrap();
    let (status, deleted) = delete(&api, &id).await;
    assert_eq!(status, StatusCode::OK, "it was carried out, which the look after it shows: {deleted}");
}

#[tokio::test]
async fn an_accepted_deletion_that_cannot_be_verified_says_so() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let half_a_second = Duration::from_millis(500);
    let latency = Latency { min: half_a_second, max: half_a_second };
    api.sandbox.set_faults(Faults { slow: Trigger::rate(1.0), latency, ..faults("GET") }).unwrap();
    let deletion = tokio::spawn(answer(api.request(Method::DELETE, &format!("/meters/{id}"))));
    while calls(&api, "GET") < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The look after the deletion is on its way: it meets a page.
    api.sandbox.set_faults(Faults { html: Trigger::rate(1.0), ..faults("GET") }).unwrap();
    let (status, problem) = deletion.await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("verify"), &json!("unknown")), "{problem}");
}
