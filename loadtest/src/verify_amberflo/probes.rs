//! All probes, in the order in which they are shown.

mod answers;
mod bodies;
mod dedup;
mod events;
mod meters;
mod rest;
mod rules;

use super::probe::Probe;
pub use bodies::{BATCH_BYTES, BATCH_RECORDS};

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    by_default().chain(on_request())
}

/// Those that run where none is named.
pub fn by_default() -> impl Iterator<Item = &'static Probe> {
    [dedup::PROBES, answers::PROBES, bodies::PROBES, meters::PROBES, rest::PROBES, events::PROBES, rules::PROBES]
        .into_iter()
        .flatten()
}

/// Those that run only where they are named, because of what they may leave behind.
pub fn on_request() -> impl Iterator<Item = &'static Probe> {
    meters::ON_REQUEST.iter()
}
