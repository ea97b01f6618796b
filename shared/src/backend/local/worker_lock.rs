//! Keeps a second ingest-worker away from a directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::backend::BackendError;

/// Held by the one ingest-worker of a directory. The operating system lets go of the lock when the process ends, so a
/// killed worker leaves nothing to clean up; the file itself stays.
#[derive(Debug)]
pub struct WorkerLock {
    _file: File,
}

impl WorkerLock {
    pub(super) fn acquire(dir: &Path) -> Result<Self, BackendError> {
        let path = dir.join("worker.lock");
        let unusable = |error| BackendError::Misconfigured(format!("cannot use {}: {error}", path.display()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {
                note_process(&mut file).map_err(unusable)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => Err(taken(dir, &mut file)),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }
}

/// Leaves the process id for the message of a second worker.
fn note_process(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())
}

fn taken(dir: &Path, file: &mut File) -> BackendError {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(1..) => format!(" (process {holder})"),
        _ => String::new(),
    };
    let dir: PathBuf = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    BackendError::Misconfigured(format!(
        "another ingest-worker{holder} already runs on {}: stop it, or use another directory",
        dir.display()
    ))
}
