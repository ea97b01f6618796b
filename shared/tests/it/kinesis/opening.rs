//! Finding the stream and its shards.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use shared::backend::kinesis::KinesisStream;
use shared::backend::{BackendError, NewRecord, Position, ShardId, Stream as _};

use super::canned::{ARN, Answer, Canned, SHARD, records, shard, summary};

async fn open_error(canned: &Canned, name: &str) -> BackendError {
    KinesisStream::open(&canned.config(), name).await.unwrap_err()
}

#[tokio::test]
async fn tells_name_arn_region_and_retention() {
    let stream = Canned::new().open().await;
    assert_eq!((stream.name(), stream.arn(), stream.region()), ("events", ARN, "us-east-1"));
    assert_eq!(stream.retention(), Duration::from_secs(24 * 3600));
}

/// Calls every operation.
async fn use_it(stream: &KinesisStream) {
    let shard = stream.shards().await.unwrap().remove(0).id;
    stream.reader(&shard, Position::TrimHorizon).await.unwrap().next(1).await.unwrap();
    let record = NewRecord { partition_key: "tenant".to_owned(), data: Bytes::from_static(b"x") };
    stream.publish(vec![record]).await.unwrap();
}

#[tokio::test]
async fn a_stream_is_addressed_as_it_was_named() {
    let canned = Canned::new();
    canned.on("GetRecords", |_| records(vec![], Some("next"), 0));
    canned.on("PutRecords", |_| Answer::Json(json!({"Records": [{"SequenceNumber": "1", "ShardId": SHARD}]})));
    use_it(&canned.open().await).await;
    let arn = "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/events";
    let stream = KinesisStream::open(&canned.config(), arn).await.unwrap();
    use_it(&stream).await;
    assert_eq!((stream.name(), stream.region()), ("events", "cn-north-1"), "the ARN's region goes first");
    for operation in ["DescribeStreamSummary", "ListShards", "GetShardIterator", "GetRecords", "PutRecords"] {
        let calls = canned.calls(operation);
        // An iterator belongs to its stream already.
        assert!(calls[0].body["StreamName"] == "events" || operation == "GetRecords");
        assert!(calls[0].body["StreamARN"].is_null() && calls[1].body["StreamName"].is_null());
        assert!(calls[0].host.contains("us-east-1.amazonaws.com"), "{}", calls[0].host);
        assert_eq!(calls[1].body["StreamARN"], arn);
        assert!(calls[1].host.contains("cn-north-1.amazonaws.com.cn"), "{}", calls[1].host);
    }
}

#[tokio::test]
async fn a_stream_with_service_managed_placement_is_refused_because_deduplication_is_per_shard() {
    let canned = Canned::new();
    canned.on("DescribeStreamSummary", |_| Answer::Json(summary(json!({"RecordDistributionStrategy": "AUTO"}))));
    let error = open_error(&canned, "events").await;
    assert!(matches!(error, BackendError::Misconfigured(_)));
    assert!(error.to_string().contains("AUTO") && error.to_string().contains("per shard"), "{error}");

    let by_key = summary(json!({"RecordDistributionStrategy": "USER_PARTITION_KEY"}));
    canned.on("DescribeStreamSummary", move |_| Answer::Json(by_key.clone()));
    canned.open().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_of_retention_or_placement_is_noticed_while_running() {
    let canned = Canned::new();
    let changed = |changes: Value| Answer::Json(summary(changes));
    canned.plan(
        "DescribeStreamSummary",
        vec![
            changed(json!({})),
            changed(json!({"RetentionPeriodHours": 48})),
            changed(json!({"RecordDistributionStrategy": "AUTO"})),
        ],
    );
    let stream = canned.open().await;
    stream.shards().await.unwrap();
    assert_eq!(stream.retention(), Duration::from_secs(24 * 3600));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stream.shards().await.unwrap();
    assert_eq!(stream.retention(), Duration::from_secs(48 * 3600));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(matches!(stream.shards().await, Err(BackendError::Misconfigured(_))));
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_in_one_clear_line() {
    for (answer, is_misconfigured, says) in [
        (Answer::Error("ResourceNotFoundException"), true, "events does not exist in us-east-1"),
        (Answer::Error("AccessDeniedException"), true, "AccessDeniedException"),
        (Answer::Error("LimitExceededException"), false, "LimitExceededException"),
        (Answer::Json(summary(json!({"StreamStatus": "DELETING"}))), true, "being deleted"),
        (Answer::Json(summary(json!({"StreamStatus": "CREATING"}))), false, "still being created"),
    ] {
        let canned = Canned::new();
        let mut answers = vec![answer];
        canned.on("DescribeStreamSummary", move |_| answers.pop().unwrap_or(Answer::Error("LimitExceededException")));
        let error = open_error(&canned, "events").await;
        assert_eq!(matches!(error, BackendError::Misconfigured(_)), is_misconfigured, "{error}");
        assert_eq!(matches!(error, BackendError::Unavailable(_)), !is_misconfigured, "{error}");
        let line = error.to_string();
        assert!(line.contains(says) && line.contains("events") && !line.contains('\n'), "{line}");
    }
    assert!(matches!(open_error(&Canned::new(), "no such:name").await, BackendError::Misconfigured(_)));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_answer_is_unavailable() {
    let canned = Canned::new();
    canned.on("DescribeStreamSummary", |_| Answer::Silence);
    assert!(matches!(open_error(&canned, "events").await, BackendError::Unavailable(_)));
}

/// 2,500 shards on three pages.
fn page_of(body: &Value) -> Value {
    let page: usize = body["NextToken"].as_str().map_or(0, |token| token.trim_start_matches("page-").parse().unwrap());
    let numbers = page * 1000..(page * 1000 + 1000).min(2500);
    let shards: Vec<_> = numbers.map(|n| shard(&format!("shardId-{n:012}"), None)).collect();
    let mut answer = json!({"Shards": shards});
    if page < 2 {
        answer["NextToken"] = format!("page-{}", page + 1).into();
    }
    answer
}

#[tokio::test]
async fn more_than_a_thousand_shards_are_listed_page_by_page() {
    let canned = Canned::new();
    canned.on("ListShards", |body| Answer::Json(page_of(body)));
    let shards = canned.open().await.shards().await.unwrap();
    let expected: Vec<_> = (0..2500).map(|n| ShardId(format!("shardId-{n:012}"))).collect();
    assert_eq!(shards.into_iter().map(|shard| shard.id).collect::<Vec<_>>(), expected);
    let bodies: Vec<_> = canned.calls("ListShards").into_iter().map(|call| call.body).collect();
    let next = |token| json!({"NextToken": token});
    assert_eq!(bodies, [json!({"StreamName": "events"}), next("page-1"), next("page-2")], "a token goes alone");
}

#[tokio::test]
async fn an_expired_next_token_starts_the_list_anew() {
    let canned = Canned::new();
    let mut expirations = 1;
    canned.on("ListShards", move |body| {
        if body["NextToken"] == "page-2" && expirations > 0 {
            expirations -= 1;
            return Answer::Error("ExpiredNextTokenException");
        }
        Answer::Json(page_of(body))
    });
    assert_eq!(canned.open().await.shards().await.unwrap().len(), 2500, "none twice");
    assert_eq!(canned.calls("ListShards").len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_never_ends_is_given_up() {
    for answer in [|| Answer::Error("ExpiredNextTokenException"), || Answer::Json(json!({"NextToken": "again"}))] {
        let canned = Canned::new();
        canned.on("ListShards", move |_| answer());
        assert!(matches!(canned.open().await.shards().await, Err(BackendError::Unavailable(_))));
    }
}

#[tokio::test]
async fn a_merged_shard_has_two_parents_and_a_split_one_its_range() {
    let canned = Canned::new();
    let mut merged = shard("merged", None);
    merged["ParentShardId"] = SHARD.into();
    merged["AdjacentParentShardId"] = "other".into();
    merged["HashKeyRange"] = json!({"StartingHashKey": "5", "EndingHashKey": (u128::MAX - 5).to_string()});
    canned.on("ListShards", move |_| Answer::Json(json!({"Shards": [shard(SHARD, Some("9")), merged]})));
    let shards = canned.open().await.shards().await.unwrap();
    assert_eq!((shards[0].parents.as_slice(), &shards[0].hashes), (&[][..], &(0..=u128::MAX)));
    assert_eq!(shards[1].parents, [ShardId(SHARD.to_owned()), ShardId("other".to_owned())]);
    assert_eq!(shards[1].hashes, 5..=u128::MAX - 5);
}
