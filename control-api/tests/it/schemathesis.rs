//! schemathesis makes requests from the API's own description and holds the answers against it: no server error, nothing
//! that the description does not allow.
//!
//! `tests/schemathesis/setup.sh` installs it. Where it is missing the test says so and passes, except with `CI=true`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use emulators::skip;
use reqwest::{Method, StatusCode};
use serde_json::json;
use shared::clock::Clock;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::auth::AUDIENCE;
use crate::auth::issuer::{Issuer, Key};
use crate::harness::{Api, answer};
use crate::ingest::event_bus::{self, WorkerBus};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(900);
/// Requests made for each endpoint, beside those that follow from its description.
const EXAMPLES: &str = "40";

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_as_described_whatever_is_asked() {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/schemathesis/bin/schemathesis");
    if !program.exists() {
        let what = "target/tools/schemathesis is missing: run control-api/tests/schemathesis/setup.sh";
        return skip("control-api-schemathesis", what);
    }
    let bus = WorkerBus::start().await;
    let key = Key::ec("key");
    let issuer = Issuer::start(&[&key]).await;
    let hour = Clock::system().now() / 1000 + 3600;
    let token = key.sign(&json!({"iss": issuer.name, "aud": AUDIENCE, "sub": "schemathesis", "exp": hour}));
    let flags = ["--auth=jwt", "--jwt-issuer", &issuer.name, "--jwt-audience", AUDIENCE];
    let flags = [&flags[..], &["--caller-requests-per-second", "0"]].concat();
    let api = Api::start_changed(&flags, |app| app.bus = event_bus::client(app, &bus.url)).await;
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("schemathesis.toml"), configuration(&token, &meter(&api, &token).await)).unwrap();
    let run = Command::new(program.canonicalize().unwrap())
        .args(["run", &format!("{}/openapi.json", api.url), "--max-examples", EXAMPLES, "--seed", "1", "--no-color"])
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .env("PYTHONUTF8", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("schemathesis takes too long").unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    println!("{stdout}");
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("Tested: 12"), "an endpoint was left out, or is new");
}

/// A meter that is there.
async fn meter(api: &Api, token: &str) -> String {
    let meter = json!({"label": "Kept", "meterApiName": "kept", "meterType": "sum_of_all_usage"});
    let request = api.request(Method::POST, "/meters").header("content-type", "application/json");
    let (status, created) = answer(request.bearer_auth(token).body(meter.to_string())).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    created["data"]["id"].as_str().unwrap().to_owned()
}

fn configuration(token: &str, meter: &str) -> String {
    format!(
        r#"
suppress-health-check = ["all"]
[auth.openapi.bearer]
bearer = "{token}"
[generation]
database = "none"
# What one part of a request means for another, a schema cannot say: that a start lies before an end, say.
[checks]
positive_data_acceptance.enabled = false
# Headers that nobody knows are no error; it is the only endpoint that has one of its own.
[[operations]]
include-path = "/ingest"
checks.negative_data_rejection.enabled = false
[[operations]]
include-name = ["GET /meters/{{meterId}}", "PUT /meters/{{meterId}}", "GET /usage/{{meterId}}/events"]
parameters = {{ "path.meterId" = "{meter}" }}
"#
    )
}
