//! The row of a lease: the layout of the Kinesis Client Library 2 and 3, with some attributes of ours.
//!
//! | attribute | type | |
//! |---|---|---|
//! | `leaseKey` | S | the shard |
//! | `leaseOwner` | S | the worker; absent where the lease is free |
//! | `leaseCounter` | N | |
//! | `ownerSwitchesSinceCheckpoint` | N | a number that grows tells of a shard that nobody gets on with |
//! | `checkpoint` | S | a sequence number, `TRIM_HORIZON`, `AT_TIMESTAMP`, `SHARD_END`; in KCL rows also `LATEST` |
//! | `checkpointSubSequenceNumber` | N | 0; more only where the KCL stopped within an aggregated record |
//! | `parentShardId` | SS | absent where there is none |
//! | `startingHashKey`, `endingHashKey` | S | decimal |
//! | `checkpointOwner` | S | a KCL worker that still has to hand the lease over; removed by a claim |
//! | `entityType` | S | `LEASE`; rows with another are not ours, rows without are of an older KCL |
//! | `arrivedAt` | N | ours: when the record of `checkpoint` arrived, or the time of `AT_TIMESTAMP`, Unix millis |
//! | `checkpointKind` | S | ours, where `checkpoint` alone is ambiguous: `AT`, `REWOUND` |
//! | `annotatedCheckpoint` | S | ours: the `checkpoint` that the two before belong to |
//! | `stream` | S | ours: the stream's ARN and the time of its creation |
//! | `wantedBy` | S | ours: the worker that asked for the lease |
//! | `claimedBy` | S | ours: the process that claimed the lease last |
//!
//! The KCL leaves our attributes as they are when it moves the checkpoint: `annotatedCheckpoint` tells that they are
//! of another one, and do not count. Source of its layout: `DynamoDBLeaseSerializer` of KCL 3.

use std::collections::HashMap;
use std::str::FromStr;

use aws_sdk_dynamodb::types::AttributeValue;

use super::update::{Update, number, text};
use crate::backend::{BackendError, Checkpoint, Lease, Position, SequenceNumber, Shard, ShardId, WorkerId};

pub const LEASE_KEY: &str = "leaseKey";
pub const LEASE_OWNER: &str = "leaseOwner";
pub const LEASE_COUNTER: &str = "leaseCounter";
pub const OWNER_SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
pub const CHECKPOINT_OWNER: &str = "checkpointOwner";
pub const WANTED_BY: &str = "wantedBy";
pub const CLAIMED_BY: &str = "claimedBy";
const STREAM: &str = "stream";
const CHECKPOINT: &str = "checkpoint";
const SUB_SEQUENCE_NUMBER: &str = "checkpointSubSequenceNumber";
const PARENTS: &str = "parentShardId";
const STARTING_HASH_KEY: &str = "startingHashKey";
const ENDING_HASH_KEY: &str = "endingHashKey";
const ENTITY_TYPE: &str = "entityType";
const LEASE: &str = "LEASE";
const ARRIVED_AT: &str = "arrivedAt";
const CHECKPOINT_KIND: &str = "checkpointKind";
const ANNOTATED_CHECKPOINT: &str = "annotatedCheckpoint";

const TRIM_HORIZON: &str = "TRIM_HORIZON";
const AT_TIMESTAMP: &str = "AT_TIMESTAMP";
const LATEST: &str = "LATEST";
const SHARD_END: &str = "SHARD_END";
const AT: &str = "AT";
const REWOUND: &str = "REWOUND";

/// What an error shows of a value that was not expected.
const SHOWN_CHARS: usize = 100;

type Item = HashMap<String, AttributeValue>;

/// Adds a checkpoint to what a write changes.
pub fn set_checkpoint(update: Update, checkpoint: &Checkpoint) -> Update {
    checkpoint_attributes(checkpoint).into_iter().fold(update, |update, (attribute, value)| match value {
        Some(value) => update.set(attribute, value),
        None => update.remove(attribute),
    })
}

/// Whether a row is a lease, and not something else that KCL applications keep in such tables.
pub fn is_lease(item: &Item) -> bool {
    item.get(ENTITY_TYPE).is_none_or(|kind| *kind == text(LEASE))
}

/// The process that claimed the row last.
pub fn claimed_by(item: &Item) -> Option<String> {
    item.get(CLAIMED_BY)?.as_s().ok().cloned()
}

fn checkpoint_attributes(checkpoint: &Checkpoint) -> [(&'static str, Option<AttributeValue>); 5] {
    let (position, time, kind) = match checkpoint {
        Checkpoint::Start(Position::TrimHorizon) => (TRIM_HORIZON, None, None),
        Checkpoint::Start(Position::AtTime(time)) => (AT_TIMESTAMP, Some(time), None),
        Checkpoint::Start(Position::At(number)) => (&*number.0, None, Some(AT)),
        Checkpoint::Start(Position::After(number)) => (&*number.0, None, None),
        Checkpoint::Settled { sequence_number, arrived_at } => (&*sequence_number.0, Some(arrived_at), None),
        Checkpoint::Rewound(time) => (AT_TIMESTAMP, Some(time), Some(REWOUND)),
        Checkpoint::Ended => (SHARD_END, None, None),
    };
    let is_annotated = time.is_some() || kind.is_some();
    [
        (CHECKPOINT, Some(text(position))),
        (SUB_SEQUENCE_NUMBER, Some(number(0))),
        (ARRIVED_AT, time.map(number)),
        (CHECKPOINT_KIND, kind.map(text)),
        (ANNOTATED_CHECKPOINT, is_annotated.then(|| text(position))),
    ]
}

/// Reads the rows of one table.
pub struct Layout {
    /// Its name, for errors.
    pub table: String,
    /// The stream whose leases it holds, where that is known.
    pub stream: Option<String>,
}

impl Layout {
    /// A row that nobody has claimed.
    pub fn row(&self, shard: &Shard, checkpoint: &Checkpoint) -> Item {
        let mut item = vec![
            (LEASE_KEY, text(&shard.id.0)),
            (LEASE_COUNTER, number(0)),
            (OWNER_SWITCHES, number(0)),
            (STARTING_HASH_KEY, text(&shard.hashes.start().to_string())),
            (ENDING_HASH_KEY, text(&shard.hashes.end().to_string())),
            (ENTITY_TYPE, text(LEASE)),
        ];
        if !shard.parents.is_empty() {
            item.push((PARENTS, AttributeValue::Ss(shard.parents.iter().map(|parent| parent.0.clone()).collect())));
        }
        item.extend(self.stream.as_ref().map(|stream| (STREAM, text(stream))));
        let checkpoint = checkpoint_attributes(checkpoint).into_iter();
        item.extend(checkpoint.filter_map(|(attribute, value)| Some((attribute, value?))));
        item.into_iter().map(|(attribute, value)| (attribute.to_owned(), value)).collect()
    }

    /// The lease in a row.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] where it cannot be understood; names the row, the attribute and what it holds.
    pub fn lease(&self, item: &Item) -> Result<Lease, BackendError> {
        let row = Row { table: &self.table, item };
        if let (Some(ours), Some(stream)) = (&self.stream, row.text(STREAM)?)
            && stream != ours
        {
            return Err(BackendError::Misconfigured(format!(
                "lease table {} holds the leases of another stream, {stream}, and not of {ours}: use one table for each \
                 stream, and a new one where a stream was deleted and made again",
                self.table
            )));
        }
        Ok(Lease {
            shard: ShardId(row.required(LEASE_KEY, row.text(LEASE_KEY)?)?.to_owned()),
            owner: row.text(LEASE_OWNER)?.map(|owner| WorkerId(owner.to_owned())),
            counter: row.required(LEASE_COUNTER, row.number(LEASE_COUNTER)?)?,
            checkpoint: row.checkpoint()?,
            parents: row.parents()?,
            wanted_by: row.text(WANTED_BY)?.map(|worker| WorkerId(worker.to_owned())),
        })
    }
}

struct Row<'a> {
    table: &'a str,
    item: &'a Item,
}

impl Row<'_> {
    fn checkpoint(&self) -> Result<Checkpoint, BackendError> {
        let position = self.required(CHECKPOINT, self.text(CHECKPOINT)?)?;
        let is_annotated = self.text(ANNOTATED_CHECKPOINT)?.is_none_or(|annotated| annotated == position);
        let time = self.number(ARRIVED_AT)?.filter(|_| is_annotated);
        let kind = self.text(CHECKPOINT_KIND)?.filter(|_| is_annotated);
        let sequence_number = || SequenceNumber(position.to_owned());
        match (position, kind, time) {
            (TRIM_HORIZON, None, _) => Ok(Checkpoint::Start(Position::TrimHorizon)),
            (SHARD_END, None, _) => Ok(Checkpoint::Ended),
            (AT_TIMESTAMP, None, Some(time)) => Ok(Checkpoint::Start(Position::AtTime(time))),
            (AT_TIMESTAMP, Some(REWOUND), Some(time)) => Ok(Checkpoint::Rewound(time)),
            // To start there now would pass over what came since the row was made, and to start earlier would bill
            // again what had been billed: only the operator knows.
            (AT_TIMESTAMP | LATEST, None, None) => Err(self.error(&format!(
                "attribute {CHECKPOINT} is {position}, which tells no place in the shard: delete the row, and the \
                 shard starts at INITIAL_POSITION"
            ))),
            (position, Some(AT), None) if is_digits(position) => Ok(Checkpoint::Start(Position::At(sequence_number()))),
            (position, None, time) if is_digits(position) => {
                let is_whole = self.number(SUB_SEQUENCE_NUMBER)?.unwrap_or(0_i64) == 0;
                Ok(match time {
                    // The KCL settled a part of that record only.
                    _ if !is_whole => Checkpoint::Start(Position::At(sequence_number())),
                    Some(arrived_at) => Checkpoint::Settled { sequence_number: sequence_number(), arrived_at },
                    None => Checkpoint::Start(Position::After(sequence_number())),
                })
            }
            (_, Some(_), _) => Err(self.unexpected(CHECKPOINT_KIND, "one that fits its checkpoint")),
            _ => Err(self.unexpected(CHECKPOINT, "a sequence number, TRIM_HORIZON, AT_TIMESTAMP or SHARD_END")),
        }
    }

    fn text(&self, attribute: &str) -> Result<Option<&str>, BackendError> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(AttributeValue::S(text)) => Ok(Some(text)),
            Some(_) => Err(self.unexpected(attribute, "a string")),
        }
    }

    fn parents(&self) -> Result<Vec<ShardId>, BackendError> {
        match self.item.get(PARENTS) {
            None => Ok(Vec::new()),
            Some(AttributeValue::Ss(parents)) => {
                let mut parents: Vec<ShardId> = parents.iter().map(|parent| ShardId(parent.clone())).collect();
                // A set has no order of its own.
                parents.sort();
                Ok(parents)
            }
            Some(_) => Err(self.unexpected(PARENTS, "a set of strings")),
        }
    }

    fn number<T: FromStr>(&self, attribute: &str) -> Result<Option<T>, BackendError> {
        let number = match self.item.get(attribute) {
            None => return Ok(None),
            Some(AttributeValue::N(number)) => number.parse().ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.unexpected(attribute, "a whole number in its range"))
    }

    fn required<T>(&self, attribute: &str, value: Option<T>) -> Result<T, BackendError> {
        value.ok_or_else(|| self.error(&format!("attribute {attribute} is missing")))
    }

    fn unexpected(&self, attribute: &str, expected: &str) -> BackendError {
        let found = self.item.get(attribute).map(|value| format!("{value:?}")).unwrap_or_default();
        let shown: String = found.chars().take(SHOWN_CHARS).collect();
        self.error(&format!("attribute {attribute} is {shown}, expected {expected}"))
    }

    fn error(&self, what: &str) -> BackendError {
        let key = self.item.get(LEASE_KEY).and_then(|key| key.as_s().ok()).map_or("", |key| key);
        BackendError::Misconfigured(format!("lease table {}, row {key}: {what}", self.table))
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
