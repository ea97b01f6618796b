//! The program itself: the real `control-api-lambda` as a child process, between a runtime API like Lambda's, an emulated
//! EventBridge and Secrets Manager, and a sandbox of Amberflo.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use emulators::{Moto, put_secret};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};
use shared::clock::Clock;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::{USAGE, http, onboarding};
use crate::harness::listen;

const API: &str = "/2018-06-01/runtime";
/// Generous: the machine may be busy with the other tests. Nothing here asserts that something is fast.
const PATIENCE: Duration = Duration::from_secs(60);
/// Never to be seen in any output.
const KEY: &str = "k3y-that-must-stay-secret";

/// Hands out events one by one, and takes what is made of them.
struct RuntimeApi {
    address: String,
    events: mpsc::Sender<Value>,
    made: mpsc::Receiver<(String, Value)>,
}

#[derive(Clone)]
struct Api {
    events: Arc<Mutex<mpsc::Receiver<Value>>>,
    made: mpsc::Sender<(String, Value)>,
}

impl RuntimeApi {
    async fn start() -> Self {
        let (events, waiting) = mpsc::channel(8);
        let (sender, made) = mpsc::channel(8);
        let api = Api { events: Arc::new(Mutex::new(waiting)), made: sender };
        let router = Router::new()
            .route(&format!("{API}/invocation/next"), get(next))
            .route(&format!("{API}/invocation/{{id}}/{{outcome}}"), post(outcome))
            .with_state(api);
        let listener = listen().await;
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { address, events, made }
    }

    /// Whether an event was answered (`response`) or failed (`error`), and with what.
    async fn invoke(&mut self, event: Value) -> (String, Value) {
        self.events.send(event).await.unwrap();
        timeout(PATIENCE, self.made.recv()).await.expect("no answer").unwrap()
    }
}

async fn next(State(api): State<Api>) -> impl IntoResponse {
    let Some(event) = api.events.lock().await.recv().await else { std::future::pending().await };
    let headers = [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned()),
        ("lambda-runtime-deadline-ms", (Clock::system().now() + 35_000).to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:api".to_owned()),
        ("lambda-runtime-trace-id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700".to_owned()),
    ];
    (headers.map(|(name, value)| (HeaderName::from_static(name), value)), event.to_string())
}

async fn outcome(State(api): State<Api>, Path((_, outcome)): Path<(String, String)>, body: Bytes) -> StatusCode {
    api.made.send((outcome, serde_json::from_slice(&body).unwrap())).await.unwrap();
    StatusCode::ACCEPTED
}

/// The command with nothing of the developer's environment.
fn command(dir: &TempDir, runtime_api: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-api-lambda"));
    command.env_clear().current_dir(dir.path()).stdin(Stdio::null()).kill_on_drop(true);
    command
        .env("AWS_LAMBDA_RUNTIME_API", runtime_api)
        .env("AWS_LAMBDA_FUNCTION_NAME", "api")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AUTH", "gateway")
        .env("STREAM", "kinesis:events")
        .env("DEAD_LETTER_QUEUE", "https://sqs.us-east-1.amazonaws.com/123456789012/letters")
        .env("LOG_FORMAT", "json");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_answers_events() {
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return emulators::skip("control-api-lambda", &reason),
    };
    put_secret(&moto.url, "amberflo", &json!({ "ApiKey": KEY }).to_string()).await;
    let sandbox = Sandbox::new(SandboxConfig { api_keys: [KEY.to_owned()].into(), ..SandboxConfig::default() });
    let listener = listen().await;
    let amberflo = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    let (mut runtime, dir) = (RuntimeApi::start().await, TempDir::new().unwrap());
    let mut command = command(&dir, &runtime.address);
    command
        .envs(emulators::environment("http://127.0.0.1:1", &moto.url))
        .env("AMBERFLO_BASE_URL", amberflo)
        .env("API_KEY_SECRET_NAME", "amberflo")
        .env("API_KEY_SECRET_ID", "ApiKey");
    let [log, metrics] = ["log", "metrics"].map(|name| dir.path().join(name));
    let [stdout, stderr] = [&metrics, &log].map(|path| std::fs::File::create(path).unwrap());
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();

    let (made, answer) = runtime.invoke(http("POST", "/ingest", Some(USAGE))).await;
    assert_eq!((&*made, &answer["statusCode"]), ("response", &json!(202)), "{answer}");
    let (made, answer) = runtime.invoke(onboarding()).await;
    assert_eq!((&*made, &answer["outcome"]), ("response", &json!("created")), "{answer}");
    let (made, error) = runtime.invoke(json!({ "Records": [{ "eventSource": "aws:sqs" }] })).await;
    assert_eq!((&*made, error["errorMessage"].as_str().unwrap().contains("aws:sqs")), ("error", true), "{error}");
    let (made, _) = runtime.invoke(http("GET", "/meters/1", None)).await;
    assert_eq!(made, "response", "it goes on");
    assert!(child.try_wait().unwrap().is_none());
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains(KEY) && !log.contains("one@example.com"), "{log}");
    let audit: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let audit: Vec<_> = audit.iter().filter(|line| line["target"] == "audit").collect();
    assert_eq!(audit.len(), 2, "{log}");
    assert_eq!((&audit[0]["action"], &audit[0]["status"]), (&json!("POST /ingest"), &json!(202)));
    assert_eq!((&audit[1]["action"], &audit[1]["outcome"]), (&json!("onboardingRequest"), &json!("created")));
    let metrics = std::fs::read_to_string(metrics).unwrap();
    let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ingest = metrics.iter().find(|line| line["route"] == "/ingest" && line["status"] == "202").unwrap();
    assert_eq!((&ingest["FunctionName"], &ingest["control_api_requests_total"]), (&json!("api"), &json!(1)));
}

#[tokio::test]
async fn settings_that_cannot_work_are_one_line_and_exit_code_2() {
    let dir = TempDir::new().unwrap();
    for (name, value, expected) in [
        ("AUTH", Some("none"), "AUTH: none"),
        ("AUTH", None, "JWT_ISSUER"),
        ("STREAM", None, "allowed in Lambda is kinesis:NAME-OR-ARN"),
        ("STREAM", Some("local:store"), "allowed in Lambda is kinesis:NAME-OR-ARN"),
        ("DEAD_LETTER_QUEUE", None, "DEAD_LETTER_QUEUE"),
        ("AMBERFLO_API_KEY", None, "AMBERFLO_API_KEY"),
        ("AWS_LAMBDA_RUNTIME_API", None, "AWS_LAMBDA_RUNTIME_API"),
        ("EVENT_DETAIL_TYPE", Some("usage"), "EVENT_DETAIL_TYPE"),
    ] {
        let mut command = command(&dir, "127.0.0.1:9");
        command.env("AMBERFLO_API_KEY", KEY);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
        let output = timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}={value:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(expected), "{name}={value:?}: {stderr}");
        assert!(!stderr.contains(KEY), "{stderr}");
    }
}
