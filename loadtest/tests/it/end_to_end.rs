//! What happens to an event between the control API and its bill, with real processes in between.

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use shared::clock::Clock;

use crate::harness::{Dev, eventually};

const METER: &str = "api-calls";

/// A caller of the control API and of the bus.
struct Caller {
    client: Client,
    control_api: String,
    bus: String,
    sandbox: String,
}

impl Caller {
    fn of(dev: &Dev) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().unwrap();
        let [control_api, bus, sandbox] = ["control API", "event bus", "Amberflo"].map(|name| dev.url(name));
        Self { client, control_api, bus, sandbox }
    }

    /// Asks the control API: status and `data`, or the problem.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.control_api));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}"));
        (status, json.get("data").cloned().unwrap_or(json))
    }

    async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, data) = self.ask(method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {data}");
        data
    }

    /// Puts an event on the bus without anybody looking at it.
    async fn put(&self, detail: &Value) {
        let entry = json!({ "Source": "test", "DetailType": "ingestUsage", "Detail": detail.to_string() });
        let body = json!({ "Entries": [entry] }).to_string();
        let put = self.client.post(&self.bus).header("x-amz-target", "AWSEvents.PutEvents").body(body);
        let text = put.send().await.unwrap().text().await.unwrap();
        assert!(text.contains(r#""FailedEntryCount":0"#), "{text}");
    }

    async fn usage_of(&self, tenant: &str) -> f64 {
        let usage = self.ok(Method::GET, &format!("/usage/any?meterApiName={METER}&tenantId={tenant}"), None).await;
        let groups = usage["clientMeters"].as_array().unwrap_or_else(|| panic!("{usage}"));
        groups.iter().map(|group| group["groupValue"].as_f64().unwrap_or_else(|| panic!("{usage}"))).sum()
    }

    async fn depth(&self) -> u64 {
        self.ok(Method::GET, "/dead-letters", None).await["depth"].as_u64().unwrap()
    }

    /// What Amberflo's side has of an event: how often it was billed, and how many copies were absorbed.
    async fn billed(&self, unique_id: &str) -> (usize, u64) {
        let url = format!("{}/sandbox/events?uniqueId={unique_id}", self.sandbox);
        let text = self.client.get(url).send().await.unwrap().text().await.unwrap();
        let events: Value = serde_json::from_str(&text).unwrap();
        let events = events.as_array().unwrap_or_else(|| panic!("{text}"));
        (events.len(), events.iter().map(|event| event["copies"].as_u64().unwrap()).sum())
    }

    /// Waits until nothing is under way, and everything read is settled.
    async fn settled(&self, dev: &Dev, events: u64) {
        eventually("all events are settled", async || {
            let text = self.client.get(dev.url("metrics")).send().await.unwrap().text().await.unwrap();
            let settled = text.lines().filter(|line| line.starts_with("ingest_events_total{"));
            let settled: u64 = settled.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
            assert!(settled <= events, "{text}");
            (settled == events).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingested_event_is_usage_once_however_often_it_is_sent() {
    let dev = Dev::start().await;
    let caller = Caller::of(&dev);
    let event = json!({
        "tenantId": "acme", "meterApiName": METER, "meterValue": 3, "uniqueId": "order-17",
        "meterTimeInMillis": Clock::system().now(), "dimensions": {"region": "eu"},
    });
    for _ in 0..2 {
        let (status, data) = caller.ask(Method::POST, "/ingest", Some(event.clone())).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{data}");
        assert_eq!(data["events"][0]["uniqueId"], "order-17", "{data}");
    }
    caller.settled(&dev, 2).await;
    assert_eq!(caller.billed("order-17").await, (1, 0));
    let usage = eventually("usage", async || Some(caller.usage_of("acme").await).filter(|&usage| usage > 0.0)).await;
    assert_eq!((usage, caller.usage_of("other").await, caller.depth().await), (3.0, 0.0, 0));
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_event_is_repaired_and_billed_once_also_when_redriven_twice() {
    let dev = Dev::start().await;
    let caller = Caller::of(&dev);
    // Without its meter. The application sends it twice: two letters of one event.
    let event = json!({
        "tenantId": "acme", "meterValue": 5, "uniqueId": "order-18", "meterTimeInMillis": Clock::system().now(),
    });
    caller.put(&event).await;
    caller.settled(&dev, 1).await;
    caller.put(&event).await;
    caller.settled(&dev, 2).await;
    let peeked = caller.ok(Method::GET, "/dead-letters?reason=missing_field", None).await;
    let letters = peeked["letters"].as_array().unwrap();
    assert_eq!((peeked["depth"].as_u64(), letters.len()), (Some(2), 2), "{peeked}");
    assert_eq!(letters[0]["uniqueId"], "order-18", "{peeked}");

    let unrepaired = caller.ok(Method::POST, "/dead-letters/redrive", Some(json!({}))).await;
    assert_eq!((unrepaired["redriven"].as_u64(), unrepaired["skipped"].as_u64()), (Some(0), Some(2)), "{unrepaired}");
    let repair = json!({"reason": ["missing_field"], "limit": 1, "patch": {"detail": {"meterApiName": METER}}});
    for letters_left in [1, 0] {
        let redriven = caller.ok(Method::POST, "/dead-letters/redrive", Some(repair.clone())).await;
        assert_eq!(redriven["redriven"], 1, "{redriven}");
        assert_eq!(caller.depth().await, letters_left);
        caller.settled(&dev, 4 - letters_left).await;
        // The second is another redrive of the same event: the worker's window or Amberflo knows it.
        assert_eq!(caller.usage_of("acme").await, 5.0);
        assert_eq!(caller.billed("order-18").await.0, 1);
    }
    assert_eq!(caller.depth().await, 0, "neither came back");
    dev.stop().await;
}
