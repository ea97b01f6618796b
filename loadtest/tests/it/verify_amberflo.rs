//! `loadtest verify-amberflo`, run as a user does, against the sandbox.

use std::process::Output;

use amberflo_sandbox::{Facts, Sandbox, SandboxConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::{PATIENCE, loadtest};

const KEY: &str = "sandbox-key";
const QUICK: [&str; 7] =
    ["--settle=100ms", "--rate=500", "--yes", "--meter=verify-1", "--customer=verify-1", "--only", "repeat,answer"];

async fn serve(facts: Facts) -> (Sandbox, String) {
    let sandbox = Sandbox::new(SandboxConfig::default());
    sandbox.set_facts(facts).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    (sandbox, url)
}

fn verify(url: &str, args: &[&str]) -> Command {
    let mut command = loadtest(&["verify-amberflo"]);
    command.args(args).env("AMBERFLO_BASE_URL", url).env("AMBERFLO_API_KEY", KEY);
    for other in ["AMBERFLO_INGEST_URL", "AMBERFLO_API_KEY_FILE", "API_KEY_SECRET_NAME", "API_KEY_SECRET_ID"] {
        command.env_remove(other);
    }
    command
}

async fn ended(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(!stdout.contains(KEY) && !stderr.contains(KEY), "{stdout}\n{stderr}");
    (status.code(), stdout, stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_nothing_is_sent_unless_told_so() {
    let (sandbox, url) = serve(Facts::default()).await;
    let (code, stdout, stderr) = ended(&mut verify(&url, &["--only", "repeat"])).await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    for expected in [url.as_str(), "usage records", "nothing was sent", "--yes"] {
        assert!(stderr.contains(expected), "{expected}\n{stderr}");
    }
    assert!(sandbox.stats().operations.is_empty() && sandbox.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_is_reported_and_cleaned_up() {
    let (sandbox, url) = serve(Facts::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report");
    let report = format!("--report={}", path.display());
    let (code, stdout, stderr) = ended(verify(&url, &QUICK).arg(&report)).await;
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
    assert!(stderr.contains("] confirmed  repeat: counts once"), "{stderr}");
    assert!(stdout.ends_with("2 confirmed, 0 refuted, 0 unclear\n"), "{stdout}");
    assert!(stdout.contains("stays behind: 2 customers, switched off: verify-1-"), "{stdout}");
    let ledger = sandbox.ledger();
    let repeated = ledger.lines.iter().find(|line| line.customer_id.ends_with("-repeat")).unwrap();
    assert_eq!((repeated.meter_api_name.as_str(), repeated.absorbed_copies), ("verify-1", 1));

    let markdown = std::fs::read_to_string(path.join("verify-amberflo.md")).unwrap();
    assert!(markdown.contains("\n## repeat\n") && markdown.contains("    > POST "), "{markdown}");
    let json = std::fs::read_to_string(path.join("verify-amberflo.json")).unwrap();
    assert!(!markdown.contains(KEY) && !json.contains(KEY));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["outcomes"][0]["verdict"], "confirmed");
    assert_eq!(json["outcomes"][0]["exchanges"][0]["status"], 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refuted_says_what_follows() {
    let (_, url) = serve(Facts { absorbs_copies: false, ..Facts::default() }).await;
    let (code, stdout, _) = ended(&mut verify(&url, &QUICK)).await;
    assert_eq!(code, Some(1), "{stdout}");
    for expected in ["counts 2 times", "Do not use this pipeline", "> POST", "1 confirmed, 1 refuted, 0 unclear"] {
        assert!(stdout.contains(expected), "{expected}\n{stdout}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unclear_has_an_exit_code_of_its_own() {
    let never = std::time::Duration::from_secs(3_600);
    let (_, url) = serve(Facts { usage_visible_after: never, ..Facts::default() }).await;
    let (code, stdout, _) = ended(verify(&url, &QUICK).args(["--patience=1s", "--json"])).await;
    assert_eq!(code, Some(3), "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let verdicts: Vec<_> = report["outcomes"].as_array().unwrap().iter().map(|outcome| &outcome["verdict"]).collect();
    assert_eq!(verdicts, ["unclear", "confirmed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let (sandbox, url) = serve(Facts::default()).await;
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = format!("http://{refused}");
    for (mut command, expected) in [
        (verify(&closed, &QUICK), "no probe could run"),
        (verify("not a url", &QUICK), "AMBERFLO_BASE_URL"),
        (verify(&url, &["--yes", "--meter", "a b"]), "--meter"),
        (verify(&url, &["--yes", "--settle", "1h"]), "--settle"),
        (verify(&url, &["--yes", "--only", "no-such-probe"]), "no-such-probe"),
        (verify(&url, &["--yes", "--report", "/dev/null"]), "--report /dev/null"),
    ] {
        let (code, _, stderr) = ended(&mut command).await;
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected}\n{stderr}");
    }
    assert!(sandbox.requests().is_empty(), "nothing was sent");
    let (code, _, stderr) = ended(verify(&url, &QUICK).env_remove("AMBERFLO_API_KEY")).await;
    assert!(code == Some(2) && stderr.contains("no API key"), "{stderr}");
    let (code, stdout, _) = ended(loadtest(&["verify-amberflo", "--list"]).env_remove("AMBERFLO_API_KEY")).await;
    assert!(code == Some(0) && stdout.contains("repeat (stated)"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cleans_up() {
    let never = std::time::Duration::from_secs(3_600);
    let (_, url) = serve(Facts { usage_visible_after: never, ..Facts::default() }).await;
    let mut child = verify(&url, &QUICK).arg("--patience=1h").spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let interrupted = async {
        let mut said = String::new();
        while !said.contains("confirmed") {
            assert!(stderr.read_line(&mut said).await.unwrap() > 0, "{said}");
        }
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).await.unwrap();
        (child.wait().await.unwrap().code(), stdout)
    };
    let (code, stdout) = timeout(PATIENCE, interrupted).await.expect("it does not end");
    assert_eq!(code, Some(130), "{stdout}");
    assert!(stdout.contains("1 confirmed, 0 refuted, 1 unclear; interrupted"), "{stdout}");
    assert!(stdout.contains("switched off: ") && !stdout.contains("stays behind: meter"), "{stdout}");
}
