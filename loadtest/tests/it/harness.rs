//! A `loadtest dev` in a process of its own, on free ports.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

/// For anything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be kept running.
pub struct Dev {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    /// What it has printed.
    pub printed: String,
    /// The commands to paste.
    pub commands: Vec<String>,
}

/// The flags that let it take free ports.
pub const FREE_PORTS: [&str; 5] =
    ["--control-api-port=0", "--control-api-admin-port=0", "--bus-port=0", "--worker-admin-port=0", "--sandbox-port=0"];

pub fn loadtest(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Dev {
    /// Starts it and reads what it prints up to its last command.
    pub async fn start() -> Self {
        Self::start_with(loadtest(&["dev"]).args(FREE_PORTS)).await
    }

    pub async fn start_with(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (printed, commands) = (String::new(), Vec::new());
        let mut dev = Self { child, stdout: BufReader::new(stdout), stderr, printed, commands };
        timeout(PATIENCE, dev.read_guide()).await.expect("it says nothing of usage");
        dev
    }

    async fn read_guide(&mut self) {
        while !self.commands.last().is_some_and(|command| command.contains("/usage/")) {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).await.unwrap() == 0 {
                let mut errors = String::new();
                self.stderr.read_to_string(&mut errors).await.unwrap();
                panic!("it ended: {}\n{errors}", self.printed);
            }
            if let Some(command) = line.strip_prefix("  ").filter(|command| command.contains("curl ")) {
                self.commands.push(command.trim_end().to_owned());
            }
            self.printed.push_str(&line);
        }
    }

    /// The rest of a line, after this beginning.
    fn line(&self, beginning: &str) -> &str {
        let line = self.printed.lines().find_map(|line| line.strip_prefix(beginning));
        line.unwrap_or_else(|| panic!("{beginning:?} in\n{}", self.printed)).trim()
    }

    /// The first URL of the line that begins so, such as `event bus`.
    pub fn url(&self, name: &str) -> String {
        self.urls(name).remove(0)
    }

    /// All URLs of the line that begins so.
    pub fn urls(&self, name: &str) -> Vec<String> {
        self.line(name).split_whitespace().filter(|word| word.starts_with("http://")).map(str::to_owned).collect()
    }

    /// All addresses on which it and its services answer.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let urls = self.printed.split("http://").skip(1);
        let mut addresses: Vec<SocketAddr> = urls
            .map(|url| url.split(|character: char| character == '/' || character.is_whitespace()).next().unwrap())
            .map(|address| address.parse().unwrap())
            .collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// Where its stream and its dead letters are.
    pub fn stream(&self) -> PathBuf {
        self.line("stream").split(" (").next().unwrap().into()
    }

    /// Where all its files are.
    pub fn directory(&self) -> PathBuf {
        self.stream().parent().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end: how it ended, and what it had said on standard error.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let mut errors = String::new();
        let read = async {
            self.stdout.read_to_string(&mut self.printed).await.unwrap();
            self.stderr.read_to_string(&mut errors).await.unwrap();
            self.child.wait().await.unwrap()
        };
        (timeout(PATIENCE, read).await.expect("it does not end"), errors)
    }

    /// Ends it with SIGINT, as Ctrl-C does; answers what it had said on standard error.
    pub async fn stop(self) -> String {
        self.signal(Signal::INT);
        let (status, errors) = self.ended().await;
        assert_eq!(status.code(), Some(0), "{errors}");
        errors
    }
}

/// Pastes a command into a shell: its standard output as JSON.
pub async fn paste(command: &str) -> Value {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output();
    let output = timeout(PATIENCE, output).await.expect("no answer").unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}\n{text}\n{error}"))
}

/// Asks until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Whether nobody listens there.
pub fn is_free(address: &SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}
