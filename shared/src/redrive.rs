//! Sends a dead letter through the pipeline again, so that Amberflo receives the identical record.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::backend::{BackendError, DeadLetters, NewRecord, Stream};
use crate::clock::UnixMillis;
use crate::dead_letter::DeadLetter;
use crate::event::{REDRIVE_MEMBER, Redrive, is_envelope};
use crate::json::Object;
use crate::reason::Reason;

/// Letters received at a time.
const PAGE: usize = 100;

/// Why a dead letter cannot be sent again as it is.
#[derive(Debug, thiserror::Error)]
#[error("not redrivable: {0}")]
pub struct NotRedrivable(String);

/// What a redrive of all dead letters did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Published to the stream again, and removed from the dead letters.
    pub redriven: u64,
    /// Left where they are: someone must decide which of two conflicting events is right.
    pub conflicts: u64,
    /// Left where they are: the payload is not a valid usage event, and would only come back.
    pub not_redrivable: u64,
}

/// Redrives every visible dead letter that was stored before `now`, except conflicts and unreadable payloads. (A record
/// may come back as a dead letter while this runs: it is not sent round and round.)
///
/// A letter is removed only after its record is published; a crash in between publishes it again later, and Amberflo's
/// deduplication absorbs the copy.
///
/// # Errors
/// When the queue or the stream fails; what was done until then stays done.
pub async fn all(dead_letters: &dyn DeadLetters, stream: &dyn Stream, now: UnixMillis) -> Result<Report, BackendError> {
    let mut report = Report::default();
    // Letters that stay are hidden after they were received, so every round sees new ones.
    loop {
        let letters = dead_letters.receive(PAGE).await?;
        if letters.is_empty() {
            return Ok(report);
        }
        let (mut records, mut receipts) = (Vec::new(), Vec::new());
        for received in letters.into_iter().filter(|received| received.letter.dead_lettered_at < now) {
            if received.letter.reason == Reason::Conflict.as_str() {
                report.conflicts += 1;
                continue;
            }
            match record(&received.letter) {
                Ok(record) => {
                    records.push(record);
                    receipts.push(received.receipt);
                }
                Err(_) => report.not_redrivable += 1,
            }
        }
        report.redriven += records.len() as u64;
        if !records.is_empty() {
            stream.publish(records).await?;
            dead_letters.delete(&receipts).await?;
        }
    }
}

/// The record to publish for `letter`: the payload as it arrived, with a marker beside `detail` that keeps the event's
/// identity and time. A bare `detail` is wrapped.
///
/// # Errors
/// When the payload is not a valid usage event: it would come back.
pub fn record(letter: &DeadLetter) -> Result<NewRecord, NotRedrivable> {
    let is_final = Reason::from_name(&letter.reason).is_some_and(Reason::is_final);
    let identity = letter.unique_id.clone().zip(letter.meter_time_in_millis).filter(|_| !is_final);
    let Some((unique_id, meter_time_in_millis)) = identity else {
        return Err(NotRedrivable(format!("the payload is not a usage event ({}): {}", letter.reason, letter.detail)));
    };
    let broken = |detail: String| NotRedrivable(format!("the stored payload is damaged: {detail}"));
    let text = std::str::from_utf8(&letter.payload).map_err(|error| broken(error.to_string()))?;
    let top = Object::parse(text, "the payload").map_err(|(_, detail)| broken(detail))?;
    let marker = Redrive { count: letter.redrive_count.saturating_add(1), unique_id, meter_time_in_millis };
    let marker = serde_json::value::to_raw_value(&marker).map_err(|error| broken(error.to_string()))?;

    let mut members: Vec<(&str, &RawValue)> = vec![(REDRIVE_MEMBER, &marker)];
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    if is_envelope(&top) {
        members.extend(
            top.members.iter().filter(|(name, _)| name != REDRIVE_MEMBER).map(|(name, value)| (&**name, *value)),
        );
    } else {
        members.push(("detail", whole));
    }
    Ok(NewRecord { partition_key: letter.partition_key.clone(), data: object(&members).into() })
}

fn object(members: &[(&str, &RawValue)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, (name, value)) in members.iter().enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        // Writing a str to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    out
}
