//! A disk that can be filled: a small file system in memory, in a mount namespace of this program's own.
//!
//! Such a namespace needs no root where the system lets users have namespaces. The program starts itself again within.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// Room for the records of an hour at some hundreds a second, which the store prunes, and for the part of the disk that
/// it leaves free.
const SIZE: &str = "size=384m";
/// Becomes the program that follows the directory, with the file system mounted on it.
const MOUNT: &str = r#"mount -t tmpfs -o "$0" chaos "$1" && shift && exec "$@""#;
const BALLAST: &str = "ballast";
const CHUNK: usize = 1 << 20;

/// Whether this program can have such a disk.
#[must_use]
pub fn is_possible(dir: &Path) -> bool {
    let status = within(dir).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Starts this program again with these arguments and the disk on `dir`. Returns only where that fails.
pub fn restart(dir: &Path, arguments: &[OsString]) -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    within(dir).arg(program).args(arguments).exec().into()
}

fn within(dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, SIZE]).arg(dir);
    command
}

/// Takes every byte that is left.
///
/// # Errors
/// When that fails otherwise than by the disk being full.
pub fn fill(disk: &Path) -> anyhow::Result<()> {
    let path = disk.join(BALLAST);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.with_context(|| path.display().to_string())?;
    let mut chunk = CHUNK;
    let zeros = vec![0; CHUNK];
    while chunk > 0 {
        match file.write_all(&zeros[..chunk]) {
            Ok(()) => {}
            // What is left is less than a chunk.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => chunk /= 2,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(())
}

/// Gives it back.
///
/// # Errors
/// When that fails.
pub fn empty(disk: &Path) -> anyhow::Result<()> {
    let path = disk.join(BALLAST);
    std::fs::remove_file(&path).with_context(|| path.display().to_string())
}
