//! A stream that takes what it is told to take: the emulator refuses no single record.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What becomes of one record of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Stored,
    /// This record alone is refused.
    Throttled,
    /// The call is answered with this error.
    Refused(&'static str),
    /// The call has no answer.
    Hangs,
}

/// A record that was stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub partition_key: String,
    pub data: String,
}

type Script = Box<dyn FnMut(&Stored) -> Fate + Send>;

/// An endpoint of Kinesis on loopback.
pub struct Kinesis {
    pub url: String,
    state: Arc<Mutex<Inner>>,
    server: JoinHandle<()>,
}

struct Inner {
    script: Script,
    stored: Vec<Stored>,
    calls: Vec<Value>,
}

impl Kinesis {
    pub async fn start() -> Self {
        let inner = Inner { script: Box::new(|_| Fate::Stored), stored: Vec::new(), calls: Vec::new() };
        let state = Arc::new(Mutex::new(inner));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(put).with_state(Arc::clone(&state));
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    /// From now on `script` decides about each record of a call; the worst decides about the call.
    pub fn script(&self, script: impl FnMut(&Stored) -> Fate + Send + 'static) {
        self.state.lock().unwrap().script = Box::new(script);
    }

    /// What was stored since this was asked last, in order.
    pub fn take(&self) -> Vec<Stored> {
        std::mem::take(&mut self.state.lock().unwrap().stored)
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Value> {
        self.state.lock().unwrap().calls.clone()
    }
}

impl Drop for Kinesis {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Whoever asks for more than to put records needs more permissions than the forwarder has.
async fn put(State(state): State<Arc<Mutex<Inner>>>, headers: HeaderMap, body: Bytes) -> Response {
    if headers["x-amz-target"] != "Kinesis_20131202.PutRecords" {
        return error("AccessDeniedException");
    }
    let call: Value = serde_json::from_slice(&body).unwrap();
    let fates = {
        let inner = &mut *state.lock().unwrap();
        let records: Vec<_> = call["Records"].as_array().unwrap().iter().map(record).collect();
        let fates: Vec<_> = records.iter().map(&mut inner.script).collect();
        let is_answered = !fates.iter().any(|fate| matches!(fate, Fate::Refused(_) | Fate::Hangs));
        let stored = records.into_iter().zip(&fates).filter(|(_, fate)| is_answered && **fate == Fate::Stored);
        inner.stored.extend(stored.map(|(record, _)| record));
        inner.calls.push(call);
        fates
    };
    if fates.contains(&Fate::Hangs) {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    if let Some(code) = fates.iter().find_map(|fate| if let Fate::Refused(code) = fate { Some(code) } else { None }) {
        return error(code);
    }
    let result = |fate: &Fate| match fate {
        Fate::Stored => json!({"SequenceNumber": "1", "ShardId": "shardId-000000000000"}),
        _ => json!({"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"}),
    };
    answer(StatusCode::OK, &json!({"FailedRecordCount": 0, "Records": fates.iter().map(result).collect::<Vec<_>>()}))
}

fn record(entry: &Value) -> Stored {
    let data = BASE64.decode(entry["Data"].as_str().unwrap()).unwrap();
    let partition_key = entry["PartitionKey"].as_str().unwrap().to_owned();
    Stored { partition_key, data: String::from_utf8(data).unwrap() }
}

fn error(code: &str) -> Response {
    answer(StatusCode::BAD_REQUEST, &json!({"__type": code, "message": "a fault of the test"}))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [("content-type", "application/x-amz-json-1.1")], body.to_string()).into_response()
}
