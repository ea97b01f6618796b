//! schemathesis makes requests from the API's own description and holds the answers against it: no server error, nothing
//! that the description does not allow.
//!
//! `tests/schemathesis/setup.sh` installs it. Where it is missing the test says so and passes, except with `CI=true`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use emulators::skip;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::Api;
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
    let flags = ["--caller-requests-per-second", "0"];
    let api = Api::start_changed(&flags, |app| app.bus = event_bus::client(app, &bus.url)).await;
    let home = TempDir::new().unwrap();
    let run = Command::new(program.canonicalize().unwrap())
        .args(["run", &format!("{}/openapi.json", api.url), "--checks", "all"])
        // With AUTH=none the described bearer token is ignored, as it should be.
        .args(["--exclude-checks", "ignored_auth", "--max-examples", EXAMPLES, "--seed", "1"])
        .args(["--no-color", "--suppress-health-check", "all", "--generation-database", "none"])
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .env("PYTHONUTF8", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("schemathesis takes too long").unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{stdout}\n{stderr}");
}
