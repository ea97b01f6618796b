//! The tables, and what every connection is set to.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::database::to_backend_error;
use crate::backend::BackendError;

/// Marks the file as ours: `METR` in ASCII.
const APPLICATION_ID: i32 = 0x4d45_5452;

/// The version of the tables below, in `user_version`.
const VERSION: i32 = 4;

/// Prepared statements that a connection keeps: all there are for some 30 shards.
const STATEMENTS: usize = 256;

/// How long a call waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The write-ahead log is cut back to this size when it starts anew.
pub(super) const WAL_LIMIT_BYTES: u64 = 32 << 20;

// A shard's checkpoint is one of: trim_horizon, at_time(arrived_at), at(sequence_number), after(sequence_number),
// settled(sequence_number, arrived_at), rewound(arrived_at), ended.
// `receives` makes a receipt: it differs each time a letter is received.
const TABLES: &str = "
    CREATE TABLE meta (shards INTEGER NOT NULL) STRICT;
    CREATE TABLE leases (
        shard TEXT PRIMARY KEY,
        owner TEXT,
        counter INTEGER NOT NULL,
        checkpoint TEXT NOT NULL,
        sequence_number TEXT,
        arrived_at INTEGER,
        wanted_by TEXT,
        parents TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        visible_at INTEGER NOT NULL,
        receives INTEGER NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX dead_letters_by_visibility ON dead_letters (visible_at);
";

/// The table of a shard's records. One for each: its reader finds them side by side, and skips nobody else's.
pub(super) fn records_of(shard: u32) -> String {
    format!("records_{shard}")
}

fn records_table(shard: u32) -> String {
    format!(
        "CREATE TABLE {} (
             position INTEGER PRIMARY KEY AUTOINCREMENT,
             arrived_at INTEGER NOT NULL,
             partition_key TEXT NOT NULL,
             data BLOB NOT NULL
         ) STRICT;",
        records_of(shard)
    )
}

/// Checks that the database is ours, or new and then made so, and sets the connection up; answers the shard count.
pub(super) fn prepare(connection: &mut Connection, name: &str, shards: u32) -> Result<u32, BackendError> {
    let failed = |error| to_backend_error(name, &error);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // Looked at before anything is changed: the file may be someone else's.
    if is_new(connection).map_err(failed)? {
        set_up(connection).map_err(failed)?;
        create(connection, shards).map_err(failed)?;
    }
    check_version(connection, name)?;
    set_up(connection).map_err(failed)?;
    connection.query_row("SELECT shards FROM meta", (), |row| row.get(0)).map_err(failed)
}

fn is_new(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) = 0 AND (SELECT application_id FROM pragma_application_id) = 0 FROM sqlite_schema",
        (),
        |row| row.get(0),
    )
}

fn create(connection: &mut Connection, shards: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    if is_new(&transaction)? {
        transaction.execute_batch(TABLES)?;
        for shard in 0..shards {
            transaction.execute_batch(&records_table(shard))?;
        }
        transaction.execute("INSERT INTO meta (shards) VALUES (?1)", [shards])?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn check_version(connection: &Connection, name: &str) -> Result<(), BackendError> {
    let number = |pragma| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i32>(0))
            .map_err(|error| to_backend_error(name, &error))
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(BackendError::Misconfigured(format!("{name} is a SQLite database, but not a metering store")));
    }
    match number("user_version")? {
        VERSION => Ok(()),
        other => Err(BackendError::Misconfigured(format!(
            "{name} has schema version {other}, and this program knows version {VERSION}: \
             use the program that wrote it, or another directory"
        ))),
    }
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // `journal_mode` answers a row; in memory it stays `memory`.
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT_BYTES.cast_signed(), |_| Ok(()))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 1000, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commit_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let mut connection = Connection::open(dir.path().join("file")).unwrap();
        assert_eq!(prepare(&mut connection, "file", 4).unwrap(), 4);
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        // 2 is FULL: in WAL mode the one level that syncs the log at every commit.
        assert_eq!(pragma("synchronous").unwrap(), 2.into());
    }
}
