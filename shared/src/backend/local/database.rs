//! The connections to the file, and the one place that decides where SQL runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::schema;
use crate::backend::BackendError;

/// Reads run beside the writer and beside each other; a few connections keep one slow read from stopping all others.
const READERS: usize = 3;

/// The writer's page cache: 4 times SQLite's default, which its readers keep. They go through the file once, so that more
/// would be memory for pages that nobody asks for again, and slower than what fits into the processor's own cache.
const WRITER_CACHE_KIB: i32 = 8192;

/// An open database.
pub(super) struct Database {
    /// For messages.
    name: String,
    writer: Arc<Mutex<Connection>>,
    /// Empty in memory, where a second connection would be a second database.
    readers: Vec<Arc<Mutex<Connection>>>,
    next_reader: AtomicUsize,
}

impl Database {
    /// Opens or creates the file; answers its number of shards too.
    pub(super) fn open(file: &Path, shards: u32) -> Result<(Self, u32), BackendError> {
        let name = file.display().to_string();
        let open = || {
            let mut connection = Connection::open(file).map_err(|error| to_backend_error(&name, &error))?;
            let shards = schema::prepare(&mut connection, &name, shards)?;
            Ok::<_, BackendError>((connection, shards))
        };
        let (writer, shards) = open()?;
        // Negative: in KiB, not in pages.
        let cached = writer.pragma_update(None, "cache_size", -WRITER_CACHE_KIB);
        cached.map_err(|error| to_backend_error(&name, &error))?;
        let readers = (0..READERS)
            .map(|_| open().map(|(connection, _)| Arc::new(Mutex::new(connection))))
            .collect::<Result<_, _>>()?;
        Ok((Self { name, writer: Arc::new(Mutex::new(writer)), readers, next_reader: AtomicUsize::new(0) }, shards))
    }

    pub(super) fn open_in_memory(shards: u32) -> Result<(Self, u32), BackendError> {
        let name = "the store in memory".to_owned();
        let mut connection = Connection::open_in_memory().map_err(|error| to_backend_error(&name, &error))?;
        let shards = schema::prepare(&mut connection, &name, shards)?;
        let writer = Arc::new(Mutex::new(connection));
        Ok((Self { name, writer, readers: Vec::new(), next_reader: AtomicUsize::new(0) }, shards))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that the file's disk has free; where it does not say, SQLite will find out.
    pub(super) fn free_disk(&self) -> u64 {
        match rustix::fs::statvfs(self.name.as_str()) {
            Ok(disk) if !self.is_in_memory() => disk.f_bavail.saturating_mul(disk.f_frsize),
            _ => u64::MAX,
        }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.readers.is_empty()
    }

    /// Runs `work` in one transaction that holds the write lock from its beginning, and commits it.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let writer = self.lock_writer().await;
        self.run(writer, move |connection| {
            // Immediate: a transaction that begins by reading cannot wait for the lock later, it fails as busy.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let answer = work(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        })
        .await
    }

    /// Runs `work` on one snapshot of the database.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let reader = match self.readers.len() {
            0 => &self.writer,
            count => &self.readers[self.next_reader.fetch_add(1, Ordering::Relaxed) % count],
        };
        let reader = Arc::clone(reader).lock_owned().await;
        self.run(reader, move |connection| work(&connection.transaction()?)).await
    }

    /// Waits for the writing connection, first come, first served.
    pub(super) async fn lock_writer(&self) -> OwnedMutexGuard<Connection> {
        Arc::clone(&self.writer).lock_owned().await
    }

    /// Runs `work` with a connection: on the blocking pool where it may wait for a disk, right here in memory. Once
    /// begun it runs to its end, even where the caller is dropped.
    pub(super) async fn run<T, F>(
        &self,
        mut connection: OwnedMutexGuard<Connection>,
        work: F,
    ) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let result = if self.is_in_memory() {
            work(&mut connection)
        } else {
            tokio::task::spawn_blocking(move || work(&mut connection))
                .await
                .map_err(|error| BackendError::Unavailable(format!("{}: {error}", self.name)))?
        };
        result.map_err(|error| to_backend_error(&self.name, &error))
    }
}

/// What a SQLite error means to a caller of a seam.
///
/// A full disk is reported by SQLite as `SQLITE_FULL` where it writes pages. In rarer places (extending the shared
/// memory file) it is an I/O error, which callers retry: the effect is the same.
pub(super) fn to_backend_error(name: &str, error: &rusqlite::Error) -> BackendError {
    let text = format!("{name}: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => BackendError::Full(text),
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::SchemaChanged,
        ) => BackendError::Unavailable(text),
        _ => BackendError::Misconfigured(text),
    }
}
