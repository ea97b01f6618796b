//! Reading one shard with GetRecords.

mod pace;

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_kinesis::operation::get_records::{GetRecordsError, GetRecordsOutput};
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{self, ShardIteratorType};
use metrics::counter;
use tokio::time::sleep;

use super::KinesisStream;
use crate::backend::{BackendError, Page, Position, Record, SequenceNumber, ShardId, ShardReader, Stream as _};
use crate::clock::{UnixMillis, millis};

use pace::Pace;

/// The most records that one call may ask for.
const MAX_LIMIT: usize = 10_000;
/// Small pages are cut from a response of about this size, or the calls that a shard allows would not keep up.
const MIN_FETCH_BYTES: usize = 64 * 1024;
/// What a record is taken to weigh before one was seen: many readers may begin at once, and none knows yet.
const FIRST_RECORD_BYTES: usize = 40 * 1024;

/// How long an empty page takes while a reader waits for its start time.
const NOT_YET_WAIT: Duration = Duration::from_millis(500);
/// The clocks of client and service differ by less: the service refuses signatures that are further off.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

pub(super) struct KinesisReader {
    stream: KinesisStream,
    shard: ShardId,
    /// Where a new iterator starts: the original position, then after the last record that was *fetched*. What was
    /// fetched and not yet handed out lies in `fetched`.
    position: Position,
    /// `None`: none was taken yet, or it has expired.
    iterator: Option<String>,
    fetched: VecDeque<Record>,
    /// The arrival of the newest record of the shard when `fetched` was filled, as far as that is known.
    newest_arrival: UnixMillis,
    /// What the last response said.
    millis_behind_latest: i64,
    /// The last response had no next iterator.
    is_exhausted: bool,
    pace: Pace,
    /// What a record weighs, to turn bytes into the number of records to ask for.
    record_bytes: Option<usize>,
}

impl KinesisReader {
    pub(super) async fn open(stream: KinesisStream, shard: ShardId, from: Position) -> Result<Self, BackendError> {
        let mut reader = Self {
            stream,
            shard,
            position: from,
            iterator: None,
            fetched: VecDeque::new(),
            newest_arrival: 0,
            millis_behind_latest: 0,
            is_exhausted: false,
            pace: Pace::new(),
            record_bytes: None,
        };
        reader.iterator = reader.new_iterator().await?;
        Ok(reader)
    }

    /// An iterator at the position; `None` while its time has not come.
    async fn new_iterator(&self) -> Result<Option<String>, BackendError> {
        let request = self.stream.client.get_shard_iterator().shard_id(&self.shard.0);
        let request = request.set_stream_name(self.stream.by_name()).set_stream_arn(self.stream.by_arn());
        let request = match &self.position {
            Position::AtTime(time) if *time > self.stream.clock.now() => return Ok(None),
            Position::AtTime(time) if *time >= 0 => {
                request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(*time))
            }
            Position::TrimHorizon | Position::AtTime(_) => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Position::At(SequenceNumber(number)) => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(number)
            }
            Position::After(SequenceNumber(number)) => {
                request.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(number)
            }
        };
        match request.send().await {
            Ok(answer) if answer.shard_iterator.is_some() => {
                self.tell_of_trimmed_records();
                Ok(answer.shard_iterator)
            }
            Ok(_) => Err(self.stream.unavailable(&format!("no iterator for {}", self.shard))),
            Err(error) => self.without_iterator(&error).await,
        }
    }

    async fn without_iterator(&self, error: &SdkError<GetShardIteratorError>) -> Result<Option<String>, BackendError> {
        let stream = &self.stream;
        match (error.code(), &self.position) {
            (Some("ResourceNotFoundException"), _) => Err(self.missing().await),
            // By the service's clock that time lies in the future, which it refuses.
            (Some("InvalidArgumentException"), Position::AtTime(time))
                if stream.clock.since(*time) < MAX_CLOCK_SKEW =>
            {
                Ok(None)
            }
            (Some("InvalidArgumentException"), Position::At(number) | Position::After(number)) => {
                let message = error.message().unwrap_or("no message");
                Err(BackendError::Misconfigured(format!(
                    "Kinesis stream {}: {} does not know sequence number {number}; was the stream deleted and created \
                     anew? Checkpoints of the old one must be removed ({message})",
                    stream.address, self.shard
                )))
            }
            _ => Err(stream.error(&format!("no iterator for {}", self.shard), error)),
        }
    }

    /// The service starts at the oldest record instead, and does not say so.
    fn tell_of_trimmed_records(&self) {
        if let Position::AtTime(time) = self.position
            && self.stream.has_trimmed(time)
        {
            counter!("ingest_trimmed_reads_total").increment(1);
            let retention_hours = self.stream.retention().as_secs() / 3600;
            tracing::warn!(
                shard = %self.shard, time, retention_hours,
                "reading was to start before the oldest record that the stream still holds; what was unread there is lost"
            );
        }
    }

    /// Why the service does not find the shard.
    async fn missing(&self) -> BackendError {
        match self.stream.shards().await {
            Err(error) => error,
            Ok(shards) if shards.iter().any(|shard| shard.id == self.shard) => {
                self.stream.unavailable(&format!("{} is listed but not found", self.shard))
            }
            Ok(_) => BackendError::Gone(format!("Kinesis stream {} no longer has {}", self.stream.address, self.shard)),
        }
    }

    /// Asks for records once, with an iterator that is renewed once. After an error nothing has changed.
    async fn fetch(&mut self, max_bytes: usize) -> Result<(), BackendError> {
        let mut renewed = false;
        loop {
            let iterator = match &self.iterator {
                Some(iterator) => iterator.clone(),
                None => match self.new_iterator().await? {
                    Some(iterator) => self.iterator.insert(iterator).clone(),
                    None => {
                        sleep(NOT_YET_WAIT).await;
                        return Ok(());
                    }
                },
            };
            self.pace.wait().await;
            match self.get_records(iterator, max_bytes).await {
                Ok(answer) => return self.take(answer).await,
                Err(error) if !renewed && is_about_the_iterator(&error) => {
                    tracing::debug!(shard = %self.shard, %error, "the iterator has expired");
                    renewed = true;
                    self.iterator = None;
                }
                Err(error) if error.code() == Some("ResourceNotFoundException") => return Err(self.missing().await),
                Err(error) => {
                    if is_throttling(&error) {
                        self.pace.throttled();
                    }
                    return Err(self.stream.error(&format!("{} could not be read", self.shard), &error));
                }
            }
        }
    }

    async fn get_records(
        &self,
        iterator: String,
        max_bytes: usize,
    ) -> Result<GetRecordsOutput, SdkError<GetRecordsError>> {
        let limit =
            (max_bytes.max(MIN_FETCH_BYTES) / self.record_bytes.unwrap_or(FIRST_RECORD_BYTES)).clamp(1, MAX_LIMIT);
        let request = self.stream.client.get_records().shard_iterator(iterator).set_stream_arn(self.stream.by_arn());
        let request = request.limit(i32::try_from(limit).unwrap_or(i32::MAX));
        // A retry counts against the shard's five calls a second: the next call is soon enough.
        let config = aws_sdk_kinesis::config::Builder::new().retry_config(RetryConfig::disabled());
        request.customize().config_override(config).send().await
    }

    async fn take(&mut self, answer: GetRecordsOutput) -> Result<(), BackendError> {
        // Taken for the end by mistake, an open shard would never be read again.
        let is_end = answer.next_shard_iterator.is_none();
        if is_end && answer.child_shards().is_empty() && self.is_open().await? {
            return Err(self.stream.unavailable(&format!("no next iterator, although {} is open", self.shard)));
        }
        self.is_exhausted = is_end;
        self.iterator = answer.next_shard_iterator;
        self.millis_behind_latest = answer.millis_behind_latest.unwrap_or(0).max(0);
        self.fetched = answer.records.into_iter().map(record).collect();
        let bytes = self.fetched.iter().map(|record| record.data.len()).sum();
        if let Some(last) = self.fetched.back() {
            self.position = Position::After(last.sequence_number.clone());
            self.newest_arrival = last.arrived_at.saturating_add(self.millis_behind_latest);
            self.learn_record_bytes(bytes);
        }
        self.pace.answered(bytes, self.fetched.is_empty() && self.millis_behind_latest == 0);
        Ok(())
    }

    /// Larger records count at once, because a response may exceed the page; smaller ones by and by.
    fn learn_record_bytes(&mut self, bytes: usize) {
        let mean = bytes.div_ceil(self.fetched.len().max(1)).max(1);
        self.record_bytes = Some(self.record_bytes.map_or(mean, |before| mean.max((3 * before + mean) / 4)));
    }

    async fn is_open(&self) -> Result<bool, BackendError> {
        let shards = self.stream.list().await?;
        Ok(shards.iter().any(|shard| {
            let end = shard.sequence_number_range.as_ref().and_then(|range| range.ending_sequence_number.as_ref());
            shard.shard_id == self.shard.0 && end.is_none()
        }))
    }

    /// Cuts a page from what was fetched.
    fn page(&mut self, max_bytes: usize) -> Page {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = self.fetched.front() {
            bytes += record.data.len();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.extend(self.fetched.pop_front());
        }
        let millis_behind_latest = match records.last() {
            Some(last) if !self.fetched.is_empty() => (self.newest_arrival - last.arrived_at).max(1),
            _ => self.millis_behind_latest,
        };
        Page { records, millis_behind_latest, is_end: self.is_exhausted && self.fetched.is_empty() }
    }
}

#[async_trait]
impl ShardReader for KinesisReader {
    async fn ready(&mut self) {
        if self.fetched.is_empty() && !self.is_exhausted {
            self.pace.ready().await;
        }
    }

    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        if self.fetched.is_empty() && !self.is_exhausted {
            self.fetch(max_bytes).await?;
        }
        Ok(self.page(max_bytes))
    }
}

/// An invalid argument can only be the iterator: the limit is always in range.
fn is_about_the_iterator(error: &SdkError<GetRecordsError>) -> bool {
    matches!(error.code(), Some("ExpiredIteratorException" | "InvalidArgumentException"))
}

fn is_throttling(error: &SdkError<GetRecordsError>) -> bool {
    matches!(
        error.code(),
        Some(
            "ProvisionedThroughputExceededException"
                | "LimitExceededException"
                | "KMSThrottlingException"
                | "ThrottlingException"
        )
    )
}

fn record(record: types::Record) -> Record {
    Record {
        data: record.data.into_inner().into(),
        partition_key: record.partition_key.unwrap_or_default(),
        sequence_number: SequenceNumber(record.sequence_number),
        arrived_at: record.approximate_arrival_timestamp.as_ref().map_or(0, rounded_millis),
    }
}

/// The arrival time of a record that came as JSON without the SDK, in seconds: the same as if a reader had read it.
#[must_use]
pub fn arrival(seconds: f64) -> UnixMillis {
    rounded_millis(&DateTime::from_secs_f64(seconds))
}

/// The time is sent in seconds with decimals, which a float holds only nearly: 1700000000.123 is read as
/// 1700000000.122999906.
fn rounded_millis(time: &DateTime) -> UnixMillis {
    let fraction = Duration::from_nanos(u64::from(time.subsec_nanos()) + 500_000);
    time.secs().saturating_mul(1000).saturating_add(millis(fraction))
}
