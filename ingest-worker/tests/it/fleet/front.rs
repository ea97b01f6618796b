//! An address of Amberflo for one worker alone: tells what that worker sent, and whether it might.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::{Leases as _, Stream as _, hash, kinesis::KinesisStream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::Fleet;
use crate::process::client;

pub struct Front {
    pub url: String,
    state: Arc<Inner>,
    server: JoinHandle<()>,
}

struct Inner {
    upstream: String,
    worker: String,
    http: reqwest::Client,
    leases: DynamoLeases,
    stream: KinesisStream,
    checks_owners: AtomicBool,
    seen: Mutex<Vec<Vec<String>>>,
    violations: Mutex<Vec<String>>,
}

impl Front {
    pub async fn start(fleet: &Fleet, worker: &str) -> Self {
        let (aws, kinesis) = (emulators::configuration(fleet.moto), emulators::configuration(fleet.kinesis));
        let state = Arc::new(Inner {
            upstream: fleet.amberflo.url.clone(),
            worker: worker.to_owned(),
            http: client(),
            leases: DynamoLeases::open(&aws, &fleet.table, false).await.unwrap(),
            stream: KinesisStream::open(&kinesis, &fleet.stream.name).await.unwrap(),
            checks_owners: AtomicBool::new(false),
            seen: Mutex::default(),
            violations: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&state));
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    /// The idempotency keys in each request so far.
    pub fn seen(&self) -> Vec<Vec<String>> {
        self.state.seen.lock().unwrap().clone()
    }

    /// From now on every request is held until the table has told who owns the shards of its events. An owner gives no
    /// lease up while it waits for an answer, so a request of another worker's shard was wrong from its beginning.
    pub fn check_owners(&self) {
        self.state.checks_owners.store(true, Ordering::SeqCst);
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.violations.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass_on(State(state): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Bytes) {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*body).read_to_string(&mut text).unwrap();
    let records: Vec<Value> = serde_json::from_str(&text).unwrap();
    let member = |name: &str| records.iter().map(|record| record[name].as_str().unwrap().to_owned()).collect();
    state.seen.lock().unwrap().push(member("uniqueId"));
    if state.checks_owners.load(Ordering::SeqCst) {
        state.check(member("customerId")).await;
    }
    let url = format!("{}/ingest", state.upstream);
    let mut request = state.http.post(url).body(body);
    for name in ["x-api-key", "content-encoding", "content-type"] {
        request = request.header(name, headers[name].clone());
    }
    match request.send().await {
        Ok(answer) => (answer.status(), answer.bytes().await.unwrap()),
        Err(_) => (StatusCode::BAD_GATEWAY, Bytes::new()),
    }
}

impl Inner {
    async fn check(&self, tenants: Vec<String>) {
        let shards = self.stream.shards().await.unwrap();
        let rows = self.leases.list().await.unwrap();
        for tenant in tenants {
            let shard = shards.iter().find(|shard| shard.hashes.contains(&hash(&tenant))).unwrap();
            let owner = rows.iter().find(|row| row.shard == shard.id).and_then(|row| row.owner.clone());
            if owner.as_ref().is_none_or(|owner| owner.0 != self.worker) {
                self.violations.lock().unwrap().push(format!("{tenant} of {}, owned by {owner:?}", shard.id));
            }
        }
    }
}
