//! Every rule and fault of the sandbox, through its router and over a socket.

#![expect(clippy::unwrap_used, reason = "clippy.toml allows it in test functions only, not in their helpers")]

mod admin;
mod customers;
mod facts;
mod faults;
mod filtering_rules;
mod ingest;
mod meters;
mod operations;
mod server;
mod usage;
mod usage_events;

use std::io::Write as _;

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of a success.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!((self.status, self.header("content-type")), (StatusCode::OK, "application/json"), "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// Status and text of a refusal.
    fn refusal(&self) -> (u16, &str) {
        (self.status.as_u16(), &self.body)
    }
}

fn sandbox(faults: Faults) -> Sandbox {
    let sandbox = Sandbox::new(SandboxConfig::default());
    sandbox.set_faults(faults).unwrap();
    sandbox
}

fn event(unique_id: &str) -> String {
    format!(
        r#"{{"customerId":"c","meterApiName":"m","meterTimeInMillis":1,"meterValue":2,"uniqueId":"{unique_id}","dimensions":{{"region":"eu"}}}}"#
    )
}

fn batch(unique_ids: &[&str]) -> String {
    let events: Vec<_> = unique_ids.iter().map(|unique_id| event(unique_id)).collect();
    format!("[{}]", events.join(","))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

async fn send(sandbox: &Sandbox, body: impl Into<Body>) -> Answer {
    send_with(sandbox, &[("x-api-key", "sandbox-key")], body).await
}

async fn send_with(sandbox: &Sandbox, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    call(sandbox, "POST", "/ingest", headers, body).await
}

/// A request with the key, and a JSON body unless it is null.
async fn api(sandbox: &Sandbox, method: &str, path: &str, body: Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    call(sandbox, method, path, &[("x-api-key", "sandbox-key")], body).await
}

async fn call(sandbox: &Sandbox, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = sandbox.router().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: head.status, headers: head.headers, body }
}
