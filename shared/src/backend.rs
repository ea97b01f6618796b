//! The seams between the services and where their data lives.
//!
//! | trait | on AWS | on one machine |
//! |---|---|---|
//! | [`Stream`] | [`kinesis::KinesisStream`] | [`local::LocalStore`] |
//! | [`Leases`] | [`dynamodb::DynamoLeases`] | [`local::LocalStore`] |
//! | [`DeadLetters`] | [`sqs::SqsDeadLetters`] | [`local::LocalStore`] |
//!
//! Every implementation keeps the obligations written here; the contract suite in `tests/it/contract.rs` checks them.

pub mod aws;
pub mod dynamodb;
pub mod kinesis;
pub mod local;
pub mod sqs;

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::clock::UnixMillis;
use crate::dead_letter::DeadLetter;

/// The name of one shard of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub String);

/// A shard of a stream, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub id: ShardId,
    /// The shards whose records went on in this one: one after a split, two after a merge, none for a first shard.
    /// A parent may no longer be in the stream.
    pub parents: Vec<ShardId>,
    /// It takes records whose partition key has its [`hash`] in here.
    pub hashes: RangeInclusive<u128>,
}

/// A partition key's place in the hash space of a stream: its MD5, as in Kinesis.
#[must_use]
pub fn hash(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

/// The name under which one worker holds leases; unique per process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub String);

/// A record's place in its shard: decimal digits, up to 129 of them, so it is kept as text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SequenceNumber(pub String);

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SequenceNumber {
    /// Numeric order: a longer number is larger, equal lengths compare as text (there are no leading zeros).
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

macro_rules! display_inner {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
display_inner!(ShardId, WorkerId, SequenceNumber);

/// A record as it lies in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The payload, byte for byte as it was published.
    pub data: Bytes,
    /// Decides the shard; all copies of one event share it.
    pub partition_key: String,
    /// Unique in its shard and ascending in reading order.
    pub sequence_number: SequenceNumber,
    /// When the record entered the stream (approximate on Kinesis).
    pub arrived_at: UnixMillis,
}

/// A record to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// Decides the shard.
    pub partition_key: String,
    /// The payload.
    pub data: Bytes,
}

/// Where a reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// The oldest record that the stream still holds.
    TrimHorizon,
    /// The first record that arrived at or after this time.
    AtTime(UnixMillis),
    /// This very record.
    At(SequenceNumber),
    /// The record that follows this one.
    After(SequenceNumber),
}

/// What one read returned.
#[derive(Debug, Default)]
pub struct Page {
    /// Records in shard order; empty where nothing new had arrived.
    pub records: Vec<Record>,
    /// How far this page lies behind the newest record of the shard, in milliseconds; 0 at the tip.
    pub millis_behind_latest: i64,
    /// The shard was split or merged, and this page is its last one: records go on in its children.
    pub is_end: bool,
}

/// Why a seam could not do its work.
///
/// Callers retry [`Unavailable`](Self::Unavailable) for ever, with backoff: an outage stalls, it never drops.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The other side is down, throttling or slow, or its disk failed; the same call may work later.
    #[error("{0}")]
    Unavailable(String),
    /// The store has reached its size limit or its disk is full; nothing of the call was stored.
    #[error("{0}")]
    Full(String),
    /// The stream no longer has this shard: it ended, and its retention has passed.
    #[error("{0}")]
    Gone(String),
    /// It will never work like this: wrong name, no permission, a foreign schema.
    #[error("{0}")]
    Misconfigured(String),
}

/// A sharded, ordered, durable log.
#[async_trait]
pub trait Stream: Send + Sync {
    /// All shards that hold or may still receive records, open or closed.
    async fn shards(&self) -> Result<Vec<Shard>, BackendError>;

    /// Opens a reader. It is not a subscription: it reads when [`ShardReader::next`] is called.
    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError>;

    /// Stores the records durably before it returns `Ok`, all of them; each shard keeps their order, but for records that
    /// the service refuses at first while it takes others of the call.
    ///
    /// After an error, some may have been stored: a caller that repeats the call may publish them twice.
    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError>;

    /// How long the stream keeps records whatever becomes of them, as it was when last asked; `None` for one that keeps
    /// what is not settled.
    fn retention(&self) -> Option<Duration> {
        None
    }
}

/// Reads one shard in order.
#[async_trait]
pub trait ShardReader: Send {
    /// Waits until the service would take the next read. A caller that must reserve something for a page waits here
    /// first, or idle shards would hold what others need. Cancel-safe; [`next`](Self::next) does not rely on it.
    async fn ready(&mut self) {}

    /// The next records, at most about `max_bytes` of payload (always one record where there is one).
    ///
    /// Waits a short while (under a second) for new records at the tip, then returns an empty page. After an error
    /// the next call continues where the last page ended: no record is skipped. Not cancel-safe: a dropped call may
    /// have taken a page with it. After the page that [is the end](Page::is_end) it is not called again.
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError>;
}

/// How far a shard is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// Nothing is settled yet: start here.
    Start(Position),
    /// Every record up to and including this one is settled.
    Settled {
        /// The last settled record.
        sequence_number: SequenceNumber,
        /// When that record arrived; the rebuild of the dedup window starts from it.
        arrived_at: UnixMillis,
    },
    /// An operator wants everything to be processed again from the first record that arrived at this time or later.
    /// What lies before was settled.
    Rewound(UnixMillis),
    /// The shard has ended and all its records are settled.
    Ended,
}

impl fmt::Display for Checkpoint {
    /// For logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(Position::TrimHorizon) => f.write_str("trim-horizon"),
            Self::Start(Position::AtTime(time)) => write!(f, "at time {time}"),
            Self::Start(Position::At(number)) => write!(f, "at {number}"),
            Self::Start(Position::After(number)) | Self::Settled { sequence_number: number, .. } => {
                write!(f, "after {number}")
            }
            Self::Rewound(time) => write!(f, "rewound to time {time}"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

/// A worker's claim on a shard, with the shard's checkpoint: one row, changed only by conditional writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The shard that is leased.
    pub shard: ShardId,
    /// Who holds it; `None`: free.
    pub owner: Option<WorkerId>,
    /// Grows with every write, so a stale writer is found out.
    pub counter: u64,
    /// How far the shard is settled.
    pub checkpoint: Checkpoint,
    /// The parents of the shard, as they were when the row was made.
    pub parents: Vec<ShardId>,
    /// The worker that has asked the owner to hand the lease over; until it claims it, or another does.
    pub wanted_by: Option<WorkerId>,
}

/// The table of leases.
///
/// Writes answer `Ok(None)` when the row is no longer as the caller saw it: the lease was lost, or is someone else's.
/// A write that landed although its answer was lost must be recognised on retry, not reported as a loss.
#[async_trait]
pub trait Leases: Send + Sync {
    /// All leases.
    async fn list(&self) -> Result<Vec<Lease>, BackendError>;

    /// Adds a free lease unless the shard has one.
    async fn create(&self, shard: &Shard, checkpoint: Checkpoint) -> Result<(), BackendError>;

    /// Makes `owner` the owner if the row still has `lease.counter`; answers the row as it is then.
    async fn claim(&self, lease: &Lease, owner: &WorkerId) -> Result<Option<Lease>, BackendError>;

    /// Shows that the owner lives, and stores `lease.checkpoint` as it is in the caller's copy, if the row still has
    /// `lease.owner` and `lease.counter`; answers the row as it is then, with the wishes of other workers.
    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, BackendError>;

    /// Gives the lease up if `lease.owner` still has it, storing `lease.checkpoint` with it. A wish stays.
    async fn release(&self, lease: &Lease) -> Result<(), BackendError>;

    /// Notes that `worker` wants the lease, if `lease.owner` still has it. The counter stays: the owner alone moves it.
    async fn ask(&self, lease: &Lease, worker: &WorkerId) -> Result<(), BackendError>;

    /// Takes the lease away from its owner, if it has one, and stores `checkpoint`, also an earlier one, if the row still
    /// has `lease.counter`; answers the row as it is then. The owner finds out at its next renewal.
    async fn reset(&self, lease: &Lease, checkpoint: Checkpoint) -> Result<Option<Lease>, BackendError>;

    /// Removes the row if it still has `lease.counter`.
    async fn forget(&self, lease: &Lease) -> Result<(), BackendError>;
}

/// A dead letter that was received, and the handle that deletes or releases it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Passed to [`DeadLetters::delete`] or [`DeadLetters::release`]; good until the letter becomes visible again.
    pub receipt: String,
    /// The letter.
    pub letter: DeadLetter,
}

/// The queue of records that could not be delivered.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// What an operator calls the queue, and repeats before it is emptied: the queue's name in SQS, `local` for the store
    /// of one machine.
    fn name(&self) -> &str;

    /// Stores all letters durably before it returns `Ok`. After an error some may be stored; a repeated call may
    /// store them twice, which is why a redrive is idempotent in effect.
    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError>;

    /// Takes up to `max` visible letters and hides them from other receivers for a minute. Order is not promised.
    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError>;

    /// Removes letters for good; an unknown receipt is ignored.
    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError>;

    /// Shows received letters to receivers again at once, these too. An unknown or outdated receipt is ignored. After an
    /// error some stay hidden, for the rest of their minute.
    async fn release(&self, receipts: &[String]) -> Result<(), BackendError>;

    /// How many letters are stored, hidden ones included (approximate on SQS).
    async fn depth(&self) -> Result<u64, BackendError>;
}
