//! The faults in force: what is left of their counts, and the random sequence that decides.

use std::time::Duration;

use crate::faults::{Faults, Trigger};

/// The faults that a roll of the dice decides, by the name they have in statistics and in [`Faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Throttle,
    Redirect,
    Html,
    FailBefore,
    HangBefore,
    PartialIngest,
    HangAfter,
    FailAfter,
    PartialAnswer,
    Slow,
}

const KINDS: usize = Kind::Slow as usize + 1;

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Redirect => "redirect",
            Self::Html => "html",
            Self::FailBefore => "fail_before",
            Self::HangBefore => "hang_before",
            Self::PartialIngest => "partial_ingest",
            Self::HangAfter => "hang_after",
            Self::FailAfter => "fail_after",
            Self::PartialAnswer => "partial_answer",
            Self::Slow => "slow",
        }
    }

    fn trigger(self, faults: &Faults) -> Trigger {
        match self {
            Self::Throttle => faults.throttle,
            Self::Redirect => faults.redirect,
            Self::Html => faults.html,
            Self::FailBefore => faults.fail_before,
            Self::HangBefore => faults.hang_before,
            Self::PartialIngest => faults.partial_ingest,
            Self::HangAfter => faults.hang_after,
            Self::FailAfter => faults.fail_after,
            Self::PartialAnswer => faults.partial_answer,
            Self::Slow => faults.slow,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Armed {
    faults: Faults,
    fired: [u64; KINDS],
    random: SplitMix,
}

impl Armed {
    pub(crate) fn new(faults: Faults) -> Self {
        let random = SplitMix(faults.seed);
        Self { faults, fired: [0; KINDS], random }
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The random numbers of one request: always as many, so that no fault shifts the sequence of another.
    pub(crate) fn roll(&mut self) -> Rolls {
        let mut next = || self.random.unit();
        Rolls { kinds: std::array::from_fn(|_| next()), latency: next(), status: next() }
    }

    /// Whether `kind` happens to the request that rolled `rolls`; if so one of its count is used up.
    pub(crate) fn fires(&mut self, kind: Kind, rolls: &Rolls) -> bool {
        let trigger = kind.trigger(&self.faults);
        let fired = &mut self.fired[kind as usize];
        let fires = rolls.kinds[kind as usize] < trigger.rate && trigger.count.is_none_or(|count| *fired < count);
        *fired += u64::from(fires);
        fires
    }

    pub(crate) fn latency(&self, rolls: &Rolls) -> Duration {
        let range = self.faults.latency;
        range.min + (range.max - range.min).mul_f64(rolls.latency)
    }

    pub(crate) fn fail_status(&self, rolls: &Rolls) -> u16 {
        let statuses = &self.faults.fail_statuses;
        let at = (rolls.status * statuses.len() as f64) as usize;
        statuses.get(at).copied().unwrap_or(500)
    }
}

/// One request's random numbers, each from 0 up to but not including 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rolls {
    kinds: [f64; KINDS],
    latency: f64,
    status: f64,
}

/// SplitMix64 (Steele, Lea and Flood 2014): tiny, and good enough to pick faults by.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The 53 bits that a double's mantissa holds.
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(faults: &Faults, kind: Kind, requests: usize) -> Vec<bool> {
        let mut armed = Armed::new(faults.clone());
        (0..requests)
            .map(|_| {
                let rolls = armed.roll();
                armed.fires(kind, &rolls)
            })
            .collect()
    }

    #[test]
    fn a_seed_repeats_and_other_faults_do_not_shift_it() {
        let one = Faults { seed: 3, throttle: Trigger::rate(0.5), ..Faults::default() };
        let two = Faults { slow: Trigger::rate(0.9), ..one.clone() };
        let other = Faults { seed: 4, ..one.clone() };
        let expected = sequence(&one, Kind::Throttle, 200);
        assert_eq!(sequence(&one, Kind::Throttle, 200), expected);
        assert_eq!(sequence(&two, Kind::Throttle, 200), expected);
        assert_ne!(sequence(&other, Kind::Throttle, 200), expected);
    }

    #[test]
    fn rates_and_counts_hold() {
        let hits = |trigger| {
            let faults = Faults { html: trigger, ..Faults::default() };
            sequence(&faults, Kind::Html, 10_000).into_iter().filter(|fired| *fired).count()
        };
        assert_eq!(hits(Trigger::NEVER), 0);
        assert_eq!(hits(Trigger::rate(1.0)), 10_000);
        assert_eq!(hits(Trigger::next(3)), 3);
        assert_eq!(hits(Trigger { rate: 0.5, count: Some(7) }), 7);
        assert!((900..1100).contains(&hits(Trigger::rate(0.1))));
    }

    #[test]
    fn statuses_and_latencies_cover_their_range() {
        let mut armed = Armed::new(Faults::default());
        let mut statuses = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let rolls = armed.roll();
            statuses.insert(armed.fail_status(&rolls));
            let latency = armed.latency(&rolls);
            assert!(latency >= armed.faults().latency.min && latency <= armed.faults().latency.max);
        }
        assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [500, 502, 503]);
    }
}
