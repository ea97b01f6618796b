//! Traces, sent to a collector over OTLP where the settings name one.
//!
//! Spans are those of `tracing` with the target [`TARGET`]; nothing else is exported, and they are in no log. Where no
//! collector is set they are never made. A collector that is slow, broken or gone costs spans and nothing else: they wait
//! in a bounded queue, are dropped when it is full, and one task of the runtime sends them.

mod settings;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::ConfigError;
use super::logs::{self, LogArgs, Trouble};

pub use settings::TraceArgs;

/// The target of spans that are exported.
pub const TARGET: &str = "traces";

/// Spans that wait to be sent; about 2 KiB each. As the SDK's own default.
const QUEUE: usize = 2048;
/// Spans sent at a time. As the SDK's own default.
const BATCH: usize = 512;
/// How long spans wait for more.
const LINGER: Duration = Duration::from_secs(1);
/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process may wait for the last export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What sends spans; none where traces are off.
#[must_use = "the last spans are sent by `end`"]
pub struct Traces(Option<Running>);

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Spans end with their provider.
    _provider: SdkTracerProvider,
}

/// As [`init_logs`](super::init_logs), and begins to send traces where the settings say to where.
///
/// # Errors
/// One line that names the setting, what was given and what is allowed.
pub fn init_logs_and_traces(logs: &LogArgs, args: &TraceArgs, service: &'static str) -> Result<Traces, ConfigError> {
    let Some(settings) = args.resolve(service)? else {
        logs::init(logs, None)?;
        return Ok(Traces(None));
    };
    let client = crate::amberflo::client_builder().timeout(EXPORT_TIMEOUT).build();
    let client = client.map_err(|error| ConfigError(format!("traces: the HTTP client cannot start: {error}")))?;
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.url.clone())
        .with_headers(settings.headers.clone())
        .with_timeout(EXPORT_TIMEOUT)
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| ConfigError(format!("traces: {error}")))?;
    exporter.set_resource(&settings.resource);
    let (spans, queue) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let processor = Queue { spans, dropped: Arc::clone(&dropped) };
    let provider = SdkTracerProvider::builder()
        .with_sampler(settings.sampler)
        .with_resource(settings.resource)
        .with_span_processor(processor)
        .build();
    logs::init(logs, Some(provider.tracer(service)))?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(send_all(queue, exporter, dropped, stop.clone()));
    tracing::info!(url = settings.url, "traces are sent");
    Ok(Traces(Some(Running { stop, task, _provider: provider })))
}

/// Says that a Lambda function sends no traces, where the settings ask for some: Lambda freezes the process after each
/// answer, and an answer that waits for a collector costs time that is paid for.
pub fn warn_of_no_traces(args: &TraceArgs) {
    if args.is_on() {
        tracing::warn!("OTEL_EXPORTER_OTLP_ENDPOINT has no effect in a Lambda function: use X-Ray, or a server");
    }
}

impl Traces {
    /// Sends what has ended until now, as far as that can be done within a second.
    pub async fn end(self) {
        if let Some(mut running) = self.0 {
            running.stop.cancel();
            if timeout(FLUSH_TIMEOUT, &mut running.task).await.is_err() {
                running.task.abort();
                tracing::warn!("the last spans were not sent: the collector of traces did not take them in time");
            }
        }
    }
}

/// Takes spans as they end; never waits.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends spans in batches until `stop`, and then the rest. What an export does not bring over is dropped: the next one
/// would be late otherwise, and the one after it.
async fn send_all<E: SpanExporter>(
    mut queue: mpsc::Receiver<SpanData>,
    exporter: E,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let trouble = Trouble::new();
    let mut lost = 0;
    loop {
        let mut batch = Vec::new();
        let is_last = stop.run_until_cancelled(gather(&mut queue, &mut batch)).await.is_none();
        while batch.len() < BATCH
            && let Ok(span) = queue.try_recv()
        {
            batch.push(span);
        }
        if batch.is_empty() {
            return;
        }
        let spans = batch.len() as u64;
        let result = match timeout(EXPORT_TIMEOUT, exporter.export(batch)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {EXPORT_TIMEOUT:?}")),
        };
        let overflow = dropped.swap(0, Ordering::Relaxed);
        lost += overflow + if result.is_err() { spans } else { 0 };
        match result {
            Err(error) => {
                if trouble.again().is_some() {
                    tracing::warn!(
                        error,
                        spans = mem::take(&mut lost),
                        "the collector of traces fails: spans are dropped"
                    );
                }
            }
            Ok(()) if overflow > 0 => {
                if trouble.again().is_some() {
                    tracing::warn!(
                        spans = mem::take(&mut lost),
                        "the collector of traces is too slow: spans are dropped"
                    );
                }
            }
            Ok(()) => {
                if let Some(over) = trouble.over() {
                    let spans = mem::take(&mut lost);
                    tracing::info!(lasted = ?over.lasted, spans, "the collector of traces takes spans again; dropped:");
                }
            }
        }
        if is_last && queue.is_empty() {
            return;
        }
    }
}

/// Waits for a span, and then a little for more.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if queue.recv_many(batch, BATCH).await == 0 {
        return std::future::pending().await;
    }
    let until = Instant::now() + LINGER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        match timeout_at(until, queue.recv_many(batch, room)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Says in a request's headers which span it belongs to (W3C `traceparent`), where it belongs to one.
pub fn inject(span: &tracing::Span, headers: &mut HeaderMap) {
    if !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut Headers(headers));
    }
}

/// Makes `span` a part of the trace that a request's headers name, where they name one.
pub fn continue_from(headers: &HeaderMap, span: &tracing::Span) {
    if !span.is_disabled() {
        let parent = TraceContextPropagator::new().extract(&ReadHeaders(headers));
        // Fails only where traces are off.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, name: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct ReadHeaders<'a>(&'a HeaderMap);

impl Extractor for ReadHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
