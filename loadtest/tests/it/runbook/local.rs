//! On one machine: a local stream, its bus, and no AWS.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use amberflo_sandbox::{Faults, Poison};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::site::{KEY, METER, Site, detail, free_addresses, now_in_seconds};
use super::{
    CANCEL, DRAIN, FIRST_MINUTE, LOCAL, RAISE, REDRIVE, REPLAY, ROTATE, SET_FIRST, Steps, VERIFY, alerts, shell_blocks,
};
use crate::harness::eventually;

/// The sections whose commands are run here.
pub const TRIED: [&str; 9] = [SET_FIRST, FIRST_MINUTE, REDRIVE, ROTATE, RAISE, DRAIN, REPLAY, CANCEL, VERIFY];

struct Machine {
    site: Site,
    bus: SocketAddr,
    http: reqwest::Client,
}

impl Machine {
    /// Starts everything, with these settings of the worker besides.
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let [bus, admin] = free_addresses().await;
        let mut site = Site::open(LOCAL, vec![("WORKER", format!("http://{admin}"))]).await;
        let stream = format!("local:{}/stream", site.shell.home.path().display());
        site.shell.paste(&format!("STREAM='{stream}'")).await;
        let mut worker = vec![
            ("STREAM", stream.clone()),
            ("LISTEN", bus.to_string()),
            ("ADMIN_LISTEN", admin.to_string()),
            ("BATCH_LINGER", "100ms".to_owned()),
            ("API_KEY_REFRESH", "1s".to_owned()),
        ];
        worker.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        site.write_settings("worker", &worker);
        site.shell.paste("start_worker").await;
        let aws = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "local".to_owned()));
        let mut control_api = vec![
            ("STREAM", stream),
            ("AWS_ENDPOINT_URL_EVENTBRIDGE", format!("http://{bus}")),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("API_KEY_REFRESH", "1s".to_owned()),
        ];
        control_api.extend(aws);
        site.start_control_api(&control_api).await;
        // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { site, bus, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// Puts events on the bus, each in a call of its own.
    async fn put(&self, details: impl IntoIterator<Item = Value>) {
        for detail in details {
            let entry = json!({"Source": "test", "DetailType": "ingestUsage", "Detail": detail.to_string()});
            let request = self.http.post(format!("http://{}/", self.bus)).header("X-Amz-Target", "AWSEvents.PutEvents");
            let answer = request.body(json!({"Entries": [entry]}).to_string()).send().await.unwrap();
            let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(answer["FailedEntryCount"], 0, "{answer}");
        }
    }

    /// Puts so many events; answers their ids.
    async fn put_events(&self, name: &str, count: u64) -> Vec<String> {
        let ids: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
        let tenant = |number: usize| format!("tenant-{}", number % 7);
        self.put(ids.iter().enumerate().map(|(number, id)| detail(&tenant(number), id, 1))).await;
        ids
    }

    async fn letters(&mut self) -> Vec<Value> {
        let answer = self.site.shell.answer("api '/dead-letters?limit=100'").await;
        answer["data"]["letters"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }

    async fn until_letters(&mut self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} letters"), async || {
            Some(self.letters().await).filter(|letters| letters.len() == count)
        })
        .await
    }

    /// Amberflo refuses events whose ids begin with `bad`, or none.
    fn amberflo_refuses(&self, something: bool) {
        let poison = Poison { status: 400, unique_id_prefixes: vec!["bad".to_owned()], ..Poison::default() };
        let poison = if something { vec![poison] } else { Vec::new() };
        self.site.amberflo.set_faults(Faults { poison, ..Faults::default() }).unwrap();
    }
}

/// The answers of `api` among what was printed.
fn answers(printed: &str) -> Vec<Value> {
    printed.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_redriven_and_billed_once() {
    let mut machine = Machine::start(&[]).await;
    machine.amberflo_refuses(true);
    let mut without_meter = detail("acme", "mended", 1);
    without_meter.as_object_mut().unwrap().remove("meterApiName");
    let events = [
        detail("acme", "good", 1),
        detail("acme", "bad-1", 1),
        detail("initech", "bad-2", 1),
        without_meter,
        detail("acme", "twice", 1),
        detail("acme", "twice", 2),
        detail("initech", "once", 1),
        detail("initech", "once", 2),
    ];
    machine.put(events).await;
    let letters = machine.until_letters(5).await;

    let mut steps = Steps::of(REDRIVE, LOCAL);
    let looked = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(looked[0]["data"]["depth"], 5, "{looked:?}");
    machine.amberflo_refuses(false);
    let refused = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(refused[0]["data"]["redriven"], 2, "{refused:?}");
    let mended = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(mended[0]["data"]["redriven"], 1, "{mended:?}");
    let conflicts = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(conflicts[0]["data"]["letters"].as_array().unwrap().len(), 1, "{conflicts:?}");
    assert_eq!(conflicts[1]["data"]["redriven"], 1, "{conflicts:?}");

    let is_innocent = |letter: &&Value| letter["reason"] == "conflict" && letter["tenantId"] == "initech";
    let number = letters.iter().find(is_innocent).unwrap()["sequenceNumber"].as_str().unwrap();
    machine.site.shell.paste(&format!("SEQUENCE_NUMBER={number}")).await;
    let thrown_away = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(thrown_away[1]["data"]["removed"], 1, "{thrown_away:?}");

    machine.amberflo_refuses(true);
    machine.put([detail("acme", "bad-3", 1)]).await;
    machine.until_letters(1).await;
    machine.amberflo_refuses(false);
    let rest = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(rest[0]["redriven"], 1, "{rest:?}");
    machine.until_letters(0).await;
    let left = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!(left[0]["data"]["depth"], 0, "{left:?}");
    steps.done();

    let ids = texts(&["bad-1", "bad-2", "bad-3", "good", "mended", "once", "twice"]);
    eventually("all on the bill", async || (machine.site.amberflo.records().len() == 8).then_some(())).await;
    let billed = machine.site.billed();
    assert!(billed.keys().eq(&ids), "{billed:?}");
    let more: Vec<_> = billed.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!(more, [(&"twice".to_owned(), &2)], "both events of the conflict that was redriven, and no other");
    let once = machine.site.amberflo.records().into_iter().find(|record| record.unique_id.as_deref() == Some("once"));
    assert_eq!(once.unwrap().value.as_deref(), Some("1"), "the first stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_used_and_no_request_is_refused() {
    let mut machine = Machine::start(&[]).await;
    let mut ids = machine.put_events("before", 20).await;
    let are_valid = |keys: &[&str]| Faults { valid_keys: Some(texts(keys).into_iter().collect()), ..Faults::default() };
    machine.site.amberflo.set_faults(are_valid(&[KEY, "new-key"])).unwrap();
    machine.site.shell.paste("NEW_KEY=new-key").await;
    let mut steps = Steps::of(ROTATE, LOCAL);
    for _ in 0..2 {
        steps.next(&mut machine.site.shell).await;
    }
    machine.site.amberflo.set_faults(are_valid(&["new-key"])).unwrap();
    ids.extend(machine.put_events("after", 20).await);
    machine.site.until_billed_once(&ids).await;
    assert!(steps.next(&mut machine.site.shell).await.contains("ready\nready"));
    steps.done();
    assert_eq!(machine.site.amberflo.stats().unknown_keys, [].into(), "nobody has used the old one since");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_limit_is_in_force() {
    let mut machine = Machine::start(&[("RATE_REQUESTS_PER_SECOND", "1"), ("BATCH_MAX_EVENTS", "1")]).await;
    let ids = machine.put_events("waiting", 60).await;
    machine.site.shell.paste("VALUE=50").await;
    let mut steps = Steps::of(RAISE, LOCAL);
    steps.next(&mut machine.site.shell).await;
    let started = Instant::now();
    let checked = steps.next(&mut machine.site.shell).await;
    assert!(checked.contains(r#"events_per_second_ceiling="50""#), "{checked}");
    steps.done();
    machine.site.until_billed_once(&ids).await;
    // With one a second, half of it would not be there.
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    assert_eq!(machine.site.amberflo.ledger().absorbed_copies, 0, "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_has_released_its_leases() {
    let mut machine = Machine::start(&[]).await;
    let mut ids = machine.put_events("before", 50).await;
    let owners = |leases: &[Value]| leases.iter().filter(|lease| !lease["owner"].is_null()).count();
    assert!(owners(&machine.site.leases().await) > 0);
    let mut steps = Steps::of(DRAIN, LOCAL);
    steps.next(&mut machine.site.shell).await;
    let checked = steps.next(&mut machine.site.shell).await;
    let leases = answers(&checked);
    assert!(leases.len() > 1 && owners(&leases) == 0, "{checked}");
    steps.next(&mut machine.site.shell).await;
    steps.done();
    ids.extend(machine.put_events("after", 50).await);
    machine.site.until_billed_once(&ids).await;
    assert_eq!(machine.site.amberflo.ledger().absorbed_copies, 0, "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_bills_nothing_twice() {
    let mut machine = Machine::start(&[]).await;
    let ids = machine.put_events("replayed", 40).await;
    machine.site.until_billed_once(&ids).await;
    let mut steps = Steps::of(REPLAY, LOCAL);
    // What is delivered is billed a moment before its checkpoint passes it.
    let rewound = eventually("all shards have passed them", async || {
        let settled = machine.site.leases().await;
        let settled = settled.iter().filter(|lease| lease["checkpoint"]["settledThrough"].is_string()).count();
        (settled >= 3).then_some(settled)
    })
    .await;
    let printed = answers(&steps.next(&mut machine.site.shell).await);
    assert!(printed.len() >= rewound && printed.iter().all(|row| row["checkpoint"]["rewoundTo"].is_string()));
    let all_again = async || (machine.site.amberflo.ledger().absorbed_copies == 40).then_some(());
    eventually("all of it to be sent again", all_again).await;
    let checked = steps.next(&mut machine.site.shell).await;
    assert!(checked.contains("ingest_shard_lag_seconds"), "{checked}");
    steps.done();
    machine.site.until_billed_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bill_is_cancelled() {
    let mut machine = Machine::start(&[]).await;
    let start = now_in_seconds();
    machine.put([detail("acme", "wrong", 3000), detail("acme", "right", 5)]).await;
    machine.site.until_billed_once(&texts(&["right", "wrong"])).await;
    let end = now_in_seconds() + 1;
    machine.site.shell.paste(&format!("START={start} END={end} METER={METER} TENANT=acme")).await;
    let mut steps = Steps::of(CANCEL, LOCAL);
    let found = steps.next(&mut machine.site.shell).await;
    assert!(found.contains("3000") && found.contains("wrong"), "{found}");
    let estimate = answers(&steps.next(&mut machine.site.shell).await);
    assert_eq!((&estimate[0]["data"]["eventCount"], &estimate[0]["data"]["sum"]), (&json!(2), &json!(3005)));
    let cancelled = answers(&steps.next(&mut machine.site.shell).await);
    assert!(cancelled[0]["data"]["id"].is_string(), "{cancelled:?}");
    // A rule goes by whole seconds.
    eventually("the range to be over", async || (now_in_seconds() > end).then_some(())).await;
    machine.put([detail("acme", "wrong-corrected", 3), detail("acme", "right-again", 5)]).await;
    let all = texts(&["right", "right-again", "wrong", "wrong-corrected"]);
    machine.site.until_billed_once(&all).await;
    let usage = answers(&steps.next(&mut machine.site.shell).await);
    steps.done();
    assert_eq!(usage[0]["data"]["clientMeters"][0]["groupValue"], 8.0, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_is_verified() {
    let mut machine = Machine::start(&[]).await;
    let ids = machine.put_events("usage", 21).await;
    machine.site.until_billed_once(&ids).await;
    machine.site.shell.paste("TENANT=tenant-1").await;
    let mut steps = Steps::of(VERIFY, LOCAL);
    let open = steps.next(&mut machine.site.shell).await;
    assert_eq!(answers(&open)[0]["data"]["depth"], 0, "{open}");
    let flow = steps.next(&mut machine.site.shell).await;
    let values: Vec<_> = flow.lines().filter(|line| line.ends_with(" 21")).collect();
    assert_eq!(values.len(), 2, "read and delivered: {flow}");
    let usage = answers(&steps.next(&mut machine.site.shell).await);
    steps.done();
    let groups = usage[0]["data"]["clientMeters"].as_array().unwrap();
    assert!(groups.len() == 7 && groups.iter().all(|group| group["groupValue"] == 3.0), "{usage:?}");
    let rows = usage[1]["data"]["rows"].as_array().unwrap_or_else(|| panic!("{usage:?}"));
    assert_eq!(rows.len(), 3, "{usage:?}");
}

/// What they print is for eyes; here it is that each of them runs.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_checks_of_all_alerts_run() {
    let mut machine = Machine::start(&[]).await;
    let ids = machine.put_events("usage", 3).await;
    machine.site.until_billed_once(&ids).await;
    let mut steps = Steps::of(FIRST_MINUTE, LOCAL);
    let ready = steps.next(&mut machine.site.shell).await;
    assert!(ready.contains("ready\nready") && !ready.contains("not"), "{ready}");
    let shards: BTreeSet<_> = machine.site.leases().await.iter().map(|lease| lease["shard"].to_string()).collect();
    assert_eq!(answers(&steps.next(&mut machine.site.shell).await).len(), shards.len());
    assert_eq!(answers(&steps.next(&mut machine.site.shell).await)[0]["data"]["depth"], 0);
    steps.done();
    let alerts = alerts();
    let checks = shell_blocks().into_iter().filter(|block| alerts.contains(&block.section) && block.mark.is_empty());
    for check in checks {
        println!("{}: {}", check.section, machine.site.shell.paste(&check.text).await);
    }
    assert_eq!(machine.site.shell.paste("trouble || true").await.trim(), "");
}
