//! The benchmark against peers, small: every contender that is installed delivers everything, and has its row.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::harness::{PATIENCE, loadtest};

/// `kcl-rs` needs half a minute to start, and with a kill does so twice.
const TIMEOUT: Duration = Duration::from_secs(400);

/// Runs the benchmark for these contenders. `None`: one of them is not installed, and the test is skipped.
async fn bench(suite: &str, part: &str, contenders: &[&str]) -> Option<String> {
    let mut command = loadtest(&["bench-peers", "--events", "3000", "--rounds", "1", "--part", part]);
    command.args(contenders.iter().flat_map(|contender| ["--only", contender]));
    let output = timeout(TIMEOUT, command.output()).await.expect("it takes too long").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Before its end is looked at: where all are left out, that is an error.
    if let Some(left_out) = stdout.lines().find(|line| line.starts_with("left out")) {
        emulators::skip(suite, left_out);
        return None;
    }
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    Some(stdout.into_owned())
}

/// The numbers of a row; `title` begins it.
fn row(tables: &str, title: &str) -> Vec<u64> {
    let row = tables.lines().find_map(|line| line.strip_prefix(&format!("| {title} |")));
    let row = row.unwrap_or_else(|| panic!("{title:?} in\n{tables}"));
    let cells = row.trim_end_matches('|').split('|').map(|cell| cell.trim().replace(',', ""));
    cells.map(|cell| cell.parse().unwrap_or_else(|_| panic!("{cell:?} is a number in\n{tables}"))).collect()
}

/// That all events were delivered is the benchmark's own condition: it fails otherwise.
fn has_speed(tables: &str, title: &str, events: u64) {
    let cells = row(tables, title);
    // The last is how busy the sink was: with so few events that may be no tick of the clock.
    assert_eq!((cells.len(), cells[0]), (6, events), "{tables}");
    assert!(cells[1..5].iter().all(|cell| *cell > 0), "{tables}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_plain_rust_programs_have_their_rows() {
    let contenders = ["ours-local", "ours-default", "bare-loop", "one-per-event-rust"];
    let tables = bench("peers: rust", "speed", &contenders).await.unwrap();
    for (title, events) in [
        ("**ours**, local stream", 3000),
        ("**ours**, local stream, default limits", 3000),
        ("bare Rust loop", 3000),
        ("one POST per event, Rust", 600),
    ] {
        has_speed(&tables, title, events);
    }
    assert!(tables.contains("local stream, of the bare loop | at least 60 %"), "{tables}");
}

#[tokio::test]
async fn a_part_of_the_tables_does_not_replace_all_of_them_and_nothing_to_run_is_an_error() {
    let error = async |args: &[&str]| {
        let output = loadtest(&[&["bench-peers"], args].concat()).output().await.unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for part in ["--only=bare-loop", "--part=speed"] {
        let error = error(&[part, "--report=BENCHMARK.md"]).await;
        assert!(error.contains("--report") && error.contains(&part[..6]), "{error}");
    }
    let unmarked = error(&["--report=Cargo.toml"]).await;
    assert!(unmarked.contains("Cargo.toml needs exactly two lines"), "{unmarked}");
    let nothing = error(&["--part=latency", "--only=bare-loop"]).await;
    assert!(nothing.contains("nothing to run") && nothing.contains("BareLoop"), "{nothing}");
}

#[tokio::test]
async fn a_signal_ends_it_and_its_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = loadtest(&["bench-peers", "--quick", "--part=speed", "--only=ours-default"]);
    let mut child = command.env("TMPDIR", dir.path()).spawn().unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    timeout(PATIENCE, async {
        while files() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it begins");
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!((status.code(), files()), (Some(130), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn python_peers_have_their_rows() {
    let contenders = ["sdk100", "sdk1000", "one-per-event-python", "one-per-event-connect"];
    let Some(tables) = bench("peers: python", "speed", &contenders).await else { return };
    for (title, events) in [
        ("Python SDK, batch 100", 3000),
        ("Python SDK, batch 1,000", 3000),
        ("one POST per event, Python, connection kept", 60),
        ("one POST per event, Python, new connection each", 30),
    ] {
        has_speed(&tables, title, events);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_kinesis_have_their_rows() {
    let Some(tables) = bench("peers: kinesis", "speed", &["ours-kinesis", "kcl-rs"]).await else { return };
    has_speed(&tables, "**ours**, Kinesis", 3000);
    has_speed(&tables, "kcl-rs + Python SDK, request in place", 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_after_acceptance_and_a_kill_cost_ours_nothing_and_the_original_double_bills() {
    let contenders = ["ours-default", "ours-kinesis-default", "sdk-readme", "one-per-event-python"];
    let Some(tables) = bench("peers: faults", "faults", &contenders).await else { return };
    for title in ["**ours**, local stream, default limits", "**ours**, Kinesis, default limits"] {
        let [1, events, _failed, lost, doubled, absorbed] = row(&tables, title)[..] else { panic!("{tables}") };
        assert_eq!((events, lost, doubled), (3000, 0, 0), "{tables}");
        // The kill came amid a request, or before the checkpoint after one: something was there to be billed twice.
        assert!(absorbed > 0, "{tables}");
    }
    assert_eq!(row(&tables, "Python SDK, batch 100, without `unique_id`")[1], 600);
    let [1, events, failed, _lost, doubled, _] = row(&tables, "one POST per event, Python, connection kept")[..] else {
        panic!("{tables}")
    };
    assert_eq!(events, 150);
    // Each failed request is made again with another time, and billed again.
    assert!(failed > 0 && doubled > 0, "{tables}");
}
