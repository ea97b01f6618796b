//! Whose fault it is that a parcel fails: everyone meets an outage or a wrong key, but only one parcel meets what is wrong
//! with a record of it. What tells the two apart is whether others are delivered meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::Evidence;

/// A batch that has failed for this long while others were delivered is searched for the record that breaks it.
const UNCONFIRMED_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often a part of such a batch must fail before it is split further.
const UNCONFIRMED_ATTEMPTS: u32 = 3;
/// How often a record must be answered 403, each time after others were delivered, until it is to blame. Some of Amberflo's
/// servers may know a new key before others.
const FORBIDDEN_ATTEMPTS: u32 = 4;
/// What comes sooner after the last that counted does not count.
const FORBIDDEN_INTERVAL: Duration = Duration::from_secs(10);

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

/// What is held against a parcel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// It met 5xx, timeouts or broken connections for a long time while others were delivered.
    Failing,
    /// It was answered 403, and so often as [`FORBIDDEN_INTERVAL`] says, the last time then.
    Forbidden { counted: Instant, times: u32 },
}

/// What a parcel has met so far.
#[derive(Default)]
pub struct History {
    suspicion: Option<Suspicion>,
    failures: u32,
    first_failure: Option<Instant>,
    last_failure: Option<Instant>,
    last_refusal: Option<Instant>,
    /// Answers 403 that anybody could have met.
    refusals: u32,
}

impl History {
    /// That of a half: it was refused with the whole, but what was held against that is no proof against a half.
    pub fn of_half(&self) -> Self {
        let suspicion = self.suspicion.map(|suspicion| match suspicion {
            Suspicion::Failing => Suspicion::Failing,
            Suspicion::Forbidden { .. } => Suspicion::Forbidden { counted: Instant::now(), times: 0 },
        });
        Self { suspicion, last_refusal: self.last_refusal, ..Self::default() }
    }

    /// A suspect lets others go first: what becomes of them is the evidence.
    pub const fn is_suspect(&self) -> bool {
        self.suspicion.is_some()
    }

    /// How often it has met 5xx, timeouts and broken connections.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether it was answered 403 twice or more as anybody could have been: it may be to blame all the same.
    pub const fn is_often_refused(&self) -> bool {
        self.refusals >= 2
    }

    /// It met one of those.
    pub fn failed(&mut self, evidence: &Evidence) -> Blame {
        self.failures += 1;
        let now = Instant::now();
        let since = *self.first_failure.get_or_insert(now);
        let previous = self.last_failure.replace(now).unwrap_or(now);
        let is_due = match self.suspicion {
            Some(Suspicion::Failing) => self.failures >= UNCONFIRMED_ATTEMPTS,
            _ => now - since >= UNCONFIRMED_AFTER,
        };
        // Between this failure and the one before, another was delivered: it is not an outage, not now.
        match is_due {
            false => Blame::Everyone,
            true if evidence.is_delivered_since(previous) => {
                self.suspicion = Some(Suspicion::Failing);
                Blame::Parcel
            }
            true => Blame::Unclear,
        }
    }

    /// It was answered 403, to a request that left when `sent` says. A suspect that is refused while nothing else is sent
    /// says nothing about the key: it starts no pause, and waits for evidence.
    pub fn forbidden(&mut self, evidence: &Evidence, sent: Instant, is_single: bool) -> Blame {
        let now = Instant::now();
        let previous = self.last_refusal.replace(now).unwrap_or(sent);
        let others_are_delivered = evidence.is_delivered_since(previous);
        let (mut counted, mut times) = match self.suspicion {
            Some(Suspicion::Forbidden { counted, times }) if !evidence.has_begun_anew_since(counted) => {
                (counted, times)
            }
            _ if others_are_delivered => (now, 0),
            suspicion => {
                self.suspicion = suspicion.filter(|suspicion| *suspicion == Suspicion::Failing);
                self.refusals += 1;
                return Blame::Everyone;
            }
        };
        let is_alone = others_are_delivered && !evidence.is_paused;
        if is_alone && (times == 0 || now - counted >= FORBIDDEN_INTERVAL) {
            (counted, times) = (now, times + 1);
        }
        self.suspicion = Some(Suspicion::Forbidden { counted, times });
        let is_proven = times >= FORBIDDEN_ATTEMPTS;
        if is_alone && (!is_single || is_proven) { Blame::Parcel } else { Blame::Unclear }
    }
}
