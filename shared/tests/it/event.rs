//! Events in, exact record bytes or a reason out.
//!
//! `golden/events.jsonl` pins both: one JSON object a line with `name`, `data` (the stream record as text) and what must
//! come of it, `record` or `reason`. Changing an existing `record` is a breaking release: a replay over the upgrade
//! would bill twice.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::backend::{Record, SequenceNumber, ShardId};
use shared::dead_letter::{DeadLetter, Origin};
use shared::event::{EventRules, UsageEvent, parse};
use shared::reason::Reason;
use shared::{meter_record, redrive};

/// 2026-01-31T12:00:00Z.
const ARRIVED_AT: i64 = 1_769_860_800_000;
const DAY: i64 = 86_400_000;

fn rules() -> EventRules {
    EventRules {
        max_age: Duration::from_secs(60 * 86_400),
        max_ahead: Duration::from_secs(3600),
        allow_aflo_dimensions: false,
    }
}

fn record(data: impl Into<Bytes>) -> Record {
    Record {
        data: data.into(),
        partition_key: "tenant-1".to_owned(),
        sequence_number: SequenceNumber("77".to_owned()),
        arrived_at: ARRIVED_AT,
    }
}

fn shard() -> &'static ShardId {
    static SHARD: LazyLock<ShardId> = LazyLock::new(|| ShardId("shard-00001".to_owned()));
    &SHARD
}

fn outcome(record: &Record) -> Result<String, Reason> {
    match parse(record, shard(), &rules()) {
        Ok(event) => Ok(bytes_of(&event)),
        Err(rejection) => Err(rejection.reason),
    }
}

fn bytes_of(event: &UsageEvent<'_>) -> String {
    let mut out = Vec::new();
    meter_record::write(event, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn golden() {
    let text = include_str!("golden/events.jsonl");
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        match outcome(&record(case["data"].as_str().unwrap().to_owned())) {
            Ok(bytes) => assert_eq!(Some(bytes.as_str()), case["record"].as_str(), "{name}"),
            Err(reason) => assert_eq!(Some(reason.as_str()), case["reason"].as_str(), "{name}"),
        }
    }
    assert!(text.lines().count() >= 60);
}

/// An archive of EventBridge adds the replay's name beside `detail`, and keeps all else.
#[test]
fn a_replay_is_the_identical_record() {
    let mut replayed = 0;
    for line in include_str!("golden/events.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let data = case["data"].as_str().unwrap();
        if data.contains("\"detail-type\"") && data.starts_with('{') {
            let replay = data.replacen('{', r#"{"replay-name":"after-the-outage","#, 1);
            assert_eq!(outcome(&record(replay)), outcome(&record(data.to_owned())), "{}", case["name"]);
            replayed += 1;
        }
    }
    assert!(replayed >= 30, "{replayed}");
}

#[test]
fn bytes_that_are_not_text() {
    assert_eq!(outcome(&record(&b"\xff\xfe{}"[..])), Err(Reason::InvalidUtf8));
    assert_eq!(outcome(&record(&b"{\"tenantId\":\"\xc3\x28\"}"[..])), Err(Reason::InvalidUtf8));
    assert_eq!(outcome(&record(&b"\xf3\x89\x9a\xc2rest of the aggregate"[..])), Err(Reason::KplAggregate));
}

#[test]
fn hostile_nesting_neither_overflows_the_stack_nor_takes_long() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let event = format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":1,"d":{nested}}}"#);
        assert_eq!(outcome(&record(event)), Err(Reason::NestedTooDeep));
        assert!(outcome(&record(nested)).is_err());
    }
}

#[test]
fn aflo_dimensions_need_leave() {
    let event = record(r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"aflo.x":"true"}"#);
    assert_eq!(outcome(&event), Err(Reason::AfloDimension));
    let rules = EventRules { allow_aflo_dimensions: true, ..rules() };
    assert_eq!(parse(&event, shard(), &rules).unwrap().dimensions, [("aflo.x".into(), "true".into())]);
}

#[test]
fn a_rejection_keeps_what_could_be_read() {
    let event = record(
        r#"{"id":"e-1","time":"2026-01-31T11:00:00Z","detail-type":"ingestUsage","detail":{"tenantId":"t","meterApiName":"m","meterValue":"x"}}"#,
    );
    let identity = parse(&event, shard(), &rules()).unwrap_err().identity;
    assert_eq!(identity.tenant_id.as_deref(), Some("t"));
    assert_eq!(identity.unique_id.as_deref(), Some("e-1"));
    assert_eq!(identity.meter_time, Some(ARRIVED_AT - 3_600_000));
}

fn letter(record: &Record, event: &UsageEvent<'_>) -> DeadLetter {
    let origin = Origin { stream: "stream", shard: shard(), worker: "worker", now: ARRIVED_AT };
    DeadLetter {
        amberflo_status: Some(400),
        ..DeadLetter::new(record, origin, Reason::Rejected, String::new(), event.identity())
    }
}

/// Redriven again and again, elsewhere and later, every valid golden event gives the identical record.
#[test]
fn redrive_gives_the_identical_record() {
    // The oldest allowed event would be too old by now, and rightly dead-lettered again.
    let rules = EventRules { max_age: Duration::from_secs(62 * 86_400), ..rules() };
    let mut redriven = 0;
    for line in include_str!("golden/events.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let Some(expected) = case["record"].as_str() else { continue };
        let other_shard = ShardId("shard-00009".to_owned());
        let mut current = record(case["data"].as_str().unwrap().to_owned());
        for count in 1..=3 {
            let event = parse(&current, shard(), &rules).unwrap();
            let before = event.redrive_count;
            let published = redrive::record_of(&letter(&current, &event), &current.data).unwrap();
            assert_eq!(published.partition_key, current.partition_key);
            current = Record {
                data: published.data,
                partition_key: published.partition_key,
                sequence_number: SequenceNumber((count * 1000).to_string()),
                arrived_at: ARRIVED_AT + i64::from(count) * DAY / 2,
            };
            let event = parse(&current, &other_shard, &rules).unwrap();
            assert_eq!(event.redrive_count, before + 1);
            assert_eq!(bytes_of(&event), expected, "{}", case["name"]);
            redriven += 1;
        }
    }
    assert!(redriven > 60);
}

#[test]
fn a_payload_without_identity_is_not_redrivable() {
    let mut letter = letter(&record("not json"), &parse(&record(VALID), shard(), &rules()).unwrap());
    letter.unique_id = None;
    letter.reason = Reason::NotJson.to_string();
    let error = redrive::record_of(&letter, letter.payload.stored().unwrap()).unwrap_err().to_string();
    assert!(error.contains("not_json"), "{error}");
}

#[test]
fn the_reasons_are_a_closed_documented_set() {
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let readme = include_str!("../../../ingest-worker/README.md");
    for name in &names {
        assert!(readme.contains(&format!("`{name}`")), "ingest-worker/README.md does not explain {name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit()));
    }
}

const VALID: &str = r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"uniqueId":"u"}"#;

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = outcome(&record(bytes));
    }

    #[test]
    fn no_json_makes_the_parser_panic(cut in 0..VALID.len(), insert in "[\\[\\]{}\",:0-9eE.\\\\u+-]{0,12}") {
        let _ = outcome(&record(format!("{}{insert}{}", &VALID[..cut], &VALID[cut..])));
    }

    /// What reaches Amberflo is JSON, has only Amberflo's names, and is the same for any order and spacing of the input.
    #[test]
    fn records_are_canonical(
        tenant in "\\PC{1,40}", meter in "\\PC{1,40}", id in "\\PC{1,40}", value in any::<i64>(),
        dimensions in proptest::collection::btree_map("[a-z]{1,6}x", "\\PC{0,20}", 0..6),
    ) {
        let mut detail = json!({"tenantId": tenant, "meterApiName": meter, "meterValue": value, "uniqueId": id});
        for (name, text) in &dimensions {
            detail[name] = json!(text);
        }
        let plain = record(detail.to_string());
        let pretty = record(serde_json::to_string_pretty(&detail).unwrap());
        let mut reversed = String::from("{");
        for (name, value) in detail.as_object().unwrap().iter().rev() {
            let comma = if reversed.len() > 1 { "," } else { "" };
            reversed += &format!("{comma}{}:{value}", json!(name));
        }
        reversed.push('}');
        let bytes = outcome(&plain).unwrap();
        prop_assert_eq!(&bytes, &outcome(&pretty).unwrap());
        prop_assert_eq!(&bytes, &outcome(&record(reversed)).unwrap());
        let sent: Value = serde_json::from_str(&bytes).unwrap();
        prop_assert_eq!(&sent["customerId"], &json!(tenant));
        prop_assert_eq!(&sent["meterValue"], &json!(value));
        prop_assert_eq!(sent["dimensions"].as_object().map_or(0, |map| map.len()), dimensions.len());
    }
}
