//! `ingest-worker dead-letters`: what lies there, and how it is sent again.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Stdio;

use amberflo_sandbox::{Faults, Poison, Trigger};
use serde_json::{Value, json};
use shared::backend::{NewRecord, Stream as _};

use super::{Amberflo, KEY, Site, eventually, run, text, usage, usages};

async fn dead_letters(site: &Site, what: &[&str]) -> String {
    let output = run(site.command().arg("dead-letters").args(what)).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains(KEY) && !text(&output.stderr).contains(KEY));
    text(&output.stdout)
}

async fn list(site: &Site) -> Vec<Value> {
    dead_letters(site, &["list"]).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn redrive(site: &Site) -> Value {
    serde_json::from_str(&dead_letters(site, &["redrive"]).await).unwrap()
}

/// How often each thing became of a letter.
pub fn totals(report: &Value) -> Value {
    let names = ["redriven", "conflicts", "notRedrivable", "forgotten"];
    names.iter().map(|&name| (name.to_owned(), report[name].clone())).collect::<serde_json::Map<_, _>>().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_amberflo_refused_is_listed_and_delivered_by_a_redrive() {
    let amberflo = Amberflo::start().await;
    let poison = Poison { status: 422, unique_id_prefixes: vec!["1".to_owned()], ..Poison::default() };
    amberflo.sandbox.set_faults(Faults { poison: vec![poison], ..Faults::default() }).unwrap();
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    worker.put(&usages(0..20)).await;
    let mut conflict = usage(5);
    conflict["meterValue"] = json!(6);
    worker.put(&[conflict]).await;
    let unreadable = NewRecord { partition_key: "t".to_owned(), data: "\u{0}not json".into() };
    site.store().publish(vec![unreadable]).await.unwrap();
    amberflo.billed(9).await;
    eventually("the dead letters", async || list(&site).await.len() >= 13).await;

    let letters = list(&site).await;
    let reasons = |reason: &str| letters.iter().filter(|letter| letter["reason"] == reason).count();
    assert_eq!((reasons("rejected"), reasons("conflict"), reasons("not_json")), (11, 1, 1));
    for letter in letters.iter().filter(|letter| letter["reason"] == "rejected") {
        assert_eq!(letter["amberfloStatus"], 422);
        let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload["detail"]["uniqueId"], letter["uniqueId"]);
        assert_eq!((&letter["meterApiName"], &letter["redriveCount"]), (&json!("calls"), &json!(0)));
    }
    assert_eq!(list(&site).await.len(), 13, "looking changes nothing");

    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    let conflicts: Value =
        serde_json::from_str(&dead_letters(&site, &["redrive", "--reason", "conflict"]).await).unwrap();
    assert_eq!(conflicts["byReason"], json!({"conflict": {"redriven": 0, "skipped": 1}}), "of this reason only");
    let report = redrive(&site).await;
    assert_eq!(totals(&report), json!({"redriven": 11, "conflicts": 1, "notRedrivable": 1, "forgotten": 0}));
    let by_reason = json!({
        "conflict": {"redriven": 0, "skipped": 1},
        "not_json": {"redriven": 0, "skipped": 1},
        "rejected": {"redriven": 11, "skipped": 0},
    });
    assert_eq!((&report["byReason"], &report["more"]), (&by_reason, &json!(false)));
    amberflo.billed(20).await;
    assert_eq!(totals(&redrive(&site).await)["conflicts"], 1, "what stays is not hidden from the next redrive");
    let left: Vec<_> = list(&site).await.into_iter().map(|letter| letter["reason"].clone()).collect();
    assert!(left.len() == 2 && left.contains(&json!("conflict")) && left.contains(&json!("not_json")), "{left:?}");
    let delete = async |arguments: &[&str]| run(site.command().args(["dead-letters", "delete"]).args(arguments)).await;
    assert_eq!(delete(&[]).await.status.code(), Some(2), "not everything at once by mistake");
    assert!(text(&delete(&["--reason", "not_json", "--before", "2020-01-01T00:00:00Z"]).await.stdout).is_empty());
    assert!(text(&delete(&["--reason", "not_json"]).await.stdout).contains("not json"), "what is removed is printed");
    assert_eq!(list(&site).await.len(), 1);
    worker.drain().await;
    amberflo.assert_billed_once(20);
    assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0);
    // The time of the first arrival, not of the redrive.
    let refused = letters.iter().filter(|letter| letter["reason"] == "rejected");
    let times: BTreeMap<_, _> =
        refused.map(|letter| (letter["uniqueId"].as_str().unwrap(), &letter["meterTimeInMillis"])).collect();
    let billed = amberflo.sandbox.records();
    for record in &billed {
        let time = times.get(record.unique_id.as_deref().unwrap());
        assert!(time.is_none_or(|&time| *time == record.time_millis), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_cannot_be_printed_are_not_deleted_and_a_list_may_be_cut_short() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let unreadable = |n: u32| NewRecord { partition_key: "t".to_owned(), data: format!("not json {n}").into() };
    site.store().publish((0..300).map(unreadable).collect()).await.unwrap();
    eventually("the dead letters", async || list(&site).await.len() == 300).await;

    let mut delete = site.command();
    delete.args(["dead-letters", "delete", "--reason", "not_json"]).stderr(Stdio::piped());
    let full_disk = File::options().write(true).open("/dev/full").unwrap();
    let output = delete.stdout(full_disk).spawn().unwrap().wait_with_output().await.unwrap();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("standard output") && error.contains("No space left"), "{error}");
    assert_eq!(list(&site).await.len(), 300);

    let mut head = site.command();
    head.args(["dead-letters", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut head = head.spawn().unwrap();
    drop(head.stdout.take());
    let output = head.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    worker.drain().await;
}

/// Amberflo took it, but said that it did not: the worst letter to redrive.
#[tokio::test(flavor = "multi_thread")]
async fn redriving_a_delivered_event_changes_nothing_in_the_ledger() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    // Envelopes without a producer's uniqueId, and a bare event with no time and no id at all.
    let without_id = |n: u64| {
        let mut detail = usage(n);
        detail.as_object_mut().unwrap().remove("uniqueId");
        detail["note"] = json!("ä \"quoted\" \\ text");
        detail["rate"] = json!(0.1);
        detail
    };
    worker.put(&(0..10).map(without_id).collect::<Vec<_>>()).await;
    let bare = NewRecord { partition_key: "t".to_owned(), data: without_id(10).to_string().into() };
    site.store().publish(vec![bare]).await.unwrap();
    amberflo.billed(11).await;
    worker.drain().await;
    let before = amberflo.sandbox.records();

    // The dead letters such a worker would have written: the records of the stream, refused.
    let worker = site.start().await;
    forge_letters(&site).await;
    let report = redrive(&site).await;
    assert_eq!(totals(&report), json!({"redriven": 11, "conflicts": 0, "notRedrivable": 0, "forgotten": 0}));
    let absorbed = async || amberflo.sandbox.ledger().absorbed_copies >= 11;
    eventually("the copies to be absorbed", absorbed).await;
    worker.drain().await;
    amberflo.assert_billed_once(11);
    let raw =
        |records: Vec<amberflo_sandbox::StoredRecord>| records.into_iter().map(|record| record.raw).collect::<Vec<_>>();
    assert_eq!(raw(amberflo.sandbox.records()), raw(before));
    assert!(list(&site).await.is_empty());
}

/// Reads the whole stream and stores every record as a dead letter.
async fn forge_letters(site: &Site) {
    use shared::backend::{DeadLetters as _, Position};
    use shared::dead_letter::{DeadLetter, Origin};
    use shared::event::{EventRules, parse};
    use shared::reason::Reason;
    let day = std::time::Duration::from_secs(86_400);
    let rules = EventRules { max_age: day, max_ahead: day, allow_aflo_dimensions: false };
    let store = site.store();
    for shard in store.shards().await.unwrap().into_iter().map(|shard| shard.id) {
        let page = store.reader(&shard, Position::TrimHorizon).await.unwrap().next(1 << 20).await.unwrap();
        for record in page.records {
            let identity = parse(&record, &shard, &rules).unwrap().identity();
            let origin = Origin { stream: "local:store", shard: &shard, worker: "w", now: record.arrived_at };
            let letter = DeadLetter {
                amberflo_status: Some(503),
                ..DeadLetter::new(&record, origin, Reason::Unconfirmed, "a test".to_owned(), identity)
            };
            store.send(&[letter]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_into_the_same_fault_comes_back_once_and_counts() {
    let amberflo = Amberflo::start().await;
    let poison = Poison { unique_id_prefixes: vec!["7".to_owned()], ..Poison::default() };
    amberflo.sandbox.set_faults(Faults { poison: vec![poison], ..Faults::default() }).unwrap();
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    worker.put(&usages(0..10)).await;
    for count in 0..3 {
        let is_back = async || list(&site).await.first().is_some_and(|letter| letter["redriveCount"] == count);
        eventually("the letter", is_back).await;
        assert_eq!(redrive(&site).await["redriven"], 1);
    }
    eventually("the letter", async || list(&site).await.len() == 1).await;
    // And into an outage: it waits there, it does not come back.
    let outage = Faults { fail_after: Trigger::next(2), ..Faults::default() };
    amberflo.sandbox.set_faults(outage).unwrap();
    assert_eq!(redrive(&site).await["redriven"], 1);
    amberflo.billed(10).await;
    worker.drain().await;
    amberflo.assert_billed_once(10);
    assert!(list(&site).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_there_is_not_made_by_looking() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    for what in ["list", "redrive"] {
        let output = run(site.command().args(["dead-letters", what])).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("STREAM: local:store"), "{}", text(&output.stderr));
    }
    assert!(!site.store_dir().exists());
}
