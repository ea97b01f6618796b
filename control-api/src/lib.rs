//! The admin API of metering: meters, usage, cancellation, ingestion, dead letters, customers.

pub mod auth;
pub mod problem;
