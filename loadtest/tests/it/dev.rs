//! `loadtest dev`: what it prints works when pasted, and nothing is left of it.

use std::net::TcpListener;

use rustix::process::Signal;

use crate::harness::{Dev, FREE_PORTS, PATIENCE, eventually, is_free, loadtest, paste};

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named_with_what_needs_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (flag, need) in [
        ("--control-api-port", "the control API needs it"),
        ("--control-api-admin-port", "the control API needs it for health and metrics"),
        ("--bus-port", "the worker needs it for the event bus"),
        ("--worker-admin-port", "the worker needs it for health and metrics"),
        ("--sandbox-port", "the stand-in for Amberflo needs it"),
    ] {
        let free = FREE_PORTS.into_iter().filter(|other| !other.starts_with(&format!("{flag}=")));
        let mut command = loadtest(&["dev"]);
        command.args(free).args([flag, &port.to_string()]);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it runs").unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let text = String::from_utf8(output.stderr).unwrap();
        let advice = format!("end the program that has it, or give another port with {flag}");
        assert_eq!(text, format!("loadtest: port {port} is taken, and {need}: {advice}\n"));
        assert!(output.stdout.is_empty(), "nothing was started");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_leaves_no_service_behind() {
    let dev = Dev::start().await;
    let (addresses, stream) = (dev.addresses(), dev.directory());
    assert!(!addresses.iter().any(is_free), "{addresses:?}");
    dev.signal(Signal::KILL);
    dev.ended().await;
    eventually("all ports are free", async || addresses.iter().all(is_free).then_some(())).await;
    std::fs::remove_dir_all(stream).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_by_itself_is_told_with_its_last_words() {
    let dev = Dev::start().await;
    let addresses = dev.addresses();
    let worker = started(&dev, "ingest-worker");
    rustix::process::kill_process(rustix::process::Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    let stream = dev.directory();
    let (status, errors) = dev.ended().await;
    assert_eq!(status.code(), Some(1), "{errors}");
    for words in ["the ingest-worker ended by itself: signal: 9", "ingest-worker.log ends with:", "started", "left in"]
    {
        assert!(errors.contains(words), "{words}: {errors}");
    }
    assert!(addresses.iter().all(is_free), "the others have ended too");
    std::fs::remove_dir_all(stream).unwrap();
}

/// The process id in a service's line `started`.
fn started(dev: &Dev, service: &str) -> i32 {
    let log = std::fs::read_to_string(dev.directory().join(format!("{service}.log"))).unwrap();
    let line = log.lines().find(|line| line.contains("started")).expect("a line");
    let pid = line.split_whitespace().find_map(|word| word.strip_prefix("pid=")).expect("a process id");
    pid.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_can_be_pasted_and_ctrl_c_ends_it_all() {
    let dev = Dev::start().await;
    let (addresses, stream) = (dev.addresses(), dev.directory());
    let [put, ingest, usage] = &dev.commands[..] else { panic!("{:?}", dev.commands) };
    assert_eq!(paste(put).await["FailedEntryCount"], 0);
    assert_eq!(paste(ingest).await["data"]["accepted"], 1);
    eventually("both events are on the bill", async || {
        let usage = paste(usage).await;
        (usage["data"]["clientMeters"][0]["groupValue"] == 5.0).then_some(())
    })
    .await;
    assert_eq!(dev.stop().await, "", "nothing to warn of");
    assert!(addresses.len() == 5 && addresses.iter().all(is_free), "{addresses:?}");
    assert!(!stream.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_what_was_put() {
    let directory = tempfile::tempdir().unwrap();
    let given = directory.path().join("kept");
    let start = async || {
        let mut command = loadtest(&["dev", "--dir", given.to_str().unwrap()]);
        // A caller's own settings are not those of the services.
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1").env("HTTP_PROXY", "http://127.0.0.1:1");
        Dev::start_with(command.args(FREE_PORTS)).await
    };
    let dev = start().await;
    let malformed = dev.commands[0].replace("meterApiName", "meter");
    assert_eq!(paste(&malformed).await["FailedEntryCount"], 0);
    let dead_letters = async |dev: &Dev| {
        let peeked = paste(&format!("curl -s {}/dead-letters", dev.url("control API"))).await;
        (peeked["data"]["depth"] == 1).then_some(())
    };
    eventually("a dead letter", async || dead_letters(&dev).await).await;
    let warnings = dev.stop().await;
    assert!(warnings.starts_with("ingest-worker: ") && warnings.contains("dead letters stored"), "{warnings}");
    let again = start().await;
    assert_eq!(dead_letters(&again).await, Some(()));
    again.stop().await;
    assert!(given.join("ingest-worker.log").exists());
}
