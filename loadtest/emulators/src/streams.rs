//! A stream as a test's administrator sees it.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, Shard, StreamStatus};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::configuration;

const POLL: Duration = Duration::from_millis(20);
const STATUS_LIMIT: Duration = Duration::from_secs(60);

/// Limits of one `PutRecords`: <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html>.
const PUT_RECORDS: usize = 500;
const PUT_BYTES: usize = 5_000_000;

/// A stream in the emulator. Every method panics where the emulator refuses, and waits until the stream is active.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its client, for what the methods here leave out.
    pub client: Client,
    /// Its name.
    pub name: String,
}

impl Stream {
    /// Creates a stream with so many shards in the emulator at `url`.
    ///
    /// # Panics
    /// Where the emulator refuses.
    pub async fn create(url: &str, name: &str, shards: i32) -> Self {
        let stream = Self { client: Client::new(&configuration(url)), name: name.to_owned() };
        stream.client.create_stream().stream_name(name).shard_count(shards).send().await.expect("CreateStream");
        stream.wait_until_active().await;
        stream
    }

    /// The ARN.
    ///
    /// # Panics
    /// Where the emulator refuses.
    pub async fn arn(&self) -> String {
        let answer = self.client.describe_stream_summary().stream_name(&self.name).send().await;
        let answer = answer.expect("DescribeStreamSummary");
        answer.stream_description_summary().expect("a summary").stream_arn().to_owned()
    }

    /// Puts records, each with its partition key, in this order for each shard.
    ///
    /// # Panics
    /// Where the emulator refuses a record.
    pub async fn put<K: Into<String>>(&self, records: impl IntoIterator<Item = (K, Bytes)>) {
        self.put_entries(records, None).await;
    }

    /// Puts records into this shard, whatever their partition keys say.
    ///
    /// # Panics
    /// Where the shard is not open, or the emulator refuses a record.
    pub async fn put_to<K: Into<String>>(&self, shard: &str, records: impl IntoIterator<Item = (K, Bytes)>) {
        let shard = self.open_shard(shard).await;
        let range = shard.hash_key_range().expect("a range of hash keys");
        self.put_entries(records, Some(range.starting_hash_key())).await;
    }

    /// Splits an open shard in the middle; answers the children.
    ///
    /// # Panics
    /// Where the shard is not open, or the emulator refuses.
    pub async fn split(&self, shard: &str) -> Vec<String> {
        let parent = self.open_shard(shard).await;
        let range = parent.hash_key_range().expect("a range of hash keys");
        let [start, end] = [range.starting_hash_key(), range.ending_hash_key()]
            .map(|key| key.parse::<u128>().expect("a hash key has 128 bits"));
        let middle = start + (end - start) / 2 + 1;
        let call = self.client.split_shard().stream_name(&self.name).shard_to_split(shard);
        call.new_starting_hash_key(middle.to_string()).send().await.expect("SplitShard");
        self.children(shard).await
    }

    /// Merges two neighbouring open shards; answers the child.
    ///
    /// # Panics
    /// Where the shards are not open neighbours, or the emulator refuses.
    pub async fn merge(&self, shard: &str, adjacent: &str) -> String {
        let call = self.client.merge_shards().stream_name(&self.name);
        call.shard_to_merge(shard).adjacent_shard_to_merge(adjacent).send().await.expect("MergeShards");
        self.children(shard).await.pop().expect("a merged shard has a child")
    }

    /// All shards, those that have ended too.
    ///
    /// # Panics
    /// Where the emulator refuses.
    pub async fn shards(&self) -> Vec<Shard> {
        let mut answer = self.client.list_shards().stream_name(&self.name).send().await.expect("ListShards");
        let mut shards = answer.shards.take().unwrap_or_default();
        while let Some(token) = answer.next_token {
            answer = self.client.list_shards().next_token(token).send().await.expect("ListShards");
            shards.extend(answer.shards.take().unwrap_or_default());
        }
        shards
    }

    /// The ids of the shards that take records.
    ///
    /// # Panics
    /// Where the emulator refuses.
    pub async fn open_shards(&self) -> Vec<String> {
        self.shards().await.into_iter().filter(is_open).map(|shard| shard.shard_id).collect()
    }

    /// Deletes the stream and all that is in it.
    ///
    /// # Panics
    /// Where the emulator refuses.
    pub async fn delete(&self) {
        let call = self.client.delete_stream().stream_name(&self.name).enforce_consumer_deletion(true);
        call.send().await.expect("DeleteStream");
    }

    async fn put_entries<K: Into<String>>(
        &self,
        records: impl IntoIterator<Item = (K, Bytes)>,
        hash_key: Option<&str>,
    ) {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (key, data) in records {
            if entries.len() == PUT_RECORDS || bytes + data.len() > PUT_BYTES {
                self.put_batch(std::mem::take(&mut entries)).await;
                bytes = 0;
            }
            bytes += data.len();
            let entry = PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(data));
            entries.push(entry.set_explicit_hash_key(hash_key.map(str::to_owned)).build().expect("a whole entry"));
        }
        if !entries.is_empty() {
            self.put_batch(entries).await;
        }
    }

    async fn put_batch(&self, entries: Vec<PutRecordsRequestEntry>) {
        let call = self.client.put_records().stream_name(&self.name).set_records(Some(entries));
        let answer = call.send().await.expect("PutRecords");
        let refused = answer.records().iter().find_map(|record| record.error_message());
        assert_eq!(refused, None, "the emulator refused a record");
    }

    async fn children(&self, parent: &str) -> Vec<String> {
        self.wait_until_active().await;
        let shards = self.shards().await.into_iter();
        let children =
            shards.filter(|shard| [shard.parent_shard_id(), shard.adjacent_parent_shard_id()].contains(&Some(parent)));
        children.map(|shard| shard.shard_id).collect()
    }

    async fn open_shard(&self, id: &str) -> Shard {
        let mut open = self.shards().await.into_iter().filter(is_open);
        open.find(|shard| shard.shard_id == id).unwrap_or_else(|| panic!("{id} is no open shard of {}", self.name))
    }

    async fn wait_until_active(&self) {
        let deadline = Instant::now() + STATUS_LIMIT;
        loop {
            let answer = self.client.describe_stream_summary().stream_name(&self.name).send().await;
            let answer = answer.expect("DescribeStreamSummary");
            let status = answer.stream_description_summary().expect("a summary").stream_status().clone();
            if status == StreamStatus::Active {
                return;
            }
            assert!(Instant::now() < deadline, "{} is still {status} after {STATUS_LIMIT:?}", self.name);
            sleep(POLL).await;
        }
    }
}

fn is_open(shard: &Shard) -> bool {
    shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_none())
}
