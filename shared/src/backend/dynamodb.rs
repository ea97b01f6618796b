//! Leases in a DynamoDB table, in the row layout of the Kinesis Client Library, so that its tools can read them.
//!
//! What it promises beside [`Leases`]:
//!
//! - Every write is conditional and by attribute: it never makes a row that is gone, and what others keep in a row
//!   survives.
//! - A write answers within [`WRITE_TIMEOUT`], its retries included, so that the keeper of a lease can try again before
//!   its fence falls. A write that landed although its answer was lost, or whose retry the SDK made, is recognised by
//!   the row that the refused retry found.
//! - [`list`](Leases::list) may be some moments old: its reads are eventually consistent, at half the price, as in the
//!   KCL. Whoever acts on an old row is refused, because every write names the counter or the owner it saw; and a row
//!   that shows no new counter for longer than it should is claimed in vain.
//! - One row that cannot be understood fails the whole list: a shard that is passed over in silence would be lost.
//!
//! IAM actions on the table: `dynamodb:DescribeTable`, `Scan`, `PutItem`, `UpdateItem`, `DeleteItem`, and
//! `CreateTable` where it is wanted.

mod row;
mod table;
mod update;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::{BackendError, Checkpoint, Lease, Leases, Shard, ShardId, WorkerId, aws};
use row::Layout;
use update::{Update, number, text};

/// A write that has no answer after this long is given up; the SDK's own retries happen within. At a failover time of
/// 10 s a renewal begins 4.7 s before the fence falls: one that is not answered is reported, and tried once more.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
const INITIAL_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// The DynamoDB end of [`Leases`].
pub struct DynamoLeases {
    client: Client,
    /// With the usual timeouts, for what no fence waits for.
    patient: Client,
    layout: Layout,
    /// Tells this process from all others, whatever their names.
    process: String,
    /// The checkpoint that a held row had at a counter: tells whether a write moves it.
    written: Mutex<HashMap<ShardId, (u64, Checkpoint)>>,
}

impl DynamoLeases {
    /// Opens the table with this name or ARN. Where it is missing and `create` is set, it is created with on-demand
    /// capacity; either way the call waits, at most two minutes, until the table is active.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] where the name is none, the table is missing (and not to be created), has
    /// another key than `leaseKey`, or may not be used.
    pub async fn open(config: &SdkConfig, table: &str, create: bool) -> Result<Self, BackendError> {
        let region = config.region().map_or("", |region| region.as_ref());
        table::check_name(table, region)?;
        // Credentials come with the first call, and may take longer than a renewal has.
        let patient = Client::new(config);
        table::open(&patient, table, region, create).await?;
        Ok(Self {
            client: quick_client(config),
            patient,
            layout: Layout { table: table.to_owned(), stream: None },
            process: uuid::Uuid::new_v4().simple().to_string(),
            written: Mutex::default(),
        })
    }

    /// Marks new rows as those of this stream, and refuses to list rows of another: shards of all streams have the same
    /// names, and a checkpoint means nothing in another stream.
    #[must_use]
    pub fn for_stream(mut self, identity: String) -> Self {
        self.layout.stream = Some(identity);
        self
    }

    async fn write(&self, shard: &ShardId, update: Update) -> Result<Written, BackendError> {
        let result = self
            .client
            .update_item()
            .table_name(&self.layout.table)
            .key(row::LEASE_KEY, text(&shard.0))
            .update_expression(update.expression())
            .condition_expression(update.condition())
            .set_expression_attribute_names(Some(update.names))
            .set_expression_attribute_values(Some(update.values))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match result {
            Ok(output) => Ok(Written::Now(self.layout.lease(&output.attributes.unwrap_or_default())?)),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    let row = |item| Ok((self.layout.lease(item)?, row::claimed_by(item)));
                    Ok(Written::Refused(refused.item().map(row).transpose()?))
                }
                _ => Err(aws::error(&self.attempt("write", shard), &error)),
            },
        }
    }

    /// Stores the checkpoint; the owner switches are counted anew where it moves.
    fn with_checkpoint(&self, update: Update, lease: &Lease) -> Update {
        let known = self.written().get(&lease.shard).cloned();
        let is_unmoved = known.is_some_and(|known| known == (lease.counter, lease.checkpoint.clone()));
        let update = row::set_checkpoint(update, &lease.checkpoint);
        if is_unmoved { update } else { update.set(row::OWNER_SWITCHES, number(0)) }
    }

    /// Keeps what the row holds while it is ours.
    fn remember(&self, shard: &ShardId, row: Option<&Lease>) {
        match row {
            Some(row) => self.written().insert(shard.clone(), (row.counter, row.checkpoint.clone())),
            None => self.written().remove(shard),
        };
    }

    fn written(&self) -> MutexGuard<'_, HashMap<ShardId, (u64, Checkpoint)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, what: &str, shard: &ShardId) -> String {
        format!("cannot {what} the row {shard} of lease table {}", self.layout.table)
    }
}

impl fmt::Debug for DynamoLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoLeases").field("table", &self.layout.table).finish_non_exhaustive()
    }
}

/// What became of a conditional write.
enum Written {
    /// The row as it is after it.
    Now(Lease),
    /// The row is not as the caller saw it, and this is the process that claimed it; `None`: there is none.
    Refused(Option<(Lease, Option<String>)>),
}

impl Written {
    /// The row after the write, also where an earlier try made it and `landed` recognises that.
    fn or_landed(self, landed: impl Fn(&Lease) -> bool) -> Option<Lease> {
        match self {
            Self::Now(row) => Some(row),
            Self::Refused(row) => row.map(|(row, _)| row).filter(landed),
        }
    }

    /// As [`or_landed`](Self::or_landed), where it was this process that made it.
    fn or_landed_by(self, process: &str, landed: impl Fn(&Lease) -> bool) -> Option<Lease> {
        match &self {
            Self::Refused(Some((_, claimed_by))) if claimed_by.as_deref() != Some(process) => None,
            _ => self.or_landed(landed),
        }
    }
}

#[async_trait]
impl Leases for DynamoLeases {
    async fn list(&self) -> Result<Vec<Lease>, BackendError> {
        let scan = self.patient.scan().table_name(&self.layout.table);
        let mut items = scan.into_paginator().items().send();
        let mut leases = Vec::new();
        while let Some(item) = items.next().await {
            let attempt = || format!("cannot read lease table {}", self.layout.table);
            let item = item.map_err(|error| aws::error(&attempt(), &error))?;
            if row::is_lease(&item) {
                leases.push(self.layout.lease(&item)?);
            }
        }
        Ok(leases)
    }

    async fn create(&self, shard: &Shard, checkpoint: Checkpoint) -> Result<(), BackendError> {
        let result = self
            .client
            .put_item()
            .table_name(&self.layout.table)
            .set_item(Some(self.layout.row(shard, &checkpoint)))
            .condition_expression("attribute_not_exists(#leaseKey)")
            .expression_attribute_names("#leaseKey", row::LEASE_KEY)
            .send()
            .await;
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(_)) => Ok(()),
                _ => Err(aws::error(&self.attempt("create", &shard.id), &error)),
            },
        }
    }

    async fn claim(&self, lease: &Lease, owner: &WorkerId) -> Result<Option<Lease>, BackendError> {
        let update = Update::moving(lease.counter)
            .set(row::LEASE_OWNER, text(&owner.0))
            .set(row::CLAIMED_BY, text(&self.process))
            .remove(row::CHECKPOINT_OWNER)
            .remove(row::WANTED_BY);
        // As in the KCL, a free lease that is taken has not switched.
        let switches = lease.owner.as_ref().is_some_and(|before| before != owner);
        let update = if switches { update.add(row::OWNER_SWITCHES, 1) } else { update };
        let landed = |row: &Lease| row.counter == lease.counter + 1 && row.owner.as_ref() == Some(owner);
        // Two processes with one WORKER_ID must not both take the claim for their own.
        let row = self.write(&lease.shard, update).await?.or_landed_by(&self.process, landed);
        if let Some(row) = &row {
            self.remember(&row.shard, Some(row));
        }
        Ok(row)
    }

    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, BackendError> {
        let Some(owner) = &lease.owner else { return Ok(None) };
        let update = Update::moving(lease.counter).only_if(row::LEASE_OWNER, [text(&owner.0)]);
        let landed = |row: &Lease| {
            row.counter == lease.counter + 1 && row.owner == lease.owner && row.checkpoint == lease.checkpoint
        };
        let row = self.write(&lease.shard, self.with_checkpoint(update, lease)).await?.or_landed(landed);
        self.remember(&lease.shard, row.as_ref());
        Ok(row)
    }

    async fn release(&self, lease: &Lease) -> Result<(), BackendError> {
        let Some(owner) = &lease.owner else { return Ok(()) };
        // The counter is one ahead of the caller's where the answer to its last renewal was lost. Further ahead, this
        // is a release from an earlier time that comes late, and must not take a newer checkpoint back.
        let update = Update::default()
            .only_if(row::LEASE_OWNER, [text(&owner.0)])
            .only_if(row::LEASE_COUNTER, [number(lease.counter), number(lease.counter + 1)])
            .add(row::LEASE_COUNTER, 1)
            .remove(row::LEASE_OWNER);
        self.write(&lease.shard, self.with_checkpoint(update, lease)).await?;
        self.remember(&lease.shard, None);
        Ok(())
    }

    async fn ask(&self, lease: &Lease, worker: &WorkerId) -> Result<(), BackendError> {
        let Some(owner) = &lease.owner else { return Ok(()) };
        let update = Update::default().only_if(row::LEASE_OWNER, [text(&owner.0)]).set(row::WANTED_BY, text(&worker.0));
        self.write(&lease.shard, update).await.map(|_| ())
    }

    async fn reset(&self, lease: &Lease, checkpoint: Checkpoint) -> Result<Option<Lease>, BackendError> {
        let update = Update::moving(lease.counter)
            .set(row::OWNER_SWITCHES, number(0))
            .remove(row::LEASE_OWNER)
            .remove(row::CHECKPOINT_OWNER)
            .remove(row::WANTED_BY);
        let landed =
            |row: &Lease| row.counter == lease.counter + 1 && row.owner.is_none() && row.checkpoint == checkpoint;
        let written = self.write(&lease.shard, row::set_checkpoint(update, &checkpoint)).await?;
        Ok(written.or_landed(landed))
    }

    async fn forget(&self, lease: &Lease) -> Result<(), BackendError> {
        let result = self
            .client
            .delete_item()
            .table_name(&self.layout.table)
            .key(row::LEASE_KEY, text(&lease.shard.0))
            .condition_expression("#leaseCounter = :seen")
            .expression_attribute_names("#leaseCounter", row::LEASE_COUNTER)
            .expression_attribute_values(":seen", number(lease.counter))
            .send()
            .await;
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(_)) => Ok(()),
                _ => Err(aws::error(&self.attempt("delete", &lease.shard), &error)),
            },
        }
    }
}

/// The user's settings for retries stay, but what one write may take is ours: see [`WRITE_TIMEOUT`].
fn quick_client(config: &SdkConfig) -> Client {
    let timeouts = config.timeout_config().map_or_else(TimeoutConfig::builder, TimeoutConfig::to_builder);
    let timeouts = timeouts.operation_attempt_timeout(ATTEMPT_TIMEOUT).operation_timeout(WRITE_TIMEOUT).build();
    let retries = config.retry_config().cloned().unwrap_or_else(RetryConfig::standard);
    let retries = retries.with_initial_backoff(INITIAL_BACKOFF).with_max_backoff(MAX_BACKOFF);
    let config = aws_sdk_dynamodb::config::Builder::from(config).timeout_config(timeouts).retry_config(retries);
    Client::from_conf(config.build())
}
