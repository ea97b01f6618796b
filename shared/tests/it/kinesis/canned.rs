//! A Kinesis whose answers a test plans. It is called in process, so time can be paused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use shared::backend::kinesis::KinesisStream;
use shared::clock::Clock;
use tokio::time::Instant;

pub const NOW: i64 = 1_700_000_000_123;
pub const DAY: i64 = 24 * 3_600_000;
pub const ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/events";
pub const SHARD: &str = "shardId-000000000000";

/// What the service says.
pub enum Answer {
    /// Status 200 with this.
    Json(Value),
    /// An error of this code.
    Error(&'static str),
    /// Nothing, ever.
    Silence,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: String,
    pub body: Value,
    pub host: String,
    pub at: Instant,
}

type Handler = Box<dyn FnMut(&Value) -> Answer + Send>;

#[derive(Clone, Default)]
pub struct Canned {
    handlers: Arc<Mutex<HashMap<&'static str, Handler>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Canned {
    /// A service with the stream `events`, of the one open shard [`SHARD`], whose iterators are named `iterator-N`.
    pub fn new() -> Self {
        let canned = Self::default();
        canned.on("DescribeStreamSummary", |_| Answer::Json(summary(json!({}))));
        canned.on("ListShards", |_| Answer::Json(json!({"Shards": [shard(SHARD, None)]})));
        let mut iterators = 0;
        canned.on("GetShardIterator", move |_| {
            iterators += 1;
            Answer::Json(json!({"ShardIterator": format!("iterator-{iterators}")}))
        });
        canned
    }

    /// Answers the operation by `handler`.
    pub fn on(&self, operation: &'static str, handler: impl FnMut(&Value) -> Answer + Send + 'static) {
        self.handlers.lock().unwrap().insert(operation, Box::new(handler));
    }

    /// Answers the operation by these, one after the other; a further call fails the test.
    pub fn plan(&self, operation: &'static str, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        self.on(operation, move |body| {
            answers.next().unwrap_or_else(|| panic!("no answer is planned for {operation} of {body}"))
        });
    }

    /// The calls of an operation so far.
    pub fn calls(&self, operation: &str) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|call| call.operation == operation).cloned().collect()
    }

    pub fn config(&self) -> SdkConfig {
        let connector = SharedHttpConnector::new(self.clone());
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("id", "key", None, None, "test")))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(10)).build())
            .build()
    }

    /// The stream `events`, seen at [`NOW`] and onwards.
    pub async fn open(&self) -> KinesisStream {
        KinesisStream::open(&self.config(), "events").await.unwrap().with_clock(Clock::following_tokio(NOW))
    }
}

impl HttpConnector for Canned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let operation = request.headers().get("x-amz-target").unwrap().rsplit('.').next().unwrap().to_owned();
        let body: Value = serde_json::from_slice(request.body().bytes().unwrap()).unwrap();
        let host = request.uri().to_owned();
        let mut handlers = self.handlers.lock().unwrap();
        let handler = handlers.get_mut(&*operation).unwrap_or_else(|| panic!("{operation} is not planned"));
        let answer = handler(&body);
        self.calls.lock().unwrap().push(Call { operation, body, host, at: Instant::now() });
        let (status, body) = match answer {
            Answer::Json(body) => (200, body),
            Answer::Error(code) => (400, json!({"__type": code, "message": "canned"})),
            Answer::Silence => return HttpConnectorFuture::new(std::future::pending()),
        };
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body.to_string()))))
    }
}

impl std::fmt::Debug for Canned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canned")
    }
}

/// A stream of a day's retention that is a year old, with `changes`.
pub fn summary(changes: Value) -> Value {
    let mut summary = json!({
        "StreamName": "events", "StreamARN": ARN, "StreamStatus": "ACTIVE", "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": (NOW - 365 * DAY) / 1000, "EnhancedMonitoring": [], "OpenShardCount": 1,
    });
    summary.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({"StreamDescriptionSummary": summary})
}

/// A shard of all hashes; closed where it has a last sequence number.
pub fn shard(id: &str, last: Option<&str>) -> Value {
    let mut numbers = json!({"StartingSequenceNumber": "1"});
    if let Some(last) = last {
        numbers["EndingSequenceNumber"] = last.into();
    }
    let hashes = json!({"StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string()});
    json!({"ShardId": id, "HashKeyRange": hashes, "SequenceNumberRange": numbers})
}

/// A record that arrived at [`NOW`], give or take.
pub fn record(sequence_number: &str, data: &[u8], since_now: i64) -> Value {
    let (seconds, fraction) = ((NOW + since_now).div_euclid(1000), (NOW + since_now).rem_euclid(1000));
    let arrived_at: f64 = format!("{seconds}.{fraction:03}").parse().unwrap();
    let data = BASE64_STANDARD.encode(data);
    json!({
        "SequenceNumber": sequence_number, "Data": data, "PartitionKey": "tenant",
        "ApproximateArrivalTimestamp": arrived_at,
    })
}

/// An answer of GetRecords; `next` is the next iterator.
pub fn records(records: Vec<Value>, next: Option<&str>, millis_behind_latest: i64) -> Answer {
    let mut answer = json!({"Records": records, "MillisBehindLatest": millis_behind_latest});
    if let Some(next) = next {
        answer["NextShardIterator"] = next.into();
    }
    Answer::Json(answer)
}
