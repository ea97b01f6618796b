//! What a reader does after an error: nothing is skipped, nothing comes twice, and what cannot end well is said.

use std::time::Duration;

use serde_json::{Value, json};
use shared::backend::{BackendError, Position, SequenceNumber, ShardId, Stream as _};
use tokio::time::Instant;

use super::canned::{Answer, Canned, NOW, SHARD, record, records, shard};
use super::reading::{numbers, reader};

fn iterators(canned: &Canned) -> Vec<Value> {
    let pick = |body: &Value| json!([body["ShardIteratorType"], body["StartingSequenceNumber"]]);
    canned.calls("GetShardIterator").iter().map(|call| pick(&call.body)).collect()
}

fn two(first: u32) -> Vec<Value> {
    (first..first + 2).map(|n| record(&n.to_string(), b"xx", 0)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_resumes_after_the_last_fetched_record_not_the_last_handed_out() {
    for code in ["ExpiredIteratorException", "InvalidArgumentException"] {
        let canned = Canned::new();
        canned.plan(
            "GetRecords",
            vec![records(two(1), Some("old"), 9), Answer::Error(code), records(two(3), Some("next"), 0)],
        );
        let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
        assert_eq!(numbers(&reader.next(2).await.unwrap()), ["1"]);
        // The sink is down: nobody asks for the rest while the iterator ages.
        tokio::time::sleep(Duration::from_secs(360)).await;
        assert_eq!(numbers(&reader.next(2).await.unwrap()), ["2"]);
        assert_eq!(numbers(&reader.next(1 << 20).await.unwrap()), ["3", "4"], "in the same call");
        assert_eq!(iterators(&canned), [json!(["TRIM_HORIZON", null]), json!(["AFTER_SEQUENCE_NUMBER", "2"])]);
        let used: Vec<_> = canned.calls("GetRecords").iter().map(|call| call.body["ShardIterator"].clone()).collect();
        assert_eq!(used, ["iterator-1", "old", "iterator-2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_iterator_that_expires_before_anything_came_starts_where_it_did_and_never_at_latest() {
    let canned = Canned::new();
    let expired = || Answer::Error("ExpiredIteratorException");
    canned.plan("GetRecords", vec![records(vec![], Some("old"), 0), expired(), records(two(1), Some("next"), 0)]);
    let from = Position::At(SequenceNumber("1".to_owned()));
    let mut reader = reader(&canned.open().await, from).await;
    assert!(reader.next(1 << 20).await.unwrap().records.is_empty());
    assert_eq!(numbers(&reader.next(1 << 20).await.unwrap()), ["1", "2"]);
    assert_eq!(iterators(&canned), [json!(["AT_SEQUENCE_NUMBER", "1"]), json!(["AT_SEQUENCE_NUMBER", "1"])]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_on_a_shard_that_is_gone_is_terminal() {
    let canned = Canned::new();
    let mut iterators = vec![Answer::Json(json!({"ShardIterator": "i"}))];
    canned.on("GetShardIterator", move |_| iterators.pop().unwrap_or(Answer::Error("ResourceNotFoundException")));
    canned.on("GetRecords", |_| Answer::Error("ExpiredIteratorException"));
    canned.on("ListShards", |_| Answer::Json(json!({"Shards": [shard("shardId-000000000007", None)]})));
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    for _ in 0..2 {
        let error = reader.next(1 << 20).await.unwrap_err();
        assert!(matches!(error, BackendError::Gone(_)) && error.to_string().contains(SHARD), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_not_found_is_gone_only_where_the_stream_is_there() {
    for (shards, expected) in [
        (Answer::Json(json!({"Shards": [shard("another", None)]})), "Gone"),
        (Answer::Error("ResourceNotFoundException"), "Misconfigured"),
        (Answer::Json(json!({"Shards": [shard(SHARD, None)]})), "Unavailable"),
        (Answer::Error("LimitExceededException"), "Unavailable"),
    ] {
        let canned = Canned::new();
        let mut shards = vec![shards];
        canned.on("ListShards", move |_| shards.pop().unwrap_or(Answer::Error("LimitExceededException")));
        canned.plan("GetRecords", vec![Answer::Error("ResourceNotFoundException")]);
        let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
        let error = reader.next(1 << 20).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{expected}: {error:?}");
    }
    let canned = Canned::new();
    canned.on("GetShardIterator", |_| Answer::Error("ResourceNotFoundException"));
    let opened = canned.open().await.reader(&ShardId("unknown".to_owned()), Position::TrimHorizon).await;
    assert!(matches!(opened.err(), Some(BackendError::Gone(_))));
}

#[tokio::test(start_paused = true)]
async fn throttling_is_answered_with_a_growing_wait_of_at_least_a_second_and_skips_nothing() {
    for code in ["ProvisionedThroughputExceededException", "LimitExceededException", "KMSThrottlingException"] {
        let canned = Canned::new();
        let throttled = || Answer::Error(code);
        let mut answers = vec![records(two(1), Some("second"), 9)];
        answers.extend((0..8).map(|_| throttled()));
        answers.push(records(two(3), Some("next"), 9));
        answers.push(records(two(5), Some("next"), 9));
        canned.plan("GetRecords", answers);
        let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
        let (mut seen, mut errors) = (Vec::new(), 0);
        while seen.len() < 6 {
            match reader.next(1 << 20).await {
                Ok(page) => seen.extend(numbers(&page).into_iter().map(str::to_owned)),
                Err(error) => {
                    assert!(matches!(error, BackendError::Unavailable(_)), "{error}");
                    errors += 1;
                }
            }
        }
        assert_eq!(seen, ["1", "2", "3", "4", "5", "6"]);
        let calls = canned.calls("GetRecords");
        assert_eq!((errors, calls.len()), (8, 11), "the SDK repeats none of these calls by itself");
        let waits: Vec<_> = calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        assert!(waits[1..9].iter().all(|wait| (1..10).contains(&wait.as_secs())), "{waits:?}");
        assert!(waits[9] < Duration::from_millis(205), "it recovers: {waits:?}");
        assert!(canned.calls("GetShardIterator").len() == 1 && calls[9].body["ShardIterator"] == "second");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_an_error_after_which_the_same_page_is_asked_for() {
    let canned = Canned::new();
    canned.plan("GetRecords", vec![Answer::Silence, Answer::Silence, records(two(1), Some("next"), 0)]);
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    let started = Instant::now();
    assert!(matches!(reader.next(1 << 20).await, Err(BackendError::Unavailable(_))));
    assert!(started.elapsed() < Duration::from_secs(11));
    // A dropped call takes no page with it either.
    tokio::time::timeout(Duration::from_secs(1), reader.next(1 << 20)).await.unwrap_err();
    assert_eq!(numbers(&reader.next(1 << 20).await.unwrap()), ["1", "2"]);
    assert!(canned.calls("GetRecords").iter().all(|call| call.body["ShardIterator"] == "iterator-1"));
}

#[tokio::test]
async fn a_sequence_number_that_is_refused_says_that_the_stream_may_be_a_new_one() {
    for from in [Position::At(SequenceNumber("17".to_owned())), Position::After(SequenceNumber("17".to_owned()))] {
        let canned = Canned::new();
        canned.on("GetShardIterator", |_| Answer::Error("InvalidArgumentException"));
        let opened = canned.open().await.reader(&ShardId(SHARD.to_owned()), from).await;
        let Some(BackendError::Misconfigured(line)) = opened.err() else { panic!("it is misconfigured") };
        assert!(line.contains("sequence number 17") && line.contains("created anew"), "{line}");
    }
    let canned = Canned::new();
    canned.on("GetShardIterator", |_| Answer::Error("InvalidArgumentException"));
    let opened = canned.open().await.reader(&ShardId(SHARD.to_owned()), Position::AtTime(NOW - 3_600_000)).await;
    assert!(matches!(opened.err(), Some(BackendError::Misconfigured(_))), "no clock is an hour wrong");
}

#[tokio::test(start_paused = true)]
async fn a_renewed_iterator_that_is_refused_too_is_reported() {
    let canned = Canned::new();
    canned.on("GetRecords", |_| Answer::Error("InvalidArgumentException"));
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    assert!(matches!(reader.next(1 << 20).await, Err(BackendError::Misconfigured(_))));
    assert_eq!(canned.calls("GetRecords").len(), 2);
}
