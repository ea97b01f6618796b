//! What an audit found: counted by kind, and by whose it is; the first of each kind in words.

use std::collections::BTreeMap;

use serde::Serialize;

/// So many findings of a kind are told in words; all are counted.
pub(super) const TOLD_MAX: u64 = 20;

/// How many findings there were of each kind. The limit is each kind's own, so that many of one hide none of another.
#[derive(Debug)]
pub struct PerKind<K>(BTreeMap<K, u64>);

impl<K> Default for PerKind<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Copy + Ord> PerKind<K> {
    /// Counts one more. Answers whether it is among the first of its kind, which are told.
    pub fn is_told(&mut self, kind: K) -> bool {
        let count = self.0.entry(kind).or_default();
        *count += 1;
        *count <= TOLD_MAX
    }

    /// How many of this kind are not told.
    fn untold(&self, kind: K) -> u64 {
        self.0.get(&kind).map_or(0, |count| count.saturating_sub(TOLD_MAX))
    }
}

/// Kinds of differences, in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Lost,
    DoubleBilled,
    /// A conflict that is not in the dead letters as one.
    Conflicting,
    Late,
    Misbilled,
    Underbilled,
    /// A malformed event that is not in the dead letters.
    Missing,
    Unexpected,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::DoubleBilled => "double-billed",
            Self::Conflicting => "conflicting events without a dead letter",
            Self::Late => "late",
            Self::Misbilled => "misbilled",
            Self::Underbilled => "underbilled",
            Self::Missing => "malformed events without a dead letter",
            Self::Unexpected => "unexpected",
        }
    }
}

/// How many differences there are, of a run or of one tenant's use of one meter. What each means says
/// [`Audit`](super::Audit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Events that are neither billed nor in the dead letters.
    pub lost: u64,
    /// Events, and totals, that are billed more than once.
    pub double_billed: u64,
    /// Events billed later than the bound.
    pub late: u64,
    /// Events billed otherwise than emitted.
    pub misbilled: u64,
    /// Totals below what was used.
    pub underbilled: u64,
    /// Malformed events and conflicts that are not in the dead letters as such.
    pub missing_dead_letters: u64,
    /// Dead letters, and billed records, that should not exist.
    pub unexpected: u64,
}

impl Differences {
    fn add(&mut self, kind: Kind) {
        *match kind {
            Kind::Lost => &mut self.lost,
            Kind::DoubleBilled => &mut self.double_billed,
            Kind::Conflicting | Kind::Missing => &mut self.missing_dead_letters,
            Kind::Late => &mut self.late,
            Kind::Misbilled => &mut self.misbilled,
            Kind::Underbilled => &mut self.underbilled,
            Kind::Unexpected => &mut self.unexpected,
        } += 1;
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Of the run.
    pub(super) all: Differences,
    /// By tenant and meter, where there is any. Both are empty where an event names none.
    pub(super) by_line: BTreeMap<(String, String), Differences>,
    counts: PerKind<Kind>,
    told: Vec<(Kind, String)>,
}

impl Found {
    /// One more, of this tenant and meter.
    pub(super) fn add(&mut self, kind: Kind, (tenant, meter): (&str, &str), text: String) {
        self.all.add(kind);
        self.by_line.entry((tenant.to_owned(), meter.to_owned())).or_default().add(kind);
        if self.counts.is_told(kind) {
            self.told.push((kind, text));
        }
    }

    /// The first of each kind in words, and how many more of it there are.
    pub(super) fn words(&mut self) -> Vec<String> {
        let mut told = std::mem::take(&mut self.told);
        // Stable: within a kind they stay as they were found.
        told.sort_by_key(|(kind, _)| *kind);
        let mut words = Vec::new();
        for kind in told.chunk_by(|(a, _), (b, _)| a == b) {
            words.extend(kind.iter().map(|(_, text)| text.clone()));
            let (name, untold) = (kind[0].0.name(), self.counts.untold(kind[0].0));
            words.extend((untold > 0).then(|| format!("{name}: {untold} more")));
        }
        words
    }
}
