use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{RecordDistributionStrategy, ShardIteratorType};
use emulators::{CannedKinesis, CannedSettings, CannedShard, configuration};

use crate::{in_time, listens};

/// The SDK cuts where binary fractions of a second are not exact; this one is.
const ARRIVED: i64 = 1_700_000_000_500;

fn shard(records: usize) -> CannedShard {
    CannedShard::new(ARRIVED, (0..records).map(|n| (format!("tenant \"{n}\""), format!("record {n}"))))
}

async fn iterator(client: &Client, shard: &str, kind: ShardIteratorType, after: Option<&str>) -> String {
    let call = client.get_shard_iterator().stream_name("usage").shard_id(shard).shard_iterator_type(kind);
    let call = call.set_starting_sequence_number(after.map(str::to_owned));
    call.send().await.unwrap().shard_iterator.unwrap()
}

async fn page(client: &Client, iterator: &str) -> GetRecordsOutput {
    client.get_records().shard_iterator(iterator).send().await.unwrap()
}

fn data(page: &GetRecordsOutput) -> Vec<&str> {
    page.records().iter().map(|record| std::str::from_utf8(record.data().as_ref()).unwrap()).collect()
}

#[tokio::test]
async fn a_canned_stream_is_read_in_pages_from_any_place() {
    let settings = CannedSettings { page: 2, millis_behind: 5000, record_distribution: None };
    let canned = CannedKinesis::start(vec![shard(3), CannedShard::idle()], settings);
    let client = Client::new(&configuration(&canned.url));
    in_time(async {
        let listed = client.list_shards().stream_name("usage").send().await.unwrap();
        let [full, idle] = listed.shards() else { panic!("{listed:?}") };
        let end = idle.hash_key_range().unwrap().ending_hash_key().to_owned();
        assert_eq!(end, u128::MAX.to_string());

        let start = iterator(&client, full.shard_id(), ShardIteratorType::TrimHorizon, None).await;
        let first = page(&client, &start).await;
        assert_eq!((data(&first), first.millis_behind_latest()), (vec!["record 0", "record 1"], Some(5000)));
        let record = &first.records()[1];
        assert_eq!(record.partition_key(), Some("tenant \"1\""));
        assert_eq!(record.approximate_arrival_timestamp(), Some(&DateTime::from_millis(ARRIVED)));
        let last = page(&client, first.next_shard_iterator().unwrap()).await;
        assert_eq!((data(&last), last.millis_behind_latest()), (vec!["record 2"], Some(0)));
        let none = page(&client, last.next_shard_iterator().unwrap()).await;
        assert_eq!((data(&none), none.millis_behind_latest()), (vec![], Some(0)));
        assert!(none.next_shard_iterator().is_some(), "the shard stays open");

        let number = first.records()[0].sequence_number();
        assert!(number < record.sequence_number() && number.len() == 56);
        let resumed = ShardIteratorType::AfterSequenceNumber;
        let resumed = iterator(&client, full.shard_id(), resumed, Some(number)).await;
        assert_eq!(data(&page(&client, &resumed).await), ["record 1", "record 2"]);
        for (shift, expected) in [(-1, 2), (0, 2), (1, 0)] {
            let call = client.get_shard_iterator().stream_name("usage").shard_id(full.shard_id());
            let call = call.shard_iterator_type(ShardIteratorType::AtTimestamp);
            let at = call.timestamp(DateTime::from_millis(ARRIVED + shift)).send().await.unwrap();
            assert_eq!(page(&client, at.shard_iterator().unwrap()).await.records().len(), expected, "{shift}");
        }
        let latest = iterator(&client, full.shard_id(), ShardIteratorType::Latest, None).await;
        assert!(page(&client, &latest).await.records().is_empty());
        let empty = iterator(&client, idle.shard_id(), ShardIteratorType::TrimHorizon, None).await;
        assert!(page(&client, &empty).await.records().is_empty());

        assert_eq!((canned.reads(), canned.records()), (9, 9));
        assert!(canned.cpu_time().await > Duration::ZERO);
        let error = client.create_stream().stream_name("usage").send().await.unwrap_err();
        assert_eq!(error.code(), Some("UnknownOperationException"));
    })
    .await;

    let url = canned.url.clone();
    drop(canned);
    assert!(!listens(&url));
}

/// 10 MB and 10,000 records are Kinesis's limits for a page.
#[tokio::test]
async fn canned_pages_keep_to_the_limits() {
    let large = vec![b'x'; 1 << 20];
    let shards = vec![CannedShard::new(ARRIVED, (0..12).map(|_| ("tenant", &large))), shard(10_001)];
    let settings = CannedSettings { record_distribution: Some("AUTO"), ..CannedSettings::default() };
    let canned = CannedKinesis::start(shards, settings);
    let client = Client::new(&configuration(&canned.url));
    in_time(async {
        for (shard, expected) in [("shardId-000000000000", [9, 3]), ("shardId-000000000001", [10_000, 1])] {
            let mut next = iterator(&client, shard, ShardIteratorType::TrimHorizon, None).await;
            for expected in expected {
                let page = page(&client, &next).await;
                assert_eq!(page.records().len(), expected);
                next = page.next_shard_iterator.unwrap();
            }
        }
        let summary = client.describe_stream_summary().stream_name("usage").send().await.unwrap();
        let summary = summary.stream_description_summary().unwrap();
        assert_eq!(summary.record_distribution_strategy(), Some(&RecordDistributionStrategy::Auto));
        assert_eq!(summary.open_shard_count(), 2);
    })
    .await;
}
