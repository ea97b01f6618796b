//! The worker as a Lambda function: events as Lambda sends them, in paused time, and what it is answered.

mod bootstrap;
mod forward;
mod promises;
mod time;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ingest_worker::context::Common;
use ingest_worker::lambda::event::Event;
use ingest_worker::lambda::function::{DRAIN, Function};
use serde_json::{Value, json};

use crate::harness::{MINUTE, Options, World};

const SHARD: &str = "shardId-000000000000";
const ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/events";
/// 2026-01-01T00:00:00.1Z
const ARRIVED: f64 = 1_767_225_600.1;
const KEY_REFRESH: Duration = Duration::from_secs(300);

/// A record as Lambda sends it; `n` says where it lies in its shard.
fn record_in(shard: &str, n: u64, data: impl AsRef<[u8]>) -> Value {
    let sequence_number = number(n);
    json!({
        "eventID": format!("{shard}:{sequence_number}"),
        "eventSource": "aws:kinesis",
        "eventSourceARN": ARN,
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "tenant",
            "sequenceNumber": sequence_number,
            "data": BASE64.encode(data),
            "approximateArrivalTimestamp": ARRIVED,
        },
    })
}

/// Nine and ten differ in length, as sequence numbers may.
fn number(n: u64) -> String {
    format!("4959{n}")
}

/// A usage event in its envelope, in its record.
fn usage(n: u64) -> Value {
    record_in(SHARD, n, envelope(crate::harness::usage("tenant", n), "2026-01-01T00:00:00Z"))
}

fn envelope(detail: Value, time: &str) -> String {
    json!({"detail-type": "ingestUsage", "id": "e", "time": time, "detail": detail}).to_string()
}

fn usages(numbers: std::ops::Range<u64>) -> Vec<Value> {
    numbers.map(usage).collect()
}

/// The options of a function that sends ten events a request.
fn tens() -> Options {
    Options { batch_max_events: 10, ..Options::default() }
}

/// A sandbox of Lambda: what is kept from one invocation to the next.
struct Sandbox {
    function: Function,
    common: Arc<Common>,
}

impl Sandbox {
    async fn start(world: &World, options: Options) -> Self {
        Self::with(world.common(options).await)
    }

    fn with(common: Common) -> Self {
        let common = Arc::new(Common { drain: DRAIN, ..common });
        Self { function: Function::new(Arc::clone(&common), "events", KEY_REFRESH), common }
    }

    /// Invokes with a minute's time; answers the sequence numbers of the failures.
    async fn invoke(&self, records: &[Value]) -> Vec<String> {
        self.invoke_within(MINUTE, records).await
    }

    async fn invoke_within(&self, limit: Duration, records: &[Value]) -> Vec<String> {
        let event: Event = serde_json::from_value(json!({ "Records": records })).unwrap();
        let deadline = self.common.clock.now() + i64::try_from(limit.as_millis()).unwrap();
        let answer = self.function.answer(event, &ARN.parse().unwrap(), deadline).await.unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        let failures = answer["batchItemFailures"].as_array().unwrap();
        failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
    }
}

const NONE: [String; 0] = [];
