//! Tenants that come and go, against the sandbox's customers.

use std::collections::BTreeSet;

use amberflo_sandbox::{Faults, Operation, Trigger};
use control_api::amberflo::Effect;
use control_api::customers::{Change, CustomerError, Outcome, apply};
use reqwest::Method;
use serde_json::{Value, json};
use shared::amberflo::Segment;

use crate::harness::Api;

async fn onboard(api: &Api, detail: Value) -> Result<Outcome, CustomerError> {
    apply(&api.app.amberflo, Change::Onboarding, &detail).await
}

async fn offboard(api: &Api, detail: Value) -> Result<Outcome, CustomerError> {
    apply(&api.app.amberflo, Change::Offboarding, &detail).await
}

/// The customer in Amberflo; null: none.
async fn customer(api: &Api, id: &str) -> Value {
    let id = Segment::new(id).unwrap();
    let body = api.app.amberflo.get("customers", "/customers", Some(&id), &[]).await.unwrap();
    serde_json::from_slice(&body).unwrap_or_default()
}

async fn put(api: &Api, path: &'static str, body: Value) {
    api.app.amberflo.send("customers", (Effect::Replaces, Method::PUT), path, &body).await.unwrap();
}

/// Faults of the customers' endpoints, for these methods.
fn faults(api: &Api, methods: &[&str], faults: Faults) {
    let operations = BTreeSet::from([Operation::Customers]);
    let methods = methods.iter().map(ToString::to_string).collect();
    api.sandbox.set_faults(Faults { operations, methods, fail_statuses: vec![503], ..faults }).unwrap();
}

/// How often the customers' endpoints were asked while this was done.
async fn asked<T>(api: &Api, done: impl Future<Output = T>) -> (T, u64) {
    let count = || api.sandbox.stats().operations.get(&Operation::Customers).map_or(0, |stats| stats.requests);
    let before = count();
    (done.await, count() - before)
}

fn tenant() -> Value {
    json!({ "tenantId": "t-1", "tenantName": "One", "email": "one@example.com", "tier": "basic" })
}

#[tokio::test]
async fn a_tenant_becomes_a_customer_once() {
    let api = Api::start().await;
    let (outcome, requests) = asked(&api, onboard(&api, tenant())).await;
    assert_eq!((outcome.unwrap(), requests), (Outcome::Created, 2), "read and created");
    let stored = customer(&api, "t-1").await;
    assert_eq!((&stored["customerName"], &stored["customerEmail"]), (&json!("One"), &json!("one@example.com")));
    let (outcome, requests) = asked(&api, onboard(&api, tenant())).await;
    assert_eq!((outcome.unwrap(), requests), (Outcome::Unchanged, 1), "only read");
    assert_eq!(customer(&api, "t-1").await, stored);
    assert_eq!(onboard(&api, json!({ "tenantId": "t-2" })).await.unwrap(), Outcome::Created);
    assert_eq!(customer(&api, "t-2").await["customerName"], "t-2");
}

#[tokio::test]
async fn an_update_keeps_what_amberflo_has_beside_it() {
    let api = Api::start().await;
    onboard(&api, tenant()).await.unwrap();
    let whole = json!({
        "customerId": "t-1", "customerName": "One", "customerEmail": "old@example.com", "enabled": true,
        "traits": { "stripeId": "cus_1" }, "lifecycleStage": "ACTIVE",
    });
    put(&api, "/customers", whole).await;
    assert_eq!(
        onboard(&api, json!({ "tenantId": "t-1", "email": "new@example.com" })).await.unwrap(),
        Outcome::Updated
    );
    let stored = customer(&api, "t-1").await;
    assert_eq!(stored["customerEmail"], "new@example.com");
    assert_eq!(stored["customerName"], "One", "a name is not replaced with an id");
    assert_eq!(stored["traits"], json!({ "stripeId": "cus_1" }));
    assert_eq!(stored["lifecycleStage"], "ACTIVE");
}

#[tokio::test]
async fn a_tenant_that_goes_is_offboarded_and_stays_enabled() {
    let api = Api::start().await;
    onboard(&api, tenant()).await.unwrap();
    for expected in [2, 1] {
        let (outcome, requests) = asked(&api, offboard(&api, json!({ "tenantId": "t-1" }))).await;
        assert_eq!((outcome.unwrap(), requests), (Outcome::Offboarded, expected));
    }
    let stored = customer(&api, "t-1").await;
    assert_eq!((&stored["lifecycleStage"], &stored["enabled"]), (&json!("OFFBOARDED"), &json!(true)));
    // It comes again: stages only move forward, so this one stays.
    assert_eq!(onboard(&api, json!({ "tenantId": "t-1", "tenantName": "Two" })).await.unwrap(), Outcome::Updated);
    let stored = customer(&api, "t-1").await;
    assert_eq!((&stored["lifecycleStage"], &stored["customerName"]), (&json!("OFFBOARDED"), &json!("Two")));
}

#[tokio::test]
async fn a_tenant_that_goes_unknown_is_no_failure() {
    let api = Api::start().await;
    assert_eq!(offboard(&api, tenant()).await.unwrap(), Outcome::Unknown);
    assert_eq!(customer(&api, "t-1").await, Value::Null);
}

#[tokio::test]
async fn lost_answers_end_in_the_right_state() {
    let api = Api::start().await;
    faults(&api, &["POST"], Faults { fail_after: Trigger::next(1), ..Faults::default() });
    let (outcome, requests) = asked(&api, onboard(&api, tenant())).await;
    assert_eq!((outcome.unwrap(), requests), (Outcome::Unchanged, 3), "read, created, and read, not created again");
    // The second attempt is refused, for the first one moved it.
    faults(&api, &["PUT"], Faults { fail_after: Trigger::next(1), ..Faults::default() });
    let (outcome, requests) = asked(&api, offboard(&api, tenant())).await;
    assert_eq!((outcome.unwrap(), requests), (Outcome::Offboarded, 4), "read, moved, refused, and read");
    assert_eq!(customer(&api, "t-1").await["lifecycleStage"], "OFFBOARDED");
}

#[tokio::test]
async fn what_two_events_create_at_the_same_time_is_one_customer() {
    let api = Api::start().await;
    let other = json!({ "tenantId": "t-1", "tenantName": "One", "email": "two@example.com" });
    let (first, second) = tokio::join!(onboard(&api, tenant()), onboard(&api, other));
    let outcomes = [first.unwrap(), second.unwrap()];
    assert!(outcomes.contains(&Outcome::Created), "{outcomes:?}");
    assert_eq!(customer(&api, "t-1").await["customerName"], "One");
}

#[tokio::test]
async fn a_failure_says_what_was_attempted_and_no_email() {
    let api = Api::start().await;
    faults(&api, &["POST"], Faults { fail_before: Trigger::rate(1.0), ..Faults::default() });
    let error = onboard(&api, tenant()).await.unwrap_err().to_string();
    assert!(error.starts_with("customer t-1: creating it: Amberflo answered 503"), "{error}");
    assert!(!error.contains("example.com"), "{error}");
    assert!(matches!(onboard(&api, json!({})).await, Err(CustomerError::Malformed(_))));
}
