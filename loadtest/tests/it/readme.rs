//! The commands of the READMEs do what their text says, pasted in order.

mod original_plugin;
mod terminal;

use emulators::skip;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::document::{Block, blocks};
use crate::harness::{Dev, PATIENCE, eventually, loadtest};
use crate::shell::tools;
use terminal::Terminal;

const README: &str = include_str!("../../../README.md");
const CONTROL_API: &str = include_str!("../../../control-api/README.md");
const SUITE: &str = "readme-clients";

const OWN_EVENT: &str = "An event of your own";
const EMITTING: &str = "Emitting events";
const REDRIVEN: &str = "An event dead-lettered, then redriven";
const WRONG_BILL: &str = "A wrong bill";

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_do_what_the_text_says() {
    let dev = Dev::start().await;
    an_event_of_your_own(&dev).await;
    emitting_events(&dev).await;
    an_event_dead_lettered_then_redriven(&dev).await;
    a_wrong_bill(&dev).await;
    the_control_api(&dev).await;
    dev.stop().await;
}

async fn an_event_of_your_own(dev: &Dev) {
    let [put_and_ask] = section(OWN_EVENT, ["sh"]);
    let mut terminal = Terminal::open(dev).await;
    let answers = terminal.answers(&put_and_ask.text).await;
    assert_eq!(answers[0]["FailedEntryCount"], 0, "{answers:?}");
    terminal.until(&put_and_ask, |answer| usage(answer) == 3.0).await;

    let before = duplicates(dev, &mut terminal).await;
    terminal.paste(&put_and_ask.with_the_same_now()).await;
    eventually("the copy is recognised", async || (duplicates(dev, &mut terminal).await > before).then_some(())).await;
    assert_eq!(usage(&terminal.answer(put_and_ask.query()).await), 3.0);
}

async fn emitting_events(dev: &Dev) {
    // The Rust one is compiled with the documentation of control-api.
    let [settings, aws_cli, node, python, _, ingest] = section(EMITTING, ["sh", "sh", "js", "python", "rust", "sh"]);
    let mut terminal = Terminal::open(dev).await;
    let mut expected = usage_of("acme", &mut terminal).await;
    terminal.paste(&settings.text).await;

    if is_installed("python/requirements.txt") {
        let answer = terminal.answer(&aws_cli.text).await;
        assert_eq!(answer["FailedEntryCount"], 0, "{answer}");
        is_billed("order-16", json!({"region": "eu"}), &mut terminal).await;
        std::fs::write(terminal.shell.home.path().join("emit.py"), &python.text).unwrap();
        terminal.paste("python emit.py").await;
        is_billed("python-1", json!({"region": "eu"}), &mut terminal).await;
        expected += 6.0;
    }
    if is_installed("js/installed-lock.json") && has_node().await {
        std::os::unix::fs::symlink(tools().join("js/node_modules"), terminal.shell.home.path().join("node_modules"))
            .unwrap();
        std::fs::write(terminal.shell.home.path().join("emit.mjs"), &node.text).unwrap();
        terminal.paste("node emit.mjs").await;
        is_billed("node-1", json!({"region": "eu"}), &mut terminal).await;
        expected += 3.0;
    }

    let answer = terminal.answer(&ingest.text).await;
    assert_eq!((&answer["data"]["accepted"], &answer["data"]["rejected"]), (&json!(1), &json!(1)), "{answer}");
    let id = answer["data"]["events"][0]["uniqueId"].as_str().unwrap();
    is_billed(id, json!({}), &mut terminal).await;
    let before = duplicates(dev, &mut terminal).await;
    let again = terminal.answer(&ingest.with_the_same_now()).await;
    assert_eq!(again["data"]["events"][0]["uniqueId"], id, "{again}");
    eventually("the repeated request is recognised", async || {
        (duplicates(dev, &mut terminal).await > before).then_some(())
    })
    .await;
    assert_eq!(usage_of("acme", &mut terminal).await, expected + 2.0);
}

async fn an_event_dead_lettered_then_redriven(dev: &Dev) {
    let [put_and_look, redrive] = section(REDRIVEN, ["sh", "sh"]);
    let mut terminal = Terminal::open(dev).await;
    let before = usage_of("acme", &mut terminal).await;
    terminal.paste(&put_and_look.text).await;
    let dead = terminal.until(&put_and_look, |answer| answer["data"]["letters"] != json!([])).await;
    let letters = dead["data"]["letters"].as_array().unwrap();
    let letter = &letters[0];
    assert_eq!((letters.len(), &letter["reason"]), (1, &json!("missing_field")), "{dead}");
    assert_eq!(letter["uniqueId"], "order-18");
    let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
    assert_eq!(payload["detail"]["meterTimeInMillis"], letter["meterTimeInMillis"]);

    let answers = terminal.answers(&redrive.text).await;
    assert_eq!(answers[0]["data"]["redriven"], 1, "{answers:?}");
    let billed = terminal.until(&redrive, |events| *events != json!([])).await;
    assert_eq!(billed.as_array().unwrap().len(), 1, "{billed}");
    assert_eq!((&billed[0]["meter_api_name"], &billed[0]["value"]), (&json!("api-calls"), &json!("4")));
    assert_eq!(billed[0]["time_millis"], letter["meterTimeInMillis"]);
    assert_eq!(usage_of("acme", &mut terminal).await, before + 4.0);
    let left = terminal.answer(put_and_look.query()).await;
    assert_eq!(left["data"]["letters"], json!([]), "{left}");
}

async fn a_wrong_bill(dev: &Dev) {
    let [emit, find, dry_run, cancel, emit_again, verify] = section(WRONG_BILL, ["sh"; 6]);
    let mut terminal = Terminal::open(dev).await;
    let others = usage_of("acme", &mut terminal).await;
    // A rule goes by whole seconds: what was ingested before must not share its first.
    terminal.paste("sleep 1").await;
    let emitted = terminal.answer(&emit.text).await;
    assert_eq!(emitted["data"]["accepted"], 2, "{emitted}");
    let found = terminal.until(&find, |answer| answer["data"]["rows"].as_array().unwrap().len() == 2).await;
    for words in ["wrong-", "right-", "3000"] {
        assert!(found.to_string().contains(words), "{words}: {found}");
    }
    terminal.until(&verify, |answer| usage(answer) == 3005.0).await;

    let estimate = terminal.answer(&dry_run.text).await;
    let expected = json!({"dryRun": true, "exact": false, "eventCount": 2, "sum": 3005});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(estimate["data"][name], *value, "{estimate}");
    }
    assert_eq!(usage(&terminal.answer(&verify.text).await), 3005.0, "nothing is cancelled yet");

    let rule = terminal.answer(&cancel.text).await;
    let id = rule["data"]["id"].as_str().unwrap_or_else(|| panic!("{rule}"));
    let start = &rule["data"]["ingestionTimeRange"]["startTimeInSeconds"];
    assert_eq!(id, format!("wrong-order-{start}"), "an id that an earlier cancellation has would replace that one");
    terminal.until(&verify, |answer| usage(answer) == 0.0).await;
    let emitted = terminal.answer(&emit_again.text).await;
    assert_eq!(emitted["data"]["accepted"], 2, "{emitted}");
    terminal.until(&verify, |answer| usage(answer) == 8.0).await;
    assert_eq!(usage_of("acme", &mut terminal).await, others, "the bill of another tenant");
}

async fn the_control_api(dev: &Dev) {
    let examples: Vec<_> =
        blocks(CONTROL_API).into_iter().filter(|block| block.text.starts_with("export API=")).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let answers = Terminal::open(dev).await.answers(&example.text).await;
        let [created, listed, usage] = answers.as_slice() else { panic!("three answers: {answers:?}") };
        assert_eq!(created["data"]["meterApiName"], "storage-gb", "{created}");
        assert_eq!(listed["data"], json!([created["data"]]));
        let tenants = usage["data"]["clientMeters"].as_array().unwrap();
        let tenants = tenants.iter().map(|group| group["group"]["groupInfo"]["customerId"].as_str().unwrap());
        assert!(tenants.eq(["acme", "initech"]), "{usage}");
    }
}

#[tokio::test]
async fn the_ports_in_the_text_are_those_of_make_dev() {
    let help =
        tokio::time::timeout(PATIENCE, loadtest(&["dev", "--help"]).output()).await.expect("it answers").unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for (flag, port) in [("--control-api-port", 8080), ("--bus-port", 4010), ("--sandbox-port", 4020)] {
        let text = help.split(flag).nth(1).and_then(|text| text.split("--").next()).unwrap_or_default();
        assert!(text.contains(&format!("[default: {port}]")), "{flag}: {help}");
    }
}

/// A command that nobody has run is wrong.
#[test]
fn every_command_of_the_readme_is_tried() {
    let tried = [OWN_EVENT, EMITTING, REDRIVEN, WRONG_BILL];
    for block in blocks(README).iter().filter(|block| block.language == "sh") {
        let is_make = block.text.lines().all(|line| line.starts_with("make "));
        assert!(is_make || tried.contains(&block.section.as_str()), "{block:?}");
    }
}

/// The code blocks of a section, which are in these languages. `make dev` is what they run beside.
fn section<const N: usize>(heading: &str, languages: [&str; N]) -> [Block; N] {
    let blocks: Vec<_> =
        blocks(README).into_iter().filter(|block| block.section == heading && block.text != "make dev\n").collect();
    let found: Vec<_> = blocks.iter().map(|block| block.language.as_str()).collect();
    assert_eq!(found, languages, "{heading}");
    blocks.try_into().unwrap()
}

/// The total of an answer of `GET /usage/{meterId}`.
fn usage(answer: &Value) -> f64 {
    let groups = answer["data"]["clientMeters"].as_array().unwrap_or_else(|| panic!("{answer}"));
    groups.iter().map(|group| group["groupValue"].as_f64().unwrap_or_else(|| panic!("{answer}"))).sum()
}

async fn usage_of(tenant: &str, terminal: &mut Terminal<'_>) -> f64 {
    let url = format!("http://127.0.0.1:8080/usage/meterId?meterApiName=api-calls&tenantId={tenant}");
    usage(&terminal.answer(&format!("curl -s '{url}'")).await)
}

/// Waits until an event is on the bill, with these dimensions and without a copy.
async fn is_billed(unique_id: &str, dimensions: Value, terminal: &mut Terminal<'_>) {
    let url = format!("http://127.0.0.1:4020/sandbox/events?uniqueId={unique_id}");
    let events = eventually(unique_id, async || {
        Some(terminal.answer(&format!("curl -s '{url}'")).await).filter(|events| *events != json!([]))
    })
    .await;
    assert_eq!(events.as_array().unwrap().len(), 1, "{events}");
    assert_eq!((&events[0]["dimensions"], &events[0]["copies"]), (&dimensions, &json!(0)), "{events}");
}

/// How many copies the worker has recognised.
async fn duplicates(dev: &Dev, terminal: &mut Terminal<'_>) -> u64 {
    let metrics = terminal.paste(&format!("curl -s {}", dev.url("metrics"))).await;
    let count = metrics.lines().find_map(|line| line.strip_prefix(r#"ingest_events_total{outcome="duplicate"} "#));
    count.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

fn is_installed(file: &str) -> bool {
    let is_installed = tools().join(file).exists();
    if !is_installed {
        skip(SUITE, &format!("target/tools/{file} is missing: run ingest-worker/tests/clients/setup.sh"));
    }
    is_installed
}

async fn has_node() -> bool {
    let has_node = Command::new("node").arg("--version").output().await.is_ok();
    if !has_node {
        skip(SUITE, "node cannot be started");
    }
    has_node
}
