//! A child process that ends with the value that stands for it, and with this process however that ends.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Under a second on an idle machine; the tests may keep it busy.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// So much of its output is told when it ends by itself.
const TAIL_LINES: usize = 40;

/// What both emulators print before their address, once they listen on it.
const ANNOUNCEMENT: &str = "Running on ";

/// Becomes the program, after it has left behind a watcher that kills it when standard input ends without a word: a
/// process that was killed with SIGKILL says nothing, but the system closes its pipes.
const WATCHED: &str = r#"
exec 3<&0
{ read -r line || kill -9 $$; } <&3 >/dev/null 2>&1 3<&- &
exec "$@" </dev/null 3<&-
"#;

#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: File,
}

impl Process {
    /// Starts the command and waits until it prints the address that it listens on.
    pub async fn start(name: &'static str, command: &Command) -> Result<(Self, String), String> {
        let spawned = Self::spawn(name, command);
        let mut process = spawned.map_err(|error| format!("{name} cannot be started: {error}"))?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let ended = process.child.try_wait().map_err(|error| format!("{name}: {error}"))?;
            let text =
                contents(&process.log).map_err(|error| format!("the output of {name} cannot be read: {error}"))?;
            if let Some(address) = announced(&text) {
                return Ok((process, address.to_owned()));
            }
            if let Some(status) = ended {
                return Err(format!("{name} ended at its start ({status}): {}", text.trim()));
            }
            if Instant::now() > deadline {
                return Err(format!("{name} does not listen after {START_LIMIT:?}: {}", text.trim()));
            }
            sleep(POLL).await;
        }
    }

    /// Says how it ended, and its last words, if it has.
    pub fn check(&mut self) -> Result<(), String> {
        let name = self.name;
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let text = contents(&self.log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
                Err(format!("{name} ended by itself ({status}); its output ends with:\n{tail}"))
            }
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    /// Its output goes to a file without a name, because nobody would go on reading a pipe.
    fn spawn(name: &'static str, command: &Command) -> io::Result<Self> {
        let log = tempfile::tempfile()?;
        let mut watched = Command::new("/bin/sh");
        watched.args(["-c", WATCHED, "emulator"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watched.env(name, value),
                None => watched.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            watched.current_dir(directory);
        }
        let child = watched
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            // A signal to the test's own group must not take the emulator first.
            .process_group(0)
            .spawn()?;
        Ok(Self { name, child, log })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Before the wait, which would close it.
        let stdin = self.child.stdin.take();
        // It has nothing to save. Errors mean that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // After the word the watcher leaves without a kill, which might hit a new process with the same id.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(b"ended\n");
        }
    }
}

/// Reads at positions: the position of the file itself belongs to the child too.
fn contents(log: &File) -> io::Result<String> {
    let mut bytes = vec![0; log.metadata()?.len().try_into().unwrap_or(usize::MAX)];
    let read = log.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The address of a complete line.
fn announced(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(ANNOUNCEMENT)?;
    rest.split_once(char::is_whitespace).map(|(address, _)| address)
}
