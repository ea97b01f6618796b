//! The program itself: the real `bootstrap` as a child process, between a runtime API like Lambda's, emulated services
//! of AWS, and a sandbox of Amberflo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use emulators::{CannedKinesis, CannedSettings, CannedShard, Moto, create_queue, put_secret, take_messages};
use serde_json::{Value, json};
use shared::clock::Clock;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout};

use super::{ARN, SHARD, number, record_in, usages};
use crate::process::{Amberflo, KEY, PATIENCE, eventually, run, text};

const API: &str = "/2018-06-01/runtime";
/// No time in which `bootstrap` must be ready is asserted, but an invocation ends before its deadline.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What `bootstrap` made of an event.
#[derive(Debug, PartialEq)]
pub enum Made {
    Answer(Value),
    Error(String),
}

/// Hands out events one by one, and takes what is made of them.
pub struct RuntimeApi {
    pub address: String,
    events: mpsc::Sender<(String, Duration)>,
    made: mpsc::Receiver<Made>,
}

#[derive(Clone)]
struct Api {
    events: Arc<Mutex<mpsc::Receiver<(String, Duration)>>>,
    made: mpsc::Sender<Made>,
}

impl RuntimeApi {
    pub async fn start() -> Self {
        let (events, waiting) = mpsc::channel(8);
        let (sender, made) = mpsc::channel(8);
        let api = Api { events: Arc::new(Mutex::new(waiting)), made: sender };
        let router = Router::new()
            .route(&format!("{API}/invocation/next"), get(next))
            .route(&format!("{API}/invocation/{{id}}/{{outcome}}"), post(outcome))
            .with_state(api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { address, events, made }
    }

    pub async fn invoke(&mut self, records: &[Value], limit: Duration) -> Made {
        self.invoke_with(&json!({ "Records": records }).to_string(), limit).await
    }

    pub async fn invoke_with(&mut self, payload: &str, limit: Duration) -> Made {
        self.events.send((payload.to_owned(), limit)).await.unwrap();
        timeout(PATIENCE, self.made.recv()).await.expect("no answer").unwrap()
    }
}

async fn next(State(api): State<Api>) -> impl IntoResponse {
    let Some((event, limit)) = api.events.lock().await.recv().await else { std::future::pending().await };
    let deadline = Clock::system().now() + i64::try_from(limit.as_millis()).unwrap();
    let headers = [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned()),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:ingest".to_owned()),
        ("lambda-runtime-trace-id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700".to_owned()),
    ];
    (headers.map(|(name, value)| (HeaderName::from_static(name), value)), event)
}

async fn outcome(State(api): State<Api>, UrlPath((_, outcome)): UrlPath<(String, String)>, body: Bytes) -> StatusCode {
    let made = match outcome.as_str() {
        "response" => Made::Answer(serde_json::from_slice(&body).unwrap()),
        _ => Made::Error(text(&body)),
    };
    api.made.send(made).await.unwrap();
    StatusCode::ACCEPTED
}

/// Everything around one function.
pub struct Cloud {
    pub runtime: RuntimeApi,
    kinesis: CannedKinesis,
    moto: Moto,
    queue: String,
    dir: TempDir,
}

/// The program at work.
pub struct Bootstrap {
    child: Child,
    log: PathBuf,
    metrics: PathBuf,
}

impl Cloud {
    pub async fn start(suite: &str) -> Option<Self> {
        let moto = match Moto::start().await {
            Ok(moto) => moto,
            Err(reason) => {
                emulators::skip(suite, &reason);
                return None;
            }
        };
        let queue = create_queue(&moto.url, "dead-letters").await;
        put_secret(&moto.url, "amberflo", &json!({ "ApiKey": KEY }).to_string()).await;
        Some(Self {
            runtime: RuntimeApi::start().await,
            kinesis: CannedKinesis::start(vec![CannedShard::idle()], CannedSettings::default()),
            moto,
            queue,
            dir: TempDir::new().unwrap(),
        })
    }

    pub fn command(&self, amberflo: &str) -> Command {
        let mut command = command(self.dir.path(), &self.runtime);
        command
            .envs(emulators::environment(&self.kinesis.url, &self.moto.url))
            .env("AMBERFLO_BASE_URL", amberflo)
            .env("API_KEY_SECRET_NAME", "amberflo")
            .env("API_KEY_SECRET_ID", "ApiKey")
            .env("DEAD_LETTER_QUEUE", &self.queue)
            .env("RATE_REQUESTS_PER_SECOND", "0");
        command
    }

    pub fn spawn(&self, command: &mut Command) -> Bootstrap {
        Bootstrap::spawn(command, self.dir.path())
    }
}

impl Bootstrap {
    pub fn spawn(command: &mut Command, dir: &Path) -> Self {
        let [log, metrics] = ["log", "metrics"].map(|name| dir.join(name));
        let [stdout, stderr] = [&metrics, &log].map(|path| std::fs::File::create(path).unwrap());
        let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        Self { child, log, metrics }
    }

    pub fn logs(&self) -> Vec<Value> {
        let logs = text(&std::fs::read(&self.log).unwrap());
        assert!(!logs.contains(KEY), "the API key is in the logs");
        logs.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// What CloudWatch makes of the counter in standard output, by the values of its label.
    fn counted(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for line in text(&std::fs::read(&self.metrics).unwrap()).lines() {
            let document: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            let [directive] = &document["_aws"]["CloudWatchMetrics"].as_array().unwrap()[..] else { panic!("{line}") };
            for member in directive["Dimensions"][0].as_array().unwrap() {
                assert!(document[member.as_str().unwrap()].is_string(), "{member}: {line}");
            }
            assert_eq!(
                (&directive["Namespace"], &document["FunctionName"]),
                (&json!("AmberfloMetering"), &json!("ingest"))
            );
            for definition in directive["Metrics"].as_array().unwrap() {
                assert!(!document[definition["Name"].as_str().unwrap()].is_null(), "{definition}: {line}");
            }
            if let Some(count) = document[name].as_u64() {
                *counts.entry(document[label].as_str().unwrap_or_default().to_owned()).or_default() += count;
            }
        }
        counts
    }

    fn summary(&self) -> Value {
        let is_summary = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("event "));
        self.logs().into_iter().rfind(is_summary).expect("a summary")
    }
}

/// The command with what Lambda sets, and nothing of the developer's environment.
pub fn command(dir: &Path, runtime: &RuntimeApi) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootstrap"));
    command.env_clear().current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
        .env("AWS_LAMBDA_RUNTIME_API", &runtime.address)
        .env("AWS_LAMBDA_FUNCTION_NAME", "ingest")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("LOG_FORMAT", "json");
    command
}

pub fn failures(made: &Made) -> Vec<&str> {
    let Made::Answer(answer) = made else { panic!("{made:?}") };
    let failures = answer["batchItemFailures"].as_array().unwrap();
    failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_billed_and_bad_ones_lie_in_the_queue() {
    let Some(mut cloud) = Cloud::start("lambda-bootstrap").await else { return };
    let amberflo = Amberflo::start().await;
    let mut bootstrap = cloud.spawn(cloud.command(&amberflo.url).env("STREAM", "kinesis:events"));
    let mut records = usages(0..40);
    records.push(record_in(SHARD, 40, "not json"));
    records.extend((30..35).zip(usages(30..35)).map(|(n, mut copy)| {
        copy["kinesis"]["sequenceNumber"] = number(n + 11).into();
        copy
    }));
    assert_eq!(failures(&cloud.runtime.invoke(&records, LIMIT).await), [""; 0]);
    amberflo.billed(40).await;
    assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0);
    let summary = bootstrap.summary();
    for (name, value) in [("records", 46), ("delivered", 40), ("duplicates", 5), ("dead_lettered", 1), ("unsettled", 0)]
    {
        assert_eq!(summary[name], value, "{name}: {summary}");
    }
    let messages = take_messages(&cloud.moto.url, &cloud.queue).await;
    assert_eq!(messages.len(), 1);
    let letter: Value = serde_json::from_str(messages[0].body.as_deref().unwrap()).unwrap();
    let place = [&letter["stream"], &letter["shard"], &letter["sequenceNumber"]];
    assert_eq!(place, [&json!("kinesis:events"), &json!(SHARD), &json!(number(40))], "as the worker names it");

    // The same process takes the next event.
    assert_eq!(failures(&cloud.runtime.invoke(&usages(100..150), LIMIT).await), [""; 0]);
    amberflo.billed(90).await;
    let foreign = usages(0..1).into_iter().map(|mut record| {
        record["eventSourceARN"] = ARN.replace("stream/events", "stream/others").into();
        record
    });
    let made = cloud.runtime.invoke(&foreign.collect::<Vec<_>>(), LIMIT).await;
    assert!(matches!(&made, Made::Error(error) if error.contains("others")), "{made:?}");
    assert!(bootstrap.child.try_wait().unwrap().is_none(), "it goes on");
    amberflo.assert_billed_once(90);

    let counted = |name, label| bootstrap.counted(name, label).into_iter().collect::<Vec<_>>();
    let outcome = |name: &str, count| (name.to_owned(), count);
    assert_eq!(
        counted("ingest_events_total", "outcome"),
        [outcome("dead_lettered", 1), outcome("delivered", 90), outcome("duplicate", 5)]
    );
    assert_eq!(counted("ingest_records_read_total", "none"), [outcome("", 96)], "the flow balances");
    assert_eq!(counted("ingest_dead_letters_total", "reason"), [outcome("not_json", 1)]);
    assert_eq!(
        counted("amberflo_requests_total", "outcome").iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["2xx"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_namespace_no_metrics_are_printed() {
    let Some(mut cloud) = Cloud::start("lambda-without-metrics").await else { return };
    let amberflo = Amberflo::start().await;
    let mut command = cloud.command(&amberflo.url);
    let bootstrap = cloud.spawn(command.env("STREAM", "kinesis:events").env("METRICS_NAMESPACE", ""));
    assert_eq!(failures(&cloud.runtime.invoke(&usages(0..5), LIMIT).await), [""; 0]);
    assert_eq!(text(&std::fs::read(&bootstrap.metrics).unwrap()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_setting_dead_letters_name_the_one_of_the_event() {
    let Some(mut cloud) = Cloud::start("lambda-stream-of-the-event").await else { return };
    let amberflo = Amberflo::start().await;
    let _bootstrap = cloud.spawn(&mut cloud.command(&amberflo.url));
    assert_eq!(failures(&cloud.runtime.invoke(&[record_in(SHARD, 1, "not json")], LIMIT).await), [""; 0]);
    let messages = take_messages(&cloud.moto.url, &cloud.queue).await;
    let letter: Value = serde_json::from_str(messages[0].body.as_deref().unwrap()).unwrap();
    assert_eq!(letter["stream"], format!("kinesis:{ARN}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_takes_effect_in_the_next_invocation() {
    let Some(mut cloud) = Cloud::start("lambda-rotation").await else { return };
    put_secret(&cloud.moto.url, "amberflo", r#"{"ApiKey": "wrong"}"#).await;
    let amberflo = Amberflo::start().await;
    let bootstrap =
        cloud.spawn(cloud.command(&amberflo.url).env("STREAM", "kinesis:events").env("API_KEY_REFRESH", "1s"));
    let short = Duration::from_secs(5);
    assert_eq!(failures(&cloud.runtime.invoke(&usages(0..10), short).await), [number(0)]);
    assert_eq!(bootstrap.summary()["unsettled"], 10);
    put_secret(&cloud.moto.url, "amberflo", &json!({ "ApiKey": KEY }).to_string()).await;
    assert_eq!(failures(&cloud.runtime.invoke(&usages(0..10), LIMIT).await), [""; 0]);
    amberflo.billed(10).await;
    assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_is_given_up_before_the_deadline() {
    let Some(mut cloud) = Cloud::start("lambda-deadline").await else { return };
    // It takes connections, and nothing more.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let bootstrap = cloud.spawn(cloud.command(&url).env("STREAM", "kinesis:events"));
    eventually("the function to start", async || bootstrap.logs().iter().any(|line| line["message"] == "started"))
        .await;
    let started = Instant::now();
    let limit = Duration::from_secs(10);
    assert_eq!(failures(&cloud.runtime.invoke(&usages(0..10), limit).await), [number(0)]);
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_one_line_and_exit_code_2() {
    let Some(cloud) = Cloud::start("lambda-configuration").await else { return };
    for (name, value, expected) in [
        ("STREAM", Some("local:store"), "allowed in Lambda is kinesis:NAME-OR-ARN"),
        ("DEAD_LETTER_QUEUE", None, "DEAD_LETTER_QUEUE"),
        ("DEAD_LETTER_QUEUE", Some("not-a-queue"), "DEAD_LETTER_QUEUE"),
        ("API_KEY_SECRET_NAME", None, "API_KEY_SECRET_NAME"),
        ("API_KEY_SECRET_NAME", Some("none"), "API_KEY_SECRET_NAME"),
        ("API_KEY_SECRET_ID", Some("none"), "API_KEY_SECRET_ID"),
        ("AWS_LAMBDA_RUNTIME_API", None, "AWS_LAMBDA_RUNTIME_API"),
        ("BATCH_MAX_EVENTS", Some("0"), "whole number from 1"),
        ("_HANDLER", Some("index.handler"), "deliver (or bootstrap, which is the same) or forward"),
    ] {
        let mut command = cloud.command("http://127.0.0.1:9");
        command.env("STREAM", "kinesis:events");
        assert_refused(&mut command, name, value, expected).await;
    }
}

/// With this value of a setting the program ends with exit code 2 and one line that says `expected`, and no secret.
pub async fn assert_refused(command: &mut Command, name: &str, value: Option<&str>, expected: &str) {
    match value {
        Some(value) => command.env(name, value),
        None => command.env_remove(name),
    };
    let output = run(command).await;
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{name}={value:?}: {stderr}");
    let lines: Vec<_> = stderr.lines().filter(|line| !line.is_empty() && !line.contains("--help")).collect();
    assert!(lines.len() == 1 && lines[0].contains(expected), "{name}={value:?}: {stderr}");
    assert!(!stderr.contains(KEY) && !stderr.contains("panicked"), "{stderr}");
}
