//! What was put in, so what must come out; and the checks against it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;

use amberflo_sandbox::StoredRecord;
use bytes::Bytes;
use shared::backend::{Checkpoint, Lease, Leases as _, Position, SequenceNumber, ShardId, Stream as _};
use shared::dead_letter::DeadLetter;

use super::faulty::World;

/// Everything the producers did. Events carry their number as the dimension `n`.
#[derive(Debug, Default)]
pub struct Truth {
    /// Valid events by number: the values that were put under it, in order. The first is the event, the others conflict
    /// with it.
    pub events: BTreeMap<u32, Vec<i64>>,
    /// Records that are not usage events: exact bytes and expected reason.
    pub malformed: BTreeMap<Bytes, &'static str>,
    /// Whether a copy could have reached Amberflo twice by rights: a kill, a stolen lease, an ambiguous fault.
    pub is_ambiguous: bool,
    /// Whether two workers may have acted for a shard at once.
    pub had_overlap: bool,
    /// Whether an event may be both billed and dead-lettered: delivered by one life of the worker, refused in another.
    pub had_restart: bool,
    /// Letters as they were before a redrive removed them.
    pub redriven_letters: Vec<DeadLetter>,
    /// Per shard: how far checkpoints were checked.
    checked: HashMap<ShardId, SequenceNumber>,
}

/// One of our events as it lies in the stream or the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    pub number: u32,
    pub value: i64,
}

impl World {
    /// No checkpoint passes a record that is not settled.
    pub async fn check_checkpoint(&self, lease: &Lease) {
        let Checkpoint::Settled { sequence_number, .. } = &lease.checkpoint else { return };
        let checked = self.truth.lock().unwrap().checked.get(&lease.shard).cloned();
        if checked.as_ref().is_some_and(|checked| checked >= sequence_number) {
            return;
        }
        let from = checked.map_or(Position::TrimHorizon, Position::After);
        let mut reader = self.store.reader(&lease.shard, from).await.unwrap();
        let billed: BTreeSet<u32> = self.billed().iter().map(|variant| variant.number).collect();
        let letters: BTreeSet<Bytes> =
            self.letters().await.into_iter().map(|letter| letter.payload.stored().unwrap().clone()).collect();
        let lettered: BTreeSet<u32> =
            letters.iter().filter_map(|payload| variant_in(payload)).map(|variant| variant.number).collect();
        'pages: loop {
            let page = reader.next(1 << 20).await.unwrap();
            assert!(!page.records.is_empty(), "the checkpoint {sequence_number} lies behind the end of the shard");
            for record in page.records {
                if record.sequence_number > *sequence_number {
                    break 'pages;
                }
                let is_settled = match variant_in(&record.data) {
                    Some(variant) => billed.contains(&variant.number) || lettered.contains(&variant.number),
                    None => letters.contains(&record.data),
                };
                assert!(
                    is_settled,
                    "checkpoint {sequence_number} of {} passed the unsettled record {}: {:?}",
                    lease.shard, record.sequence_number, record.data
                );
                if record.sequence_number == *sequence_number {
                    break 'pages;
                }
            }
        }
        self.truth.lock().unwrap().checked.insert(lease.shard.clone(), sequence_number.clone());
    }

    /// A record that Amberflo has already is sent again only while no checkpoint has passed it.
    pub async fn check_request(&self, gzipped: &[u8]) {
        if self.truth.lock().unwrap().had_overlap {
            return;
        }
        let mut text = String::new();
        flate2::read::GzDecoder::new(gzipped).read_to_string(&mut text).unwrap();
        let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let billed: BTreeSet<u32> = self.billed().iter().map(|variant| variant.number).collect();
        let mut again: BTreeSet<u32> =
            records.iter().map(|record| record["dimensions"]["n"].as_str().unwrap().parse().unwrap()).collect();
        again.retain(|number| billed.contains(number));
        if again.is_empty() {
            return;
        }
        for lease in self.store.list().await.unwrap() {
            let Checkpoint::Settled { sequence_number, .. } = lease.checkpoint else { continue };
            let mut reader = self.store.reader(&lease.shard, Position::TrimHorizon).await.unwrap();
            let mut passed = BTreeSet::new();
            'pages: loop {
                let page = reader.next(1 << 20).await.unwrap();
                if page.records.is_empty() {
                    break;
                }
                for record in page.records {
                    if record.sequence_number > sequence_number {
                        break 'pages;
                    }
                    let is_redriven = record.data.starts_with(b"{\"metering:redrive\"");
                    passed.extend(variant_in(&record.data).filter(|_| !is_redriven).map(|variant| variant.number));
                }
            }
            // Redriven events pass the checkpoint twice by intention.
            let redriven: BTreeSet<u32> = {
                let truth = self.truth.lock().unwrap();
                truth
                    .redriven_letters
                    .iter()
                    .filter_map(|letter| variant_in(letter.payload.stored().unwrap()))
                    .map(|v| v.number)
                    .collect()
            };
            let wrongly: Vec<&u32> = again.intersection(&passed).filter(|number| !redriven.contains(number)).collect();
            assert!(wrongly.is_empty(), "sent again after their checkpoint: {wrongly:?}");
        }
    }

    /// The ledger and the dead letters against the truth, when everything is settled.
    pub async fn check_balance(&self) {
        let letters = self.letters().await;
        let truth = self.truth.lock().unwrap();
        let ledger = self.sandbox.ledger();
        assert_eq!(ledger.absorbed_with_other_bytes, 0, "a copy was not the identical bytes");
        assert_eq!(self.sandbox.stats().unknown_keys.len(), 0, "Amberflo would ignore these silently");
        assert_eq!(self.sandbox.billed_more_than_once().len(), 0, "{:?}", self.sandbox.billed_more_than_once());
        if !truth.is_ambiguous {
            assert_eq!(ledger.absorbed_copies, 0, "copies reached Amberflo although nothing was ambiguous");
        }
        let billed = self.billed();
        for (&number, values) in &truth.events {
            let times_billed = billed.iter().filter(|variant| variant.number == number).count();
            assert!(times_billed <= 1, "event {number} was billed {times_billed} times");
            for (index, &value) in values.iter().enumerate() {
                let variant = Variant { number, value };
                let is_billed = billed.contains(&variant);
                let reasons: Vec<&str> = letters
                    .iter()
                    .filter(|letter| variant_in(letter.payload.stored().unwrap()) == Some(variant))
                    .map(|letter| &*letter.reason)
                    .collect();
                assert!(is_billed || !reasons.is_empty(), "event {number} with value {value} was lost");
                assert!(
                    !is_billed || reasons.is_empty() || truth.had_restart,
                    "event {number}: billed and {reasons:?}"
                );
                assert_eq!(index > 0, reasons.contains(&"conflict"), "event {number}, variant {index}: {reasons:?}");
                assert!(index == 0 || !is_billed, "event {number}: the conflicting copy was billed");
            }
        }
        assert!(
            billed.iter().all(|variant| truth.events.contains_key(&variant.number)),
            "something unknown was billed"
        );
        for (payload, reason) in &truth.malformed {
            let found: Vec<&str> = letters
                .iter()
                .filter(|letter| letter.payload.stored().unwrap() == payload)
                .map(|letter| &*letter.reason)
                .collect();
            assert!(!found.is_empty(), "lost: {payload:?}");
            assert!(found.iter().all(|found| found == reason), "{payload:?}: {found:?}, not {reason}");
        }
    }

    /// After everything redrivable was redriven without faults, every event is billed exactly once.
    pub async fn check_all_billed(&self) {
        self.check_balance().await;
        let billed: BTreeSet<Variant> = self.billed().into_iter().collect();
        let truth = self.truth.lock().unwrap();
        for (&number, values) in &truth.events {
            assert!(
                billed.contains(&Variant { number, value: values[0] }),
                "event {number} was not billed by a redrive"
            );
        }
    }

    pub fn billed(&self) -> Vec<Variant> {
        self.sandbox.records().iter().map(variant_of).collect()
    }

    pub async fn letters(&self) -> Vec<DeadLetter> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = self.store.peek_dead_letters(after, 1000).await.unwrap();
            match page.last() {
                Some((last, _)) => after = *last,
                None => break,
            }
            all.extend(page.into_iter().map(|(_, letter)| letter));
        }
        all.extend(self.truth.lock().unwrap().redriven_letters.iter().cloned());
        all
    }
}

fn variant_of(record: &StoredRecord) -> Variant {
    Variant { number: record.dimensions["n"].parse().unwrap(), value: record.value.as_ref().unwrap().parse().unwrap() }
}

/// The event in a payload that one of our producers made; `None` for malformed ones.
fn variant_in(payload: &[u8]) -> Option<Variant> {
    let record: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let detail = &record["detail"];
    detail["bad"].is_null().then_some(())?;
    Some(Variant { number: detail["n"].as_u64()?.try_into().ok()?, value: detail["meterValue"].as_i64()? })
}
