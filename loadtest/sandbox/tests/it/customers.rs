use amberflo_sandbox::{Faults, Sandbox};
use serde_json::{Value, json};

use crate::{api, sandbox};

const STAGES: [&str; 4] = ["ONBOARDING", "TRIAL", "ACTIVE", "OFFBOARDED"];

async fn create(sandbox: &Sandbox, customer: Value) -> Value {
    api(sandbox, "POST", "/customers", customer).await.json()
}

async fn get(sandbox: &Sandbox) -> Value {
    api(sandbox, "GET", "/customers/t1", Value::Null).await.json()
}

#[tokio::test]
async fn a_customer_is_created_once_and_an_unknown_one_is_an_empty_answer() {
    let sandbox = sandbox(Faults::default());
    assert_eq!(api(&sandbox, "GET", "/customers/t1", Value::Null).await.refusal(), (200, ""));
    let sent = json!({"customerId": "t1", "customerName": "One", "traits": {"tier": "gold"}, "address": {"city": "X"}});
    let created = create(&sandbox, sent.clone()).await;
    assert_eq!((&created["enabled"], &created["lifecycleStage"]), (&json!(true), &json!("ONBOARDING")));
    assert_eq!((&created["traits"], &created["address"]), (&sent["traits"], &sent["address"]));
    assert_eq!(get(&sandbox).await, created);
    let again = api(&sandbox, "POST", "/customers", sent).await;
    assert_eq!(again.refusal(), (400, "Customer already exists with customerId: t1"));
}

#[tokio::test]
async fn a_customer_that_is_not_right_is_refused() {
    let sandbox = sandbox(Faults::default());
    for (body, says) in [
        (json!({"customerName": "One"}), "customerId is missing"),
        (json!({"customerId": "t1", "customerName": ""}), "customerName is not a non-empty string"),
        (json!({"customerId": "t1", "customerName": "One", "customerEmail": 1}), "customerEmail is not"),
        (json!({"customerId": "t1", "customerName": "One", "traits": {"a": 1}}), "traits is not an object of strings"),
        (json!({"customerId": "t1", "customerName": "One", "enabled": "yes"}), "enabled is not a boolean"),
        (
            json!({"customerId": "t1", "customerName": "One", "lifecycleStage": "TRAIL"}),
            "Invalid lifecycleStage: TRAIL",
        ),
    ] {
        for method in ["POST", "PUT"] {
            let answer = api(&sandbox, method, "/customers", body.clone()).await;
            assert!(answer.status == 400 && answer.body.starts_with(says), "{says}: {}", answer.body);
        }
    }
    assert_eq!(api(&sandbox, "GET", "/customers/t1", Value::Null).await.body, "");
}

#[tokio::test]
async fn put_discards_what_it_does_not_name_but_the_stage() {
    let sandbox = sandbox(Faults::default());
    let put = async |body| api(&sandbox, "PUT", "/customers", body).await;
    let renamed = json!({"customerId": "t1", "customerName": "Uno"});
    assert_eq!(put(renamed.clone()).await.refusal(), (404, "Customer not found with customerId: t1"));
    let sent =
        json!({"customerId": "t1", "customerName": "One", "traits": {"tier": "gold"}, "lifecycleStage": "TRIAL"});
    let created = create(&sandbox, sent).await;
    let updated = put(renamed).await.json();
    assert_eq!((&updated["customerName"], updated.get("traits")), (&json!("Uno"), None));
    assert_eq!((&updated["lifecycleStage"], &updated["createTime"]), (&json!("TRIAL"), &created["createTime"]));
    let back = json!({"customerId": "t1", "customerName": "Uno", "lifecycleStage": "ONBOARDING"});
    assert_eq!(put(back).await.refusal(), (400, "lifecycleStage cannot change from TRIAL to ONBOARDING"));
    assert_eq!(get(&sandbox).await, updated);
}

#[tokio::test]
async fn the_stage_moves_forward_only() {
    for (at, from) in STAGES.into_iter().enumerate() {
        for (to_at, to) in STAGES.into_iter().enumerate() {
            let sandbox = sandbox(Faults::default());
            create(&sandbox, json!({"customerId": "t1", "customerName": "One", "lifecycleStage": from})).await;
            let stage = json!({"customerId": "t1", "lifecycleStage": to});
            let answer = api(&sandbox, "PUT", "/customers/stage", stage).await;
            if to_at > at {
                assert_eq!(answer.json(), get(&sandbox).await);
                assert_eq!((&answer.json()["lifecycleStage"], &answer.json()["enabled"]), (&json!(to), &json!(true)));
            } else {
                let says = format!("lifecycleStage cannot change from {from} to {to}");
                assert_eq!(answer.refusal(), (400, says.as_str()));
                assert_eq!(get(&sandbox).await["lifecycleStage"], from);
            }
        }
    }
}

#[tokio::test]
async fn a_stage_needs_a_customer_and_a_name() {
    let sandbox = sandbox(Faults::default());
    let put = async |body| api(&sandbox, "PUT", "/customers/stage", body).await;
    assert_eq!(put(json!({"customerId": "t1"})).await.refusal(), (400, "lifecycleStage is missing"));
    assert_eq!(put(json!({"lifecycleStage": "ACTIVE"})).await.refusal(), (400, "customerId is missing"));
    assert_eq!(put(json!({"customerId": "t1", "lifecycleStage": "ACTIVE"})).await.status, 404);
}
