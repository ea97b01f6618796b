//! PutRecords: its limits, and records that are refused.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use shared::backend::kinesis::Writer;
use shared::backend::{BackendError, NewRecord, Stream as _};
use tokio::time::Instant;

use super::canned::{Answer, Call, Canned};

fn record(key: &str, bytes: usize) -> NewRecord {
    NewRecord { partition_key: key.to_owned(), data: Bytes::from(vec![b'x'; bytes]) }
}

fn numbered(count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| record(&n.to_string(), 1)).collect()
}

fn keys(body: &Value) -> Vec<String> {
    let records = body["Records"].as_array().unwrap();
    records.iter().map(|record| record["PartitionKey"].as_str().unwrap().to_owned()).collect()
}

/// Stores the records whose key `accepts`, and refuses the others.
fn answer(body: &Value, mut accepts: impl FnMut(&str) -> bool) -> Answer {
    let result = |key: String| match accepts(&key) {
        true => json!({"SequenceNumber": "1", "ShardId": "shardId-000000000000"}),
        false => json!({"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"}),
    };
    let results: Vec<_> = keys(body).into_iter().map(result).collect();
    Answer::Json(json!({"FailedRecordCount": 0, "Records": results}))
}

fn put(canned: &Canned) -> Vec<Call> {
    canned.calls("PutRecords")
}

#[tokio::test]
async fn a_call_has_at_most_500_records_and_keeps_their_order() {
    let canned = Canned::new();
    canned.on("PutRecords", |body| answer(body, |_| true));
    let stream = canned.open().await;
    stream.publish(numbered(1001)).await.unwrap();
    let calls = put(&canned);
    assert_eq!(calls.iter().map(|call| keys(&call.body).len()).collect::<Vec<_>>(), [500, 500, 1]);
    let sent: Vec<_> = calls.iter().flat_map(|call| keys(&call.body)).collect();
    assert_eq!(sent, (0..1001).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(calls[0].body["StreamName"], "events");
}

#[tokio::test]
async fn a_call_has_at_most_five_mebibytes_of_data_and_keys() {
    let canned = Canned::new();
    canned.on("PutRecords", |body| answer(body, |_| true));
    let stream = canned.open().await;
    // With their keys of 24 bytes, 5 of these are one byte more than a call takes.
    let size = (5 << 20) / 5 - 24;
    let key = "k".repeat(24);
    let mut records = vec![record(&key, size); 5];
    records[4] = record(&key, size + 1);
    stream.publish(records).await.unwrap();
    stream.publish(vec![record(&key, size); 5]).await.unwrap();
    // More than a call should have, but the service decides about that.
    stream.publish(vec![record(&key, 6 << 20), record(&key, 1), record(&key, 1)]).await.unwrap();
    let counts: Vec<_> = put(&canned).iter().map(|call| keys(&call.body).len()).collect();
    assert_eq!(counts, [4, 1, 5, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn only_the_records_that_were_refused_are_sent_again() {
    let canned = Canned::new();
    let mut call = 0;
    canned.on("PutRecords", move |body| {
        call += 1;
        answer(body, |key| match call {
            1 => key.parse::<usize>().unwrap() % 3 != 0,
            2 => key == "6",
            _ => true,
        })
    });
    canned.open().await.publish(numbered(10)).await.unwrap();
    let calls = put(&canned);
    let sent: Vec<_> = calls.iter().map(|call| keys(&call.body).join(" ")).collect();
    assert_eq!(sent, ["0 1 2 3 4 5 6 7 8 9", "0 3 6 9", "0 3 9"]);
}

#[tokio::test(start_paused = true)]
async fn a_later_call_waits_for_the_retries_of_an_earlier_one() {
    let canned = Canned::new();
    let mut refused = 1;
    canned.on("PutRecords", move |body| {
        answer(body, |key| {
            let accepts = key != "7" || refused == 0;
            refused -= usize::from(!accepts);
            accepts
        })
    });
    canned.open().await.publish(numbered(501)).await.unwrap();
    let calls = put(&canned);
    assert_eq!(calls.iter().map(|call| keys(&call.body).len()).collect::<Vec<_>>(), [500, 1, 1]);
    assert_eq!((keys(&calls[1].body), keys(&calls[2].body)), (vec!["7".to_owned()], vec!["500".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn gives_up_after_some_tries_and_says_how_many_were_stored() {
    let canned = Canned::new();
    canned.on("PutRecords", |body| answer(body, |key| key.parse::<usize>().unwrap() < 503));
    let error = canned.open().await.publish(numbered(510)).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)));
    assert!(error.to_string().contains("503 of 510 records were stored"), "{error}");
    assert!(error.to_string().contains("Rate exceeded"), "{error}");
    let tries = put(&canned).len();
    assert!((5..30).contains(&tries), "{tries} tries");
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_takes_a_little_at_a_time_is_fed_to_the_end() {
    let canned = Canned::new();
    canned.on("PutRecords", |body| {
        let mut room = 10;
        answer(body, |_| {
            room -= 1;
            room >= 0
        })
    });
    canned.open().await.publish(numbered(500)).await.unwrap();
    assert_eq!(put(&canned).len(), 50, "more tries than are made without progress");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_as_a_whole_is_reported() {
    for (code, is_misconfigured) in [("ValidationException", true), ("InternalFailureException", false)] {
        let canned = Canned::new();
        canned.on("PutRecords", move |_| Answer::Error(code));
        let error = canned.open().await.publish(numbered(3)).await.unwrap_err();
        assert_eq!(matches!(error, BackendError::Misconfigured(_)), is_misconfigured, "{error}");
        assert!(error.to_string().contains(code) && error.to_string().contains("0 of 3 records"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_leaves_records_out_is_no_success() {
    let canned = Canned::new();
    let results = json!([{"SequenceNumber": "1", "ShardId": "shardId-000000000000"}]);
    canned.plan("PutRecords", vec![Answer::Json(json!({"FailedRecordCount": 0, "Records": results}))]);
    assert!(matches!(canned.open().await.publish(numbered(2)).await, Err(BackendError::Unavailable(_))));
}

/// Who may only put records is asked for nothing else, and told of each record.
#[tokio::test(start_paused = true)]
async fn a_writer_gives_every_record_its_turn_before_one_has_a_second() {
    let canned = Canned::new();
    canned.on("PutRecords", |body| match keys(body) {
        keys if keys == ["large"] => Answer::Error("ValidationException"),
        _ => answer(body, |key| !key.starts_with("hot")),
    });
    let writer = Writer::new(&canned.config(), "events".parse().unwrap());
    let mut records = numbered(600);
    records[1].partition_key = "hot-1".to_owned();
    records[2] = record("large", 1 << 20);
    records[599].partition_key = "hot-2".to_owned();
    let started = Instant::now();
    let results = writer.put_until(records, started + Duration::from_secs(30)).await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let failed: Vec<_> = (0..).zip(&results).filter_map(|(n, result)| Some((n, result.as_ref().err()?))).collect();
    assert_eq!(failed.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 599]);
    let is_misconfigured = |error: &BackendError| matches!(error, BackendError::Misconfigured(_));
    assert_eq!(failed.iter().map(|(_, error)| is_misconfigured(error)).collect::<Vec<_>>(), [false, true, false]);
    assert!(failed[0].1.to_string().contains("Rate exceeded"), "{}", failed[0].1);
    let calls = put(&canned);
    let sizes: Vec<_> = calls.iter().map(|call| keys(&call.body).len()).collect();
    assert_eq!(sizes[..3], [2, 1, 500], "a large record goes alone");
    assert_eq!(sizes[3..5], [97, 2], "then only what was refused");
    assert!((5..40).contains(&sizes.len()), "{sizes:?}");
    assert!(canned.calls("DescribeStreamSummary").is_empty());
}
