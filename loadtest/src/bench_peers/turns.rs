//! Who runs when: one run of each contender, then the next of each.

use std::fmt;

use super::contender::Contender;

/// The runs of a part that are still to come.
pub struct Turns {
    /// In reverse.
    left: Vec<Turn>,
}

/// A run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose it is.
    pub contender: Contender,
    part: &'static str,
    /// From 1.
    pub round: usize,
    rounds: usize,
}

impl Turns {
    /// Of these contenders, each so often.
    pub fn new(part: &'static str, contenders: &[Contender], rounds: impl Fn(Contender) -> usize) -> Self {
        let turns = contenders.iter().flat_map(|&contender| {
            let rounds = rounds(contender);
            (1..=rounds).map(move |round| Turn { contender, part, round, rounds })
        });
        let mut left: Vec<_> = turns.collect();
        // Stable: within a round the order is that of the contenders.
        left.sort_by_key(|turn| turn.round);
        left.reverse();
        Self { left }
    }

    /// The next one.
    pub fn next(&mut self) -> Option<Turn> {
        self.left.pop()
    }

    /// This contender has no further ones.
    pub fn give_up(&mut self, contender: Contender) {
        self.left.retain(|turn| turn.contender != contender);
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}/{}   {}", self.part, self.round, self.rounds, self.contender.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_take_turns_and_one_that_is_given_up_takes_none() {
        let (ours, bare, kcl) = (Contender::OursLocal, Contender::BareLoop, Contender::KclRs);
        let mut turns = Turns::new("speed", &[bare, ours, kcl], |contender| if contender.is_kcl() { 1 } else { 3 });
        let mut seen = Vec::new();
        while let Some(turn) = turns.next() {
            seen.push((turn.contender, turn.round));
            if seen.len() == 5 {
                turns.give_up(ours);
            }
        }
        assert_eq!(seen, [(bare, 1), (ours, 1), (kcl, 1), (bare, 2), (ours, 2), (bare, 3)]);
    }
}
