//! Integration tests of the ingest worker: real sockets, a real SQLite file, and a seeded simulation.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod answers;
mod bus;
mod clients;
mod fleet;
mod harness;
#[cfg(feature = "lambda")]
mod lambda;
mod metrics;
mod process;
mod replay;
mod simulation;
mod traps;
mod unreadable;
