//! The reconciliation: what was emitted, against what Amberflo billed and what lies in the dead letters.
//!
//! Pure, so that the tests below can plant every kind of failure and see it reported. The bill is looked at twice, by
//! event and by the total of each customer and meter, and the two are kept independent: the totals are the sandbox's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use amberflo_sandbox::{DoubleBilled, LedgerSnapshot, StoredRecord, Total};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::dead_letter::DeadLetter;
use shared::reason::Reason;

use crate::truth::{Truth, ValidEvent};

/// So many findings are told in words; all are counted.
const FINDINGS_MAX: usize = 20;

/// What Amberflo billed, in three views that must agree.
#[derive(Debug, Default)]
pub struct Bill {
    /// Every record.
    pub records: Vec<StoredRecord>,
    /// The totals.
    pub ledger: LedgerSnapshot,
    /// Events billed more than once, as Amberflo's side sees it.
    pub billed_more_than_once: Vec<DoubleBilled>,
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
    /// By meter, in order of name.
    pub meters: Vec<MeterLine>,
    /// The first failures in words.
    pub findings: Vec<String>,
}

/// One meter's reconciliation.
#[derive(Debug, Default, Serialize)]
pub struct MeterLine {
    /// `meterApiName`
    pub meter: String,
    /// Entries with a valid form.
    pub emitted: u64,
    /// Events.
    pub unique_valid: u64,
    /// Events billed.
    pub delivered: u64,
    /// Events that Amberflo refused, now in the dead letters.
    pub refused: u64,
    /// What must be billed.
    pub expected: Total,
    /// What is billed.
    pub billed: Total,
}

impl Audit {
    /// Compares. `letters` may hold copies.
    #[must_use]
    pub fn of(truth: &Truth, bill: &Bill, letters: &[DeadLetter]) -> Self {
        let mut audit = Self::default();
        let letters = Letters::read(letters, &mut audit);
        audit.malformed_events(truth, &letters);
        let expected = audit.valid_events(truth, bill, &letters);
        audit.bills(&expected, bill);
        audit.unexpected_letters(truth, &letters);
        audit
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.lost + self.double_billed + self.misbilled + self.missing_dead_letters + self.unexpected == 0
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn malformed_events(&mut self, truth: &Truth, letters: &Letters) {
        for event in truth.malformed.iter().filter(|event| event.acknowledged > 0) {
            self.emitted += event.acknowledged;
            self.malformed += 1;
            self.duplicates += event.acknowledged - 1;
            if !letters.has(&event.detail, event.reason) {
                self.missing_dead_letters += 1;
                self.find(format!("malformed event not dead-lettered as {}: {}", event.reason, event.detail));
            }
        }
    }

    /// Judges every event, and answers what each customer must pay for each meter.
    fn valid_events<'a>(&mut self, truth: &'a Truth, bill: &'a Bill, letters: &Letters) -> Expected<'a> {
        let mut billed: HashMap<&str, Vec<&StoredRecord>> = HashMap::new();
        for record in &bill.records {
            billed.entry(record.unique_id.as_deref().unwrap_or_default()).or_default().push(record);
        }
        let several = billed.iter().filter(|(_, records)| records.len() > 1).map(|(id, _)| *id);
        let several: BTreeSet<&str> =
            several.chain(bill.billed_more_than_once.iter().map(|event| event.unique_id.as_str())).collect();
        for id in &several {
            self.double_billed += 1;
            self.find(format!("billed more than once: {id}"));
        }
        let mut expected = Expected::default();
        for event in &truth.valid {
            let records = billed.remove(event.unique_id.as_str()).unwrap_or_default();
            let line = expected.lines.entry((&event.tenant, event.meter)).or_default();
            line.has_double |= several.contains(event.unique_id.as_str());
            if event.acknowledged() > 0 {
                self.valid_event(event, &records, letters, line);
            } else if let Some(record) = records.first() {
                // Stored, but the producer never learnt it: a legitimate outcome of a run that was cut short.
                line.expected.push(record.value.clone().unwrap_or_default());
            }
        }
        for (id, records) in billed {
            self.unexpected += records.len() as u64;
            self.find(format!("billed, but nobody emitted it: {id:?} of {}", records[0].customer_id));
        }
        expected
    }

    fn valid_event(&mut self, event: &ValidEvent, records: &[&StoredRecord], letters: &Letters, line: &mut Line) {
        let emitted = event.acknowledged();
        let contents = event.variants.iter().filter(|variant| variant.acknowledged > 0).count() as u64;
        self.emitted += emitted;
        self.unique_valid += 1;
        self.conflicts_emitted += contents - 1;
        self.duplicates += emitted - contents;
        line.emitted += emitted;
        line.unique_valid += 1;

        // Which content won is for the stream's order to say; all others must be conflicts. Where none is billed, the
        // one without a dead letter must be the one that won.
        let value = records.first().and_then(|record| record.value.as_deref());
        let billed = event.variants.iter().position(|variant| Some(variant.value.as_str()) == value);
        let acknowledged = || (0..event.variants.len()).filter(|&index| event.variants[index].acknowledged > 0);
        let missing = acknowledged().find(|&index| letters.get(&event.variants[index].detail).is_none());
        let winner = billed.or(missing).or_else(|| acknowledged().next()).unwrap_or(0);
        let winning = &event.variants[winner];
        let is_dead_lettered = letters.get(&winning.detail).is_some();
        if !event.is_poison {
            line.expected.push(winning.value.clone());
        }
        match records.first() {
            Some(record) => {
                self.delivered += 1;
                line.delivered += 1;
                if let Some(wrong) = difference(event, record) {
                    self.misbilled += 1;
                    self.find(format!("{} was billed with {wrong}: {}", event.unique_id, record.raw));
                }
                if event.is_poison || is_dead_lettered {
                    self.unexpected += 1;
                    self.find(format!("{} is billed, and should not be or is a dead letter too", event.unique_id));
                }
            }
            None if event.is_poison && letters.has(&winning.detail, Reason::Rejected) => {
                self.refused += 1;
                line.refused += 1;
            }
            None if is_dead_lettered => {
                self.unexpected += 1;
                let reasons = letters.get(&winning.detail);
                self.find(format!("{} is good, but was dead-lettered: {reasons:?}", event.unique_id));
            }
            None => {
                self.lost += 1;
                self.find(format!("lost: {}", winning.detail));
            }
        }
        for (index, variant) in event.variants.iter().enumerate() {
            if index == winner || variant.acknowledged == 0 {
                continue;
            }
            if letters.has(&variant.detail, Reason::Conflict) {
                self.conflicts += 1;
            } else {
                self.missing_dead_letters += 1;
                self.find(format!("conflicting event not dead-lettered as conflict: {}", variant.detail));
            }
        }
    }

    /// Compares the totals of each customer and meter, and sums them up by meter.
    fn bills(&mut self, expected: &Expected<'_>, bill: &Bill) {
        let mut meters = BTreeMap::<&str, MeterLine>::new();
        for (&(tenant, meter), line) in &expected.lines {
            let billed = bill.ledger.line(tenant, meter).map(|line| line.total).unwrap_or_default();
            let must = line.expected.iter().fold(Total::default(), |sum, value| plus(sum, parse(value)));
            if exceeds(billed, must) && !line.has_double {
                self.double_billed += 1;
                self.find(format!("{tenant} pays {} for {meter}, more than {}", billed.as_f64(), must.as_f64()));
            }
            let sum = meters.entry(meter).or_default();
            sum.emitted += line.emitted;
            sum.unique_valid += line.unique_valid;
            sum.delivered += line.delivered;
            sum.refused += line.refused;
            sum.expected = plus(sum.expected, must);
            sum.billed = plus(sum.billed, billed);
        }
        let known = |line: &&amberflo_sandbox::LedgerLine| {
            expected.lines.contains_key(&(line.customer_id.as_str(), line.meter_api_name.as_str()))
        };
        let stray: Vec<_> = bill.ledger.lines.iter().filter(|line| line.events > 0 && !known(line)).collect();
        for line in stray {
            self.double_billed += 1;
            self.find(format!("{} pays for {}, and used none", line.customer_id, line.meter_api_name));
        }
        self.meters = meters.into_iter().map(|(meter, line)| MeterLine { meter: meter.to_owned(), ..line }).collect();
    }

    fn unexpected_letters(&mut self, truth: &Truth, letters: &Letters) {
        let variants = truth.valid.iter().flat_map(|event| &event.variants).map(|variant| &*variant.detail);
        let known: BTreeSet<&str> = variants.chain(truth.malformed.iter().map(|event| &*event.detail)).collect();
        for detail in letters.0.keys().filter(|detail| !known.contains(detail.as_str())) {
            self.unexpected += 1;
            self.find(format!("a dead letter that nobody emitted: {detail}"));
        }
    }
}

/// What each customer must pay for each meter.
#[derive(Default)]
struct Expected<'a> {
    lines: BTreeMap<(&'a str, &'a str), Line>,
}

#[derive(Default)]
struct Line {
    emitted: u64,
    unique_valid: u64,
    delivered: u64,
    refused: u64,
    expected: Vec<String>,
    has_double: bool,
}

/// The reasons of dead letters by the `detail` of their event, byte for byte as it was emitted.
struct Letters(HashMap<String, BTreeSet<String>>);

impl Letters {
    fn read(letters: &[DeadLetter], audit: &mut Audit) -> Self {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            detail: &'a RawValue,
        }
        let mut by_detail = HashMap::<String, BTreeSet<String>>::new();
        for letter in letters {
            // The local store keeps every payload.
            let payload = letter.payload.stored().map_or(&[][..], |payload| payload);
            let detail = match serde_json::from_slice::<Envelope<'_>>(payload) {
                Ok(envelope) => envelope.detail.get().to_owned(),
                Err(_) => String::from_utf8_lossy(payload).into_owned(),
            };
            if by_detail.entry(detail).or_default().insert(letter.reason.clone()) {
                *audit.dead_letters.entry(letter.reason.clone()).or_default() += 1;
                audit.dead_lettered += 1;
            } else {
                audit.dead_letter_copies += 1;
            }
        }
        Self(by_detail)
    }

    fn get(&self, detail: &str) -> Option<&BTreeSet<String>> {
        self.0.get(detail)
    }

    /// Whether the event is here for this reason and no other.
    fn has(&self, detail: &str, reason: Reason) -> bool {
        self.get(detail).is_some_and(|reasons| reasons.iter().all(|given| given == reason.as_str()))
    }
}

/// What is wrong with the bill of this event.
fn difference(event: &ValidEvent, record: &StoredRecord) -> Option<&'static str> {
    let is_known = event.variants.iter().any(|variant| Some(&variant.value) == record.value.as_ref());
    let checks = [
        (is_known, "another value"),
        (record.customer_id == event.tenant, "another customer"),
        (record.meter_api_name == event.meter, "another meter"),
        (event.time.is_none_or(|time| time == record.time_millis), "another time"),
        (record.dimensions == event.dimensions, "other dimensions"),
    ];
    checks.into_iter().find(|(ok, _)| !ok).map(|(_, what)| what)
}

fn parse(value: &str) -> Total {
    match value.parse() {
        Ok(integers) => Total { integers, decimals: 0.0 },
        Err(_) => Total { integers: 0, decimals: value.parse().unwrap_or_default() },
    }
}

fn plus(a: Total, b: Total) -> Total {
    Total { integers: a.integers + b.integers, decimals: a.decimals + b.decimals }
}

fn exceeds(billed: Total, must: Total) -> bool {
    (billed.integers - must.integers) as f64 + (billed.decimals - must.decimals) > 0.0
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
