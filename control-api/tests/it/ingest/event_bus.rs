//! Buses for POST /ingest: the worker's own, and one that fails as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aws_sdk_eventbridge::Client;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use control_api::app::App;
use control_api::bus::Bus;
use http::StatusCode;
use ingest_worker::bus;
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{Position, Record, Stream as _};
use shared::clock::Clock;
use tempfile::TempDir;

use crate::harness::listen;

/// The API's bus at this address.
pub fn client(app: &App, url: &str) -> Bus {
    let client = Client::new(&emulators::configuration(url));
    Bus::with_client(&app.settings.bus, &app.settings.backends.stream, client)
}

/// The worker's local bus, and the store behind it.
pub struct WorkerBus {
    pub url: String,
    store: LocalStore,
    _directory: TempDir,
}

impl WorkerBus {
    pub async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
        let url = serve(bus::router(Arc::new(store.clone()), Clock::system())).await;
        Self { url, store, _directory: directory }
    }

    /// Everything in the stream.
    pub async fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for shard in self.store.shards().await.unwrap() {
            let mut reader = self.store.reader(&shard.id, Position::TrimHorizon).await.unwrap();
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

/// What goes wrong with a call.
#[derive(Clone)]
pub enum Fault {
    /// These entries fail alone.
    Entries(Vec<(usize, &'static str)>),
    /// The call fails as a whole, after its events are on the bus.
    Whole(u16, &'static str),
    /// No answer comes.
    Silence,
}

/// Takes everything, but for faults: one for each call, in order.
pub struct FaultyBus {
    pub url: String,
    state: BusState,
}

#[derive(Clone, Default)]
struct BusState(Arc<Mutex<(VecDeque<Fault>, Vec<Value>)>>);

impl FaultyBus {
    pub async fn start(faults: impl IntoIterator<Item = Fault>) -> Self {
        let state = BusState::default();
        state.0.lock().unwrap().0.extend(faults);
        let url = serve(axum::Router::new().route("/", post(put_events)).with_state(state.clone())).await;
        Self { url, state }
    }

    /// The entries of each call.
    pub fn calls(&self) -> Vec<Value> {
        self.state.0.lock().unwrap().1.clone()
    }
}

async fn put_events(State(state): State<BusState>, body: String) -> Response {
    let mut body: Value = serde_json::from_str(&body).unwrap();
    let entries = body["Entries"].take();
    let (call, fault) = {
        let mut state = state.0.lock().unwrap();
        state.1.push(entries.clone());
        (state.1.len() - 1, state.0.pop_front())
    };
    let failing = match fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Whole(status, code)) => {
            let body = json!({ "__type": code, "message": "as it was told" });
            return (StatusCode::from_u16(status).unwrap(), Json(body)).into_response();
        }
        Some(Fault::Entries(failing)) => failing,
        None => Vec::new(),
    };
    let outcome = |index: usize| match failing.iter().find(|(place, _)| *place == index) {
        Some((_, code)) => json!({ "ErrorCode": code, "ErrorMessage": "as it was told" }),
        None => json!({ "EventId": format!("{call}-{index}") }),
    };
    let outcomes: Vec<_> = (0..entries.as_array().unwrap().len()).map(outcome).collect();
    Json(json!({ "FailedEntryCount": failing.len(), "Entries": outcomes })).into_response()
}

async fn serve(router: axum::Router) -> String {
    let listener = listen().await;
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}
