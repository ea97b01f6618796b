//! What becomes of received messages.

use std::collections::HashSet;
use std::time::Duration;

use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use tokio::time::sleep;

use super::{BACKOFF, BATCH, SqsDeadLetters, build_error};
use crate::backend::BackendError;

#[derive(Clone, Copy)]
pub(super) enum Fate {
    Delete,
    Release,
}

/// A receipt, and its id in a batch call.
type Entry<'a> = (String, &'a String);

impl SqsDeadLetters {
    /// Deletes or releases; entries of a batch that fail alone are tried again, and the others are not.
    pub(super) async fn settle(&self, receipts: &[String], fate: Fate) -> Result<(), BackendError> {
        let receipts: Vec<_> = receipts.iter().filter(|receipt| !receipt.is_empty()).collect();
        for batch in receipts.chunks(BATCH) {
            self.settle_batch(batch, fate).await?;
        }
        Ok(())
    }

    async fn settle_batch(&self, receipts: &[&String], fate: Fate) -> Result<(), BackendError> {
        let mut entries: Vec<Entry<'_>> = receipts.iter().enumerate().map(|(id, &r)| (id.to_string(), r)).collect();
        let mut backoff = BACKOFF.into_iter();
        loop {
            let settled = match fate {
                Fate::Delete => self.delete_batch(&entries).await?,
                Fate::Release => self.release_batch(&entries).await?,
            };
            entries.retain(|(id, _)| !settled.contains(id));
            if entries.is_empty() {
                return Ok(());
            }
            let Some(delay) = backoff.next() else {
                let (queue, count) = (&self.queue_url, entries.len());
                let done = match fate {
                    Fate::Delete => "deleted",
                    Fate::Release => "released",
                };
                return Err(BackendError::Unavailable(format!(
                    "dead-letter queue {queue:?}: {count} letters were not {done}"
                )));
            };
            sleep(Duration::from_millis(delay)).await;
        }
    }

    /// Answers the ids of those that need no further call.
    async fn delete_batch(&self, entries: &[Entry<'_>]) -> Result<HashSet<String>, BackendError> {
        let entry = |(id, receipt): &Entry<'_>| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(*receipt);
            entry.build().map_err(build_error)
        };
        let entries = entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let request = self.client.delete_message_batch().queue_url(&self.queue_url);
        let answer = request.set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.error("deleting", &error))?;
        Ok(settled(answer.successful().iter().map(|entry| entry.id()), answer.failed()))
    }

    async fn release_batch(&self, entries: &[Entry<'_>]) -> Result<HashSet<String>, BackendError> {
        let entry = |(id, receipt): &Entry<'_>| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id).receipt_handle(*receipt);
            entry.visibility_timeout(0).build().map_err(build_error)
        };
        let entries = entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let request = self.client.change_message_visibility_batch().queue_url(&self.queue_url);
        let answer = request.set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.error("releasing", &error))?;
        Ok(settled(answer.successful().iter().map(|entry| entry.id()), answer.failed()))
    }
}

/// A receipt that is unknown, malformed or out of date is the sender's fault: no call will do better.
fn settled<'a>(successful: impl Iterator<Item = &'a str>, failed: &'a [BatchResultErrorEntry]) -> HashSet<String> {
    let hopeless = failed.iter().filter(|failed| failed.sender_fault()).map(|failed| failed.id());
    successful.chain(hopeless).map(str::to_owned).collect()
}
