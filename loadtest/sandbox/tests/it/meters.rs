use amberflo_sandbox::{Faults, Sandbox};
use serde_json::{Value, json};

use crate::{api, sandbox};

fn meter(name: &str) -> Value {
    json!({"meterApiName": name, "label": "Calls", "meterType": "sum_of_all_usage"})
}

/// `meter` with these properties on top.
fn with(mut meter: Value, properties: Value) -> Value {
    meter.as_object_mut().unwrap().extend(properties.as_object().unwrap().clone());
    meter
}

async fn create(sandbox: &Sandbox, meter: Value) -> Value {
    api(sandbox, "POST", "/meters", meter).await.json()
}

#[tokio::test]
async fn a_meter_is_created_whole_and_found() {
    let sandbox = sandbox(Faults::default());
    let sent = with(meter("calls"), json!({"id": "mine", "unit": "call", "whatever": {"deep": [1, null]}}));
    let created = create(&sandbox, sent.clone()).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!((id.len(), id == "mine"), (36, false));
    assert_eq!((&created["whatever"], &created["unit"]), (&sent["whatever"], &sent["unit"]));
    assert_eq!(created["lockingStatus"], "open");
    assert!(created["createTime"].is_i64());

    create(&sandbox, meter("other")).await;
    let get = async |path: &str| api(&sandbox, "GET", path, Value::Null).await;
    assert_eq!(get("/meters").await.json().as_array().unwrap().len(), 2);
    assert_eq!(get("/meters?meterApiName=calls").await.json(), json!([created]));
    assert_eq!(get("/meters?meterApiName=nothing").await.json(), json!([]));
    assert_eq!(get("/meters?limit=1").await.status, 400);
    assert_eq!(get(&format!("/meters/{id}")).await.json(), created);
    assert_eq!(get("/meters/calls").await.refusal(), (404, "Meter not found with id: calls"));
}

#[tokio::test]
async fn a_meter_that_is_not_right_is_refused_in_plain_text() {
    let sandbox = sandbox(Faults::default());
    create(&sandbox, meter("taken")).await;
    for (body, says) in [
        (json!({"label": "l", "meterType": "sum_of_all_usage"}), "meterApiName is missing"),
        (with(meter("m"), json!({"label": ""})), "label is not a non-empty string"),
        (with(meter("m"), json!({"label": null})), "label is missing"),
        (with(meter("m"), json!({"meterType": 7})), "meterType is not a non-empty string"),
        (with(meter("m"), json!({"meterType": "sum"})), "Invalid meter type"),
        (with(meter("m"), json!({"lockingStatus": "shut"})), "Invalid lockingStatus: shut"),
        (meter("taken"), "Meter already exists with meterApiName: taken"),
    ] {
        let answer = api(&sandbox, "POST", "/meters", body).await;
        assert_eq!(answer.refusal(), (400, says));
        assert!(answer.header("content-type").starts_with("text/plain"));
    }
    assert_eq!(api(&sandbox, "POST", "/meters", json!([meter("m")])).await.status, 400);
    for meter_type in ["active_users", "event_duration"] {
        create(&sandbox, with(meter(meter_type), json!({"meterType": meter_type}))).await;
    }
    assert_eq!(api(&sandbox, "GET", "/meters", Value::Null).await.json().as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn put_replaces_the_meter_of_its_id() {
    let sandbox = sandbox(Faults::default());
    let created = create(&sandbox, with(meter("calls"), json!({"unit": "call"}))).await;
    create(&sandbox, meter("other")).await;
    let put = async |body| api(&sandbox, "PUT", "/meters", body).await;

    let exists = "Meter already exists with meterApiName: calls";
    assert_eq!(put(meter("calls")).await.refusal(), (400, exists));
    assert_eq!(put(meter("new")).await.refusal(), (400, "id is missing"));
    let unknown = with(meter("new"), json!({"id": "calls"}));
    assert_eq!(put(unknown).await.refusal(), (404, "Meter not found with id: calls"));
    let taken = with(meter("other"), json!({"id": created["id"]}));
    assert_eq!(put(taken).await.refusal(), (400, "Meter already exists with meterApiName: other"));

    let renamed = with(meter("trial"), json!({"id": created["id"]}));
    let updated = put(renamed).await.json();
    assert_eq!((&updated["meterApiName"], &updated["lockingStatus"]), (&json!("trial"), &json!("open")));
    assert_eq!((updated.get("unit"), &updated["createTime"]), (None, &created["createTime"]));
    assert_eq!(api(&sandbox, "GET", "/meters?meterApiName=calls", Value::Null).await.json(), json!([]));
}

#[tokio::test]
async fn locking_status_moves_one_way() {
    let all = ["open", "close_to_changes", "close_to_deletions", "deprecated"];
    for (from, to) in [
        ("open", &all[..]),
        ("close_to_changes", &["close_to_changes", "deprecated"]),
        ("close_to_deletions", &["close_to_deletions", "deprecated"]),
        ("deprecated", &["deprecated"]),
    ] {
        for target in all {
            let sandbox = sandbox(Faults::default());
            let created = create(&sandbox, with(meter("m"), json!({"lockingStatus": from}))).await;
            let moved = with(created.clone(), json!({"lockingStatus": target}));
            let answer = api(&sandbox, "PUT", "/meters", moved).await;
            let path = format!("/meters/{}", created["id"].as_str().unwrap());
            let stored = api(&sandbox, "GET", &path, Value::Null).await.json();
            if to.contains(&target) {
                assert_eq!((answer.status.as_u16(), &stored["lockingStatus"]), (200, &json!(target)), "{from}");
            } else {
                let says = format!("'lockingStatus' cannot change from {from} to {target}");
                assert_eq!(answer.refusal(), (400, says.as_str()));
                assert_eq!(stored["lockingStatus"], from);
            }
        }
    }
}

#[tokio::test]
async fn only_a_deprecated_meter_is_deleted_and_a_name_in_place_of_the_id_does_nothing() {
    let sandbox = sandbox(Faults::default());
    let created = create(&sandbox, meter("calls")).await;
    let path = format!("/meters/{}", created["id"].as_str().unwrap());
    let delete = async |path: &str| api(&sandbox, "DELETE", path, Value::Null).await;
    assert_eq!(delete(&path).await.refusal(), (400, "'lockingStatus' open prevents meter from being deleted"));
    api(&sandbox, "PUT", "/meters", with(created, json!({"lockingStatus": "deprecated"}))).await.json();
    for nothing in ["/meters/calls", "/meters/unknown"] {
        assert_eq!(delete(nothing).await.refusal(), (200, ""));
    }
    assert_eq!(api(&sandbox, "GET", &path, Value::Null).await.json()["lockingStatus"], "deprecated");
    assert_eq!(delete(&path).await.refusal(), (200, ""));
    assert_eq!(api(&sandbox, "GET", &path, Value::Null).await.status, 404);
    create(&sandbox, meter("calls")).await;
}
