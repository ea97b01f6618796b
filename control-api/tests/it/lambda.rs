//! The API as a Lambda function: events as AWS sends them, and what they are answered.

mod program;

use std::time::Duration;

use amberflo_sandbox::{Faults, Operation, Sandbox, SandboxConfig, Trigger};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Parser as _;
use control_api::app::App;
use control_api::config::Cli;
use control_api::lambda::Function;
use control_api::lambda::gateway::Answer;
use serde_json::{Map, Value, json};
use shared::backends::api_keys;
use shared::clock::Clock;
use shared::service::Ready;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::harness::listen;
use crate::ingest::event_bus::{self, WorkerBus};

/// A function, between a sandbox of Amberflo and the worker's bus.
struct Lambda {
    function: Function,
    sandbox: Sandbox,
    amberflo: String,
    bus: WorkerBus,
    _directory: TempDir,
}

impl Lambda {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(flags: &[&str]) -> Self {
        let sandbox = Sandbox::new(SandboxConfig::default());
        let listener = listen().await;
        let amberflo = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let (bus, directory) = (WorkerBus::start().await, TempDir::new().unwrap());
        let key = directory.path().join("key");
        std::fs::write(&key, "sandbox-key").unwrap();
        let key = format!("--amberflo-api-key-file={}", key.display());
        // Nothing of this stream is opened.
        let mut arguments = vec!["control-api", "--auth=gateway", "--stream=kinesis:s", &key];
        arguments.extend([
            "--dead-letter-queue=https://sqs.us-east-1.amazonaws.com/1/q",
            "--amberflo-base-url",
            &amberflo,
        ]);
        arguments.extend(flags);
        let settings = Cli::parse_from(arguments).settings;
        settings.check(None).unwrap();
        let keys = api_keys(settings.amberflo.key().unwrap()).await.unwrap();
        let mut app = App::new(settings, keys.clone(), Ready::default()).unwrap();
        app.bus = event_bus::client(&app, &bus.url);
        let function = Function::of(app, keys).unwrap();
        Self { function, sandbox, amberflo, bus, _directory: directory }
    }

    /// What the function makes of an event, as JSON.
    async fn answer(&self, event: Value) -> Result<Value, String> {
        let deadline = Clock::system().now() + 60_000;
        let answer = self.function.answer(event, deadline).await.map_err(|error| format!("{error:#}"))?;
        Ok(serde_json::from_str(answer.get()).unwrap())
    }

    /// What a request is answered: status and body, which is JSON.
    async fn request(&self, event: Value) -> (u64, Value) {
        let answer = self.answer(event).await.unwrap();
        assert_eq!(answer["isBase64Encoded"], false, "{answer}");
        let body = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        (answer["statusCode"].as_u64().unwrap(), body)
    }

    /// Asks Amberflo itself.
    async fn amberflo(&self, method: reqwest::Method, path: &str, body: Value) -> Value {
        let request = crate::harness::client().request(method, format!("{}{path}", self.amberflo));
        let request = request.header("x-api-key", "sandbox-key").header("content-type", "application/json");
        let text = request.body(body.to_string()).send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// A request to the stage `prod`, by a caller whom API Gateway let in.
fn http(method: &str, path: &str, body: Option<&str>) -> Value {
    let mut event: Value = serde_json::from_str(include_str!("lambda/http_api.json")).unwrap();
    event["rawPath"] = format!("/prod{path}").into();
    event["rawQueryString"] = "".into();
    event["requestContext"]["http"]["method"] = method.into();
    if let Some(body) = body {
        event["body"] = body.into();
    }
    event
}

fn onboarding() -> Value {
    serde_json::from_str(include_str!("lambda/onboarding.json")).unwrap()
}

fn offboarding() -> Value {
    serde_json::from_str(include_str!("lambda/offboarding.json")).unwrap()
}

const TENANT: &str = "0f2b3c4d-0000-4000-8000-000000000002";
const USAGE: &str = r#"{"tenantId":"ä","meterApiName":"m","meterValue":1}"#;

#[tokio::test]
async fn a_request_is_answered_as_a_server_answers_it() {
    let lambda = Lambda::start().await;
    let meter = json!({ "label": "l", "meterApiName": "m", "meterType": "sum_of_all_usage" });
    let id = lambda.amberflo(reqwest::Method::POST, "/meters", meter).await["id"].as_str().unwrap().to_owned();
    let (status, body) = lambda.request(http("GET", &format!("/meters/{id}"), None)).await;
    assert_eq!((status, &body["data"]["meterApiName"]), (200, &json!("m")), "{body}");

    let answer = lambda.answer(http("GET", "/nothing", None)).await.unwrap();
    assert_eq!(
        (&answer["statusCode"], &answer["headers"]["content-type"]),
        (&json!(404), &json!("application/problem+json"))
    );
    assert_eq!(answer["headers"]["x-request-id"], "JKJaXmPLvHcESHA=", "the id that API Gateway logs");
    let (status, problem) = lambda.request(http("GET", "/meters/a\\b ä?%", None)).await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("the id in the path")), (400, true), "{problem}");
}

#[tokio::test]
async fn events_are_ingested_under_the_caller_that_the_gateway_names() {
    let lambda = Lambda::start().await;
    let mut event = http("POST", "/ingest", Some(USAGE));
    event["headers"]["idempotency-key"] = "k".into();
    let (status, body) = lambda.request(event.clone()).await;
    assert_eq!((status, &body["data"]["accepted"]), (202, &json!(1)), "{body}");
    let mut encoded = event.clone();
    encoded["body"] = BASE64.encode(USAGE).into();
    encoded["isBase64Encoded"] = true.into();
    let (_, again) = lambda.request(encoded).await;
    assert_eq!(again["data"]["events"][0]["uniqueId"], body["data"]["events"][0]["uniqueId"]);
    event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"] = "somebody else".into();
    let (_, other) = lambda.request(event).await;
    assert_ne!(other["data"]["events"][0]["uniqueId"], body["data"]["events"][0]["uniqueId"]);
    assert_eq!(lambda.bus.records().await.len(), 3);
}

#[tokio::test]
async fn without_the_gateways_claims_nobody_is_let_in() {
    let lambda = Lambda::start().await;
    for authorizer in [json!(null), json!({ "lambda": { "sub": "me" } }), json!({ "jwt": {} }), json!({ "iam": {} })] {
        let mut event = http("POST", "/ingest", Some(USAGE));
        event["requestContext"]["authorizer"] = authorizer;
        let (status, problem) = lambda.request(event).await;
        assert_eq!(status, 401, "{problem}");
    }
    assert!(lambda.bus.records().await.is_empty());
}

#[tokio::test]
async fn a_malformed_request_is_answered_and_not_dropped() {
    let lambda = Lambda::start().await;
    for (name, value) in [("headers", json!({ "idempotency-key": "a\nb" })), ("rawPath", json!(7)), ("body", json!([]))]
    {
        let mut event = http("POST", "/ingest", Some(USAGE));
        event[name] = value;
        let (status, problem) = lambda.request(event).await;
        assert_eq!(status, 400, "{name}: {problem}");
    }
    let mut event = http("POST", "/ingest", Some("%"));
    event["isBase64Encoded"] = true.into();
    assert_eq!(lambda.request(event).await.0, 400);
    assert!(lambda.bus.records().await.is_empty());
}

#[tokio::test]
async fn tenants_come_and_go() {
    let lambda = Lambda::start().await;
    assert_eq!(lambda.answer(onboarding()).await.unwrap(), json!({ "outcome": "created" }));
    assert_eq!(lambda.answer(onboarding()).await.unwrap(), json!({ "outcome": "unchanged" }), "delivered twice");
    let path = format!("/customers/{TENANT}");
    let customer = lambda.amberflo(reqwest::Method::GET, &path, Value::Null).await;
    assert_eq!(
        (&customer["customerName"], &customer["customerEmail"]),
        (&json!("tenant-one"), &json!("one@example.com"))
    );
    assert_eq!(lambda.answer(offboarding()).await.unwrap(), json!({ "outcome": "offboarded" }));
    let customer = lambda.amberflo(reqwest::Method::GET, &path, Value::Null).await;
    assert_eq!((&customer["lifecycleStage"], &customer["enabled"]), (&json!("OFFBOARDED"), &json!(true)));
}

#[tokio::test]
async fn an_event_that_cannot_be_done_fails_and_says_why() {
    let lambda = Lambda::start().await;
    let mut event = onboarding();
    event["detail"]["tenantId"] = Value::Null;
    let error = lambda.answer(event).await.unwrap_err();
    assert!(error.contains("detail.tenantId is missing") && error.contains("6a7e8feb"), "{error}");
    assert!(!error.contains("example.com"), "{error}");
    let operations = [Operation::Customers].into();
    let faults = Faults { operations, fail_before: Trigger::rate(1.0), ..Faults::default() };
    lambda.sandbox.set_faults(faults).unwrap();
    assert!(lambda.answer(onboarding()).await.unwrap_err().contains("reading it"));
}

#[tokio::test]
async fn anything_else_is_named() {
    let lambda = Lambda::start().await;
    let mut usage = onboarding();
    usage["detail-type"] = "ingestUsage".into();
    let mut rest_api = http("GET", "/meters/1", None);
    rest_api["version"] = "1.0".into();
    for (event, name) in [
        (usage, "detail-type \"ingestUsage\""),
        (rest_api, "payload format \"1.0\""),
        (json!({ "Records": [{ "eventSource": "aws:sqs" }] }), "records of aws:sqs"),
        (json!({ "Records": [{ "EventSource": "aws:sns" }] }), "records of aws:sns"),
        (json!({ "secret": "x", "b": 1 }), "b, secret"),
        (json!([]), "no object"),
    ] {
        let error = lambda.answer(event).await.unwrap_err();
        assert!(error.contains(name) && error.contains("allowed are requests of API Gateway"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_comes_before_lambda_ends_the_invocation() {
    let lambda = Lambda::start().await;
    let operations = [Operation::Meters, Operation::Customers].into();
    let faults = Faults { operations, hang_before: Trigger::rate(1.0), ..Faults::default() };
    lambda.sandbox.set_faults(faults).unwrap();
    let (started, limit) = (Instant::now(), Duration::from_secs(2));
    let answer = lambda.function.answer(http("GET", "/meters/m", None), Clock::system().now() + 2000).await.unwrap();
    let answer: Value = serde_json::from_str(answer.get()).unwrap();
    assert_eq!(answer["statusCode"], 504, "{answer}");
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    let error = lambda.function.answer(onboarding(), Clock::system().now() + 1000).await.unwrap_err();
    assert!(error.to_string().contains("not done in time"), "{error}");
}

#[tokio::test]
async fn a_new_key_takes_effect_with_the_next_event() {
    let lambda = Lambda::start_with(&["--api-key-refresh=1s"]).await;
    assert_eq!(lambda.answer(onboarding()).await.unwrap()["outcome"], "created");
    let faults = Faults { valid_keys: Some(["rotated".to_owned()].into()), ..Faults::default() };
    lambda.sandbox.set_faults(faults).unwrap();
    std::fs::write(lambda._directory.path().join("key"), "rotated").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(lambda.answer(onboarding()).await.unwrap()["outcome"], "unchanged");
    let statuses = &lambda.sandbox.stats().operations[&Operation::Customers].by_status;
    assert!(!statuses.contains_key(&401), "the old key is not tried: {statuses:?}");
}

#[tokio::test]
async fn an_answer_that_lambda_would_drop_becomes_a_problem() {
    let respond = async |bytes: Vec<u8>, is_read| {
        let response = axum::response::Response::new(axum::body::Body::from(bytes));
        let answer = Answer::of(response, is_read).await;
        let length = answer.get().len();
        (serde_json::from_str::<Map<String, Value>>(answer.get()).unwrap(), length)
    };
    let (answer, _) = respond(vec![b'x'; 5_900_000], true).await;
    assert_eq!(answer["statusCode"], 200);
    // Each quote takes two bytes in the answer.
    let (answer, length) = respond(vec![b'"'; 3_000_000], true).await;
    assert!(length < 10_000 && answer["statusCode"] == 502);
    assert!(answer["body"].as_str().unwrap().contains("ask for less"), "{answer:?}");
    let (answer, _) = respond(vec![b'x'; 7_000_000], false).await;
    assert!(answer["body"].as_str().unwrap().contains("has been done"), "{answer:?}");
    let (answer, _) = respond(vec![0xff, 0xfe], true).await;
    assert_eq!((&answer["isBase64Encoded"], &answer["body"]), (&json!(true), &json!("//4=")));
}
