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
/// The most often that a parcel is no longer suspected because what failed elsewhere was delivered later: half an hour of it at
/// least. Where that never ends, those to blame have to be found all the same.
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

    /// It did so again. To divide a parcel that is not to blame does no harm; a record would be a dead letter.
    fn again(&mut self, is_single: bool) -> Blame {
        let now = Instant::now();
        if self.times == 0 || now - self.counted >= INTERVAL {
            *self = Self { counted: now, times: self.times + 1 };
        }
        if !is_single || self.times >= ATTEMPTS { Blame::Parcel } else { Blame::Unclear }
    }
}

/// What a parcel has met so far.
#[derive(Default)]
pub struct History {
    /// 5xx, timeouts and broken connections.
    failures: u32,
    first_failure: Option<Instant>,
    last_failure: Option<Instant>,
    /// Of breaking Amberflo, after [`UNCONFIRMED_AFTER`].
    suspected_failing: Option<Suspicion>,
    /// It was answered what anybody could have been, be it 401, 403 or 404.
    was_refused: bool,
    /// Answers 403.
    refusals: u32,
    last_refusal: Option<Instant>,
    /// Of being the only one that is answered 403.
    suspected_forbidden: Option<Suspicion>,
    acquittals: u32,
}

impl History {
    /// That of a half: it failed with the whole, but what was held against that is no proof against a half, and its delivery
    /// says nothing of others.
    pub fn of_half(&self) -> Self {
        Self {
            first_failure: self.first_failure.filter(|_| self.suspected_failing.is_some()),
            last_refusal: self.last_refusal,
            suspected_forbidden: self.suspected_forbidden.map(|_| Suspicion::new()),
            acquittals: self.acquittals,
            ..Self::default()
        }
    }

    /// How often it has met 5xx, timeouts and broken connections.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether its delivery shows that others may fail for no fault of theirs: so did these same records. One failure is nothing.
    pub const fn acquits(&self) -> bool {
        self.was_refused || self.failures >= 2
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
        self.acquit(evidence);
        // Between this failure and the one before, another was delivered: it is not an outage, not now.
        if !evidence.is_delivered_since(previous) {
            return Blame::Unclear;
        }
        self.suspected_failing.get_or_insert_with(Suspicion::new).again(is_single)
    }

    /// It was answered that the key or the address is wrong.
    pub const fn refused(&mut self) -> Blame {
        self.was_refused = true;
        Blame::Everyone
    }

    /// It was answered 403, to a request that left when `sent` says. A suspect that is refused while nothing else is sent
    /// says nothing about the key: it starts no pause, and waits for evidence.
    pub fn forbidden(&mut self, evidence: &Evidence, sent: Instant, is_single: bool) -> Blame {
        self.was_refused = true;
        self.refusals += 1;
        let previous = self.last_refusal.replace(Instant::now()).unwrap_or(sent);
        let others_are_delivered = evidence.is_delivered_since(previous);
        self.acquit(evidence);
        if self.suspected_forbidden.is_none() && !others_are_delivered {
            return Blame::Everyone;
        }
        let suspicion = self.suspected_forbidden.get_or_insert_with(Suspicion::new);
        if others_are_delivered && !evidence.is_paused { suspicion.again(is_single) } else { Blame::Unclear }
    }

    /// Drops what is held against it, if that turned out to have been everybody's trouble.
    fn acquit(&mut self, evidence: &Evidence) {
        let is_acquitted = |suspicion: &mut Suspicion| evidence.has_begun_anew_since(suspicion.counted);
        for suspicion in [&mut self.suspected_failing, &mut self.suspected_forbidden] {
            if self.acquittals < ACQUITTALS && suspicion.take_if(is_acquitted).is_some() {
                self.acquittals += 1;
            }
        }
    }
}
