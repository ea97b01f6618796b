//! Kinesis: the contract and resharding on an emulator, and each trap on a canned service.

mod canned;
mod opening;
mod publishing;
mod reading;
mod resuming;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use bytes::Bytes;
use shared::backend::kinesis::KinesisStream;
use shared::backend::{NewRecord, Position, Record, Shard, Stream, hash};
use tokio::time::{Instant, sleep, timeout};

use crate::contract::{read_shard, stream_contract};

const PATIENCE: Duration = Duration::from_secs(20);

/// An emulator, with a stream `events` of `shards` shards.
struct Emulated {
    client: Client,
    stream: KinesisStream,
    _kinesis: emulators::Kinesis,
}

impl Emulated {
    async fn start(suite: &str, shards: i32) -> Option<Self> {
        let kinesis = match emulators::Kinesis::start().await {
            Ok(kinesis) => kinesis,
            Err(reason) => {
                emulators::skip(suite, &reason);
                return None;
            }
        };
        let config = emulators::configuration(&kinesis.url);
        let client = Client::new(&config);
        client.create_stream().stream_name("events").shard_count(shards).send().await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match KinesisStream::open(&config, "events").await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            sleep(Duration::from_millis(100)).await;
        };
        Some(Self { client, stream, _kinesis: kinesis })
    }

    /// The shards, once there are `count`.
    async fn shards(&self, count: usize) -> Vec<Shard> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shards = self.stream.shards().await.unwrap();
            if shards.len() == count {
                return shards;
            }
            assert!(Instant::now() < deadline, "{shards:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Everything that `shard` holds, which must come to its end.
    async fn read_to_the_end(&self, shard: &Shard) -> Vec<Record> {
        let mut reader = self.stream.reader(&shard.id, Position::TrimHorizon).await.unwrap();
        let mut records = Vec::new();
        timeout(PATIENCE, async {
            loop {
                let page = reader.next(1 << 20).await.unwrap();
                records.extend(page.records);
                if page.is_end {
                    return records;
                }
            }
        })
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract() {
    let Some(emulated) = Emulated::start("kinesis-contract", 3).await else { return };
    stream_contract(&emulated.stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_stay_readable_across_a_split_and_a_merge() {
    let Some(emulated) = Emulated::start("kinesis-resharding", 1).await else { return };
    let (stream, client) = (&emulated.stream, &emulated.client);
    stream.publish(records("before", 40)).await.unwrap();
    let root = emulated.shards(1).await.remove(0);

    let middle = (u128::MAX / 2 + 1).to_string();
    let split = client.split_shard().stream_name("events").shard_to_split(&root.id.0).new_starting_hash_key(middle);
    split.send().await.unwrap();
    let halves: Vec<_> = emulated.shards(3).await.into_iter().filter(|shard| shard.id != root.id).collect();
    assert!(halves.iter().all(|shard| shard.parents == [root.id.clone()]), "{halves:?}");
    let ranges: HashSet<_> = halves.iter().map(|shard| shard.hashes.clone()).collect();
    assert_eq!(ranges, HashSet::from([0..=u128::MAX / 2, u128::MAX / 2 + 1..=u128::MAX]));
    stream.publish(records("between", 40)).await.unwrap();

    let merge = client.merge_shards().stream_name("events");
    merge.shard_to_merge(&halves[0].id.0).adjacent_shard_to_merge(&halves[1].id.0).send().await.unwrap();
    let known: HashSet<_> = [&root].into_iter().chain(&halves).map(|shard| shard.id.clone()).collect();
    let merged = emulated.shards(4).await.into_iter().find(|shard| !known.contains(&shard.id)).unwrap();
    let parents: HashSet<_> = merged.parents.iter().cloned().collect();
    assert_eq!(parents, halves.iter().map(|shard| shard.id.clone()).collect(), "both halves");
    assert_eq!(merged.hashes, 0..=u128::MAX);
    stream.publish(records("after", 40)).await.unwrap();

    assert_eq!(payloads(&emulated.read_to_the_end(&root).await), expected("before", |_| true));
    for half in &halves {
        let records = emulated.read_to_the_end(half).await;
        assert_eq!(payloads(&records), expected("between", |key| half.hashes.contains(&hash(key))));
    }
    let records = read_shard(stream, &merged.id, Position::TrimHorizon, 40).await;
    assert_eq!(payloads(&records), expected("after", |_| true));
}

fn records(name: &str, count: usize) -> Vec<NewRecord> {
    let data = |n| Bytes::from(format!("{name} {n}"));
    (0..count).map(|n| NewRecord { partition_key: format!("tenant {}", n % 7), data: data(n) }).collect()
}

fn expected(name: &str, belongs: impl Fn(&str) -> bool) -> BTreeMap<String, Vec<Bytes>> {
    let mut expected: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
    for record in records(name, 40).into_iter().filter(|record| belongs(&record.partition_key)) {
        expected.entry(record.partition_key).or_default().push(record.data);
    }
    expected
}

/// By key, because only its own order is kept.
fn payloads(records: &[Record]) -> BTreeMap<String, Vec<Bytes>> {
    let mut payloads: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
    for record in records {
        payloads.entry(record.partition_key.clone()).or_default().push(record.data.clone());
    }
    payloads
}
