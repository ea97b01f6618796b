//! Letters that a merge patch makes usage events of.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use shared::backend::local::LocalStore;
use shared::backend::{DeadLetters as _, NewRecord, Record, SequenceNumber, ShardId, Stream as _};
use shared::dead_letter::{DeadLetter, Omitted, Origin, Payload, sha256};
use shared::event::{EventRules, UsageEvent, parse};
use shared::meter_record;
use shared::redrive::{self, Options, Patch, RedriveError, Repair, repaired_of};

use super::{NOW, records, store};

const ARRIVED_AT: i64 = 1_769_860_800_000;
const HOUR: i64 = 3_600_000;

/// The oldest golden event would be too old when it comes again, and rightly refused.
fn rules() -> EventRules {
    let max_age = Duration::from_secs(70 * 86_400);
    EventRules { max_age, max_ahead: Duration::from_secs(3600), allow_aflo_dimensions: false }
}

fn repair(patch: &Value) -> Repair {
    Repair { patch: Patch::parse(&patch.to_string()).unwrap(), rules: rules() }
}

fn arrived(data: impl Into<Bytes>) -> Record {
    Record {
        data: data.into(),
        partition_key: "key".to_owned(),
        sequence_number: SequenceNumber("77".to_owned()),
        arrived_at: ARRIVED_AT,
    }
}

fn shard(n: u32) -> ShardId {
    ShardId(format!("shard-0000{n}"))
}

/// The letter that a worker writes for a record that it rejects.
fn rejected(record: &Record) -> DeadLetter {
    let (shard, rejection) = (shard(1), parse(record, &shard(1), &rules()).unwrap_err());
    let origin = Origin { stream: "stream", shard: &shard, worker: "w", now: ARRIVED_AT + HOUR };
    DeadLetter::new(record, origin, rejection.reason, rejection.detail, rejection.identity)
}

/// The published record, as it arrives somewhere else and later.
fn republished(published: NewRecord) -> Record {
    Record {
        data: published.data,
        partition_key: published.partition_key,
        sequence_number: SequenceNumber("990".to_owned()),
        arrived_at: ARRIVED_AT + 24 * HOUR,
    }
}

fn bytes_of(event: &UsageEvent<'_>) -> String {
    let mut out = Vec::new();
    meter_record::write(event, &mut out);
    String::from_utf8(out).unwrap()
}

/// What Amberflo receives of the letter with this patch.
fn record_with(letter: &DeadLetter, patch: &Value) -> String {
    let payload = letter.payload.stored().unwrap();
    let record = republished(repaired_of(letter, &repair(patch), payload).unwrap());
    bytes_of(&parse(&record, &shard(9), &rules()).unwrap())
}

/// Why the letter stays with this patch.
fn refusal(letter: &DeadLetter, patch: &Value) -> String {
    match repaired_of(letter, &repair(patch), letter.payload.stored().unwrap()).unwrap_err() {
        RedriveError::NotRedrivable(why) => why,
        other => panic!("{other}"),
    }
}

async fn run(store: &LocalStore, patch: &Value) -> redrive::Report {
    let options = Options { repair: Some(repair(patch)), ..Options::all(NOW) };
    redrive::run(store, store, &options).await.unwrap()
}

#[tokio::test]
async fn a_malformed_event_is_repaired_and_gives_the_identical_record_each_time() {
    let store = store();
    let envelope = r#"{"version":"0", "id":"e-1","detail-type":"ingestUsage","time":"2026-01-31T11:00:00Z",
        "detail":{"tenantId":"t","meterValue":0.30000000000000004000,"big":123456789012345678901234567890}}"#;
    let record = arrived(envelope);
    let letter = rejected(&record);
    assert_eq!(letter.reason, "missing_field");
    let patch = json!({"detail": {"meterApiName": "calls"}});
    for _ in 0..2 {
        store.send(std::slice::from_ref(&letter)).await.unwrap();
        let report = run(&store, &patch).await;
        assert_eq!((report.totals.redriven, report.skipped, report.more), (1, 0, false));
        assert_eq!(report.by_reason["missing_field"].redriven, 1);
        assert_eq!(store.depth().await.unwrap(), 0);
    }
    let published = records(&store).await;
    assert_eq!(published[0].data, published[1].data);
    assert_eq!(published[0].partition_key, "key");
    let expected = r#"{"customerId":"t","meterApiName":"calls","meterTimeInMillis":1769857200000,"meterValue":0.30000000000000004,"uniqueId":"e-1","dimensions":{"big":"123456789012345678901234567890"}}"#;
    for record in &published {
        let shard = shard(0);
        let event = parse(record, &shard, &EventRules { max_age: Duration::MAX, ..rules() }).unwrap();
        assert_eq!((bytes_of(&event).as_str(), event.redrive_count), (expected, 1));
    }
}

/// A field of every valid golden event is lost; with it patched in, Amberflo receives what it would have received.
#[test]
fn whatever_the_event_holds_its_repair_gives_the_record_of_the_whole_event() {
    let mut repaired = 0;
    for line in include_str!("../golden/events.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let (data, Some(expected)) = (case["data"].as_str().unwrap(), case["record"].as_str()) else { continue };
        let Ok(whole) = serde_json::from_str::<Value>(data) else { continue };
        if data.matches("\"meterApiName\":").count() != 1 {
            continue;
        }
        let broken = arrived(data.replace("\"meterApiName\":", "\"meter\":"));
        let is_envelope = whole.get("detail").is_some();
        let name = if is_envelope { &whole["detail"]["meterApiName"] } else { &whole["meterApiName"] };
        let fields = json!({"meter": null, "meterApiName": name});
        let patch = if is_envelope { json!({"detail": fields}) } else { fields };
        let letter = rejected(&broken);
        assert_eq!(record_with(&letter, &patch), expected, "{line}");

        // It is refused a second time, elsewhere: what arrived then is patched, and the first identity stays.
        let again = republished(repaired_of(&letter, &repair(&patch), &broken.data).unwrap());
        let identity = parse(&again, &shard(9), &rules()).unwrap().identity();
        let place = shard(9);
        let origin = Origin { stream: "stream", shard: &place, worker: "w", now: ARRIVED_AT + 25 * HOUR };
        let letter = DeadLetter::new(&again, origin, shared::reason::Reason::Rejected, String::new(), identity);
        assert_eq!(record_with(&letter, &json!({"detail": {"gone": null}})), expected, "{line}");
        repaired += 1;
    }
    assert!(repaired > 30, "{repaired}");
}

#[test]
fn the_patch_decides_on_the_identity_where_it_names_it_and_the_letter_where_not() {
    let envelope = json!({"id": "e-1", "time": "2026-01-31T11:00:00Z", "detail-type": "ingestUsage",
        "detail": {"tenantId": "t", "meterApiName": "m", "meterValue": "x"}});
    let letter = rejected(&arrived(envelope.to_string()));
    let marked = DeadLetter {
        unique_id: Some("first".to_owned()),
        meter_time_in_millis: Some(ARRIVED_AT - 9),
        redrive_count: 3,
        ..letter.clone()
    };
    let nobody = DeadLetter { unique_id: None, meter_time_in_millis: None, ..letter.clone() };
    let eleven = ARRIVED_AT - HOUR;
    for (letter, patch, id, time) in [
        (&letter, json!({}), "e-1", eleven),
        (&letter, json!({"detail": {"uniqueId": "mine"}}), "mine", eleven),
        (&letter, json!({"detail": {"meterTimeInMillis": 1_769_860_700_000_i64}}), "e-1", 1_769_860_700_000),
        (&letter, json!({"id": "e-2"}), "e-2", eleven),
        (&letter, json!({"time": "2026-01-31T10:00:00Z"}), "e-1", ARRIVED_AT - 2 * HOUR),
        (&marked, json!({}), "first", ARRIVED_AT - 9),
        (&marked, json!({"detail": {"uniqueId": "mine"}}), "mine", ARRIVED_AT - 9),
        (&marked, json!({"detail": {"uniqueId": null}}), "e-1", ARRIVED_AT - 9),
        (&marked, json!({"time": null}), "first", ARRIVED_AT),
        (&nobody, json!({}), "e-1", eleven),
        (&nobody, json!({"id": null, "time": null}), "shard-00001:77", ARRIVED_AT),
    ] {
        let mut whole = patch.clone();
        whole["detail"]["meterValue"] = json!(5);
        let published = repaired_of(letter, &repair(&whole), letter.payload.stored().unwrap()).unwrap();
        let marker = &serde_json::from_slice::<Value>(&published.data).unwrap()["metering:redrive"];
        let count = letter.redrive_count + 1;
        assert_eq!(*marker, json!({"count": count, "uniqueId": id, "meterTimeInMillis": time}), "{patch}");
        let (record, shard) = (republished(published), shard(9));
        let event = parse(&record, &shard, &rules()).unwrap();
        assert_eq!((&*event.unique_id, event.meter_time), (id, time), "{patch}");
    }
}

#[test]
fn final_reasons_become_redrivable() {
    let envelope = |detail: &str| format!(r#"{{"id":"e","detail-type":"ingestUsage","detail":{detail}}}"#);
    let valid =
        r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"uniqueId":"u","meterTimeInMillis":1769860800000}"#;
    let with = |member: &str| format!("{},{member}}}", &valid[..valid.len() - 1]);
    let plain =
        r#"{"customerId":"t","meterApiName":"m","meterTimeInMillis":1769860800000,"meterValue":1,"uniqueId":"u"}"#;
    for (reason, payload, patch) in [
        ("unknown_detail_type", envelope(valid).replace("ingestUsage", "usage"), json!({"detail-type": "ingestUsage"})),
        ("not_an_object", envelope("\"text\""), json!({"detail": serde_json::from_str::<Value>(valid).unwrap()})),
        ("invalid_field", valid.replace("\"t\"", "{}"), json!({"tenantId": "t"})),
        ("invalid_meter_value", valid.replace(":1,", ":\"one\","), json!({"meterValue": 1})),
        ("duplicate_name", with("\"tenantId\":\"u\""), json!({"tenantId": "t"})),
        ("nested_too_deep", with(&format!("\"d\":{}1{}", "[".repeat(40), "]".repeat(40))), json!({"d": null})),
        ("reserved_dimension", with("\"metering:x\":1"), json!({"metering:x": null})),
        ("aflo_dimension", with("\"aflo.x\":1"), json!({"aflo.x": null})),
        ("too_old", valid.replace("1769860800000", "5"), json!({"meterTimeInMillis": 1_769_860_800_000_i64})),
        // A marker that nobody can read is replaced.
        ("invalid_field", envelope(valid).replacen('{', r#"{"metering:redrive":7,"#, 1), json!({})),
        ("invalid_field", format!(r#"{{"metering:redrive":7,"detail":{valid}}}"#), json!({})),
    ] {
        let letter = rejected(&arrived(payload.clone()));
        assert_eq!(letter.reason, reason, "{payload}");
        assert_eq!(record_with(&letter, &patch), plain, "{payload}");
    }
}

#[test]
fn what_the_patch_does_not_repair_stays_and_says_why() {
    let bare = r#"{"tenantId":"t","meterApiName":"m","meterValue":"x","d":{"a":1},"d":{"a":2}}"#;
    for (payload, patch, why) in [
        ("not json", json!({"a": 1}), "only a JSON object can be patched"),
        ("[1]", json!({"a": 1}), "only a JSON object can be patched: [1]"),
        ("", json!({"a": 1}), "only a JSON object can be patched"),
        (bare, json!({"tenantId": "u"}), "not a valid usage event (invalid_meter_value): meterValue must be"),
        (bare, json!({"d": {"b": 1}}), "does not fit: \"d\" is given twice with different values"),
        (bare, json!({"meterValue": 1}), "(duplicate_name): \"d\" is given twice"),
        (bare, json!({"meterValue": 1, "d": null, "meterTimeInMillis": 5}), "(too_old)"),
        (bare, json!({"meterValue": 1, "d": null, "metering:x": 5}), "(reserved_dimension)"),
    ] {
        let why_not = refusal(&rejected(&arrived(payload)), &patch);
        assert!(why_not.contains(why), "{payload} {patch}: {why_not}");
    }
    let wrapped = r#"{"metering:redrive":{"count":1,"uniqueId":"u","meterTimeInMillis":5},"detail":{"tenantId":"t","meterApiName":"m","meterValue":1}}"#;
    let old = rejected(&arrived(wrapped));
    assert!(refusal(&old, &json!({"detail": {"d": 1}})).contains("(too_old)"), "the first time is kept, and refused");
    let timed = json!({"detail": {"meterTimeInMillis": ARRIVED_AT}});
    assert!(record_with(&old, &timed).contains(r#""meterTimeInMillis":1769860800000,"meterValue":1,"uniqueId":"u""#));
    let not_text = rejected(&arrived(&b"\xff{}"[..]));
    assert!(refusal(&not_text, &json!({})).contains("utf-8"));
}

#[tokio::test]
async fn an_omitted_payload_is_read_from_the_stream_and_patched() {
    let store = store();
    let data =
        Bytes::from_static(br#"{"tenantId":"t","meterValue":1,"uniqueId":"u","meterTimeInMillis":1769860800000}"#);
    store.publish(vec![NewRecord { partition_key: "key".to_owned(), data: data.clone() }]).await.unwrap();
    let original = records(&store).await.remove(0);
    let omitted = Omitted { bytes: data.len() as u64, sha256: sha256(&data), forgotten_at: 1 };
    let letter = DeadLetter {
        payload: Payload::Omitted(omitted),
        shard: "shard-00000".to_owned(),
        sequence_number: original.sequence_number.0.clone(),
        ..rejected(&arrived(data))
    };
    store.send(&[letter]).await.unwrap();
    assert_eq!(run(&store, &json!({"meterApiName": "m"})).await.totals.redriven, 1);
    let published = records(&store).await.pop().unwrap();
    assert!(published.data.ends_with(
        br#""detail":{"tenantId":"t","meterValue":1,"uniqueId":"u","meterTimeInMillis":1769860800000,"meterApiName":"m"}}"#
    ));
}
