//! The API over real sockets, against the sandbox that stands in for Amberflo.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod cancel;
mod harness;
mod meters;
mod meters_deletion;
mod meters_failures;
mod meters_unknown_answers;
mod requests;
mod usage;
