//! What is done with the letters of a queue: looking at them, purging them; [`redrive`](crate::redrive) is a module of
//! its own.
//!
//! All of it receives letters, which hides them, and releases at its end those that stay. A future that is dropped
//! before leaves them hidden for up to a minute, and does no other harm.

mod scan;

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use tokio::time::Instant;

use crate::backend::{BackendError, DeadLetters};
use crate::clock::UnixMillis;
use crate::dead_letter::DeadLetter;
use crate::reason::Reason;

pub use scan::Scan;
pub(crate) use scan::within;

/// Which letters are meant: those that fit everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these reasons.
    pub reasons: Option<HashSet<Reason>>,
    /// This tenant. Letters whose event could not be read that far have none.
    pub tenant_id: Option<String>,
    /// This meter; as for the tenant.
    pub meter_api_name: Option<String>,
    /// This place in the stream.
    pub sequence_number: Option<String>,
}

impl Filter {
    /// Whether `letter` is meant.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let has_reason = |reasons: &HashSet<Reason>| {
            Reason::from_name(&letter.reason).is_some_and(|reason| reasons.contains(&reason))
        };
        let is = |wanted: &Option<String>, given: Option<&String>| wanted.is_none() || wanted.as_ref() == given;
        self.reasons.as_ref().is_none_or(has_reason)
            && is(&self.tenant_id, letter.tenant_id.as_ref())
            && is(&self.meter_api_name, letter.meter_api_name.as_ref())
            && is(&self.sequence_number, Some(&letter.sequence_number))
    }
}

/// The queue or the stream failed in the middle.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Stopped<T> {
    /// What was done until then, and stays done.
    pub done: Box<T>,
    /// The failure.
    #[source]
    pub error: BackendError,
}

/// Some letters of a queue.
#[derive(Clone, Debug, Default)]
pub struct Peek {
    /// In no order.
    pub letters: Vec<DeadLetter>,
    /// More letters that match may be there.
    pub more: bool,
    /// The letters could not be released: nobody sees them for up to a minute.
    pub hidden: bool,
}

/// Up to `limit` letters that match; they stay where they are, and are visible again when this returns. Letters that
/// another receiver has in hand are not seen. It ends some seconds after `deadline` at the latest.
///
/// # Errors
/// When the queue cannot be read.
pub async fn peek(
    queue: &dyn DeadLetters,
    filter: &Filter,
    limit: usize,
    deadline: Instant,
) -> Result<Peek, BackendError> {
    let mut scan = Scan::new(queue, UnixMillis::MAX, Some(deadline));
    let mut letters = Vec::new();
    let found = within(Some(deadline), async {
        while letters.len() <= limit {
            let Some(page) = scan.next().await? else { break };
            letters.extend(page.into_iter().map(|received| received.letter).filter(|letter| filter.matches(letter)));
        }
        Ok(())
    })
    .await;
    let more = letters.len() > limit || !scan.is_complete();
    let released = scan.finish().await;
    found?;
    if let Err(error) = &released {
        tracing::warn!(%error, "dead letters that were looked at stay hidden for up to a minute");
    }
    letters.truncate(limit);
    Ok(Peek { letters, more, hidden: released.is_err() })
}

/// What a purge did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Purged {
    /// Letters removed for good.
    pub removed: u64,
    /// The same, by reason.
    pub by_reason: BTreeMap<String, u64>,
    /// More letters that match may be there.
    pub more: bool,
}

/// Removes the letters that match, for good, conflicts too; only those that were given up before `before`: what comes
/// while this runs was seen by nobody. (A worker's clock tells when a letter was given up, and it may be sent later.)
///
/// That is why it does not use PurgeQueue of SQS, which for a minute also removes what arrives. Messages that are not
/// letters, and letters of a newer version or in another receiver's hand, stay.
///
/// No call is begun after `deadline`, and it ends some seconds later at the latest.
///
/// # Errors
/// When the queue fails, with what was removed until then.
pub async fn purge(
    queue: &dyn DeadLetters,
    filter: &Filter,
    before: UnixMillis,
    deadline: Option<Instant>,
) -> Result<Purged, Stopped<Purged>> {
    let mut scan = Scan::new(queue, before, deadline);
    let mut purged = Purged::default();
    let result = within(deadline, purge_scanned(&mut scan, filter, &mut purged)).await;
    purged.more = !scan.is_complete();
    scan.finish_and_warn().await;
    match result {
        Ok(()) => Ok(purged),
        Err(error) => Err(Stopped { done: Box::new(purged), error }),
    }
}

async fn purge_scanned(scan: &mut Scan<'_>, filter: &Filter, purged: &mut Purged) -> Result<(), BackendError> {
    while let Some(page) = scan.next().await? {
        if scan.is_over() {
            break;
        }
        let meant: Vec<_> = page.into_iter().filter(|received| filter.matches(&received.letter)).collect();
        let receipts: Vec<_> = meant.iter().map(|received| received.receipt.clone()).collect();
        scan.remove(&receipts).await?;
        purged.removed += meant.len() as u64;
        for received in meant {
            tell_of_removed(&received.letter);
            *purged.by_reason.entry(received.letter.reason).or_default() += 1;
        }
    }
    Ok(())
}

/// What is never billed now is to be found afterwards: as long as the stream holds the record, by its place.
fn tell_of_removed(letter: &DeadLetter) {
    tracing::info!(
        target: "audit",
        reason = letter.reason,
        tenant_id = letter.tenant_id,
        meter_api_name = letter.meter_api_name,
        unique_id = letter.unique_id,
        meter_time_in_millis = letter.meter_time_in_millis,
        stream = letter.stream,
        shard = letter.shard,
        sequence_number = letter.sequence_number,
        "dead letter removed for good"
    );
}
