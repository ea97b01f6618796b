//! Room for evidence, where all that may be under way is suspected.

use std::time::Duration;

use tokio::time::Instant;

/// About as long as it takes until a record is to blame for a 403.
const LAST: Duration = Duration::from_secs(60);

/// How many batches of a shard more than usual may be under way.
///
/// Those let through may hold a bad record too, and stay: the places have to last until the first of all is found, and there
/// must always be another, if ever later: in an outage they stay too.
#[derive(Default)]
pub struct SparePlaces(Option<HeldUp>);

/// Evidence is wanted, and usual places there are none.
struct HeldUp {
    since: Instant,
    /// When evidence was wanted last.
    seen: Instant,
}

impl SparePlaces {
    /// How many there are now. To be called often.
    pub fn places(&mut self, is_behind: bool, is_wanted: bool, max_in_flight: usize) -> usize {
        let now = Instant::now();
        if is_wanted {
            self.0.get_or_insert(HeldUp { since: now, seen: now }).seen = now;
        }
        // Behind for another reason, be it for hours, a shard has no more places to begin with.
        self.0 = self.0.take().filter(|held_up| is_behind && now - held_up.seen < LAST);
        let lasted = self.0.as_ref().map_or(Duration::ZERO, |held_up| now - held_up.since);
        let share = lasted.as_secs_f64() / LAST.as_secs_f64();
        let at_first = (share.min(1.0) * max_in_flight as f64) as usize;
        1 + at_first + share.max(1.0).log2() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const TICK: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn there_is_one_at_once_and_always_another_and_ever_later() {
        let mut spare = SparePlaces::default();
        let mut places = Vec::new();
        for _ in 0..=480 {
            places.push(spare.places(true, true, 8));
            advance(TICK).await;
        }
        assert_eq!([0, 30, 60, 119, 120, 240, 480].map(|second| places[second]), [1, 5, 9, 9, 10, 11, 12]);
        assert!(places.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= pair[0] + 1), "{places:?}");
        assert_eq!(spare.places(false, true, 8), 1, "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_is_behind_for_another_reason_has_no_more_of_them_afterwards() {
        let mut spare = SparePlaces::default();
        for second in 0..7200 {
            let is_wanted = second == 0;
            let places = spare.places(true, is_wanted, 8);
            assert!(second < 60 || places == 1, "{places} after {second} s");
            advance(TICK).await;
        }
        assert_eq!(spare.places(true, true, 8), 1);
    }
}
