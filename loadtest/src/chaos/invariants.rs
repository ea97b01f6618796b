//! What must hold at every moment of a run, however much is broken: checked every few seconds, on what is new.

use std::collections::HashMap;
use std::time::Duration;

use amberflo_sandbox::{LedgerSnapshot, StoredRecord};

use super::amberflo::is_ever_refused;
use crate::audit::{PerKind, difference};
use crate::scrape::Sample;
use crate::truth::Truth;

/// What has been checked so far, and what was found.
#[derive(Debug, Default)]
pub struct Invariants {
    /// Every emitted event by its `uniqueId`, and whether it is billed.
    events: HashMap<String, Event>,
    /// How many events of the truth, and records of the bill, are known.
    known_events: usize,
    known_records: usize,
    /// Events that the checkpoint has passed.
    passed: u64,
    other_bytes: u64,
    count: u64,
    counts: PerKind<Kind>,
    findings: Vec<String>,
}

/// Kinds of findings: many of one hide none of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Passed,
    BilledTwice,
    Misbilled,
    Invented,
    OtherBytes,
    Settled,
    Other,
}

#[derive(Debug)]
struct Event {
    index: usize,
    is_billed: bool,
}

impl Invariants {
    /// How many violations there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first of each kind in words, as they were found.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.findings
    }

    /// How many records of the bill have been checked.
    #[must_use]
    pub fn records(&self) -> usize {
        self.known_records
    }

    /// How many events behind checkpoints have been checked.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Learns what was emitted since the last call. An event is in the truth before it is sent.
    pub fn emitted(&mut self, truth: &Truth) {
        for (index, event) in truth.valid.iter().enumerate().skip(self.known_events) {
            self.events.insert(event.unique_id.clone(), Event { index, is_billed: false });
        }
        self.known_events = truth.valid.len();
    }

    /// Checks what was billed since the last call: once, as it was emitted, and by whom it was emitted. What these
    /// records are the sandbox says anew, from the number [`records`](Self::records) on.
    pub fn billed(&mut self, records: &[StoredRecord], truth: &Truth) {
        self.known_records += records.len();
        for record in records {
            let id = record.unique_id.as_deref().unwrap_or_default();
            let Some(event) = self.events.get_mut(id) else {
                self.found(Kind::Invented, format!("billed, but nobody emitted it: {id:?} of {}", record.customer_id));
                continue;
            };
            let wrong = truth.valid.get(event.index).and_then(|event| difference(event, record));
            if std::mem::replace(&mut event.is_billed, true) {
                self.found(Kind::BilledTwice, format!("billed more than once: {id}"));
            }
            if let Some(wrong) = wrong {
                self.found(Kind::Misbilled, format!("{id} was billed with {wrong}: {}", record.raw));
            }
        }
    }

    /// Checks that every record of one event is the same bytes.
    pub fn ledger(&mut self, ledger: &LedgerSnapshot) {
        let other = ledger.absorbed_with_other_bytes - self.other_bytes;
        if other > 0 {
            self.found(
                Kind::OtherBytes,
                format!("{other} copies were absorbed that are not the same bytes as the first"),
            );
        }
        self.other_bytes = ledger.absorbed_with_other_bytes;
    }

    /// Checks that an event behind a checkpoint is billed. One that Amberflo may refuse lies among the dead letters
    /// instead, or is on its way again: of it only the audit at the end can tell. The bill must have been looked at after
    /// the checkpoint.
    pub fn behind_checkpoint(&mut self, unique_id: &str, truth: &Truth) {
        let Some(event) = self.events.get(unique_id) else { return };
        self.passed += 1;
        let may_be_refused =
            truth.valid.get(event.index).is_none_or(|event| event.is_poison || is_ever_refused(&event.tenant));
        if !event.is_billed && !may_be_refused {
            self.found(Kind::Passed, format!("the checkpoint has passed it, and it is not billed: {unique_id}"));
        }
    }

    /// Checks that a worker has not settled more than it read.
    pub fn metrics(&mut self, worker: &str, sample: &Sample) {
        if sample.ended > sample.read {
            self.found(Kind::Settled, format!("{worker} says it settled {} of {} records", sample.ended, sample.read));
        }
    }

    /// Something that another check found.
    pub fn find(&mut self, finding: String) {
        self.found(Kind::Other, finding);
    }

    fn found(&mut self, kind: Kind, finding: String) {
        self.count += 1;
        if self.counts.is_told(kind) {
            self.findings.push(finding);
        }
    }
}

/// Sees to it that events are delivered while nothing is broken.
#[derive(Debug)]
pub struct Watchdog {
    patience: Duration,
    /// When something was delivered, broken or told of last.
    since: Duration,
    delivered: u64,
}

impl Watchdog {
    /// One that barks after so long.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: Duration::ZERO, delivered: 0 }
    }

    /// At `now`, so much has been delivered. `is_owed` says that nothing is broken, and that events are waiting.
    pub fn look(&mut self, now: Duration, is_owed: bool, delivered: u64) -> Option<String> {
        if !is_owed || delivered > self.delivered {
            (self.since, self.delivered) = (now, delivered);
            return None;
        }
        if now - self.since < self.patience {
            return None;
        }
        self.since = now;
        Some(format!("nothing was delivered for {:?}, although nothing is broken", self.patience))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::generator::Generator;
    use crate::mix::Mix;

    /// A truth, and the bill that is right for it.
    fn sound() -> (Truth, Vec<StoredRecord>) {
        let truth = Arc::new(Mutex::new(Truth::default()));
        let mut generator = Generator::new(Mix::demo(), 1, Arc::clone(&truth));
        for _ in 0..50 {
            let _ = generator.next(Duration::ZERO, 1_790_000_000_000);
        }
        drop(generator);
        let truth = Arc::try_unwrap(truth).unwrap().into_inner().unwrap();
        let record = |(index, event): (usize, &crate::truth::ValidEvent)| StoredRecord {
            index: index as u64,
            at: Duration::ZERO,
            customer_id: event.tenant.clone(),
            meter_api_name: event.meter.to_string(),
            time_millis: event.time.unwrap_or(1),
            value: Some(event.variants[0].value.clone()),
            unique_id: Some(event.unique_id.clone()),
            dimensions: (*event.dimensions).clone(),
            raw: String::new(),
            copies: 0,
        };
        let records = truth.valid.iter().enumerate().map(record).collect();
        (truth, records)
    }

    /// What is found in a bill that `plant` has changed.
    fn found(plant: impl FnOnce(&mut Vec<StoredRecord>)) -> Vec<String> {
        let (truth, mut records) = sound();
        plant(&mut records);
        let mut invariants = Invariants::default();
        invariants.emitted(&truth);
        invariants.billed(&records, &truth);
        invariants.findings
    }

    #[test]
    fn a_sound_bill_is_sound_also_in_pieces() {
        assert!(found(|_| {}).is_empty());
        let (truth, records) = sound();
        let mut invariants = Invariants::default();
        for piece in records.chunks(7) {
            invariants.emitted(&truth);
            invariants.billed(piece, &truth);
        }
        assert_eq!((invariants.count(), invariants.records()), (0, records.len()));
    }

    #[test]
    fn planted_failures_of_the_bill_are_found() {
        type Plant = fn(&mut Vec<StoredRecord>);
        let plants: [(Plant, &str); 7] = [
            (|bill| bill.push(bill[3].clone()), "billed more than once: event-"),
            (|bill| bill[0].unique_id = Some("stray".to_owned()), "nobody emitted it: \"stray\""),
            (|bill| bill[0].unique_id = None, "nobody emitted it: \"\""),
            (|bill| bill[0].value = Some("1e9".to_owned()), "another value"),
            (|bill| bill[0].customer_id.push('x'), "another customer"),
            (|bill| bill.iter_mut().for_each(|record| record.time_millis += 1), "another time"),
            (|bill| bill[0].dimensions.clear(), "other dimensions"),
        ];
        for (plant, expected) in plants {
            let found = found(plant);
            assert!(
                !found.is_empty() && found.len() <= 20 && found.iter().all(|text| text.contains(expected)),
                "{expected}: {found:?}"
            );
        }
    }

    #[test]
    fn many_findings_of_a_kind_hide_none_of_another() {
        let found = found(|bill| {
            bill.iter_mut().for_each(|record| record.time_millis += 1);
            bill.push(bill[40].clone());
        });
        let told = |text: &str| found.iter().filter(|finding| finding.contains(text)).count();
        assert_eq!((told("another time"), told("billed more than once")), (20, 1), "{found:?}");
    }

    #[test]
    fn a_copy_with_other_bytes_is_found_once() {
        let mut invariants = Invariants::default();
        let ledger =
            |absorbed_with_other_bytes| LedgerSnapshot { absorbed_with_other_bytes, ..LedgerSnapshot::default() };
        invariants.ledger(&ledger(0));
        assert_eq!(invariants.count(), 0);
        invariants.ledger(&ledger(2));
        invariants.ledger(&ledger(2));
        assert_eq!(invariants.count(), 1, "{:?}", invariants.findings());
    }

    #[test]
    fn a_checkpoint_past_an_unbilled_event_is_found() {
        let (truth, records) = sound();
        let mut invariants = Invariants::default();
        invariants.emitted(&truth);
        let is_refused = |record: &&StoredRecord| is_ever_refused(&record.customer_id);
        let refused = records.iter().find(is_refused).unwrap();
        let missing = records.iter().find(|record| !is_refused(record)).unwrap();
        let billed: Vec<_> = records.iter().filter(|record| record.unique_id != missing.unique_id).cloned().collect();
        invariants.billed(&billed, &truth);
        for record in &billed {
            invariants.behind_checkpoint(record.unique_id.as_deref().unwrap(), &truth);
        }
        invariants.behind_checkpoint(refused.unique_id.as_deref().unwrap(), &truth);
        invariants.behind_checkpoint("malformed-00000001", &truth);
        assert_eq!(invariants.count(), 0, "{:?}", invariants.findings());
        assert_eq!(invariants.passed(), billed.len() as u64 + 1);
        invariants.behind_checkpoint(missing.unique_id.as_deref().unwrap(), &truth);
        assert_eq!(invariants.count(), 1);
    }

    #[test]
    fn a_worker_that_settles_what_it_never_read_is_found() {
        let mut invariants = Invariants::default();
        invariants.metrics("w", &Sample { read: 5, ended: 5, ..Sample::default() });
        assert_eq!(invariants.count(), 0);
        invariants.metrics("w", &Sample { read: 5, ended: 6, ..Sample::default() });
        assert_eq!(invariants.count(), 1);
    }

    #[test]
    fn a_standstill_is_found_unless_something_is_broken() {
        let second = Duration::from_secs(1);
        let mut watchdog = Watchdog::new(10 * second);
        let mut barks =
            |seconds: u32, is_owed, delivered| watchdog.look(seconds * second, is_owed, delivered).is_some();
        assert!(!barks(1, true, 1));
        assert!(!barks(10, true, 1));
        assert!(barks(11, true, 1));
        assert!(!barks(12, true, 1), "told once");
        assert!(!barks(20, true, 2));
        assert!(!barks(29, false, 2));
        assert!(!barks(38, true, 2), "ten seconds begin anew");
        assert!(barks(39, true, 2));
    }
}
