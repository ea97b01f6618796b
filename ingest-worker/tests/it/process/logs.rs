//! Log lines: one each, JSON to the last, without payloads and without floods.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Stdio;

use amberflo_sandbox::{Faults, Trigger};
use serde_json::{Value, json};
use shared::backend::{NewRecord, Stream as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Amberflo, KEY, PATIENCE, Process, Site, eventually, usages};

/// The lines, each of which is a JSON object with what every line has.
fn parsed(lines: &[String]) -> Vec<Value> {
    let parse = |line: &String| {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for name in ["timestamp", "level", "target", "message"] {
            assert!(parsed[name].is_string(), "no {name}: {line}");
        }
        parsed
    };
    lines.iter().map(parse).collect()
}

fn with_message<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with(message)).collect()
}

fn lines_of(worker: &Process) -> Vec<Value> {
    parsed(&worker.log_lines())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_is_json_from_the_start_to_a_fatal_end() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("LOG_FORMAT", "json").with("BATCH_MAX_EVENTS", "5");
    let mut worker = site.start().await;
    worker.put(&usages(0..50)).await;
    amberflo.billed(50).await;

    // An outage, as seen by many batches at a time, and its end.
    amberflo.sandbox.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() }).unwrap();
    let before = amberflo.sandbox.stats().requests;
    worker.put(&usages(50..250)).await;
    eventually("an outage", async || amberflo.sandbox.stats().requests >= before + 60).await;
    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    amberflo.billed(250).await;
    let is_told = async || !with_message(&lines_of(&worker), "Amberflo takes records again").is_empty();
    eventually("the end of the outage to be told", is_told).await;

    // What nobody may read in a log, in every part of an event.
    let canary = "c4nary";
    let bad = json!({"tenantId": "t", "meterApiName": "m", "meterValue": canary, canary: {"a": canary}});
    let odd = json!({"tenantId": "t", "meterApiName": "m", "meterValue": 1, "aflo.c4nary": canary});
    worker.put(&[bad, odd]).await;
    eventually("the dead letters", async || site.letters().await.len() == 2).await;

    worker.signal("TERM").await;
    assert_eq!(worker.ended().await.code(), Some(0), "{}", worker.logs());
    let lines = lines_of(&worker);
    let started = with_message(&lines, "started")[0];
    for name in ["version", "worker", "pid", "stream", "ingest_url", "admin", "put_events"] {
        assert!(!started[name].is_null(), "{name} is missing: {started}");
    }
    let failing = with_message(&lines, "Amberflo fails");
    assert!((1..=2).contains(&failing.len()), "{failing:?}");
    assert!(failing[0]["failures"].as_u64().unwrap() >= 1 && failing[0]["shard"].is_string());
    let over = with_message(&lines, "Amberflo takes records again");
    assert_eq!((over.len(), over[0]["failures"].as_u64().unwrap() >= 30), (1, true), "{over:?}");
    assert_eq!(with_message(&lines, "drained").len(), 1);
    let told: u64 =
        with_message(&lines, "dead letters stored").iter().map(|line| line["count"].as_u64().unwrap()).sum();
    assert_eq!(told, 2, "every dead letter is told of");
    let logs = worker.logs();
    assert!(!logs.contains(canary) && !logs.contains(KEY), "{logs}");

    // The store is gone: that cannot be worked with, and the last line says so.
    for file in std::fs::read_dir(site.store_dir()).unwrap() {
        std::fs::write(file.unwrap().path(), "no store ".repeat(1000)).unwrap();
    }
    let output = super::run(site.command().env("LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "127.0.0.1:0")).await;
    let lines: Vec<String> = super::text(&output.stderr).lines().map(str::to_owned).collect();
    let lines = parsed(&lines);
    let last = lines.last().unwrap();
    assert_eq!((last["message"].as_str(), last["level"].as_str()), (Some("ended"), Some("ERROR")), "{last}");
    assert_eq!(last["exit_code"].as_i64(), output.status.code().map(i64::from), "{last}");
    assert!(last["error"].as_str().unwrap().contains("STREAM"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_told_in_the_form_of_the_log() {
    let amberflo = Amberflo::start().await;
    for (name, value) in [("BATCH_LINGER", "2h"), ("AMBERFLO_API_KEY", ""), ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x")]
    {
        let site = Site::new(&amberflo).with("LOG_FORMAT", "json").with(name, value);
        let output = super::run(&mut site.command()).await;
        let stderr = super::text(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        if name.starts_with("OTEL") {
            // Logs and traces begin together.
            assert!(stderr.contains(name), "{stderr}");
            continue;
        }
        let line = &parsed(&[stderr])[0];
        assert!(line["error"].as_str().unwrap().contains(name) && line["exit_code"] == 2, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_told_of_once_however_many_batches_meet_it() {
    let amberflo = Amberflo::start().await;
    let site =
        Site::new(&amberflo).with("LOG_FORMAT", "json").with("BATCH_MAX_EVENTS", "5").with("API_KEY_REFRESH", "1s");
    amberflo.sandbox.set_faults(Faults { revoked_keys: [KEY.to_owned()].into(), ..Faults::default() }).unwrap();
    let worker = site.start().await;
    worker.put(&usages(0..100)).await;
    eventually("a refusal", async || amberflo.sandbox.stats().by_status.contains_key(&401)).await;
    eventually("not ready", async || worker.admin_status("ready").await == Some(503)).await;
    let lines = lines_of(&worker);
    assert_eq!(with_message(&lines, "Amberflo refuses us").len(), 1, "{lines:#?}");
    worker.drain().await;
}

/// Whoever collects the log has died, or its disk is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_stops_nothing_and_changes_no_exit_code() {
    let amberflo = Amberflo::start().await;
    for format in ["text", "json"] {
        let site = Site::new(&amberflo).with("LOG_FORMAT", format).with("LOG", "debug");
        let store = site.store();
        let mut command = site.command();
        command.env("LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "127.0.0.1:0").stderr(Stdio::piped());
        let mut worker = command.spawn().unwrap();
        drop(worker.stderr.take());
        let before = amberflo.sandbox.ledger().events;
        let record = |detail: &Value| NewRecord { partition_key: "t".to_owned(), data: detail.to_string().into() };
        store.publish(usages(before..before + 100).iter().map(record).collect()).await.unwrap();
        amberflo.billed(before + 100).await;
        let id = worker.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        assert_eq!(timeout(PATIENCE, worker.wait()).await.unwrap().unwrap().code(), Some(0), "{format}");

        let full_disk = File::options().write(true).open("/dev/full").unwrap();
        let mut refused = site.command().env("BATCH_LINGER", "2h").stderr(full_disk).spawn().unwrap();
        assert_eq!(timeout(PATIENCE, refused.wait()).await.unwrap().unwrap().code(), Some(2), "{format}");
    }
}

/// Names and answers are other people's: none of them can look like a line of its own.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_field_forges_a_line_of_text() {
    let amberflo = Amberflo::start().await;
    let forged = "2026-01-01T00:00:00.000000Z ERROR ingest_worker: forged";
    let id = format!("a\n{forged}\r{forged}\u{1b}[31m");
    let site = Site::new(&amberflo).with("LOG", "debug").with("WORKER_ID", &id);
    let worker = site.start().await;
    worker.put(&usages(0..10)).await;
    worker.put(&[json!({"tenantId": format!("t\n{forged}")})]).await;
    let detail_type = format!("other\n{forged}");
    let entry = json!({"Source": format!("s\n{forged}"), "DetailType": detail_type, "Detail": "{}"});
    worker.put_entries(&json!([entry])).await.unwrap();
    amberflo.billed(10).await;
    let mut of_line = BTreeMap::new();
    for line in worker.log_lines() {
        assert!(!line.starts_with(forged) && !line.contains('\u{1b}') && !line.contains('\r'), "{line:?}");
        *of_line.entry(line.contains("forged")).or_insert(0) += 1;
    }
    assert!(of_line.get(&true).is_some_and(|lines| *lines >= 2), "what should be in fields is not: {of_line:?}");
    worker.drain().await;
}
