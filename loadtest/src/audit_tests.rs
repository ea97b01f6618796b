//! Plants failures: an auditor that cannot fail proves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use amberflo_sandbox::{DoubleBilled, LedgerLine, LedgerSnapshot, StoredRecord, Total};
use shared::dead_letter::{DeadLetter, Payload};
use shared::reason::Reason;

use super::bills::{parse, plus};
use super::{Audit, Bill, Differences, Scope};
use crate::truth::{MalformedEvent, Truth, ValidEvent, Variant};

const NOW: i64 = 1_790_000_000_000;

fn variant(value: &str, detail: &str, acknowledged: u64) -> Variant {
    Variant { value: value.to_owned(), detail: detail.into(), acknowledged, sent: Some(Duration::ZERO) }
}

fn event(unique_id: &str, variants: Vec<Variant>, is_poison: bool) -> ValidEvent {
    let dimensions = BTreeMap::from([("plan".to_owned(), "pro".to_owned())]);
    let (tenant, unique_id) = ("t1".to_owned(), unique_id.to_owned());
    let (meter, dimensions) = ("calls".into(), dimensions.into());
    ValidEvent { tenant, meter, unique_id, time: Some(NOW), dimensions, variants, is_poison }
}

/// A plain event with a retry, a conflict whose second content won, a poisoned event, and a malformed one.
fn truth() -> Truth {
    let malformed = MalformedEvent { detail: r#"{"bad": 1}"#.into(), reason: Reason::MissingField, acknowledged: 1 };
    Truth {
        valid: vec![
            event("a", vec![variant("5", r#"{"a":5}"#, 2)], false),
            event("b", vec![variant("7", r#"{"b":7}"#, 1), variant("97", r#"{"b":97}"#, 1)], false),
            event("p", vec![variant("1", r#"{"p":1}"#, 1)], true),
            event("q", vec![variant("0.25", r#"{"q":0.25}"#, 1)], false),
        ],
        malformed: vec![malformed],
    }
}

fn record(unique_id: &str, value: &str) -> StoredRecord {
    StoredRecord {
        index: 0,
        at: Duration::ZERO,
        customer_id: "t1".to_owned(),
        meter_api_name: "calls".to_owned(),
        time_millis: NOW,
        value: Some(value.to_owned()),
        unique_id: Some(unique_id.to_owned()),
        dimensions: BTreeMap::from([("plan".to_owned(), "pro".to_owned())]),
        raw: format!("{{{unique_id}}}"),
        copies: 0,
    }
}

/// The bill of these records, with totals that agree with them.
fn bill(records: Vec<StoredRecord>) -> Bill {
    let mut lines = BTreeMap::<_, LedgerLine>::new();
    for record in &records {
        let names = (record.customer_id.clone(), record.meter_api_name.clone());
        let line = lines.entry(names.clone()).or_insert_with(|| LedgerLine {
            customer_id: names.0,
            meter_api_name: names.1,
            events: 0,
            total: Total::default(),
            absorbed_copies: 0,
        });
        line.events += 1;
        line.total = plus(line.total, parse(record.value.as_deref().unwrap()));
    }
    let ledger = LedgerSnapshot { lines: lines.into_values().collect(), ..LedgerSnapshot::default() };
    Bill { records, ledger, ..Bill::default() }
}

fn sound_bill() -> Bill {
    bill(vec![record("a", "5"), record("b", "97"), record("q", "0.25")])
}

fn letter(detail: &str, reason: Reason) -> DeadLetter {
    DeadLetter {
        schema_version: 1,
        reason: reason.to_string(),
        detail: String::new(),
        payload: Payload::Stored(
            format!(r#"{{"version":"0","id":"i","detail-type":"ingestUsage","detail":{detail}}}"#).into(),
        ),
        partition_key: "t1".to_owned(),
        stream: String::new(),
        shard: String::new(),
        sequence_number: String::new(),
        arrived_at: NOW,
        tenant_id: None,
        meter_api_name: None,
        unique_id: None,
        meter_time_in_millis: None,
        redrive_count: 0,
        amberflo_status: None,
        amberflo_answer: None,
        worker: String::new(),
        dead_lettered_at: NOW,
    }
}

fn sound_letters() -> Vec<DeadLetter> {
    vec![
        letter(r#"{"b":7}"#, Reason::Conflict),
        letter(r#"{"p":1}"#, Reason::Rejected),
        letter(r#"{"bad": 1}"#, Reason::MissingField),
    ]
}

/// Runs the audit and answers lost, double-billed, misbilled, missing dead letters, unexpected.
fn failures(truth: &Truth, bill: &Bill, letters: &[DeadLetter]) -> [u64; 5] {
    let audit = Audit::of(truth, bill, letters);
    let counts = [audit.lost, audit.double_billed, audit.misbilled, audit.missing_dead_letters, audit.unexpected];
    assert_eq!(audit.passed(), counts == [0; 5]);
    assert_eq!(audit.findings.is_empty(), audit.passed(), "{:?}", audit.findings);
    counts
}

#[test]
fn a_sound_run_passes_and_adds_up() {
    let mut letters = sound_letters();
    letters.push(letters[0].clone());
    let audit = Audit::of(&truth(), &sound_bill(), &letters);
    assert!(audit.passed(), "{:?}", audit.findings);
    assert_eq!((audit.emitted, audit.unique_valid, audit.delivered), (7, 4, 3));
    assert_eq!((audit.duplicates, audit.conflicts, audit.malformed, audit.refused), (1, 1, 1, 1));
    assert_eq!(audit.emitted, audit.unique_valid + audit.duplicates + audit.conflicts_emitted + audit.malformed);
    assert_eq!((audit.dead_lettered, audit.dead_letter_copies), (3, 1), "stored twice across a kill");
    let meter = &audit.meters[0];
    assert_eq!((meter.expected, meter.billed), (Total { integers: 102, decimals: 0.25 }, meter.expected));
}

#[test]
fn a_lost_event_is_reported() {
    let bill = bill(vec![record("b", "97"), record("q", "0.25")]);
    assert_eq!(failures(&truth(), &bill, &sound_letters()), [1, 0, 0, 0, 0]);
    let without_poison: Vec<_> = sound_letters().into_iter().filter(|letter| letter.reason != "rejected").collect();
    assert_eq!(failures(&truth(), &sound_bill(), &without_poison), [1, 0, 0, 0, 0]);
    // An empty bill is the greatest loss, not a clean slate.
    assert_eq!(failures(&truth(), &Bill::default(), &[])[0], 4);
}

#[test]
fn a_good_event_in_the_dead_letters_is_not_lost_but_unexpected() {
    let bill = bill(vec![record("b", "97"), record("q", "0.25")]);
    let mut letters = sound_letters();
    letters.push(letter(r#"{"a":5}"#, Reason::Rejected));
    assert_eq!(failures(&truth(), &bill, &letters), [0, 0, 0, 0, 1]);
    assert_eq!(failures(&truth(), &sound_bill(), &letters), [0, 0, 0, 0, 1], "billed and dead-lettered");
}

#[test]
fn a_double_billed_event_is_reported_once() {
    let twice = || vec![record("a", "5"), record("a", "5"), record("b", "97"), record("q", "0.25")];
    assert_eq!(failures(&truth(), &bill(twice()), &sound_letters()), [0, 1, 0, 0, 0]);
    // By the sandbox's own audit alone.
    let mut named = sound_bill();
    let (customer_id, meter_api_name, unique_id) = ("t1".to_owned(), "calls".to_owned(), "a".to_owned());
    named.billed_more_than_once.push(DoubleBilled { customer_id, meter_api_name, unique_id, times: 2 });
    assert_eq!(failures(&truth(), &named, &sound_letters()), [0, 1, 0, 0, 0]);
    // By the totals alone.
    let mut total = sound_bill();
    total.ledger.lines[0].total.decimals += 0.25;
    assert_eq!(failures(&truth(), &total, &sound_letters()), [0, 1, 0, 0, 0]);
    // Both contents of a conflict.
    let both = bill(vec![record("a", "5"), record("b", "97"), record("b", "7"), record("q", "0.25")]);
    assert_eq!(failures(&truth(), &both, &sound_letters())[1], 1);
}

#[test]
fn a_wrongly_valued_event_is_reported() {
    let low = bill(vec![record("a", "4"), record("b", "97"), record("q", "0.25")]);
    assert_eq!(failures(&truth(), &low, &sound_letters()), [0, 0, 1, 0, 0]);
    let high = bill(vec![record("a", "6"), record("b", "97"), record("q", "0.25")]);
    assert_eq!(failures(&truth(), &high, &sound_letters()), [0, 1, 1, 0, 0], "the customer pays too much");
    for spoil in [
        |record: &mut StoredRecord| record.time_millis += 1,
        |record: &mut StoredRecord| record.dimensions = BTreeMap::new(),
    ] {
        let mut bill = sound_bill();
        spoil(&mut bill.records[0]);
        assert_eq!(failures(&truth(), &bill, &sound_letters()), [0, 0, 1, 0, 0]);
    }
}

#[test]
fn another_customer_or_meter_is_reported() {
    for spoil in [
        |record: &mut StoredRecord| record.customer_id = "t2".to_owned(),
        |record: &mut StoredRecord| record.meter_api_name = "seats".to_owned(),
    ] {
        let mut records = sound_bill().records;
        spoil(&mut records[0]);
        assert_eq!(failures(&truth(), &bill(records), &sound_letters()), [0, 1, 1, 0, 0], "somebody pays for nothing");
    }
}

#[test]
fn a_missing_or_altered_dead_letter_is_reported() {
    for index in [0, 2] {
        let mut letters = sound_letters();
        letters.remove(index);
        assert_eq!(failures(&truth(), &sound_bill(), &letters), [0, 0, 0, 1, 0]);
    }
    // The same JSON in other bytes is not what was emitted.
    let mut letters = sound_letters();
    letters[2] = letter(r#"{"bad":1}"#, Reason::MissingField);
    assert_eq!(failures(&truth(), &sound_bill(), &letters), [0, 0, 0, 1, 1]);
    letters[2] = letter(r#"{"bad": 1}"#, Reason::TooOld);
    assert_eq!(failures(&truth(), &sound_bill(), &letters), [0, 0, 0, 1, 0], "another reason");
}

#[test]
fn an_invented_event_is_reported() {
    let bill = bill(vec![record("a", "5"), record("b", "97"), record("q", "0.25"), record("x", "0")]);
    assert_eq!(failures(&truth(), &bill, &sound_letters()), [0, 0, 0, 0, 1]);
}

#[test]
fn what_was_never_acknowledged_is_nobodys_loss() {
    let mut truth = truth();
    truth.valid[0].variants[0].acknowledged = 0;
    truth.malformed[0].acknowledged = 0;
    assert_eq!(failures(&truth, &sound_bill(), &sound_letters()), [0; 5]);
    let less = bill(vec![record("b", "97"), record("q", "0.25")]);
    assert_eq!(failures(&truth, &less, &sound_letters()[..2]), [0; 5]);
    // Either is right, but not a bill for something else.
    let other = bill(vec![record("a", "6"), record("b", "97"), record("q", "0.25")]);
    assert_eq!(failures(&truth, &other, &sound_letters()), [0, 0, 1, 0, 0]);
}

#[test]
fn a_total_that_is_too_low_is_reported() {
    let mut bill = sound_bill();
    bill.ledger.lines[0].total.integers -= 1;
    let audit = Audit::of(&truth(), &bill, &sound_letters());
    assert_eq!((audit.underbilled, audit.lost, audit.passed()), (1, 0, false));
    assert!(!audit.lines[0].is_sound, "{:?}", audit.lines);
}

#[test]
fn what_others_did_is_counted_and_not_judged() {
    let mut truth = truth();
    for event in &mut truth.valid {
        event.unique_id = format!("{}-run1", event.unique_id);
        for variant in &mut event.variants {
            variant.detail = variant.detail.replace('{', r#"{"run1":0,"#).into();
        }
    }
    truth.malformed[0].detail = r#"{"bad": "run1"}"#.into();
    let records = vec![record("a-run1", "5"), record("b-run1", "97"), record("q-run1", "0.25")];
    let letters = vec![
        letter(r#"{"run1":0,"b":7}"#, Reason::Conflict),
        letter(r#"{"run1":0,"p":1}"#, Reason::Rejected),
        letter(r#"{"bad": "run1"}"#, Reason::MissingField),
        letter(r#"{"somebody": "else"}"#, Reason::MissingField),
    ];
    // Of the same customer and meter, and of another.
    let mut others = vec![record("other", "1000"), record("other", "1000"), record("stray", "1")];
    others[2].customer_id = "t9".to_owned();
    let all = bill([records.clone(), others].concat());
    let scope = Scope { runs: vec!["run1".to_owned()], ..Scope::default() };
    let audit = Audit::within(&scope, &truth, &all, &letters);
    assert!(audit.passed(), "{:?}", audit.findings);
    assert_eq!((audit.foreign_records, audit.foreign_letters, audit.dead_lettered), (3, 1, 3));
    // Without the scope all that is somebody's fault.
    assert_eq!(Audit::of(&truth, &all, &letters).unexpected, 4);
    // Whatever the uniqueId of a record, a run's customers pay for nothing but their events.
    for event in &mut truth.valid {
        event.tenant = "t1-run1".to_owned();
    }
    let of_ours = |mut record: StoredRecord| {
        record.customer_id = "t1-run1".to_owned();
        record
    };
    let ours: Vec<_> = records.iter().cloned().map(of_ours).collect();
    assert!(Audit::within(&scope, &truth, &bill(ours.clone()), &letters).passed());
    let again = bill([ours, vec![of_ours(record("anew", "5"))]].concat());
    let audit = Audit::within(&scope, &truth, &again, &letters);
    assert_eq!((audit.unexpected, audit.double_billed, audit.foreign_records), (1, 1, 0), "{:?}", audit.findings);
    truth.valid.iter_mut().for_each(|event| event.tenant = "t1".to_owned());
    // It hides nothing of ours.
    let mut less = bill(records);
    less.ledger.lines[0].total.integers += 1;
    assert_eq!(Audit::within(&scope, &truth, &less, &letters).double_billed, 1);
}

#[test]
fn a_late_event_is_reported_where_a_bound_is_given() {
    let mut bill = sound_bill();
    bill.records[0].at = Duration::from_secs(31);
    let late = |seconds| {
        let scope = Scope { late_after: Some(Duration::from_secs(seconds)), ..Scope::default() };
        let audit = Audit::within(&scope, &truth(), &bill, &sound_letters());
        (audit.late, audit.passed())
    };
    assert_eq!((late(31), late(30)), ((0, true), (1, false)));
    assert!(Audit::of(&truth(), &bill, &sound_letters()).passed());
}

#[test]
fn a_meter_whose_records_are_not_shown_is_judged_by_its_total() {
    let of = |total: f64| {
        let mut bill = sound_bill();
        bill.records.clear();
        bill.sums_only = ["calls".to_owned()].into();
        bill.is_rounded = true;
        bill.ledger.lines[0].total = Total { integers: 0, decimals: total };
        let audit = Audit::of(&truth(), &bill, &sound_letters());
        (audit.lost, audit.underbilled, audit.double_billed, audit.judged_by_sums)
    };
    assert_eq!(of(102.25), (0, 0, 0, 3));
    assert_eq!(of(102.25 * (1.0 + 2.0 * f64::EPSILON)), (0, 0, 0, 3), "rounded");
    assert_eq!(of(102.250_000_001), (0, 0, 1, 3), "more than three roundings");
    assert_eq!(of(97.25), (0, 1, 0, 3));
    assert_eq!(of(109.25), (0, 0, 1, 3));
}

/// The lines of an audit that are not sound: tenant, meter, and what is wrong.
fn unsound(audit: &Audit) -> Vec<(&str, &str, Differences)> {
    let unsound = audit.lines.iter().filter(|line| !line.is_sound);
    unsound.map(|line| (&*line.tenant, &*line.line.meter, line.differences)).collect()
}

#[test]
fn every_difference_is_on_the_line_of_its_tenant_and_meter() {
    let truth = || {
        let mut truth = truth();
        truth.malformed[0].detail = r#"{"tenantId":"t1","meterApiName":"calls"}"#.into();
        let mut other = event("other", vec![variant("1", r#"{"other":1}"#, 1)], false);
        other.tenant = "t2".to_owned();
        truth.valid.push(other);
        truth
    };
    let mut other = record("other", "1");
    other.customer_id = "t2".to_owned();
    let sound = || [sound_bill().records, vec![other.clone()]].concat();
    let mut letters = sound_letters();
    letters[2] = letter(&truth().malformed[0].detail, Reason::MissingField);
    let scope = Scope { late_after: Some(Duration::from_secs(30)), ..Scope::default() };
    let audit_of = |records, letters: &[DeadLetter]| Audit::within(&scope, &truth(), &bill(records), letters);
    let audit = audit_of(sound(), &letters);
    assert!(audit.passed() && audit.late_judged && unsound(&audit).is_empty(), "{:?}", audit.lines);
    assert_eq!((audit.lines[0].conflicts_emitted, audit.lines[0].conflicts, audit.lines.len()), (1, 1, 2));

    type Plant = fn(&mut Vec<StoredRecord>, &mut Vec<DeadLetter>);
    let none = Differences::default();
    let plants: [(Plant, Differences); 9] = [
        (|bill, _| drop(bill.remove(0)), Differences { lost: 1, ..none }),
        (|bill, _| bill.push(bill[0].clone()), Differences { double_billed: 1, ..none }),
        (|bill, _| bill[0].at = Duration::from_secs(31), Differences { late: 1, ..none }),
        (|bill, _| bill[0].time_millis += 1, Differences { misbilled: 1, ..none }),
        (|_, letters| drop(letters.remove(0)), Differences { missing_dead_letters: 1, ..none }),
        (|_, letters| drop(letters.remove(2)), Differences { missing_dead_letters: 1, ..none }),
        (|bill, _| bill.push(record("invented", "0")), Differences { unexpected: 1, ..none }),
        (|_, letters| letters.push(letter(r#"{"a":5}"#, Reason::Rejected)), Differences { unexpected: 1, ..none }),
        (
            |_, letters| letters.push(letter(r#"{"meterApiName":"calls","tenantId":"t1"}"#, Reason::TooOld)),
            Differences { unexpected: 1, ..none },
        ),
    ];
    for (plant, wrong) in plants {
        let (mut records, mut letters) = (sound(), letters.clone());
        plant(&mut records, &mut letters);
        let audit = audit_of(records, &letters);
        assert_eq!(unsound(&audit), [("t1", "calls", wrong)], "{:?}", audit.findings);
    }
    // Nobody of the run: a line of their own.
    let mut stranger = record("x", "0");
    stranger.customer_id = "t9".to_owned();
    let audit = audit_of([sound(), vec![stranger]].concat(), &letters[..2]);
    let missing = Differences { missing_dead_letters: 1, ..none };
    let pays = Differences { double_billed: 1, unexpected: 1, ..none };
    assert_eq!(unsound(&audit), [("t1", "calls", missing), ("t9", "calls", pays)], "{:?}", audit.findings);
    letters.push(letter(r#"[1]"#, Reason::NotAnObject));
    assert_eq!(unsound(&audit_of(sound(), &letters)), [("", "", Differences { unexpected: 1, ..none })]);
}

#[test]
fn many_differences_of_a_kind_hide_none_of_another() {
    let mut truth = truth();
    let malformed = |number| MalformedEvent {
        detail: format!(r#"{{"bad":{number}}}"#).into(),
        reason: Reason::MissingField,
        acknowledged: 1,
    };
    truth.malformed.extend((0..30).map(malformed));
    let bill = bill(vec![record("b", "97"), record("q", "0.25"), record("q", "0.25")]);
    let audit = Audit::of(&truth, &bill, &sound_letters()[1..]);
    assert_eq!((audit.lost, audit.double_billed, audit.missing_dead_letters), (1, 1, 31));
    let findings = &audit.findings;
    assert_eq!(findings[..2], [r#"lost: {"a":5}"#, "billed more than once: q"]);
    assert!(findings[2].starts_with("conflicting event not dead-lettered"), "{findings:?}");
    let [rest @ .., more] = &findings[3..] else { panic!("{findings:?}") };
    assert!(rest.len() == 20 && rest.iter().all(|text| text.starts_with("malformed event not")), "{findings:?}");
    assert_eq!(*more, "malformed events without a dead letter: 10 more");
}
