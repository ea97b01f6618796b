//! The dead letters of an audit.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shared::dead_letter::DeadLetter;
use shared::reason::Reason;

use super::{Audit, Scope};

/// The reasons of dead letters by the `detail` of their event, byte for byte as it was emitted.
pub(super) struct Letters(HashMap<String, BTreeSet<String>>);

impl Letters {
    /// Sorts the letters of the scope, and counts them all.
    pub(super) fn read(letters: &[DeadLetter], scope: &Scope, audit: &mut Audit) -> Self {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            detail: &'a RawValue,
        }
        let mut by_detail = HashMap::<String, BTreeSet<String>>::new();
        for letter in letters {
            // A queue with too little room may have letters without their payload, which are not recognised.
            let payload = letter.payload.stored().map_or(&[][..], |payload| payload);
            let detail = match serde_json::from_slice::<Envelope<'_>>(payload) {
                Ok(envelope) => envelope.detail.get().to_owned(),
                Err(_) => String::from_utf8_lossy(payload).into_owned(),
            };
            if !scope.has(&detail) {
                audit.foreign_letters += 1;
                continue;
            }
            if by_detail.entry(detail).or_default().insert(letter.reason.clone()) {
                *audit.dead_letters.entry(letter.reason.clone()).or_default() += 1;
                audit.dead_lettered += 1;
            } else {
                audit.dead_letter_copies += 1;
            }
        }
        Self(by_detail)
    }

    pub(super) fn get(&self, detail: &str) -> Option<&BTreeSet<String>> {
        self.0.get(detail)
    }

    /// Whether the event is here for this reason and no other.
    pub(super) fn has(&self, detail: &str, reason: Reason) -> bool {
        self.get(detail).is_some_and(|reasons| reasons.iter().all(|given| given == reason.as_str()))
    }

    pub(super) fn details(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Tenant and meter of a `detail` that may be no usage event: empty where it names none.
pub(super) fn names(detail: &str) -> (String, String) {
    let detail: Value = serde_json::from_str(detail).unwrap_or_default();
    let name = |field: &str| detail[field].as_str().unwrap_or_default().to_owned();
    (name("tenantId"), name("meterApiName"))
}
