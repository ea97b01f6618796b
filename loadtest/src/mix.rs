//! What the events of a run are like, and which mistakes their producers make.

use std::sync::Arc;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// What is metered unless a run says otherwise.
pub const METERS: [&str; 5] =
    ["api-calls", "storage-gb-hours", "compute-seconds", "data-transfer-bytes", "active-seats"];

/// The mix of a run. Shares are from 0 to 1, of the events that are made; copies and conflicts come on top.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Mix {
    /// How many tenants use the application.
    pub tenants: u32,
    /// How unevenly: the exponent of Zipf's law. With 0 all are alike, with 1 the second uses half as much as the first.
    pub skew: f64,
    /// What is metered.
    pub meters: Vec<Arc<str>>,
    /// Bytes that the `detail` of a valid event has at least; a dimension fills it up. (The filling is the same in all
    /// events, so that gzip makes little of it.)
    pub size: usize,
    /// Share of events that are sent twice: half of them at once, half one to three seconds later.
    pub duplicates: f64,
    /// Share of events that are no usage events.
    pub malformed: f64,
    /// Share of events after which another comes with the same `uniqueId` and another value.
    pub conflicts: f64,
    /// Share of events whose `uniqueId` begins with [`POISON_PREFIX`](crate::faults::POISON_PREFIX), which a stand-in for
    /// Amberflo can be told to refuse.
    pub poison: f64,
    /// Share of events that carry a `meterTimeInMillis`. A copy of one without it is told only while the worker's
    /// deduplication window lasts.
    pub timed: f64,
    /// A part of every `uniqueId` and `tenantId`, so that runs do not meet; may be empty.
    pub run: String,
}

impl Mix {
    /// An even load without mistakes, whose names carry this run's.
    #[must_use]
    pub fn sound(run: String) -> Self {
        Self {
            tenants: 50,
            skew: 0.0,
            meters: METERS.map(Arc::from).into(),
            size: 0,
            duplicates: 0.0,
            malformed: 0.0,
            conflicts: 0.0,
            poison: 0.0,
            timed: 1.0,
            run,
        }
    }

    /// What the demo shows: a few tenants make most of the traffic, and every mistake is made.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            skew: 0.5,
            duplicates: 1.0 / 20.0,
            malformed: 1.0 / 200.0,
            conflicts: 1.0 / 500.0,
            // Rarer, because each costs some 20 requests: it is found by halving, and the account has 10 requests a second.
            poison: 1.0 / 20_000.0,
            timed: 0.5,
            ..Self::sound(String::new())
        }
    }

    /// A name that no other run has.
    #[must_use]
    pub fn new_run() -> String {
        format!("lt{:012x}", fastrand::u64(..) >> 16)
    }
}

/// Fixed places instead of chance, so that a short run has all mistakes: the events of which these many are a `share`,
/// the first after the `phase`th part of the distance between two.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    share: f64,
    phase: f64,
}

impl Places {
    /// `share` and `phase` are from 0 to 1.
    #[must_use]
    pub fn new(share: f64, phase: f64) -> Self {
        Self { share, phase }
    }

    /// Whether the event of this number is one.
    #[must_use]
    pub fn has(self, number: u64) -> bool {
        let until = |number: f64| (number * self.share + 1.0 - self.phase).floor();
        until(number as f64) > until(number as f64 - 1.0)
    }
}

/// Chooses tenants by Zipf's law.
#[derive(Clone, Debug)]
pub struct Tenants {
    /// The sum of the weights up to each.
    sums: Vec<f64>,
}

impl Tenants {
    /// So many tenants, at least one, with this exponent.
    #[must_use]
    pub fn new(count: u32, skew: f64) -> Self {
        let mut sum = 0.0;
        let add = |rank: u32| {
            sum += f64::from(rank).powf(-skew);
            sum
        };
        Self { sums: (1..=count.max(1)).map(add).collect() }
    }

    /// One of them, from 1; low numbers are chosen more often.
    pub fn choose(&self, rng: &mut Rng) -> usize {
        let total = self.sums.last().copied().unwrap_or_default();
        let at = rng.f64() * total;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_many_as_their_share() {
        for (share, phase) in
            [(0.0, 0.0), (0.0, 0.5), (0.005, 1.0 / 3.0), (0.05, 0.0), (0.3, 0.5), (1.0, 0.0), (1.0, 0.5)]
        {
            let hits = (0..10_000).filter(|&number| Places::new(share, phase).has(number)).count() as f64;
            assert!((hits - share * 10_000.0).abs() <= 1.0, "{share} {phase}: {hits}");
        }
        assert!(Places::new(0.05, 0.0).has(0));
    }

    #[test]
    fn tenants_follow_zipfs_law() {
        let mut rng = Rng::with_seed(1);
        let mut counts = |skew: f64| {
            let tenants = Tenants::new(10, skew);
            let mut counts = [0_u32; 10];
            (0..100_000).for_each(|_| counts[tenants.choose(&mut rng) - 1] += 1);
            counts
        };
        assert!(counts(0.0).iter().all(|count| (9_500..=10_500).contains(count)));
        let skewed = counts(1.0);
        let ratio = f64::from(skewed[0]) / f64::from(skewed[1]);
        assert!((1.9..=2.1).contains(&ratio), "{skewed:?}");
        assert!(skewed[9] > 0);
    }
}
