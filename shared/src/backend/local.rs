//! The embedded store: stream, leases and dead letters of one machine in one SQLite file, `DIR/metering.sqlite`.
//!
//! It is a supported way to run on a single node, not a mock. What it promises:
//!
//! - A write is answered after its transaction is committed and synced to disk (`synchronous=FULL` in WAL mode).
//! - Any number of processes may open the same directory (the worker and the control API do); SQLite's locks keep
//!   them apart. Only one ingest-worker may run on it: [`LocalStore::try_lock_worker`].
//! - Positions never repeat, not even after everything has been pruned.
//! - A full store refuses to publish, and nothing else: checkpoints and dead letters can still be written, so that a
//!   worker can drain it.

mod database;
mod dead_letters;
mod leases;
mod prune;
mod schema;
mod shards;
mod stream;
mod worker_lock;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::backend::BackendError;
use crate::clock::Clock;

use database::Database;
use stream::Queue;
pub use worker_lock::WorkerLock;

/// The name of the database file in the store's directory.
pub const FILE_NAME: &str = "metering.sqlite";

/// The most shards that a store can be created with.
pub const MAX_SHARDS: u32 = 1024;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Number of shards, from 1 to [`MAX_SHARDS`]. Fixed when the file is created; an existing file keeps its own.
    pub shards: u32,
    /// How long before the checkpoint's arrival time records are kept: at least what the rebuild of the dedup window
    /// reads. The caller passes twice the window and some slack.
    pub retention: Duration,
    /// Publishing beyond this many bytes of used pages is refused as [`BackendError::Full`].
    pub max_bytes: u64,
    /// Publishing is refused as [`BackendError::Full`] too while the disk has less than this free: without room for
    /// checkpoints and dead letters nothing could be settled, so nothing pruned, and a full disk would stay full.
    pub reserve_bytes: u64,
    /// Tells arrival times and when hidden dead letters become visible again.
    pub clock: Clock,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            shards: 4,
            retention: Duration::from_secs(2 * 120 + 30),
            max_bytes: 8 << 30,
            reserve_bytes: 64 << 20,
            clock: Clock::system(),
        }
    }
}

/// The local end of [`Stream`](crate::backend::Stream), [`Leases`](crate::backend::Leases) and
/// [`DeadLetters`](crate::backend::DeadLetters). Cheap to clone; the file is closed with the last clone.
#[derive(Clone)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    /// As the file says, which may differ from `options.shards`.
    shards: u32,
    options: LocalOptions,
    /// Calls of `publish` that wait for a commit.
    queue: Arc<Queue>,
    /// Fired after each commit of records by this process.
    published: Arc<Notify>,
}

impl LocalStore {
    /// Opens the store in `dir`, creating directory and file where they are missing. Blocks for a few file operations.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] where the directory cannot be used, or the file is not one of ours or of a newer
    /// version; [`BackendError::Unavailable`] where another process keeps it locked.
    pub fn open(dir: &Path, options: LocalOptions) -> Result<Self, BackendError> {
        validate(&options)?;
        create_dir(dir)?;
        let (database, shards) = Database::open(&dir.join(FILE_NAME), options.shards)?;
        Ok(Self::new(database, shards, options))
    }

    /// A store in memory, for simulations: every call runs to its end on the calling task, without threads, so that a
    /// seeded run on a current-thread runtime repeats exactly.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] for an invalid number of shards.
    pub fn open_in_memory(options: LocalOptions) -> Result<Self, BackendError> {
        validate(&options)?;
        let (database, shards) = Database::open_in_memory(options.shards)?;
        Ok(Self::new(database, shards, options))
    }

    /// Claims `dir` for one ingest-worker until the guard is dropped or the process ends, however it ends.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] where another worker holds it, or the directory cannot be used.
    pub fn try_lock_worker(dir: &Path) -> Result<WorkerLock, BackendError> {
        create_dir(dir)?;
        WorkerLock::acquire(dir)
    }

    fn new(database: Database, shards: u32, options: LocalOptions) -> Self {
        if shards != options.shards {
            tracing::info!(shards, configured = options.shards, "the store keeps the shard count it was created with");
        }
        let (queue, published) = (Arc::default(), Arc::default());
        Self { inner: Arc::new(Inner { database, shards, options, queue, published }) }
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("database", &self.inner.database.name()).finish_non_exhaustive()
    }
}

fn validate(options: &LocalOptions) -> Result<(), BackendError> {
    if (1..=MAX_SHARDS).contains(&options.shards) {
        return Ok(());
    }
    Err(BackendError::Misconfigured(format!("{} shards: a local stream has 1 to {MAX_SHARDS}", options.shards)))
}

fn create_dir(dir: &Path) -> Result<(), BackendError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| BackendError::Misconfigured(format!("cannot create the directory {}: {error}", dir.display())))
}
