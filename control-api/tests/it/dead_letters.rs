//! Dead letters over HTTP, on the local store.

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::backend::{Position, Record, SequenceNumber, ShardId};
use shared::clock::{Clock, UnixMillis};
use shared::dead_letter::{DeadLetter, Origin};
use shared::event::{self, EventRules};
use shared::meter_record;
use shared::reason::Reason;

use crate::harness::{Api, answer};

fn now() -> UnixMillis {
    Clock::system().now()
}

/// The letter that a worker would have written of this payload.
fn letter(number: u64, payload: &Value, reason: Reason, rules: &EventRules) -> DeadLetter {
    let record = Record {
        data: Bytes::from(payload.to_string()),
        partition_key: "acme".to_owned(),
        sequence_number: SequenceNumber(number.to_string()),
        arrived_at: now() - 5_000,
    };
    let shard = ShardId("shard-0".to_owned());
    let identity = match event::parse(&record, &shard, rules) {
        Ok(event) => event.identity(),
        Err(rejection) => rejection.identity,
    };
    let origin = Origin { stream: "local", shard: &shard, worker: "w", now: now() - 1_000 };
    DeadLetter::new(&record, origin, reason, "for the test".to_owned(), identity)
}

fn usage(unique_id: &str) -> Value {
    json!({"detail-type": "ingestUsage", "id": "e-1", "time": "2026-11-01T00:00:00Z", "detail": {
        "tenantId": "acme", "meterApiName": "api-calls", "meterValue": 12_345_678_901_234_567_890_u64,
        "uniqueId": unique_id
    }})
}

/// Without its meter, and as the parser refuses it.
fn malformed(unique_id: &str) -> Value {
    let mut payload = usage(unique_id);
    payload["detail"].as_object_mut().unwrap().remove("meterApiName");
    payload
}

async fn with_letters(letters: &[(Value, Reason)]) -> Api {
    let api = Api::start().await;
    let numbered = (1..).zip(letters);
    let letters: Vec<_> =
        numbered.map(|(number, (payload, reason))| letter(number, payload, *reason, &api.app.rules)).collect();
    api.app.queues().await.unwrap().dead_letters.send(&letters).await.unwrap();
    api
}

async fn depth(api: &Api) -> u64 {
    api.app.queues().await.unwrap().dead_letters.depth().await.unwrap()
}

/// What the stream holds, as the records that Amberflo would get.
async fn published(api: &Api) -> Vec<String> {
    let stream = &api.app.queues().await.unwrap().stream;
    let mut records = Vec::new();
    for shard in stream.shards().await.unwrap() {
        let mut reader = stream.reader(&shard.id, Position::TrimHorizon).await.unwrap();
        for record in reader.next(1 << 20).await.unwrap().records {
            let event = event::parse(&record, &shard.id, &api.app.rules).unwrap();
            let mut bytes = Vec::new();
            meter_record::write(&event, &mut bytes);
            records.push(String::from_utf8(bytes).unwrap());
        }
    }
    records
}

#[tokio::test]
async fn a_look_leaves_the_letters_where_they_are() {
    let letters =
        [(usage("a"), Reason::Rejected), (usage("b"), Reason::Conflict), (malformed("c"), Reason::MissingField)];
    let api = with_letters(&letters).await;
    let (status, body) = api.get("/dead-letters").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let data = &body["data"];
    assert_eq!((&data["queue"], &data["depth"], &data["more"]), (&json!("local"), &json!(3), &json!(false)));
    assert_eq!(data["letters"].as_array().unwrap().len(), 3);

    let (_, body) = api.get("/dead-letters?reason=conflict&reason=missing_field&limit=1").await;
    assert_eq!(body["data"]["letters"].as_array().unwrap().len(), 1);
    assert_eq!(body["data"]["more"], true);
    let (_, body) = api.get("/dead-letters?reason=missing_field&tenantId=acme").await;
    let found = &body["data"]["letters"][0];
    assert_eq!((&found["reason"], &found["uniqueId"]), (&json!("missing_field"), &json!("c")));
    assert!(found["payload"].as_str().unwrap().contains("12345678901234567890"), "{found}");

    for query in ["reason=unknown", "limit=0", "limit=101", "limit=x", "resaon=conflict", "tenantId=a&tenantId=b"] {
        let (status, problem) = api.get(&format!("/dead-letters?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {problem}");
    }
}

#[tokio::test]
async fn a_redrive_sends_what_is_meant_and_leaves_the_rest() {
    let letters =
        [(usage("a"), Reason::Rejected), (usage("b"), Reason::Conflict), (malformed("c"), Reason::MissingField)];
    let api = with_letters(&letters).await;
    let (status, body) = api.send(Method::POST, "/dead-letters/redrive", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let data = &body["data"];
    assert_eq!((&data["redriven"], &data["skipped"], &data["more"]), (&json!(1), &json!(2), &json!(false)), "{data}");
    assert_eq!(data["byReason"]["rejected"], json!({"redriven": 1, "skipped": 0}));
    assert_eq!(depth(&api).await, 2);

    let conflicts = json!({"reason": ["conflict"]});
    for (path, body) in [
        ("/dead-letters/redrive", &conflicts),
        ("/dead-letters/redrive?confirm=conflict", &json!({})),
        ("/dead-letters/redrive?confirm=yes", &conflicts),
        ("/dead-letters/redrive", &json!({"reason": ["missing_field"], "limit": 0})),
        ("/dead-letters/redrive", &json!({"patch": {"detail": {}}})),
        ("/dead-letters/redrive", &json!({"reason": ["rejected"], "patch": []})),
        ("/dead-letters/redrive", &json!({"reasons": ["rejected"]})),
        ("/dead-letters/redrive", &json!({"reason": []})),
        ("/dead-letters/redrive", &json!({"tenantId": ""})),
        // As an unset variable of a script leaves it: without its patch nothing is to be sent.
        ("/dead-letters/redrive", &json!({"reason": "rejected", "patch": null})),
        // Several letters would become one event, and all but one be dropped as its copies.
        ("/dead-letters/redrive", &json!({"reason": ["missing_field"], "patch": {"detail": {"uniqueId": "x"}}})),
        ("/dead-letters/redrive", &json!({"reason": ["missing_field"], "patch": {"id": "x"}})),
    ] {
        let (status, problem) = api.send(Method::POST, path, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {problem}");
    }
    assert_eq!(depth(&api).await, 2);
    let (_, body) = api.send(Method::POST, "/dead-letters/redrive?confirm=conflict", conflicts).await;
    assert_eq!(body["data"]["redriven"], 1, "{body}");
    assert_eq!(depth(&api).await, 1);
}

#[tokio::test]
async fn a_malformed_event_is_repaired_and_twice_gives_the_identical_record() {
    let api = with_letters(&[(malformed("c"), Reason::MissingField), (malformed("c"), Reason::MissingField)]).await;
    let wrong = json!({"reason": ["missing_field"], "patch": {"detail": {"meterApiName": ""}}});
    let (_, body) = api.send(Method::POST, "/dead-letters/redrive", wrong).await;
    assert_eq!((&body["data"]["redriven"], &body["data"]["skipped"]), (&json!(0), &json!(2)), "{body}");
    assert!(body["data"]["examples"][0]["why"].as_str().unwrap().contains("meterApiName"), "{body}");

    let repair = json!({"reason": ["missing_field"], "patch": {"detail": {"meterApiName": "api-calls"}}});
    let (_, body) = api.send(Method::POST, "/dead-letters/redrive", repair).await;
    assert_eq!((&body["data"]["redriven"], &body["data"]["skipped"]), (&json!(2), &json!(0)), "{body}");
    let records = published(&api).await;
    assert_eq!(records.len(), 2);
    assert_eq!(records[0], records[1]);
    assert!(records[0].contains("12345678901234567890"), "{}", records[0]);
    assert_eq!(depth(&api).await, 0);
}

#[tokio::test]
async fn a_purge_needs_the_queues_name() {
    let api = with_letters(&[(usage("a"), Reason::Rejected), (malformed("c"), Reason::MissingField)]).await;
    for query in ["", "?confirm=", "?confirm=other", "?confirm=local&what=else"] {
        let (status, problem) = answer(api.request(Method::DELETE, &format!("/dead-letters{query}"))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {problem}");
    }
    // A filter that is not looked at would leave nothing.
    let filter = json!({"reason": ["missing_field"]});
    let (status, problem) = api.send(Method::DELETE, "/dead-letters?confirm=local", filter).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    assert_eq!(depth(&api).await, 2);
    let (status, body) = answer(api.request(Method::DELETE, "/dead-letters?confirm=local&reason=missing_field")).await;
    assert_eq!((status, &body["data"]["removed"]), (StatusCode::OK, &json!(1)), "{body}");
    let (_, body) = answer(api.request(Method::DELETE, "/dead-letters?confirm=local")).await;
    assert_eq!(body["data"], json!({"removed": 1, "byReason": {"rejected": 1}, "more": false, "depth": 0}));
    assert_eq!(depth(&api).await, 0);
    assert!(published(&api).await.is_empty());
}
