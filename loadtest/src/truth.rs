//! What the application plane did: every event it made, and which of them EventBridge acknowledged.
//!
//! The audit judges the pipeline by this alone. It is written by the side that emits, and shares no code with the
//! side that parses, deduplicates and delivers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::clock::UnixMillis;
use shared::reason::Reason;

/// Everything that was emitted.
#[derive(Debug, Default)]
pub struct Truth {
    /// Events that a customer must pay for once.
    pub valid: Vec<ValidEvent>,
    /// Events that nobody must pay for, and that must not vanish.
    pub malformed: Vec<MalformedEvent>,
}

/// An event with a valid form.
#[derive(Clone, Debug)]
pub struct ValidEvent {
    /// `tenantId`: who pays.
    pub tenant: String,
    /// `meterApiName`
    pub meter: Arc<str>,
    /// The idempotency key; no two events share one.
    pub unique_id: String,
    /// `meterTimeInMillis`, where `detail` carries it.
    pub time: Option<UnixMillis>,
    /// The dimensions that Amberflo is to receive.
    pub dimensions: Arc<BTreeMap<String, String>>,
    /// The event as first emitted; after it, what a faulty producer sent with the same key and another value.
    pub variants: Vec<Variant>,
    /// Whether Amberflo refuses it although its form is valid.
    pub is_poison: bool,
}

/// One content of an event.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The text of `meterValue`.
    pub value: String,
    /// The whole `detail`; no two variants or events share one.
    pub detail: Arc<str>,
    /// How many entries with it were acknowledged: one, and one for each retry of the producer.
    pub acknowledged: u64,
    /// When the call began that was acknowledged first. From what it counts is for the run to say; its ledger counts from
    /// there too.
    pub sent: Option<Duration>,
}

/// An event that is not a usage event.
#[derive(Clone, Debug)]
pub struct MalformedEvent {
    /// The whole `detail`, unlike any other.
    pub detail: Arc<str>,
    /// Why it must be in the dead letters.
    pub reason: Reason,
    /// How many entries with it were acknowledged.
    pub acknowledged: u64,
}

/// Who is told of every event when it is made, before it is sent.
pub trait Witness: Send {
    /// A valid event, with all its variants. The first is number 0 of [`Origin::Valid`].
    fn valid(&mut self, event: ValidEvent);
    /// An event that is none. The first is number 0 of [`Origin::Malformed`].
    fn malformed(&mut self, event: MalformedEvent);
}

impl Witness for Arc<Mutex<Truth>> {
    fn valid(&mut self, event: ValidEvent) {
        self.lock().unwrap_or_else(PoisonError::into_inner).valid.push(event);
    }

    fn malformed(&mut self, event: MalformedEvent) {
        self.lock().unwrap_or_else(PoisonError::into_inner).malformed.push(event);
    }
}

/// Points at what an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A variant of a valid event, by index.
    Valid {
        /// In [`Truth::valid`].
        event: usize,
        /// In [`ValidEvent::variants`].
        variant: usize,
    },
    /// In [`Truth::malformed`].
    Malformed(usize),
}

impl Truth {
    /// Notes that EventBridge took an entry, in a call that began at `sent`.
    pub fn acknowledge(&mut self, origin: Origin, sent: Duration) {
        match origin {
            Origin::Valid { event, variant } => {
                let variant = &mut self.valid[event].variants[variant];
                variant.acknowledged += 1;
                variant.sent.get_or_insert(sent);
            }
            Origin::Malformed(index) => self.malformed[index].acknowledged += 1,
        }
    }
}

impl ValidEvent {
    /// How many entries were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.variants.iter().map(|variant| variant.acknowledged).sum()
    }
}
