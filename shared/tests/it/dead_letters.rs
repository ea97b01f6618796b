//! Looking at dead letters and purging them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{BackendError, DeadLetters, NewRecord, Position, Received, Shard, ShardId, ShardReader, Stream};
use shared::dead_letter::DeadLetter;
use shared::dead_letters::{Filter, peek, purge};
use shared::reason::Reason;
use tokio::time::{Instant, sleep};

use crate::contract::letter;

/// A store that takes its time, or is down for some calls.
pub struct Slow<'a> {
    pub store: &'a LocalStore,
    pub receive: Duration,
    pub publish: Duration,
    pub release: Duration,
    /// So many publishes and deletes succeed before the rest fail.
    pub publishes: Option<usize>,
    pub deletes: Option<usize>,
    pub calls: AtomicUsize,
}

impl<'a> Slow<'a> {
    pub fn new(store: &'a LocalStore) -> Self {
        let zero = Duration::ZERO;
        let calls = AtomicUsize::new(0);
        Self { store, receive: zero, publish: zero, release: zero, publishes: None, deletes: None, calls }
    }

    fn check(&self, allowed: Option<usize>) -> Result<(), BackendError> {
        match allowed {
            Some(allowed) if self.calls.fetch_add(1, Ordering::Relaxed) >= allowed => {
                Err(BackendError::Unavailable("it is down".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl DeadLetters for Slow<'_> {
    fn name(&self) -> &str {
        self.store.name()
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        self.store.send(letters).await
    }

    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError> {
        sleep(self.receive).await;
        self.store.receive(max).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.check(self.deletes)?;
        self.store.delete(receipts).await
    }

    async fn release(&self, receipts: &[String]) -> Result<(), BackendError> {
        sleep(self.release).await;
        self.store.release(receipts).await
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        self.store.depth().await
    }
}

#[async_trait]
impl Stream for Slow<'_> {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.store.shards().await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        self.store.reader(shard, from).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        sleep(self.publish).await;
        self.check(self.publishes)?;
        self.store.publish(records).await
    }
}

fn store() -> LocalStore {
    LocalStore::open_in_memory(LocalOptions::default()).unwrap()
}

/// The letters that a receiver gets now, by the times at which they were given up. They are hidden after that.
pub async fn visible(store: &LocalStore) -> Vec<i64> {
    let received = store.receive(10_000).await.unwrap();
    let mut found: Vec<_> = received.iter().map(|received| received.letter.dead_lettered_at).collect();
    found.sort_unstable();
    found
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn of_meter(n: i64, meter: &str) -> DeadLetter {
    DeadLetter { meter_api_name: Some(meter.to_owned()), ..letter(n) }
}

#[test]
fn a_filter_means_letters_that_fit_all_of_it() {
    let unread = DeadLetter { tenant_id: None, meter_api_name: None, reason: "of-tomorrow".to_owned(), ..letter(7) };
    let reasons = |reasons: &[Reason]| Some(reasons.iter().copied().collect::<HashSet<_>>());
    let text = |text: &str| Some(text.to_owned());
    let any = Filter::default();
    for (filter, is_letter, is_unread) in [
        (any.clone(), true, true),
        (Filter { reasons: reasons(&[]), ..any.clone() }, false, false),
        (Filter { reasons: reasons(&[Reason::NotJson, Reason::Conflict]), ..any.clone() }, true, false),
        (Filter { reasons: reasons(&[Reason::Conflict]), ..any.clone() }, false, false),
        (Filter { tenant_id: text("tenant"), ..any.clone() }, true, false),
        (Filter { tenant_id: text("tenan"), ..any.clone() }, false, false),
        (Filter { meter_api_name: text("meter"), ..any.clone() }, true, false),
        (Filter { sequence_number: text("7"), ..any.clone() }, true, true),
        (Filter { sequence_number: text("70"), ..any.clone() }, false, false),
        (Filter { sequence_number: text("7"), meter_api_name: text("other"), ..any.clone() }, false, false),
    ] {
        assert_eq!((filter.matches(&letter(7)), filter.matches(&unread)), (is_letter, is_unread), "{filter:?}");
    }
}

#[tokio::test]
async fn a_peek_shows_what_matches_and_hides_nothing() {
    let store = store();
    let empty = peek(&store, &Filter::default(), 5, soon()).await.unwrap();
    assert!(empty.letters.is_empty() && !empty.more && !empty.hidden);
    let sent: Vec<_> = (0..300).map(|n| of_meter(n, if n < 290 { "a" } else { "b" })).collect();
    store.send(&sent).await.unwrap();
    let b = Filter { meter_api_name: Some("b".to_owned()), ..Filter::default() };
    for (limit, found, more) in [(4, 4, true), (9, 9, true), (10, 10, false), (100, 10, false)] {
        let peek = peek(&store, &b, limit, soon()).await.unwrap();
        assert_eq!((peek.letters.len(), peek.more, peek.hidden), (found, more, false), "{limit}");
        assert!(peek.letters.iter().all(|letter| sent[290..].contains(letter)));
    }
    assert_eq!(visible(&store).await.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_peek_ends_in_time_and_says_what_it_leaves() {
    let store = store();
    store.send(&(0..100).map(letter).collect::<Vec<_>>()).await.unwrap();
    let slow = Slow { receive: Duration::from_secs(3), release: Duration::from_secs(60), ..Slow::new(&store) };
    let start = Instant::now();
    let peek = peek(&slow, &Filter::default(), 1000, start + Duration::from_secs(10)).await.unwrap();
    assert_eq!((peek.letters.len(), peek.more, peek.hidden), (40, true, true));
    assert!(start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_purge_removes_what_matches_and_nothing_that_comes_while_it_runs() {
    let store = store();
    let sent: Vec<_> = (0..250).map(|n| of_meter(n, if n % 5 == 0 { "a" } else { "b" })).collect();
    store.send(&sent).await.unwrap();
    let a = Filter { meter_api_name: Some("a".to_owned()), ..Filter::default() };
    let purged = purge(&store, &a, 200, Some(soon())).await.unwrap();
    assert_eq!((purged.removed, purged.by_reason["not_json"], purged.more), (40, 40, false));
    let left: Vec<_> = (0..250).filter(|n| n % 5 != 0 || *n >= 200).collect();
    assert_eq!(visible(&store).await, left);

    let empty = self::store();
    assert_eq!(
        purge(&empty, &Filter::default(), i64::MAX, None).await.unwrap(),
        shared::dead_letters::Purged::default()
    );
    empty.send(&sent).await.unwrap();
    // The same letter stored twice goes twice.
    empty.send(&sent[..3]).await.unwrap();
    assert_eq!(purge(&empty, &Filter::default(), i64::MAX, None).await.unwrap().removed, 253);
    assert_eq!(empty.depth().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_is_cut_short_says_so() {
    let store = store();
    store.send(&(0..100).map(letter).collect::<Vec<_>>()).await.unwrap();
    let slow = Slow { receive: Duration::from_secs(3), ..Slow::new(&store) };
    let purged = purge(&slow, &Filter::default(), i64::MAX, Some(soon())).await.unwrap();
    assert_eq!((purged.removed, purged.more), (60, true), "the seventh page comes too late");
    let broken = Slow { deletes: Some(1), ..Slow::new(&store) };
    let stopped = purge(&broken, &Filter::default(), i64::MAX, Some(soon())).await.unwrap_err();
    assert_eq!((stopped.done.removed, stopped.done.more), (10, true));
    assert_eq!(visible(&store).await.len(), 30);
}
