//! The reconciliation: what was emitted, against what Amberflo billed and what lies in the dead letters.
//!
//! Pure, so that the tests below can plant every kind of failure and see it reported. The bill is looked at twice, by
//! event and by the total of each customer and meter, and the two are kept independent: the totals are the sandbox's.

mod bills;
mod findings;
mod letters;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use amberflo_sandbox::{DoubleBilled, LedgerSnapshot, Sandbox, StoredRecord};
use serde::Serialize;
use shared::dead_letter::DeadLetter;
use shared::reason::Reason;

use crate::truth::{Truth, ValidEvent};
pub use bills::{MeterLine, TenantLine};
pub use findings::{Differences, PerKind};

use bills::{Expected, Line};
use findings::{Found, Kind};
use letters::{Letters, names};

/// What Amberflo billed, in three views that must agree.
#[derive(Debug, Default)]
pub struct Bill {
    /// Every record.
    pub records: Vec<StoredRecord>,
    /// The totals.
    pub ledger: LedgerSnapshot,
    /// Events billed more than once, as Amberflo's side sees it.
    pub billed_more_than_once: Vec<DoubleBilled>,
    /// Meters whose records are not shown: their events are judged by totals alone.
    pub sums_only: BTreeSet<String>,
    /// The totals are rounded to doubles.
    pub is_rounded: bool,
}

impl Bill {
    /// All that a sandbox in this process has billed.
    #[must_use]
    pub fn of(sandbox: &Sandbox) -> Self {
        Self {
            records: sandbox.records(),
            ledger: sandbox.ledger(),
            billed_more_than_once: sandbox.billed_more_than_once(),
            ..Self::default()
        }
    }
}

/// What of a ledger is to be judged.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The names of the runs: what has none of them in its `uniqueId` or its customer's is somebody else's. Empty:
    /// everything is ours.
    pub runs: Vec<String>,
    /// From the start of the acknowledged call to the ledger, at most; only where records have a time of acceptance.
    pub late_after: Option<Duration>,
}

impl Scope {
    fn has(&self, text: &str) -> bool {
        self.runs.is_empty() || self.runs.iter().any(|run| text.contains(run.as_str()))
    }
}

/// The result. Only acknowledged entries count: before that, nobody promised anything.
#[derive(Debug, Default, Serialize)]
pub struct Audit {
    /// Entries that EventBridge acknowledged: `unique_valid` + `duplicates` + `conflicts_emitted` + `malformed`.
    pub emitted: u64,
    /// Events with a valid form, by idempotency key: `delivered` + `refused` + `lost`, in a sound run.
    pub unique_valid: u64,
    /// Of those, billed.
    pub delivered: u64,
    /// Acknowledged copies: producer retries.
    pub duplicates: u64,
    /// Contents that differ from the event's first with the same key, as emitted.
    pub conflicts_emitted: u64,
    /// Of those pairs, how many lie in the dead letters as `conflict`.
    pub conflicts: u64,
    /// Events without a valid form.
    pub malformed: u64,
    /// Valid events that Amberflo refused and that lie in the dead letters.
    pub refused: u64,
    /// Distinct dead letters. (A kill between storing one and the checkpoint stores it twice.)
    pub dead_lettered: u64,
    /// Copies in the dead letters beyond those.
    pub dead_letter_copies: u64,
    /// Dead letters by reason, distinct ones.
    pub dead_letters: BTreeMap<String, u64>,
    /// Valid events that are neither billed nor in the dead letters.
    pub lost: u64,
    /// Events billed more than once, and bills that exceed what was used without such an event on them.
    pub double_billed: u64,
    /// Events billed with another value, time, meter, customer or dimension than emitted.
    pub misbilled: u64,
    /// Malformed events and conflicts that are not in the dead letters byte for byte with the reason they must have.
    pub missing_dead_letters: u64,
    /// Dead letters, and billed records, that should not exist.
    pub unexpected: u64,
    /// Bills below what was used, without an event that would explain it.
    pub underbilled: u64,
    /// Events billed later than the bound.
    pub late: u64,
    /// Whether there was a bound, and times to judge by: else nothing is said of late events.
    pub late_judged: bool,
    /// Events that were made and never acknowledged: billed or not, both is right.
    pub unacknowledged: u64,
    /// Events that could only be judged by totals.
    pub judged_by_sums: u64,
    /// Billed records of others, which were not judged.
    pub foreign_records: u64,
    /// Dead letters of others.
    pub foreign_letters: u64,
    /// By meter, in order of name.
    pub meters: Vec<MeterLine>,
    /// By tenant and meter, in order of name.
    #[serde(skip)]
    pub lines: Vec<TenantLine>,
    /// The first failures of each kind in words, lost and double-billed events before others, and how many more there
    /// are of it.
    pub findings: Vec<String>,
    #[serde(skip)]
    found: Found,
}

impl Audit {
    /// Compares. `letters` may hold copies.
    #[must_use]
    pub fn of(truth: &Truth, bill: &Bill, letters: &[DeadLetter]) -> Self {
        Self::within(&Scope::default(), truth, bill, letters)
    }

    /// Compares what belongs to the scope.
    #[must_use]
    pub fn within(scope: &Scope, truth: &Truth, bill: &Bill, letters: &[DeadLetter]) -> Self {
        let mut audit = Self { late_judged: scope.late_after.is_some(), ..Self::default() };
        let letters = Letters::read(letters, scope, &mut audit);
        audit.malformed_events(truth, &letters);
        let expected = audit.valid_events(scope, truth, bill, &letters);
        audit.unexpected_letters(truth, &letters);
        audit.bills(expected, bill);
        let Differences { lost, double_billed, late, misbilled, underbilled, missing_dead_letters, unexpected } =
            audit.found.all;
        let findings = audit.found.words();
        Self { lost, double_billed, late, misbilled, underbilled, missing_dead_letters, unexpected, findings, ..audit }
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn passed(&self) -> bool {
        let [failures, more] = [
            [self.lost, self.double_billed, self.misbilled, self.missing_dead_letters],
            [self.unexpected, self.underbilled, self.late, 0],
        ];
        failures.iter().chain(&more).sum::<u64>() == 0
    }

    fn malformed_events(&mut self, truth: &Truth, letters: &Letters) {
        for event in &truth.malformed {
            if event.acknowledged == 0 {
                self.unacknowledged += 1;
                continue;
            }
            self.emitted += event.acknowledged;
            self.malformed += 1;
            self.duplicates += event.acknowledged - 1;
            if !letters.has(&event.detail, event.reason) {
                let (tenant, meter) = names(&event.detail);
                let text = format!("malformed event not dead-lettered as {}: {}", event.reason, event.detail);
                self.found.add(Kind::Missing, (&tenant, &meter), text);
            }
        }
    }

    /// Judges every event, and answers what each customer must pay for each meter.
    fn valid_events<'a>(&mut self, scope: &Scope, truth: &'a Truth, bill: &'a Bill, letters: &Letters) -> Expected<'a> {
        let mut expected = Expected::default();
        let mut billed: HashMap<&str, Vec<&StoredRecord>> = HashMap::new();
        for record in &bill.records {
            let id = record.unique_id.as_deref().unwrap_or_default();
            // A run's customers are its own: they pay for no other event, whatever its `uniqueId`.
            if scope.has(id) || scope.has(&record.customer_id) {
                billed.entry(id).or_default().push(record);
            } else {
                self.foreign_records += 1;
                expected.foreign(record);
            }
        }
        // Whose they are where no event says so.
        let several = billed.iter().filter(|(_, records)| records.len() > 1);
        let several = several.map(|(id, records)| (*id, (&*records[0].customer_id, &*records[0].meter_api_name)));
        let named = bill.billed_more_than_once.iter().filter(|event| scope.has(&event.unique_id));
        let named = named.map(|event| (&*event.unique_id, (&*event.customer_id, &*event.meter_api_name)));
        let mut several: BTreeMap<&str, (&str, &str)> = named.chain(several).collect();
        let twice = |id: &str| format!("billed more than once: {id}");
        for event in &truth.valid {
            let records = billed.remove(event.unique_id.as_str()).unwrap_or_default();
            let line = expected.line(event);
            if several.remove(&*event.unique_id).is_some() {
                line.has_double = true;
                self.found.add(Kind::DoubleBilled, whose(event), twice(&event.unique_id));
            }
            let is_known = !bill.sums_only.contains(&*event.meter);
            if event.acknowledged() > 0 {
                let failures = self.failures();
                self.valid_event(scope, event, is_known.then_some(&records), letters, line);
                line.has_finding |= self.failures() > failures;
            } else {
                self.unacknowledged += 1;
                match records.first() {
                    // Stored, but the producer never learnt it: a legitimate outcome of a run that was cut short.
                    Some(record) => {
                        line.expected.push(record.value.clone().unwrap_or_default());
                        line.has_finding |= self.is_misbilled(event, record);
                    }
                    None if !is_known => line.possible.extend(event.variants.iter().map(|v| v.value.clone())),
                    None => {}
                }
            }
        }
        for (id, names) in several {
            self.found.add(Kind::DoubleBilled, names, twice(id));
        }
        for (id, records) in BTreeMap::from_iter(billed) {
            for record in records {
                let names = (&*record.customer_id, &*record.meter_api_name);
                let text = format!("billed, but nobody emitted it: {id:?} of {}", record.customer_id);
                self.found.add(Kind::Unexpected, names, text);
            }
        }
        expected
    }

    /// Those that explain a total that is too low.
    fn failures(&self) -> u64 {
        self.found.all.lost + self.found.all.misbilled + self.found.all.unexpected
    }

    /// `records` are those of the event, where its meter's are shown.
    fn valid_event(
        &mut self,
        scope: &Scope,
        event: &ValidEvent,
        records: Option<&Vec<&StoredRecord>>,
        letters: &Letters,
        line: &mut Line,
    ) {
        let emitted = event.acknowledged();
        let contents = event.variants.iter().filter(|variant| variant.acknowledged > 0).count() as u64;
        self.emitted += emitted;
        self.unique_valid += 1;
        self.conflicts_emitted += contents - 1;
        self.duplicates += emitted - contents;
        line.conflicts_emitted += contents - 1;
        line.sums.emitted += emitted;
        line.sums.unique_valid += 1;
        let record = records.and_then(|records| records.first());

        // Which content won is for the stream's order to say; all others must be conflicts. Where none is billed, the
        // one without a dead letter must be the one that won.
        let value = record.and_then(|record| record.value.as_deref());
        let billed = event.variants.iter().position(|variant| Some(variant.value.as_str()) == value);
        let acknowledged = || (0..event.variants.len()).filter(|&index| event.variants[index].acknowledged > 0);
        let missing = acknowledged().find(|&index| letters.get(&event.variants[index].detail).is_none());
        let winner = billed.or(missing).or_else(|| acknowledged().next()).unwrap_or(0);
        let winning = &event.variants[winner];
        let is_dead_lettered = letters.get(&winning.detail).is_some();
        if !event.is_poison {
            line.expected.push(winning.value.clone());
        }
        match record {
            Some(record) => {
                self.delivered += 1;
                line.sums.delivered += 1;
                if let Some(took) = late(scope, winning.sent, record.at) {
                    let text = format!("{} was billed late, after {took:.1?}", event.unique_id);
                    self.found.add(Kind::Late, whose(event), text);
                }
                self.is_misbilled(event, record);
                if event.is_poison || is_dead_lettered {
                    let text = format!("{} is billed, and should not be or is a dead letter too", event.unique_id);
                    self.found.add(Kind::Unexpected, whose(event), text);
                }
            }
            None if event.is_poison && letters.has(&winning.detail, Reason::Rejected) => {
                self.refused += 1;
                line.sums.refused += 1;
            }
            None if is_dead_lettered => {
                let reasons = letters.get(&winning.detail);
                let text = format!("{} is good, but was dead-lettered: {reasons:?}", event.unique_id);
                self.found.add(Kind::Unexpected, whose(event), text);
            }
            None if records.is_none() => self.judged_by_sums += 1,
            None => self.found.add(Kind::Lost, whose(event), format!("lost: {}", winning.detail)),
        }
        for (index, variant) in event.variants.iter().enumerate() {
            if index == winner || variant.acknowledged == 0 {
                continue;
            }
            if letters.has(&variant.detail, Reason::Conflict) {
                self.conflicts += 1;
                line.conflicts += 1;
            } else {
                let text = format!("conflicting event not dead-lettered as conflict: {}", variant.detail);
                self.found.add(Kind::Conflicting, whose(event), text);
            }
        }
    }

    /// Says what is wrong with the bill of this event, if anything is.
    fn is_misbilled(&mut self, event: &ValidEvent, record: &StoredRecord) -> bool {
        let wrong = difference(event, record);
        if let Some(wrong) = wrong {
            let text = format!("{} was billed with {wrong}: {}", event.unique_id, record.raw);
            self.found.add(Kind::Misbilled, whose(event), text);
        }
        wrong.is_some()
    }

    fn unexpected_letters(&mut self, truth: &Truth, letters: &Letters) {
        let variants = truth.valid.iter().flat_map(|event| &event.variants).map(|variant| &*variant.detail);
        let known: BTreeSet<&str> = variants.chain(truth.malformed.iter().map(|event| &*event.detail)).collect();
        let unknown: BTreeSet<&str> = letters.details().filter(|detail| !known.contains(detail)).collect();
        for detail in unknown {
            let (tenant, meter) = names(detail);
            let text = format!("a dead letter that nobody emitted: {detail}");
            self.found.add(Kind::Unexpected, (&tenant, &meter), text);
        }
    }
}

/// Tenant and meter.
fn whose(event: &ValidEvent) -> (&str, &str) {
    (&event.tenant, &event.meter)
}

/// How long after the call the record was accepted, if that is too long.
fn late(scope: &Scope, sent: Option<Duration>, at: Duration) -> Option<Duration> {
    let took = at.saturating_sub(sent?);
    (took > scope.late_after?).then_some(took)
}

/// What is wrong with the bill of this event, if anything is.
pub fn difference(event: &ValidEvent, record: &StoredRecord) -> Option<&'static str> {
    let is_known = event.variants.iter().any(|variant| Some(&variant.value) == record.value.as_ref());
    let checks = [
        (is_known, "another value"),
        (record.customer_id == event.tenant, "another customer"),
        (*record.meter_api_name == *event.meter, "another meter"),
        (event.time.is_none_or(|time| time == record.time_millis), "another time"),
        (record.dimensions == *event.dimensions, "other dimensions"),
    ];
    checks.into_iter().find(|(ok, _)| !ok).map(|(_, what)| what)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
