//! A terminal beside `make dev`.

use serde_json::Value;

use crate::document::Block;
use crate::harness::{Dev, eventually};
use crate::shell::Shell;

/// A shell for text that has the default ports.
pub struct Terminal<'a> {
    dev: &'a Dev,
    /// What runs the commands.
    pub shell: Shell,
}

impl<'a> Terminal<'a> {
    pub async fn open(dev: &'a Dev) -> Self {
        Self { dev, shell: Shell::open(&[]).await }
    }

    /// Runs commands with the ports of this `dev`, and answers what they printed.
    pub async fn paste(&mut self, commands: &str) -> String {
        let commands = self.with_ports(commands);
        self.shell.paste(&commands).await
    }

    /// The same for commands that print JSON.
    pub async fn answers(&mut self, commands: &str) -> Vec<Value> {
        let commands = self.with_ports(commands);
        self.shell.answers(&commands).await
    }

    pub async fn answer(&mut self, command: &str) -> Value {
        let command = self.with_ports(command);
        self.shell.answer(&command).await
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
