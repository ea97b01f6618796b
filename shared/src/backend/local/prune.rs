//! Removing what is settled and too old to be needed again.

use std::path::Path;
use std::time::Duration;

use rusqlite::params;

use super::LocalStore;
use super::schema::{self, records_of};
use super::shards::shard_index;
use super::stream::{first_at_or_after, position_of};
use crate::backend::{BackendError, Checkpoint, Leases as _};
use crate::clock::millis;
use crate::service::Trouble;

/// Rows a transaction: publishers wait for the write lock meanwhile.
const CHUNK: usize = 5_000;

static UNPRUNED: Trouble = Trouble::new();

impl LocalStore {
    /// Deletes the records that lie at or behind their shard's checkpoint and arrived more than the retention before
    /// the record at the checkpoint; answers how many. Their space in the file is used again.
    ///
    /// # Errors
    /// As for any write; what had been deleted stays deleted.
    pub async fn prune(&self) -> Result<u64, BackendError> {
        let mut pruned = 0;
        for lease in self.list().await? {
            let Checkpoint::Settled { sequence_number, arrived_at } = lease.checkpoint else { continue };
            let Some(shard) = shard_index(&lease.shard, self.inner.shards) else { continue };
            let settled = position_of(&sequence_number)?;
            let keep_from = arrived_at.saturating_sub(millis(self.inner.options.retention));
            loop {
                let deleted = self.prune_chunk(shard, settled, keep_from).await?;
                pruned += deleted as u64;
                if deleted < CHUNK {
                    break;
                }
            }
        }
        self.cut_log().await?;
        Ok(pruned)
    }

    /// Prunes again and again; never returns. To be spawned by the one worker of a store, and aborted with it.
    pub async fn keep_pruned(&self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            match self.prune().await {
                Ok(0) => {}
                Ok(records) => tracing::debug!(records, "pruned settled records"),
                Err(error) => {
                    if let Some(omitted) = UNPRUNED.again() {
                        tracing::warn!(%error, omitted, "pruning failed, it is tried again");
                    }
                }
            }
        }
    }

    async fn prune_chunk(&self, shard: u32, settled: i64, keep_from: i64) -> Result<usize, BackendError> {
        self.inner
            .database
            .write(move |transaction| {
                let first_kept = first_at_or_after(transaction, shard, keep_from)?.min(settled.saturating_add(1));
                transaction
                    .prepare_cached(&format!(
                        "DELETE FROM {records} WHERE position IN (
                             SELECT position FROM {records} WHERE position < ?1 ORDER BY position LIMIT ?2
                         )",
                        records = records_of(shard)
                    ))?
                    .execute(params![first_kept, CHUNK as i64])
            })
            .await
    }

    /// Starts the write-ahead log anew where steady readers kept SQLite from doing so by itself.
    async fn cut_log(&self) -> Result<(), BackendError> {
        let log = format!("{}-wal", self.inner.database.name());
        if self.inner.database.is_in_memory() || file_size(Path::new(&log)) <= schema::WAL_LIMIT_BYTES {
            return Ok(());
        }
        let writer = self.inner.database.lock_writer().await;
        // It answers (busy, pages in the log, pages copied); busy is no harm, the next round tries again.
        let cut = |connection: &mut rusqlite::Connection| {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
        };
        self.inner.database.run(writer, cut).await
    }
}

fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
