//! Real AWS clients put events on the local bus, unchanged: boto3, the AWS CLI, the SDK for JavaScript.
//!
//! `tests/clients/setup.sh` installs them. Where one is missing its test says so and passes, except with `CI=true`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use emulators::skip;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::bus::LocalBus;

/// The AWS CLI starts a Python program for every call; the machine may be busy with the other tests.
const TIME_LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn boto3_puts_events() {
    let python = tools().join("python/bin/python");
    put_events("bus-client-boto3", python, "boto3_put_events.py", &["python/requirements.txt"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aws_cli_puts_events() {
    let python = tools().join("python/bin/python");
    put_events("bus-client-aws-cli", python, "aws_cli_put_events.py", &["python/requirements.txt"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_sdk_puts_events() {
    put_events("bus-client-aws-sdk-js", "node".into(), "js/put_events.mjs", &["js/installed-lock.json"]).await;
}

/// Runs a client's script against a bus of its own and compares the stream with what it put.
async fn put_events(suite: &str, program: PathBuf, script: &str, needs: &[&str]) {
    if let Some(missing) = needs.iter().find(|file| !tools().join(file).exists()) {
        return skip(suite, &format!("target/tools/{missing} is missing: run ingest-worker/tests/clients/setup.sh"));
    }
    let bus = LocalBus::start().await;
    let home = TempDir::new().unwrap();
    let child = Command::new(&program)
        .arg(manifest_dir().join("tests/clients").join(script))
        .current_dir(tools().join("js").canonicalize().unwrap_or_else(|_| manifest_dir()))
        // Nothing of the developer's settings: no profile, no proxy, no other endpoint.
        .env_clear()
        .env("PATH", environment("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUTF8", "1")
        .env("AWS_ENDPOINT_URL_EVENTBRIDGE", format!("http://{}", bus.address))
        .env("AWS_ACCESS_KEY_ID", "local")
        .env("AWS_SECRET_ACCESS_KEY", "local")
        // Each reads but one of them, as its users must know: see README.md.
        .env(if suite.ends_with("js") { "AWS_REGION" } else { "AWS_DEFAULT_REGION" }, "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(TIME_LIMIT, child).await.expect("the client takes too long") {
        Ok(output) => output,
        Err(error) => return skip(suite, &format!("{} cannot be started: {error}", program.display())),
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{suite}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    let accepted: Vec<String> = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    check_stream(&bus, &accepted).await;
}

/// What `tests/clients/scenario.py` and its like put, entry by entry.
async fn check_stream(bus: &LocalBus, accepted: &[String]) {
    let mut envelopes: BTreeMap<String, String> = BTreeMap::new();
    for record in bus.records().await {
        envelopes.insert(record.partition_key, String::from_utf8(record.data.to_vec()).unwrap());
    }
    let numbers: Vec<_> = (0..14).filter(|&n| n != 11).collect();
    assert_eq!((envelopes.len(), accepted.len()), (numbers.len(), numbers.len()));
    for (n, id) in numbers.into_iter().zip(accepted) {
        let text = &envelopes[&format!("tenant-{n}")];
        let detail = format!(
            r#""detail":{{"tenantId": "tenant-{n}", "meterApiName": "calls", "meterValue": {n}.50, "note": "grüße ✓"}}}}"#
        );
        assert!(text.ends_with(&detail), "{text}");
        let envelope: Value = serde_json::from_str(text).unwrap();
        let detail_type = if n == 12 { "sbt_aws_ingestUsage" } else { "ingestUsage" };
        assert_eq!((&envelope["id"], &envelope["source"]), (&json!(id), &json!("bus.client")));
        assert_eq!(envelope["detail-type"], detail_type);
        if n == 13 {
            assert_eq!(envelope["time"], "2023-11-14T22:13:20Z");
            assert_eq!(envelope["resources"], json!(["arn:aws:s3:::bucket"]));
        } else {
            assert_ne!(envelope["time"], "2023-11-14T22:13:20Z");
            assert_eq!(envelope["resources"], json!([]));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no config module")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn manifest_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tools() -> PathBuf {
    manifest_dir().join("../target/tools")
}
