//! What happened, and what was seen: shared between those who break, those who watch, and the report.

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
    /// Processes that were killed with SIGKILL.
    pub kills: u64,
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

    /// Adds something that must not be, to the timeline too.
    pub fn find(&self, subject: &str, text: &str) {
        self.note(subject, format!("FAILED: {text}"));
        self.state().findings.push(format!("{subject}: {text}"));
    }
}
