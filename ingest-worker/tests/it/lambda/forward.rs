//! The forwarder: the real `bootstrap` between a runtime API like Lambda's and a stream.

mod kinesis;

use std::time::Duration;

use emulators::Stream;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

use super::bootstrap::{Bootstrap, Cloud, LIMIT, Made, RuntimeApi, assert_refused, command, failures};
use super::{SHARD, record_in};
use crate::process::Amberflo;
use kinesis::{Fate, Kinesis, Stored};

/// As no program of ours would write it.
const ODD: &str = concat!(
    r#"{ "version":"0","id":"7bf73129-1428-4cd3-a780-95db273d1602","detail-type" : "ingestUsage","source":"app","#,
    r#""account":"123456789012","time":"2026-01-01T00:00:00Z","region":"us-east-1","resources":[],"detail":"#,
    r#"{"meterValue":9223372036854775807,"tenantId":"\u0061cme","meterApiName":"calls","b":1.50E+2,"b":1.50E+2,"#,
    "\n\t",
    r#""dimensions":{"naïve":"caf\u00e9 \ud83d\ude00","n":12345678901234567890123}}}"#
);

/// A forwarder at work.
struct Forwarder {
    runtime: RuntimeApi,
    bootstrap: Bootstrap,
    _dir: TempDir,
}

impl Forwarder {
    async fn start(kinesis: &str, stream: &str, settings: &[(&str, &str)]) -> Self {
        let (runtime, dir) = (RuntimeApi::start().await, TempDir::new().unwrap());
        let bootstrap = Bootstrap::spawn(&mut forwarder(&dir, &runtime, kinesis, stream, settings), dir.path());
        Self { runtime, bootstrap, _dir: dir }
    }

    async fn invoke(&mut self, payload: &str) -> Made {
        self.runtime.invoke_with(payload, LIMIT).await
    }

    /// Invokes with an event, which must succeed.
    async fn forward(&mut self, event: &str) {
        let made = self.invoke(event).await;
        assert_eq!(failures(&made), [""; 0], "{:?}", self.bootstrap.logs());
    }
}

/// The command with nothing but what the forwarder needs.
fn forwarder(dir: &TempDir, runtime: &RuntimeApi, kinesis: &str, stream: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = command(dir.path(), runtime);
    command.envs(emulators::environment(kinesis, "http://127.0.0.1:9"));
    command.env("_HANDLER", "forward").env("STREAM", stream).envs(settings.iter().copied());
    command
}

fn event(id: &str, detail: Value) -> String {
    json!({"detail-type": "ingestUsage", "id": id, "time": "2026-01-01T00:00:00Z", "detail": detail}).to_string()
}

fn usage(n: u64) -> String {
    event(&format!("event-{n}"), crate::harness::usage(&format!("tenant-{n}"), n))
}

fn message(id: &str, body: &str) -> Value {
    json!({
        "messageId": id,
        "receiptHandle": "AQEB",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {"ERROR_CODE": {"stringValue": "NO_PERMISSIONS", "dataType": "String"}},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:rule-dead-letters",
        "awsRegion": "us-east-1",
    })
}

/// Lambda's record of an asynchronous invocation that failed.
fn failed_invocation(event: &str) -> String {
    let context = json!({"requestId": "8476a536", "condition": "RetriesExhausted", "approximateInvokeCount": 3});
    format!(
        r#"{{"version":"1.0","timestamp":"2026-01-01T00:00:00Z","requestContext":{context},"requestPayload":{event},"responseContext":{{"statusCode":200}},"responsePayload":{{"errorMessage":"x"}}}}"#
    )
}

fn data(stored: &[Stored]) -> Vec<&str> {
    stored.iter().map(|record| &*record.data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reaches_the_stream_byte_for_byte() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    forwarder.forward(ODD).await;
    assert_eq!(kinesis.take(), [Stored { partition_key: "acme".to_owned(), data: ODD.to_owned() }]);
    assert_eq!(kinesis.calls()[0]["StreamName"], "events");
    let failed = failed_invocation(ODD);
    let made = forwarder.runtime.invoke(&[message("1", ODD), message("2", &failed)], LIMIT).await;
    assert_eq!(failures(&made), [""; 0]);
    assert_eq!(data(&kinesis.take()), [ODD, ODD]);

    let arn = "arn:aws:kinesis:eu-central-1:123456789012:stream/other-account";
    let mut forwarder = Forwarder::start(&kinesis.url, &format!("kinesis:{arn}"), &[]).await;
    forwarder.forward(ODD).await;
    assert_eq!(kinesis.calls().last().unwrap()["StreamARN"], arn);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_partition_key_is_the_tenant_or_else_the_id() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    let longest = "t".repeat(256);
    let too_long = "t".repeat(257);
    for (detail, key) in [
        (json!({"tenantId": "acme"}), "acme"),
        (json!({"tenantId": 9_007_199_254_740_993_u64}), "9007199254740993"),
        (json!({"tenantId": longest}), &*longest),
        (json!({"tenantId": too_long}), "the-id"),
        (json!({"tenantId": ""}), "the-id"),
        (json!({"tenantId": null}), "the-id"),
        (json!({"tenantId": {"a": 1}}), "the-id"),
        (json!({}), "the-id"),
        (json!("not an object"), "the-id"),
    ] {
        let event = event("the-id", detail);
        forwarder.forward(&event).await;
        assert_eq!(kinesis.take(), [Stored { partition_key: key.to_owned(), data: event }]);
    }
    let settings = [("PARTITION_KEY_PATH", "$.detail.uniqueId")];
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &settings).await;
    forwarder.forward(&event("the-id", json!({"tenantId": "acme", "uniqueId": "u-1"}))).await;
    assert_eq!(kinesis.take()[0].partition_key, "u-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_refuses_is_put_again_and_nothing_else() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    let mut refusals = 3;
    kinesis.script(move |record| {
        let refused = record.partition_key == "tenant-2" && refusals > 0;
        refusals -= u64::from(refused);
        if refused { Fate::Throttled } else { Fate::Stored }
    });
    let messages: Vec<_> = (0..5).map(|n| message(&n.to_string(), &usage(n))).collect();
    assert_eq!(failures(&forwarder.runtime.invoke(&messages, LIMIT).await), [""; 0]);
    let stored = kinesis.take();
    let keys: Vec<_> = stored.iter().map(|record| &*record.partition_key).collect();
    assert_eq!(keys, ["tenant-0", "tenant-1", "tenant-3", "tenant-4", "tenant-2"]);
    let sizes: Vec<_> = kinesis.calls().iter().map(|call| call["Records"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [5, 1, 1, 1]);

    // As a whole, and more often than the SDK tries.
    let mut refusals = 4;
    kinesis.script(move |_| {
        refusals -= i32::from(refusals > 0);
        if refusals > 0 { Fate::Refused("LimitExceededException") } else { Fate::Stored }
    });
    forwarder.forward(&usage(7)).await;
    assert_eq!(data(&kinesis.take()), [usage(7)]);
}

/// An error has Lambda invoke again, and the event is put then.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_put_fails_the_invocation_in_time() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    forwarder.forward(&usage(0)).await;
    let limit = Duration::from_secs(3);
    for (fate, expected) in [
        (Fate::Throttled, "Rate exceeded"),
        (Fate::Hangs, "did not answer in time"),
        (Fate::Refused("AccessDeniedException"), "AccessDenied"),
    ] {
        kinesis.script(move |_| fate);
        let started = Instant::now();
        let made = forwarder.runtime.invoke_with(&usage(1), limit).await;
        assert!(started.elapsed() < limit, "{fate:?}: {:?}", started.elapsed());
        let Made::Error(error) = made else { panic!("{fate:?}: {made:?}") };
        assert!(error.contains(expected) && !error.contains("tenant-1"), "{error}");
    }
    kinesis.script(|_| Fate::Stored);
    kinesis.take();
    forwarder.forward(&usage(1)).await;
    assert_eq!(data(&kinesis.take()), [usage(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_queue_just_the_messages_stay_that_could_not_be_put() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    // What the stream takes in no call does not hold up the others.
    let large = event("large", json!({"tenantId": "large", "text": "x".repeat(1 << 20)}));
    kinesis.script(|record| match &*record.partition_key {
        "tenant-2" => Fate::Throttled,
        "large" => Fate::Refused("ValidationException"),
        _ => Fate::Stored,
    });
    let bodies = [
        ("first", usage(1)),
        ("throttled", usage(2)),
        ("failed-invocation", failed_invocation(&usage(3))),
        ("not-json", "s3cret".to_owned()),
        ("not-an-event", json!({"tenantId": "s3cret", "meterApiName": "m", "meterValue": 1}).to_string()),
        ("large", large),
        ("last", usage(4)),
    ];
    let messages: Vec<_> = bodies.iter().map(|(id, body)| message(id, body)).collect();
    let made = forwarder.runtime.invoke(&messages, Duration::from_secs(4)).await;
    let mut failed = failures(&made);
    failed.sort_unstable();
    assert_eq!(failed, ["large", "not-an-event", "not-json", "throttled"]);
    assert_eq!(data(&kinesis.take()), [usage(1), usage(3), usage(4)]);

    let logs = forwarder.bootstrap.logs();
    for id in &failed {
        let lines: Vec<_> = logs.iter().filter(|line| line["message_id"] == *id).collect();
        assert_eq!(lines.len(), 1, "{id}: {logs:?}");
    }
    let is_told = |line: &&Value| line["message"] == "messages of a queue";
    let summary = logs.iter().find(is_told).unwrap();
    assert_eq!([&summary["messages"], &summary["forwarded"], &summary["failed"]], [7, 3, 4]);
    let logs = format!("{logs:?}");
    assert!(!logs.contains("s3cret") && !logs.contains("xxx") && !logs.contains("meterApiName"), "{logs}");

    assert_eq!(failures(&forwarder.runtime.invoke(&[], LIMIT).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_no_event_fails_and_reaches_no_stream() {
    let kinesis = Kinesis::start().await;
    let mut forwarder = Forwarder::start(&kinesis.url, "kinesis:events", &[]).await;
    for (payload, expected) in [
        (json!({"key1": "s3cret"}).to_string(), "neither"),
        ("[]".to_owned(), "neither"),
        (json!({"Records": [record_in(SHARD, 1, "s3cret")]}).to_string(), "aws:kinesis"),
    ] {
        let made = forwarder.invoke(&payload).await;
        let Made::Error(error) = made else { panic!("{made:?}") };
        assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
    }
    assert_eq!(kinesis.calls().len(), 0);
    forwarder.forward(&usage(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_one_line_and_exit_code_2() {
    let (runtime, dir) = (RuntimeApi::start().await, TempDir::new().unwrap());
    for (name, value, expected) in [
        ("STREAM", None, "STREAM: local:./metering-data; the handler `forward` needs kinesis:NAME-OR-ARN"),
        ("STREAM", Some("local:store"), "needs kinesis:NAME-OR-ARN"),
        ("STREAM", Some("kinesis:a b"), "ARN"),
        ("PARTITION_KEY_PATH", Some("$.detail['tenantId']"), "such as $.detail.tenantId"),
        ("PARTITION_KEY_PATH", Some(""), "such as $.detail.tenantId"),
        ("_HANDLER", Some("forwards"), "deliver (or bootstrap, which is the same) or forward"),
        ("AWS_LAMBDA_RUNTIME_API", None, "AWS_LAMBDA_RUNTIME_API: not set"),
        ("AWS_REGION", None, "AWS_REGION"),
    ] {
        let mut command = forwarder(&dir, &runtime, "http://127.0.0.1:9", "kinesis:events", &[]);
        assert_refused(&mut command, name, value, expected).await;
    }
}

/// Events that were forwarded are, to Amberflo, identical copies of those that EventBridge put on the stream itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_forwarded_is_billed_as_if_it_had_come_directly() {
    let Some(mut cloud) = Cloud::start("lambda-forward").await else { return };
    let emulator = match emulators::Kinesis::start().await {
        Ok(emulator) => emulator,
        Err(reason) => return emulators::skip("lambda-forward", &reason),
    };
    let stream = Stream::create(&emulator.url, "events", 1).await;
    let mut events: Vec<String> = (0..20).map(usage).collect();
    events.push(ODD.replace(r#""b":1.50E+2,"b":1.50E+2,"#, ""));
    let direct: Vec<_> = (0..).zip(&events).map(|(n, event)| record_in(SHARD, n, event)).collect();

    let amberflo = Amberflo::start().await;
    let _worker =
        cloud.spawn(cloud.command(&amberflo.url).env("STREAM", "kinesis:events").env("_HANDLER", "bootstrap"));
    assert_eq!(failures(&cloud.runtime.invoke(&direct, LIMIT).await), [""; 0]);
    amberflo.billed(21).await;
    assert_eq!(amberflo.sandbox.ledger().absorbed_copies, 0);

    let mut forwarder = Forwarder::start(&emulator.url, "kinesis:events", &[]).await;
    let (one_by_one, redriven) = events.split_at(10);
    for event in one_by_one {
        forwarder.forward(event).await;
    }
    let messages: Vec<_> = redriven.iter().map(|event| message("m", event)).collect();
    assert_eq!(failures(&forwarder.runtime.invoke(&messages, LIMIT).await), [""; 0]);

    let shard = stream.open_shards().await.remove(0);
    let call = stream.client.get_shard_iterator().stream_name(&stream.name).shard_id(shard);
    let iterator = call.shard_iterator_type("TRIM_HORIZON".into()).send().await.unwrap().shard_iterator;
    let page = stream.client.get_records().set_shard_iterator(iterator).send().await.unwrap();
    let forwarded: Vec<_> = (100..).zip(page.records).map(|(n, record)| record_in(SHARD, n, record.data)).collect();
    assert_eq!(forwarded.len(), events.len());
    assert_eq!(failures(&cloud.runtime.invoke(&forwarded, LIMIT).await), [""; 0]);
    let ledger = amberflo.sandbox.ledger();
    assert_eq!((ledger.events, ledger.absorbed_copies), (21, 21));
    amberflo.assert_billed_once(21);
}
