use std::num::NonZeroUsize;

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use axum::body::Body;
use http::{Request, StatusCode};
use tower::ServiceExt as _;

use crate::{batch, event, gzip, sandbox, send, send_with};

#[tokio::test]
async fn accepts_arrays_objects_ndjson_and_gzip() {
    let sandbox = sandbox(Faults::default());
    let answer = send(&sandbox, batch(&["1", "2"])).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "2 records were ingested"));
    assert!(answer.header("content-type").starts_with("text/plain"));
    assert_eq!(send(&sandbox, event("3")).await.body, "1 records were ingested");
    assert_eq!(send(&sandbox, format!("{}\n{}\n", event("4"), event("5"))).await.body, "2 records were ingested");
    let headers = [("X-API-KEY", "sandbox-key"), ("content-encoding", "gzip")];
    assert_eq!(send_with(&sandbox, &headers, gzip(&batch(&["6"]))).await.body, "1 records were ingested");

    let line = sandbox.ledger().lines[0].clone();
    assert_eq!((line.events, line.total.integers), (6, 12));
    let ids: Vec<_> = sandbox.records().into_iter().filter_map(|record| record.unique_id).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(sandbox.records()[0].raw, event("1"));
    assert_eq!(sandbox.records_after(1), sandbox.records()[1..]);
    assert!(sandbox.records_after(usize::MAX).is_empty());
    assert!(sandbox.stats().unknown_keys.is_empty());
}

/// The official Python SDK posts to `/ingest/`.
#[tokio::test]
async fn the_path_may_end_with_a_slash() {
    let sandbox = sandbox(Faults::default());
    let request = Request::post("/ingest/").header("x-api-key", "sandbox-key").body(Body::from(event("1"))).unwrap();
    assert_eq!(sandbox.router().oneshot(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(sandbox.ledger().events, 1);
}

#[tokio::test]
async fn refuses_bad_keys_bodies_and_encodings() {
    let sandbox = sandbox(Faults::default());
    let none: [(&str, &str); 0] = [];
    assert_eq!(send_with(&sandbox, &none, event("1")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(send_with(&sandbox, &[("x-api-key", "no")], event("1")).await.status, StatusCode::UNAUTHORIZED);
    let encoded = |encoding| [("x-api-key", "sandbox-key"), ("content-encoding", encoding)];
    assert_eq!(send_with(&sandbox, &encoded("gzip"), event("1")).await.status, StatusCode::BAD_REQUEST);
    let cut = gzip(&event("1"));
    assert_eq!(
        send_with(&sandbox, &encoded("gzip"), cut[..cut.len() - 9].to_vec()).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(send_with(&sandbox, &encoded("br"), event("1")).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for body in ["", "[", "nope", "[1]"] {
        assert_eq!(send(&sandbox, body).await.status, StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(send(&sandbox, vec![b'"', 0xff, b'"']).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(sandbox.ledger().events, 0);
}

#[tokio::test]
async fn one_invalid_record_refuses_the_request() {
    let sandbox = sandbox(Faults::default());
    let answer = send(&sandbox, format!("[{},{}]", event("1"), event("2").replace(":2,", ":\"x\","))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.body.contains("index 1: meterValue"), "{}", answer.body);
    assert_eq!(sandbox.ledger().events, 0);
}

#[tokio::test]
async fn copies_are_absorbed_conflicts_billed_and_both_reported() {
    let sandbox = sandbox(Faults::default());
    for _ in 0..3 {
        assert_eq!(send(&sandbox, batch(&["1", "2"])).await.body, "2 records were ingested");
    }
    send(&sandbox, event("2").replace("eu", "us")).await;
    let ledger = sandbox.ledger();
    assert_eq!((ledger.events, ledger.absorbed_copies, ledger.conflicting_copies), (3, 4, 1));
    assert_eq!(ledger.line("c", "m").unwrap().absorbed_copies, 4);
    assert_eq!(sandbox.absorbed_copies(), [("1".to_owned(), 2), ("2".to_owned(), 2)]);
    let double = sandbox.billed_more_than_once();
    assert_eq!(double.len(), 1);
    assert_eq!((double[0].unique_id.as_str(), double[0].times), ("2", 2));
}

#[tokio::test]
async fn unknown_keys_are_accepted_and_counted() {
    let sandbox = sandbox(Faults::default());
    let body = event("1").replacen('{', r#"{"uniqueID":"typo","#, 1);
    assert_eq!(send(&sandbox, body).await.status, StatusCode::OK);
    assert_eq!(sandbox.stats().unknown_keys["uniqueID"], 1);
}

#[tokio::test]
async fn size_limits_answer_413() {
    let max_body_bytes = NonZeroUsize::new(300);
    let sandbox = sandbox(Faults { max_body_bytes, max_records: NonZeroUsize::new(1), ..Faults::default() });
    assert_eq!(send(&sandbox, event("1")).await.status, StatusCode::OK);
    assert_eq!(send(&sandbox, batch(&["1", "2"])).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let long = event(&"x".repeat(400));
    assert_eq!(send(&sandbox, long.clone()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    // Compressed it would fit: the limit is on what comes out.
    let packed = gzip(&long);
    assert!(packed.len() < 300);
    let headers = [("x-api-key", "sandbox-key"), ("content-encoding", "gzip")];
    assert_eq!(send_with(&sandbox, &headers, packed).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(sandbox.ledger().events, 1);
}

#[tokio::test]
async fn without_kept_records_the_ledger_and_audit_remain() {
    let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
    send(&sandbox, batch(&["1", "1"])).await;
    send(&sandbox, event("1").replace("Millis\":1", "Millis\":9")).await;
    assert_eq!((sandbox.ledger().events, sandbox.ledger().absorbed_copies), (2, 1));
    assert_eq!(sandbox.ledger().conflicting_copies, 0);
    assert_eq!(sandbox.billed_more_than_once()[0].times, 2);
    assert!(sandbox.records().is_empty() && sandbox.absorbed_copies().is_empty());
}

#[tokio::test]
async fn reset_forgets_and_rearms() {
    let sandbox = sandbox(Faults { throttle: amberflo_sandbox::Trigger::next(1), ..Faults::default() });
    let statuses = async |sandbox: &Sandbox| {
        [send(sandbox, event("1")).await.status.as_u16(), send(sandbox, event("1")).await.status.as_u16()]
    };
    assert_eq!(statuses(&sandbox).await, [429, 200]);
    sandbox.reset();
    assert_eq!((sandbox.ledger().events, sandbox.stats().requests, sandbox.requests().len()), (0, 0, 0));
    assert_eq!(statuses(&sandbox).await, [429, 200]);
    assert_eq!(sandbox.ledger().events, 1);
}
