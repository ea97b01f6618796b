//! When what goes wrong: a function of the seed and the length of the run alone.

use std::time::Duration;

use fastrand::Rng;

use super::kind::{ArenaName, KINDS, Kind};

/// About how long a round is: a time in which faults overlap, then a calm in which the pipeline has to recover.
const ROUND: Duration = Duration::from_secs(150);
/// Longer than the pipeline may need after the last fault: a refused sender asks again after 30 s.
const CALM: Duration = Duration::from_secs(50);
/// Without faults before the first.
const WARM_UP: Duration = Duration::from_secs(8);
/// So late in a storm come the faults after which nothing is sent for a while.
const STALLS: Duration = Duration::from_secs(25);
/// How many faults are there at a time in an arena, at most.
const LANES: usize = 3;
/// Between the end of a fault and the next of its lane, in milliseconds.
const GAP_MILLIS: std::ops::Range<u64> = 200..2500;

/// A fault, from its injection until it is healed.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Where.
    pub arena: ArenaName,
    /// What.
    pub kind: &'static Kind,
    /// When it begins, since the start of the emission.
    pub at: Duration,
    /// When it is healed.
    pub until: Duration,
    /// Which of the arena's workers, where it is about one.
    pub worker: usize,
    /// For choices that depend on the state of the run, such as which shard is split.
    pub dice: u64,
}

impl Step {
    /// The same, when it begins at `now`: if that is late, it ends later too, as far as no fault reaches into the calm.
    #[must_use]
    pub fn begun(self, now: Duration, length: Duration) -> Self {
        let end = storms(length).into_iter().map(|(_, end)| end).find(|end| *end >= self.until);
        let until = now + (self.until - self.at);
        Self { until: end.map_or(until, |end| until.min(end)).max(self.until), ..self }
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        let key = |step: &Self| (step.arena, step.kind.name, step.at, step.until, step.worker, step.dice);
        key(self) == key(other)
    }
}

/// All faults of a run of this length, in order of their beginning; at the end none is left.
#[must_use]
pub fn plan(seed: u64, length: Duration) -> Vec<Step> {
    let mut steps: Vec<Step> = ArenaName::ALL.into_iter().flat_map(|arena| arena_plan(seed, length, arena)).collect();
    steps.sort_by_key(|step| (step.at, step.arena));
    steps
}

fn arena_plan(seed: u64, length: Duration, arena: ArenaName) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed ^ (arena as u64 + 1).rotate_left(60));
    let kinds: Vec<&'static Kind> = KINDS.iter().filter(|kind| kind.arenas.contains(&arena)).collect();
    // Each kind once, in random order, before chance decides.
    let mut deck = kinds.clone();
    rng.shuffle(&mut deck);
    let mut steps: Vec<Step> = Vec::new();
    for (start, end) in storms(length) {
        let first = steps.len();
        let mut lanes = [start; LANES];
        while let Some(lane) = lanes.iter_mut().min().filter(|free| **free < end) {
            let at = *lane + Duration::from_millis(rng.u64(GAP_MILLIS));
            let round = &steps[first..];
            let may = |kind: &Kind| {
                let earlier = round.iter().filter(|step| step.kind.name == kind.name);
                let is_due = !kind.stalls || at + STALLS >= end;
                is_due && earlier.into_iter().all(|step| step.until < at && !kind.once_a_round)
            };
            let kind = match deck.iter().rposition(|kind| may(kind)) {
                Some(index) => deck.remove(index),
                None => drawn(&mut rng, &kinds, may),
            };
            let (least, most) = (u64::from(kind.seconds.0) * 1000, u64::from(kind.seconds.1) * 1000);
            let until = at + Duration::from_millis(rng.u64(least..=most));
            let (worker, dice) = (rng.usize(..arena.workers()), rng.u64(..));
            // Nothing reaches into the calm.
            if until <= end {
                steps.push(Step { arena, kind, at, until, worker, dice });
            } else {
                deck.push(kind);
            }
            *lane = until;
        }
    }
    steps
}

/// How long a calm is in a run of this length.
#[must_use]
pub fn calm(length: Duration) -> Duration {
    CALM.min(round(length).1 / 3)
}

/// How many rounds there are, and how long each is.
fn round(length: Duration) -> (u32, Duration) {
    let rounds = (length.as_secs_f64() / ROUND.as_secs_f64()).round().max(1.0) as u32;
    (rounds, length / rounds)
}

/// When faults may be: between the warm-up and the first calm, and between calms.
fn storms(length: Duration) -> Vec<(Duration, Duration)> {
    let (rounds, round) = round(length);
    let calm = calm(length);
    let storm = |index: u32| {
        let start = if index == 0 { WARM_UP.min(round / 6) } else { round * index };
        (start, round * (index + 1) - calm)
    };
    (0..rounds).map(storm).collect()
}

fn drawn(rng: &mut Rng, kinds: &[&'static Kind], may: impl Fn(&Kind) -> bool) -> &'static Kind {
    let may: Vec<_> = kinds.iter().filter(|kind| may(kind)).collect();
    let tickets: u32 = may.iter().map(|kind| kind.weight).sum();
    let mut ticket = rng.u32(..tickets);
    for kind in &may {
        if ticket < kind.weight {
            return kind;
        }
        ticket -= kind.weight;
    }
    // Not reached: the tickets are the weights.
    kinds[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    #[test]
    fn repeats_with_its_seed() {
        assert_eq!(plan(7, FIVE_MINUTES), plan(7, FIVE_MINUTES));
        assert_ne!(plan(7, FIVE_MINUTES), plan(8, FIVE_MINUTES));
    }

    #[test]
    fn in_five_minutes_every_kind_occurs_everywhere_it_can() {
        for seed in 0..200 {
            let steps = plan(seed, FIVE_MINUTES);
            for arena in ArenaName::ALL {
                for kind in KINDS.iter().filter(|kind| kind.arenas.contains(&arena)) {
                    let occurs = steps.iter().any(|step| step.arena == arena && step.kind.name == kind.name);
                    assert!(occurs, "seed {seed}: no {} in {arena}", kind.name);
                }
            }
        }
    }

    #[test]
    fn faults_overlap_and_each_is_healed_before_the_calm() {
        for minutes in [1, 2, 5, 60] {
            let length = Duration::from_secs(60 * minutes);
            for seed in 0..20 {
                let steps = plan(seed, length);
                assert!(steps.is_sorted_by_key(|step| step.at));
                for step in &steps {
                    assert!(storms(length).iter().any(|(start, end)| *start <= step.at && step.until <= *end));
                    assert!(step.at < step.until && step.worker < step.arena.workers());
                }
                for arena in ArenaName::ALL {
                    let here: Vec<_> = steps.iter().filter(|step| step.arena == arena).collect();
                    let at_once = |step: &Step| here.iter().filter(|s| s.at <= step.at && step.at < s.until).count();
                    assert!(here.iter().any(|step| at_once(step) == LANES), "{minutes} min, seed {seed}");
                    for (index, step) in here.iter().enumerate() {
                        let mut later = here[index + 1..].iter().filter(|other| other.kind.name == step.kind.name);
                        assert!(later.all(|other| other.at > step.until), "{} twice at a time", step.kind.name);
                    }
                }
                let last = steps.iter().map(|step| step.until).max().unwrap();
                assert!(length - last >= CALM.min(length / 3), "the run ends calm");
            }
        }
    }

    #[test]
    fn a_step_that_begins_late_lasts_as_long_but_not_into_the_calm() {
        let steps = plan(7, FIVE_MINUTES);
        for step in &steps {
            assert_eq!(step.begun(step.at, FIVE_MINUTES), *step);
            let late = step.begun(step.at + Duration::from_secs(60), FIVE_MINUTES);
            assert!(storms(FIVE_MINUTES).iter().any(|(start, end)| *start <= late.at && late.until <= *end));
        }
        let first = steps[0];
        let late = first.begun(first.at + Duration::from_secs(1), FIVE_MINUTES);
        assert_eq!(late.until, first.until + Duration::from_secs(1));
    }

    #[test]
    fn what_stops_all_sending_comes_before_a_calm() {
        let storms = storms(FIVE_MINUTES);
        let steps: Vec<_> = (0..50).flat_map(|seed| plan(seed, FIVE_MINUTES)).collect();
        for step in steps.iter().filter(|step| step.kind.stalls) {
            assert!(storms.iter().any(|(_, end)| step.at <= *end && step.at + STALLS >= *end), "{step:?}");
        }
    }

    #[test]
    fn a_batch_is_accepted_in_part_once_a_round() {
        let length = ROUND * 8;
        let steps = plan(3, length);
        for (start, end) in storms(length) {
            let parts = steps.iter().filter(|step| step.kind.once_a_round && start <= step.at && step.until <= end);
            assert!(parts.filter(|step| step.arena == ArenaName::Local).count() <= 1);
        }
    }
}
