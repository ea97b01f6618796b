//! What is true of every request.

use std::time::Duration;

use amberflo_sandbox::Faults;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Api, answer};

#[tokio::test]
async fn whatever_is_not_there_is_a_problem() {
    let api = Api::start().await;
    for (method, path, expected) in [
        (Method::GET, "/nothing", StatusCode::NOT_FOUND),
        (Method::GET, "/meters/a/b", StatusCode::NOT_FOUND),
        (Method::PATCH, "/dead-letters", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let response = api.request(method, path).send().await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let status = expected.as_u16();
        assert_eq!((&problem["status"], &problem["statusCode"]), (&json!(status), &json!(status)), "{path}");
        assert!(problem["detail"].is_string() && problem["detail"] == problem["message"], "{path}: {problem}");
    }
}

#[tokio::test]
async fn an_id_is_one_segment() {
    let api = Api::start().await;
    for id in ["..%2fcustomers", "a%2Fb", "a%5Cb", "%00", "%ff"] {
        let (status, problem) = api.get(&format!("/meters/{id}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{id}: {problem}");
    }
    // A client library would tidy this one up.
    let mut socket = TcpStream::connect(api.url.trim_start_matches("http://")).await.unwrap();
    let request = "GET /meters/%2e%2e HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert_eq!(api.sandbox.stats().operations.values().map(|operation| operation.requests).sum::<u64>(), 0);
}

#[tokio::test]
async fn every_answer_carries_an_id_and_headers_that_protect() {
    let api = Api::start().await;
    for path in ["/nothing", "/dead-letters", "/openapi.json"] {
        let response = api.request(Method::GET, path).header("x-request-id", "mine-1").send().await.unwrap();
        let headers = response.headers();
        assert_eq!(headers["x-request-id"], "mine-1", "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'"));
    }
    for odd in ["", "a b", &"x".repeat(129)] {
        let response = api.request(Method::GET, "/nothing").header("x-request-id", odd).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"].len(), 36, "{odd:?}");
    }
}

#[tokio::test]
async fn a_body_is_json_and_says_so() {
    let api = Api::start().await;
    let redrive = || api.request(Method::POST, "/dead-letters/redrive");
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/problem+json"]
    {
        let (status, problem) = answer(redrive().header("content-type", content_type).body("{}")).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}: {problem}");
    }
    assert_eq!(answer(redrive()).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE, "a POST without a body too");
    for content_type in ["application/json", "Application/JSON; charset=utf-8"] {
        let (status, body) = answer(redrive().header("content-type", content_type).body("{}")).await;
        assert_eq!(status, StatusCode::OK, "{content_type}: {body}");
    }
    for body in ["", "{", "[]", "null", "{\"limit\": 1e400}", "\u{feff}{}"] {
        let (status, problem) = answer(redrive().header("content-type", "application/json").body(body)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {problem}");
    }
    let large = format!("{{\"tenantId\": \"{}\"}}", "x".repeat(1 << 20));
    let (status, problem) = answer(redrive().header("content-type", "application/json").body(large)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{problem}");
}

#[tokio::test]
async fn pages_of_named_origins_may_call_and_others_may_not() {
    let api = Api::start_with(&["--cors-origins", "https://admin.example.com"]).await;
    let preflight = |origin: &'static str| {
        let request = api.request(Method::OPTIONS, "/dead-letters").header("origin", origin);
        request.header("access-control-request-method", "DELETE").send()
    };
    let response = preflight("https://admin.example.com").await.unwrap();
    assert_eq!(response.headers()["access-control-allow-origin"], "https://admin.example.com");
    assert!(response.headers()["access-control-allow-methods"].to_str().unwrap().contains("DELETE"));
    let response = preflight("https://evil.example.com").await.unwrap();
    assert!(!response.headers().contains_key("access-control-allow-origin"));
    let request = api.request(Method::GET, "/dead-letters").header("origin", "https://evil.example.com");
    assert_eq!(answer(request).await.0, StatusCode::FORBIDDEN);
    let request = api.request(Method::GET, "/dead-letters").header("origin", "https://admin.example.com");
    assert_eq!(request.send().await.unwrap().headers()["access-control-allow-origin"], "https://admin.example.com");
}

#[tokio::test]
async fn a_caller_who_asks_too_often_is_told_when_to_come_again() {
    let api = Api::start_with(&["--caller-requests-per-second", "2"]).await;
    let mut refused = None;
    for _ in 0..20 {
        let response = api.request(Method::GET, "/dead-letters").send().await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
    }
    assert_eq!(refused.expect("no request was refused").headers()["retry-after"], "1");
}

#[tokio::test]
async fn an_amberflo_that_hangs_is_an_answer_in_time() {
    let api = Api::start_with(&["--request-timeout", "1500ms"]).await;
    let faults = r#"{"operations": ["meters"], "slow": {}, "latency": {"min": "30s", "max": "30s"}}"#;
    api.sandbox.set_faults(Faults::from_json(faults.as_bytes()).unwrap()).unwrap();
    let (status, problem) = api.get("/meters/some-id").await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{problem}");
}

#[tokio::test]
async fn a_mutation_goes_on_when_its_caller_goes_away() {
    let api = Api::start().await;
    let meter = json!({"label": "L", "meterApiName": "m", "meterType": "sum_of_all_usage"});
    let (_, created) = api.send(Method::POST, "/meters", meter).await;
    let id = created["data"]["id"].as_str().unwrap().to_owned();
    // Each of its steps takes longer than its caller waits.
    let faults = r#"{"operations": ["meters"], "slow": {}, "latency": {"min": "200ms", "max": "200ms"}}"#;
    api.sandbox.set_faults(Faults::from_json(faults.as_bytes()).unwrap()).unwrap();
    let deletion = api.request(Method::DELETE, &format!("/meters/{id}")).timeout(Duration::from_millis(100)).send();
    assert!(deletion.await.unwrap_err().is_timeout());
    api.app.mutations.close();
    timeout(Duration::from_secs(60), api.app.mutations.wait()).await.expect("it ends");
    api.sandbox.set_faults(Faults::default()).unwrap();
    assert_eq!(api.get(&format!("/meters/{id}")).await.0, StatusCode::NOT_FOUND);
}
