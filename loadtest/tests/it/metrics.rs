//! `infra/observability/METRICS.md` says what the programs expose, and they expose what it says.

mod document;
mod exposition;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::Client;
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::harness::{Dev, eventually};
use document::Document;
use exposition::Exposition;

const METER: &str = "api-calls";

struct Run {
    dev: Dev,
    http: Client,
    now: i64,
}

impl Run {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().no_proxy().build().unwrap();
        Self { dev: Dev::start().await, http, now: Clock::system().now() }
    }

    /// Puts usage events, and answers when so many records in all have an outcome.
    async fn put(&self, events: &[(&str, u64)], settled: f64) -> Exposition {
        let entry = |(id, value): &(&str, u64)| {
            let meter = if id.starts_with("malformed") { Value::Null } else { METER.into() };
            let detail = json!({"tenantId": "acme", "meterApiName": meter, "meterValue": value, "uniqueId": id, "meterTimeInMillis": self.now});
            json!({"Source": "test", "DetailType": "ingestUsage", "Detail": detail.to_string()})
        };
        let body = json!({"Entries": events.iter().map(entry).collect::<Vec<_>>()}).to_string();
        let put = self.http.post(self.dev.url("event bus")).header("x-amz-target", "AWSEvents.PutEvents").body(body);
        let text = put.send().await.unwrap().text().await.unwrap();
        assert!(text.contains(r#""FailedEntryCount":0"#), "{text}");
        eventually("the events are settled", async || {
            let worker = self.worker().await;
            (worker.sum("ingest_events_total") == settled).then_some(worker)
        })
        .await
    }

    async fn set_faults(&self, faults: Value) {
        let url = format!("{}/sandbox/faults", self.dev.url("Amberflo"));
        self.http.put(url).body(faults.to_string()).send().await.unwrap().error_for_status().unwrap();
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> u16 {
        let mut request = self.http.request(method, format!("{}{path}", self.dev.url("control API")));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        request.send().await.unwrap().status().as_u16()
    }

    async fn text(&self, index: usize) -> String {
        self.http.get(&self.dev.urls("metrics")[index]).send().await.unwrap().text().await.unwrap()
    }

    /// A scrape of the worker, in which the flow balances.
    async fn worker(&self) -> Exposition {
        let worker = Exposition::parse(&self.text(0).await);
        let ended = worker.sum("ingest_events_total") + worker.sum("ingest_in_flight_records");
        assert_eq!(worker.sum("ingest_records_read_total"), ended, "the flow does not balance");
        worker
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_programs_expose_what_the_document_says_and_nothing_else() {
    use reqwest::Method;
    let run = Run::start().await;
    run.put(&[("one", 1), ("one", 1), ("one", 2), ("malformed", 1)], 4.0).await;
    // Amberflo does not like one, is too busy at first, fails, and counts wrongly.
    run.set_faults(json!({"poison": [{"unique_id_prefixes": ["poison"]}], "throttle": {"count": 1}})).await;
    run.put(&[("poison", 1), ("two", 1)], 6.0).await;
    run.set_faults(json!({"fail_before": {"count": 1}, "partial_answer": {"rate": 1.0}})).await;
    let worker = run.put(&[("three", 1)], 7.0).await;
    for (name, label, value, least) in [
        ("ingest_events_total", "outcome", "delivered", 3.0),
        ("ingest_events_total", "outcome", "duplicate", 1.0),
        ("ingest_dead_letters_total", "reason", "conflict", 1.0),
        ("ingest_dead_letters_total", "reason", "missing_field", 1.0),
        ("ingest_dead_letters_total", "reason", "rejected", 1.0),
        ("amberflo_requests_total", "outcome", "2xx", 3.0),
        ("amberflo_requests_total", "outcome", "4xx", 1.0),
        ("amberflo_requests_total", "outcome", "429", 1.0),
        ("amberflo_requests_total", "outcome", "5xx", 1.0),
    ] {
        let counted = worker.sum_of(name, label, value);
        assert!(counted >= least, "{name}{{{label}={value:?}}} is {counted}");
    }
    assert_eq!(worker.sum("amberflo_count_mismatches_total"), 1.0);

    let range = json!({"startTimeInSeconds": run.now / 1000 - 60, "endTimeInSeconds": run.now / 1000 + 60});
    let rule = json!({"id": "rule", "meterApiName": METER, "ingestionTimeRange": range});
    let event = json!({"tenantId": "acme", "meterApiName": METER, "meterValue": 1, "uniqueId": "four"});
    for (method, path, body, status) in [
        (Method::GET, "/meters", None, 200),
        (Method::GET, "/usage/any?meterApiName=api-calls&tenantId=acme", None, 200),
        (Method::GET, "/usage/any/events?meterApiName=api-calls&tenantId=acme", None, 200),
        (Method::POST, "/ingest", Some(event), 202),
        (Method::GET, "/dead-letters", None, 200),
        (Method::DELETE, "/usage", Some(rule), 200),
        (Method::GET, "/nothing", None, 404),
        (Method::POST, "/ingest", Some(json!("no event")), 400),
    ] {
        assert_eq!(run.ask(method, path, body).await, status, "{path}");
    }

    let document = Document::read();
    for (index, program) in ["ingest-worker", "control-api"].into_iter().enumerate() {
        let text = run.text(index).await;
        let differences = document.differences(program, &Exposition::parse(&text));
        assert!(differences.is_empty(), "{program}:\n{}", differences.join("\n"));
        check_metrics(&text).await;
    }
    run.dev.stop().await;
}

#[test]
fn every_difference_is_told() {
    let document = Document::parse(
        "## program\n| metric | type |\n|---|---|\n\
         | `reads_total` | counter | `kind`: `a`, `b`; `route`: any | meaning | good |\n\
         | `latency_seconds` | histogram | | meaning | good |\n\
         | `retention_seconds` | gauge | | Kinesis only: meaning | good |\n\
         ## Buckets\n| histogram | bounds | why |\n|---|---|---|\n| `latency_seconds` | 1, 60 | why |\n",
    );
    let good = "# HELP reads_total Reads\n# TYPE reads_total counter\n\
        reads_total{kind=\"a\",route=\"/x\"} 1\nreads_total{kind=\"b\",route=\"/y\"} 2\n\
        # HELP latency_seconds Latency\n# TYPE latency_seconds histogram\nlatency_seconds_bucket{le=\"1\"} 1\n\
        latency_seconds_bucket{le=\"60\"} 1\nlatency_seconds_bucket{le=\"+Inf\"} 1\nlatency_seconds_sum 1\nlatency_seconds_count 1\n";
    let told = |text: &str| document.differences("program", &Exposition::parse(text));
    assert_eq!(told(good), [""; 0]);
    for (from, to, difference) in [
        ("kind=\"b\"", "kind=\"c\"", "reads_total: the values of kind are {\"a\", \"c\"}, not {\"a\", \"b\"}"),
        ("kind=\"b\"", "kind=\"a\"", "reads_total: the values of kind are {\"a\"}, not {\"a\", \"b\"}"),
        (",route=\"/y\"", "", "reads_total: the labels are {\"kind\"}, not {\"kind\", \"route\"}"),
        ("reads_total counter", "reads_total gauge", "reads_total: is a gauge, not a counter"),
        ("# HELP reads_total Reads\n", "", "reads_total: has no HELP"),
        ("le=\"60\"", "le=\"61\"", "latency_seconds: the bounds are 1, 61, not 1, 60"),
        ("# HELP latency", "# TYPE new gauge\nnew 1\n# HELP latency", "new: is not documented"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(
            told(&good.replace(from, to)).contains(&difference.to_owned()),
            "{difference}: {:?}",
            told(&good.replace(from, to))
        );
    }
    let of_kinesis = "# TYPE retention_seconds gauge\nretention_seconds 1\n";
    assert!(told(of_kinesis).contains(&"retention_seconds: is not documented".to_owned()));
    assert!(told("").contains(&"latency_seconds: is not exposed".to_owned()));
}

/// Holds the text against Prometheus' own conventions.
async fn check_metrics(text: &str) {
    let Some(promtool) = promtool() else {
        return emulators::skip("promtool check metrics", "promtool is missing: run infra/observability/setup.sh");
    };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "promtool: {said}");
}

fn promtool() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/promtool");
    #[expect(clippy::disallowed_methods, reason = "what tests need has no config module")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("promtool"));
    std::iter::once(installed).chain(on_path).find(|program| program.is_file())
}
