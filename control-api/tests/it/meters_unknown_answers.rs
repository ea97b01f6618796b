//! Answers that Amberflo might give and the sandbox does not.

use axum::Router;
use axum::routing::{any, get};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Running, answer, client, serve};

/// The URL of an API before an Amberflo with these endpoints.
async fn before(amberflo: Router) -> String {
    Running::start(&serve(amberflo).await, &[], |_| ()).await.url
}

/// An Amberflo that answers everything with this.
fn always(body: &'static str) -> Router {
    Router::new().fallback(any(async move || body))
}

async fn send(method: Method, url: String) -> (StatusCode, Value) {
    answer(client().request(method, url)).await
}

#[tokio::test]
async fn nothing_for_a_meter_is_no_meter() {
    for nothing in ["", " ", "{}", "null", "[]"] {
        let url = before(always(nothing)).await;
        for (method, path) in [
            (Method::GET, "/meters/m"),
            (Method::DELETE, "/meters/m"),
            (Method::GET, "/usage/m"),
            (Method::GET, "/usage/m/events"),
        ] {
            let (status, problem) = send(method, format!("{url}{path}")).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path} {nothing:?}: {problem}");
        }
    }
}

#[tokio::test]
async fn what_is_no_meter_is_not_taken_for_one() {
    for other in ["text", "[1]", "7"] {
        let url = before(always(other)).await;
        let (status, problem) = send(Method::DELETE, format!("{url}/meters/m")).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
        assert_eq!((&problem["step"], &problem["meterState"]), (&json!("read"), &json!("unchanged")));
        let (status, problem) = send(Method::GET, format!("{url}/usage/m")).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
        let (status, problem) = send(Method::GET, format!("{url}/meters?limit=1")).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
    }
    let url = before(always(r#"{"id": "m", "meterApiName": ""}"#)).await;
    let (status, problem) = send(Method::GET, format!("{url}/usage/m")).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
}

#[tokio::test]
async fn what_need_not_be_understood_passes() {
    let url = before(always(r#"{ "n": 12345678901234567890123.10 }"#)).await;
    for path in ["/meters", "/meters/m", "/usage/x?meterApiName=m", "/usage/x/events?meterApiName=m"] {
        let text = client().get(format!("{url}{path}")).send().await.unwrap().text().await.unwrap();
        assert_eq!(text, r#"{"data":{ "n": 12345678901234567890123.10 }}"#, "{path}");
    }
    let url = before(always("1 rule was made")).await;
    let (_, text) = send(Method::GET, format!("{url}/usage/x?meterApiName=m")).await;
    assert_eq!(text, json!({"data": "1 rule was made"}));
}

#[tokio::test]
async fn a_meter_that_survives_its_deletion_is_reported() {
    let meter = r#"{"id":"m","meterApiName":"m","lockingStatus":"open"}"#;
    let (status, problem) = send(Method::DELETE, format!("{}/meters/m", before(always(meter)).await)).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("verify"), &json!("deprecated")));
}

#[tokio::test]
async fn a_meter_that_answers_to_its_name_is_not_deleted() {
    let meter = async || r#"{"id":"3b9f","meterApiName":"sbt-meter","lockingStatus":"deprecated"}"#;
    let only_read = Router::new().route("/meters/{id}", get(meter));
    let url = before(only_read).await;
    let (status, problem) = send(Method::DELETE, format!("{url}/meters/sbt-meter")).await;
    assert_eq!((status, problem.get("step")), (StatusCode::NOT_FOUND, None), "{problem}");
}

#[tokio::test]
async fn a_meter_that_vanishes_before_its_deprecation_is_gone() {
    let meter = async || r#"{"id":"m","lockingStatus":"open"}"#;
    let url = before(Router::new().route("/meters/{id}", get(meter))).await;
    let (status, problem) = send(Method::DELETE, format!("{url}/meters/m")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
    assert_eq!((&problem["step"], &problem["meterState"]), (&json!("deprecate"), &json!("gone")));
}
