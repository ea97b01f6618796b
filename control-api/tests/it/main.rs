//! The API over real sockets, against the sandbox that stands in for Amberflo.

mod auth;
