//! Traces of the program: each request is a span, in the caller's trace if it is in one, and so are its calls of Amberflo.

use std::sync::{Arc, Mutex};

use amberflo_sandbox::{Sandbox, SandboxConfig};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use emulators::Collector;
use emulators::collector::Span;
use tempfile::TempDir;

use super::{KEY, Process, client, listen};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A sandbox that keeps the `traceparent` of requests.
async fn sandbox(seen: Arc<Mutex<Vec<Option<String>>>>) -> std::net::SocketAddr {
    let sandbox = Sandbox::new(SandboxConfig { api_keys: [KEY.to_owned()].into(), ..SandboxConfig::default() });
    let keep = from_fn(move |request: Request, next: Next| {
        let traceparent = request.headers().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        seen.lock().unwrap().push(traceparent);
        next.run(request)
    });
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, sandbox.router().layer(keep)).await.unwrap() });
    address
}

#[tokio::test]
async fn a_request_continues_the_callers_trace_to_amberflo() {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let (dir, amberflo) = (TempDir::new().unwrap(), sandbox(Arc::clone(&seen)).await);
    let collector = Collector::start().await.unwrap();
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("OTEL_SERVICE_NAME", "metering-admin")];
    let mut process = Process::start(dir.path(), amberflo, &settings).await;
    let client = client();
    let request = client.get(format!("{}/meters/secret-meter", process.api));
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01")).header("x-request-id", "r-1");
    assert_eq!(request.send().await.unwrap().status(), 404);
    // A mutation is carried out in a task of its own, and is in the trace all the same.
    let rule =
        r#"{"id": "r", "meterApiName": "m", "ingestionTimeRange": {"startTimeInSeconds": 1, "endTimeInSeconds": 2}}"#;
    let request = client.delete(format!("{}/usage", process.api)).header("content-type", "application/json").body(rule);
    let mutation = request.send().await.unwrap().status().as_u16();
    // A caller whose trace is not taken has none here either.
    let unsampled = client.get(format!("{}/meters/m", process.api));
    unsampled.header("traceparent", format!("00-{CALLER}{CALLER}-{CALLER}-00")).send().await.unwrap();
    assert_eq!(process.terminate().await, Some(0));

    let spans = collector.spans();
    assert!(!format!("{spans:?}").contains("secret-meter"), "what somebody asks for is not in a trace: {spans:#?}");
    let servers: Vec<_> = spans.iter().filter(|span| span.kind == 2).collect();
    let [get, delete] = servers[..] else { panic!("{servers:#?}") };
    assert_eq!((get.trace_id.as_str(), get.parent_id.as_str()), (TRACE, CALLER));
    let attribute = |span: &Span, name: &str| span.attributes.get(name).cloned().unwrap_or_default();
    assert_eq!(attribute(get, "http.response.status_code"), "404");
    assert_eq!(get.name, format!("GET {}", attribute(get, "http.route")));
    assert_eq!((attribute(get, "metering.request.id").as_str(), get.is_error), ("r-1", false));
    assert_eq!(get.resource["service.name"], "metering-admin");
    assert_eq!(delete.parent_id, "");
    assert_eq!(attribute(delete, "http.response.status_code"), mutation.to_string());
    let seen = seen.lock().unwrap();
    for server in [get, delete] {
        let calls: Vec<_> = spans.iter().filter(|span| span.parent_id == server.span_id && span.kind == 3).collect();
        assert!(!calls.is_empty(), "{server:?}");
        for call in calls {
            assert_eq!(call.trace_id, server.trace_id);
            let traceparent = format!("00-{}-{}-01", call.trace_id, call.span_id);
            assert!(seen.contains(&Some(traceparent)), "{call:?} {seen:?}");
        }
    }
    assert!(seen.iter().flatten().any(|traceparent| traceparent.ends_with("-00")), "{seen:?}");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_sent_on() {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let (dir, amberflo) = (TempDir::new().unwrap(), sandbox(Arc::clone(&seen)).await);
    let mut process = Process::start(dir.path(), amberflo, &[]).await;
    let request = client().get(format!("{}/meters/m", process.api));
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(request.send().await.unwrap().status(), 404);
    assert_eq!(process.terminate().await, Some(0));
    assert!(!seen.lock().unwrap().is_empty() && seen.lock().unwrap().iter().all(Option::is_none));
}
