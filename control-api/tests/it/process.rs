//! The program itself, as a child process.

mod traces;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::harness::{client, listen};

const PATIENCE: Duration = Duration::from_secs(60);
/// Never to be seen in any output.
const KEY: &str = "k3y-that-must-stay-secret";

/// The command with nothing of the developer's environment.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-api"));
    command.env_clear().current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
        .env("STREAM", format!("local:{}", dir.display()))
        .env("AMBERFLO_API_KEY", KEY)
        .env("LISTEN", "127.0.0.1:0")
        .env("ADMIN_LISTEN", "127.0.0.1:0");
    command
}

/// Exit code and standard error of a program that ends by itself.
async fn ended(command: &mut Command) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap();
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn settings_that_cannot_work_are_one_line_and_exit_code_2() {
    let dir = TempDir::new().unwrap();
    let busy = listen().await;
    let busy = busy.local_addr().unwrap().to_string();
    let ok = [("AUTH", "none")];
    for (settings, names) in [
        (vec![], vec!["JWT_ISSUER"]),
        (vec![("AUTH", "none"), ("LISTEN", "0.0.0.0:0")], vec!["AUTH", "none", "0.0.0.0"]),
        (vec![("AUTH", "gateway")], vec!["AUTH", "gateway", "allowed"]),
        (vec![("AUTH", "open")], vec!["open", "jwt"]),
        (vec![ok[0], ("AMBERFLO_API_KEY", "")], vec!["AMBERFLO_API_KEY"]),
        (vec![ok[0], ("AMBERFLO_BASE_URL", "ftp://x")], vec!["AMBERFLO_BASE_URL", "ftp://x"]),
        (vec![ok[0], ("STREAM", "local:nowhere")], vec!["STREAM", "local:nowhere", "directory"]),
        (vec![ok[0], ("CALLER_REQUESTS_PER_SECOND", "nan")], vec!["requests-per-second", "nan", "number"]),
        (vec![ok[0], ("STREAM", "kinesis:s"), ("AWS_REGION", "eu-west-1")], vec!["DEAD_LETTER_QUEUE"]),
        (vec![ok[0], ("LISTEN", &busy)], vec!["LISTEN", &busy]),
        (vec![ok[0], ("ADMIN_LISTEN", &busy)], vec!["ADMIN_LISTEN", &busy]),
        (vec![ok[0], ("REQUEST_TIMEOUT", "1ms")], vec!["REQUEST_TIMEOUT", "1ms", "allowed"]),
        (vec![ok[0], ("CALLER_REQUESTS_PER_SECOND", "-1")], vec!["CALLER_REQUESTS_PER_SECOND", "-1"]),
        (vec![ok[0], ("CORS_ORIGINS", "https://a.example/path")], vec!["cors-origins", "https://a.example/path"]),
        (vec![ok[0], ("CORS_ORIGINS", "*")], vec!["cors-origins", "*"]),
        (vec![ok[0], ("LOG", "a=b=c")], vec!["LOG", "a=b=c"]),
    ] {
        let (code, stderr) = ended(command(dir.path()).envs(settings.iter().copied())).await;
        assert_eq!(code, Some(2), "{settings:?}: {stderr}");
        assert!(names.iter().all(|name| stderr.contains(name)), "{settings:?}: {stderr}");
        assert!(!stderr.contains(KEY), "{settings:?}");
    }
}

struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    api: String,
    admin: String,
}

impl Process {
    async fn start(dir: &Path, amberflo: SocketAddr, settings: &[(&str, &str)]) -> Self {
        let mut command = command(dir);
        command.env("AMBERFLO_BASE_URL", format!("http://{amberflo}")).env("LOG_FORMAT", "json").env("AUTH", "none");
        let mut child = command.envs(settings.iter().copied()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut process = Self { child, log, api: String::new(), admin: String::new() };
        let started = process.line("started").await;
        process.api = started["api"].as_str().unwrap().to_owned();
        process.admin = started["admin"].as_str().unwrap().to_owned();
        process
    }

    /// The next line of its log with this message.
    async fn line(&mut self, message: &str) -> Value {
        let find = async {
            loop {
                let line = self.log.next_line().await.unwrap().unwrap_or_else(|| panic!("no {message:?} in the log"));
                assert!(!line.contains(KEY), "{line}");
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
                if line["message"] == message {
                    return line;
                }
            }
        };
        timeout(PATIENCE, find).await.unwrap_or_else(|_| panic!("no {message:?} in time"))
    }

    async fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap().code()
    }
}

async fn sandbox() -> (Sandbox, SocketAddr) {
    let sandbox = Sandbox::new(SandboxConfig { api_keys: [KEY.to_owned()].into(), ..SandboxConfig::default() });
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    (sandbox, address)
}

#[tokio::test]
async fn every_mutation_leaves_one_line_whatever_the_log_level() {
    let (dir, (sandbox, amberflo)) = (TempDir::new().unwrap(), sandbox().await);
    let mut process = Process::start(dir.path(), amberflo, &[("LOG", "warn,control_api::app=info")]).await;
    let client = client();
    let redrive = |body: &'static str| {
        let request = client.post(format!("{}/dead-letters/redrive", process.api)).body(body);
        request.header("content-type", "application/json").header("x-request-id", "r-1").send()
    };
    assert_eq!(redrive(r#"{"reason": ["rejected"]}"#).await.unwrap().status(), StatusCode::OK);
    assert_eq!(redrive("{").await.unwrap().status(), StatusCode::BAD_REQUEST);
    let request = client.delete(format!("{}/dead-letters?confirm=local", process.api));
    assert_eq!(request.header("origin", "https://evil.example").send().await.unwrap().status(), StatusCode::FORBIDDEN);
    // What was attempted is in the line, although nobody knows how it ended.
    let failing = r#"{"operations": ["filtering_rules"], "fail_after": {}}"#;
    sandbox.set_faults(amberflo_sandbox::Faults::from_json(failing.as_bytes()).unwrap()).unwrap();
    let rule =
        r#"{"id": "r", "meterApiName": "m", "ingestionTimeRange": {"startTimeInSeconds": 1, "endTimeInSeconds": 2}}"#;
    let request = client.delete(format!("{}/usage", process.api)).header("content-type", "application/json");
    assert_eq!(request.body(rule).send().await.unwrap().status(), StatusCode::BAD_GATEWAY);
    let read = client.get(format!("{}/dead-letters", process.api)).send().await.unwrap();
    assert_eq!(read.status(), StatusCode::OK);
    let metrics = client.get(format!("{}/metrics", process.admin)).send().await.unwrap().text().await.unwrap();
    let counted = r#"control_api_requests_total{method="POST",route="/dead-letters/redrive",status="200"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");

    let line = process.line("mutation").await;
    assert_eq!(
        (&line["target"], &line["subject"], &line["request_id"]),
        (&"audit".into(), &"local".into(), &"r-1".into())
    );
    assert_eq!((&line["action"], &line["status"]), (&"POST /dead-letters/redrive".into(), &200.into()));
    assert!(line["note"].as_str().unwrap().contains("\"redriven\":0"), "{line}");
    assert_eq!(process.line("mutation").await["status"], 400);
    let line = process.line("mutation").await;
    assert_eq!((&line["subject"], &line["path"]), (&"unknown".into(), &"/dead-letters".into()), "{line}");
    assert!(line.get("query").is_none(), "a stranger's: {line}");
    let line = process.line("mutation").await;
    let note: Value = serde_json::from_str(line["note"].as_str().unwrap()).unwrap();
    assert_eq!((&line["status"], &note["rule"]["id"]), (&502.into(), &"r".into()), "{line}");
    assert_eq!(process.terminate().await, Some(0));
    while let Some(line) = process.log.next_line().await.unwrap() {
        assert!(!line.contains("mutation"), "a read is no mutation: {line}");
    }
}

#[tokio::test]
async fn a_key_that_is_refused_shows_at_the_start() {
    let (dir, (_sandbox, amberflo)) = (TempDir::new().unwrap(), sandbox().await);
    let process = Process::start(dir.path(), amberflo, &[("AMBERFLO_API_KEY", "another-key")]).await;
    let ready = client().get(format!("{}/ready", process.admin)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// A patch that no number type holds was the end of the task that audits.
#[tokio::test]
async fn an_audit_line_holds_whatever_was_sent_and_a_mutation_that_is_cut_off_leaves_one_too() {
    let (dir, (sandbox, amberflo)) = (TempDir::new().unwrap(), sandbox().await);
    let mut process = Process::start(dir.path(), amberflo, &[("SHUTDOWN_GRACE", "1s")]).await;
    let client = client();
    let odd = r#"{"reason": "rejected", "patch": {"n": 12345678901234567890.123456789, "x": 1e400, "s": "\ud800"}}"#;
    let request = client.post(format!("{}/dead-letters/redrive", process.api)).body(odd);
    let status = request.header("content-type", "application/json").send().await.unwrap().status();
    assert!(status == StatusCode::OK || status == StatusCode::BAD_REQUEST, "{status}");
    let line = process.line("mutation").await;
    assert_eq!(line["status"], status.as_u16());
    assert!(line["note"].as_str().unwrap().contains("12345678901234567890.123456789"), "{line}");

    let hang = r#"{"operations": ["filtering_rules"], "hang_after": {}}"#;
    sandbox.set_faults(amberflo_sandbox::Faults::from_json(hang.as_bytes()).unwrap()).unwrap();
    let rule =
        r#"{"id": "r", "meterApiName": "m", "ingestionTimeRange": {"startTimeInSeconds": 1, "endTimeInSeconds": 2}}"#;
    let request = client.delete(format!("{}/usage", process.api)).header("content-type", "application/json").body(rule);
    let cut_off = tokio::spawn(request.send());
    let arrived = || serde_json::to_value(sandbox.stats()).unwrap()["operations"]["filtering_rules"]["requests"] == 1;
    while !arrived() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(process.terminate().await, Some(0));
    assert!(cut_off.await.unwrap().is_err());
    let line = process.line("mutation cut off: how it ended is unknown").await;
    let note: Value = serde_json::from_str(line["note"].as_str().unwrap()).unwrap();
    assert_eq!(note["rule"]["id"], "r", "{line}");
}

#[tokio::test]
async fn its_status_page_has_the_numbers_of_its_metrics() {
    let (dir, (_sandbox, amberflo)) = (TempDir::new().unwrap(), sandbox().await);
    let mut process = Process::start(dir.path(), amberflo, &[("CORS_ORIGINS", "https://admin.example.com")]).await;
    let client = client();
    for _ in 0..3 {
        client.get(format!("{}/meters/%3Cb%3E", process.api)).send().await.unwrap();
    }
    let text =
        async |path: &str| client.get(format!("{}{path}", process.admin)).send().await.unwrap().text().await.unwrap();
    let (page, metrics) = (text("/").await, text("/metrics").await);
    let series = "control_api_requests_total{route=\"/meters/{meterId}\",method=\"GET\",status=\"404\"}";
    let shown = format!("<data value=\"3\" title=\"{}\">3</data>", series.replace('"', "&quot;"));
    assert!(page.contains(&shown), "{page}");
    let same = |line: &&str| ["/meters/{meterId}", "\"GET\"", "404"].iter().all(|label| line.contains(label));
    let line = metrics.lines().filter(|line| line.starts_with("control_api_requests_total")).find(same);
    assert!(line.is_some_and(|line| line.ends_with(" 3")), "{metrics}");
    for text in
        ["control-api <span class=\"badge good\">ready", "https://admin.example.com", "(redacted)", "Time to answer"]
    {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains(KEY), "the API key is on the page");
    assert_eq!(process.terminate().await, Some(0));
}

#[tokio::test]
async fn it_is_ready_until_amberflo_refuses_the_key_and_while_it_drains_it_answers() {
    let (dir, (sandbox, amberflo)) = (TempDir::new().unwrap(), sandbox().await);
    let mut process = Process::start(dir.path(), amberflo, &[]).await;
    let client = client();
    let ready = || async { client.get(format!("{}/ready", process.admin)).send().await.unwrap().status() };
    let meter = || async { client.get(format!("{}/meters/m", process.api)).send().await.unwrap().status() };
    assert_eq!(ready().await, StatusCode::OK);
    assert_eq!(meter().await, StatusCode::NOT_FOUND);
    let refuse = amberflo_sandbox::Faults { revoked_keys: [KEY.to_owned()].into(), ..Default::default() };
    sandbox.set_faults(refuse).unwrap();
    assert_eq!(meter().await, StatusCode::BAD_GATEWAY);
    assert_eq!(ready().await, StatusCode::SERVICE_UNAVAILABLE);
    let text =
        async |path: &str| client.get(format!("{}{path}", process.admin)).send().await.unwrap().text().await.unwrap();
    let line = text("/ready").await;
    assert!(line.starts_with("not ready: Amberflo refuses our API key since 20"), "{line}");
    assert!(line.contains("401 Unauthorized") && line.lines().count() == 1 && !line.contains(KEY), "{line}");
    sandbox.set_faults(amberflo_sandbox::Faults::default()).unwrap();
    // Without a request: behind a load balancer none would come.
    let again = async {
        while ready().await != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("it finds out by itself");
    assert_eq!(client.get(format!("{}/health", process.admin)).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(process.terminate().await, Some(0));
}
