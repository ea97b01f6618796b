//! The demo, run as a user does.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Start, 6 s of events, at most twice 60 s to settle, and the drain.
const TIMEOUT: Duration = Duration::from_secs(170);

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_accounts_for_every_event() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["demo", "--duration", "6s", "--rate", "300", "--json", "--seed", "3"]).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await.expect("the demo takes too long").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);

    let report: Value = serde_json::from_str(stdout.lines().last().expect("a last line")).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"));
    for name in ["lost", "double_billed", "misbilled", "missing_dead_letters", "unexpected"] {
        assert_eq!(number(name), 0, "{name}: {report}\n{stderr}");
    }
    assert_eq!(number("worker_kills"), 1);
    assert_eq!(number("unique_valid"), number("delivered") + number("refused"));
    let parts = ["unique_valid", "duplicates", "conflicts", "malformed"];
    assert_eq!(number("emitted"), parts.map(number).iter().sum::<u64>());
    assert_eq!(number("dead_lettered"), ["conflicts", "malformed", "refused"].map(number).iter().sum::<u64>());
    assert!((1790..=1900).contains(&number("emitted")), "{report}");
    assert!(parts.map(number).iter().all(|&part| part > 0), "{report}");
    assert!(report["events_per_second"].as_f64().unwrap() > 0.0);
    assert!(number("p50_ms") <= number("p99_ms"));
    assert_eq!(report["passed"], true);
    assert!(stderr.contains("kill -9"), "progress goes to standard error\n{stderr}");
}
