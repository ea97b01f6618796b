//! When the sandbox misbehaves during a demo, and how.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use amberflo_sandbox::{Faults, Poison, Trigger};

/// The sandbox refuses every record whose `uniqueId` begins with this, at any time.
pub const POISON_PREFIX: &str = "poison-";
/// The API key at first.
pub const FIRST_KEY: &str = "demo-key-1";
/// The API key after the rotation.
pub const SECOND_KEY: &str = "demo-key-2";

/// The worker reads a refused key anew at most every 30 s, the first time 30 s after it started. In a run shorter than
/// this the rotation would come too soon after the restart, and be one long stall.
const ROTATION_NEEDS: Duration = Duration::from_secs(120);

/// The worker is killed after this share of the run: amid requests that were accepted and not answered, because there
/// a restart has the most to lose.
pub const KILL_AT: f64 = 0.5;

/// A stretch of the run.
#[derive(Clone, Debug)]
pub struct Phase {
    /// When it begins, since the first event.
    pub at: Duration,
    /// What goes wrong, for people.
    pub name: &'static str,
    /// What goes wrong, for the sandbox.
    pub faults: Faults,
    /// Whether the key file changes just before.
    pub rotates_key: bool,
}

/// The phases of a run that takes `duration`; the last one is quiet.
#[must_use]
pub fn schedule(duration: Duration, seed: u64) -> Vec<Phase> {
    let rotates = duration >= ROTATION_NEEDS;
    let quiet = || Faults { seed, poison: poison(), ..Faults::default() };
    let rate = Trigger::rate;
    let five = NonZeroU32::new(5);
    let mut plan = vec![
        (0.00, "none", quiet()),
        (
            0.10,
            "429 with Retry-After",
            Faults { throttle: rate(0.3), retry_after: Some(Duration::from_secs(1)), ..quiet() },
        ),
        (0.20, "5xx before accepting", Faults { fail_before: rate(0.4), ..quiet() }),
        (0.30, "none", quiet()),
        (0.35, "5xx after accepting", Faults { fail_after: rate(0.4), ..quiet() }),
        (0.44, "no answer after accepting", Faults { hang_after: rate(0.4), fail_after: rate(0.2), ..quiet() }),
        (0.58, "5 requests/s, 429 without Retry-After", Faults { requests_per_second: five, ..quiet() }),
        (0.68, "no answer, nothing accepted", Faults { hang_before: rate(0.3), ..quiet() }),
        (0.75, "a batch accepted in part", Faults { partial_ingest: Trigger::next(1), ..quiet() }),
    ];
    if rotates {
        plan.push((0.80, "old API key refused", quiet()));
    }
    plan.push((0.85, "none", quiet()));
    let mut is_rotated = false;
    plan.into_iter()
        .map(|(share, name, mut faults)| {
            let rotates_key = name == "old API key refused";
            is_rotated |= rotates_key;
            if is_rotated {
                faults.valid_keys = Some(BTreeSet::from([SECOND_KEY.to_owned()]));
            }
            Phase { at: duration.mul_f64(share), name, faults, rotates_key }
        })
        .collect()
}

fn poison() -> Vec<Poison> {
    vec![Poison { status: 400, unique_id_prefixes: vec![POISON_PREFIX.to_owned()], ..Poison::default() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_order_and_end_quiet() {
        for seconds in [2, 20, 120, 600] {
            let phases = schedule(Duration::from_secs(seconds), 1);
            assert!(phases.is_sorted_by_key(|phase| phase.at));
            for phase in &phases {
                phase.faults.check().unwrap();
            }
            let last = phases.last().unwrap();
            assert_eq!((last.name, &last.faults.poison), ("none", &poison()));
            assert_eq!(phases.iter().any(|phase| phase.rotates_key), seconds >= 120);
            assert_eq!(last.faults.valid_keys.is_some(), seconds >= 120, "the old key stays refused");
        }
    }
}
