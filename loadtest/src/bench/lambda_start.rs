//! How soon the control API answers as a Lambda function that has just been started, and how large the programs are.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use shared::clock::{Clock, millis};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::control_api::Amberflo;
use super::measure::{heading, mebibytes, median, percentile, row, skipped};

const TITLE: &str = "Control API as a Lambda function: start to first answer";
const PROGRAM: &str = "control-api-lambda";
const BUILD: &str = "cargo build --release --features control-api/lambda --bin control-api-lambda";
const RUNTIME: &str = "/2018-06-01/runtime";
const LIMIT: Duration = Duration::from_secs(30);

/// Starts it so often, then prints how long that took, and sizes.
pub async fn run(starts: usize) -> anyhow::Result<()> {
    let program = beside_us(PROGRAM)?;
    if program.exists() {
        let (mut ready, mut answered) = (Vec::new(), Vec::new());
        let amberflo = Amberflo::start().await?;
        // Once more than counts: the first start reads the program from the disk.
        for _ in 0..=starts {
            let start = start(&program, &amberflo).await?;
            ready.push(start.ready);
            answered.push(start.answered);
        }
        heading(
            TITLE,
            &[
                &format!(
                    "{starts} starts, the program in the file cache; GET /meters/{{id}}, and the sandbox behind it"
                ),
                "a runtime API and the sandbox in the process of the benchmark, over loopback sockets",
                "the API key comes from a setting: with API_KEY_SECRET_NAME a call of Secrets Manager comes on top",
            ],
        );
        row("from the start of the process", ["median", "least", "most"].map(str::to_owned));
        for (name, times) in [("until it asks for an event", ready), ("until its first answer", answered)] {
            let times = times[1..].to_vec();
            let columns =
                [median(times.clone()), percentile(times.clone(), 0.0), percentile(times, 1.0 - f64::EPSILON)];
            row(name, columns.map(|time| format!("{time:.1} ms")));
        }
    } else {
        skipped(TITLE, &format!("there is no {}; {BUILD}", program.display()));
    }
    sizes().await
}

async fn sizes() -> anyhow::Result<()> {
    heading("Sizes of the programs", &["as built: with line tables for backtraces; stripped: by `strip`"]);
    row("", ["as built", "stripped"].map(str::to_owned));
    for name in ["control-api", PROGRAM] {
        let program = beside_us(name)?;
        let built = std::fs::metadata(&program).ok().map(|metadata| metadata.len());
        let shown = |bytes: Option<u64>| bytes.map_or("-".to_owned(), mebibytes);
        row(name, [shown(built), shown(stripped(&program).await?)]);
    }
    Ok(())
}

/// The size without symbols; `None` where there is no program, or no `strip`.
async fn stripped(program: &Path) -> anyhow::Result<Option<u64>> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("stripped");
    let done = Command::new("strip").arg("-o").arg(&copy).arg(program).stderr(Stdio::null()).status().await;
    let is_done = done.is_ok_and(|status| status.success());
    Ok(is_done.then(|| std::fs::metadata(&copy)).transpose()?.map(|metadata| metadata.len()))
}

fn beside_us(program: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe().context("this program does not know where it is")?.with_file_name(program))
}

/// Milliseconds since the process was started.
struct Start {
    ready: f64,
    answered: f64,
}

async fn start(program: &Path, amberflo: &Amberflo) -> anyhow::Result<Start> {
    let mut runtime = RuntimeApi::start(request(&amberflo.meter)).await?;
    let started = Instant::now();
    let since = |at: Instant| (at - started).as_secs_f64() * 1000.0;
    let mut child = Command::new(program)
        // Settings in our environment are not meant for it.
        .env_clear()
        .env("AWS_LAMBDA_RUNTIME_API", &runtime.address)
        .env("AWS_LAMBDA_FUNCTION_NAME", "control-api")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "local")
        .env("AWS_SECRET_ACCESS_KEY", "local")
        .env("AUTH", "gateway")
        .env("STREAM", "kinesis:usage")
        .env("DEAD_LETTER_QUEUE", "https://sqs.us-east-1.amazonaws.com/123456789012/usage-dead-letters")
        .env("AMBERFLO_BASE_URL", format!("http://{}", amberflo.address))
        .env("AMBERFLO_API_KEY", "sandbox-key")
        .env("LOG", "error")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.display().to_string())?;
    let next = async {
        tokio::select! {
            seen = timeout(LIMIT, runtime.seen.recv()) => seen.context("it does not answer")?.context("the runtime API ended"),
            status = child.wait() => anyhow::bail!("{PROGRAM} ended: {}", status?),
        }
    };
    let first = next.await?;
    let Seen::Asked(ready) = first else { anyhow::bail!("{PROGRAM} answered before it asked") };
    let answer = timeout(LIMIT, runtime.seen.recv()).await.context("it does not answer")?;
    let Some(Seen::Made(answered, answer)) = answer else { anyhow::bail!("the runtime API ended") };
    anyhow::ensure!(answer["statusCode"] == 200, "{PROGRAM} answered {answer}");
    child.kill().await?;
    Ok(Start { ready: since(ready), answered: since(answered) })
}

/// As an HTTP API of API Gateway hands it over, in payload format 2.0, behind its JWT authorizer.
fn request(meter: &str) -> Value {
    let path = format!("/meters/{meter}");
    json!({
        "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "",
        "headers": {"accept": "application/json", "host": "api.example.com"},
        "requestContext": {
            "accountId": "123456789012", "apiId": "api", "domainName": "api.example.com", "domainPrefix": "api",
            "http": {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "bench"},
            "requestId": "JKJaXmPLvHcESHA=", "routeKey": "$default", "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000", "timeEpoch": 1_773_342_238_390_i64,
            "authorizer": {"jwt": {"claims": {"sub": "bench", "client_id": "bench"}, "scopes": null}},
        },
        "isBase64Encoded": false,
    })
}

/// Hands out one event, and takes what is made of it.
struct RuntimeApi {
    address: String,
    seen: mpsc::Receiver<Seen>,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

enum Seen {
    /// The first event was asked for.
    Asked(Instant),
    /// What was made of it.
    Made(Instant, Value),
}

struct Shared {
    event: Value,
    is_handed_out: AtomicBool,
    seen: mpsc::Sender<Seen>,
}

impl RuntimeApi {
    async fn start(event: Value) -> anyhow::Result<Self> {
        let (sender, seen) = mpsc::channel(2);
        let shared = Arc::new(Shared { event, is_handed_out: AtomicBool::new(false), seen: sender });
        let router = Router::new()
            .route(&format!("{RUNTIME}/invocation/next"), get(next))
            .route(&format!("{RUNTIME}/invocation/{{id}}/{{outcome}}"), post(outcome))
            .with_state(shared);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let server = AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, router).await }));
        Ok(Self { address, seen, _server: server })
    }
}

async fn next(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if shared.is_handed_out.swap(true, Ordering::AcqRel) {
        // It waits for an event that never comes, until it is killed.
        return std::future::pending().await;
    }
    let _ = shared.seen.send(Seen::Asked(Instant::now())).await;
    let deadline = Clock::system().now() + millis(LIMIT);
    let headers = [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned()),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:us-east-1:123456789012:function:control-api".to_owned(),
        ),
    ];
    (headers.map(|(name, value)| (HeaderName::from_static(name), value)), shared.event.to_string())
}

async fn outcome(
    State(shared): State<Arc<Shared>>,
    UrlPath((_, outcome)): UrlPath<(String, String)>,
    body: Bytes,
) -> StatusCode {
    let at = Instant::now();
    let made = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    let made = if outcome == "response" { made } else { json!({ "failure": made }) };
    let _ = shared.seen.send(Seen::Made(at, made)).await;
    StatusCode::ACCEPTED
}
