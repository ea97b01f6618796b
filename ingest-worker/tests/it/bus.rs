//! The local bus on a real socket, with a real file behind it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ingest_worker::bus;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{BackendError, NewRecord, Position, Record, Shard, ShardId, ShardReader, Stream};
use shared::clock::Clock;
use tempfile::TempDir;

/// A bus that listens on a free port, and the store behind it.
pub struct LocalBus {
    pub address: SocketAddr,
    dir: TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl LocalBus {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let store = LocalStore::open(dir.path(), LocalOptions::default()).unwrap();
        let (address, server) = serve(Arc::new(store)).await;
        Self { address, dir, server }
    }

    /// Everything in the stream, by a second handle on its file: what is read is on the disk.
    pub async fn records(&self) -> Vec<Record> {
        let store = LocalStore::open(self.dir.path(), LocalOptions::default()).unwrap();
        let mut records = Vec::new();
        for shard in store.shards().await.unwrap() {
            let mut reader = store.reader(&shard.id, Position::TrimHorizon).await.unwrap();
            loop {
                let page = reader.next(1 << 20).await.unwrap();
                if page.records.is_empty() {
                    break;
                }
                records.extend(page.records);
            }
        }
        records
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(stream: Arc<dyn Stream>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = bus::router(stream, Clock::system());
    (address, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

struct Answer {
    status: StatusCode,
    body: Value,
}

async fn post(address: SocketAddr, target: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
    let mut request = client().post(format!("http://{address}/")).header(CONTENT_TYPE, "application/x-amz-json-1.1");
    if let Some(target) = target {
        request = request.header("X-Amz-Target", target);
    }
    let response = request.body(body).send().await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/x-amz-json-1.1");
    assert_eq!(response.headers()["x-amzn-RequestId"].len(), 36);
    Answer { status: response.status(), body: serde_json::from_slice(&response.bytes().await.unwrap()).unwrap() }
}

async fn put_events(address: SocketAddr, entries: Value) -> Answer {
    post(address, Some("AWSEvents.PutEvents"), json!({ "Entries": entries }).to_string()).await
}

fn client() -> Client {
    // reqwest wants one even where nothing is encrypted; a second installation fails and is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap()
}

fn usage(n: usize) -> Value {
    let detail = json!({"tenantId": format!("tenant-{}", n % 7), "meterApiName": "calls", "meterValue": n}).to_string();
    json!({"Source": "app", "DetailType": "ingestUsage", "Detail": detail, "EventBusName": "any-bus"})
}

#[tokio::test]
async fn accepted_entries_are_in_the_stream_under_their_ids() {
    let bus = LocalBus::start().await;
    let other = json!({"Source": "app", "DetailType": "onboardingRequest", "Detail": "{}"});
    let broken = json!({"Source": "app", "DetailType": "ingestUsage", "Detail": "[]"});
    let answer = put_events(bus.address, json!([usage(0), broken, other, usage(1)])).await;
    assert_eq!((answer.status, &answer.body["FailedEntryCount"]), (StatusCode::OK, &json!(1)));
    let entries = answer.body["Entries"].as_array().unwrap();
    assert_eq!(entries[1], json!({"ErrorCode": "MalformedDetail", "ErrorMessage": "Detail is malformed."}));
    let ids: Vec<_> = [0, 2, 3].map(|n| entries[n]["EventId"].as_str().unwrap().to_owned()).into();

    let records = bus.records().await;
    assert_eq!(records.len(), 2, "the broken one and the one of another type are not there");
    for (n, id) in [(0, &ids[0]), (1, &ids[2])] {
        let key = format!("tenant-{n}");
        let record = records.iter().find(|record| record.partition_key == key).unwrap();
        let envelope: Value = serde_json::from_slice(&record.data).unwrap();
        assert_eq!((&envelope["id"], &envelope["detail"]["meterValue"]), (&json!(id), &json!(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_are_all_stored() {
    let bus = LocalBus::start().await;
    let put = |request: usize| {
        let address = bus.address;
        let entries: Vec<_> = (0..10).map(|n| usage(request * 10 + n)).collect();
        tokio::spawn(async move { put_events(address, json!(entries)).await })
    };
    for request in (0..40).map(put).collect::<Vec<_>>() {
        assert_eq!(request.await.unwrap().body["FailedEntryCount"], 0);
    }
    assert_eq!(bus.records().await.len(), 400);
}

#[tokio::test]
async fn refuses_what_is_no_put_events_request() {
    let bus = LocalBus::start().await;
    let refused = async |target, body: &'static str| {
        let answer = post(bus.address, target, body).await;
        (answer.status.as_u16(), answer.body["__type"].as_str().unwrap().to_owned())
    };
    let put = Some("AWSEvents.PutEvents");
    assert_eq!(refused(put, "{").await, (400, "SerializationException".to_owned()));
    assert_eq!(refused(put, "{\"Entries\": []}").await, (400, "ValidationException".to_owned()));
    assert_eq!(refused(Some("AWSEvents.PutRule"), "{}").await, (400, "UnknownOperationException".to_owned()));
    assert_eq!(refused(None, "{}").await, (400, "UnknownOperationException".to_owned()));
    let large = post(bus.address, put, vec![b' '; 5 << 20]).await;
    assert_eq!(
        (large.status, &large.body["__type"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("RequestEntityTooLargeException"))
    );
    assert!(bus.records().await.is_empty());
}

#[tokio::test]
async fn a_mebibyte_of_two_byte_characters_written_as_escapes_is_taken() {
    let bus = LocalBus::start().await;
    let text = "\\u00e4".repeat(500_000);
    let body = format!(
        r#"{{"Entries": [{{"Source": "a", "DetailType": "ingestUsage", "Detail": "{{\"tenantId\": \"{text}\"}}"}}]}}"#
    );
    let answer = post(bus.address, Some("AWSEvents.PutEvents"), body).await;
    assert_eq!((answer.status, &answer.body["FailedEntryCount"]), (StatusCode::OK, &json!(0)));
    assert_eq!(bus.records().await.len(), 1);
}

#[tokio::test]
async fn tells_a_browser_what_this_is() {
    let bus = LocalBus::start().await;
    let response = client().get(format!("http://{}/", bus.address)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.text().await.unwrap().contains("AWS_ENDPOINT_URL_EVENTBRIDGE"));
    let elsewhere = client().get(format!("http://{}/events", bus.address)).send().await.unwrap();
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
}

/// A stream that stores nothing.
struct Refusing(fn(String) -> BackendError);

#[async_trait]
impl Stream for Refusing {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        Err(self.0("nothing is stored".to_owned()))
    }
    async fn reader(&self, _: &ShardId, _: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        Err(self.0("nothing is stored".to_owned()))
    }
    async fn publish(&self, _: Vec<NewRecord>) -> Result<(), BackendError> {
        Err(self.0("nothing is stored".to_owned()))
    }
}

#[tokio::test]
async fn what_could_not_be_stored_is_answered_so_that_sdks_try_again() {
    let cases = [
        (BackendError::Full as fn(String) -> BackendError, 400, "ThrottlingException"),
        (BackendError::Unavailable, 500, "InternalException"),
        (BackendError::Misconfigured, 500, "InternalException"),
    ];
    for (error, status, code) in cases {
        let (address, server) = serve(Arc::new(Refusing(error))).await;
        let answer = put_events(address, json!([usage(1)])).await;
        assert_eq!((answer.status.as_u16(), &answer.body["__type"]), (status, &json!(code)));
        server.abort();
    }
}
