//! Moves usage events from a stream to Amberflo: deduplicated, batched, inside its limits, nothing lost.
//!
//! Start reading at [`shard`]: it is the path of an event. [`submit`] is what Amberflo's answers mean, [`worker`] how
//! shards find their worker, [`bus`] how events get in when there is no AWS.

pub mod app;
pub mod backends;
pub mod backoff;
pub mod balance;
pub mod batch;
pub mod bus;
pub mod config;
pub mod context;
pub mod dedup;
pub mod health;
#[cfg(feature = "lambda")]
pub mod lambda;
pub mod lease;
pub mod limiter;
pub mod lineage;
pub mod meters;
pub mod metrics;
pub mod operator;
pub mod reader;
pub mod rewind;
pub mod shard;
mod spans;
pub mod status;
pub mod submit;
pub mod worker;
