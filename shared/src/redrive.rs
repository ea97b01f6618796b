//! Sends a dead letter through the pipeline again, so that Amberflo receives the identical record.

mod patch;
mod record;

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::backend::{BackendError, DeadLetters, NewRecord, Received, Stream};
use crate::clock::UnixMillis;
use crate::dead_letter::DeadLetter;
use crate::dead_letters::{Filter, Scan, Stopped, within};
use crate::event::EventRules;
use crate::reason::Reason;

pub use patch::{InvalidPatch, Patch};
pub use record::{RedriveError, record, record_of, repaired, repaired_of};

/// So many bytes are published at once: letters can be read from the stream that are far larger than a queue's.
const PUBLISH_BYTES: usize = 8 << 20;
/// Letters that stay are told of one by one up to this many.
const MAX_EXAMPLES: usize = 20;

/// Which letters a redrive sends again, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The letters that are meant; the others stay and are not counted.
    pub filter: Filter,
    /// Conflicts too: someone has decided that the event of the letter is right.
    pub conflicts: bool,
    /// What is changed in every payload.
    pub repair: Option<Repair>,
    /// At most so many.
    pub limit: Option<u64>,
    /// Only letters that were given up before this: a record may come back as a dead letter while this runs, and is not
    /// sent round and round.
    pub before: UnixMillis,
    /// No receive and no publish is begun after it, and the run ends some seconds later at the latest.
    pub deadline: Option<Instant>,
}

impl Options {
    /// All letters that were given up before `now`, as they are, except conflicts.
    #[must_use]
    pub fn all(now: UnixMillis) -> Self {
        Self { filter: Filter::default(), conflicts: false, repair: None, limit: None, before: now, deadline: None }
    }
}

/// Makes usage events of letters that are none: what is published is the payload as the patch changes it, if that is
/// valid for the place and time at which the record first arrived.
///
/// The event's id and time are those of the letter, where it has them, unless the patch names a member that they come
/// from: then they are the patched event's. So a letter that is redriven twice with the same patch gives the identical
/// record. With another patch it may not, and then both are billed; so is a patched event whose letter's event Amberflo
/// has counted after all, as it may have where the reason is `unconfirmed`.
#[derive(Clone, Debug)]
pub struct Repair {
    /// What is changed.
    pub patch: Patch,
    /// What the patched event may be.
    pub rules: EventRules,
}

/// What a redrive did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The numbers of letters.
    #[serde(flatten)]
    pub totals: Totals,
    /// Letters that match and stay: the sum of the totals but the first.
    pub skipped: u64,
    /// The same by the reason of the letter.
    pub by_reason: BTreeMap<String, Counts>,
    /// Letters that match may be left that nobody looked at: the limit or the deadline came first, or an error.
    pub more: bool,
    /// Some of those that were skipped.
    pub examples: Vec<Skipped>,
    /// Letters that were seen and are not meant.
    #[serde(skip)]
    pub others: u64,
}

/// Numbers of letters, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
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

/// Numbers of letters of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Published again.
    pub redriven: u64,
    /// Left where they are.
    pub skipped: u64,
}

/// A letter that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// Its shard.
    pub shard: String,
    /// Its place in the shard.
    pub sequence_number: String,
    /// Its reason.
    pub reason: String,
    /// Why it was not sent again, in words.
    pub why: String,
}

/// Redrives the visible dead letters that `options` mean. A payload that is not in its letter is read from the stream
/// again.
///
/// A letter is removed only after its record is published; a crash in between, or a future that is dropped, publishes it
/// again later, and Amberflo's deduplication absorbs the copy. Letters that stay are visible again when this returns.
///
/// # Errors
/// When the queue or the stream fails, with what was done until then.
pub async fn run(
    dead_letters: &dyn DeadLetters,
    stream: &dyn Stream,
    options: &Options,
) -> Result<Report, Stopped<Report>> {
    let scan = Scan::new(dead_letters, options.before, options.deadline);
    let mut run = Run { scan, stream, options, report: Report::default() };
    let result = within(options.deadline, run.work()).await;
    let Run { scan, mut report, .. } = run;
    scan.finish_and_warn().await;
    match result {
        Ok(()) => Ok(report),
        Err(error) => {
            report.more = true;
            Err(Stopped { done: Box::new(report), error })
        }
    }
}

struct Run<'a> {
    scan: Scan<'a>,
    stream: &'a dyn Stream,
    options: &'a Options,
    report: Report,
}

impl Run<'_> {
    async fn work(&mut self) -> Result<(), BackendError> {
        while !self.is_stopped(0)
            && let Some(letters) = self.scan.next().await?
        {
            self.redrive(letters).await?;
        }
        self.report.more = !self.scan.is_complete() || self.report.more;
        Ok(())
    }

    /// Whether no further letter may be taken when so many are about to be published.
    fn is_stopped(&self, ready: usize) -> bool {
        let taken = self.report.totals.redriven + ready as u64;
        self.scan.is_over() || self.options.limit.is_some_and(|limit| taken >= limit)
    }

    async fn redrive(&mut self, letters: Vec<Received>) -> Result<(), BackendError> {
        let mut ready = Ready::default();
        let (meant, others): (Vec<_>, Vec<_>) =
            letters.into_iter().partition(|received| self.options.filter.matches(&received.letter));
        self.report.others += others.len() as u64;
        for received in meant {
            if ready.bytes >= PUBLISH_BYTES || self.is_stopped(ready.letters.len()) {
                self.publish(std::mem::take(&mut ready)).await?;
            }
            // Not before: the stream may have refused some.
            if self.is_stopped(0) {
                self.report.more = true;
                return Ok(());
            }
            let letter = &received.letter;
            if letter.reason == Reason::Conflict.as_str() && !self.options.conflicts {
                self.report.totals.conflicts += 1;
                self.skip(letter, "someone must decide which of two events is right".to_owned());
                continue;
            }
            match self.record(letter).await {
                Ok(record) => ready.push(record, received),
                Err(RedriveError::Backend(error)) => return Err(error),
                Err(error @ RedriveError::NotRedrivable(_)) => {
                    self.report.totals.not_redrivable += 1;
                    self.skip(letter, error.to_string());
                }
                // The time was too short to tell.
                Err(RedriveError::Forgotten(_)) if self.scan.is_over() => self.report.more = true,
                Err(error @ RedriveError::Forgotten(_)) => {
                    let (shard, sequence_number) = (&letter.shard, &letter.sequence_number);
                    tracing::error!(shard, sequence_number, %error, "dead letter is left");
                    self.report.totals.forgotten += 1;
                    self.skip(letter, error.to_string());
                }
            }
        }
        self.publish(ready).await
    }

    async fn record(&self, letter: &DeadLetter) -> Result<NewRecord, RedriveError> {
        let record = async {
            match &self.options.repair {
                Some(repair) => repaired(letter, repair, self.stream).await,
                None => record(letter, self.stream).await,
            }
        };
        let Some(deadline) = self.options.deadline else { return record.await };
        let late = |_| Err(RedriveError::Forgotten("no record came in time".to_owned()));
        timeout_at(deadline, record).await.unwrap_or_else(late)
    }

    /// Publishes the records and removes their letters. One record that the stream does not take must not keep the
    /// others from it: then each is tried alone.
    async fn publish(&mut self, ready: Ready) -> Result<(), BackendError> {
        if ready.records.is_empty() {
            return Ok(());
        }
        if self.scan.is_over() {
            self.report.more = true;
            return Ok(());
        }
        match self.stream.publish(ready.records.clone()).await {
            Ok(()) => self.remove(ready.letters).await,
            Err(BackendError::Misconfigured(_)) if ready.records.len() > 1 => self.publish_singly(ready).await,
            Err(error) => Err(error),
        }
    }

    async fn publish_singly(&mut self, ready: Ready) -> Result<(), BackendError> {
        let (mut published, mut refused, mut failure) = (Vec::new(), Vec::new(), None);
        for (record, received) in ready.records.into_iter().zip(ready.letters) {
            if self.scan.is_over() {
                self.report.more = true;
                break;
            }
            match self.stream.publish(vec![record]).await {
                Ok(()) => published.push(received),
                Err(BackendError::Misconfigured(error)) => refused.push((received.letter, error)),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let is_about_records = !published.is_empty();
        self.remove(published).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        // It takes none: this is not about one record.
        if !is_about_records && let Some((_, error)) = refused.pop() {
            return Err(BackendError::Misconfigured(error));
        }
        for (letter, error) in refused {
            tracing::error!(error, "dead letter is left: the stream does not take its record");
            self.report.totals.not_redrivable += 1;
            self.skip(&letter, format!("the stream does not take its record: {error}"));
        }
        Ok(())
    }

    async fn remove(&mut self, published: Vec<Received>) -> Result<(), BackendError> {
        let mut receipts = Vec::with_capacity(published.len());
        for Received { receipt, letter } in published {
            self.report.totals.redriven += 1;
            self.report.by_reason.entry(letter.reason).or_default().redriven += 1;
            receipts.push(receipt);
        }
        self.scan.remove(&receipts).await
    }

    fn skip(&mut self, letter: &DeadLetter, why: String) {
        self.report.skipped += 1;
        self.report.by_reason.entry(letter.reason.clone()).or_default().skipped += 1;
        if self.report.examples.len() < MAX_EXAMPLES {
            self.report.examples.push(Skipped {
                shard: letter.shard.clone(),
                sequence_number: letter.sequence_number.clone(),
                reason: letter.reason.clone(),
                why,
            });
        }
    }
}

/// Records to publish, and the letters that they come from.
#[derive(Default)]
struct Ready {
    records: Vec<NewRecord>,
    letters: Vec<Received>,
    bytes: usize,
}

impl Ready {
    fn push(&mut self, record: NewRecord, received: Received) {
        self.bytes += record.data.len();
        self.records.push(record);
        self.letters.push(received);
    }
}
