//! The admin API of metering: meters, usage, cancellation, ingestion, dead letters, customers.
//!
//! Start reading at [`app`]: what the API is made of. [`routes`] are its endpoints, [`surroundings`] what is done for
//! every request, [`auth`] who may call, [`amberflo`] how Amberflo is asked, [`problem`] the one form of every error.

pub mod amberflo;
pub mod app;
pub mod auth;
pub mod bus;
pub mod config;
pub mod customers;
pub mod extract;
#[cfg(feature = "lambda")]
pub mod lambda;
pub mod problem;
pub mod routes;
pub mod status;
pub mod surroundings;

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
