//! Parses a stream record into a [`UsageEvent`], or a [`Rejection`] that says why not.
//!
//! A record is an EventBridge envelope or a bare `detail` object. Parsing is pure: the same record gives the same
//! event on every worker and every replay, which is what lets Amberflo's deduplication absorb our retries.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backend::{Record, ShardId};
use crate::clock::{UnixMillis, millis};
use crate::json::{Fault, Object, canonical_number, dimension_text, duplicate, excerpt, string};
use crate::reason::Reason;

/// The `detail-type`s of usage events: npm `@cdklabs/sbt-aws` 0.5 and SBT's main branch since June 2025.
pub const DETAIL_TYPES: [&str; 2] = ["ingestUsage", "sbt_aws_ingestUsage"];
/// The longest `tenantId` and `meterApiName`, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// The longest `uniqueId`, in bytes.
pub const MAX_UNIQUE_ID_BYTES: usize = 1024;
/// The envelope member that a redrive adds. It stands beside `detail`, where nothing that comes through EventBridge
/// can put it.
pub const REDRIVE_MEMBER: &str = "metering:redrive";

/// The first bytes of a record that the Kinesis Producer Library aggregated.
/// Source: the KPL's aggregation format.
const KPL_MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const RESERVED_PREFIX: &str = "metering:";
const AFLO_PREFIX: &str = "aflo.";
const FIELDS: [&str; 6] = ["tenantId", "meterApiName", "meterValue", "uniqueId", "meterTimeInMillis", "dimensions"];

/// What the settings allow an event to be.
#[derive(Clone, Debug)]
pub struct EventRules {
    /// How far an event's time may lie before its arrival.
    pub max_age: Duration,
    /// How far an event's time may lie after its arrival.
    pub max_ahead: Duration,
    /// Whether dimensions may begin with `aflo.`.
    pub allow_aflo_dimensions: bool,
}

/// Names and values.
pub type Dimensions<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// One usage event, with its identity and time resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent<'a> {
    /// Whose usage it is.
    pub tenant_id: Cow<'a, str>,
    /// What was used.
    pub meter_api_name: Cow<'a, str>,
    /// How much: the canonical text of a JSON number.
    pub meter_value: Cow<'a, str>,
    /// The idempotency key: the producer's, else the envelope's id, else the record's place in the stream.
    pub unique_id: Cow<'a, str>,
    /// When it was used, in milliseconds since the Unix epoch.
    pub meter_time: UnixMillis,
    /// Whether `detail` carried the time; otherwise copies of the event may differ in it.
    pub time_from_detail: bool,
    /// Sorted by name, no name twice.
    pub dimensions: Dimensions<'a>,
    /// How often the event was redriven from the dead letters.
    pub redrive_count: u32,
}

/// Why a record is not a usage event, with what could be read of it all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason.
    pub reason: Reason,
    /// The reason in words: what was given and what is allowed.
    pub detail: String,
    /// What could be read.
    pub identity: Identity,
}

/// The parts of an event that a dead letter keeps for its redrive and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Whose usage it is.
    pub tenant_id: Option<String>,
    /// What was used.
    pub meter_api_name: Option<String>,
    /// The resolved idempotency key.
    pub unique_id: Option<String>,
    /// The resolved time.
    pub meter_time: Option<UnixMillis>,
    /// How often it was redriven.
    pub redrive_count: u32,
}

/// What a redrive puts beside `detail`, so that the event keeps its identity and time although it arrives anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redrive {
    /// 1 for the first redrive.
    pub count: u32,
    /// The idempotency key that the event resolved to at first.
    pub unique_id: String,
    /// The time that the event resolved to at first.
    pub meter_time_in_millis: UnixMillis,
}

/// Parses one record.
///
/// # Errors
/// A [`Rejection`] for everything that is not a valid usage event; the record then belongs in the dead letters.
pub fn parse<'a>(record: &'a Record, shard: &'a ShardId, rules: &EventRules) -> Result<UsageEvent<'a>, Box<Rejection>> {
    let reject = |(reason, detail): Fault, identity: Identity| Box::new(Rejection { reason, detail, identity });
    let text = text(&record.data).map_err(|fault| reject(fault, Identity::default()))?;
    let source = Source::read(text, record, shard).map_err(|fault| reject(fault, Identity::default()))?;
    source.event(rules).map_err(|fault| reject(fault, source.identity()))
}

impl UsageEvent<'_> {
    /// What a dead letter keeps of this event.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            tenant_id: Some(self.tenant_id.to_string()),
            meter_api_name: Some(self.meter_api_name.to_string()),
            unique_id: Some(self.unique_id.to_string()),
            meter_time: Some(self.meter_time),
            redrive_count: self.redrive_count,
        }
    }
}

fn text(data: &[u8]) -> Result<&str, Fault> {
    if data.is_empty() {
        return Err((Reason::Empty, "the record is empty".to_owned()));
    }
    if data.starts_with(&KPL_MAGIC) {
        let detail = "the record is a KPL aggregate: turn aggregation off in the producer".to_owned();
        return Err((Reason::KplAggregate, detail));
    }
    std::str::from_utf8(data).map_err(|error| (Reason::InvalidUtf8, format!("the record is not UTF-8: {error}")))
}

/// An event's parts before they are checked.
struct Source<'a> {
    record: &'a Record,
    shard: &'a ShardId,
    id: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    redrive: Option<Redrive>,
    detail: Object<'a>,
}

impl<'a> Source<'a> {
    fn read(text: &'a str, record: &'a Record, shard: &'a ShardId) -> Result<Self, Fault> {
        let mut top = match Object::parse_through(text, &["detail", "dimensions"]) {
            Some(top) => top,
            None => Object::parse(text, "the record")?,
        };
        if !is_envelope(&top) {
            return Ok(Self { record, shard, id: None, time: None, redrive: None, detail: top });
        }
        let redrive = top.get(REDRIVE_MEMBER)?.map(redrive_marker).transpose()?;
        let detail_type = top.get("detail-type")?;
        if detail_type.is_some() || redrive.is_none() {
            check_detail_type(detail_type)?;
        }
        let detail = match top.inner.take() {
            Some(detail) => *detail,
            None => Object::parse(top.get("detail")?.ok_or_else(|| missing("detail"))?.get(), "detail")?,
        };
        Ok(Self { record, shard, id: top.get("id")?, time: top.get("time")?, redrive, detail })
    }

    fn event(&self, rules: &EventRules) -> Result<UsageEvent<'a>, Fault> {
        let (meter_time, time_from_detail) = self.meter_time()?;
        self.check_time(meter_time, rules)?;
        Ok(UsageEvent {
            tenant_id: self.name("tenantId")?,
            meter_api_name: self.name("meterApiName")?,
            meter_value: self.meter_value()?,
            unique_id: self.unique_id()?,
            meter_time,
            time_from_detail,
            dimensions: self.dimensions(rules)?,
            redrive_count: self.redrive_count(),
        })
    }

    /// What can be read in spite of a fault elsewhere.
    fn identity(&self) -> Identity {
        Identity {
            tenant_id: self.name("tenantId").ok().map(Cow::into_owned),
            meter_api_name: self.name("meterApiName").ok().map(Cow::into_owned),
            unique_id: self.unique_id().ok().map(Cow::into_owned),
            meter_time: self.meter_time().ok().map(|(time, _)| time),
            redrive_count: self.redrive_count(),
        }
    }

    fn redrive_count(&self) -> u32 {
        self.redrive.as_ref().map_or(0, |redrive| redrive.count)
    }

    fn name(&self, field: &str) -> Result<Cow<'a, str>, Fault> {
        let value = self.detail.get(field)?.ok_or_else(|| missing(field))?;
        short_text(value, field, MAX_NAME_BYTES)
    }

    fn meter_value(&self) -> Result<Cow<'a, str>, Fault> {
        let value = self.detail.get("meterValue")?.ok_or_else(|| missing("meterValue"))?;
        let number = match string(value)? {
            Some(Cow::Borrowed(text)) => canonical_number(text),
            Some(Cow::Owned(text)) => canonical_number(&text).map(|number| Cow::Owned(number.into_owned())),
            None => canonical_number(value.get()),
        };
        number.ok_or_else(|| {
            let given = excerpt(value.get());
            (Reason::InvalidMeterValue, format!("meterValue must be a finite number or its text, not {given}"))
        })
    }

    fn unique_id(&self) -> Result<Cow<'a, str>, Fault> {
        if let Some(redrive) = &self.redrive {
            return Ok(Cow::Owned(redrive.unique_id.clone()));
        }
        if let Some(value) = self.detail.get("uniqueId")? {
            return short_text(value, "uniqueId", MAX_UNIQUE_ID_BYTES);
        }
        match self.id {
            Some(value) => short_text(value, "id", MAX_UNIQUE_ID_BYTES),
            None => Ok(Cow::Owned(format!("{}:{}", self.shard, self.record.sequence_number))),
        }
    }

    /// The event's time, and whether `detail` carried it.
    fn meter_time(&self) -> Result<(UnixMillis, bool), Fault> {
        let in_detail = self.detail.get("meterTimeInMillis")?;
        if let Some(redrive) = &self.redrive {
            return Ok((redrive.meter_time_in_millis, in_detail.is_some()));
        }
        if let Some(value) = in_detail {
            let text = string(value)?.unwrap_or(Cow::Borrowed(value.get()));
            let time = canonical_number(&text).and_then(|number| number.parse().ok());
            return time.map(|time| (time, true)).ok_or_else(|| {
                let given = excerpt(value.get());
                invalid(format!("meterTimeInMillis must be whole milliseconds since 1970, not {given}"))
            });
        }
        let Some(value) = self.time else {
            return Ok((self.record.arrived_at, false));
        };
        let time = string(value)?.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        time.map(|time| (time.as_millisecond(), false))
            .ok_or_else(|| invalid(format!("time must be an RFC 3339 time, not {}", excerpt(value.get()))))
    }

    fn check_time(&self, time: UnixMillis, rules: &EventRules) -> Result<(), Fault> {
        let age = i128::from(self.record.arrived_at) - i128::from(time);
        if age > i128::from(millis(rules.max_age)) {
            let detail = format!(
                "the event's time is {age} ms before its arrival; MAX_EVENT_AGE allows {}",
                millis(rules.max_age)
            );
            return Err((Reason::TooOld, detail));
        }
        if -age > i128::from(millis(rules.max_ahead)) {
            let ahead = -age;
            let detail = format!(
                "the event's time is {ahead} ms after its arrival; MAX_EVENT_AHEAD allows {}",
                millis(rules.max_ahead)
            );
            return Err((Reason::TooFarAhead, detail));
        }
        Ok(())
    }

    fn dimensions(&self, rules: &EventRules) -> Result<Dimensions<'a>, Fault> {
        let parsed = match self.detail.get("dimensions")? {
            Some(value) => Some(Object::parse(value.get(), "dimensions")?),
            None => None,
        };
        let nested = parsed.as_ref().or(self.detail.inner.as_deref()).map_or(&[][..], |nested| &nested.members);
        let beside = self.detail.members.iter().filter(|(name, _)| !FIELDS.contains(&name.as_ref()));
        let mut dimensions = Vec::with_capacity(self.detail.members.len() + nested.len());
        for (name, value) in beside.chain(nested) {
            if name.starts_with(RESERVED_PREFIX) {
                let detail = format!("{:?}: names under {RESERVED_PREFIX:?} are reserved", excerpt(name));
                return Err((Reason::ReservedDimension, detail));
            }
            if name.starts_with(AFLO_PREFIX) && !rules.allow_aflo_dimensions {
                let name = excerpt(name);
                let detail = format!("{name:?}: names under {AFLO_PREFIX:?} need the setting ALLOW_AFLO_DIMENSIONS");
                return Err((Reason::AfloDimension, detail));
            }
            if let Some(text) = dimension_text(value)? {
                dimensions.push((name.clone(), text));
            }
        }
        dimensions.sort();
        dimensions.dedup();
        match dimensions.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(duplicate(&excerpt(&pair[0].0))),
            None => Ok(dimensions),
        }
    }
}

/// A bare `detail` has neither of these members at its top level.
pub(crate) fn is_envelope(top: &Object<'_>) -> bool {
    top.inner.is_some() || top.members.iter().any(|(name, _)| name == "detail" || name == "detail-type")
}

fn check_detail_type(value: Option<&RawValue>) -> Result<(), Fault> {
    let given = value.map(string).transpose()?.flatten();
    match given {
        Some(name) if DETAIL_TYPES.contains(&name.as_ref()) => Ok(()),
        _ => {
            let given = value.map_or(Cow::Borrowed("none"), |value| Cow::Owned(excerpt(value.get())));
            let [old, new] = DETAIL_TYPES;
            Err((Reason::UnknownDetailType, format!("detail-type must be {old:?} or {new:?}, not {given}")))
        }
    }
}

fn redrive_marker(value: &RawValue) -> Result<Redrive, Fault> {
    serde_json::from_str(value.get()).map_err(|error| invalid(format!("{REDRIVE_MEMBER} is malformed: {error}")))
}

/// A non-empty string, or a number as its text.
fn short_text<'a>(value: &'a RawValue, field: &str, max_bytes: usize) -> Result<Cow<'a, str>, Fault> {
    let text = match string(value)? {
        Some(text) => Some(text),
        None => canonical_number(value.get()),
    };
    match text {
        Some(text) if !text.is_empty() && text.len() <= max_bytes => Ok(text),
        _ => {
            let given = excerpt(value.get());
            Err(invalid(format!("{field} must be a non-empty text of at most {max_bytes} bytes, not {given}")))
        }
    }
}

fn missing(field: &str) -> Fault {
    (Reason::MissingField, format!("{field} is missing"))
}

fn invalid(detail: String) -> Fault {
    (Reason::InvalidField, detail)
}
