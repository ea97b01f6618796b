//! What happened, and what was seen: shared between those who break, those who watch, and the report.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::kind::ArenaName;

/// A line of the timeline.
#[derive(Clone, Debug, Serialize)]
pub struct Note {
    /// Since the start of the emission, in seconds.
    pub at: f64,
    /// Where.
    pub arena: ArenaName,
    /// What it is about: the name of a fault, or of a process.
    pub subject: String,
    /// What happened.
    pub text: String,
}

/// A deployment at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Point {
    /// Since the start of the emission, in seconds.
    pub at: f64,
    /// Entries that were acknowledged so far.
    pub emitted: u64,
    /// Events that were billed so far.
    pub delivered: u64,
    /// Identical copies that Amberflo's deduplication absorbed so far.
    pub absorbed: u64,
    /// The largest lag that a worker reports, in seconds; `None` where none answers.
    pub lag: Option<f64>,
    /// Workers that answer.
    pub alive: usize,
    /// Faults in force.
    pub faults: usize,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was carried out: what, in words.
    Yes(String),
    /// It was not: why.
    LeftOut(String),
    /// It was asked for; whether it could be carried out is told later.
    Later,
}

/// One deployment's.
pub struct Board {
    arena: ArenaName,
    origin: OnceLock<Instant>,
    state: Mutex<State>,
}

/// What is on it.
#[derive(Default)]
pub struct State {
    /// In order.
    pub notes: Vec<Note>,
    /// In order, about one a second.
    pub points: Vec<Point>,
    /// The names of the faults in force.
    pub active: Vec<&'static str>,
    /// What must not be.
    pub findings: Vec<String>,
    /// Workers that were killed with SIGKILL.
    pub kills: u64,
    /// How often each kind of fault was carried out: not what was left out or refused.
    pub done: BTreeMap<&'static str, u64>,
    /// How many calls met each kind of fault, where that can be counted.
    pub befell: BTreeMap<&'static str, u64>,
}

impl Board {
    /// An empty one.
    #[must_use]
    pub fn new(arena: ArenaName) -> Self {
        Self { arena, origin: OnceLock::new(), state: Mutex::default() }
    }

    /// Times count from `origin`; the first call decides.
    pub fn start(&self, origin: Instant) {
        let _ = self.origin.set(origin);
    }

    /// Whose it is.
    #[must_use]
    pub fn arena(&self) -> ArenaName {
        self.arena
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.origin.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// What is on it now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the timeline.
    pub fn note(&self, subject: impl Into<String>, text: impl Into<String>) {
        let note = Note { at: self.now().as_secs_f64(), arena: self.arena, subject: subject.into(), text: text.into() };
        self.state().notes.push(note);
    }

    /// Adds a line that tells that a fault of this kind was carried out, or why not.
    pub fn did(&self, kind: &'static str, done: Done) {
        let text = match done {
            Done::Yes(text) => {
                *self.state().done.entry(kind).or_default() += 1;
                text
            }
            Done::LeftOut(why) => format!("left out: {why}"),
            Done::Later => "asked for".to_owned(),
        };
        self.note(kind, text);
    }

    /// Adds something that must not be, to the timeline too.
    pub fn find(&self, subject: &str, text: &str) {
        self.note(subject, format!("FAILED: {text}"));
        self.state().findings.push(format!("{subject}: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_does_not_count_as_done() {
        let board = Board::new(ArenaName::Local);
        board.did("kill", Done::Yes("worker-1 killed".to_owned()));
        board.did("kill", Done::LeftOut("worker-1 is down already".to_owned()));
        board.did("split", Done::Later);
        let state = board.state();
        assert_eq!(state.done, [("kill", 1)].into());
        let texts: Vec<_> = state.notes.iter().map(|note| note.text.as_str()).collect();
        assert_eq!(texts, ["worker-1 killed", "left out: worker-1 is down already", "asked for"]);
    }
}
