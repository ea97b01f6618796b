//! A request id, a metric and a line of debug log for every request.

use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use shared::amberflo::describe_metrics;
use shared::service::{Ready, traces};
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

/// The header of request ids.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_BYTES: usize = 128;
const READY_INTERVAL: Duration = Duration::from_secs(1);
/// Names of the calls of Amberflo in metrics, but for those of functions alone.
const OPERATIONS: [&str; 5] = ["probe", "meters", "usage", "usage_events", "filtering_rules"];

/// Describes all metrics, and lets begin at zero what has labels of its own.
pub fn describe() {
    describe_counter!("control_api_requests_total", "Requests, by method, route and the status of the answer");
    describe_histogram!(
        "control_api_request_duration_seconds",
        Unit::Seconds,
        "From the head of a request to its answer, by method and route"
    );
    describe_gauge!("control_api_ready", "1 while Amberflo accepts our key");
    describe_metrics(&OPERATIONS);
}

/// Shows whether the API is ready, a second late at most; never returns.
pub async fn show_ready(ready: Ready) {
    loop {
        metrics::gauge!("control_api_ready").set(f64::from(u8::from(ready.get())));
        sleep(READY_INTERVAL).await;
    }
}

/// The id of a request: the caller's, if it is short visible ASCII, or else a new one.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Names, measures and counts a request.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = id.filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
    let id = id.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = method(request.method());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "none".to_owned());
    let spans = Spans { log: tracing::info_span!("request", id), trace: span(method, &route, &id) };
    traces::continue_from(request.headers(), &spans.trace);
    request.extensions_mut().insert(spans.clone());

    let mut response = spans.around(next.run(request)).await;
    let (status, took) = (response.status().as_u16(), started.elapsed());
    spans.trace.record("http.response.status_code", status);
    if response.status().is_server_error() {
        spans.trace.record("otel.status_code", "ERROR");
    }
    tracing::debug!(id, method, route, status, ?took, "answered");
    metrics::counter!(
        "control_api_requests_total",
        "method" => method, "route" => route.clone(), "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!("control_api_request_duration_seconds", "method" => method, "route" => route)
        .record(took.as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    response
}

/// The spans of a request: its id in log lines, and its part of a trace.
#[derive(Clone, Debug)]
pub struct Spans {
    log: Span,
    trace: Span,
}

impl Spans {
    /// Does `work` inside of both.
    pub fn around<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work.instrument(self.log.clone()).instrument(self.trace.clone())
    }
}

fn span(method: &'static str, route: &str, id: &str) -> Span {
    tracing::info_span!(
        target: traces::TARGET,
        parent: None,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        metering.request.id = id,
    )
}

/// A label must not be the caller's to choose.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
