//! A terminal beside `make dev`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Deserializer, Value};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::document::Block;
use crate::harness::{Dev, eventually};

/// The AWS CLI starts a Python program for every call; the machine may be busy with the other tests.
const TIME_LIMIT: Duration = Duration::from_secs(120);
const END: &str = "end-of-what-was-pasted";

/// One shell, in which a variable lives as long as it does in a newcomer's.
pub struct Terminal<'a> {
    dev: &'a Dev,
    /// Where its files are.
    pub home: TempDir,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _shell: Child,
}

impl<'a> Terminal<'a> {
    /// Opens one that has nothing of the developer's settings: no profile, no proxy, no other endpoint.
    pub async fn open(dev: &'a Dev) -> Self {
        let home = TempDir::new().unwrap();
        let path = format!("{}:{}", tools().join("python/bin").display(), search_path());
        let mut shell = Command::new("sh")
            .env_clear()
            .env("PATH", path)
            .env("HOME", home.path())
            .env("PYTHONUTF8", "1")
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let stdout = BufReader::new(stdout).lines();
        let mut terminal = Self { dev, home, stdin, stdout, _shell: shell };
        // Whatever fails, or has no value, ends the shell.
        terminal.paste("set -eu").await;
        terminal
    }

    /// Runs commands with the ports of this `dev`, and answers what they printed.
    pub async fn paste(&mut self, commands: &str) -> String {
        let commands = self.with_ports(commands);
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

    pub async fn answer(&mut self, command: &str) -> Value {
        let answers = self.answers(command).await;
        <[Value; 1]>::try_from(answers).unwrap_or_else(|answers| panic!("one answer\n{command}\n{answers:?}"))[0].take()
    }

    /// Pastes the last command of a block until it answers so.
    pub async fn until(&mut self, block: &Block, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(block.query(), async || {
            let answer = self.answer(block.query()).await;
            if answer != last {
                println!("{answer}");
                last.clone_from(&answer);
            }
            is_so(&answer).then_some(answer)
        })
        .await
    }

    /// The text has the default ports.
    fn with_ports(&self, text: &str) -> String {
        let host = "127.0.0.1:";
        let mut parts = text.split(host);
        let mut result = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
            let (port, rest) = part.split_at(end);
            let url = match port {
                "4010" => self.dev.url("event bus"),
                "8080" => self.dev.url("control API"),
                "4020" => self.dev.url("Amberflo"),
                // What the test itself asks.
                other => format!("http://{host}{other}"),
            };
            let url = url.strip_prefix("http://").unwrap();
            assert!(self.dev.addresses().iter().any(|address| address.to_string() == url), "who is {url}? {text}");
            result.push_str(url);
            result.push_str(rest);
        }
        result
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
