//! Sends a dead letter through the pipeline again, so that Amberflo receives the identical record.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::backend::{
    BackendError, DeadLetters, NewRecord, Position, Received, Record, SequenceNumber, ShardId, Stream,
};
use crate::clock::UnixMillis;
use crate::dead_letter::{DeadLetter, Omitted, Payload, sha256};
use crate::event::{REDRIVE_MEMBER, Redrive, is_envelope};
use crate::json::Object;
use crate::reason::Reason;

/// Letters received at a time.
const PAGE: usize = 100;
/// So many bytes are published at once: letters can be read from the stream that are far larger than a queue's.
const PUBLISH_BYTES: usize = 8 << 20;
/// A queue may answer that it is empty, or give what it gave before, while letters are left that nobody has seen.
const ROUNDS_WITHOUT_NEWS: u32 = 3;
/// The same of a stream's shard.
const EMPTY_PAGES: u32 = 3;
/// How long a record is looked for in the stream.
const REREAD_TIME: Duration = Duration::from_secs(15);

/// Why a dead letter cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// Its payload is not a valid usage event, or is damaged: it would only come back.
    #[error("not redrivable: {0}")]
    NotRedrivable(String),
    /// Its payload is not in the letter, and no longer in the stream.
    #[error("not redrivable: the letter has no payload, and the stream does not give it: {0}")]
    Forgotten(String),
    /// The stream cannot be read now.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What a redrive of all dead letters did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Published to the stream again, and removed from the dead letters.
    pub redriven: u64,
    /// Left where they are: someone must decide which of two conflicting events is right.
    pub conflicts: u64,
    /// Left where they are: the payload is not a valid usage event and would only come back, or is larger than the
    /// stream takes.
    pub not_redrivable: u64,
    /// Left where they are: the queue had no room for the payload, and the stream no longer has it.
    pub forgotten: u64,
}

/// Redrives every visible dead letter that was stored before `now`, except conflicts and unreadable payloads. (A record
/// may come back as a dead letter while this runs: it is not sent round and round.) A payload that is not in its letter
/// is read from the stream again.
///
/// A letter is removed only after its record is published; a crash in between publishes it again later, and Amberflo's
/// deduplication absorbs the copy.
///
/// # Errors
/// When the queue or the stream fails; what was done until then stays done.
pub async fn all(dead_letters: &dyn DeadLetters, stream: &dyn Stream, now: UnixMillis) -> Result<Report, BackendError> {
    let mut run = Run { dead_letters, stream, report: Report::default(), left: HashSet::new() };
    let mut rounds_without_news = 0;
    while rounds_without_news < ROUNDS_WITHOUT_NEWS {
        let before = run.report;
        let mut letters = dead_letters.receive(PAGE).await?;
        letters.retain(|received| received.letter.dead_lettered_at < now);
        run.redrive(letters).await?;
        rounds_without_news = if run.report == before { rounds_without_news + 1 } else { 0 };
    }
    Ok(run.report)
}

struct Run<'a> {
    dead_letters: &'a dyn DeadLetters,
    stream: &'a dyn Stream,
    report: Report,
    /// Hashes of the letters that stay. They are hidden after they were received, but not for ever: they may come again
    /// before the run ends, and count once.
    left: HashSet<u64>,
}

impl Run<'_> {
    async fn redrive(&mut self, letters: Vec<Received>) -> Result<(), BackendError> {
        let mut ready = Ready::default();
        for Received { receipt, letter } in letters {
            if self.left.contains(&key(&letter)) {
                continue;
            }
            if letter.reason == Reason::Conflict.as_str() {
                self.report.conflicts += u64::from(self.left.insert(key(&letter)));
                continue;
            }
            match record(&letter, self.stream).await {
                Ok(record) => ready.push(record, receipt, key(&letter)),
                Err(RedriveError::Backend(error)) => return Err(error),
                Err(RedriveError::NotRedrivable(_)) => {
                    self.report.not_redrivable += u64::from(self.left.insert(key(&letter)));
                }
                Err(error @ RedriveError::Forgotten(_)) => {
                    let (shard, sequence_number) = (&letter.shard, &letter.sequence_number);
                    tracing::error!(shard, sequence_number, %error, "dead letter is left");
                    self.report.forgotten += u64::from(self.left.insert(key(&letter)));
                }
            }
            if ready.bytes >= PUBLISH_BYTES {
                self.publish(std::mem::take(&mut ready)).await?;
            }
        }
        self.publish(ready).await
    }

    /// Publishes the records and removes their letters. One record that the stream does not take must not keep the
    /// others from it: then each is tried alone.
    async fn publish(&mut self, ready: Ready) -> Result<(), BackendError> {
        if ready.records.is_empty() {
            return Ok(());
        }
        match self.stream.publish(ready.records.clone()).await {
            Ok(()) => self.remove(&ready.receipts).await,
            Err(BackendError::Misconfigured(_)) if ready.records.len() > 1 => self.publish_singly(ready).await,
            Err(error) => Err(error),
        }
    }

    async fn publish_singly(&mut self, ready: Ready) -> Result<(), BackendError> {
        let (mut published, mut refused, mut failure) = (Vec::new(), Vec::new(), None);
        for ((record, receipt), key) in ready.records.into_iter().zip(ready.receipts).zip(ready.keys) {
            match self.stream.publish(vec![record]).await {
                Ok(()) => published.push(receipt),
                Err(BackendError::Misconfigured(error)) => refused.push((key, error)),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        self.remove(&published).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        // It takes none: this is not about one record.
        if published.is_empty()
            && let Some((_, error)) = refused.pop()
        {
            return Err(BackendError::Misconfigured(error));
        }
        for (key, error) in refused {
            tracing::error!(error, "dead letter is left: the stream does not take its record");
            self.report.not_redrivable += u64::from(self.left.insert(key));
        }
        Ok(())
    }

    async fn remove(&mut self, published: &[String]) -> Result<(), BackendError> {
        self.report.redriven += published.len() as u64;
        self.dead_letters.delete(published).await
    }
}

/// Records to publish, and the letters that they come from.
#[derive(Default)]
struct Ready {
    records: Vec<NewRecord>,
    receipts: Vec<String>,
    keys: Vec<u64>,
    bytes: usize,
}

impl Ready {
    fn push(&mut self, record: NewRecord, receipt: String, key: u64) {
        self.bytes += record.data.len();
        self.records.push(record);
        self.receipts.push(receipt);
        self.keys.push(key);
    }
}

fn key(letter: &DeadLetter) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&letter.stream, &letter.shard, &letter.sequence_number, letter.dead_lettered_at).hash(&mut hasher);
    hasher.finish()
}

/// The record to publish for `letter`. A payload that is not in the letter is read from `stream`.
///
/// # Errors
/// When the payload is not a valid usage event (it would come back), or is not to be had.
pub async fn record(letter: &DeadLetter, stream: &dyn Stream) -> Result<NewRecord, RedriveError> {
    marker(letter)?;
    match &letter.payload {
        Payload::Stored(payload) => record_of(letter, payload),
        Payload::Omitted(omitted) => record_of(letter, &reread(letter, omitted, stream).await?),
    }
}

/// The record to publish for `letter`, whose payload this is: as it arrived, with a marker beside `detail` that keeps
/// the event's identity and time. A bare `detail` is wrapped.
///
/// # Errors
/// [`RedriveError::NotRedrivable`] when the payload is not a valid usage event: it would come back.
pub fn record_of(letter: &DeadLetter, payload: &[u8]) -> Result<NewRecord, RedriveError> {
    let marker = marker(letter)?;
    let broken = |detail: String| RedriveError::NotRedrivable(format!("the stored payload is damaged: {detail}"));
    let text = std::str::from_utf8(payload).map_err(|error| broken(error.to_string()))?;
    let top = Object::parse(text, "the payload").map_err(|(_, detail)| broken(detail))?;
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

fn marker(letter: &DeadLetter) -> Result<Redrive, RedriveError> {
    let is_final = Reason::from_name(&letter.reason).is_some_and(Reason::is_final);
    let identity = letter.unique_id.clone().zip(letter.meter_time_in_millis).filter(|_| !is_final);
    let Some((unique_id, meter_time_in_millis)) = identity else {
        let (reason, detail) = (&letter.reason, &letter.detail);
        return Err(RedriveError::NotRedrivable(format!("the payload is not a usage event ({reason}): {detail}")));
    };
    Ok(Redrive { count: letter.redrive_count.saturating_add(1), unique_id, meter_time_in_millis })
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
