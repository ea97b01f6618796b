//! Whose fault it is that a parcel fails: everyone meets an outage or a wrong key, but only one parcel meets what is wrong
//! with a record of it. What tells the two apart is whether others are delivered meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::Evidence;

/// A batch that has failed for this long while others were delivered is searched for the record that breaks it.
const UNCONFIRMED_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often a record must fail, each time after others were delivered, until it is to blame: an outage may end unevenly,
/// and some of Amberflo's servers may know a new key before others.
const ATTEMPTS: u32 = 4;
/// What comes sooner after the last that counted does not count.
const INTERVAL: Duration = Duration::from_secs(10);
/// So often a suspicion is dropped because what others were refused was delivered later, each time at a delay of its own:
/// about half an hour. If that never ends, those to blame have to be found all the same.
const ACQUITTALS: u32 = 120;

/// Whose fault a failure is.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame {
    /// Amberflo's, the key's or the address's: everybody would meet it.
    Everyone,
    /// That of some record in the parcel.
    Parcel,
    /// That will show.
    Unclear,
}

/// How often a parcel failed though others were delivered.
#[derive(Clone, Copy)]
struct Suspicion {
    /// When it did so last, of the times that count; before the first, when the suspicion began.
    counted: Instant,
    times: u32,
}

impl Suspicion {
    fn new() -> Self {
        Self { counted: Instant::now(), times: 0 }
    }

    /// It did so again. Answers whether it did often enough to be to blame.
    fn count(&mut self) -> bool {
        let now = Instant::now();
        if self.times == 0 || now - self.counted >= INTERVAL {
            *self = Self { counted: now, times: self.times + 1 };
        }
        self.times >= ATTEMPTS
    }
}

/// What a parcel has met so far.
#[derive(Default)]
pub struct History {
    /// 5xx, timeouts and broken connections.
    failures: u32,
    first_failure: Option<Instant>,
    last_failure: Option<Instant>,
    /// Of failing, after [`UNCONFIRMED_AFTER`].
    failing: Option<Suspicion>,
    /// Answers 403.
    refusals: u32,
    last_refusal: Option<Instant>,
    /// Of being forbidden.
    forbidden: Option<Suspicion>,
    acquittals: u32,
}

impl History {
    /// That of a half: it failed with the whole, but what was held against that is no proof against a half.
    pub fn of_half(&self) -> Self {
        Self {
            first_failure: self.first_failure.filter(|_| self.failing.is_some()),
            last_refusal: self.last_refusal,
            forbidden: self.forbidden.map(|_| Suspicion::new()),
            acquittals: self.acquittals,
            ..Self::default()
        }
    }

    /// How often it has met 5xx, timeouts and broken connections.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether it was answered 403. If these same records are delivered all the same, that was not because of them.
    pub const fn was_refused(&self) -> bool {
        self.refusals > 0
    }

    /// Whether it was answered 403 twice or more: it may be to blame even where anybody could have been refused.
    pub const fn is_often_refused(&self) -> bool {
        self.refusals >= 2
    }

    /// It met 5xx, a timeout or a broken connection.
    pub fn failed(&mut self, evidence: &Evidence, is_single: bool) -> Blame {
        self.failures += 1;
        let now = Instant::now();
        let since = *self.first_failure.get_or_insert(now);
        let previous = self.last_failure.replace(now).unwrap_or(now);
        if now - since < UNCONFIRMED_AFTER {
            return Blame::Everyone;
        }
        // Between this failure and the one before, another was delivered: it is not an outage, not now.
        if !evidence.is_delivered_since(previous) {
            return Blame::Unclear;
        }
        let is_proven = self.failing.get_or_insert_with(Suspicion::new).count();
        if !is_single || is_proven { Blame::Parcel } else { Blame::Unclear }
    }

    /// It was answered 403, to a request that left when `sent` says. A suspect that is refused while nothing else is sent
    /// says nothing about the key: it starts no pause, and waits for evidence.
    pub fn forbidden(&mut self, evidence: &Evidence, sent: Instant, is_single: bool) -> Blame {
        self.refusals += 1;
        let previous = self.last_refusal.replace(Instant::now()).unwrap_or(sent);
        let others_are_delivered = evidence.is_delivered_since(previous);
        let is_acquitted = |suspicion: &mut Suspicion| evidence.has_begun_anew_since(suspicion.counted);
        if self.acquittals < ACQUITTALS && self.forbidden.take_if(is_acquitted).is_some() {
            self.acquittals += 1;
        }
        if self.forbidden.is_none() && !others_are_delivered {
            return Blame::Everyone;
        }
        let suspicion = self.forbidden.get_or_insert_with(Suspicion::new);
        let is_alone = others_are_delivered && !evidence.is_paused;
        let is_proven = is_alone && suspicion.count();
        if is_proven || (is_alone && !is_single) { Blame::Parcel } else { Blame::Unclear }
    }
}
