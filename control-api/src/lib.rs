//! The admin API of metering: meters, usage, cancellation, ingestion, dead letters, customers.
//!
//! Start reading at [`app`]: what the API is made of. [`routes`] are its endpoints, [`amberflo`] how they ask Amberflo,
//! [`problem`] the one form of every error.

pub mod amberflo;
pub mod app;
pub mod auth;
pub mod config;
pub mod extract;
pub mod problem;
pub mod routes;
