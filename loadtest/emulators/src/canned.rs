//! A Kinesis endpoint for benchmarks: it only reads, and what it answers is ready before the first call.
//!
//! The emulators are far slower than a worker. This endpoint parses the few fields of a call that matter, and then
//! writes slices of a text that was rendered at the start: its own cost is little more than that of the sockets.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Buf as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::{REGION, server};

/// Limits of one `GetRecords`: <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const MAX_RECORDS: usize = 10_000;
const MAX_BYTES: usize = 10 << 20;

/// The text before, between and after what was rendered at the start.
type Body = Full<bytes::buf::Chain<bytes::buf::Chain<Bytes, Bytes>, Bytes>>;

/// A stream with canned records, on loopback, served by one thread of its own.
///
/// Knows `DescribeStreamSummary`, `ListShards` (all in one answer), `GetShardIterator` and `GetRecords`, whatever the
/// name of the stream. It neither throttles nor lets iterators expire; at its end a shard stays open and is empty.
#[derive(Debug)]
pub struct CannedKinesis {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    counters: Arc<Counters>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The records of one shard, rendered. Clones share them.
///
/// Takes about 4/3 of the bytes of the data, and 200 bytes a record.
#[derive(Debug, Clone)]
pub struct CannedShard {
    /// Records as JSON, each with a comma after it.
    text: Bytes,
    /// Where each record begins, and at last where the next would.
    starts: Arc<[usize]>,
    arrived_millis: i64,
}

/// What the pages are like.
#[derive(Debug, Clone)]
pub struct CannedSettings {
    /// Records in a page, at most 10,000; a call may ask for fewer.
    pub page: usize,
    /// `MillisBehindLatest` of every page but the last, where it is 0.
    pub millis_behind: i64,
    /// `RecordDistributionStrategy` of the stream, which only on-demand streams have: `AUTO` or `USER_PARTITION_KEY`.
    pub record_distribution: Option<&'static str>,
}

impl Default for CannedSettings {
    fn default() -> Self {
        Self { page: MAX_RECORDS, millis_behind: 60_000, record_distribution: None }
    }
}

impl CannedShard {
    /// A shard without records.
    pub fn idle() -> Self {
        Self::new(0, std::iter::empty::<(&str, &[u8])>())
    }

    /// A shard with these records, each with its partition key, all of which arrived at that Unix time in milliseconds.
    pub fn new<K: AsRef<str>, D: AsRef<[u8]>>(arrived_millis: i64, records: impl IntoIterator<Item = (K, D)>) -> Self {
        let arrived = seconds(arrived_millis);
        let mut text = String::new();
        let mut starts = vec![0];
        for (index, (key, data)) in records.into_iter().enumerate() {
            text.push_str(r#"{"SequenceNumber":""#);
            text.push_str(&sequence_number(index));
            text.push_str(r#"","ApproximateArrivalTimestamp":"#);
            text.push_str(&arrived);
            text.push_str(r#","PartitionKey":"#);
            text.push_str(&Value::from(key.as_ref()).to_string());
            text.push_str(r#","Data":""#);
            BASE64.encode_string(data, &mut text);
            text.push_str("\"},");
            starts.push(text.len());
        }
        Self { text: text.into(), starts: starts.into(), arrived_millis }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The records from `start` on that fit into one answer, and their text without the last comma.
    fn page(&self, start: usize, limit: usize) -> (Range<usize>, Bytes) {
        let start = start.min(self.len());
        let from = self.starts[start];
        let count =
            self.starts[start..=(start + limit).min(self.len())].partition_point(|&at| at - from <= MAX_BYTES / 3 * 4);
        // One record always fits.
        let end = (start + count.saturating_sub(1).max(1)).min(self.len());
        (start..end, self.text.slice(from..self.starts[end].saturating_sub(1).max(from)))
    }
}

impl CannedKinesis {
    /// Starts an endpoint whose stream has these shards, `shardId-000000000000` and so on.
    ///
    /// # Panics
    /// Without a free port or a thread.
    pub fn start(shards: Vec<CannedShard>, settings: CannedSettings) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("an option");
        let counters = Arc::new(Counters::default());
        let endpoint = Arc::new(Endpoint { shards, settings, counters: Arc::clone(&counters) });
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let handler = move |request| answer(Arc::clone(&endpoint), request);
                tokio::select! {
                    () = server::serve(listener, handler) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("canned-kinesis".to_owned()).spawn(serve).expect("a thread");
        Self { url: format!("http://{address}"), counters, runtime: handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Answers of `GetRecords` so far.
    pub fn reads(&self) -> u64 {
        self.counters.reads.load(Ordering::Relaxed)
    }

    /// Records in those answers.
    pub fn records(&self) -> u64 {
        self.counters.records.load(Ordering::Relaxed)
    }

    /// CPU time of the endpoint's thread so far: to be subtracted from that of a process in which a worker runs too.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub async fn cpu_time(&self) -> Duration {
        let time = async { clock_gettime(ClockId::ThreadCPUTime) };
        // The runtime has no other thread.
        let time = self.runtime.spawn(time).await.expect("the endpoint runs");
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or_default())
    }
}

impl Drop for CannedKinesis {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    records: AtomicU64,
}

struct Endpoint {
    shards: Vec<CannedShard>,
    settings: CannedSettings,
    counters: Arc<Counters>,
}

/// The fields of all calls that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Call {
    stream_name: Option<String>,
    shard_id: Option<String>,
    shard_iterator_type: Option<String>,
    starting_sequence_number: Option<String>,
    timestamp: Option<f64>,
    shard_iterator: Option<String>,
    limit: Option<usize>,
}

/// The code of an error, and its message.
type Refusal = (&'static str, &'static str);

async fn answer(endpoint: Arc<Endpoint>, request: Request<Incoming>) -> Response<Body> {
    let operation = server::operation(&request).to_owned();
    let body = server::whole(request.into_body()).await.unwrap_or_default();
    let answer = match serde_json::from_slice(&body) {
        Ok(call) => endpoint.call(&operation, &call),
        Err(_) => Err(("SerializationException", "not the JSON of a call")),
    };
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err((code, message)) => (StatusCode::BAD_REQUEST, text(&json!({ "__type": code, "message": message }))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}

impl Endpoint {
    fn call(&self, operation: &str, call: &Call) -> Result<Body, Refusal> {
        match operation {
            "GetRecords" => self.records(call),
            "GetShardIterator" => self.iterator(call),
            "ListShards" => Ok(self.list()),
            "DescribeStreamSummary" => Ok(self.summary(call)),
            _ => Err(("UnknownOperationException", "a canned stream only knows how to be read")),
        }
    }

    fn records(&self, call: &Call) -> Result<Body, Refusal> {
        let iterator = call.shard_iterator.as_deref().and_then(|iterator| iterator.split_once(':'));
        let (index, start) = iterator
            .and_then(|(index, start)| Some((index.parse::<usize>().ok()?, start.parse().ok()?)))
            .ok_or(("InvalidArgumentException", "not an iterator of this stream"))?;
        let shard = self.shards.get(index).ok_or(("ResourceNotFoundException", "no such shard"))?;
        let limit = call.limit.unwrap_or(MAX_RECORDS).min(self.settings.page).clamp(1, MAX_RECORDS);
        let (range, records) = shard.page(start, limit);
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.records.fetch_add(range.len() as u64, Ordering::Relaxed);
        let behind = if range.end == shard.len() { 0 } else { self.settings.millis_behind };
        let end = range.end;
        let tail = format!(r#"],"NextShardIterator":"{index}:{end}","MillisBehindLatest":{behind}}}"#);
        Ok(Full::new(Bytes::from_static(br#"{"Records":["#).chain(records).chain(Bytes::from(tail))))
    }

    fn iterator(&self, call: &Call) -> Result<Body, Refusal> {
        let index = call.shard_id.as_deref().and_then(|id| id.strip_prefix(SHARD_PREFIX)?.parse().ok());
        let found = index.and_then(|index: usize| Some((index, self.shards.get(index)?)));
        let (index, shard) = found.ok_or(("ResourceNotFoundException", "no such shard"))?;
        let given = call.starting_sequence_number.as_deref().and_then(index_of);
        let invalid = ("InvalidArgumentException", "not a place in this stream");
        let start = match call.shard_iterator_type.as_deref() {
            Some("TRIM_HORIZON") => 0,
            Some("LATEST") => shard.len(),
            Some("AT_SEQUENCE_NUMBER") => given.ok_or(invalid)?,
            Some("AFTER_SEQUENCE_NUMBER") => given.ok_or(invalid)?.saturating_add(1),
            Some("AT_TIMESTAMP") if call.timestamp.ok_or(invalid)? * 1000.0 > shard.arrived_millis as f64 => {
                shard.len()
            }
            Some("AT_TIMESTAMP") => 0,
            _ => return Err(invalid),
        };
        Ok(text(&json!({ "ShardIterator": format!("{index}:{start}") })))
    }

    fn list(&self) -> Body {
        let width = u128::MAX / self.shards.len().max(1) as u128;
        let shard = |index: usize| {
            let start = width * index as u128;
            let end = if index + 1 == self.shards.len() { u128::MAX } else { start + width - 1 };
            json!({
                "ShardId": format!("{SHARD_PREFIX}{index:012}"),
                "HashKeyRange": { "StartingHashKey": start.to_string(), "EndingHashKey": end.to_string() },
                "SequenceNumberRange": { "StartingSequenceNumber": sequence_number(0) },
            })
        };
        text(&json!({ "Shards": (0..self.shards.len()).map(shard).collect::<Vec<_>>() }))
    }

    fn summary(&self, call: &Call) -> Body {
        let name = call.stream_name.as_deref().unwrap_or("canned");
        let mode = if self.settings.record_distribution.is_some() { "ON_DEMAND" } else { "PROVISIONED" };
        let mut summary = json!({
            "StreamName": name,
            "StreamARN": format!("arn:aws:kinesis:{REGION}:000000000000:stream/{name}"),
            "StreamStatus": "ACTIVE",
            "StreamModeDetails": { "StreamMode": mode },
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": 0,
            "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }],
            "OpenShardCount": self.shards.len(),
        });
        if let Some(distribution) = self.settings.record_distribution {
            summary["RecordDistributionStrategy"] = distribution.into();
        }
        text(&json!({ "StreamDescriptionSummary": summary }))
    }
}

const SHARD_PREFIX: &str = "shardId-";

/// As long as those of Kinesis: 56 digits.
fn sequence_number(index: usize) -> String {
    format!("{SEQUENCE_NUMBER_PREFIX}{index:036}")
}

fn index_of(sequence_number: &str) -> Option<usize> {
    sequence_number.strip_prefix(SEQUENCE_NUMBER_PREFIX)?.parse().ok()
}

const SEQUENCE_NUMBER_PREFIX: &str = "49600000000000000000";

fn seconds(millis: i64) -> String {
    format!("{}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000))
}

fn text(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string()).chain(Bytes::new()).chain(Bytes::new()))
}
