//! Going through a queue that shows what it has in no order, and not all at once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::backend::{BackendError, DeadLetters, Received};
use crate::clock::UnixMillis;
use crate::dead_letter::DeadLetter;

/// Letters received at a time.
const PAGE: usize = 100;
/// The same under a deadline: a queue fills a larger page with many calls, which could go on long after it.
const SHORT_PAGE: usize = 10;
/// A queue may answer that it is empty, or give what it gave before, while letters are left that nobody has seen.
const ROUNDS_WITHOUT_NEWS: u32 = 3;
/// A call that was begun before the deadline is given up when it has no answer this long after it.
const GRACE: Duration = Duration::from_secs(4);
/// How long the release of letters may take.
const RELEASE_TIME: Duration = Duration::from_secs(3);

/// One pass over the letters of a queue. Each is received once, and hidden from then on; what is not
/// [removed](Self::remove) is released by [`finish`](Self::finish), not before: else it would come round again.
pub struct Scan<'a> {
    queue: &'a dyn DeadLetters,
    before: UnixMillis,
    deadline: Option<Instant>,
    /// Receipts of the letters that are still there, and the hashes of those.
    held: HashMap<String, u64>,
    /// Hashes of the letters that stay: hidden, but not for ever, so they may come again before the end.
    seen: HashSet<u64>,
    rounds_without_news: u32,
}

impl<'a> Scan<'a> {
    /// Of the letters that were given up before `before`. No page is begun after `deadline`.
    #[must_use]
    pub fn new(queue: &'a dyn DeadLetters, before: UnixMillis, deadline: Option<Instant>) -> Self {
        Self { queue, before, deadline, held: HashMap::new(), seen: HashSet::new(), rounds_without_news: 0 }
    }

    /// Letters that have not come yet, or come again although their like was removed; `None` when there seem to be no
    /// more, or the deadline has passed.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<Received>>, BackendError> {
        let page = if self.deadline.is_some() { SHORT_PAGE } else { PAGE };
        while !self.is_complete() && !self.is_over() {
            let mut letters = self.queue.receive(page).await?;
            let keys: Vec<_> = letters.iter().map(|received| key(&received.letter)).collect();
            self.held.extend(letters.iter().map(|received| received.receipt.clone()).zip(keys.iter().copied()));
            let mut has_newcomers = false;
            letters.retain(|Received { letter, .. }| {
                let is_newcomer = letter.dead_lettered_at >= self.before;
                has_newcomers |= is_newcomer;
                !is_newcomer && !self.seen.contains(&key(letter))
            });
            self.seen.extend(keys);
            if !letters.is_empty() {
                self.rounds_without_news = 0;
                return Ok(Some(letters));
            }
            // Behind newcomers there may be others. Without a deadline a steady stream of them would have no end.
            if !has_newcomers || self.deadline.is_none() {
                self.rounds_without_news += 1;
            }
        }
        Ok(None)
    }

    /// Whether everything that the queue shows has come.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.rounds_without_news >= ROUNDS_WITHOUT_NEWS
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Removes letters for good.
    ///
    /// # Errors
    /// When the queue fails: then some may still be there.
    pub async fn remove(&mut self, receipts: &[String]) -> Result<(), BackendError> {
        self.queue.delete(receipts).await?;
        for receipt in receipts {
            if let Some(key) = self.held.remove(receipt) {
                self.seen.remove(&key);
            }
        }
        Ok(())
    }

    /// Shows the letters that stay to others again, as many as a few seconds allow.
    ///
    /// # Errors
    /// When the queue fails or takes too long: then letters stay hidden for up to a minute.
    pub async fn finish(self) -> Result<(), BackendError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let receipts: Vec<_> = self.held.into_keys().collect();
        match timeout(RELEASE_TIME, self.queue.release(&receipts)).await {
            Ok(released) => released,
            Err(_) => Err(BackendError::Unavailable(format!(
                "{} letters could not be released in {} s",
                receipts.len(),
                RELEASE_TIME.as_secs()
            ))),
        }
    }

    /// As [`finish`](Self::finish), where hidden letters are only a nuisance.
    pub async fn finish_and_warn(self) {
        if let Err(error) = self.finish().await {
            tracing::warn!(%error, "dead letters that stay are hidden for up to a minute");
        }
    }
}

/// Ends `work` some seconds after the deadline at the latest.
pub(crate) async fn within(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<(), BackendError>>,
) -> Result<(), BackendError> {
    let Some(deadline) = deadline else { return work.await };
    match timeout_at(deadline + GRACE, work).await {
        Ok(result) => result,
        Err(_) => Err(BackendError::Unavailable("the queue or the stream does not answer in time".to_owned())),
    }
}

fn key(letter: &DeadLetter) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&letter.stream, &letter.shard, &letter.sequence_number, letter.dead_lettered_at).hash(&mut hasher);
    hasher.finish()
}
