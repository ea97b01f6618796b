//! Traces of the program: what a collector gets, what Amberflo is told, and what a bad collector does not do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig, Trigger};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use emulators::Collector;
use emulators::collector::{Behaviour, Span};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Amberflo, KEY, PATIENCE, Site, eventually, usages};

const TOKEN: &str = "t0ken-of-the-collector";

/// What came of one request: `traceparent`, and the body.
type Seen = Arc<Mutex<Vec<(Option<String>, Bytes)>>>;

/// A sandbox behind something that keeps requests as they come.
async fn recording() -> (Amberflo, Seen) {
    let api_keys = [KEY.to_owned()].into();
    let sandbox = Sandbox::new(SandboxConfig { api_keys, request_log: 100_000, ..SandboxConfig::default() });
    let seen = Seen::default();
    let router: Router = sandbox.router().layer(from_fn_with_state(Arc::clone(&seen), keep));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server: JoinHandle<()> = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    (Amberflo { sandbox, url, server }, seen)
}

async fn keep(State(seen): State<Seen>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let traceparent = head.headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    seen.lock().unwrap().push((traceparent, body.clone()));
    next.run(Request::from_parts(head, Body::from(body))).await
}

fn traced(site: Site, collector: &Collector) -> Site {
    site.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
        .with("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization=Bearer%20{TOKEN}"))
        .with("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
}

fn by_name<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn children<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.parent_id == parent.span_id && span.trace_id == parent.trace_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_a_trace_with_its_place_in_the_shard_and_its_attempts() {
    let (amberflo, seen) = recording().await;
    let collector = Collector::start().await.unwrap();
    let site = traced(Site::new(&amberflo), &collector);
    amberflo.sandbox.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() }).unwrap();
    let worker = site.start().await;
    worker.put(&usages(0..40)).await;
    eventually("second attempts", async || amberflo.sandbox.stats().requests >= 12).await;
    amberflo.sandbox.set_faults(Faults::default()).unwrap();
    amberflo.billed(40).await;
    // One that is no usage event: it becomes a dead letter.
    worker.put(&[serde_json::json!({"tenantId": "canary-of-a-payload"})]).await;
    eventually("the dead letter", async || !site.letters().await.is_empty()).await;
    let logs = worker.drain().await;
    assert!(!logs.contains(TOKEN), "the collector's token is in the logs");

    let spans = collector.spans();
    assert!(!format!("{spans:?}").contains("canary-of-a-payload"), "a payload is in a trace");
    assert!(!format!("{spans:?}").contains(KEY), "the API key is in a trace");
    assert!(collector.requests().iter().all(|headers| headers["authorization"] == format!("Bearer {TOKEN}")));
    let batches: Vec<_> = spans.iter().filter(|span| span.kind == 5).collect();
    let mut delivered = 0;
    for batch in &batches {
        assert_eq!(batch.parent_id, "", "{batch:?}");
        assert_eq!(batch.resource["service.name"], "ingest-worker");
        assert_eq!(batch.resource["deployment.environment.name"], "test");
        let attribute = |name: &str| batch.attributes.get(name).cloned().unwrap_or_default();
        assert!(attribute("messaging.destination.partition.id").starts_with("shard-"), "{batch:?}");
        assert!(!attribute("metering.sequence_number.last").is_empty(), "{batch:?}");
        delivered += attribute("metering.delivered").parse::<u64>().unwrap();
        let attempts: Vec<_> = children(&spans, batch).into_iter().filter(|span| span.name == "attempt").collect();
        assert_eq!(attempts.len().to_string(), attribute("metering.attempts"), "{batch:?}");
        for attempt in attempts {
            let requests = children(&spans, attempt);
            assert_eq!(requests.len(), 1, "{attempt:?}");
            let status = &requests[0].attributes["http.response.status_code"];
            assert_eq!((requests[0].name.as_str(), requests[0].kind), ("POST ingest", 3));
            assert_eq!(requests[0].is_error, status != "200", "{:?}", requests[0]);
            let is_first = attempt.attributes["http.request.resend_count"] == "0";
            assert_eq!(!attempt.attributes.contains_key("metering.retry.reason"), is_first, "{attempt:?}");
        }
    }
    assert_eq!(delivered, 40);
    let retried = batches.iter().filter(|batch| batch.attributes["metering.attempts"].parse::<u64>().unwrap() > 1);
    assert!(retried.count() > 0, "{batches:#?}");
    let stored = by_name(&spans, "send dead letters");
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].attributes["metering.reason"], "missing_field");

    // Amberflo was told of every attempt which it belongs to, and the bytes of a batch never changed.
    let requests: BTreeMap<_, _> =
        by_name(&spans, "POST ingest").into_iter().map(|span| (&span.span_id, span)).collect();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), requests.len());
    let mut bodies: BTreeMap<String, Bytes> = BTreeMap::new();
    for (traceparent, body) in seen.iter() {
        let traceparent = traceparent.as_deref().unwrap();
        let parts: Vec<_> = traceparent.split('-').map(str::to_owned).collect();
        let [version, trace_id, span_id, flags] = &parts[..] else { panic!("{traceparent}") };
        assert_eq!((version.as_str(), flags.as_str()), ("00", "01"));
        assert_eq!(&requests[span_id].trace_id, trace_id);
        let first = bodies.entry(trace_id.clone()).or_insert_with(|| body.clone());
        assert_eq!(first, body, "another attempt of the batch has other bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_collector_costs_spans_and_nothing_else() {
    for behaviour in [Some(Behaviour::Hangs), Some(Behaviour::Answers(500)), None] {
        let amberflo = Amberflo::start().await;
        let collector = Collector::start().await.unwrap();
        collector.set(behaviour.unwrap_or_default());
        let site = traced(Site::new(&amberflo).with("BATCH_MAX_EVENTS", "1"), &collector);
        if behaviour.is_none() {
            drop(collector);
        }
        let worker = site.start().await;
        // Each a batch of its own: more spans than the queue holds.
        worker.put(&usages(0..1000)).await;
        amberflo.billed(1000).await;
        let is_told =
            async || matches!(behaviour, Some(Behaviour::Hangs)) || worker.logs().contains("spans are dropped");
        eventually("a line about the collector", is_told).await;
        let began = Instant::now();
        let logs = worker.drain().await;
        assert!(began.elapsed() < PATIENCE / 3, "the end waits for the collector");
        let told = logs.lines().filter(|line| line.contains("collector of traces")).count();
        assert!((1..=3).contains(&told), "{told} lines:\n{logs}");
        assert!(!logs.contains(TOKEN));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sampler_decides_and_amberflo_is_told_so() {
    let (amberflo, seen) = recording().await;
    let collector = Collector::start().await.unwrap();
    let site = traced(Site::new(&amberflo), &collector).with("OTEL_TRACES_SAMPLER", "always_off");
    let worker = site.start().await;
    worker.put(&usages(0..20)).await;
    amberflo.billed(20).await;
    worker.drain().await;
    assert_eq!(collector.spans(), []);
    assert!(seen.lock().unwrap().iter().all(|(traceparent, _)| traceparent.as_ref().unwrap().ends_with("-00")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_there_is_no_trace_of_traces() {
    let (amberflo, seen) = recording().await;
    let site = Site::new(&amberflo).with("OTEL_EXPORTER_OTLP_ENDPOINT", "").with("OTEL_TRACES_SAMPLER", "xray");
    let site = site.with("LOG", "trace");
    let worker = site.start().await;
    worker.put(&usages(0..20)).await;
    amberflo.billed(20).await;
    let logs = worker.drain().await;
    assert!(!seen.lock().unwrap().is_empty());
    assert!(seen.lock().unwrap().iter().all(|(traceparent, _)| traceparent.is_none()));
    assert!(!logs.contains("traces are sent") && !logs.contains("messaging."), "{logs}");
}
