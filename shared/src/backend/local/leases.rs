//! The lease table.

use async_trait::async_trait;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::LocalStore;
use crate::backend::{BackendError, Checkpoint, Lease, Leases, Position, SequenceNumber, Shard, ShardId, WorkerId};

const COLUMNS: &str = "shard, owner, counter, checkpoint, sequence_number, arrived_at, wanted_by, parents";

#[async_trait]
impl Leases for LocalStore {
    async fn list(&self) -> Result<Vec<Lease>, BackendError> {
        self.inner
            .database
            .read(|transaction| {
                let mut statement = transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM leases"))?;
                statement.query_map((), read_lease)?.collect()
            })
            .await
    }

    async fn create(&self, shard: &Shard, checkpoint: Checkpoint) -> Result<(), BackendError> {
        let (id, parents) = (shard.id.clone(), shard.parents.clone());
        let lease = Lease { shard: id, owner: None, counter: 0, checkpoint, parents, wanted_by: None };
        self.inner
            .database
            .write(move |transaction| match find(transaction, &lease.shard)? {
                Some(_) => Ok(()),
                None => store(transaction, &lease),
            })
            .await
    }

    async fn claim(&self, lease: &Lease, owner: &WorkerId) -> Result<Option<Lease>, BackendError> {
        let (seen, owner) = (lease.clone(), owner.clone());
        self.inner
            .database
            .write(move |transaction| match find(transaction, &seen.shard)? {
                Some(row) if row.counter == seen.counter => {
                    let claimed = Lease { owner: Some(owner), counter: row.counter + 1, wanted_by: None, ..row };
                    store(transaction, &claimed)?;
                    Ok(Some(claimed))
                }
                // An earlier try of this very call landed.
                Some(row) if row.counter == seen.counter + 1 && row.owner.as_ref() == Some(&owner) => Ok(Some(row)),
                _ => Ok(None),
            })
            .await
    }

    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, BackendError> {
        let seen = lease.clone();
        self.inner
            .database
            .write(move |transaction| {
                let Some(row) = find(transaction, &seen.shard)?.filter(|row| owned_by(row, &seen.owner)) else {
                    return Ok(None);
                };
                if row.counter == seen.counter {
                    let renewed = Lease { counter: row.counter + 1, wanted_by: row.wanted_by, ..seen };
                    store(transaction, &renewed)?;
                    return Ok(Some(renewed));
                }
                let landed_before = row.counter == seen.counter + 1 && row.checkpoint == seen.checkpoint;
                Ok(landed_before.then_some(row))
            })
            .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BackendError> {
        let seen = lease.clone();
        self.inner
            .database
            .write(move |transaction| match find(transaction, &seen.shard)? {
                Some(row) if owned_by(&row, &seen.owner) => store(
                    transaction,
                    &Lease { owner: None, counter: row.counter + 1, wanted_by: row.wanted_by, ..seen },
                ),
                _ => Ok(()),
            })
            .await
    }

    async fn ask(&self, lease: &Lease, worker: &WorkerId) -> Result<(), BackendError> {
        let (seen, worker) = (lease.clone(), worker.clone());
        self.inner
            .database
            .write(move |transaction| match find(transaction, &seen.shard)? {
                Some(row) if owned_by(&row, &seen.owner) => {
                    store(transaction, &Lease { wanted_by: Some(worker), ..row })
                }
                _ => Ok(()),
            })
            .await
    }

    async fn reset(&self, lease: &Lease, checkpoint: Checkpoint) -> Result<Option<Lease>, BackendError> {
        let seen = lease.clone();
        self.inner
            .database
            .write(move |transaction| match find(transaction, &seen.shard)? {
                Some(row) if row.counter == seen.counter => {
                    let reset = Lease { owner: None, counter: row.counter + 1, checkpoint, wanted_by: None, ..row };
                    store(transaction, &reset)?;
                    Ok(Some(reset))
                }
                // An earlier try of this very call landed.
                Some(row) if row.counter == seen.counter + 1 && row.owner.is_none() && row.checkpoint == checkpoint => {
                    Ok(Some(row))
                }
                _ => Ok(None),
            })
            .await
    }

    async fn forget(&self, lease: &Lease) -> Result<(), BackendError> {
        let (shard, counter) = (lease.shard.0.clone(), lease.counter.cast_signed());
        self.inner
            .database
            .write(move |transaction| {
                transaction
                    .prepare_cached("DELETE FROM leases WHERE shard = ?1 AND counter = ?2")?
                    .execute(params![shard, counter])
                    .map(|_| ())
            })
            .await
    }
}

fn owned_by(row: &Lease, owner: &Option<WorkerId>) -> bool {
    owner.is_some() && row.owner == *owner
}

fn find(transaction: &Transaction<'_>, shard: &ShardId) -> rusqlite::Result<Option<Lease>> {
    transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM leases WHERE shard = ?1"))?
        .query_row([&shard.0], read_lease)
        .optional()
}

fn store(transaction: &Transaction<'_>, lease: &Lease) -> rusqlite::Result<()> {
    let (checkpoint, sequence_number, arrived_at) = match &lease.checkpoint {
        Checkpoint::Start(Position::TrimHorizon) => ("trim_horizon", None, None),
        Checkpoint::Start(Position::AtTime(time)) => ("at_time", None, Some(*time)),
        Checkpoint::Start(Position::At(number)) => ("at", Some(&number.0), None),
        Checkpoint::Start(Position::After(number)) => ("after", Some(&number.0), None),
        Checkpoint::Settled { sequence_number, arrived_at } => ("settled", Some(&sequence_number.0), Some(*arrived_at)),
        Checkpoint::Rewound(time) => ("rewound", None, Some(*time)),
        Checkpoint::Ended => ("ended", None, None),
    };
    let owner = lease.owner.as_ref().map(|owner| &owner.0);
    // Names of shards have no spaces.
    let parents = lease.parents.iter().map(|parent| &*parent.0).collect::<Vec<_>>().join(" ");
    let wanted_by = lease.wanted_by.as_ref().map(|worker| &worker.0);
    // Counters grow by one a write: they do not reach the sign bit.
    let counter = lease.counter.cast_signed();
    transaction
        .prepare_cached(&format!("INSERT OR REPLACE INTO leases ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"))?
        .execute(params![lease.shard.0, owner, counter, checkpoint, sequence_number, arrived_at, wanted_by, parents])
        .map(|_| ())
}

fn read_lease(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let number = || row.get("sequence_number").map(SequenceNumber);
    let kind: String = row.get("checkpoint")?;
    let checkpoint = match kind.as_str() {
        "trim_horizon" => Checkpoint::Start(Position::TrimHorizon),
        "at_time" => Checkpoint::Start(Position::AtTime(row.get("arrived_at")?)),
        "at" => Checkpoint::Start(Position::At(number()?)),
        "after" => Checkpoint::Start(Position::After(number()?)),
        "settled" => Checkpoint::Settled { sequence_number: number()?, arrived_at: row.get("arrived_at")? },
        "rewound" => Checkpoint::Rewound(row.get("arrived_at")?),
        "ended" => Checkpoint::Ended,
        _ => {
            let text = format!("unknown checkpoint {kind}").into();
            return Err(rusqlite::Error::FromSqlConversionFailure(3, Type::Text, text));
        }
    };
    Ok(Lease {
        shard: ShardId(row.get("shard")?),
        owner: row.get::<_, Option<String>>("owner")?.map(WorkerId),
        counter: row.get::<_, i64>("counter")?.unsigned_abs(),
        checkpoint,
        parents: row.get::<_, String>("parents")?.split_whitespace().map(|parent| ShardId(parent.to_owned())).collect(),
        wanted_by: row.get::<_, Option<String>>("wanted_by")?.map(WorkerId),
    })
}
