//! The drill, run as a user does.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::harness::{PATIENCE, eventually, loadtest};

/// Starts, calm, faults and what follows from them, dashboards: 4 minutes on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(480);
const PROMETHEUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/prometheus/prometheus");

/// Without Prometheus there is no drill.
async fn is_possible() -> bool {
    let is_on_path = tokio::process::Command::new("prometheus").arg("--version").output().await.is_ok();
    if is_on_path || Path::new(PROMETHEUS).exists() {
        return true;
    }
    emulators::skip("drill", "Prometheus is missing: run infra/observability/setup.sh");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_alerts_fire_and_lead_to_their_causes() {
    if !is_possible().await {
        return;
    }
    let output = timeout(TIMEOUT, loadtest(&["drill"]).output()).await.expect("the drill takes too long").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("exactly the right alerts fired"), "{stdout}");
    assert!(stdout.contains(" queries of dashboards, 0 without an answer"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_no_process_behind() {
    if !is_possible().await {
        return;
    }
    let mut child = loadtest(&["drill", "--only", "healthy"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut printed = String::new();
    let url = async {
        loop {
            let mut bytes = [0; 1024];
            let read = stdout.read(&mut bytes).await.unwrap();
            assert!(read > 0, "it ended: {printed}");
            printed.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            if let Some((_, rest)) = printed.split_once("Prometheus: http://")
                && let Some((address, _)) = rest.split_once('\n')
            {
                return address.to_owned();
            }
        }
    };
    let address = timeout(PATIENCE, url).await.expect("it says where Prometheus is").parse().unwrap();
    assert!(!crate::harness::is_free(&address));
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    let status = timeout(PATIENCE, child.wait()).await.expect("it does not end").unwrap();
    assert_eq!(status.code(), Some(130));
    eventually("its port is free", async || crate::harness::is_free(&address).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_prometheus_is_named_with_where_to_get_it() {
    let mut command = loadtest(&["drill", "--only", "healthy", "--prometheus", "/nonexistent/prometheus"]);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("/nonexistent/prometheus cannot be run"), "{stderr}");
    assert!(stderr.contains("infra/observability/setup.sh"), "{stderr}");
}
