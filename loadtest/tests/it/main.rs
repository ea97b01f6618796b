//! The program, run as a user does.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod bench_peers;
mod demo;
mod dev;
mod document;
mod drill;
mod end_to_end;
mod growth;
mod harness;
mod load;
mod metrics;
mod readme;
mod runbook;
mod shell;
mod verify_amberflo;
