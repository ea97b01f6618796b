//! The curves of growth, small: each has its chart and its table, and delivers all events.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::harness::loadtest;

const TIMEOUT: Duration = Duration::from_secs(300);

/// Measures these curves into a directory. That as many events are delivered as there were is the program's own condition:
/// it fails otherwise.
async fn grow(dir: &Path, curves: &[&str]) -> (String, Value) {
    let mut command = loadtest(&["growth", "--tiny", "--report"]);
    command.arg(dir).args(curves.iter().flat_map(|curve| ["--only", curve]));
    let output = timeout(TIMEOUT, command.output()).await.expect("it takes too long").unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (text, result) = (read("report.md"), read("result.json"));
    for chart in text.lines().filter_map(|line| line.strip_prefix("![")?.strip_suffix(".svg)")?.split_once("](")) {
        assert!(read(&format!("{}.svg", chart.1)).starts_with("<svg"), "{chart:?}");
    }
    (text, serde_json::from_str(&result).unwrap())
}

/// The table row that begins with these cells.
fn row<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    let row = text.lines().find(|line| line.starts_with(&format!("| {beginning} |")));
    row.unwrap_or_else(|| panic!("{beginning:?} in\n{text}")).trim_matches('|').split('|').map(str::trim).collect()
}

/// All figures of each point are there, and none is below zero.
fn has_points(result: &Value, curve: &str, count: usize) {
    let points = result[curve]["points"].as_array().unwrap_or_else(|| panic!("{curve} in {result}"));
    assert_eq!(points.len(), count, "{points:?}");
    for point in points {
        let mut values: Vec<&Value> = vec![point];
        while let Some(value) = values.pop() {
            match value {
                Value::Object(members) => values.extend(members.values()),
                Value::Number(number) => assert!(number.as_f64().is_some_and(|value| value >= 0.0), "{point}"),
                other => assert!(other.is_boolean(), "{point}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curves_of_the_local_stream_have_charts_and_tables_and_stay_when_others_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (text, _) = grow(dir.path(), &["tenants", "sink-latency"]).await;
    assert_eq!(row(&text, "10")[1], "4,000");
    assert_eq!(row(&text, "1,000")[1], "4,000");
    assert_eq!(row(&text, "100")[3], "80,000", "8 requests of 1,000 events in 100 ms");

    let (text, result) = grow(dir.path(), &["batch-size"]).await;
    for curve in ["tenants", "sink_latency", "batch_size"] {
        has_points(&result, curve, 2);
    }
    for part in [
        "![Cost by number of tenants](tenants.svg)",
        "(sink-latency.svg)",
        "(batch-size.svg)",
        "command  make growth ARGS=",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(result["shards"].is_null() && !text.contains("## Plan"), "{text}");
    // Requests are as full as they may be, but for the last of each shard.
    let fullness: f64 = result["batch_size"]["points"][0]["events_per_request"].as_f64().unwrap();
    assert!((9.0..=10.0).contains(&fullness), "{fullness}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curves_of_kinesis_have_charts_and_tables_and_make_the_plan() {
    if let Err(reason) = emulators::Moto::start().await {
        return emulators::skip("growth: kinesis", &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let (text, result) = grow(dir.path(), &["shards", "dedup-keys", "outage"]).await;
    has_points(&result, "shards", 2);
    has_points(&result, "dedup_keys", 2);
    has_points(&result, "outage", 4);
    has_points(&result, "live_outage", 1);
    for keys in ["1,000", "4,000"] {
        let cells = row(&text, keys);
        assert!(
            cells[1].replace(',', "").parse::<u64>().unwrap() >= keys.replace(',', "").parse().unwrap(),
            "{cells:?}"
        );
    }
    for part in ["(shards.svg)", "(dedup-keys.svg)", "(outage.svg)", "## Plan for 1 million events/s"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(row(&text, "EventBridge: events put, US$ a month")[1..], ["2,628,000", "0", "0"]);
    assert!(text.contains("shards: a test: the figures mean nothing, taken 2"), "{text}");
}
