//! A publishing process is killed: what it had been told is stored must be there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use shared::backend::Stream as _;
use shared::backend::local::LocalOptions;
use tempfile::TempDir;

use super::{open, read_all, record};

/// Tells the copy of this test program that it is the child, and its directory.
const CHILD: &str = "LOCAL_STORE_CRASH_TEST_DIR";

/// Publishes from several tasks and prints each payload once it is acknowledged, until it is killed. Without a parent
/// it is an empty test.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the way to pass something to a copy of the test program")]
async fn publishing_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let store = open(dir.as_ref(), LocalOptions::default());
    let publish = |task: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..100_000 {
                let payload = format!("{task}-{n}");
                store.publish(vec![record(payload.clone())]).await.unwrap();
                writeln!(std::io::stdout().lock(), "stored {payload}").unwrap();
            }
        })
    };
    for task in (0..8).map(publish).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let dir = TempDir::new().unwrap();
    // A second process, this one, works on the same file meanwhile.
    let store = open(dir.path(), LocalOptions::default());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "local::crash::publishing_child", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let payload = |line: String| line.split_once("stored ").map(|(_, payload)| payload.to_owned());
    let mut acknowledged: Vec<String> = lines.by_ref().filter_map(payload).take(300).collect();
    store.publish(vec![record("from the parent")]).await.unwrap();
    acknowledged.extend(lines.by_ref().filter_map(payload).take(300));
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.extend(lines.filter_map(payload));
    assert!(acknowledged.len() >= 600);

    let stored: std::collections::HashSet<_> = read_all(&store).await.into_iter().map(|record| record.data).collect();
    assert!(stored.contains("from the parent".as_bytes()));
    for payload in acknowledged {
        assert!(stored.contains(payload.as_bytes()), "{payload} is lost");
    }
}
