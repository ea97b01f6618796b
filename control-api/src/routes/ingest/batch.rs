//! The events of one request: what each of them is, before any is put on the bus.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use shared::backend::{Record, SequenceNumber, ShardId};
use shared::clock::UnixMillis;
use shared::event::{DETAIL_TYPES, EventRules, UsageEvent, parse};
use shared::reason::Reason;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::problem::Problem;

/// Events of one request.
pub(super) const MAX_EVENTS: usize = 1000;
const UNIQUE_ID: &str = "uniqueId";

/// What the events of a request are judged by.
pub(super) struct Judge<'a> {
    /// What an event may be.
    pub(super) rules: &'a EventRules,
    /// Names the events that have no name of their own.
    pub(super) ids: Ids<'a>,
    /// When the events arrived.
    pub(super) now: UnixMillis,
    /// The largest event, in bytes.
    pub(super) max_bytes: usize,
}

/// Where the `uniqueId` of an event without one comes from.
pub(super) enum Ids<'a> {
    /// Made once.
    New,
    /// Derived: the same for every repetition of the request.
    Key {
        /// Who sends the request: another caller's key is another key.
        subject: &'a str,
        /// The request's `Idempotency-Key`.
        key: &'a str,
    },
}

/// An event that can be put on the bus.
#[derive(Debug)]
pub(super) struct Event {
    /// Its text as it was given, with a `uniqueId`.
    pub(super) detail: String,
    /// Its idempotency key.
    pub(super) unique_id: String,
    /// For how long it may be repeated.
    pub(super) repeatable: Repeatable,
}

/// For how long an event may be sent again under its `uniqueId` without being billed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Repeatable {
    /// At any time: it has a `meterTimeInMillis`, so each copy makes the identical record, which Amberflo counts once.
    Always,
    /// Within DEDUP_WINDOW (2 minutes) only: without a `meterTimeInMillis` each copy gets the time at which it is sent.
    WithinDedupWindow,
}

/// Why an event is refused, or is not known to be on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct EventError {
    /// `not_put`, or the reason under which the worker would dead-letter the event, such as `missing_field`,
    /// `invalid_field`, `invalid_meter_value`, `too_old`, `aflo_dimension`, `oversized` or `conflict`.
    pub(super) reason: &'static str,
    /// The reason in words.
    pub(super) detail: String,
}

impl From<(Reason, String)> for EventError {
    fn from((reason, detail): (Reason, String)) -> Self {
        Self { reason: reason.as_str(), detail }
    }
}

impl Judge<'_> {
    /// Judges each event of a body: one, or an array of them.
    pub(super) fn judge(&self, body: &[u8]) -> Result<Vec<Result<Event, EventError>>, Problem> {
        let not_json = |error: serde_json::Error| Problem::bad_request(format!("the body: {error}"));
        let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        let texts: Vec<&RawValue> = if is_array {
            serde_json::from_slice(body).map_err(not_json)?
        } else {
            vec![serde_json::from_slice(body).map_err(not_json)?]
        };
        if !(1..=MAX_EVENTS).contains(&texts.len()) {
            let given = texts.len();
            return Err(Problem::bad_request(format!("the body has {given} events; allowed is 1 to {MAX_EVENTS}")));
        }
        let mut seen = HashMap::new();
        Ok(texts.into_iter().enumerate().map(|(index, text)| self.event(index, text.get(), &mut seen)).collect())
    }

    fn event(&self, index: usize, text: &str, seen: &mut Seen) -> Result<Event, EventError> {
        let detail = match Given::of(text) {
            // What is no object is the parser's to refuse.
            None | Some(Given::Own) => Cow::Borrowed(text),
            Some(given) => Cow::Owned(given.with(text, &self.ids.id(index))),
        };
        if detail.len() > self.max_bytes {
            let detail = format!("the event has {} bytes; allowed is {}", detail.len(), self.max_bytes);
            return Err((Reason::Oversized, detail).into());
        }
        let record = self.record(&detail);
        let shard = ShardId(String::new());
        let event = parse(&record, &shard, self.rules)
            .map_err(|rejection| EventError::from((rejection.reason, rejection.detail)))?;
        check_conflict(index, &event, seen)?;
        let repeatable = if event.time_from_detail { Repeatable::Always } else { Repeatable::WithinDedupWindow };
        let unique_id = event.unique_id.into_owned();
        Ok(Event { detail: detail.into_owned(), unique_id, repeatable })
    }

    /// The event as it will lie in the stream. In its envelope a member named `detail` is a dimension.
    fn record(&self, detail: &str) -> Record {
        let [_, detail_type] = DETAIL_TYPES;
        let time = jiff::Timestamp::from_millisecond(self.now).unwrap_or_default();
        let time = time.strftime("%Y-%m-%dT%H:%M:%SZ");
        Record {
            data: format!(r#"{{"detail-type":"{detail_type}","id":"-","time":"{time}","detail":{detail}}}"#).into(),
            partition_key: String::new(),
            sequence_number: SequenceNumber(String::new()),
            arrived_at: self.now,
        }
    }
}

/// What copies of an event have in common, and where it was first.
type Seen = HashMap<[String; 3], (usize, Contents)>;

#[derive(PartialEq, Eq)]
struct Contents {
    value: String,
    time: Option<UnixMillis>,
    dimensions: Vec<(String, String)>,
}

/// As the worker's deduplication sees it: the same key with other contents could lose money if one were dropped.
fn check_conflict(index: usize, event: &UsageEvent<'_>, seen: &mut Seen) -> Result<(), EventError> {
    let key = [&event.tenant_id, &event.meter_api_name, &event.unique_id].map(|text| text.to_string());
    let contents = Contents {
        value: event.meter_value.to_string(),
        time: event.time_from_detail.then_some(event.meter_time),
        dimensions: event.dimensions.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
    };
    match seen.entry(key) {
        Entry::Vacant(place) => {
            place.insert((index, contents));
            Ok(())
        }
        Entry::Occupied(first) if first.get().1 == contents => Ok(()),
        Entry::Occupied(first) => {
            let first = first.get().0;
            let detail = format!("event {first} has the same tenantId, meterApiName and uniqueId, but other contents");
            Err((Reason::Conflict, detail).into())
        }
    }
}

impl Ids<'_> {
    fn id(&self, index: usize) -> String {
        let Self::Key { subject, key } = self else { return Uuid::new_v4().to_string() };
        let mut hash = Sha256::new();
        for field in [subject.as_bytes(), key.as_bytes(), &(index as u64).to_be_bytes()] {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What an event has under the name `uniqueId`.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    /// Nothing.
    Nothing,
    /// Nulls, which end at these offsets.
    Nulls(Vec<usize>),
    /// Something.
    Own,
}

impl Given {
    /// `None` for what is no object.
    fn of(text: &str) -> Option<Self> {
        let UniqueIds(values) = serde_json::from_str(text).ok()?;
        if values.is_empty() {
            return Some(Self::Nothing);
        }
        // Every value is a part of the text.
        let end = |value: &RawValue| value.get().as_ptr() as usize - text.as_ptr() as usize + value.get().len();
        let nulls: Vec<usize> = values.iter().filter(|value| value.get() == "null").map(|value| end(value)).collect();
        Some(if nulls.len() == values.len() { Self::Nulls(nulls) } else { Self::Own })
    }

    /// The object's text with this id, and no other byte changed.
    fn with(&self, text: &str, id: &str) -> String {
        match self {
            Self::Own => text.to_owned(),
            Self::Nulls(ends) => {
                let mut text = text.to_owned();
                for end in ends.iter().rev() {
                    text.replace_range(end - "null".len()..*end, &format!("\"{id}\""));
                }
                text
            }
            Self::Nothing => {
                let rest = text.trim_start().strip_prefix('{').unwrap_or_default();
                let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
                format!("{{\"{UNIQUE_ID}\":\"{id}\"{comma}{rest}")
            }
        }
    }
}

/// All values under that name, duplicates included, which are the parser's to judge.
struct UniqueIds<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for UniqueIds<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = UniqueIds<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                #[derive(Deserialize)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

                let mut values = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &RawValue>()? {
                    if name == UNIQUE_ID {
                        values.push(value);
                    }
                }
                Ok(UniqueIds(values))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: UnixMillis = 1_790_000_000_999;

    fn judged(ids: Ids<'_>, body: &str) -> Result<Vec<Result<Event, EventError>>, Problem> {
        let hour = Duration::from_secs(3600);
        let rules = EventRules { max_age: hour, max_ahead: hour, allow_aflo_dimensions: false };
        Judge { rules: &rules, ids, now: NOW, max_bytes: 1000 }.judge(body.as_bytes())
    }

    fn key(subject: &'static str, key: &'static str) -> Ids<'static> {
        Ids::Key { subject, key }
    }

    fn one(body: &str) -> Result<Event, EventError> {
        judged(key("s", "k"), body).unwrap().remove(0)
    }

    fn reason(body: &str) -> &'static str {
        one(body).unwrap_err().reason
    }

    const USAGE: &str = r#""tenantId":"t","meterApiName":"m","meterValue":1.50e+3"#;

    #[test]
    fn an_id_is_added_and_no_other_byte_changes() {
        let id = key("s", "k").id(0);
        assert_eq!(id.len(), 64);
        let detail = |body: &str| one(body).unwrap().detail;
        assert_eq!(
            detail(&format!(" {{ {USAGE}, \"n\":\t1.0 }} ")),
            format!("{{\"uniqueId\":\"{id}\", {USAGE}, \"n\":\t1.0 }}")
        );
        let null = |value: &str| format!("{{\"uniqueId\" : {value} ,{USAGE}, \"uniqu\\u0065Id\":{value}}}");
        assert_eq!(detail(&null("null")), null(&format!("\"{id}\"")));
        let own = format!("{{{USAGE},\"uniqueId\":\"mine\"}}");
        let event = one(&own).unwrap();
        assert_eq!((event.detail, event.unique_id), (own, "mine".to_owned()));
        let nested = format!("{{{USAGE},\"dimensions\":{{\"uniqueId\":null}}}}");
        assert_eq!(one(&nested).unwrap().unique_id, id);
    }

    #[test]
    fn a_derived_id_is_one_of_caller_key_and_place() {
        let id = |subject, name, index| key(subject, name).id(index);
        assert_eq!(id("s", "k", 0), id("s", "k", 0));
        let others = [id("s", "k", 1), id("s", "l", 0), id("t", "k", 0), id("sk", "", 0), id("", "sk", 0)];
        for (n, other) in others.iter().enumerate() {
            assert!(*other != id("s", "k", 0) && !others[..n].contains(other), "{n}");
        }
        // Callers keep the ids of answers that they got before an update of this program.
        assert_eq!(id("s", "k", 0), "d5bfac4dd078727305982e3b39397f63a1610e733cda932a26638b3f16b61081");
        assert_ne!(Ids::New.id(0), Ids::New.id(0));
    }

    #[test]
    fn what_the_worker_would_refuse_is_refused() {
        assert_eq!(reason("1"), "not_an_object");
        assert_eq!(reason("[[]]"), "not_an_object");
        assert_eq!(reason("{}"), "missing_field");
        assert_eq!(reason(&format!("{{{USAGE},\"aflo.x\":\"y\"}}")), "aflo_dimension");
        assert_eq!(reason(&format!("{{{USAGE},\"metering:redrive\":{{}}}}")), "reserved_dimension");
        assert_eq!(reason(&format!("{{{USAGE},\"meterTimeInMillis\":1}}")), "too_old");
        assert_eq!(reason(&format!("{{{USAGE},\"uniqueId\":\"\"}}")), "invalid_field");
        assert_eq!(reason(&format!("{{{USAGE},\"uniqueId\":\"a\",\"uniqueId\":null}}")), "duplicate_name");
        assert_eq!(reason(&format!("{{{USAGE},\"x\":\"\\ud800\"}}")), "not_json");
        assert_eq!(reason(&format!("{{{USAGE},\"x\":\"{}\"}}", "x".repeat(1000))), "oversized");
        assert_eq!(reason(&format!("{{\"detail\":{{{USAGE}}}}}")), "missing_field", "an envelope is no event");
    }

    #[test]
    fn a_dimension_may_have_any_other_name() {
        let body = format!("{{{USAGE},\"detail\":\"d\",\"detail-type\":\"x\",\"id\":7,\"time\":true}}");
        assert!(one(&body).is_ok());
    }

    #[test]
    fn what_repeats_for_how_long_depends_on_its_time() {
        assert_eq!(one(&format!("{{{USAGE}}}")).unwrap().repeatable, Repeatable::WithinDedupWindow);
        let timed = format!("{{{USAGE},\"meterTimeInMillis\":{NOW}}}");
        assert_eq!(one(&timed).unwrap().repeatable, Repeatable::Always);
    }

    #[test]
    fn a_body_has_one_to_a_thousand_events() {
        let many = |n: usize| format!("[{}]", vec![format!("{{{USAGE}}}"); n].join(","));
        assert_eq!(judged(Ids::New, &many(1000)).unwrap().len(), 1000);
        for bad in ["[]", &many(1001), "", "{", "[{}", "{} {}", "\u{feff}{}"] {
            assert!(judged(Ids::New, bad).is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn the_same_id_with_other_contents_is_refused() {
        let event = |id: &str, rest: &str| {
            format!("{{\"tenantId\":\"t\",\"meterApiName\":\"m\",\"uniqueId\":\"{id}\",{rest}}}")
        };
        let events = [
            event("a", "\"meterValue\":1"),
            event("a", "\"meterValue\":\"1.0\""),
            event("a", "\"meterValue\":2"),
            event("a", &format!("\"meterValue\":1,\"meterTimeInMillis\":{NOW}")),
            event("b", "\"meterValue\":2"),
            event("a", "\"meterValue\":1,\"zone\":\"z\""),
        ];
        let outcomes = judged(Ids::New, &format!("[{}]", events.join(","))).unwrap();
        let refused: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().map(|error| error.reason)).collect();
        let conflict = Some("conflict");
        assert_eq!(refused, [None, None, conflict, conflict, None, conflict]);
        assert!(outcomes[2].as_ref().unwrap_err().detail.contains("event 0"));
    }
}
