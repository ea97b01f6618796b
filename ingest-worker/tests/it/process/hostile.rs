//! Input that is no usage event: it lands in the dead letters byte for byte, with its reason, and its neighbours in the
//! same shard are delivered.

use bytes::Bytes;
use serde_json::json;
use shared::backend::{NewRecord, Stream as _};
use shared::reason::Reason;

use super::{Amberflo, Site, entry, eventually, text, usage};

/// What is put directly on the stream, and why it cannot be delivered.
fn hostile() -> Vec<(Bytes, Reason)> {
    let event = |members: &str| format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":1{members}}}"#);
    let valued = |value: &str| format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":{value}}}"#);
    let envelope = |kind: &str, detail: &str| format!(r#"{{"id":"i","detail-type":{kind},"detail":{detail}}}"#);
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let texts = [
        (String::new(), Reason::Empty),
        ("not json".to_owned(), Reason::NotJson),
        (r#"{"tenantId":"t""#.to_owned(), Reason::NotJson),
        (event("") + "}", Reason::NotJson),
        (event(r#","note":"\ud800""#), Reason::NotJson),
        (event(",\"note\":\"raw \u{1} control\""), Reason::NotJson),
        ("[1,2]".to_owned(), Reason::NotAnObject),
        ("null".to_owned(), Reason::NotAnObject),
        (envelope("\"ingestUsage\"", "\"text\""), Reason::NotAnObject),
        (event(r#","dimensions":[1]"#), Reason::NotAnObject),
        (envelope("\"onboardingRequest\"", "{}"), Reason::UnknownDetailType),
        (envelope("null", "{}"), Reason::UnknownDetailType),
        (envelope("\"ingestUsage\"", "null"), Reason::MissingField),
        ("{}".to_owned(), Reason::MissingField),
        (r#"{"tenantId":null,"meterApiName":"m","meterValue":1}"#.to_owned(), Reason::MissingField),
        (r#"{"tenantId":"t","meterApiName":"m"}"#.to_owned(), Reason::MissingField),
        (r#"{"tenantId":"","meterApiName":"m","meterValue":1}"#.to_owned(), Reason::InvalidField),
        (r#"{"tenantId":["t"],"meterApiName":"m","meterValue":1}"#.to_owned(), Reason::InvalidField),
        (r#"{"tenantId":"t","meterApiName":true,"meterValue":1}"#.to_owned(), Reason::InvalidField),
        (event(&format!(r#","uniqueId":"{}""#, "u".repeat(2000))), Reason::InvalidField),
        (event(r#","uniqueId":{}"#), Reason::InvalidField),
        (event(r#","meterTimeInMillis":"yesterday""#), Reason::InvalidField),
        (event(r#","meterTimeInMillis":1.5"#), Reason::InvalidField),
        (event(r#","n":1e999"#), Reason::InvalidField),
        (valued("\"NaN\""), Reason::InvalidMeterValue),
        (valued("\"Infinity\""), Reason::InvalidMeterValue),
        (valued("1e999"), Reason::InvalidMeterValue),
        (valued("\"seven\""), Reason::InvalidMeterValue),
        (valued("\"\""), Reason::InvalidMeterValue),
        (valued("true"), Reason::InvalidMeterValue),
        (valued("{}"), Reason::InvalidMeterValue),
        (valued("NaN"), Reason::NotJson),
        (event(r#","meterValue":2"#), Reason::DuplicateName),
        (event(r#","a":1,"a":2"#), Reason::DuplicateName),
        (event(r#","a":"1","dimensions":{"a":"2"}"#), Reason::DuplicateName),
        (event(r#","a":{"b":1,"b":1}"#), Reason::DuplicateName),
        (event(&format!(r#","a":{}1{}"#, "[".repeat(40), "]".repeat(40))), Reason::NestedTooDeep),
        (event(r#","metering:redrive":1"#), Reason::ReservedDimension),
        (event(r#","aflo.cancel_previous_resource_event":"true""#), Reason::AfloDimension),
        (event(r#","dimensions":{"aflo.x":"true"}"#), Reason::AfloDimension),
        (event(r#","meterTimeInMillis":5"#), Reason::TooOld),
        (event(r#","meterTimeInMillis":-9223372036854775808"#), Reason::TooOld),
        (event(r#","meterTimeInMillis":9223372036854775807"#), Reason::TooFarAhead),
        (event(r#","meterTimeInMillis":4102444800000"#), Reason::TooFarAhead),
        (event(&format!(r#","note":"{}""#, "x".repeat(1 << 20))), Reason::Oversized),
    ];
    let bytes: [(&[u8], Reason); 4] = [
        (b"\xff\xfe{}", Reason::InvalidUtf8),
        (b"{\"tenantId\":\"\xc3\x28\"}", Reason::InvalidUtf8),
        (b"\x00", Reason::NotJson),
        (b"\xf3\x89\x9a\xc2\x0a\x01t", Reason::KplAggregate),
    ];
    // Whatever a parser makes of these depths, it must not be a stack overflow.
    let deep = [
        (event(&format!(r#","a":{}"#, deep("[", "]"))), Reason::NestedTooDeep),
        (event(&format!(r#","a":{}"#, deep("{\"a\":", "}"))), Reason::NestedTooDeep),
        (deep("[", "]"), Reason::NotAnObject),
    ];
    texts
        .into_iter()
        .chain(deep)
        .map(|(text, reason)| (Bytes::from(text), reason))
        .chain(bytes.into_iter().map(|(bytes, reason)| (Bytes::from_static(bytes), reason)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_stream_it_is_dead_lettered_byte_for_byte_and_neighbours_are_delivered() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let hostile = hostile();
    // All in one shard, each between two good events.
    let record = |data: Bytes| NewRecord { partition_key: "one-shard".to_owned(), data };
    let good = |n: usize| record(usage(n as u64).to_string().into());
    let mut records = vec![good(0)];
    for (n, (payload, _)) in hostile.iter().enumerate() {
        records.extend([record(payload.clone()), good(n + 1)]);
    }
    site.store().publish(records).await.unwrap();
    amberflo.billed(hostile.len() as u64 + 1).await;
    eventually("all dead letters", async || site.letters().await.len() >= hostile.len()).await;
    worker.drain().await;
    let letters = site.letters().await;
    assert_eq!(letters.len(), hostile.len());
    let mut wrong = Vec::new();
    for (payload, reason) in &hostile {
        let found: Vec<_> = letters.iter().filter(|letter| letter.payload.stored().unwrap() == payload).collect();
        let shown: String = text(payload).chars().take(80).collect();
        match &found[..] {
            [letter] if letter.reason == reason.as_str() && !letter.detail.is_empty() => {
                assert!(letter.detail.len() < 1000, "a detail of {} bytes for {shown}", letter.detail.len());
            }
            found => wrong.push(format!(
                "{shown}: {reason} expected, not {:?}",
                found.iter().map(|l| (&l.reason, &l.detail)).collect::<Vec<_>>()
            )),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    amberflo.assert_billed_once(hostile.len() as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_bus_too() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let details = [
        (r#"{"tenantId":"t"}"#.to_owned(), Reason::MissingField),
        (r#"{"tenantId":"t","meterApiName":"m","meterValue":"NaN"}"#.to_owned(), Reason::InvalidMeterValue),
        (r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"meterTimeInMillis":1}"#.to_owned(), Reason::TooOld),
        (r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"a":1,"a":2}"#.to_owned(), Reason::DuplicateName),
        (
            r#"{"tenantId":"t","meterApiName":"m","meterValue":1,"metering:redrive":{}}"#.to_owned(),
            Reason::ReservedDimension,
        ),
        (
            format!(
                r#"{{"tenantId":"t","meterApiName":"m","meterValue":1,"a":{}1{}}}"#,
                "[".repeat(60),
                "]".repeat(60)
            ),
            Reason::NestedTooDeep,
        ),
    ];
    for (n, (detail, _)) in details.iter().enumerate() {
        let entries = json!([entry(&usage(n as u64).to_string()), entry(detail)]);
        let (status, body) = worker.put_entries(&entries).await.unwrap();
        assert!(status.is_success() && body["FailedEntryCount"] == 0, "{body}");
    }
    // Answered as EventBridge answers it, one way or the other; the bus must live on.
    let deep = format!(r#"{{"tenantId":"t","a":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for detail in [&*deep, "", "null", "[]", "{", "\u{0}"] {
        let (status, _) = worker.put_entries(&json!([entry(detail)])).await.unwrap();
        assert!(status.as_u16() == 200 || status.as_u16() == 400, "{status}");
    }
    amberflo.billed(details.len() as u64).await;
    eventually("all dead letters", async || site.letters().await.len() >= details.len()).await;
    worker.drain().await;
    let mut letters = site.letters().await;
    letters.retain(|letter| !text(letter.payload.stored().unwrap()).contains(&"[".repeat(100)));
    for (detail, reason) in &details {
        let found: Vec<_> =
            letters.iter().filter(|letter| text(letter.payload.stored().unwrap()).contains(detail.as_str())).collect();
        let reasons: Vec<_> = found.iter().map(|letter| &*letter.reason).collect();
        assert!(reasons.contains(&reason.as_str()), "{detail}: {reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_meter_names_grow_neither_metrics_nor_memory() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    worker.put(&super::usages(0..100)).await;
    amberflo.billed(100).await;
    let series = worker.metrics().await.series();
    let memory = worker.metrics().await.sum("process_resident_memory_bytes");
    let hostile = |n: u64| {
        let name = format!("{n}{}", "\u{1F4A3}".repeat(50));
        json!({"tenantId": name, "meterApiName": name, "meterValue": 1, "uniqueId": format!("hostile-{n}"), &*name: 1})
    };
    let record = |n: u64| NewRecord { partition_key: n.to_string(), data: hostile(n).to_string().into() };
    site.store().publish((0..10_000).map(record).collect()).await.unwrap();
    amberflo.billed(10_100).await;
    let metrics = worker.metrics().await;
    assert!(!metrics.0.contains('\u{1F4A3}') && !metrics.0.contains("hostile"), "a producer can choose a label");
    assert!(metrics.series() <= series + 20, "{} series, before {series}", metrics.series());
    let grown = metrics.sum("process_resident_memory_bytes") - memory;
    assert!(grown < 200e6, "resident memory grew by {grown} bytes");
    worker.drain().await;
}
