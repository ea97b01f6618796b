//! What a `PutEvents` request says, judged as EventBridge judges it.
//!
//! Sources: the service model in botocore 1.44.5 (lengths; "the total entry size must be less than 1MB", raised from
//! 256 KB in January 2026), the user guide (how the size is counted), LocalStack's answers recorded from AWS in
//! December 2024 (wordings), and a published measurement that exactly 1,048,576 bytes are still accepted.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::backend::NewRecord;
use shared::clock::UnixMillis;
use shared::event::DETAIL_TYPES;
use uuid::Uuid;

use super::Error;

const MAX_ENTRIES: usize = 10;
const MAX_TOTAL_BYTES: usize = 1 << 20;
const TIME_BYTES: usize = 14;
const MAX_DETAIL_TYPE_CHARS: usize = 128;
const MAX_BUS_NAME_CHARS: usize = 1600;
const MAX_RESOURCE_CHARS: usize = 2048;

/// The longest `tenantId` that is used as a partition key; Kinesis takes 256 characters.
const MAX_PARTITION_KEY_CHARS: usize = 256;

/// There is no account and no region here; consumers expect the form of real ones.
const ACCOUNT: &str = "000000000000";
const REGION: &str = "us-east-1";

/// What becomes of one entry.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is an event; with a record where it is routed to the stream.
    Accepted { event_id: String, record: Option<NewRecord> },
    /// It is refused, without harm to its neighbours.
    Failed { error_code: &'static str, error_message: String },
}

/// Judges a request body; the outcomes are in the order of the entries.
pub(super) fn judge(body: &[u8], now: UnixMillis) -> Result<Vec<Outcome>, Error> {
    let request: Request<'_> = serde_json::from_slice(body)
        .map_err(|error| Error::serialization(format!("The body is not a PutEvents request: {error}")))?;
    let entries = request.entries.ok_or_else(|| constraint("null", "entries", "Member must not be null"))?;
    check_model(&entries)?;
    if entries.iter().map(Entry::size).sum::<usize>() > MAX_TOTAL_BYTES {
        return Err(Error::validation("Total size of the entries in the request is over the limit."));
    }
    entries.iter().map(|entry| judge_entry(entry, now)).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request<'a> {
    #[serde(borrow)]
    entries: Option<Vec<Entry<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow, default)]
    time: Option<&'a RawValue>,
    source: Option<String>,
    resources: Option<Vec<String>>,
    detail_type: Option<String>,
    detail: Option<String>,
    event_bus_name: Option<String>,
}

impl Entry<'_> {
    /// As the user guide counts it, in "Calculating PutEvents event entry size".
    fn size(&self) -> usize {
        let bytes = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let time = if self.time.is_some() { TIME_BYTES } else { 0 };
        let resources: usize = self.resources.iter().flatten().map(String::len).sum();
        time + bytes(&self.source) + bytes(&self.detail_type) + bytes(&self.detail) + resources
    }
}

/// What the service model alone forbids fails the whole request.
fn check_model(entries: &[Entry<'_>]) -> Result<(), Error> {
    let at_least_1 = "Member must have length greater than or equal to 1";
    let at_most = |max: usize| format!("Member must have length less than or equal to {max}");
    if entries.is_empty() {
        return Err(constraint("'[]'", "entries", at_least_1));
    }
    if entries.len() > MAX_ENTRIES {
        // AWS prints all the entries here.
        return Err(constraint("'[PutEventsRequestEntry]'", "entries", &at_most(MAX_ENTRIES)));
    }
    for (index, entry) in (1..).zip(entries) {
        if let Some(bus) = &entry.event_bus_name {
            let field = format!("entries.{index}.member.eventBusName");
            match bus.chars().count() {
                0 => return Err(constraint("''", &field, at_least_1)),
                1..=MAX_BUS_NAME_CHARS => {}
                _ => return Err(constraint(&format!("'{bus}'"), &field, &at_most(MAX_BUS_NAME_CHARS))),
            }
        }
        let too_long = |resource: &&String| resource.chars().count() > MAX_RESOURCE_CHARS;
        if let Some(resource) = entry.resources.iter().flatten().find(too_long) {
            let field = format!("entries.{index}.member.resources");
            return Err(constraint(&format!("'[{resource}]'"), &field, &at_most(MAX_RESOURCE_CHARS)));
        }
    }
    Ok(())
}

fn constraint(value: &str, field: &str, what: &str) -> Error {
    let text = format!("1 validation error detected: Value {value} at '{field}' failed to satisfy constraint: {what}");
    Error::validation(text)
}

fn judge_entry(entry: &Entry<'_>, now: UnixMillis) -> Result<Outcome, Error> {
    // A time of the wrong form is no entry at all: it fails the request.
    let time = match entry.time {
        Some(time) => event_time(time)?,
        None => Timestamp::from_millisecond(now).unwrap_or(Timestamp::UNIX_EPOCH),
    };
    Ok(match check_entry(entry) {
        Ok((source, detail_type, detail)) => accept(entry, source, detail_type, detail, time),
        Err((error_code, error_message)) => Outcome::Failed { error_code, error_message },
    })
}

type Refusal = (&'static str, String);

/// The three required parts: source, detail type and detail.
fn check_entry<'a>(entry: &'a Entry<'_>) -> Result<(&'a str, &'a str, &'a RawValue), Refusal> {
    let invalid = |name: &str, why: &str| ("InvalidArgument", format!("Parameter {name} is not valid. Reason: {why}"));
    let required = |name: &str, value: &'a Option<String>| match value {
        Some(value) if !value.is_empty() => Ok(value.as_str()),
        _ => Err(invalid(name, &format!("{name} is a required argument."))),
    };
    let source = required("Source", &entry.source)?;
    let detail_type = required("DetailType", &entry.detail_type)?;
    let detail = required("Detail", &entry.detail)?;
    if source.starts_with("aws.") {
        return Err(("NotAuthorizedForSourceException", "Not authorized for the source.".to_owned()));
    }
    if detail_type.chars().count() > MAX_DETAIL_TYPE_CHARS {
        let why = format!("DetailType is longer than {MAX_DETAIL_TYPE_CHARS} characters.");
        return Err(invalid("DetailType", &why));
    }
    match serde_json::from_str::<&RawValue>(detail) {
        Ok(detail) if detail.get().starts_with('{') => Ok((source, detail_type, detail)),
        _ => Err(("MalformedDetail", "Detail is malformed.".to_owned())),
    }
}

/// Seconds since the epoch, maybe with a fraction, as the protocol has it; RFC 3339 text is tolerated.
fn event_time(time: &RawValue) -> Result<Timestamp, Error> {
    let text = serde_json::from_str::<String>(time.get());
    let parsed = match &text {
        Ok(text) => text.parse().ok(),
        // Saturates, and the ends are no timestamps.
        Err(_) => time.get().parse().ok().and_then(|seconds: f64| Timestamp::from_second(seconds.floor() as i64).ok()),
    };
    parsed.ok_or_else(|| Error::serialization(format!("{time} is not a timestamp")))
}

fn accept(entry: &Entry<'_>, source: &str, detail_type: &str, detail: &RawValue, time: Timestamp) -> Outcome {
    let event_id = Uuid::new_v4().to_string();
    let routed = DETAIL_TYPES.contains(&detail_type);
    // An envelope does not name its bus, so this is the one place where it can be seen.
    let bus = entry.event_bus_name.as_deref().unwrap_or("default");
    tracing::debug!(event_id, source, detail_type, bus, routed, "event accepted");
    let record = routed.then(|| NewRecord {
        partition_key: partition_key(detail).unwrap_or_else(|| event_id.clone()),
        data: envelope(entry, &event_id, source, detail_type, detail, time).into(),
    });
    Outcome::Accepted { event_id, record }
}

/// What the deployed rule takes from the event: `$.detail.tenantId` as text. `None` where there is none, or one that
/// no usage event may have; such an event is dead-lettered downstream, wherever it lies.
fn partition_key(detail: &RawValue) -> Option<String> {
    #[derive(Deserialize, PartialEq, Eq, Hash)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
    // A map takes a name given twice, as the event parser does where both say the same.
    let members: HashMap<Name<'_>, &RawValue> = serde_json::from_str(detail.get()).ok()?;
    let tenant_id = members.get(&Name("tenantId".into()))?;
    let text = match tenant_id.get().as_bytes() {
        [b'"', ..] => serde_json::from_str(tenant_id.get()).ok()?,
        [b'-' | b'0'..=b'9', ..] => tenant_id.get().to_owned(),
        _ => return None,
    };
    (1..=MAX_PARTITION_KEY_CHARS).contains(&text.chars().count()).then_some(text)
}

/// The event as EventBridge hands it to a target.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Envelope<'a> {
    version: &'a str,
    id: &'a str,
    detail_type: &'a str,
    source: &'a str,
    account: &'a str,
    time: String,
    region: &'a str,
    resources: &'a [String],
    /// As it was put, byte for byte: the texts of numbers matter.
    detail: &'a RawValue,
}

fn envelope(
    entry: &Entry<'_>,
    id: &str,
    source: &str,
    detail_type: &str,
    detail: &RawValue,
    time: Timestamp,
) -> Vec<u8> {
    let envelope = Envelope {
        version: "0",
        id,
        detail_type,
        source,
        account: ACCOUNT,
        time: time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        region: REGION,
        resources: entry.resources.as_deref().unwrap_or_default(),
        detail,
    };
    serde_json::to_vec(&envelope).expect("strings and checked JSON always serialise")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: UnixMillis = 1_790_000_000_999;

    fn judged(request: serde_json::Value) -> Result<Vec<Outcome>, Error> {
        judge(request.to_string().as_bytes(), NOW)
    }

    fn entry(detail: &str) -> serde_json::Value {
        json!({"Source": "s", "DetailType": "ingestUsage", "Detail": detail})
    }

    fn record(entry: serde_json::Value) -> NewRecord {
        match judged(json!({"Entries": [entry]})).unwrap().remove(0) {
            Outcome::Accepted { record: Some(record), .. } => record,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(entry: serde_json::Value) -> (&'static str, String) {
        match judged(json!({"Entries": [entry]})).unwrap().remove(0) {
            Outcome::Failed { error_code, error_message } => (error_code, error_message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn builds_the_envelope_with_the_detail_byte_for_byte() {
        let detail = "{\"tenantId\":\"t\", \"n\": 1.50e+3, \"n2\":\t12345678901234567890.10, \"e\":\"\\u00e4ä\"}";
        let mut entry = entry(&format!(" {detail}\n"));
        entry["Resources"] = json!(["arn:1", "arn:\"2\""]);
        let NewRecord { partition_key, data } = record(entry);
        assert_eq!(partition_key, "t");
        let text = String::from_utf8(data.to_vec()).unwrap();
        let (head, tail) = text.split_once("\"id\":\"").unwrap();
        assert_eq!(head, "{\"version\":\"0\",");
        let rest = "\",\"detail-type\":\"ingestUsage\",\"source\":\"s\",\"account\":\"000000000000\",\
                    \"time\":\"2026-09-21T14:13:20Z\",\"region\":\"us-east-1\",\
                    \"resources\":[\"arn:1\",\"arn:\\\"2\\\"\"],\"detail\":";
        assert_eq!(&tail[36..], format!("{rest}{detail}}}"));
    }

    #[test]
    fn honours_the_time() {
        let time = |time: serde_json::Value| {
            let mut entry = entry("{}");
            entry["Time"] = time;
            let data = record(entry).data;
            serde_json::from_slice::<serde_json::Value>(&data).unwrap()["time"].as_str().unwrap().to_owned()
        };
        assert_eq!(time(json!(1_700_000_000)), "2023-11-14T22:13:20Z");
        assert_eq!(time(json!(1_700_000_000.987)), "2023-11-14T22:13:20Z");
        assert_eq!(time(json!(-0.5)), "1969-12-31T23:59:59Z");
        assert_eq!(time(json!("2023-11-14T23:13:20.5+01:00")), "2023-11-14T22:13:20Z");
        assert_eq!(time(json!(null)), "2026-09-21T14:13:20Z");
        for bad in [json!("yesterday"), json!(true), json!(1e300), json!({})] {
            let mut entry = entry("{}");
            entry["Time"] = bad;
            assert_eq!(judged(json!({"Entries": [entry]})).unwrap_err().code, "SerializationException");
        }
    }

    #[test]
    fn keys_by_tenant() {
        let key = |detail: &str| record(entry(detail)).partition_key;
        assert_eq!(key(r#"{"a": {"tenantId": "no"}, "tenantId": "\u00e4\"b"}"#), "ä\"b");
        assert_eq!(key(r#"{"tenantId": 12345678901234567890.10}"#), "12345678901234567890.10");
        assert_eq!(key(r#"{"tenantId": -7}"#), "-7");
        for none in ["{}", r#"{"tenantId": ""}"#, r#"{"tenantId": true}"#, r#"{"tenantId": ["a"]}"#] {
            assert!(Uuid::parse_str(&key(none)).is_ok(), "{none}");
        }
        let long = format!(r#"{{"tenantId": "{}"}}"#, "x".repeat(257));
        assert!(Uuid::parse_str(&key(&long)).is_ok());
        let deep = format!(r#"{{"tenantId": "t", "x": {}{}}}"#, "[".repeat(900), "]".repeat(900));
        assert_eq!(key(&deep), "t", "AWS takes 1000 levels");
    }

    #[test]
    fn refuses_entries_one_by_one() {
        let missing = |name: &str| {
            ("InvalidArgument", format!("Parameter {name} is not valid. Reason: {name} is a required argument."))
        };
        assert_eq!(refusal(json!({})), missing("Source"));
        assert_eq!(refusal(json!({"Source": "s", "DetailType": ""})), missing("DetailType"));
        assert_eq!(refusal(json!({"Source": "s", "DetailType": "d", "Detail": null})), missing("Detail"));
        for detail in ["text", "[]", "\"{}\"", "{", "{} {}", "{\"a\": 01}", "1"] {
            assert_eq!(refusal(entry(detail)).0, "MalformedDetail", "{detail}");
        }
        let mut aws = entry("{}");
        aws["Source"] = json!("aws.s3");
        assert_eq!(refusal(aws).0, "NotAuthorizedForSourceException");
        let mut long = entry("{}");
        long["DetailType"] = json!("d".repeat(129));
        assert_eq!(refusal(long).0, "InvalidArgument");
    }

    #[test]
    fn accepts_other_detail_types_without_routing_them() {
        let mut other = entry("{}");
        other["DetailType"] = json!("onboarding");
        let outcomes = judged(json!({"Entries": [other, {}, entry("{}")]})).unwrap();
        assert!(matches!(
            &outcomes[..],
            [Outcome::Accepted { record: None, .. }, Outcome::Failed { .. }, Outcome::Accepted { record: Some(_), .. }]
        ));
    }

    #[test]
    fn refuses_requests_that_break_the_model() {
        let code_and_text = |request| {
            let error = judged(request).unwrap_err();
            (error.code, error.message)
        };
        let (code, text) = code_and_text(json!({"Entries": vec![entry("{}"); 11]}));
        assert_eq!(code, "ValidationException");
        assert!(
            text.ends_with(
                "at 'entries' failed to satisfy constraint: Member must have length less than or equal to 10"
            )
        );
        assert_eq!(code_and_text(json!({"Entries": []})).0, "ValidationException");
        assert_eq!(code_and_text(json!({})).0, "ValidationException");
        let mut bus = entry("{}");
        bus["EventBusName"] = json!("");
        assert_eq!(code_and_text(json!({"Entries": [bus]})).0, "ValidationException");
        for odd in [json!([]), json!({"Entries": "x"}), json!({"Entries": [1]}), json!({"Entries": [{"Source": 1}]})] {
            assert_eq!(code_and_text(odd).0, "SerializationException");
        }
        assert_eq!(judge(b"{", NOW).unwrap_err().code, "SerializationException");
    }

    #[test]
    fn limits_the_total_size_to_one_mebibyte() {
        // Two entries: "s" + "ingestUsage" + detail, and a time and a resource in one of them.
        let sized = |extra: usize| {
            let fixed = 2 * (1 + 11) + 14 + 3 + 2 * "{\"a\":\"\"}".len();
            let detail = format!("{{\"a\":\"{}\"}}", "ä".repeat((MAX_TOTAL_BYTES - fixed) / 4));
            let mut first = entry(&detail);
            first["Time"] = json!(1);
            first["Resources"] = json!(["r".repeat(3 + extra + (MAX_TOTAL_BYTES - fixed) % 4)]);
            judged(json!({"Entries": [first, entry(&detail)]}))
        };
        sized(0).unwrap();
        let error = sized(1).unwrap_err();
        assert_eq!(error.message, "Total size of the entries in the request is over the limit.");
    }

    #[test]
    fn a_tenant_given_twice_keeps_its_partition_key() {
        let key = |detail: &str| partition_key(serde_json::from_str(detail).unwrap());
        assert_eq!(key(r#"{"tenantId":"a","n":1,"tenantId":"a"}"#).as_deref(), Some("a"));
        assert_eq!(key(r#"{"tenant\u0049d":"a"}"#).as_deref(), Some("a"));
        assert_eq!(key(r#"{"tenantId":""}"#), None);
    }
}
