//! Clocks of workers that can be moved: libfaketime, which stands between a program and the system's clock.
//!
//! Only the wall clock is moved. The monotonic clock of a real machine does not jump; a process sees it jump when it is
//! paused, and that is another fault.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The variant for programs with threads: where `emulators/setup.sh` puts the library, and where Debian's package does.
const PLACES: [&str; 3] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/faketime/libfaketimeMT.so.1"),
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];
const FILE: &str = "clock";
const PROBE_SECONDS: i32 = 3600;

/// Moves the clocks of the processes that were started with its environment.
#[derive(Clone, Debug)]
pub struct FakeClock {
    library: PathBuf,
}

impl FakeClock {
    /// With the library that is installed, once it has moved the clock of a small program in `dir`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(dir: &Path) -> Result<Self, String> {
        let library = PLACES.iter().map(Path::new).find(|path| path.exists()).ok_or("libfaketime is not installed")?;
        let clock = Self { library: library.to_owned() };
        match clock.moves(dir) {
            Ok(true) => Ok(clock),
            Ok(false) => Err(format!("{} does not move the clock of `date`", library.display())),
            Err(error) => Err(format!("{}: {error:#}", library.display())),
        }
    }

    fn moves(&self, dir: &Path) -> anyhow::Result<bool> {
        let time = |environment: Vec<(&'static str, String)>| -> anyhow::Result<i64> {
            let output = Command::new("date").arg("+%s").envs(environment).output().context("`date +%s`")?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
        };
        let environment = self.environment(dir)?;
        set(dir, PROBE_SECONDS)?;
        Ok(time(environment)? - time(Vec::new())? > i64::from(PROBE_SECONDS / 2))
    }

    /// What a process needs, whose clock is moved by a file in `dir`. It shows the true time at first.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn environment(&self, dir: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
        set(dir, 0)?;
        Ok(vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", dir.join(FILE).display().to_string()),
            // How old its knowledge of the file may be, in seconds.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            // The times of files stay true.
            ("NO_FAKE_STAT", "1".to_owned()),
        ])
    }
}

/// Moves the clock of the process with this directory to so many seconds from the true time.
///
/// # Errors
/// When the file cannot be written.
pub fn set(dir: &Path, seconds: i32) -> anyhow::Result<()> {
    let (path, new) = (dir.join(FILE), dir.join("clock.new"));
    std::fs::write(&new, format!("{seconds:+}\n"))
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("the clock file {}", path.display()))
}
