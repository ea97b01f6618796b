//! Integration tests of what the services share: the seams, on real files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

mod canned;
mod contract;
mod dead_letters;
mod dynamodb;
mod event;
mod kinesis;
mod local;
mod redrive;
mod secrets;
mod sqs;
