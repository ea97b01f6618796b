//! POST /ingest: in front of the worker's own bus, of one that fails as EventBridge may, and of an emulated EventBridge.

pub mod event_bus;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use clap::Parser as _;
use control_api::config::Cli;
use emulators::Moto;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::harness::{Api, answer};
use event_bus::{Fault, FaultyBus, WorkerBus};

async fn api(url: &str) -> Api {
    api_with(url, &[]).await
}

async fn api_with(url: &str, flags: &[&str]) -> Api {
    Api::start_changed(flags, |app| app.bus = event_bus::client(app, url)).await
}

fn usage(n: usize) -> Value {
    json!({ "tenantId": format!("tenant-{}", n % 7), "meterApiName": "calls", "meterValue": n })
}

async fn ingest(api: &Api, body: &Value) -> (StatusCode, Value) {
    api.send(Method::POST, "/ingest", body.clone()).await
}

async fn ingest_with_key(api: &Api, key: &str, body: &Value) -> (StatusCode, Value) {
    let request = api.request(Method::POST, "/ingest").header("content-type", "application/json");
    answer(request.header("Idempotency-Key", key).body(body.to_string())).await
}

/// What the answer says of the events under this name.
fn each<'a>(events: &'a Value, name: &str) -> Vec<&'a Value> {
    events["events"].as_array().unwrap().iter().map(|event| &event[name]).collect()
}

#[tokio::test]
async fn valid_events_are_in_the_stream_as_they_were_given() {
    let bus = WorkerBus::start().await;
    let api = api(&bus.url).await;
    let text = r#"{"tenantId":"t","meterApiName":"m","meterValue":12345678901234567890.10, "zone" : "ä" }"#;
    let request = api.request(Method::POST, "/ingest").header("content-type", "application/json");
    let (status, body) = answer(request.body(format!("[{text}, {{}}, 7]"))).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let data = &body["data"];
    assert_eq!((&data["accepted"], &data["rejected"]), (&json!(1), &json!(2)));
    assert_eq!(each(data, "index"), [0, 1, 2]);
    assert_eq!(each(data, "error")[1]["reason"], "missing_field");
    assert_eq!(each(data, "error")[2]["reason"], "not_an_object");
    let event = &data["events"][0];
    assert_eq!(event["repeatable"], "within_dedup_window");

    let records = bus.records().await;
    assert_eq!(records.len(), 1);
    let envelope = String::from_utf8(records[0].data.to_vec()).unwrap();
    let id = event["uniqueId"].as_str().unwrap();
    let detail = format!("{{\"uniqueId\":\"{id}\",{}", &text[1..]);
    assert!(envelope.ends_with(&format!("\"detail\":{detail}}}")), "{envelope}");
    let envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert_eq!(envelope["id"], event["eventId"]);
    assert_eq!(envelope["source"], "sbt.application.plane");
    assert_eq!(envelope["detail-type"], "sbt_aws_ingestUsage");
}

#[tokio::test]
async fn a_thousand_events_are_taken() {
    let bus = WorkerBus::start().await;
    let api = api(&bus.url).await;
    let (status, body) = ingest(&api, &(0..1000).map(usage).collect()).await;
    assert_eq!((status, &body["data"]["accepted"]), (StatusCode::ACCEPTED, &json!(1000)), "{body}");
    let records = bus.records().await;
    assert_eq!(records.len(), 1000);
    let stored = records.iter().map(|record| {
        let envelope: Value = serde_json::from_slice(&record.data).unwrap();
        (
            envelope["id"].to_string(),
            envelope["detail"]["uniqueId"].to_string(),
            envelope["detail"]["meterValue"].to_string(),
        )
    });
    let answered = body["data"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["eventId"].to_string(), event["uniqueId"].to_string(), event["index"].to_string()));
    assert_eq!(stored.collect::<BTreeSet<_>>(), answered.collect(), "each answer is that of its event");
}

#[tokio::test]
async fn a_repeated_request_is_the_same_events() {
    let bus = WorkerBus::start().await;
    let api = api(&bus.url).await;
    let mut timed = usage(1);
    timed["meterTimeInMillis"] = Clock::system().now().into();
    let mut own = usage(2);
    own["uniqueId"] = "mine".into();
    let body = json!([usage(0), timed, own]);
    let (status, first) = ingest_with_key(&api, "4711", &body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{first}");
    let (_, again) = ingest_with_key(&api, "4711", &body).await;
    let (_, other) = ingest_with_key(&api, "4712", &body).await;
    let ids = |answer: &Value| each(&answer["data"], "uniqueId").into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(ids(&first)[2], "mine");
    assert_eq!(each(&first["data"], "repeatable"), ["within_dedup_window", "always", "within_dedup_window"]);
    assert!(ids(&other)[0] != ids(&first)[0] && ids(&other)[1] != ids(&first)[1] && ids(&other)[2] == "mine");
    // One alone is the first of an array.
    let (_, alone) = ingest_with_key(&api, "4711", &usage(0)).await;
    assert_eq!(ids(&alone)[0], ids(&first)[0]);
    let (_, without) = ingest(&api, &usage(0)).await;
    let (_, once_more) = ingest(&api, &usage(0)).await;
    assert_ne!(ids(&without), ids(&once_more));
}

#[tokio::test]
async fn only_entries_that_failed_are_put_again_at_the_same_time() {
    let bus = FaultyBus::start([Fault::Entries(vec![(1, "InternalFailure"), (3, "ThrottlingException")])]).await;
    let api = api(&bus.url).await;
    let (status, body) = ingest(&api, &(0..5).map(usage).collect()).await;
    assert_eq!((status, &body["data"]["accepted"]), (StatusCode::ACCEPTED, &json!(5)), "{body}");
    let calls = bus.calls();
    assert_eq!(calls.len(), 2);
    let first = calls[0].as_array().unwrap();
    assert_eq!(calls[1], json!([first[1], first[3]]), "the same bytes and the same Time");
    assert!(first[0]["Time"].is_i64(), "whole seconds");
    assert_eq!(each(&body["data"], "eventId"), ["0-0", "1-0", "0-2", "1-1", "0-4"]);
}

#[tokio::test]
async fn a_call_whose_answer_was_lost_is_made_again_with_the_same_events() {
    let bus = FaultyBus::start([Fault::Whole(500, "InternalException")]).await;
    let api = api(&bus.url).await;
    let (status, body) = ingest(&api, &(0..3).map(usage).collect()).await;
    assert_eq!((status, &body["data"]["accepted"]), (StatusCode::ACCEPTED, &json!(3)), "{body}");
    let calls = bus.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0], calls[1]);
}

#[tokio::test]
async fn what_fails_to_the_end_is_named_and_the_rest_is_accepted() {
    let bus = FaultyBus::start(vec![Fault::Entries(vec![(0, "InternalFailure")]); 9]).await;
    let api = api(&bus.url).await;
    let (status, problem) = ingest_with_key(&api, "k", &json!([usage(0), usage(1), {}])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert_eq!((&problem["accepted"], &problem["rejected"]), (&json!(1), &json!(1)));
    assert!(problem["detail"].as_str().unwrap().contains("Idempotency-Key"));
    let error = each(&problem, "error");
    assert_eq!(
        (&error[0]["reason"], error[1], &error[2]["reason"]),
        (&json!("not_put"), &Value::Null, &json!("missing_field"))
    );
    assert!(each(&problem, "uniqueId")[0].is_string() && each(&problem, "eventId")[1].is_string());
    assert_eq!(bus.calls().len(), 5, "four more attempts");
    // The caller repeats, as it was told.
    let bus = WorkerBus::start().await;
    let api = self::api(&bus.url).await;
    let (status, again) = ingest_with_key(&api, "k", &json!([usage(0), usage(1), usage(2)])).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(each(&again["data"], "uniqueId")[..2], each(&problem, "uniqueId")[..2]);
}

#[tokio::test]
async fn what_the_bus_will_never_take_is_an_operators_problem() {
    let bus = FaultyBus::start([Fault::Entries(vec![(1, "NotAuthorizedForSourceException")])]).await;
    let api = api(&bus.url).await;
    let (status, problem) = ingest(&api, &(0..2).map(usage).collect()).await;
    assert_eq!((status, &problem["accepted"]), (StatusCode::BAD_GATEWAY, &json!(1)), "{problem}");
    assert_eq!(bus.calls().len(), 1, "not again");

    let bus = FaultyBus::start(vec![Fault::Whole(400, "AccessDeniedException"); 100]).await;
    let api = self::api(&bus.url).await;
    let (status, problem) = ingest(&api, &(0..1000).map(usage).collect()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("AccessDeniedException"), "{}", problem["detail"]);
    assert!(bus.calls().len() <= 4, "the others are not attempted: {}", bus.calls().len());
}

#[tokio::test]
async fn an_answer_comes_in_time_though_the_bus_is_silent() {
    let bus = FaultyBus::start(vec![Fault::Silence; 100]).await;
    let api = api_with(&bus.url, &["--request-timeout=2s"]).await;
    let started = Instant::now();
    let (status, problem) = ingest(&api, &(0..60).map(usage).collect()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(each(&problem, "error").iter().all(|error| error["reason"] == "not_put"));
}

#[tokio::test]
async fn a_bus_that_is_not_there_is_said_to_be_the_worker() {
    // Bound without listening: calls are refused, and no other test is given the port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let api = api(&format!("http://{}", socket.local_addr().unwrap())).await;
    let (status, problem) = ingest(&api, &usage(0)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("the running ingest-worker is the bus"), "{problem}");
}

#[tokio::test]
async fn calls_keep_the_limits_of_the_bus() {
    let bus = FaultyBus::start([]).await;
    let api = api(&bus.url).await;
    let mut events: Vec<Value> = (0..25).map(usage).collect();
    for n in [3, 4, 12] {
        events[n]["text"] = "x".repeat(200 << 10).into();
    }
    events[20]["text"] = "x".repeat(256 << 10).into();
    let (status, body) = ingest(&api, &events.into()).await;
    assert_eq!((status, &body["data"]["accepted"]), (StatusCode::ACCEPTED, &json!(24)));
    assert_eq!(each(&body["data"], "error")[20]["reason"], "oversized");
    for call in bus.calls() {
        let entries = call.as_array().unwrap();
        let size = |entry: &Value| ["Source", "DetailType", "Detail"].map(|name| entry[name].as_str().unwrap().len());
        let sizes = entries.iter().map(|entry| size(entry).iter().sum::<usize>() + 14);
        assert!(entries.len() <= 10 && sizes.sum::<usize>() < 256 << 10);
    }
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused() {
    let bus = FaultyBus::start([]).await;
    let api = api(&bus.url).await;
    for body in [json!([]), (0..1001).map(usage).collect()] {
        let (status, problem) = ingest(&api, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(problem["detail"].as_str().unwrap().contains("allowed is 1 to 1000"), "{problem}");
    }
    let (status, problem) = ingest(&api, &json!([{}, { "tenantId": "t" }])).await;
    assert_eq!((status, each(&problem, "index")), (StatusCode::BAD_REQUEST, vec![&json!(0), &json!(1)]));
    for key in ["", "a b", &"k".repeat(256), "\u{e4}"] {
        let (status, problem) = ingest_with_key(&api, key, &usage(0)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{key}: {problem}");
    }
    let mut large = usage(0);
    large["text"] = "x".repeat(1 << 20).into();
    assert_eq!(ingest(&api, &large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(bus.calls().is_empty());
}

#[tokio::test]
async fn eventbridge_takes_signed_calls() {
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return emulators::skip("control-api-eventbridge", &reason),
    };
    let api = api(&moto.url).await;
    let (status, body) = ingest(&api, &(0..12).map(usage).collect()).await;
    assert_eq!((status, &body["data"]["accepted"]), (StatusCode::ACCEPTED, &json!(12)), "{body}");
    let ids: BTreeSet<_> = each(&body["data"], "eventId").into_iter().map(Value::to_string).collect();
    assert_eq!(ids.len(), 12);
}

#[test]
fn events_that_nobody_would_bill_are_refused_at_start() {
    let checked = |flag: &str| {
        let cli = Cli::parse_from(["control-api", "--auth=none", flag]);
        cli.settings.check(Some(cli.server.listen)).err().map(|error| error.to_string())
    };
    let error = checked("--event-detail-type=usage").unwrap();
    assert!(error.contains("EVENT_DETAIL_TYPE") && error.contains("sbt_aws_ingestUsage or ingestUsage"), "{error}");
    assert!(checked("--event-source=aws.me").unwrap().contains("EVENT_SOURCE"));
    assert_eq!(checked("--event-detail-type=ingestUsage"), None);
}
