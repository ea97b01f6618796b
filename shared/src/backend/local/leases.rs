//! The lease table.

use async_trait::async_trait;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::LocalStore;
use crate::backend::{BackendError, Checkpoint, Lease, Leases, Position, SequenceNumber, ShardId, WorkerId};

const COLUMNS: &str = "shard, owner, counter, checkpoint, sequence_number, arrived_at";

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

    async fn create(&self, shard: &ShardId, start: Position) -> Result<(), BackendError> {
        let lease = Lease { shard: shard.clone(), owner: None, counter: 0, checkpoint: Checkpoint::Start(start) };
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
                    let claimed = Lease { owner: Some(owner), counter: row.counter + 1, ..row };
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
                let landed_before = row.counter == seen.counter + 1;
                if row.counter != seen.counter && !landed_before {
                    return Ok(None);
                }
                if landed_before && row.checkpoint == seen.checkpoint {
                    return Ok(Some(row));
                }
                // Also where an earlier try landed with an older checkpoint: since the owner is the same, no one else
                // has written in between.
                let checkpoint = later(row.checkpoint, seen.checkpoint);
                let renewed = Lease { counter: row.counter + 1, checkpoint, ..seen };
                store(transaction, &renewed)?;
                Ok(Some(renewed))
            })
            .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BackendError> {
        let seen = lease.clone();
        self.inner
            .database
            .write(move |transaction| match find(transaction, &seen.shard)? {
                Some(row) if owned_by(&row, &seen.owner) => {
                    let checkpoint = later(row.checkpoint, seen.checkpoint);
                    store(transaction, &Lease { owner: None, counter: row.counter + 1, checkpoint, ..seen })
                }
                _ => Ok(()),
            })
            .await
    }
}

fn owned_by(row: &Lease, owner: &Option<WorkerId>) -> bool {
    owner.is_some() && row.owner == *owner
}

/// The one that is further on: a checkpoint never moves back.
fn later(stored: Checkpoint, new: Checkpoint) -> Checkpoint {
    match (&stored, &new) {
        (Checkpoint::Settled { .. }, Checkpoint::Start(_)) => stored,
        (Checkpoint::Settled { sequence_number: old, .. }, Checkpoint::Settled { sequence_number, .. })
            if sequence_number < old =>
        {
            stored
        }
        _ => new,
    }
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
        Checkpoint::Start(Position::After(number)) => ("after", Some(&number.0), None),
        Checkpoint::Settled { sequence_number, arrived_at } => ("settled", Some(&sequence_number.0), Some(*arrived_at)),
    };
    let owner = lease.owner.as_ref().map(|owner| &owner.0);
    // Counters grow by one a write: they do not reach the sign bit.
    let counter = lease.counter.cast_signed();
    transaction
        .prepare_cached(&format!("INSERT OR REPLACE INTO leases ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"))?
        .execute(params![lease.shard.0, owner, counter, checkpoint, sequence_number, arrived_at])
        .map(|_| ())
}

fn read_lease(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let number = || row.get("sequence_number").map(SequenceNumber);
    let kind: String = row.get("checkpoint")?;
    let checkpoint = match kind.as_str() {
        "trim_horizon" => Checkpoint::Start(Position::TrimHorizon),
        "at_time" => Checkpoint::Start(Position::AtTime(row.get("arrived_at")?)),
        "after" => Checkpoint::Start(Position::After(number()?)),
        "settled" => Checkpoint::Settled { sequence_number: number()?, arrived_at: row.get("arrived_at")? },
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_later_checkpoint() {
        let start = Checkpoint::Start(Position::TrimHorizon);
        let settled =
            |number: &str| Checkpoint::Settled { sequence_number: SequenceNumber(number.to_owned()), arrived_at: 1 };
        assert_eq!(later(start.clone(), settled("1")), settled("1"));
        assert_eq!(later(settled("1"), start), settled("1"));
        assert_eq!(later(settled("9"), settled("10")), settled("10"));
        assert_eq!(later(settled("10"), settled("9")), settled("10"));
    }
}
