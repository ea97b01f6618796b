//! The API over real sockets, against the sandbox that stands in for Amberflo.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod auth;
mod cancel;
mod customers;
mod dead_letters;
mod documentation;
mod harness;
mod ingest;
#[cfg(feature = "lambda")]
mod lambda;
mod meters;
mod meters_deletion;
mod meters_failures;
mod meters_unknown_answers;
mod process;
mod requests;
mod schemathesis;
mod usage;
