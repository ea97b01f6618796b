//! Kinesis Data Streams as a [`Stream`].
//!
//! One reader polls each shard; there is no enhanced fan-out. Reading and publishing keep to the limits of
//! <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>.

mod name;
mod publish;
mod reader;

use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::types::{self, RecordDistributionStrategy, StreamDescriptionSummary, StreamStatus};
use tokio::time::Instant;

pub use name::StreamName;
pub use publish::{Answer, Writer};
use reader::KinesisReader;
pub use reader::arrival;

use super::{BackendError, NewRecord, Position, Shard, ShardId, ShardReader, Stream, aws};
use crate::clock::{Clock, UnixMillis, millis};

/// Retention and placement of records can be changed at any time: they are asked for again after this long.
const DESCRIPTION_LIFETIME: Duration = Duration::from_secs(600);

/// A list that changes while it is paged through is begun anew this many times.
const LIST_RESTARTS: usize = 3;

/// The Kinesis end of [`Stream`]. Cheap to clone.
#[derive(Clone)]
pub struct KinesisStream {
    client: Client,
    /// As it was given: a stream that was named by its ARN may be in another account.
    address: StreamName,
    arn: Arc<str>,
    region: Arc<str>,
    description: Arc<Mutex<Description>>,
    clock: Clock,
}

#[derive(Clone, Copy)]
struct Description {
    retention: Duration,
    created_at: UnixMillis,
    described_at: Instant,
}

impl KinesisStream {
    /// Looks for the stream. An ARN's region goes before the one of `config`.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] when the name is malformed, there is no such stream, permission is missing, it
    /// is being deleted, or the service places its records: copies of an event would reach several shards, while
    /// deduplication is per shard. [`BackendError::Unavailable`] when the service does not answer, or the stream is
    /// still being created.
    pub async fn open(config: &SdkConfig, name_or_arn: &str) -> Result<Self, BackendError> {
        let address: StreamName = name_or_arn.parse()?;
        let (client, region) = client(config, &address);
        let summary = describe(&client, &address, &region).await?;
        let arn = summary.stream_arn.as_str().into();
        let description = Arc::new(Mutex::new(Description::of(&summary)));
        Ok(Self { client, address, arn, region, description, clock: Clock::system() })
    }

    /// Judges times by `clock` instead of the operating system's.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The stream's name, without the rest of its ARN.
    #[must_use]
    pub fn name(&self) -> &str {
        self.address.name()
    }

    /// The stream's ARN.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// The region that is asked.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// How long the stream keeps a record, as it was when last asked (some minutes ago at most, while
    /// [`shards`](Stream::shards) is called).
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.description().retention
    }

    fn description(&self) -> Description {
        *self.description.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refresh_description(&self) -> Result<(), BackendError> {
        if self.description().described_at.elapsed() < DESCRIPTION_LIFETIME {
            return Ok(());
        }
        match describe(&self.client, &self.address, &self.region).await {
            Ok(summary) => {
                *self.description.lock().unwrap_or_else(PoisonError::into_inner) = Description::of(&summary);
                Ok(())
            }
            Err(error @ BackendError::Misconfigured(_)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the stream's description is not refreshed");
                Ok(())
            }
        }
    }

    /// Tells the stream from all others, also from an earlier one of the same name: its ARN, and when it was created.
    #[must_use]
    pub fn identity(&self) -> String {
        let created_at = self.description().created_at;
        let created_at = jiff::Timestamp::from_millisecond(created_at).unwrap_or_default();
        format!("{} created at {created_at}", self.arn())
    }

    /// Whether records from `time` on may have been forgotten by now.
    fn has_trimmed(&self, time: UnixMillis) -> bool {
        let Description { retention, created_at, .. } = self.description();
        let horizon = self.clock.now() - millis(retention);
        time < horizon && created_at < horizon
    }

    /// All shards as the service tells of them.
    async fn list(&self) -> Result<Vec<types::Shard>, BackendError> {
        let (mut shards, mut token, mut restarts) = (Vec::new(), None, 0);
        loop {
            let request = self.client.list_shards();
            // A token stands for the stream; together with a name it is refused.
            let request = match &token {
                Some(token) => request.next_token(token),
                None => request.set_stream_name(self.by_name()).set_stream_arn(self.by_arn()),
            };
            match request.send().await {
                Ok(page) => {
                    shards.extend(page.shards.unwrap_or_default());
                    if page.next_token.is_none() {
                        return Ok(shards);
                    }
                    if page.next_token == token {
                        return Err(self.unavailable("the list of its shards does not go on"));
                    }
                    token = page.next_token;
                }
                Err(error) if error.code() == Some("ExpiredNextTokenException") && restarts < LIST_RESTARTS => {
                    restarts += 1;
                    shards.clear();
                    token = None;
                }
                Err(error) => return Err(self.error("its shards could not be listed", &error)),
            }
        }
    }

    fn shard(&self, shard: types::Shard) -> Result<Shard, BackendError> {
        let Some(hashes) = shard.hash_key_range.as_ref().and_then(hashes) else {
            return Err(self.unavailable(&format!("{} has no hash range that can be read", shard.shard_id)));
        };
        let parents = [shard.parent_shard_id, shard.adjacent_parent_shard_id];
        Ok(Shard { id: ShardId(shard.shard_id), parents: parents.into_iter().flatten().map(ShardId).collect(), hashes })
    }

    fn by_name(&self) -> Option<String> {
        self.address.arn().is_none().then(|| self.address.name().to_owned())
    }

    fn by_arn(&self) -> Option<String> {
        self.address.arn().map(str::to_owned)
    }

    /// The stream itself not being found is told apart; callers that ask for a shard look at that code first.
    fn error<E, R>(&self, what: &str, error: &SdkError<E, R>) -> BackendError
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: fmt::Debug + 'static,
    {
        error_of(&self.address, &self.region, what, error)
    }

    fn unavailable(&self, what: &str) -> BackendError {
        BackendError::Unavailable(format!("Kinesis stream {}: {what}", self.address))
    }
}

#[async_trait]
impl Stream for KinesisStream {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.refresh_description().await?;
        self.list().await?.into_iter().map(|shard| self.shard(shard)).collect()
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        Ok(Box::new(KinesisReader::open(self.clone(), shard.clone(), from).await?))
    }

    /// The service refuses single records of a call, those of a busy shard first. They are sent again, so records of
    /// one key that were published together change places when only some of them were refused. A record may be
    /// stored twice when an answer was lost and the SDK repeated the call.
    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        self.put(records).await
    }

    fn retention(&self) -> Option<Duration> {
        Some(self.description().retention)
    }
}

impl fmt::Debug for KinesisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KinesisStream").field("arn", &self.arn).finish_non_exhaustive()
    }
}

impl Description {
    fn of(summary: &StreamDescriptionSummary) -> Self {
        let hours = u64::try_from(summary.retention_period_hours).unwrap_or(0);
        let created_at = summary.stream_creation_timestamp.to_millis().unwrap_or(0);
        Self { retention: Duration::from_secs(3600 * hours), created_at, described_at: Instant::now() }
    }
}

/// A client for the stream, and the region that it asks: the ARN's before the one of `config`.
fn client(config: &SdkConfig, address: &StreamName) -> (Client, Arc<str>) {
    let mut config = aws_sdk_kinesis::config::Builder::from(config);
    if let Some(region) = address.region() {
        config = config.region(Region::new(region.to_owned()));
    }
    let client = Client::from_conf(config.build());
    let region = client.config().region().map_or("unknown region", Region::as_ref).into();
    (client, region)
}

/// Describes the stream, and refuses one that cannot be worked with.
async fn describe(
    client: &Client,
    address: &StreamName,
    region: &str,
) -> Result<StreamDescriptionSummary, BackendError> {
    let request = match address.arn() {
        Some(arn) => client.describe_stream_summary().stream_arn(arn),
        None => client.describe_stream_summary().stream_name(address.name()),
    };
    let answer =
        request.send().await.map_err(|error| error_of(address, region, "it could not be described", &error))?;
    let Some(summary) = answer.stream_description_summary else {
        return Err(BackendError::Unavailable(format!("Kinesis stream {address}: its description is missing")));
    };
    match summary.stream_status {
        StreamStatus::Creating => {
            return Err(BackendError::Unavailable(format!("Kinesis stream {address} is still being created")));
        }
        StreamStatus::Deleting => {
            return Err(BackendError::Misconfigured(format!("Kinesis stream {address} is being deleted")));
        }
        _ => {}
    }
    match &summary.record_distribution_strategy {
        None | Some(RecordDistributionStrategy::UserPartitionKey) => Ok(summary),
        Some(strategy) => Err(BackendError::Misconfigured(format!(
            "Kinesis stream {address} distributes records by {strategy}: copies of one event would reach several \
             shards, and deduplication is per shard; set its record distribution strategy to USER_PARTITION_KEY"
        ))),
    }
}

fn error_of<E, R>(address: &StreamName, region: &str, what: &str, error: &SdkError<E, R>) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
    R: fmt::Debug + 'static,
{
    if error.code() == Some("ResourceNotFoundException") {
        return BackendError::Misconfigured(format!("Kinesis stream {address} does not exist in {region}"));
    }
    aws::error(&format!("Kinesis stream {address}: {what}"), error)
}

fn hashes(range: &types::HashKeyRange) -> Option<RangeInclusive<u128>> {
    Some(range.starting_hash_key.parse().ok()?..=range.ending_hash_key.parse().ok()?)
}
