//! A collector of traces, as far as tests need one: it takes OTLP in protobuf over HTTP, and keeps the spans.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A collector on loopback; it ends with this value.
#[derive(Debug)]
pub struct Collector {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<Mutex<Kept>>,
    server: JoinHandle<()>,
}

/// How a collector treats what it is sent.
#[derive(Clone, Copy, Debug, Default)]
pub enum Behaviour {
    /// It takes it.
    #[default]
    Takes,
    /// It answers this status, and keeps nothing.
    Answers(u16),
    /// It never answers.
    Hangs,
}

#[derive(Debug, Default)]
struct Kept {
    behaviour: Behaviour,
    spans: Vec<Span>,
    requests: Vec<HeaderMap>,
}

/// A span as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What its resource says of itself.
    pub resource: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// Its kind, as a number of the protocol: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// Hexadecimal.
    pub trace_id: String,
    /// Hexadecimal.
    pub span_id: String,
    /// Hexadecimal; empty where there is none.
    pub parent_id: String,
    /// Names, and values as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status says that it failed.
    pub is_error: bool,
}

impl Collector {
    /// One that takes what it is sent.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(Kept::default()));
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&state));
        let server = tokio::spawn(async move {
            // It serves until the task is dropped.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, state, server })
    }

    /// From now on it treats what it is sent so.
    pub fn set(&self, behaviour: Behaviour) {
        lock(&self.state).behaviour = behaviour;
    }

    /// All spans that it took.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.state).spans.clone()
    }

    /// The headers of all requests, also of those that it did not take.
    #[must_use]
    pub fn requests(&self) -> Vec<HeaderMap> {
        lock(&self.state).requests.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(state): State<Arc<Mutex<Kept>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let behaviour = {
        let mut state = lock(&state);
        state.requests.push(headers);
        state.behaviour
    };
    match behaviour {
        Behaviour::Takes => {}
        Behaviour::Answers(status) => return StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Behaviour::Hangs => std::future::pending().await,
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                resource: resource.clone(),
                name: span.name,
                kind: span.kind,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                attributes: texts(span.attributes),
                // Source: STATUS_CODE_ERROR of the protocol.
                is_error: span.status.is_some_and(|status| status.code == 2),
            });
        }
    }
    lock(&state).spans.extend(spans);
    StatusCode::OK
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|KeyValue { key, value, .. }| (key, text(value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock(state: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
