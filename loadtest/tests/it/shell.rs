//! A shell that commands of a document are pasted into.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Deserializer, Value};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// The AWS CLI starts a Python program for every call; the machine may be busy with the other tests.
const TIME_LIMIT: Duration = Duration::from_secs(120);
const END: &str = "end-of-what-was-pasted";

/// One shell, in which a variable lives as long as it does in a newcomer's.
pub struct Shell {
    /// Where its files are.
    pub home: TempDir,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _shell: Child,
}

impl Shell {
    /// Opens one that has nothing of the developer's settings: no profile, no proxy, no other endpoint. Programs in `bin`
    /// of its home come before others.
    pub async fn open(variables: &[(&str, String)]) -> Self {
        let home = TempDir::new().unwrap();
        let bin = home.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let path = format!("{}:{}:{}", bin.display(), tools().join("python/bin").display(), search_path());
        let mut shell = Command::new("sh")
            .env_clear()
            .env("PATH", path)
            .env("HOME", home.path())
            .env("PYTHONUTF8", "1")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let stdout = BufReader::new(stdout).lines();
        let mut shell = Self { home, stdin, stdout, _shell: shell };
        // Whatever fails, or has no value, ends the shell.
        shell.paste("set -eu").await;
        shell
    }

    /// Runs commands, and answers what they printed.
    pub async fn paste(&mut self, commands: &str) -> String {
        let script = format!("{}\nprintf '\\n%s\\n' {END}\n", commands.trim_end());
        let run = async {
            self.stdin.write_all(script.as_bytes()).await.unwrap();
            let mut printed = String::new();
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                if line == END {
                    return printed;
                }
                printed.push_str(&line);
                printed.push('\n');
            }
            panic!("the shell has ended\n{commands}\n{printed}");
        };
        timeout(TIME_LIMIT, run).await.unwrap_or_else(|_| panic!("no end\n{commands}"))
    }

    /// The same for commands that print JSON.
    pub async fn answers(&mut self, commands: &str) -> Vec<Value> {
        let printed = self.paste(commands).await;
        let answers: Result<Vec<_>, _> = Deserializer::from_str(&printed).into_iter().collect();
        answers.unwrap_or_else(|error| panic!("{error}\n{commands}\n{printed}"))
    }

    /// The same for a command that prints one answer.
    pub async fn answer(&mut self, command: &str) -> Value {
        let answers = self.answers(command).await;
        <[Value; 1]>::try_from(answers).unwrap_or_else(|answers| panic!("one answer\n{command}\n{answers:?}"))[0].take()
    }

    /// Makes a program that it finds before others of the name.
    pub fn add_program(&self, name: &str, script: &str) {
        let file = self.home.path().join("bin").join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    }
}

/// What `ingest-worker/tests/clients/setup.sh` installs.
pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools")
}

#[expect(clippy::disallowed_methods, reason = "a test has no config module")]
fn search_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}
