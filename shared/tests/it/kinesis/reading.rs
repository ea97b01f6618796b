//! GetRecords: pages, the shard's budgets, the tip and the end.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use shared::backend::kinesis::KinesisStream;
use shared::backend::{BackendError, Page, Position, SequenceNumber, ShardId, ShardReader, Stream as _};
use tokio::time::Instant;

use super::canned::{Answer, Canned, DAY, NOW, SHARD, record, records, shard};

pub async fn reader(stream: &KinesisStream, from: Position) -> Box<dyn ShardReader> {
    stream.reader(&ShardId(SHARD.to_owned()), from).await.unwrap()
}

pub fn numbers(page: &Page) -> Vec<&str> {
    page.records.iter().map(|record| record.sequence_number.0.as_str()).collect()
}

fn limits(canned: &Canned) -> Vec<i64> {
    canned.calls("GetRecords").iter().map(|call| call.body["Limit"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn huge_sequence_numbers_odd_bytes_and_milliseconds_come_through() {
    let canned = Canned::new();
    let huge = "9".repeat(129);
    // Odd fractions: none of these is exact as a float.
    let all = vec![
        record("49600000000000000000000000000000000000000000000000000001", b"\0\xff\n", -1),
        record(&huge, b"", 0),
        record("1000", b"x", 455),
    ];
    canned.plan("GetRecords", vec![records(all, Some("next"), 5)]);
    let page = reader(&canned.open().await, Position::TrimHorizon).await.next(1 << 20).await.unwrap();
    assert_eq!(page.records.iter().map(|record| record.arrived_at).collect::<Vec<_>>(), [NOW - 1, NOW, NOW + 455]);
    assert_eq!(page.records[0].data, &b"\0\xff\n"[..]);
    assert_eq!(page.records[1].sequence_number.0, huge);
    assert!(page.records[1].sequence_number > page.records[0].sequence_number);
    assert_eq!((page.records[0].partition_key.as_str(), page.millis_behind_latest, page.is_end), ("tenant", 5, false));
}

#[tokio::test(start_paused = true)]
async fn at_most_five_calls_a_second_reach_a_shard_whatever_comes_back() {
    let canned = Canned::new();
    let mut call = 0;
    canned.on("GetRecords", move |_| {
        call += 1;
        match call % 4 {
            0 => Answer::Error("ExpiredIteratorException"),
            1 => Answer::Error("InternalFailureException"),
            _ => records(vec![record("1", b"x", 0)], Some("next"), 1000),
        }
    });
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    for _ in 0..100 {
        let _ = reader.next(1 << 20).await;
    }
    let calls = canned.calls("GetRecords");
    assert!(calls.len() > 100);
    for six in calls.windows(6) {
        assert!(six[5].at - six[0].at >= Duration::from_secs(1));
    }
    let took = calls[calls.len() - 1].at - calls[0].at;
    assert!(took < Duration::from_millis(205) * calls.len() as u32, "behind, it does not dawdle: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn at_the_tip_the_wait_grows_to_a_second_and_shrinks_when_something_comes() {
    let canned = Canned::new();
    let mut call = 0;
    canned.on("GetRecords", move |_| {
        call += 1;
        records(if call == 8 { vec![record("1", b"x", 0)] } else { vec![] }, Some("next"), 0)
    });
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    for _ in 0..10 {
        let started = Instant::now();
        let page = reader.next(1 << 20).await.unwrap();
        assert_eq!(page.millis_behind_latest, 0);
        assert!(started.elapsed() <= Duration::from_millis(1001), "an empty page comes within about a second");
    }
    let calls = canned.calls("GetRecords");
    let waits: Vec<_> = calls.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    let expected = [400, 800, 1000, 1000, 1000, 1000, 1000, 200, 400];
    assert!(waits.iter().zip(expected).all(|(wait, expected)| wait.abs_diff(expected) <= 2), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_response_behind_the_tip_is_asked_on_at_once() {
    let canned = Canned::new();
    canned.on("GetRecords", |_| records(vec![], Some("next"), 60_000));
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    for _ in 0..5 {
        let page = reader.next(1 << 20).await.unwrap();
        assert!(page.records.is_empty() && page.millis_behind_latest == 60_000, "not to be taken for the tip");
    }
    let calls = canned.calls("GetRecords");
    assert!(calls[4].at - calls[0].at < Duration::from_millis(810));
}

#[tokio::test(start_paused = true)]
async fn the_surplus_of_a_response_is_served_in_slices_before_the_next_call() {
    let canned = Canned::new();
    let all: Vec<_> = (0..7).map(|n| record(&n.to_string(), &[0; 40], n * 1000)).collect();
    let answers = vec![records(all, Some("next"), 500), records(vec![record("7", b"", 9000)], Some("next"), 0)];
    canned.plan("GetRecords", answers);
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    let mut seen = Vec::new();
    for max_bytes in [100, 1, 79, 80, 1 << 20] {
        let page = reader.next(max_bytes).await.unwrap();
        seen.push((numbers(&page).join(" "), page.millis_behind_latest));
        assert!(!page.is_end);
    }
    let expected = [("0 1", 5500), ("2", 4500), ("3", 3500), ("4 5", 1500), ("6", 500)];
    assert_eq!(seen, expected.map(|(numbers, behind)| (numbers.to_owned(), behind)));
    assert_eq!(canned.calls("GetRecords").len(), 1);
    assert_eq!(numbers(&reader.next(1).await.unwrap()), ["7"]);
}

#[tokio::test(start_paused = true)]
async fn the_limit_follows_the_size_of_the_records() {
    let canned = Canned::new();
    let mut size = 100;
    canned.on("GetRecords", move |body| {
        let limit = body["Limit"].as_u64().unwrap();
        size = if limit == 10_000 { 64 * 1024 } else { size };
        records((0..limit.min(20)).map(|n| record(&n.to_string(), &vec![0; size], 0)).collect(), Some("next"), 1)
    });
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    for _ in 0..80 {
        reader.next(1 << 20).await.unwrap();
    }
    let limits = limits(&canned);
    assert_eq!(limits[0], 25, "40 KiB each, as long as nothing is known");
    let largest = limits.iter().position(|&limit| limit == 10_000).expect("small records: as many as allowed");
    assert_eq!(limits[largest + 1], 16, "large records count at once");
    assert!(limits[largest + 2..].iter().all(|&limit| limit == 16), "{limits:?}");
}

#[tokio::test(start_paused = true)]
async fn records_larger_than_a_page_come_one_by_one() {
    let canned = Canned::new();
    let large = vec![0; 10 << 20];
    canned.plan(
        "GetRecords",
        (0..2).map(|n| records(vec![record(&n.to_string(), &large, 0)], Some("next"), 1)).collect(),
    );
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    assert_eq!(numbers(&reader.next(1 << 20).await.unwrap()), ["0"]);
    assert_eq!(numbers(&reader.next(1 << 20).await.unwrap()), ["1"]);
    assert_eq!(limits(&canned), [25, 1]);
    let calls = canned.calls("GetRecords");
    assert!(calls[1].at - calls[0].at >= Duration::from_secs(5), "two megabytes a second are allowed");
}

#[tokio::test(start_paused = true)]
async fn a_null_iterator_is_the_end_once_everything_was_handed_out() {
    let canned = Canned::new();
    let children = json!([{"ShardId": "child", "ParentShards": [SHARD],
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"}}]);
    let last = json!({"Records": [record("1", b"x", 0), record("2", b"y", 0)], "ChildShards": children});
    canned.plan("GetRecords", vec![Answer::Json(last)]);
    let mut reader = reader(&canned.open().await, Position::TrimHorizon).await;
    let page = reader.next(1).await.unwrap();
    assert_eq!((numbers(&page), page.is_end), (vec!["1"], false));
    assert!(page.millis_behind_latest > 0, "more follows, so it is not the tip");
    let page = reader.next(1).await.unwrap();
    assert_eq!((numbers(&page), page.is_end), (vec!["2"], true));
    assert!(canned.calls("ListShards").is_empty(), "the children say that it is the end");
}

#[tokio::test(start_paused = true)]
async fn a_null_iterator_without_children_is_the_end_of_a_closed_shard_only() {
    let canned = Canned::new();
    let first = || records(vec![record("1", b"x", 0)], None, 0);
    canned.plan("GetRecords", vec![first(), first(), records(vec![], None, 0)]);
    let stream = canned.open().await;
    let mut open = reader(&stream, Position::TrimHorizon).await;
    let error = open.next(1 << 20).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "taken for an end, it would never be read again: {error}");
    canned.on("ListShards", |_| Answer::Json(json!({"Shards": [shard(SHARD, Some("1"))]})));
    let page = open.next(1 << 20).await.unwrap();
    assert_eq!((numbers(&page), page.is_end), (vec!["1"], true), "and nothing was skipped");

    let mut empty = reader(&stream, Position::TrimHorizon).await;
    let page = empty.next(1 << 20).await.unwrap();
    assert!(page.records.is_empty() && page.is_end);
}

#[tokio::test]
async fn each_position_has_its_iterator_and_none_is_latest() {
    let number = SequenceNumber("4".repeat(56));
    for (from, expected) in [
        (Position::TrimHorizon, json!({"ShardIteratorType": "TRIM_HORIZON"})),
        (Position::AtTime(-1), json!({"ShardIteratorType": "TRIM_HORIZON"})),
        (Position::AtTime(NOW - 5), json!({"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1_700_000_000.118})),
        (
            Position::At(number.clone()),
            json!({"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": number.0}),
        ),
        (
            Position::After(number.clone()),
            json!({"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": number.0}),
        ),
    ] {
        let canned = Canned::new();
        reader(&canned.open().await, from).await;
        let mut expected: Value = expected;
        expected["StreamName"] = "events".into();
        expected["ShardId"] = SHARD.into();
        assert_eq!(canned.calls("GetShardIterator")[0].body, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_in_the_future_is_waited_for_with_empty_pages() {
    let canned = Canned::new();
    let mut skewed = 2;
    canned.on("GetShardIterator", move |_| {
        skewed -= 1;
        // The service's clock is a little behind ours.
        if skewed >= 0 {
            Answer::Error("InvalidArgumentException")
        } else {
            Answer::Json(json!({"ShardIterator": "i"}))
        }
    });
    canned.plan("GetRecords", vec![records(vec![record("1", b"x", 10_000)], Some("next"), 0)]);
    let started = Instant::now();
    let mut reader = reader(&canned.open().await, Position::AtTime(NOW + 10_000)).await;
    loop {
        let asked = Instant::now();
        let page = reader.next(1 << 20).await.unwrap();
        assert!(asked.elapsed() <= Duration::from_secs(1) && !page.is_end);
        if !page.records.is_empty() {
            break;
        }
        assert_eq!(page.millis_behind_latest, 0);
    }
    let elapsed = started.elapsed();
    assert!((10_000..13_000).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!(canned.calls("GetShardIterator").len(), 3, "not asked before the time has come");
}

#[tokio::test]
async fn a_time_older_than_the_retention_silently_becomes_trim_horizon_and_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let canned = Canned::new();
    let stream = canned.open().await;
    for kept in [Position::AtTime(NOW - DAY + 60_000), Position::TrimHorizon, Position::AtTime(NOW + DAY)] {
        reader(&stream, kept).await;
    }
    assert!(!handle.render().contains("ingest_trimmed_reads_total"), "{}", handle.render());
    reader(&stream, Position::AtTime(NOW - DAY - 60_000)).await;
    assert!(handle.render().contains("ingest_trimmed_reads_total 1"), "{}", handle.render());
}

#[tokio::test]
async fn a_stream_younger_than_its_retention_has_trimmed_nothing() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let canned = Canned::new();
    let young = super::canned::summary(json!({"StreamCreationTimestamp": NOW / 1000 - 3600}));
    canned.on("DescribeStreamSummary", move |_| Answer::Json(young.clone()));
    reader(&canned.open().await, Position::AtTime(NOW - 2 * DAY)).await;
    assert!(!handle.render().contains("ingest_trimmed_reads_total"));
}
