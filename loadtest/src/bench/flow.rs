//! A Kinesis endpoint whose shards go on being filled while they are read, also before anybody reads them.
//!
//! An emulator takes about 1,000 records a second in all, too few to fill several shards beside their readers. Here a
//! record is made when it is read: which ones there are follows from the time alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::clock::{Clock, UnixMillis};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The size of every record, its partition key included.
pub const RECORD_BYTES: usize = 1000;
/// Limits of one `GetRecords`.
const MAX_RECORDS: usize = 10_000;
const SHARD_PREFIX: &str = "shardId-";
/// Sequence numbers are as long as those of Kinesis.
const SEQUENCE_NUMBER_PREFIX: &str = "49600000000000000000";

/// The endpoint; it ends when it is dropped.
pub struct Flow {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

/// When the records of a shard arrive. All shards of a stream are alike.
#[derive(Clone, Debug)]
pub enum Fill {
    /// So many a second, from this time on.
    Steady { since: UnixMillis, per_second: u32 },
    /// At these times.
    At(Vec<UnixMillis>),
}

struct Shared {
    streams: Mutex<BTreeMap<String, FlowStream>>,
    clock: Clock,
}

struct FlowStream {
    shards: usize,
    fill: Fill,
    /// From then on no more records arrive.
    stopped: Option<UnixMillis>,
    /// When iterators were asked for.
    openings: Vec<Instant>,
}

impl Flow {
    /// Starts an endpoint without streams.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared { streams: Mutex::default(), clock: Clock::system() });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, router).await }));
        Ok(Self { url, shared, _server: server })
    }

    /// Adds a stream.
    pub fn add(&self, stream: &str, shards: usize, fill: Fill) {
        self.shared
            .streams()
            .insert(stream.to_owned(), FlowStream { shards, fill, stopped: None, openings: Vec::new() });
    }

    /// Lets one more record arrive now, where records arrive one by one.
    pub fn put(&self, stream: &str) {
        let now = self.shared.clock.now();
        if let Some(FlowStream { fill: Fill::At(times), .. }) = self.shared.streams().get_mut(stream) {
            times.push(now);
        }
    }

    /// Lets no more records arrive, and answers how many did, in all shards.
    pub fn stop(&self, stream: &str) -> u64 {
        let now = self.shared.clock.now();
        if let Some(stream) = self.shared.streams().get_mut(stream) {
            stream.stopped = Some(now);
        }
        self.arrived(stream, now)
    }

    /// How many records had arrived at that time, in all shards.
    pub fn arrived(&self, stream: &str, at: UnixMillis) -> u64 {
        let streams = self.shared.streams();
        streams.get(stream).map_or(0, |stream| (stream.shards * stream.fill.count(stream.seen_at(at))) as u64)
    }

    /// When a reader of the stream was first opened after `since`.
    pub fn opened_after(&self, stream: &str, since: Instant) -> Option<Instant> {
        let streams = self.shared.streams();
        streams.get(stream)?.openings.iter().copied().find(|opened| *opened > since)
    }
}

impl FlowStream {
    /// The time up to which records are there for a reader who looks now.
    fn seen_at(&self, now: UnixMillis) -> UnixMillis {
        self.stopped.map_or(now, |stopped| stopped.min(now))
    }
}

impl Fill {
    /// How many records have arrived before or at `now`.
    fn count(&self, now: UnixMillis) -> usize {
        match self {
            Self::Steady { since, per_second } if now >= *since => {
                usize::try_from((now - since) * i64::from(*per_second) / 1000 + 1).unwrap_or_default()
            }
            Self::Steady { .. } => 0,
            Self::At(times) => times.partition_point(|time| *time <= now),
        }
    }

    fn arrival(&self, index: usize) -> UnixMillis {
        match self {
            Self::Steady { since, per_second } => {
                // Rounded up: that early it had not arrived yet.
                since + (1000 * index as i64 + i64::from(*per_second) - 1) / i64::from(*per_second)
            }
            Self::At(times) => times.get(index).copied().unwrap_or_default(),
        }
    }
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

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit_once('.').map_or("", |(_, operation)| operation);
    let answer = serde_json::from_slice(&body).ok().and_then(|call| shared.call(operation, &call));
    match answer {
        Some(answer) => (StatusCode::OK, answer),
        None => (StatusCode::BAD_REQUEST, json!({ "__type": "InvalidArgumentException" }).to_string()),
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<String, FlowStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: refused.
    fn call(&self, operation: &str, call: &Call) -> Option<String> {
        let now = self.clock.now();
        let name = call.stream_name.as_deref();
        match operation {
            "GetRecords" => {
                let mut iterator = call.shard_iterator.as_deref()?.split(':');
                let (name, shard, start) = (iterator.next()?, iterator.next()?, iterator.next()?.parse().ok()?);
                let (fill, now) = {
                    let streams = self.streams();
                    let stream = streams.get(name)?;
                    (stream.fill.clone(), stream.seen_at(now))
                };
                Some(records(name, shard, &fill, start, call.limit.unwrap_or(MAX_RECORDS).min(MAX_RECORDS), now))
            }
            "GetShardIterator" => {
                let mut streams = self.streams();
                let stream = streams.get_mut(name?)?;
                stream.openings.push(Instant::now());
                let now = stream.seen_at(now);
                let start = start(&stream.fill, call, now)?;
                Some(json!({ "ShardIterator": format!("{}:{}:{start}", name?, call.shard_id.as_deref()?) }).to_string())
            }
            "ListShards" => Some(shards(self.streams().get(name?)?.shards)),
            "DescribeStreamSummary" => Some(summary(name?, self.streams().get(name?)?.shards)),
            _ => None,
        }
    }
}

fn start(fill: &Fill, call: &Call, now: UnixMillis) -> Option<usize> {
    let given = || {
        let number = call.starting_sequence_number.as_deref()?;
        number.strip_prefix(SEQUENCE_NUMBER_PREFIX)?.parse::<usize>().ok()
    };
    match call.shard_iterator_type.as_deref()? {
        "TRIM_HORIZON" => Some(0),
        "LATEST" => Some(fill.count(now)),
        "AT_SEQUENCE_NUMBER" => given(),
        "AFTER_SEQUENCE_NUMBER" => Some(given()? + 1),
        // One that arrives in that very millisecond still counts.
        "AT_TIMESTAMP" => Some(fill.count((call.timestamp? * 1000.0).round() as i64 - 1)),
        _ => None,
    }
}

fn records(name: &str, shard: &str, fill: &Fill, start: usize, limit: usize, now: UnixMillis) -> String {
    let count = fill.count(now);
    let end = (start + limit).min(count);
    let mut text = String::with_capacity(end.saturating_sub(start) * 3 * RECORD_BYTES / 2 + 200);
    text.push_str(r#"{"Records":["#);
    for index in start..end {
        let arrival = fill.arrival(index);
        let comma = if index > start { "," } else { "" };
        // Writing to a String cannot fail.
        let _ =
            write!(text, r#"{comma}{{"SequenceNumber":"{SEQUENCE_NUMBER_PREFIX}{index:036}","PartitionKey":"tenant","#);
        let _ = write!(text, r#""ApproximateArrivalTimestamp":{}.{:03},"Data":""#, arrival / 1000, arrival % 1000);
        BASE64.encode_string(event(name, shard, index, arrival), &mut text);
        text.push_str("\"}");
    }
    let end = end.max(start);
    let behind = if end < count { (now - fill.arrival(end)).max(1) } else { 0 };
    let _ = write!(text, r#"],"NextShardIterator":"{name}:{shard}:{end}","MillisBehindLatest":{behind}}}"#);
    text
}

/// An event as EventBridge hands it on, filled up to the size. Its value is when it arrives, in Unix microseconds.
fn event(name: &str, shard: &str, index: usize, arrival: UnixMillis) -> String {
    let id = format!("{name}-{shard}-{index}");
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(arrival.unsigned_abs()));
    let mut event = format!(
        r#"{{"version":"0","id":"{id}","detail-type":"ingestUsage","source":"saas.application.plane","account":"#
    );
    let _ = write!(event, r#""123456789012","time":"{time}","region":"us-east-1","resources":[],"detail":{{"#);
    let value = arrival * 1000;
    let _ = write!(event, r#""tenantId":"tenant","meterApiName":"api-calls","meterValue":{value},"uniqueId":"{id}","#);
    event.push_str(r#""dimensions":{"note":""#);
    let rest = (RECORD_BYTES - "tenant".len()).saturating_sub(event.len() + "\"}}}".len());
    event.extend(std::iter::repeat_n('x', rest));
    event.push_str("\"}}}");
    event
}

fn shards(count: usize) -> String {
    let width = u128::MAX / count.max(1) as u128;
    let shard = |index: usize| {
        let start = width * index as u128;
        let end = if index + 1 == count { u128::MAX } else { start + width - 1 };
        json!({
            "ShardId": format!("{SHARD_PREFIX}{index:012}"),
            "HashKeyRange": { "StartingHashKey": start.to_string(), "EndingHashKey": end.to_string() },
            "SequenceNumberRange": { "StartingSequenceNumber": SEQUENCE_NUMBER_PREFIX },
        })
    };
    json!({ "Shards": (0..count).map(shard).collect::<Vec<Value>>() }).to_string()
}

fn summary(name: &str, shards: usize) -> String {
    let summary = json!({
        "StreamName": name,
        "StreamARN": format!("arn:aws:kinesis:{}:000000000000:stream/{name}", emulators::REGION),
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": { "StreamMode": "PROVISIONED" },
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 0,
        "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }],
        "OpenShardCount": shards,
    });
    json!({ "StreamDescriptionSummary": summary }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_arrive_when_they_are_counted() {
        for per_second in [1, 3, 20, 1000, 3333] {
            let fill = Fill::Steady { since: 500, per_second };
            for index in 0..5000 {
                let arrival = fill.arrival(index);
                assert!(fill.count(arrival) > index, "{index} at {per_second}/s has arrived at {arrival}");
                assert!(fill.count(arrival - 1) <= index, "{index} at {per_second}/s had not arrived before {arrival}");
            }
        }
        assert_eq!(Fill::Steady { since: 500, per_second: 1000 }.count(499), 0);
        assert_eq!(Fill::Steady { since: 500, per_second: 1000 }.count(1499), 1000);
    }

    #[test]
    fn every_record_has_the_size() {
        for index in [0, 7, 100_000, 10_000_000] {
            let event = event("busy-1", "shardId-000000000000", index, 1_700_000_000_000);
            assert_eq!(event.len() + "tenant".len(), RECORD_BYTES);
            assert!(serde_json::from_str::<Value>(&event).is_ok(), "{event}");
        }
    }
}
