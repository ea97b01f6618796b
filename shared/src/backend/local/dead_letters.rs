//! The queue of dead letters.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::params;

use super::LocalStore;
use crate::backend::{BackendError, DeadLetters, Received};
use crate::clock::millis;
use crate::dead_letter::{DeadLetter, SCHEMA_VERSION};

/// How long a received letter is hidden from other receivers.
const HIDDEN: Duration = Duration::from_secs(60);

#[async_trait]
impl DeadLetters for LocalStore {
    fn name(&self) -> &str {
        "local"
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        let bodies = letters.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>();
        let bodies = bodies.map_err(|error| BackendError::Misconfigured(format!("a dead letter as JSON: {error}")))?;
        self.inner
            .database
            .write(move |transaction| {
                let mut statement = transaction
                    .prepare_cached("INSERT INTO dead_letters (visible_at, receives, body) VALUES (0, 0, ?1)")?;
                bodies.iter().try_for_each(|body| statement.execute([body]).map(|_| ()))
            })
            .await
    }

    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError> {
        let now = self.inner.options.clock.now();
        let rows: Vec<(i64, i64, String)> = self
            .inner
            .database
            .write(move |transaction| {
                let mut statement = transaction.prepare_cached(
                    "UPDATE dead_letters SET visible_at = ?1, receives = receives + 1
                     WHERE id IN (
                         SELECT id FROM dead_letters WHERE visible_at <= ?2 ORDER BY visible_at, id LIMIT ?3
                     )
                     RETURNING id, receives, body",
                )?;
                let rows = statement.query_map(params![now + millis(HIDDEN), now, limit(max)], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?;
                rows.collect()
            })
            .await?;
        let read = |(id, receives, body): (i64, i64, String)| {
            Some(Received { receipt: format!("{id}:{receives}"), letter: parse(id, &body)? })
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        let receipts: Vec<(i64, i64)> = receipts.iter().filter_map(|receipt| parse_receipt(receipt)).collect();
        self.inner
            .database
            .write(move |transaction| {
                let mut statement =
                    transaction.prepare_cached("DELETE FROM dead_letters WHERE id = ?1 AND receives = ?2")?;
                receipts.iter().try_for_each(|receipt| statement.execute(*receipt).map(|_| ()))
            })
            .await
    }

    async fn release(&self, receipts: &[String]) -> Result<(), BackendError> {
        let receipts: Vec<(i64, i64)> = receipts.iter().filter_map(|receipt| parse_receipt(receipt)).collect();
        self.inner
            .database
            .write(move |transaction| {
                let mut statement = transaction
                    .prepare_cached("UPDATE dead_letters SET visible_at = 0 WHERE id = ?1 AND receives = ?2")?;
                receipts.iter().try_for_each(|receipt| statement.execute(*receipt).map(|_| ()))
            })
            .await
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        let count = |transaction: &rusqlite::Transaction<'_>| {
            transaction.prepare_cached("SELECT count(*) FROM dead_letters")?.query_row((), |row| row.get::<_, i64>(0))
        };
        Ok(self.inner.database.read(count).await?.unsigned_abs())
    }
}

impl LocalStore {
    /// Up to `limit` letters with an id above `after_id` (0: from the oldest), oldest first, with their ids; it hides
    /// none and shows hidden ones too. The last id is where the next call goes on.
    ///
    /// # Errors
    /// As for [`DeadLetters::receive`].
    pub async fn peek_dead_letters(&self, after_id: i64, max: usize) -> Result<Vec<(i64, DeadLetter)>, BackendError> {
        let rows: Vec<(i64, String)> = self
            .inner
            .database
            .read(move |transaction| {
                let mut statement = transaction
                    .prepare_cached("SELECT id, body FROM dead_letters WHERE id > ?1 ORDER BY id LIMIT ?2")?;
                let rows = statement.query_map([after_id, limit(max)], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            })
            .await?;
        Ok(rows.into_iter().filter_map(|(id, body)| Some((id, parse(id, &body)?))).collect())
    }
}

impl LocalStore {
    /// Removes letters by the ids that [`peek_dead_letters`](Self::peek_dead_letters) gave, for good.
    ///
    /// # Errors
    /// As for [`DeadLetters::delete`].
    pub async fn delete_dead_letters(&self, ids: Vec<i64>) -> Result<(), BackendError> {
        self.inner
            .database
            .write(move |transaction| {
                let mut statement = transaction.prepare_cached("DELETE FROM dead_letters WHERE id = ?1")?;
                ids.iter().try_for_each(|id| statement.execute([id]).map(|_| ()))
            })
            .await
    }
}

fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}

/// The letter, unless a newer version of this program wrote it: then it stays where it is, and must not hold up the
/// others.
fn parse(id: i64, body: &str) -> Option<DeadLetter> {
    match serde_json::from_str::<DeadLetter>(body) {
        Ok(letter) if letter.schema_version <= SCHEMA_VERSION => Some(letter),
        Ok(letter) => {
            tracing::error!(
                id,
                version = letter.schema_version,
                "dead letter is of a newer version: left in the store"
            );
            None
        }
        Err(error) => {
            tracing::error!(id, %error, "dead letter cannot be read: left in the store");
            None
        }
    }
}

fn parse_receipt(receipt: &str) -> Option<(i64, i64)> {
    let (id, receives) = receipt.split_once(':')?;
    Some((id.parse().ok()?, receives.parse().ok()?))
}
