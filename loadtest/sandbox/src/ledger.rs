//! What has been billed: deduplicated as Amberflo does it, summed exactly, and open to audit.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::facts::Facts;
use crate::record::Record;
use crate::report::{DoubleBilled, LedgerLine, LedgerSnapshot, StoredRecord, Total};

/// How many events billed more than once are remembered by name.
const DOUBLE_BILLED_MAX: usize = 1_000_000;

#[derive(Debug)]
pub(crate) struct Ledger {
    keep_records: bool,
    max_remembered: Option<NonZeroUsize>,
    customers: Names,
    meters: Names,
    lines: HashMap<(u32, u32), Line>,
    /// The first billing under each meter and `uniqueId`, or under all attributes where there is no `uniqueId`.
    first: HashMap<u128, Billed, BuildHasherDefault<AlreadyHashed>>,
    /// The billings after the first, rare in a sound system and so kept out of `first`, which holds millions.
    later: HashMap<u128, Vec<Billed>, BuildHasherDefault<AlreadyHashed>>,
    /// Keys of `first` and when they came, oldest first; only filled where something is forgotten.
    order: VecDeque<(u128, Duration)>,
    double_billed: BTreeMap<(String, String, String), u64>,
    records: Vec<StoredRecord>,
    /// Counts only; its lines stay empty.
    counts: LedgerSnapshot,
}

#[derive(Debug, Default)]
struct Line {
    events: u64,
    total: Total,
    absorbed_copies: u64,
}

/// One billing. `fingerprint` is half of the hash of all attributes: enough to tell the billings of one event apart.
#[derive(Clone, Copy, Debug)]
struct Billed {
    time_millis: i64,
    fingerprint: u64,
    customer: u32,
    /// Index of the kept record; meaningless when records are not kept.
    record: u32,
}

impl Ledger {
    pub(crate) fn new(keep_records: bool, max_remembered: Option<NonZeroUsize>) -> Self {
        Self {
            keep_records,
            max_remembered,
            customers: Names::default(),
            meters: Names::default(),
            lines: HashMap::new(),
            first: HashMap::default(),
            later: HashMap::default(),
            order: VecDeque::new(),
            double_billed: BTreeMap::new(),
            records: Vec::new(),
            counts: LedgerSnapshot::default(),
        }
    }

    /// Bills the records of a request, or absorbs them as copies: how many of them.
    pub(crate) fn accept(&mut self, records: &[Record<'_>], at: Duration, facts: &Facts) -> usize {
        self.forget(at, facts);
        let absorbed = self.counts.absorbed_copies;
        let mut request = HashSet::new();
        for record in records {
            let attributes = record.attributes(facts);
            // The set is filled only where it matters.
            let absorbs = facts.absorbs_copies && (facts.absorbs_copies_within_a_request || request.insert(attributes));
            self.accept_one(record, attributes, at, absorbs, facts);
        }
        usize::try_from(self.counts.absorbed_copies - absorbed).unwrap_or(usize::MAX)
    }

    fn accept_one(&mut self, record: &Record<'_>, attributes: u128, at: Duration, absorbs: bool, facts: &Facts) {
        let key = record.event().unwrap_or(attributes);
        let billed = Billed {
            time_millis: record.time_millis,
            fingerprint: attributes as u64,
            customer: self.customers.id(&record.customer_id),
            record: self.records.len() as u32,
        };
        match self.first.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(billed);
                if self.max_remembered.is_some() || facts.remembers_copies_for.is_some() {
                    self.order.push_back((key, at));
                }
            }
            Entry::Occupied(first) => {
                let later = self.later.get(&key).map_or(&[][..], Vec::as_slice);
                let earlier = || std::iter::once(first.get()).chain(later.iter());
                if let Some(same) = earlier().find(|b| absorbs && b.fingerprint == billed.fingerprint).copied() {
                    return self.absorb(record, same, billed.customer);
                }
                let conflicts = earlier().any(|b| b.time_millis == billed.time_millis);
                let times = earlier().filter(|b| b.customer == billed.customer).count() as u64 + 1;
                self.later.entry(key).or_default().push(billed);
                self.counts.conflicting_copies += u64::from(conflicts);
                if times > 1 {
                    self.counts.billed_again += 1;
                    self.name_double_billed(record, times);
                }
            }
        }
        self.bill(record, billed.customer, at);
        while self.max_remembered.is_some_and(|max| self.first.len() > max.get()) && self.forget_oldest() {}
    }

    fn absorb(&mut self, record: &Record<'_>, same: Billed, customer: u32) {
        self.counts.absorbed_copies += 1;
        for (meter, _) in record.billed() {
            self.lines.entry((customer, self.meters.id(meter))).or_default().absorbed_copies += 1;
        }
        if let Some(kept) = self.records.get_mut(same.record as usize) {
            kept.copies += 1;
            self.counts.absorbed_with_other_bytes += u64::from(kept.raw != record.raw);
        }
    }

    fn bill(&mut self, record: &Record<'_>, customer: u32, at: Duration) {
        self.counts.events += 1;
        for (meter, value) in record.billed() {
            let line = self.lines.entry((customer, self.meters.id(meter))).or_default();
            line.events += 1;
            line.total.add(value);
        }
        if self.keep_records {
            let dimensions = record.dimensions.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            self.records.push(StoredRecord {
                index: self.records.len() as u64,
                at,
                customer_id: record.customer_id.to_string(),
                meter_api_name: record.meter_api_name.to_string(),
                time_millis: record.time_millis,
                value: record.value.map(str::to_owned),
                unique_id: record.unique_id.as_deref().map(str::to_owned),
                dimensions: dimensions.collect(),
                raw: record.raw.to_owned(),
                copies: 0,
            });
        }
    }

    /// A later billing of a remembered event does not make it younger.
    fn forget(&mut self, at: Duration, facts: &Facts) {
        let Some(remembered) = facts.remembers_copies_for else { return };
        while self.order.front().is_some_and(|(_, since)| *since + remembered <= at) && self.forget_oldest() {}
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((oldest, _)) = self.order.pop_front() else { return false };
        self.first.remove(&oldest);
        self.later.remove(&oldest);
        true
    }

    fn name_double_billed(&mut self, record: &Record<'_>, times: u64) {
        let owned = |text: &str| text.to_owned();
        let unique_id = record.unique_id.as_deref().map(owned).unwrap_or_default();
        let name = (owned(&record.customer_id), owned(&record.meter_api_name), unique_id);
        if self.double_billed.len() < DOUBLE_BILLED_MAX || self.double_billed.contains_key(&name) {
            self.double_billed.insert(name, times);
        }
    }

    pub(crate) fn snapshot(&self, customer_id: Option<&str>, meter_api_name: Option<&str>) -> LedgerSnapshot {
        let named = self.lines.iter().map(|(&(customer, meter), line)| LedgerLine {
            customer_id: self.customers.name(customer).to_owned(),
            meter_api_name: self.meters.name(meter).to_owned(),
            events: line.events,
            total: line.total,
            absorbed_copies: line.absorbed_copies,
        });
        let wanted = |line: &LedgerLine| {
            customer_id.is_none_or(|id| line.customer_id == id)
                && meter_api_name.is_none_or(|name| line.meter_api_name == name)
        };
        let mut lines: Vec<_> = named.filter(wanted).collect();
        lines.sort_unstable_by(|a, b| (&a.customer_id, &a.meter_api_name).cmp(&(&b.customer_id, &b.meter_api_name)));
        LedgerSnapshot { lines, ..self.counts.clone() }
    }

    pub(crate) fn records(&self) -> &[StoredRecord] {
        &self.records
    }

    pub(crate) fn double_billed(&self) -> Vec<DoubleBilled> {
        let named = self.double_billed.iter().map(|((customer_id, meter_api_name, unique_id), &times)| DoubleBilled {
            customer_id: customer_id.clone(),
            meter_api_name: meter_api_name.clone(),
            unique_id: unique_id.clone(),
            times,
        });
        named.collect()
    }
}

/// Names as small numbers.
#[derive(Debug, Default)]
struct Names {
    ids: HashMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    fn id(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.names.len() as u32;
        self.ids.insert(name.to_owned(), id);
        self.names.push(name.to_owned());
        id
    }

    fn name(&self, id: u32) -> &str {
        &self.names[id as usize]
    }
}

/// For keys that are hashes: hashing them again would only cost time.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            self.0 ^= u64::from(*byte) << (at % 8 * 8);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Batch;

    fn ledger(keep_records: bool, bodies: &[String]) -> Ledger {
        let mut ledger = Ledger::new(keep_records, None);
        bodies.iter().for_each(|body| accept(&mut ledger, body));
        ledger
    }

    fn accept(ledger: &mut Ledger, body: &str) {
        ledger.accept(&Batch::parse(body, true).unwrap().records, Duration::ZERO, &Facts::default());
    }

    fn event(customer: &str, unique_id: &str, time: i64, value: &str) -> String {
        format!(
            r#"{{"customerId":"{customer}","meterApiName":"m","meterTimeInMillis":{time},"meterValue":{value},"uniqueId":"{unique_id}"}}"#
        )
    }

    #[test]
    fn copies_are_absorbed_and_differing_ones_billed() {
        let bodies = [
            event("c", "u", 1, "10"),
            event("c", "u", 1, "10"),
            event("c", "u", 1, "11"),
            event("c", "u", 1, "11"),
            event("c", "u", 2, "10"),
            event("d", "u", 2, "10"),
        ];
        for keep_records in [true, false] {
            let ledger = ledger(keep_records, &bodies);
            let snapshot = ledger.snapshot(None, None);
            assert_eq!((snapshot.events, snapshot.absorbed_copies), (4, 2));
            // The other value at the same time, and customer d at the time of c's second event.
            assert_eq!(snapshot.conflicting_copies, 2);
            assert_eq!(snapshot.billed_again, 2);
            let line = snapshot.line("c", "m").unwrap();
            assert_eq!((line.events, line.total.integers, line.absorbed_copies), (3, 31, 2));
            let [double] = &ledger.double_billed()[..] else { panic!("one event") };
            assert_eq!((double.customer_id.as_str(), double.unique_id.as_str(), double.times), ("c", "u", 3));
            assert_eq!(ledger.records().len(), if keep_records { 4 } else { 0 });
        }
    }

    #[test]
    fn without_unique_id_all_attributes_decide() {
        let plain = r#"{"customerId":"c","meterApiName":"m","meterTimeInMillis":1,"meterValue":1}"#.to_owned();
        let other = plain.replace(":1}", ":2}");
        let snapshot = ledger(true, &[plain.clone(), plain, other]).snapshot(None, None);
        assert_eq!((snapshot.events, snapshot.absorbed_copies, snapshot.conflicting_copies), (2, 1, 0));
    }

    #[test]
    fn integers_keep_every_digit() {
        let big = "123456789012345678901234567890";
        let bodies =
            [event("c", "1", 1, big), event("c", "2", 1, "1"), event("c", "3", 1, "0.5"), event("c", "4", 1, "1e3")];
        let snapshot = ledger(false, &bodies).snapshot(Some("c"), Some("m"));
        let total = Total { integers: 123_456_789_012_345_678_901_234_567_891, decimals: 1000.5 };
        assert_eq!(snapshot.lines[0].total, total);
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.contains("123456789012345678901234567891"), "{json}");
    }

    #[test]
    fn copies_with_other_bytes_are_noticed() {
        let one = event("c", "u", 1, "1");
        let ledger = ledger(true, &[one.clone(), one.replace(':', ": "), one]);
        assert_eq!(ledger.records()[0].copies, 2);
        assert_eq!(ledger.snapshot(None, None).absorbed_with_other_bytes, 1);
    }

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let mut ledger = Ledger::new(false, NonZeroUsize::new(2));
        let steps = [("a", 1, 0), ("b", 2, 0), ("a", 2, 1), ("c", 3, 1), ("a", 4, 1), ("c", 4, 2)];
        for (unique_id, events, absorbed) in steps {
            accept(&mut ledger, &event("c", unique_id, 1, "1"));
            let snapshot = ledger.snapshot(None, None);
            assert_eq!((snapshot.events, snapshot.absorbed_copies), (events, absorbed), "{unique_id}");
        }
    }
}
