//! On what a result was measured.

use std::process::Command;

use serde::Serialize;
use shared::clock::Clock;

/// This machine, and what the program was built with.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub cpu: String,
    /// Kernel or system, and architecture.
    pub os: String,
    /// The compiler's version.
    pub rustc: String,
    /// `debug` or `release`.
    pub profile: &'static str,
}

/// The commit of this source tree, and whether it was changed since; `None` where git does not tell. A long run asks
/// when it begins: the tree may be another when it ends.
#[must_use]
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_changed = !git(&["status", "--porcelain"])?.is_empty();
    Some(if is_changed { format!("{commit}, changed") } else { commit })
}

/// The time, to the second.
#[must_use]
pub fn now() -> String {
    let now = jiff::Timestamp::from_millisecond(Clock::system().now()).unwrap_or_default();
    format!("{now:.0}")
}

impl Machine {
    /// What can be found out of it.
    #[must_use]
    pub fn here() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let os = [std::env::consts::OS, kernel.trim(), std::env::consts::ARCH];
        // The toolchain is pinned in rust-toolchain.toml, so the compiler found here is the one that built this.
        let rustc = Command::new("rustc").arg("--version").output().ok();
        let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: cpu.map_or("unknown CPU", |(_, name)| name).to_owned(),
            os: os.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
            rustc: rustc.filter(|version| !version.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}
