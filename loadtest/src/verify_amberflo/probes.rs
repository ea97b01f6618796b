//! All probes, in the order in which they are shown.

mod answers;
mod bodies;
mod dedup;
mod meters;
mod rest;

use super::probe::Probe;
pub use bodies::{BATCH_BYTES, BATCH_RECORDS};

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    [dedup::PROBES, answers::PROBES, bodies::PROBES, meters::PROBES, rest::PROBES].into_iter().flatten()
}
