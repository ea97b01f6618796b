//! Load runs and their audits, as a user does them.

mod faults;
mod targets;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Dev, PATIENCE, eventually, loadtest};

/// How a command ended: exit code, its last line of JSON, and all that it said besides.
struct Ended {
    code: Option<i32>,
    json: Value,
    said: String,
}

impl Ended {
    /// Of a command that is run to its end.
    async fn of(command: &mut Command) -> Self {
        Self::wait(command.spawn().unwrap()).await
    }

    async fn wait(child: Child) -> Self {
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it does not end").unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = format!("{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
        let json = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        Self { code: output.status.code(), json, said }
    }

    fn number(&self, name: &str) -> u64 {
        self.json[name].as_u64().unwrap_or_else(|| panic!("{name} in\n{}", self.said))
    }
}

/// A run on the bus with every mistake in it; its manifest.
async fn run_on_bus(dev: &Dev, manifest: &Path, more: &[&str]) -> Ended {
    let mut command = loadtest(&["run", "--json", "--rate=150", "--duration=3s", "--tenants=7", "--skew=1"]);
    command.args(["--duplicates=0.1", "--malformed=0.05", "--conflicts=0.03", "--seed=3"]).args(more);
    command.arg(format!("--endpoint-url={}", dev.url("event bus"))).arg("--manifest").arg(manifest);
    Ended::of(&mut command).await
}

fn audit(manifests: &[&Path], ledger: &str, letters: &str) -> Command {
    let mut command = loadtest(&["audit", "--json", "--dead-letters", letters, "--ledger", ledger, "--settle=40s"]);
    for manifest in manifests {
        command.arg("--manifest").arg(manifest);
    }
    command
}

/// Where a `loadtest dev` has its dead letters.
fn letters_of(dev: &Dev) -> String {
    format!("local:{}", dev.stream().display())
}

fn ledger_of(dev: &Dev) -> String {
    format!("sandbox={}", dev.url("Amberflo"))
}

/// A stand-in for Amberflo in this process; it ends with the handle.
async fn sandbox() -> (Sandbox, String, AbortOnDropHandle<std::io::Result<()>>) {
    let sandbox = Sandbox::new(SandboxConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    (sandbox, url, AbortOnDropHandle::new(server))
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
    kill_process(pid, signal).unwrap();
}

fn client() -> Client {
    // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

/// A run that goes on until it is ended, with some events acknowledged.
async fn endless_run(dev: &Dev, manifest: &Path, more: &[&str]) -> Child {
    let mut command = loadtest(&["run", "--json", "--rate=100", "--duration=10m", "--duplicates=0.1"]);
    command.args(more).arg(format!("--endpoint-url={}", dev.url("event bus"))).arg("--manifest").arg(manifest);
    let child = command.spawn().unwrap();
    eventually("events are acknowledged", async || {
        let text = std::fs::read_to_string(manifest).unwrap_or_default();
        (text.matches(r#"{"acknowledged""#).count() > 50).then_some(())
    })
    .await;
    child
}

fn file(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_the_bus_is_audited_and_found_sound() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let [one, two, report] = ["one", "two", "report"].map(|name| file(&dir, name));
    let metrics = format!("--worker-metrics={}", dev.urls("metrics")[0]);
    let run = run_on_bus(&dev, &one, &[&metrics, &format!("--report={}", report.display())]).await;
    assert_eq!(run.code, Some(0), "{}", run.said);
    assert!(run.number("arrived") >= 450 && run.number("arrived") == run.number("acknowledged"), "{}", run.said);
    // How it went, while it did.
    assert!(run.said.contains("acknowledged ") && run.said.contains("  p99 "), "{}", run.said);
    let seconds = run.json["seconds"].as_array().unwrap();
    let sum = |name: &str| seconds.iter().map(|second| second[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("arrived"), sum("acknowledged")), (run.number("arrived"), run.number("acknowledged")));
    assert!(!run.json["workers"].as_array().unwrap().is_empty(), "{}", run.said);
    let text = std::fs::read_to_string(report.join("report.md")).unwrap();
    for chart in ["rate", "latency", "lag", "batch", "concurrency", "errors"] {
        assert!(text.contains(&format!("({chart}.svg)")), "{text}");
        assert!(std::fs::read_to_string(report.join(format!("{chart}.svg"))).unwrap().contains("</svg>"));
    }
    let result: Value = serde_json::from_slice(&std::fs::read(report.join("result.json")).unwrap()).unwrap();
    assert_eq!(result, run.json);

    let (ledger, letters) = (ledger_of(&dev), letters_of(&dev));
    let told = Ended::of(audit(&[&one], &ledger, &letters).arg("--report").arg(&report).arg("--late-after=1h")).await;
    assert_eq!((told.code, told.json["passed"].as_bool()), (Some(0), Some(true)), "{}", told.said);
    assert_eq!(told.number("emitted"), run.number("acknowledged"));
    for kind in ["unique_valid", "duplicates", "conflicts", "malformed"] {
        assert!(told.number(kind) > 0, "{kind}: {}", told.said);
    }
    assert_eq!(told.number("delivered"), told.number("unique_valid"));
    assert_eq!(told.number("dead_lettered"), told.number("conflicts") + told.number("malformed"));
    assert!(std::fs::read_to_string(report.join("report.md")).unwrap().contains("## By tenant and meter"));
    let late = Ended::of(audit(&[&one], &ledger, &letters).args(["--late-after=1ms", "--settle=0s"])).await;
    assert_eq!((late.code, late.number("late")), (Some(1), told.number("delivered")), "{}", late.said);

    // Amberflo's own API shows less, and that is said. The control API shows the dead letters too.
    let control_api = format!("control-api:{}", dev.url("control API"));
    let mut by_usage = audit(&[&one], "amberflo", &control_api);
    by_usage.arg(format!("--amberflo-base-url={}", dev.url("Amberflo"))).env("AMBERFLO_API_KEY", "sandbox-key");
    let told = Ended::of(&mut by_usage).await;
    assert_eq!((told.code, told.number("judged_by_sums")), (Some(0), 0), "{}", told.said);
    assert!(told.said.contains("Amberflo does not show which copies it absorbed"), "{}", told.said);
    let put = client().put(format!("{}/sandbox/faults", dev.url("Amberflo")));
    put.body(r#"{"html": {"rate": 1.0}, "operations": ["usage_events"]}"#).send().await.unwrap();
    let told = Ended::of(&mut by_usage).await;
    assert_eq!((told.code, told.number("judged_by_sums") > 0), (Some(0), true), "{}", told.said);
    assert!(told.said.contains("PASSED, as far as totals can show it"), "{}", told.said);

    // A second run: the audit of one does not judge the other, and both can be audited together.
    assert_eq!(run_on_bus(&dev, &two, &[]).await.code, Some(0));
    let both = Ended::of(&mut audit(&[&one, &two], &ledger, &letters)).await;
    assert_eq!((both.code, both.number("foreign_records")), (Some(0), 0), "{}", both.said);
    let second = Ended::of(&mut audit(&[&two], &ledger, &letters)).await;
    assert_eq!(
        (second.code, second.number("foreign_records")),
        (Some(0), told.number("unique_valid")),
        "{}",
        second.said
    );
    assert_eq!(second.number("foreign_letters"), told.number("dead_lettered"), "{}", second.said);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_left_can_be_audited() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let manifest = file(&dir, "killed");
    let mut child = endless_run(&dev, &manifest, &[]).await;
    signal(&child, Signal::KILL);
    child.wait().await.unwrap();
    let told = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters_of(&dev))).await;
    assert_eq!(told.code, Some(0), "{}", told.said);
    assert!(told.number("delivered") > 0 && told.said.contains("did not come to its end"), "{}", told.said);

    // And where it was killed while it wrote down an acknowledgement. (An event is not sent before its line is whole.)
    let mut text = std::fs::read(&manifest).unwrap();
    text.truncate(text.iter().rposition(|byte| *byte == b'\n').unwrap() + 1);
    text.extend(br#"{"acknowledged":{"valid":[[1"#);
    std::fs::write(&manifest, text).unwrap();
    let told = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters_of(&dev))).await;
    assert_eq!(told.code, Some(0), "{}", told.said);
    assert!(told.said.contains("was not written to its end"), "{}", told.said);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_run_with_its_report() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let [manifest, report] = ["manifest", "report"].map(|name| file(&dir, name));
    let child = endless_run(&dev, &manifest, &[&format!("--report={}", report.display())]).await;
    signal(&child, Signal::INT);
    let run = Ended::wait(child).await;
    assert_eq!((run.code, run.json["interrupted"].as_bool()), (Some(130), Some(true)), "{}", run.said);
    let parts = ["acknowledged", "refused", "given_up", "not_sent", "left"].map(|name| run.number(name));
    assert_eq!(run.number("arrived"), parts.iter().sum::<u64>());
    assert!(std::fs::read_to_string(report.join("report.md")).unwrap().contains("A signal ended it early"));
    let told = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters_of(&dev))).await;
    assert_eq!((told.code, told.number("emitted")), (Some(0), run.number("acknowledged")), "{}", told.said);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_never_answers_slows_no_arrival() {
    let dir = TempDir::new().unwrap();
    let manifest = file(&dir, "manifest");
    // Connections are made by the system; nobody reads from them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = loadtest(&["run", "--json", "--target=api", "--rate=200", "--duration=2s", "--connections=2"]);
    command.args(["--timeout=300ms", "--patience=1s"]).arg("--manifest").arg(&manifest);
    command.arg(format!("--api-url=http://{}", listener.local_addr().unwrap()));
    let run = Ended::of(&mut command).await;
    assert_eq!((run.code, run.number("acknowledged")), (Some(1), 0), "{}", run.said);
    assert_eq!((run.number("arrived"), run.number("given_up")), (400, 400), "{}", run.said);
    // As many in each second as were asked for.
    let arrived = |second: usize| run.json["seconds"][second]["arrived"].as_u64().unwrap();
    assert!((0..2).all(|second| (150..=250).contains(&arrived(second))), "{}", run.json["seconds"]);
    // Events waited for at least as long as anybody was patient, though no call took that long.
    assert!(run.json["latency"]["p50_ms"].as_f64().unwrap() >= 1000.0, "{}", run.said);
    assert!(run.said.contains("POST /ingest: timeout"), "{}", run.said);
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert_eq!((text.matches(r#"{"valid""#).count(), text.matches("acknowledged").count()), (400, 0));
    // An audit of it would pass whatever became of the events.
    let told = Ended::of(&mut audit(&[&manifest], "sandbox=http://127.0.0.1:1", "local:.")).await;
    assert_eq!(told.code, Some(2), "{}", told.said);
    assert!(told.said.contains("no acknowledged event"), "{}", told.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_be_written_any_more_ends_a_run_with_what_was_seen() {
    let dir = TempDir::new().unwrap();
    let [manifest, report] = ["manifest", "report"].map(|name| file(&dir, name));
    // A file that may not grow beyond 200 or 400 KB, as shells count blocks, fails like a disk that is full.
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -f 400 && trap '' XFSZ && exec "$0" "$@""#, env!("CARGO_BIN_EXE_loadtest")]);
    command.args(["run", "--json", "--rate=1000", "--duration=10m", "--endpoint-url=http://127.0.0.1:1", "--manifest"]);
    command.arg(&manifest).arg(format!("--report={}", report.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = Ended::of(&mut command).await;
    assert_eq!(run.code, Some(2), "{}", run.said);
    assert!(run.said.contains(&format!("the manifest {}", manifest.display())), "{}", run.said);
    assert!(run.number("arrived") > 0 && report.join("report.md").is_file(), "{}", run.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_told_before_anything_is_sent() {
    let dir = TempDir::new().unwrap();
    let of = async |args: &[&str]| {
        let mut command = loadtest(args);
        command.current_dir(dir.path()).env("AWS_REGION", "eu-west-1");
        Ended::of(&mut command).await
    };
    let remote = of(&["run", "--endpoint-url=https://events.invalid"]).await;
    assert_eq!(remote.code, Some(2), "{}", remote.said);
    assert!(remote.said.contains("BILLABLE USAGE") && remote.said.contains("--yes"), "{}", remote.said);
    for (args, named) in [
        (&["run", "--malformed=1.5"][..], "--malformed: 1.5"),
        (&["run", "--target=kinesis"], "--stream"),
        (&["run", "--connections=4000000000"], "--connections: 4000000000; allowed is 1 to"),
        (&["run", "--backlog=18446744073709551615"], "--backlog: 18446744073709551615; allowed is 1 to"),
        (&["run", "--linger=584542046090y"], "--linger"),
        (&["run", "--rate=0.001", "--duration=1s"], "makes no event"),
        (&["run", "--meter=calls,"], "--meter: \"\""),
        (&["run", "--endpoint-url=http://127.0.0.1:1", "--report=/dev/null"], "--report /dev/null"),
        (&["audit", "--manifest=x", "--ledger=amberflo", "--dead-letters=local:.", "--report=/dev/null"], "--report"),
        (&["run", "--endpoint-url=127.0.0.1:4010"], "--endpoint-url"),
        (&["run", "--bus-name=sbt"], "--source: not given; "),
        (&["run", "--bus-name=sbt", "--source=application"], "--detail-type: not given; "),
        (&["audit", "--manifest=none", "--ledger=sandbox=http://127.0.0.1:1", "--dead-letters=local:."], "none"),
        (&["audit", "--manifest=none", "--ledger=amberflo", "--dead-letters=local:."], "AMBERFLO_API_KEY"),
        (&["audit", "--manifest=none", "--ledger=other", "--dead-letters=local:."], "sandbox=URL"),
        (&["audit", "--manifest=none", "--ledger=amberflo", "--dead-letters=here"], "local:DIR"),
    ] {
        let ended = of(args).await;
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.said);
        assert!(ended.said.contains(named), "{args:?}: {}", ended.said);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no manifest");
    // Something that wants another kind of key: it will never take anything, so the run does not go on.
    let (_sandbox, url, _server) = sandbox().await;
    let refused = of(&["run", "--target=api", &format!("--api-url={url}"), "--duration=1h"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.said);
    assert!(refused.said.contains("POST /ingest: 401"), "{}", refused.said);
}
