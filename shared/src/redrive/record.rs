//! The record that a redrive publishes for a dead letter.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{Patch, Repair};
use crate::backend::{BackendError, NewRecord, Position, Record, SequenceNumber, ShardId, Stream};
use crate::dead_letter::{DeadLetter, Omitted, Payload, sha256};
use crate::event::{self, REDRIVE_MEMBER, Redrive, Rejection, is_envelope};
use crate::json::{Object, write_object};
use crate::reason::Reason;

/// Of a stream's shard: it may answer that it is empty while it holds records.
const EMPTY_PAGES: u32 = 3;
/// How long a record is looked for in the stream.
const REREAD_TIME: Duration = Duration::from_secs(15);

/// Why a dead letter cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// Its payload is not a valid usage event, also with the patch, or is damaged: it would only come back.
    #[error("not redrivable: {0}")]
    NotRedrivable(String),
    /// Its payload is not in the letter, and no longer in the stream.
    #[error("not redrivable: the letter has no payload, and the stream does not give it: {0}")]
    Forgotten(String),
    /// The stream cannot be read now.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The record to publish for `letter`. A payload that is not in the letter is read from `stream`.
///
/// # Errors
/// When the payload is not a valid usage event (it would come back), or is not to be had.
pub async fn record(letter: &DeadLetter, stream: &dyn Stream) -> Result<NewRecord, RedriveError> {
    marker(letter)?;
    record_of(letter, &payload(letter, stream).await?)
}

/// The record to publish for `letter`, whose payload this is: as it arrived, with a marker beside `detail` that keeps
/// the event's identity and time. A bare `detail` is wrapped.
///
/// # Errors
/// [`RedriveError::NotRedrivable`] when the payload is not a valid usage event: it would come back.
pub fn record_of(letter: &DeadLetter, payload: &[u8]) -> Result<NewRecord, RedriveError> {
    compose(letter, text(payload)?, &marker(letter)?)
}

/// As [`record`], of the patched payload: see [`Repair`].
///
/// # Errors
/// Also when the payload cannot be patched, or is no usage event with the patch.
pub async fn repaired(letter: &DeadLetter, repair: &Repair, stream: &dyn Stream) -> Result<NewRecord, RedriveError> {
    repaired_of(letter, repair, &payload(letter, stream).await?)
}

/// As [`record_of`], of the patched payload: see [`Repair`].
///
/// # Errors
/// [`RedriveError::NotRedrivable`] when the payload cannot be patched, or is no usage event with the patch.
pub fn repaired_of(letter: &DeadLetter, repair: &Repair, payload: &[u8]) -> Result<NewRecord, RedriveError> {
    let patched = repair.patch.apply(text(payload)?).map_err(RedriveError::NotRedrivable)?;
    let (own, is_envelope) = without_marker(patched.get())?;
    let own = arrived(letter, own);
    let shard = ShardId(letter.shard.clone());
    let event = event::parse(&own, &shard, &repair.rules).map_err(|rejection| invalid(&rejection))?;
    let kept_id = letter.unique_id.clone().filter(|_| !names_id(&repair.patch, is_envelope));
    let kept_time = letter.meter_time_in_millis.filter(|_| !names_time(&repair.patch, is_envelope));
    let marker = Redrive {
        count: letter.redrive_count.saturating_add(1),
        unique_id: kept_id.unwrap_or_else(|| event.unique_id.to_string()),
        meter_time_in_millis: kept_time.unwrap_or(event.meter_time),
    };
    let published = compose(letter, patched.get(), &marker)?;
    // A time that was kept may be too old, where the event's own is not.
    event::parse(&arrived(letter, published.data.clone()), &shard, &repair.rules)
        .map_err(|rejection| invalid(&rejection))?;
    Ok(published)
}

/// This payload in the place of the letter's.
fn arrived(letter: &DeadLetter, data: impl Into<Bytes>) -> Record {
    Record {
        data: data.into(),
        partition_key: letter.partition_key.clone(),
        sequence_number: SequenceNumber(letter.sequence_number.clone()),
        arrived_at: letter.arrived_at,
    }
}

fn invalid(rejection: &Rejection) -> RedriveError {
    let Rejection { reason, detail, .. } = rejection;
    RedriveError::NotRedrivable(format!("with the patch it is not a valid usage event ({reason}): {detail}"))
}

fn names_id(patch: &Patch, is_envelope: bool) -> bool {
    if is_envelope { patch.names(&["detail", "uniqueId"]) || patch.names(&["id"]) } else { patch.names(&["uniqueId"]) }
}

fn names_time(patch: &Patch, is_envelope: bool) -> bool {
    if is_envelope {
        patch.names(&["detail", "meterTimeInMillis"]) || patch.names(&["time"])
    } else {
        patch.names(&["meterTimeInMillis"])
    }
}

/// The payload as it was before a redrive marked it, so that the event's own identity can be read from it; and whether
/// it is an envelope as it stands.
fn without_marker(payload: &str) -> Result<(String, bool), RedriveError> {
    let top = object(payload)?;
    if !is_envelope(&top) {
        return Ok((payload.to_owned(), false));
    }
    let has = |wanted: &str| top.members.iter().any(|(name, value)| name == wanted && value.get() != "null");
    let detail = top.get("detail").map_err(|(_, detail)| broken(&detail))?;
    Ok(match detail {
        // A bare `detail` that the redrive wrapped.
        Some(detail) if has(REDRIVE_MEMBER) && !has("detail-type") => (detail.get().to_owned(), true),
        _ => (write_object(unmarked(&top)), true),
    })
}

fn compose(letter: &DeadLetter, payload: &str, marker: &Redrive) -> Result<NewRecord, RedriveError> {
    let top = object(payload)?;
    let marker = serde_json::value::to_raw_value(marker).map_err(|error| broken(&error.to_string()))?;
    let whole: &RawValue = serde_json::from_str(payload).map_err(|error| broken(&error.to_string()))?;
    let mut members: Vec<(&str, &RawValue)> = vec![(REDRIVE_MEMBER, &marker)];
    if is_envelope(&top) {
        members.extend(unmarked(&top));
    } else {
        members.push(("detail", whole));
    }
    Ok(NewRecord { partition_key: letter.partition_key.clone(), data: write_object(members).into() })
}

fn unmarked<'a>(top: &'a Object<'a>) -> impl Iterator<Item = (&'a str, &'a RawValue)> {
    top.members.iter().filter(|(name, _)| name != REDRIVE_MEMBER).map(|(name, value)| (&**name, *value))
}

fn text(payload: &[u8]) -> Result<&str, RedriveError> {
    std::str::from_utf8(payload).map_err(|error| broken(&error.to_string()))
}

fn object(payload: &str) -> Result<Object<'_>, RedriveError> {
    Object::parse(payload, "the payload").map_err(|(_, detail)| broken(&detail))
}

fn broken(detail: &str) -> RedriveError {
    RedriveError::NotRedrivable(format!("the stored payload is damaged: {detail}"))
}

fn marker(letter: &DeadLetter) -> Result<Redrive, RedriveError> {
    let is_final = Reason::from_name(&letter.reason).is_some_and(Reason::is_final);
    let identity = letter.unique_id.clone().zip(letter.meter_time_in_millis).filter(|_| !is_final);
    let Some((unique_id, meter_time_in_millis)) = identity else {
        let (reason, detail) = (&letter.reason, &letter.detail);
        return Err(RedriveError::NotRedrivable(format!("the payload is not a usage event ({reason}): {detail}")));
    };
    Ok(Redrive { count: letter.redrive_count.saturating_add(1), unique_id, meter_time_in_millis })
}

async fn payload(letter: &DeadLetter, stream: &dyn Stream) -> Result<Bytes, RedriveError> {
    match &letter.payload {
        Payload::Stored(payload) => Ok(payload.clone()),
        Payload::Omitted(omitted) => reread(letter, omitted, stream).await,
    }
}

/// The payload from its place in the stream, if it is the one that the letter was written for.
async fn reread(letter: &DeadLetter, omitted: &Omitted, stream: &dyn Stream) -> Result<Bytes, RedriveError> {
    let place = SequenceNumber(letter.sequence_number.clone());
    let forgotten = |detail: String| Err(RedriveError::Forgotten(detail));
    match timeout(REREAD_TIME, first_record(stream, letter, &place, omitted.bytes)).await {
        Ok(Ok(Some(record))) if record.sequence_number != place => {
            forgotten(format!("its first record there is {}", record.sequence_number))
        }
        Ok(Ok(Some(record))) if sha256(&record.data) != omitted.sha256 => {
            forgotten("it has another payload there".to_owned())
        }
        Ok(Ok(Some(record))) => Ok(record.data),
        Ok(Ok(None)) => forgotten("it has no record there".to_owned()),
        // A shard or a place that the stream does not know; one such letter must not hold up the others.
        Ok(Err(BackendError::Gone(error) | BackendError::Misconfigured(error))) => forgotten(error),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => forgotten(format!("no record came in {} s", REREAD_TIME.as_secs())),
    }
}

async fn first_record(
    stream: &dyn Stream,
    letter: &DeadLetter,
    place: &SequenceNumber,
    bytes: u64,
) -> Result<Option<Record>, BackendError> {
    let mut reader = stream.reader(&ShardId(letter.shard.clone()), Position::At(place.clone())).await?;
    let mut empty_pages = 0;
    loop {
        let page = reader.next(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        if let Some(record) = page.records.into_iter().next() {
            return Ok(Some(record));
        }
        empty_pages += u32::from(page.millis_behind_latest == 0);
        if page.is_end || empty_pages >= EMPTY_PAGES {
            return Ok(None);
        }
    }
}
