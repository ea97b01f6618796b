//! Differences that somebody planted: an audit that cannot fail proves nothing.

use std::path::Path;

use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use tempfile::TempDir;

use super::{Ended, audit, client, file, ledger_of, letters_of, run_on_bus, sandbox};
use crate::harness::Dev;

/// A bill like that of a run, but for what is done to its records.
async fn audit_of(records: &[String], manifest: &Path, letters: &str) -> Ended {
    let (_sandbox, url, _server) = sandbox().await;
    let client = client();
    let body = format!("[{}]", records.join(","));
    let ingested =
        client.post(format!("{url}/ingest")).header("x-api-key", "sandbox-key").body(body).send().await.unwrap();
    assert!(ingested.status().is_success(), "{}", ingested.text().await.unwrap());
    Ended::of(audit(&[manifest], &format!("sandbox={url}"), letters).arg("--settle=0s")).await
}

/// Asserts that the lines of tenants and meters account for everything that is wrong with the run.
fn assert_lines_add_up(told: &Ended) {
    let lines = told.json["tenants"].as_array().unwrap();
    let kinds = ["lost", "double_billed", "late", "misbilled", "underbilled", "missing_dead_letters", "unexpected"];
    for kind in kinds {
        let sum: u64 = lines.iter().map(|line| line[kind].as_u64().unwrap()).sum();
        assert_eq!(sum, told.number(kind), "{kind}: {}", told.said);
    }
    for line in lines {
        assert_eq!(line["is_sound"], kinds.iter().all(|kind| line[kind] == 0), "{line}");
    }
    assert!(told.said.contains("  differs: "), "{}", told.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_difference_is_found() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let manifest = file(&dir, "manifest");
    assert_eq!(run_on_bus(&dev, &manifest, &[]).await.code, Some(0));
    let letters = letters_of(&dev);
    let sound = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters)).await;
    assert_eq!(sound.code, Some(0), "{}", sound.said);

    let client = client();
    let url = format!("{}/sandbox/records?limit=10000", dev.url("Amberflo"));
    let page: Value = serde_json::from_str(&client.get(url).send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!((page["total"].as_u64(), &page["next_offset"]), (Some(sound.number("delivered")), &Value::Null));
    let raw = page["items"].as_array().unwrap().iter().map(|record| record["raw"].as_str().unwrap().to_owned());
    let records: Vec<String> = raw.collect();
    let same = audit_of(&records, &manifest, &letters).await;
    assert_eq!(same.code, Some(0), "{}", same.said);

    let changed = |change: &dyn Fn(&mut Value)| {
        let mut record: Value = serde_json::from_str(&records[5]).unwrap();
        change(&mut record);
        record.to_string()
    };
    let id = serde_json::from_str::<Value>(&records[5]).unwrap()["uniqueId"].as_str().unwrap().to_owned();
    let with = |record: String| [&records[..], &[record]].concat();
    let instead = |record: String| [&records[..5], &[record], &records[6..]].concat();
    let later =
        changed(&|record| record["meterTimeInMillis"] = json!(record["meterTimeInMillis"].as_i64().unwrap() + 1));
    let other_value = changed(&|record| record["meterValue"] = json!(987_654));
    let invented = changed(&|record| record["uniqueId"] = json!(id.replace("event-", "event-never-")));
    let elsewhere = changed(&|record| record["customerId"] = json!("somebody"));
    for (planted, kind, named) in [
        ([&records[..5], &records[6..]].concat(), "lost", &*id),
        (with(later), "double_billed", &*id),
        (instead(other_value), "misbilled", &*id),
        (with(invented), "unexpected", "never"),
        (instead(elsewhere), "misbilled", &*id),
    ] {
        let told = audit_of(&planted, &manifest, &letters).await;
        assert_eq!((told.code, told.number(kind)), (Some(1), 1), "{kind}: {}", told.said);
        assert!(told.json["findings"].to_string().contains(named), "{kind}: {}", told.said);
        assert_lines_add_up(&told);
        assert_eq!(told.said.contains("may still be under way"), kind == "lost", "{kind}: {}", told.said);
    }

    // An event that the manifest has and nobody sent.
    let text = std::fs::read_to_string(&manifest).unwrap();
    let last: Value = text
        .lines()
        .rev()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|line| line["valid"].is_object())
        .unwrap();
    let number = last["valid"]["number"].as_u64().unwrap() + 1;
    let mut planted = last.clone();
    planted["valid"]["number"] = json!(number);
    planted["valid"]["detail"]["uniqueId"] = json!(id.replace("event-", "event-planted-"));
    let acknowledged = json!({"acknowledged": {"valid": [[number, 0]], "sent": 1, "at": 2}});
    let with_one_more = file(&dir, "one-more");
    std::fs::write(&with_one_more, format!("{text}{planted}\n{acknowledged}\n")).unwrap();
    let told = Ended::of(audit(&[&with_one_more], &ledger_of(&dev), &letters).arg("--settle=0s")).await;
    assert_eq!((told.code, told.number("lost")), (Some(1), 1), "{}", told.said);
    assert!(told.json["findings"].to_string().contains("event-planted-"), "{}", told.said);

    // Dead letters that are not there: the malformed events and the conflicts.
    let empty = file(&dir, "empty");
    std::fs::create_dir(&empty).unwrap();
    drop(LocalStore::open(&empty, LocalOptions::default()).unwrap());
    let told =
        Ended::of(audit(&[&manifest], &ledger_of(&dev), &format!("local:{}", empty.display())).arg("--settle=0s"))
            .await;
    let missing = sound.number("malformed") + sound.number("conflicts");
    assert_eq!((told.code, told.number("missing_dead_letters")), (Some(1), missing), "{}", told.said);
    assert_lines_add_up(&told);

    // What cannot be looked at is no difference.
    let nowhere = Ended::of(&mut audit(&[&manifest], "sandbox=http://127.0.0.1:1", &letters)).await;
    assert_eq!(nowhere.code, Some(2), "{}", nowhere.said);
    let no_store =
        Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &format!("local:{}", dir.path().display()))).await;
    assert_eq!(no_store.code, Some(2), "{}", no_store.said);
    let twice = Ended::of(&mut audit(&[&manifest, &with_one_more], &ledger_of(&dev), &letters)).await;
    assert_eq!(twice.code, Some(2), "{}", twice.said);
    dev.stop().await;
}
